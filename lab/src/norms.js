// Normalizations, after a layer and before its ReLU: z = norm(y). The loops over values are kernels; the
// formulas per channel stand here, in float64, for both back-ends. Conventions of torch and of the book: eps
// inside the square, biased variance to normalise, unbiased for running_var, and a running value moves by
// `MOMENTUM` of the way.
import { Random, STREAM, stateOf } from "./random.js";

export const EPS = 1e-5;
export const MOMENTUM = 0.1;
const single = Math.fround;
const square = (x) => x * x; // x ** 2 may differ in the last bit from browser to browser

/**
 * Name -> what it is. `scale`: what the centred values are divided by ("deviation", "l1", "l2", "linf", per
 * channel over the batch; "sample" for layer norm). `noise`: the non-stationary noise of Santurkar et al.
 * afterwards. `centres`: the mean of each channel is removed and nothing else depends on it, so that a bias
 * before it would have no effect.
 */
export const NORMS = {
  none: {},
  batch: { scale: "deviation", centres: true },
  noisy_batch: { scale: "deviation", centres: true, noise: true },
  noise: { noise: true },
  l1: { scale: "l1" },
  l2: { scale: "l2" },
  linf: { scale: "linf" },
  layer: { scale: "sample" },
};

/** The noise's constants: Santurkar et al. 2018, appendix A.2.1; r_sigma is taken as a standard deviation. */
export const NOISE = { n_mu: 0.5, n_sigma: 1.25, r_mu: 0.1, r_sigma: 0.1 };

/**
 * y -> z for one layer. `mode` is "train" (moments of the batch, kept in `net.moments` for the running
 * statistics), "probe" (moments of the batch) or "evaluate" (running statistics, no noise).
 */
export function normalise(net, layer, mode) {
  const { scale, noise } = NORMS[layer.norm];
  if (scale === "sample") normaliseSamples(net, layer);
  else if (scale) normaliseChannels(net, layer, mode);
  if (noise && mode !== "evaluate" && net.noise > 0) disturb(net, layer);
  if (scale || noise) net.clearPadding(layer.z, layer.outputs * layer.pixels);
}

/** dz -> dy, in place at `g`; `spare` is room of the same size. Writes the gradients of gamma and beta. */
export function normaliseBackward(net, layer, g, spare) {
  const { scale, noise } = NORMS[layer.norm];
  if (noise && net.noise > 0) net.kernels.multiply(g, layer.s, layer.bytes);
  if (scale === "sample") samplesBackward(net, layer, g, spare);
  else if (scale) channelsBackward(net, layer, g);
  if (scale) net.clearPadding(g, layer.outputs * layer.pixels);
}

// --- batch norm and l_p norms ---

/** z = gamma (y - mean) / sqrt(C^2 + eps) + beta, C the scale that the norm divides by. */
function normaliseChannels(net, layer, mode) {
  const { F, kernels } = net;
  for (let c = 0; c < layer.outputs; c++) {
    const y = layer.y + c * layer.plane;
    const at = layer.running + c;
    let mean = net.running[at];
    let scale = net.running[at + layer.outputs];
    if (mode !== "evaluate") {
      mean = single(kernels.sum(y, layer.plane) / layer.values);
      scale = squaredScale(net, layer, y, mean);
      layer.mean[c] = mean;
      layer.scale[c] = scale;
    }
    if (mode === "train") {
      const m = layer.values;
      net.moments[at] = mean;
      net.moments[at + layer.outputs] = layer.norm.endsWith("batch") ? (scale * m) / (m - 1) : scale;
    }
    const slope = single(F[(layer.gamma >> 2) + c] / Math.sqrt(scale + EPS));
    kernels.affine(y, layer.z + c * layer.plane, layer.plane, slope, F[(layer.beta >> 2) + c] - mean * slope);
  }
}

/** sigma^2 of a channel, or C_p^2 of its values before the mean is removed. */
function squaredScale(net, layer, y, mean) {
  const { kernels } = net;
  const m = layer.values;
  switch (NORMS[layer.norm].scale) {
    case "deviation":
      return net.sumSquaredDeviations(layer, y, mean) / m;
    case "l1":
      return square(kernels.sum_abs(y, layer.plane) / m);
    case "l2":
      return net.sumSquaredDeviations(layer, y, 0) / m;
    case "linf":
      return square(kernels.max_abs(y, layer.plane));
  }
}

/**
 * With t = y - mean and r = 1 / sqrt(C^2 + eps):
 * dy = gamma r (dz - mean of dz) - gamma r^3 / 2 * sum(dz t) * d C^2 / dy.
 */
function channelsBackward(net, layer, g) {
  const { F, kernels } = net;
  const m = layer.values;
  const bytes = layer.plane;
  const { scale: kind } = NORMS[layer.norm];
  for (let c = 0; c < layer.outputs; c++) {
    const dz = g + c * bytes;
    const y = layer.y + c * bytes;
    const mean = layer.mean[c];
    const scale = layer.scale[c];
    const r = 1 / Math.sqrt(scale + EPS);
    const gamma = F[(layer.gamma >> 2) + c];
    const dbeta = kernels.sum(dz, bytes);
    const products = kernels.sum_centred_products(dz, y, bytes, mean);
    net.setGradient(layer.gamma, c, products * r);
    net.setGradient(layer.beta, c, dbeta);
    const a = gamma * r;
    const b = -0.5 * gamma * r * r * r * products;
    const shift = (-a * dbeta) / m;
    if (kind === "deviation") {
      // d C^2 / dy = 2 (y - mean) / m
      kernels.combine(dz, y, dz, bytes, a, (2 * b) / m, shift - ((2 * b) / m) * mean);
    } else if (kind === "l2") {
      kernels.combine(dz, y, dz, bytes, a, (2 * b) / m, shift); // 2 y / m
    } else if (kind === "l1") {
      kernels.combine_sign(dz, y, dz, bytes, a, (2 * b * Math.sqrt(scale)) / m, shift); // 2 C_1 sign(y) / m
    } else {
      // 2 C_inf sign(y) where |y| is the maximum, shared evenly among equals, as torch does
      const peak = single(Math.sqrt(scale));
      const equals = Math.max(1, kernels.count_abs(y, bytes, peak));
      kernels.combine_peak(dz, y, dz, bytes, a, (2 * b * peak) / equals, shift, peak);
    }
  }
}

// --- layer norm ---

function normaliseSamples(net, layer) {
  const { kernels, pixel } = net;
  const { y, z, gamma, beta, outputs, pixels, samples } = layer;
  kernels.sample_moments(y, samples, samples + pixel, outputs * pixels, pixel, EPS);
  kernels.sample_normalise(y, z, samples, samples + pixel, gamma, beta, outputs, pixels, pixel);
}

function samplesBackward(net, layer, g, spare) {
  const { kernels } = net;
  const bytes = layer.plane;
  for (let c = 0; c < layer.outputs; c++) net.setGradient(layer.beta, c, kernels.sum(g + c * bytes, bytes));
  kernels.sample_backward(
    layer.y,
    g,
    g,
    spare,
    layer.samples,
    layer.samples + net.pixel,
    layer.gamma,
    net.plan.means,
    layer.outputs,
    layer.pixels,
    net.pixel,
  );
  for (let c = 0; c < layer.outputs; c++) {
    net.setGradient(layer.gamma, c, kernels.sum(spare + c * bytes, bytes));
  }
}

// --- noise ---

/**
 * a <- s a + m, the law of this step drawn anew for each channel; `net.noise` scales the whole law. All looks
 * at a step see the same noise, so it is drawn once.
 */
function disturb(net, layer) {
  if (layer.drawn === net.time) {
    net.kernels.disturb_again(layer.z, layer.s, layer.m, layer.bytes);
    return;
  }
  layer.drawn = net.time;
  const k = net.noise;
  const law = new Random(net.seed, STREAM.noise, layer.number, net.time);
  for (let lane = 0; lane < 4; lane++) {
    const words = stateOf(net.seed, STREAM.lanes, layer.number, net.time, lane);
    for (let i = 0; i < 4; i++) net.U[(net.plan.noiseState >> 2) + 4 * i + lane] = words[i];
  }
  for (let c = 0; c < layer.outputs; c++) {
    const mu = law.uniform(-k * NOISE.n_mu, k * NOISE.n_mu);
    const sigma = law.uniform(1, 1 + k * (NOISE.n_sigma - 1));
    const at = c * layer.plane;
    net.kernels.disturb(
      layer.z + at,
      layer.s + at,
      layer.m + at,
      layer.plane,
      net.plan.noiseState,
      mu - k * NOISE.r_mu,
      2 * k * NOISE.r_mu,
      sigma,
      k * NOISE.r_sigma,
    );
  }
}
