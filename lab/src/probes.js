// What is measured on a network at step t, on the batch that the next training step will use, BN in training
// mode. Nothing is left behind: parameters, velocities, running statistics, step and random streams are as
// before, bit for bit. Definitions: Santurkar et al. 2018; in the book's package `bnlib.probes`, which the
// tests compare with.
import { MOST_BINS, whole } from "./plan.js";

/** Move parameters, do something, put them back. */
function keepingParameters(net, action) {
  const { plan, F } = net;
  const from = plan.parameters >> 2;
  F.copyWithin(plan.kept >> 2, from, (plan.parameters + plan.parameterBytes) >> 2);
  try {
    return action();
  } finally {
    F.copyWithin(from, plan.kept >> 2, (plan.kept + plan.parameterBytes) >> 2);
  }
}

const norm = ({ kernels }, x, bytes) => Math.sqrt(kernels.sum_centred_products(x, x, bytes, 0));
const distance = ({ kernels }, one, other, bytes) => Math.sqrt(kernels.squared_distance(one, other, bytes));
// A parameter takes a multiple of 32 bytes; what a kernel reads beyond the last value is zero.
const bytesOf = (net, layer) => 4 * layer.outputs * layer.taps;

/**
 * The result of a walk, from the loss and the change of the gradient at each step's end. beta of a step is
 * ||g - g'|| / (alpha ||g||), infinite where the gradient is not finite, not-a-number for a step of no
 * length; `effectiveBeta` is the largest.
 */
function scan(net, loss, gradientNorm, factors, ends) {
  const infinite = (value) => (Number.isNaN(value) ? Infinity : value);
  const steps = factors.map((factor, i) => {
    const length = Math.abs(factor) * net.lr * gradientNorm;
    const change = infinite(ends[i].change);
    return { factor, loss: infinite(ends[i].loss), change, beta: length ? infinite(change / length) : NaN };
  });
  const betas = steps.map((step) => step.beta).filter((beta) => !Number.isNaN(beta));
  return { loss, gradientNorm, steps, effectiveBeta: betas.length ? Math.max(...betas) : NaN };
}

/**
 * The landscape along the gradient: for each factor, alpha = factor * learning rate, the loss at W - alpha g
 * and the change of the gradient ||g - g'||, all parameters together. The same batch, moments taken anew.
 */
export function landscape(net, factors) {
  const { plan, kernels } = net;
  const bytes = plan.parameterBytes;
  const { loss } = net.look();
  const length = norm(net, plan.looked, bytes);
  const ends = keepingParameters(net, () =>
    factors.map((factor) => {
      kernels.step_along(plan.kept, plan.looked, plan.parameters, bytes, factor * net.lr);
      net.forward("probe");
      const moved = net.measure().loss;
      net.backward();
      return { loss: moved, change: distance(net, plan.gradients, plan.looked, bytes) };
    }),
  );
  return scan(net, loss, length, factors, ends);
}

/**
 * The same walk in the space of the activations z of the layer `name`, what it passes on to its ReLU; the
 * layers behind it take what comes.
 */
export function activationLandscape(net, name, factors) {
  const { plan, kernels } = net;
  const layer = net.hiddenLayer(name);
  const { z, bytes, number } = layer;
  const { loss } = net.look(number);
  const length = norm(net, plan.keptGradient, bytes);
  const ends = factors.map((factor) => {
    kernels.step_along(plan.keptActivation, plan.keptGradient, z, bytes, factor * net.lr);
    net.activate(layer);
    net.forward("probe", number + 1);
    const moved = net.measure().loss;
    net.backward(number, "z");
    return { loss: moved, change: distance(net, plan.upper, plan.keptGradient, bytes) };
  });
  return scan(net, loss, length, factors, ends);
}

/** ||g|| of every layer's weight, and how far a step of the learning rate moves it, relative to ||W||. */
export function gradientNorms(net) {
  const { plan } = net;
  net.look();
  return net.layers.map((layer) => {
    const bytes = bytesOf(net, layer);
    const g = norm(net, layer.weight - plan.parameters + plan.looked, bytes);
    return {
      layer: layer.name,
      gradientNorm: g,
      relativeStep: (net.lr * g) / norm(net, layer.weight, bytes),
    };
  });
}

/**
 * Definition 2.1: how the gradient of a layer's weight changes, G -> G', when all parameters of the earlier
 * layers make the step -lr g, on the same batch. l2 = ||G - G'||; the first layer has no earlier ones: 0 and
 * cosine 1.
 */
export function covariateShift(net) {
  const { plan, kernels } = net;
  net.look();
  return keepingParameters(net, () =>
    net.layers.map((layer) => {
      const bytes = bytesOf(net, layer);
      const now = layer.weight - plan.parameters + plan.gradients;
      const before = layer.weight - plan.parameters + plan.looked;
      const length = norm(net, before, bytes);
      if (layer.number === 0) return { layer: layer.name, l2: 0, cosine: 1, gradientNorm: length };
      // The layers before it move one after the other: what they pass on is known from the layer before.
      kernels.step_along(plan.kept, plan.looked, plan.parameters, layer.start - plan.parameters, net.lr);
      net.forward("probe", layer.number - 1);
      net.measure();
      net.backward(layer.number, "weight");
      const l2 = distance(net, now, before, bytes);
      const cosine = kernels.sum_centred_products(now, before, bytes, 0) / (length * norm(net, now, bytes));
      return { layer: layer.name, l2, cosine: Math.min(1, Math.max(-1, cosine)), gradientNorm: length };
    }),
  );
}

/**
 * For each layer with a ReLU, its activations z on the first images of the training set (always the same):
 * the mean and the biased variance per channel, averaged over channels, and a histogram of all values in
 * `bins` bins of equal width from `low` to `high`, the smallest and the largest value.
 */
export function activationStatistics(net, bins = 40) {
  whole(bins, 1, MOST_BINS, "The number of bins");
  net.loadImages(
    net.data,
    Uint32Array.from({ length: net.batch }, (_, i) => i),
  );
  net.forward("probe", 0, net.layers.length - 2); // the classifier has no ReLU
  return net.layers
    .filter((layer) => !layer.last)
    .map((layer) => {
      const { name, z, plane, outputs, values } = layer;
      let mean = 0;
      let variance = 0;
      for (let c = 0; c < outputs; c++) {
        const centre = Math.fround(net.kernels.sum(z + c * plane, plane) / values);
        mean += centre / outputs;
        variance += net.sumSquaredDeviations(layer, z + c * plane, centre) / values / outputs;
      }
      return { layer: name, mean, variance, ...histogram(net, layer, bins) };
    });
}

/** Counts of a layer's z in bins of equal width between the smallest and the largest value. */
function histogram({ F, U, plan, batch, lanes, kernels }, { z, outputs, pixels }, bins) {
  kernels.histogram(z, outputs * pixels, batch, lanes, bins, plan.partial);
  const at = plan.partial >> 2;
  const counts = new Uint32Array(bins);
  // What is in the bin beyond the last is the largest value.
  for (let i = 0; i < 4 * (bins + 1); i++) counts[Math.min(i >> 2, bins - 1)] += U[at + 4 + i];
  return { low: F[at], high: F[at + 1], counts };
}
