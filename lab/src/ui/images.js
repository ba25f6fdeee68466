// Filters, activations and digits as small pictures, and probabilities as bars.
import { percent } from "./arms.js";
import { h } from "./dom.js";

const MOST = 16; // channels shown of a layer
const TILE = 28; // pixels of the page on which one of them is shown

/** values[height][width] on a canvas; grey from black (low) to white (high), with signs blue - white - orange. */
export function picture(values, height, width, { signed = false, label = null, scale } = {}) {
  const canvas = h("canvas", { width, height, class: "bnlab-picture" });
  canvas.style.width = `${width * scale}px`;
  canvas.style.height = `${height * scale}px`;
  if (label) {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
  } else canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d", { willReadFrequently: true }); // small: no work for the graphics card
  const image = context.createImageData(width, height);
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  values.forEach((value, i) => {
    const share = Math.min(1, Math.abs(value) / largest);
    const full = value < 0 ? [0, 120, 195] : [210, 90, 0];
    const colour = signed
      ? full.map((c) => 255 + (c - 255) * share)
      : [255 * share, 255 * share, 255 * share];
    image.data.set([...colour, 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

function channels(values, count, height, width, options) {
  const size = height * width;
  return Array.from({ length: Math.min(count, MOST) }, (_, c) =>
    picture(values.subarray(c * size, (c + 1) * size), height, width, { scale: TILE / width, ...options }),
  );
}

/** What a network makes of an image: its answer, and its first filters and every layer's activations. */
export function insight({ name, colour }, { probabilities, layers }, parameters) {
  const best = probabilities.indexOf(Math.max(...probabilities));
  const sure = Number.isFinite(probabilities[best]);
  const row = (text, pictures) =>
    h(
      "div",
      { class: "bnlab-row" },
      h("span", { class: "bnlab-rowname" }, text),
      h("div", { class: "bnlab-pictures" }, pictures),
    );
  const weights = parameters["conv1.weight"];
  const [outputs, , k] = weights.shape;
  return h(
    "div",
    { class: "bnlab-insight" },
    h("div", { class: "bnlab-title" }, name),
    h("p", {}, sure ? `Says ${best} with ${percent(probabilities[best])}.` : "Has no finite answer."),
    bars(probabilities, colour),
    row("Filters of layer 1", channels(weights.values, outputs, k, k, { signed: true })),
    layers.map(({ channels: count, height, width, values }, i) =>
      row(`Layer ${i + 1} passes on`, channels(values, count, height, width)),
    ),
  );
}

function bars(probabilities, colour) {
  return h(
    "ol",
    { class: "bnlab-bars", start: 0 },
    Array.from(probabilities, (p, digit) => {
      const bar = h("span", { class: "bnlab-bar", "aria-hidden": "true" });
      bar.style.height = `${Number.isFinite(p) ? Math.round(40 * p) + 1 : 1}px`;
      bar.style.background = colour;
      return h(
        "li",
        { "aria-label": `${digit}: ${percent(p)}` },
        bar,
        h("span", { "aria-hidden": "true" }, String(digit)),
      );
    }),
  );
}
