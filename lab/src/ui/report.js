// What came out, as a table, as a file and in words; every number is computed from the run.
import { ARMS, percent, spell } from "./arms.js";
import { PLACES, RANGES } from "./state.js";

const LAST = 10; // batches whose mean is the final loss
const GOOD = 0.9; // the accuracy whose first time is told

export function median(values) {
  const sorted = values.filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
  if (!sorted.length) return NaN;
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / (values.length || NaN);

/** The numbers of one network. */
export function summary({ series, time, stopped, problem, hash, backend }) {
  const losses = series.loss.map(([, loss]) => loss);
  const accuracies = series.test.map(([, accuracy]) => accuracy);
  const betas = (name) => median(series[name].map(([, value]) => value.effectiveBeta));
  const deeper = series.covariateShift.flatMap(([, layers]) => layers.slice(1).map((layer) => layer.cosine));
  return {
    steps: time,
    loss: stopped ? NaN : mean(losses.slice(-LAST)),
    accuracy: stopped ? NaN : (accuracies.at(-1) ?? NaN),
    best: accuracies.length ? Math.max(...accuracies) : NaN,
    good: series.test.find(([, accuracy]) => accuracy >= GOOD)?.[0] ?? null,
    beta: betas("landscape"),
    activationBeta: betas("activationLandscape"),
    cosine: median(deeper),
    ended: problem ?? stopped?.reason ?? "",
    hash: hash ?? "",
    backend: backend ?? "",
  };
}

/** What a row of the table is called, what it means, and the cell's text. */
export const RESULTS = [
  ["Steps", "training steps", (s) => String(s.steps)],
  ["Loss", `mean of the last ${LAST} batches`, (s) => spell(s.loss)],
  ["Test accuracy", "at the end", (s) => percent(s.accuracy)],
  ["Best test accuracy", "of all tests", (s) => percent(s.best)],
  ["β, weights", "effective smoothness along the gradient, median over the run", (s) => spell(s.beta)],
  ["β, activations", "the same in the first layer's activations", (s) => spell(s.activationBeta)],
  [
    "cos(G, G′)",
    "covariate shift by Definition 2.1, median over the run and the layers behind the first",
    (s) => spell(s.cosine),
  ],
  ["Parameters' hash", "same settings, same hash", (s) => s.hash || "–"],
];

/** One row per network, all settings included, numbers with all their digits. */
export function csv(state, looks, runners) {
  const shared = ["data", ...Object.keys(RANGES).filter((key) => key !== "speed")];
  const own = ["norm", "where", "lr", "depth"];
  const measured = [
    "steps",
    "loss",
    "accuracy",
    "best",
    "beta",
    "activationBeta",
    "cosine",
    "hash",
    "backend",
    "ended",
  ];
  const names = {
    steps: "steps_done",
    activationBeta: "activation_beta",
    best: "best_accuracy",
    where: "place",
  };
  const header = ["network", ...own, ...shared.map((key) => (key === "steps" ? "steps_asked" : key))];
  const lines = [[...header, ...measured.map((key) => names[key] ?? key)]];
  lines[0] = lines[0].map((key) => (key === "where" ? "place" : key));
  runners.forEach((runner, i) => {
    const result = summary(runner);
    lines.push([
      looks[i].letter,
      ...own.map((key) => state.networks[i][key]),
      ...shared.map((key) => state[key]),
      ...measured.map((key) => (Number.isNaN(result[key]) ? "" : result[key])),
    ]);
  });
  const cell = (value) => (/[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return lines.map((line) => line.map(cell).join(",")).join("\n") + "\n";
}

const list = (parts) =>
  parts.length < 2 ? parts.join("") : `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;

/** "What just happened": sentences. */
export function story(state, looks, runners, classes) {
  const results = runners.map((runner, i) => ({
    ...summary(runner),
    letter: looks[i].letter,
    name: looks[i].name,
  }));
  const steps = Math.max(0, ...results.map((result) => result.steps));
  if (!steps) return ["Nothing has run yet."];
  const said = [];
  const alive = results.filter((result) => Number.isFinite(result.accuracy));
  if (alive.length) {
    const ranked = [...alive].sort((a, b) => b.accuracy - a.accuracy);
    const told = ranked.map(({ letter, accuracy }) => `${letter} ${percent(accuracy)}`);
    said.push(
      `Of the test images, ${list(told)} are classified right after ${steps} ${steps === 1 ? "step" : "steps"}.`,
    );
  }
  for (const { letter, ended } of results.filter((result) => result.ended)) {
    said.push(`${letter} has stopped: ${ended.charAt(0).toLowerCase()}${ended.slice(1)}`);
  }
  const lost = alive.filter(({ accuracy }) => accuracy < 1.5 / classes);
  if (lost.length) {
    said.push(
      `${list(lost.map(({ letter }) => letter))} ${lost.length > 1 ? "are" : "is"} no better than guessing (${percent(1 / classes)}).`,
    );
  }
  const first = results.filter(({ good }) => good !== null).sort((a, b) => a.good - b.good);
  if (first.length) {
    const told = first.map(({ letter, good }) => `${letter} at step ${good}`);
    said.push(`${percent(GOOD)} was first seen in a test of ${list(told)}.`);
  }
  // Where nothing is learned the loss is flat, which is no merit.
  const learned = alive.filter((result) => !lost.includes(result) && !Number.isNaN(result.beta));
  if (learned.length > 1) {
    const ranked = [...learned].sort((a, b) => a.beta - b.beta);
    const told = list(ranked.map(({ letter, beta }) => `${letter} ${spell(beta)}`));
    const rates = new Set(
      ranked.map(({ letter }) => state.networks[looks.findIndex((look) => look.letter === letter)].lr),
    );
    said.push(
      rates.size > 1
        ? `Effective β along the gradient, median over the run: ${told}. The rates differ, and with them the lengths walked, so compare β at the same rate.`
        : `Along the gradient the loss was smoothest for ${ranked[0].letter}: effective β, median over the run, ${told}.`,
    );
  }
  const shifted = results.filter(({ cosine }) => !Number.isNaN(cosine));
  if (shifted.length > 1) {
    const told = shifted.map(({ letter, cosine }) => `${letter} ${spell(cosine)}`);
    said.push(
      `Covariate shift by Definition 2.1, as the median cosine between the gradients before and after the earlier layers' step (1: no shift): ${list(told)}.`,
    );
  }
  said.push(`One seed (${state.seed}): another may tell another story, so change it and run again.`);
  return said;
}

/** The settings of a network in words, for the head of its column. */
export const inWords = ({ norm, where }) =>
  `${ARMS[norm].label}${norm === "none" ? "" : `, ${PLACES[where]}`}`;
