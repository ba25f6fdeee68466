// The work that every peer is given: the network, its start and its batches are those of the lab's engine.
import { createNetwork } from "/bnlib/lab/engine.js";

export const BATCH = 64;
export const RATE = 0.02;
export const SIDE = 28;
export const CHANNELS = [8, 16];
const COMPARED = 3; // steps whose losses are compared
const KEPT = 8; // batches; the peers go round them

async function inflate(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * A network with `norm`: {description, data} for the engine, {parameters by name, batches of [values, labels]}
 * for the others, and the engine's losses at the first steps, computed in plain JavaScript.
 */
export async function makeWork(norm) {
  const { about, packed } = window.benchmarkImages;
  const bytes = await inflate(packed);
  const size = SIDE * SIDE;
  const total = about.train + about.test;
  const scale = 1 / about.deviation;
  const shift = -about.mean / about.deviation;
  const data = {
    images: bytes.subarray(0, about.train * size),
    labels: bytes.subarray(total * size, total * size + about.train),
    scale,
    shift,
  };
  const layers = CHANNELS.map((channels) => ({ kind: "conv", channels, kernel: 3, norm, pool: true }));
  const image = { channels: 1, height: SIDE, width: SIDE };
  const description = { image, classes: 10, batch: BATCH, seed: 1, lr: RATE, layers };
  const network = await createNetwork(description, data);
  const parameters = network.parameters();
  const batches = Array.from({ length: KEPT }, (_, time) => {
    const values = new Float32Array(BATCH * size);
    const numbers = network.batchAt(time);
    numbers.forEach((number, n) => {
      for (let i = 0; i < size; i++) values[n * size + i] = data.images[number * size + i] * scale + shift;
    });
    return [values, Uint8Array.from(numbers, (number) => data.labels[number])];
  });
  const losses = Array.from({ length: COMPARED }, () => network.step().loss);
  return { description, data, parameters, batches, losses };
}

/**
 * Makes `window.prepare(norm)`, which says how long the peer took to its first loss and how far its losses
 * are from the engine's, and `window.measure(seconds)`, its rate in steps per second. A peer is
 * `make(norm, work)` -> {step(batch) -> a loss still to be read, read(loss) -> Promise of the number}.
 */
export function offer(make) {
  let peer = null;
  let batches = null;
  let time = 0;
  const step = () => peer.step(batches[time++ % batches.length]);

  window.prepare = async (norm) => {
    const work = await makeWork(norm);
    batches = work.batches;
    const began = performance.now();
    peer = await make(norm, work);
    const losses = [];
    let first = null;
    for (let i = 0; i < COMPARED; i++) {
      losses.push(await peer.read(step()));
      first ??= performance.now() - began;
    }
    const apart = Math.max(...losses.map((loss, i) => Math.abs(loss - work.losses[i]) / work.losses[i]));
    return { first, losses, expected: work.losses, apart };
  };

  // Steps are given out in lots of some 200 ms, and only the last loss of a lot is read: a graphics card, even
  // a simulated one, works on while the next step is prepared.
  let lot = 1;
  window.measure = async (seconds) => {
    const began = performance.now();
    let steps = 0;
    let elapsed = 0;
    do {
      let loss;
      for (let i = 0; i < lot; i++) loss = step();
      if (!Number.isFinite(await peer.read(loss))) throw new Error("The loss is not finite.");
      steps += lot;
      elapsed = performance.now() - began;
      lot = Math.max(1, Math.round((0.2 * 1000 * steps) / elapsed));
    } while (elapsed < 1000 * seconds);
    return (1000 * steps) / elapsed;
  };
}
