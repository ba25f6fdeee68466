// The charts: which numbers of the runs each shows.
import { lineChart } from "./charts.js";

const steps = { x: "step" };
const byLayer = { x: "layer", whole: true };

const series =
  (name, pick) =>
  ({ series: all }) =>
    all[name].map(([time, ...rest]) => [time, ...pick(...rest)]).filter((p) => p[1] !== undefined);
const range = (key) => (value) => {
  const values = value.steps.map((step) => step[key]).filter(Number.isFinite);
  return values.length ? [Math.min(...values), Math.max(...values)] : [NaN, NaN];
};

/** A network that is not so deep shows its last layer. */
const layerOf = (values, layer) => values[Math.min(layer, values.length) - 1];
const hidden = (values) => values.slice(0, -1); // without the classifier

/** One point per layer, of the first and of the last measurement. */
const perLayer =
  (name, pick) =>
  ({ series: all }) => {
    const points = ([, values]) => values.map((value, i) => [i + 1, pick(value)]);
    const found = all[name];
    return found.length > 1 ? [points(found[0]), points(found.at(-1))] : found.map(points);
  };

function histograms({ series: all }, layer) {
  const found = all.activationStatistics;
  const points = ([, values]) => {
    const { low, high, counts } = layerOf(values, layer);
    const width = (high - low) / counts.length;
    const total = counts.reduce((sum, count) => sum + count, 0);
    return Array.from(counts, (count, i) => [low + (i + 0.5) * width, count / (total * width)]);
  };
  return found.length > 1 ? [points(found[0]), points(found.at(-1))] : found.map(points);
}

function profile({ series: all }) {
  const last = all.landscape.at(-1)?.[1];
  return last ? [[0, last.loss], ...last.steps.map(({ factor, loss }) => [factor, loss])] : [];
}

/**
 * Section -> {title, note, charts}. A chart's `lines(runner, layer)` gives its points, or two lists of points
 * with `twice`: at the beginning (faint) and now.
 */
const SECTIONS = {
  learning: {
    title: "Loss and accuracy",
    note: "The loss of each training batch, and the share of test images classified right.",
    charts: [
      { title: "Training loss", y: "Loss", ...steps, log: true, lines: series("loss", (loss) => [loss]) },
      {
        title: "Test accuracy",
        y: "Accuracy",
        ...steps,
        domain: [0, 1],
        lines: series("test", (accuracy) => [accuracy]),
      },
    ],
  },
  landscape: {
    title: "The loss landscape along the gradient",
    note: "At a step, walk half a step to four steps along the negative gradient, on the same batch: how does the loss change, and how the gradient? β is the largest change of the gradient per distance walked, first for all weights, then for the activations of the first layer.",
    charts: [
      {
        title: "Loss along the gradient, now",
        y: "Loss",
        x: "steps of the learning rate",
        log: true,
        lines: profile,
      },
      {
        title: "Range of the loss along the gradient",
        y: "Loss",
        ...steps,
        log: true,
        lines: series("landscape", range("loss")),
      },
      {
        title: "Gradient predictiveness: change of the gradient",
        y: "Change",
        ...steps,
        log: true,
        lines: series("landscape", range("change")),
      },
      {
        title: "Effective β, weights",
        y: "β",
        ...steps,
        log: true,
        lines: series("landscape", (value) => [value.effectiveBeta]),
      },
      {
        title: "Effective β, activations of layer 1",
        y: "β",
        ...steps,
        log: true,
        lines: series("activationLandscape", (value) => [value.effectiveBeta]),
      },
    ],
  },
  distributions: {
    title: "Activations",
    note: "Of the layer chosen above, before its ReLU, on a fixed batch: the faint line is the first measurement.",
    charts: [
      {
        title: "Histogram of the activations, now",
        y: "Density",
        x: "activation",
        twice: true,
        lines: histograms,
      },
      {
        title: "Mean of the activations",
        y: "Mean",
        ...steps,
        lines: (runner, layer) => series("activationStatistics", (v) => [layerOf(v, layer).mean])(runner),
      },
      {
        title: "Variance of the activations",
        y: "Variance",
        ...steps,
        log: true,
        lines: (runner, layer) => series("activationStatistics", (v) => [layerOf(v, layer).variance])(runner),
      },
    ],
  },
  gradients: {
    title: "Gradients and covariate shift",
    note: "G is the gradient of a layer's weights, G′ the same after the earlier layers alone have made their step (Definition 2.1). The first layer has no earlier ones.",
    charts: [
      {
        title: "Gradient norm of each layer, now",
        y: "Norm",
        ...byLayer,
        log: true,
        twice: true,
        lines: perLayer("gradientNorms", (v) => v.gradientNorm),
      },
      {
        title: "Covariate shift ‖G − G′‖",
        y: "‖G − G′‖",
        ...steps,
        log: true,
        lines: (runner, layer) => series("covariateShift", (v) => [layerOf(hidden(v), layer).l2])(runner),
      },
      {
        title: "Covariate shift cos(G, G′)",
        y: "Cosine",
        ...steps,
        domain: [-1, 1],
        lines: (runner, layer) => series("covariateShift", (v) => [layerOf(hidden(v), layer).cosine])(runner),
      },
    ],
  },
};

/** Sections: {name, title, note, charts: [{element, draw(looks, runners, layer)}]}. */
export function makeViews() {
  return Object.entries(SECTIONS).map(([name, { title, note, charts }]) => {
    const made = charts.map((chart) => ({ ...chart, ...lineChart(chart) }));
    const drawLines = ({ lines, twice, draw }, looks, runners, layer) => {
      const all = runners.flatMap((runner, i) => {
        const points = lines(runner, layer);
        const each = twice ? points : [points];
        return each.map((list, nth) => ({ ...looks[i], points: list, faint: nth < each.length - 1 }));
      });
      draw(all.sort((a, b) => Number(b.faint) - Number(a.faint)));
    };
    const drawn = made.map((chart) => ({
      element: chart.element,
      draw: (...what) => drawLines(chart, ...what),
    }));
    return { name, title, note, charts: drawn };
  });
}
