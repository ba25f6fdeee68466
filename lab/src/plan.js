// From a network's description to a plan: its layers with their sizes, the names of its parameters, and where
// in memory everything lies. No numbers are computed here.
import { NORMS } from "./norms.js";

export const LANES = 8;
export const MOST_BINS = 250; // of a histogram
const ALIGNMENT = 32; // two vectors
const LIMIT = 2 ** 30;

/** A mistake in what the engine was asked to do; the message says what to change. */
export class LabError extends Error {}

/** `value`, if it is a whole number in these bounds; throws LabError. */
export function whole(value, low, high, what) {
  if (!Number.isInteger(value) || value < low || value > high) {
    throw new LabError(`${what} must be a whole number from ${low} to ${high}, not ${value}.`);
  }
  return value;
}

/**
 * description: {
 *   image: {channels, height, width}, classes, batch: 8 to 256,
 *   layers: [{kind: "conv", channels, kernel: 3 or 5, norm, pool} or {kind: "dense", units, norm}, ...]
 * } Convolutions come first. Each layer is followed by its norm ("none" if left out), ReLU and, with `pool`,
 * 2x2 max pooling. A dense layer to the classes, without norm, is added at the end. Throws LabError.
 */
export function makePlan(description) {
  const { image, classes, layers: described } = description;
  if (!image || !Array.isArray(described))
    throw new LabError("Describe the image's size and the list of layers.");
  const batch = whole(description.batch, 8, 256, "The batch size");
  whole(classes, 2, 256, "The number of classes");
  const lanes = Math.ceil(batch / LANES) * LANES;
  let inputs = whole(image.channels, 1, 256, "The number of image channels");
  let height = whole(image.height, 1, 256, "The image's height");
  let width = whole(image.width, 1, 256, "The image's width");
  const layers = [];
  const counts = { conv: 0, dense: 0 };
  for (const { kind, channels, units, kernel = 3, norm = "none", pool = false } of described) {
    if (!Object.hasOwn(NORMS, norm))
      throw new LabError(`Unknown norm "${norm}"; choose one of ${Object.keys(NORMS).join(", ")}.`);
    if (kind === "conv") {
      if (counts.dense) throw new LabError("Put all convolutions before the first dense layer.");
      if (kernel !== 3 && kernel !== 5)
        throw new LabError(`A kernel must be 3 or 5 pixels wide, not ${kernel}.`);
      if (pool && Math.min(height, width) < 2) {
        throw new LabError(
          `Too many poolings: a ${height}x${width} image cannot be halved; pool less often.`,
        );
      }
      const name = String(++counts.conv);
      const outputs = whole(channels, 1, 256, "The number of channels");
      layers.push({
        name: `conv${name}`,
        normName: `norm${name}`,
        inputs,
        outputs,
        kernel,
        norm,
        pool,
        height,
        width,
      });
      if (pool) [height, width] = [height >> 1, width >> 1];
      inputs = outputs;
    } else if (kind === "dense") {
      counts.dense++;
      const name = String(layers.length + 1);
      const outputs = whole(units, 1, 1024, "The number of units");
      inputs *= height * width;
      [height, width] = [1, 1];
      layers.push({
        name: `linear${counts.dense}`,
        normName: `norm${name}`,
        inputs,
        outputs,
        kernel: 1,
        norm,
        pool: false,
        height,
        width,
      });
      inputs = outputs;
    } else {
      throw new LabError(`Unknown kind of layer "${kind}"; choose conv or dense.`);
    }
  }
  layers.push({
    name: "classifier",
    inputs: inputs * height * width,
    outputs: classes,
    kernel: 1,
    norm: "none",
    pool: false,
    height: 1,
    width: 1,
    last: true,
  });

  let top = 1024; // address 0 means "none"
  const place = (words) => {
    const pointer = top;
    top += Math.ceil((4 * words) / ALIGNMENT) * ALIGNMENT;
    return pointer;
  };

  // Parameters in the order of the layers, in one block; then blocks of the same shape for what goes with
  // them.
  const parameters = new Map();
  const parameter = (name, ...shape) => {
    const size = shape.reduce((product, n) => product * n, 1);
    parameters.set(name, { pointer: place(size), size, shape });
    return parameters.get(name).pointer;
  };
  const first = top;
  let running = 0;
  layers.forEach((layer, number) => {
    const { name, normName, inputs: i, outputs: o, kernel: k } = layer;
    const { scale, centres } = NORMS[layer.norm];
    layer.number = number;
    layer.start = top;
    layer.weight = k > 1 ? parameter(`${name}.weight`, o, i, k, k) : parameter(`${name}.weight`, o, i);
    layer.bias = centres ? 0 : parameter(`${name}.bias`, o);
    if (scale) {
      layer.gamma = parameter(`${normName}.weight`, o);
      layer.beta = parameter(`${normName}.bias`, o);
    }
    if (scale && scale !== "sample") {
      layer.running = running;
      running += 2 * o;
    }
  });
  const parameterBytes = top - first;
  const alike = () => place(parameterBytes / 4);
  const blocks = {
    parameters: first,
    gradients: alike(),
    velocities: alike(),
    kept: alike(),
    looked: alike(),
  };

  // Activations. x -> [border] -> y -> [norm] -> z -> ReLU, [pool] -> a, the next layer's x. Images are put
  // inside the first layer's border at once: it has no x.
  let x = 0;
  let largest = 0;
  let packed = 0;
  let partial = 4 * (MOST_BINS + 2);
  for (const layer of layers) {
    const { inputs: i, outputs: o, kernel: k, height: h, width: w } = layer;
    const border = (k - 1) / 2;
    const bordered = (h + 2 * border) * (w + 2 * border) * lanes;
    const taps = i * k * k;
    const listed = Math.ceil(taps / 2) * 2;
    const { scale, noise } = NORMS[layer.norm];
    layer.pixels = h * w;
    layer.values = layer.pixels * batch; // of one channel
    layer.plane = 4 * layer.pixels * lanes; // bytes of one channel
    layer.bytes = layer.plane * o;
    layer.border = border;
    layer.taps = taps;
    layer.x = x;
    layer.bordered = border || !x ? place(i * bordered) : x;
    layer.y = place(layer.bytes / 4);
    layer.z = scale ? place(layer.bytes / 4) : layer.y;
    if (noise) {
      layer.s = place(layer.bytes / 4);
      layer.m = place(layer.bytes / 4);
    }
    if (scale === "sample") layer.samples = place(2 * lanes);
    if (!layer.last) layer.a = x = place(o * lanes * (layer.pool ? (h >> 1) * (w >> 1) : layer.pixels));
    layer.borderedGradient = border && layer.number ? place(o * bordered) : 0;
    layer.offsets = place(listed);
    largest = Math.max(largest, layer.bytes / 4, i * h * w * lanes);
    packed = Math.max(packed, ((o + 3) & ~3) * taps, ((i + 3) & ~3) * o * k * k);
    partial = Math.max(partial, ((o + 3) & ~3) * listed * 4);
  }
  const shared = {
    logits: layers.at(-1).y,
    logitGradients: place(classes * lanes),
    packed: place(packed), // weights as `correlate` wants them
    partial: place(partial), // sums of `weight_gradient`, counts of `histogram`
    upper: place(largest), // gradients on their way down: of a layer's z and y ...
    lower: place(largest), // ... and of its x
    keptActivation: place(largest), // for the probe that walks in the space of activations
    keptGradient: place(largest),
    means: place(2 * lanes),
    noiseState: place(16),
  };
  if (top > LIMIT) {
    throw new LabError(
      `This network needs ${Math.ceil(top / 2 ** 20)} MB, more than ${LIMIT / 2 ** 20}: ` +
        "take fewer channels or a smaller batch.",
    );
  }
  return {
    ...shared,
    ...blocks,
    layers,
    parameterMap: parameters,
    parameterBytes,
    running,
    batch,
    lanes,
    classes,
    bytes: top,
  };
}
