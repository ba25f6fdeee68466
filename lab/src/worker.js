// One network in a Web Worker. Messages are plain objects with a `type`; `answer` is sent back unchanged, so
// that the page can tell which question an answer belongs to.
//
//   create {description, data, test, wasm}   -> created {backend, layers, memory}: see `createNetwork`
//   run {until, probes, every, testEvery, delay}
//     up to step `until`; before every `every`th step each of `probes`, [name, ...arguments]; the test images
//     after every `testEvery`th step (0: never); with `delay`, one step each so many milliseconds
//     -> metrics ..., then finished {time, hash} or stopped {step, reason}
//   pause                                    -> paused {time}
//   step {probes}                            -> metrics: one step
//   set {lr, momentum, decay}, reset         -> done {time}
//   evaluate                                 -> evaluated {time, loss, accuracy}: the test images
//   probe {probe, values}                    -> probed {time, name, value}
//   classify {values}                        -> classified {logits, probabilities, layers}
//   state                                    -> state {hash, time, parameters, running}
//   what is unknown or refused               -> error {message}
//
// metrics {time, losses, accuracies, probes: [{time, name, value}], tests: [{time, loss, accuracy}]}: of the
// steps from `time` on. A network whose loss is no longer finite stops; other workers go on.
import { createNetwork } from "./network.js";
import {
  activationLandscape,
  activationStatistics,
  covariateShift,
  gradientNorms,
  landscape,
} from "./probes.js";

/** What a page can ask to be measured, by name. */
export const PROBES = { landscape, activationLandscape, gradientNorms, covariateShift, activationStatistics };

// A worker that never returns from its loop never hears "pause"; so it stops for messages after so many
// milliseconds.
const SLICE = 40;

/** Answer the messages that arrive at `port`. */
export function serve(port) {
  let net = null;
  let test = null;
  let running = null;
  const soon = new MessageChannel();
  soon.port1.onmessage = () => work();
  let planned = false; // whether `work` is about to be called: pausing and running again must not double it

  const send = (type, content, answer) => port.postMessage({ type, answer, ...content });

  function measure(name, values = []) {
    if (!Object.hasOwn(PROBES, name))
      throw new Error(`Unknown probe "${name}"; choose one of ${Object.keys(PROBES).join(", ")}.`);
    return PROBES[name](net, ...values);
  }

  /** Train until the slice is over or the end is reached, then report what was seen. */
  function work() {
    planned = false;
    if (!running) return;
    const { until, probes, every, testEvery, delay, answer, begun } = running;
    running.begun = true; // the first step is reported at once: a reader waits for it
    const seen = { losses: [], accuracies: [], probes: [], tests: [], time: net.time };
    const end = performance.now() + (delay || !begun ? 0 : SLICE);
    try {
      do {
        if (net.time >= until) break;
        if (probes.length && net.time % every === 0) {
          for (const [name, ...values] of probes)
            seen.probes.push({ time: net.time, name, value: measure(name, values) });
        }
        const { loss, accuracy } = net.step();
        seen.losses.push(loss);
        seen.accuracies.push(accuracy);
        if (testEvery && test && !net.stopped && net.time % testEvery === 0) {
          seen.tests.push({ time: net.time, ...net.evaluate(test) });
        }
      } while (!net.stopped && performance.now() < end);
    } catch (error) {
      running = null;
      send("error", { message: error.message }, answer);
      return;
    }
    send("metrics", seen, answer);
    if (net.stopped) {
      running = null;
      send("stopped", net.stopped, answer);
    } else if (net.time >= until) {
      running = null;
      send("finished", { time: net.time, hash: net.hash() }, answer);
    } else {
      plan(delay);
    }
  }

  function plan(delay) {
    if (planned) return;
    planned = true;
    if (delay) setTimeout(work, delay);
    else soon.port2.postMessage(null);
  }

  const actions = {
    async create({ description, data, test: images, wasm }) {
      running = null;
      net = await createNetwork(description, data, wasm);
      test = images ?? null;
      const layers = net.layers.map(({ name, norm, outputs, height, width }) => ({
        name,
        norm,
        outputs,
        height,
        width,
      }));
      return ["created", { backend: net.backend, layers, memory: net.plan.bytes }];
    },
    run({ until = Infinity, probes = [], every = 10, testEvery = 0, delay = 0, answer }) {
      running = { until, probes, every, testEvery, delay, answer };
      plan(0);
    },
    pause() {
      running = null;
      return ["paused", { time: net.time }];
    },
    step({ probes = [] }) {
      const time = net.time;
      const measured = probes.map(([name, ...values]) => ({ time, name, value: measure(name, values) }));
      const { loss, accuracy } = net.step();
      return ["metrics", { time, losses: [loss], accuracies: [accuracy], probes: measured, tests: [] }];
    },
    reset() {
      running = null;
      net.reset();
      return ["done", { time: net.time }];
    },
    set(settings) {
      net.set(settings);
      return ["done", { time: net.time }];
    },
    evaluate() {
      if (!test) throw new Error("There are no test images; give them with create.");
      return ["evaluated", { time: net.time, ...net.evaluate(test) }];
    },
    probe({ probe, values }) {
      return ["probed", { time: net.time, name: probe, value: measure(probe, values) }];
    },
    classify({ values }) {
      return ["classified", net.classify(values)];
    },
    state() {
      return [
        "state",
        { hash: net.hash(), time: net.time, parameters: net.parameters(), running: net.runningStatistics() },
      ];
    },
  };

  async function handle(message) {
    try {
      if (!Object.hasOwn(actions, message.type)) throw new Error(`Unknown message "${message.type}".`);
      if (!net && message.type !== "create") throw new Error("Create a network first.");
      const reply = await actions[message.type](message);
      if (reply) send(reply[0], reply[1], message.answer);
    } catch (error) {
      send("error", { message: error.message }, message.answer);
    }
  }

  // One after the other: a network takes a moment to be made, and the next message may already be here.
  let handled = Promise.resolve();
  port.onmessage = ({ data }) => {
    handled = handled.then(() => handle(data));
  };
}
