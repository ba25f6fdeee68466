// Does a list of things with a network of the lab's engine and says what came out: in node
// (node drive.mjs FOLDER < job.json > result.json, FOLDER holds engine.js and engine.wasm) and in a browser.

const list = (values) => Array.from(values);
const named = (parameters) =>
  Object.fromEntries(Object.entries(parameters).map(([name, { values }]) => [name, list(values)]));

/** An activation or gradient in memory as [C * pixels][N], padding left out. */
function lanes(net, pointer, rows) {
  const at = pointer >> 2;
  const rest = Array.from({ length: rows }, (_, i) =>
    list(net.F.subarray(at + i * net.lanes, at + i * net.lanes + net.batch)),
  );
  return rest.flat();
}

const DEEDS = {
  step(net, { count = 1 }) {
    const losses = [],
      accuracies = [],
      batches = [];
    for (let i = 0; i < count; i++) {
      batches.push(list(net.batchAt(net.time)));
      const { loss, accuracy } = net.step();
      losses.push(String(loss));
      accuracies.push(accuracy);
    }
    return { losses, accuracies, batches, stopped: net.stopped, time: net.time };
  },
  look(net) {
    const batch = list(net.batchAt(net.time));
    const { loss } = net.look();
    const layers = net.layers.map(({ name, s, z, outputs, pixels }) => ({
      name,
      z: lanes(net, z, outputs * pixels),
      s: s ? lanes(net, s, outputs * pixels) : null,
    }));
    return { batch, loss, gradients: named(net.gradients()), layers };
  },
  // Mean and variance of each channel of the first layer's z, at `count` steps.
  moments(net, { count }) {
    const { z, outputs, values, plane } = net.layers[0],
      means = [],
      variances = [];
    for (let t = 0; t < count; t++) {
      net.time = t;
      net.look();
      for (let c = 0; c < outputs; c++) {
        const at = z + c * plane,
          mean = net.kernels.sum(at, plane) / values;
        means.push(mean);
        variances.push(net.kernels.sum_squared_deviations(at, 1, values, values, mean) / values);
      }
    }
    return { means, variances };
  },
  // What lies in the lanes beyond the batch, over everything that is summed.
  padding(net) {
    net.look();
    let worst = 0;
    for (const { y, z, a, bytes, last, pool, outputs, height, width } of net.layers) {
      const blocks = [
        [y, bytes],
        [z, bytes],
      ];
      if (!last) blocks.push([a, pool ? outputs * (height >> 1) * (width >> 1) * net.pixel : bytes]);
      for (const [pointer, size] of blocks) {
        for (let i = 0; i < size / net.pixel; i++) {
          for (let n = net.batch; n < net.lanes; n++) {
            worst = Math.max(worst, Math.abs(net.F[(pointer >> 2) + i * net.lanes + n]));
          }
        }
      }
    }
    return worst;
  },
  state(net) {
    const running = Object.fromEntries(
      Object.entries(net.runningStatistics()).map(([name, values]) => [
        name,
        Object.fromEntries(Object.entries(values).map(([key, numbers]) => [key, list(numbers)])),
      ]),
    );
    return {
      hash: net.hash(),
      time: net.time,
      backend: net.backend,
      memory: net.plan.bytes,
      parameters: named(net.parameters()),
      running,
    };
  },
  random(net, { name, state, count }, { engine }) {
    const random = new engine.Random(...name);
    if (state) random.state.set(state);
    return Array.from({ length: count }, () => random.bits());
  },
  functions: (net, { values }, { engine }) => ({
    exponential: values.map((x) => engine.exponential(-x)),
    logarithm: values.map((x) => engine.logarithm(1 + x)),
  }),
  load: (net, { parameters }) => net.load(parameters),
  set: (net, settings) => net.set(settings),
  reset: (net) => net.reset(),
  evaluate: (net, _, { test }) => net.evaluate(test),
  classify(net, { values }) {
    const { logits, probabilities, layers } = net.classify(values);
    return {
      logits: list(logits),
      probabilities: list(probabilities),
      layers: layers.map((l) => ({ ...l, values: list(l.values) })),
    };
  },
  probe: (net, { name, values = [] }, { engine }) => engine.PROBES[name](net, ...values),
};

const typed = ({ images, labels, bytes, ...rest }) => ({
  images: (bytes ? Uint8Array : Float32Array).from(images),
  labels: Uint8Array.from(labels),
  ...rest,
});

/** job: {description, data, test, deeds: [{deed, ...}]} -> {results} or, if the engine refuses, {refused} */
export async function drive(engine, wasm, job) {
  const test = job.test && typed(job.test);
  try {
    const net = await engine.createNetwork(job.description, typed(job.data), wasm);
    return { results: job.deeds.map((deed) => DEEDS[deed.deed](net, deed, { engine, test }) ?? null) };
  } catch (error) {
    if (error instanceof engine.LabError) return { refused: error.message };
    throw error;
  }
}

if (typeof process !== "undefined" && process.argv[1]?.endsWith("drive.mjs")) {
  const { readFileSync } = await import("node:fs");
  const { pathToFileURL } = await import("node:url");
  const { join, resolve } = await import("node:path");
  const folder = resolve(process.argv[2]);
  const engine = await import(pathToFileURL(join(folder, "engine.js")));
  const wasm = readFileSync(join(folder, "engine.wasm"));
  const { jobs } = JSON.parse(readFileSync(0, "utf8"));
  const results = [];
  for (const job of jobs) {
    const broken = new Uint8Array(8); // what a browser without SIMD makes of engine.wasm: it does not compile
    results.push(await drive(engine, job.plain ? null : job.broken ? broken : wasm, job));
  }
  // JSON knows neither typed arrays nor infinity.
  const plain = (_, value) =>
    ArrayBuffer.isView(value) ? list(value) : Math.abs(value) === Infinity ? String(value) : value;
  console.log(JSON.stringify(results, plain));
}
