// A network in memory: forward, backward, a training step. The kernels do the loops over values, in
// WebAssembly or in plain JavaScript; everything here is the same for both.
import { crossEntropy } from "./loss.js";
import { MOMENTUM, normalise, normaliseBackward } from "./norms.js";
import { LabError, makePlan } from "./plan.js";
import { plainKernels } from "./plain.js";
import { Random, STREAM } from "./random.js";

const PAGE = 65536;
const clamp = (value, what, low, high) => {
  if (!(value >= low && value <= high)) {
    throw new LabError(`${what} must lie between ${low} and ${high}, not ${value}.`);
  }
  return value;
};

/**
 * Make a network. `wasm`: the bytes or the compiled module of engine.wasm; null: plain JavaScript, which is
 * also what runs where WebAssembly cannot (`backend` says "wasm" or "plain"). Throws LabError. Description:
 * what `makePlan` reads, and `seed`, `lr`, `momentum`, `decay`, `gain` (factor on the initial weights),
 * `noise` (strength of the noise). Data: {images, labels, scale, shift}: Uint8Array or Float32Array of
 * [count][C][H][W], the network sees scale * value + shift; labels are a Uint8Array.
 */
export async function createNetwork(description, data, wasm = null) {
  const plan = makePlan(description);
  const pages = Math.ceil(plan.bytes / PAGE);
  const module = await compile(wasm);
  try {
    if (!module) {
      const buffer = new ArrayBuffer(pages * PAGE);
      return new Network(plan, description, data, buffer, plainKernels(buffer), "plain");
    }
    const memory = new WebAssembly.Memory({ initial: pages });
    const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
    return new Network(plan, description, data, memory.buffer, exports, "wasm");
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    const size = Math.ceil(plan.bytes / 2 ** 20);
    throw new LabError(
      `This browser does not give ${size} MB: take fewer channels, a smaller batch or fewer networks.`,
    );
  }
}

/** The compiled module; null where there is no WebAssembly with SIMD or a page's policy forbids it. */
async function compile(wasm) {
  if (!wasm || typeof WebAssembly === "undefined") return null;
  if (wasm instanceof WebAssembly.Module) return wasm;
  try {
    return await WebAssembly.compile(wasm);
  } catch {
    return null;
  }
}

/** `F` and `U` see the memory as float32 and as integers; a pointer, in bytes, shifted by 2 is an index. */
export class Network {
  constructor(plan, description, data, buffer, kernels, backend) {
    const { seed = 0, lr = 0.1, momentum = 0, decay = 0, gain = 1, noise = 1 } = description;
    this.plan = plan;
    this.layers = plan.layers;
    this.kernels = kernels;
    this.backend = backend;
    this.batch = plan.batch;
    this.lanes = plan.lanes;
    this.pixel = 4 * plan.lanes; // bytes of one pixel of a batch
    this.F = new Float32Array(buffer);
    this.U = new Uint32Array(buffer);
    this.running = new Float32Array(plan.running);
    this.moments = new Float64Array(plan.running); // what they move towards
    if (!(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32)) {
      throw new LabError(`The seed must be a whole number from 0 to 4294967295, not ${seed}.`);
    }
    this.seed = seed;
    this.gain = clamp(gain, "The factor on the initial weights", 0, 1e6);
    this.noise = clamp(noise, "The strength of the noise", 0, 100);
    this.set({ lr, momentum, decay });
    this.listPlaces();
    this.setData(data);
    for (const layer of this.layers) {
      layer.mean = new Float64Array(layer.outputs);
      layer.scale = new Float64Array(layer.outputs);
      this.listOffsets(layer);
    }
    this.reset();
  }

  /** Change the learning rate, the momentum or the weight decay; they hold from the next step on. */
  set({ lr = this.lr, momentum = this.momentum, decay = this.decay }) {
    this.lr = clamp(lr, "The learning rate", 0, 1e6);
    this.momentum = clamp(momentum, "The momentum", 0, 1);
    this.decay = clamp(decay, "The weight decay", 0, 1e6);
  }

  setData(data) {
    const size = this.places.length;
    const count = data.labels.length;
    if (data.images.length !== count * size) {
      throw new LabError(
        `${count} images of ${size} values were announced, but ${data.images.length} values came.`,
      );
    }
    if (count < this.batch) {
      throw new LabError(
        `A batch of ${this.batch} cannot be drawn from ${count} images; take a smaller batch.`,
      );
    }
    if (data.labels.some((label) => label >= this.plan.classes)) {
      throw new LabError(
        `A label is ${this.plan.classes} or larger, but there are ${this.plan.classes} classes.`,
      );
    }
    this.data = data;
    this.epoch = -1;
    this.looked = this.loaded = null;
  }

  // --- parameters ---

  /** As new: Glorot uniform weights (Glorot and Bengio 2010) times `gain`, gamma 1, all else 0; step 0. */
  reset() {
    const { plan, F } = this;
    F.fill(0, plan.parameters >> 2, (plan.velocities + plan.parameterBytes) >> 2);
    for (const layer of this.layers) {
      const { outputs, inputs, kernel, number } = layer;
      const random = new Random(this.seed, STREAM.weights, number);
      const limit = this.gain * Math.sqrt(6 / ((inputs + outputs) * kernel * kernel));
      for (let i = 0, at = layer.weight >> 2; i < outputs * layer.taps; i++) {
        F[at + i] = random.uniform(-limit, limit);
      }
      if (layer.gamma) F.fill(1, layer.gamma >> 2, (layer.gamma >> 2) + outputs);
      if (layer.running !== undefined) {
        this.running.fill(0, layer.running, layer.running + outputs);
        this.running.fill(1, layer.running + outputs, layer.running + 2 * outputs);
      }
    }
    this.time = 0;
    this.stopped = null;
    this.looked = null;
  }

  /** Name -> {shape, values}, copied: every parameter or, from another block, what goes with it. */
  parameters(block = this.plan.parameters) {
    const named = {};
    for (const [name, { pointer, size, shape }] of this.plan.parameterMap) {
      const at = (pointer - this.plan.parameters + block) >> 2;
      named[name] = { shape, values: this.F.slice(at, at + size) };
    }
    return named;
  }

  /** Those of the last look. */
  gradients() {
    return this.parameters(this.plan.looked);
  }

  /** Set parameters by name; those not named stay. */
  load(named) {
    this.looked = null;
    for (const [name, values] of Object.entries(named)) {
      const target = this.plan.parameterMap.get(name);
      if (!target || target.size !== values.length) {
        throw new LabError(`There is no parameter ${name} of ${values.length} values.`);
      }
      this.F.set(values, target.pointer >> 2);
    }
  }

  /** Norm's name -> {running_mean, and running_var or (l_p norms) running_square}. */
  runningStatistics() {
    const named = {};
    for (const { running, outputs, normName, norm } of this.layers) {
      if (running === undefined) continue;
      const second = norm.endsWith("batch") ? "running_var" : "running_square";
      named[normName] = {
        running_mean: this.running.slice(running, running + outputs),
        [second]: this.running.slice(running + outputs, running + 2 * outputs),
      };
    }
    return named;
  }

  /** FNV-1a over the parameters' 32-bit words, in hexadecimal; every not-a-number counts as the same. */
  hash() {
    const { parameters, parameterBytes } = this.plan;
    let h = 0x811c9dc5;
    for (let i = parameters >> 2; i < (parameters + parameterBytes) >> 2; i++) {
      h = Math.imul(h ^ (this.F[i] === this.F[i] ? this.U[i] : 0x7fc00000), 0x01000193);
    }
    return (h >>> 0).toString(16).padStart(8, "0");
  }

  // --- batches ---

  /**
   * The numbers of the images that training uses at step `time`: each epoch has an order of its own, a
   * remainder is dropped.
   */
  batchAt(time) {
    const each = Math.floor(this.data.labels.length / this.batch);
    const epoch = Math.floor(time / each);
    if (epoch !== this.epoch) {
      this.order = new Random(this.seed, STREAM.order, epoch).permutation(this.data.labels.length);
      this.epoch = epoch;
    }
    const start = (time % each) * this.batch;
    return this.order.subarray(start, start + this.batch);
  }

  /** Where each value of an image goes: its first lane in the first layer's bordered input, as an index. */
  listPlaces() {
    const { inputs, height, width, border, bordered } = this.layers[0];
    this.places = new Uint32Array(inputs * height * width);
    let d = 0;
    for (let c = 0; c < inputs; c++) {
      for (let y = border; y < height + border; y++) {
        for (let x = border; x < width + border; x++) {
          this.places[d++] = (bordered >> 2) + ((y * (width + 2 * border) + x) * inputs + c) * this.lanes;
        }
      }
    }
  }

  /** Put images of `data` into the input, one per lane; a short batch leaves the last lanes zero. */
  loadImages(data, numbers) {
    const { F, places, lanes } = this;
    const { images, labels, scale = 1, shift = 0 } = data;
    const size = places.length;
    this.loaded = null;
    this.labels = Uint8Array.from(numbers, (i) => labels[i]);
    this.count = numbers.length;
    // A transposition, four images at a time: faster than one, and than all.
    const from = Uint32Array.from({ length: lanes }, (_, n) => size * (numbers[n] ?? 0));
    for (let n = 0; n < lanes; n += 4) {
      const [a, b, c, e] = from.subarray(n, n + 4);
      for (let d = 0; d < size; d++) {
        const at = places[d] + n;
        F[at] = images[a + d] * scale + shift;
        F[at + 1] = images[b + d] * scale + shift;
        F[at + 2] = images[c + d] * scale + shift;
        F[at + 3] = images[e + d] * scale + shift;
      }
    }
    for (let d = 0; this.count < lanes && d < size; d++) F.fill(0, places[d] + this.count, places[d] + lanes);
  }

  /** The batch of the next step, unless it lies there already. */
  loadBatch() {
    if (this.loaded === this.time) return;
    this.loadImages(this.data, this.batchAt(this.time));
    this.loaded = this.time;
  }

  // --- forward and backward ---

  /** Where each tap's window starts in the bordered input, for `weight_gradient`. */
  listOffsets(layer) {
    const { inputs, kernel: k, width } = layer;
    let at = layer.offsets >> 2;
    for (let i = 0; i < inputs; i++) {
      for (let ky = 0; ky < k; ky++) {
        for (let kx = 0; kx < k; kx++) {
          this.U[at++] = ((ky * (width + k - 1) + kx) * inputs + i) * this.pixel;
        }
      }
    }
  }

  /** Weights in groups of four outputs, [O / 4][K][K][I][4], as `correlate` wants them. */
  pack({ weight, inputs, outputs, kernel }) {
    const area = kernel * kernel;
    const taps = inputs * area;
    for (let o = 0; o < outputs; o++) {
      let to = this.packedAt(o, outputs, taps);
      for (let t = 0; t < area; t++) {
        let from = (weight >> 2) + o * taps + t;
        for (let i = 0; i < inputs; i++, from += area, to += 4) this.F[to] = this.F[from];
      }
    }
  }

  /** The same for the way back: inputs and outputs exchanged, kernels turned by 180 degrees. */
  packTurned({ weight, inputs, outputs, kernel }) {
    const area = kernel * kernel;
    for (let i = 0; i < inputs; i++) {
      let to = this.packedAt(i, inputs, outputs * area);
      for (let t = area - 1; t >= 0; t--) {
        let from = (weight >> 2) + i * area + t;
        for (let o = 0; o < outputs; o++, from += inputs * area, to += 4) this.F[to] = this.F[from];
      }
    }
  }

  /** Where channel `c` of so many begins among the packed weights; the first clears what no channel fills. */
  packedAt(c, channels, taps) {
    const at = this.plan.packed >> 2;
    if (c === 0) this.F.fill(0, at + (channels & ~3) * taps, at + ((channels + 3) & ~3) * taps);
    return at + (c & ~3) * taps + (c & 3);
  }

  clearPadding(pointer, pixels) {
    if (this.count < this.lanes) this.kernels.clear_padding(pointer, pixels, this.count, this.lanes);
  }

  /** Sum of (value - centre)^2 over the channel at `channel`, the lanes beyond the batch left out. */
  sumSquaredDeviations({ values, pixels }, channel, centre) {
    const whole = this.lanes === this.batch;
    const [rows, count, stride] = whole ? [1, values, values] : [pixels, this.batch, this.lanes];
    return this.kernels.sum_squared_deviations(channel, rows, count, stride, centre);
  }

  /** The layer of that name, if it has a ReLU. */
  hiddenLayer(name) {
    const hidden = this.layers.filter((layer) => !layer.last);
    const found = hidden.find((layer) => layer.name === name);
    if (found) return found;
    throw new LabError(
      `There is no hidden layer "${name}"; choose one of ${hidden.map((layer) => layer.name).join(", ")}.`,
    );
  }

  setGradient(parameter, index, value) {
    this.F[((parameter - this.plan.parameters + this.plan.gradients) >> 2) + index] = value;
  }

  /** x -> y -> z -> a through the layers from number `first` to `last`. `mode`: see `normalise`. */
  forward(mode, first = 0, last = this.layers.length - 1) {
    for (const layer of this.layers.slice(first, last + 1)) {
      const { x, bordered, border, bias, y, inputs, outputs, height, width, kernel, number } = layer;
      if (border && number) this.kernels.add_border(x, bordered, inputs, height, width, border, this.pixel);
      this.pack(layer);
      this.kernels.correlate(
        bordered,
        this.plan.packed,
        bias,
        y,
        inputs,
        outputs,
        height,
        width,
        kernel,
        this.pixel,
      );
      if (bias) this.clearPadding(y, outputs * layer.pixels);
      normalise(this, layer, mode);
      this.activate(layer);
    }
  }

  /** z -> a */
  activate({ last, pool, z, a, bytes, outputs, height, width }) {
    if (last) return;
    if (pool) this.kernels.relu_pool(z, a, outputs, height, width, this.pixel);
    else this.kernels.relu(z, a, bytes);
  }

  /** Loss of the batch at the logits, with its gradient there or without; how many images are right. */
  measure(gradient = this.plan.logitGradients) {
    const { plan, F, labels, count, lanes } = this;
    return crossEntropy(F, plan.logits >> 2, gradient >> 2, labels, plan.classes, count, lanes);
  }

  /**
   * Gradients of all parameters, from the gradient at the logits. With `until`, only that layer's, and not
   * those before it: "z", the gradient of its z, in `upper`; "weight", that of its weight. The z of layer
   * `keep` and the gradient there are copied to `keptActivation` and `keptGradient`.
   */
  backward(until = -1, what = "", keep = -1) {
    const { plan, kernels, pixel, F } = this;
    for (let number = this.layers.length - 1; number >= 0; number--) {
      const layer = this.layers[number];
      const { inputs, outputs, height, width, kernel, weight, bias, border, bordered } = layer;
      const dy = layer.last ? plan.logitGradients : plan.upper;
      if (!layer.last) {
        const { z, a, bytes } = layer;
        if (layer.pool) kernels.relu_pool_backward(z, a, plan.lower, dy, outputs, height, width, pixel);
        else kernels.relu_backward(z, plan.lower, dy, bytes);
        if (number === keep) {
          F.copyWithin(plan.keptActivation >> 2, z >> 2, (z + bytes) >> 2);
          F.copyWithin(plan.keptGradient >> 2, dy >> 2, (dy + bytes) >> 2);
        }
        if (number === until && what === "z") return;
        normaliseBackward(this, layer, dy, plan.lower);
      }
      if (until < 0 || number === until) {
        const dw = weight - plan.parameters + plan.gradients;
        kernels.weight_gradient(
          bordered,
          dy,
          dw,
          plan.partial,
          layer.offsets,
          layer.taps,
          outputs,
          height,
          width,
          kernel,
          pixel,
        );
        for (let o = 0; bias && o < outputs; o++) {
          this.setGradient(bias, o, kernels.sum(dy + o * layer.plane, layer.plane));
        }
      }
      if (number === 0 || number === until) return;
      let g = dy;
      if (border) {
        g = layer.borderedGradient;
        kernels.add_border(dy, g, outputs, height, width, border, pixel);
      }
      this.packTurned(layer);
      kernels.correlate(g, plan.packed, 0, plan.lower, outputs, inputs, height, width, kernel, pixel);
    }
  }

  // --- training and testing ---

  /**
   * Loss and accuracy on the batch of the next step, BN in training mode; the batch is loaded, the gradients
   * lie in `plan.looked`. Nothing moves. Done once for each step: its probes and the step itself share it.
   * `keep`: see `backward`.
   */
  look(keep = -1) {
    const { F, plan } = this;
    this.loadBatch();
    if (this.looked?.time !== this.time || (keep >= 0 && keep !== this.looked.keep)) {
      this.forward("train");
      const { loss, right } = this.measure();
      this.backward(-1, "", keep);
      const from = plan.gradients >> 2;
      F.copyWithin(plan.looked >> 2, from, from + (plan.parameterBytes >> 2));
      this.looked = { time: this.time, keep, loss, accuracy: right / this.count };
    }
    return this.looked;
  }

  /**
   * One step of SGD; returns the batch's loss (nats) and accuracy before it. A loss that is not finite stops
   * the network: `stopped` says when, parameters and running statistics stay as they are, and further steps
   * do nothing.
   */
  step() {
    if (this.stopped) return { loss: NaN, accuracy: NaN };
    const { plan, running, moments } = this;
    const { loss, accuracy } = this.look();
    if (!Number.isFinite(loss)) {
      this.stopped = {
        step: this.time,
        reason: `The loss was no longer a finite number at step ${this.time}.`,
      };
      return { loss, accuracy };
    }
    for (let i = 0; i < running.length; i++) running[i] += MOMENTUM * (moments[i] - running[i]);
    this.kernels.sgd(
      plan.parameters,
      plan.looked,
      plan.velocities,
      plan.parameterBytes,
      this.lr,
      this.momentum,
      this.decay,
    );
    this.time++;
    return { loss, accuracy };
  }

  /** Loss and accuracy on other images, BN with its running statistics; the last batch may be short. */
  evaluate(data) {
    let loss = 0;
    let right = 0;
    const total = data.labels.length;
    for (let start = 0; start < total; start += this.batch) {
      const count = Math.min(this.batch, total - start);
      this.loadImages(
        data,
        Uint32Array.from({ length: count }, (_, i) => start + i),
      );
      this.forward("evaluate");
      const measured = this.measure(0);
      loss += measured.loss * count;
      right += measured.right;
    }
    return { loss: loss / total, accuracy: right / total };
  }

  /** What the network makes of one image: the classes' probabilities, each layer's a as [C][H][W]. */
  classify(values, { scale = 1, shift = 0 } = this.data) {
    this.loadImages({ images: values, labels: [0], scale, shift }, [0]);
    this.forward("evaluate");
    const { F, lanes, plan } = this;
    const every = (pointer, count) =>
      Float32Array.from({ length: count }, (_, i) => F[(pointer >> 2) + i * lanes]);
    const logits = every(plan.logits, plan.classes);
    this.measure(); // the gradient is softmax - [class = 0], which gives the probabilities
    const probabilities = every(plan.logitGradients, plan.classes);
    probabilities[0] += 1;
    const layers = this.layers
      .filter((layer) => !layer.last)
      .map(({ name, a, outputs, pool, height, width }) => {
        const [h, w] = pool ? [height >> 1, width >> 1] : [height, width];
        return { name, channels: outputs, height: h, width: w, values: every(a, outputs * h * w) };
      });
    return { logits, probabilities, layers };
  }
}
