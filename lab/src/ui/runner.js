// One network: its worker, and what has been measured on it so far.
import engine from "lab:engine";
import wasm from "lab:wasm";

// Along the gradient, in learning rates: the range of Santurkar et al. 2018, A.2.2.
export const FACTORS = [0.5, 1, 2, 4];

// What is measured: at a step, before it. In activation space, those of the first layer. The histograms are of
// other images, and the walk in activation space keeps more of the step's batch than the others need: in this
// order the batch is loaded and looked at once.
const PROBES = [
  ["activationStatistics"],
  ["activationLandscape", "conv1", FACTORS],
  ["landscape", FACTORS],
  ["gradientNorms"],
  ["covariateShift"],
];

let address = null;
let labs = 0;

/** A lab begins to use the engine; returns what it must call when it ends. */
export function useEngine() {
  labs++;
  address ??= URL.createObjectURL(new Blob([engine], { type: "text/javascript" }));
  return () => {
    if (--labs === 0) {
      URL.revokeObjectURL(address);
      address = null;
    }
  };
}

export class Runner {
  /** `changed` is called whenever something new is known. */
  constructor(changed) {
    this.changed = changed;
    this.time = 0;
    // Name -> [step, value ...] in the order of time.
    this.series = { loss: [], test: [], ...Object.fromEntries(PROBES.map(([name]) => [name, []])) };
    this.stopped = null; // {step, reason} once the loss is no longer finite
    this.problem = null; // what the engine or the browser refused
    this.running = false;
    this.hash = null;
    this.answers = new Map(); // number of a question -> what to call with the answer
    this.asked = 0;
    this.current = null; // the number of the question "run", while it lasts
    this.worker = new Worker(address);
    this.worker.onmessage = ({ data: message }) => this.hear(message);
    this.worker.onerror = (event) => {
      event.preventDefault?.();
      this.fail(event.message || "The browser did not start the worker.");
    };
  }

  /** Resolves once the network stands; rejects with what the engine said against it. */
  async create(description, data) {
    const { layers, backend } = await this.ask("create", {
      description,
      data: data.train,
      test: data.test,
      wasm,
    });
    this.layers = layers;
    this.backend = backend;
  }

  ask(type, content = {}) {
    if (this.problem) return Promise.reject(new Error(this.problem));
    return new Promise((resolve, reject) => {
      const answer = ++this.asked;
      this.answers.set(answer, [resolve, reject]);
      this.worker.postMessage({ type, answer, ...content });
    });
  }

  fail(reason) {
    this.problem = reason;
    this.running = false;
    for (const [, reject] of this.answers.values()) reject(new Error(reason));
    this.answers.clear();
    this.changed();
  }

  hear({ type, answer, ...content }) {
    if (type === "metrics") this.take(content);
    if (type === "stopped") this.stopped = content;
    if (type === "finished") this.hash = content.hash;
    const run = this.current;
    if (type === "paused" || (answer === run && type !== "metrics")) {
      this.running = false;
      this.settle(type, run, content);
    }
    if (answer !== run) this.settle(type, answer, content);
    this.changed();
  }

  settle(type, answer, content) {
    const [resolve, reject] = this.answers.get(answer) ?? [];
    this.answers.delete(answer);
    if (answer === this.current) this.current = null;
    if (type === "error") reject?.(new Error(content.message));
    else resolve?.(content);
  }

  take({ losses, probes, tests, time }) {
    const { series } = this;
    losses.forEach((loss, i) => series.loss.push([time + i, loss]));
    for (const { time: at, loss, accuracy } of tests) series.test.push([at, accuracy, loss]);
    for (const { time: at, name, value } of probes) series[name].push([at, value]);
    // A loss that is not finite is reported, but was no step.
    this.time = time + losses.filter(Number.isFinite).length;
    if (losses.some((loss) => !Number.isFinite(loss))) {
      this.stopped = {
        step: this.time,
        reason: `The loss was no longer a finite number at step ${this.time}.`,
      };
    }
  }

  /** Train up to step `until`; measure every `every` steps (0: never). Resolves when it ends or is paused. */
  async run({ until, every, testEvery, delay }) {
    if (this.running || this.stopped || this.problem || this.time >= until) return;
    this.running = true;
    const probes = every ? PROBES : [];
    try {
      const end = this.ask("run", { until, every: every || 10, testEvery, delay, probes });
      this.current = this.asked;
      await end;
      if (!this.stopped) await this.test();
    } catch (error) {
      this.problem = error.message;
      this.changed();
    }
  }

  /** Resolves once it has come to rest. */
  async pause() {
    if (this.running) await this.ask("pause").catch(() => {});
  }

  /** One step, measured, and the test images after it. */
  async step() {
    if (this.stopped || this.problem) return;
    await this.ask("step", { probes: PROBES });
    if (!this.stopped) await this.test();
  }

  /** The test images now, and the hash. */
  async test() {
    const { time, loss, accuracy } = await this.ask("evaluate");
    if (this.series.test.at(-1)?.[0] !== time) this.series.test.push([time, accuracy, loss]);
    await this.parameters();
  }

  classify(values) {
    return this.ask("classify", { values });
  }

  async parameters() {
    const { parameters, hash } = await this.ask("state");
    this.hash = hash;
    return parameters;
  }

  /** Whoever waits for an answer hears that there will be none. */
  end() {
    this.worker.terminate();
    this.fail("The network was given up.");
  }
}
