// What the reader sets: native inputs with labels, so that keyboard, touch and screen readers work as everywhere.
import { appearance, ARMS, spell } from "./arms.js";
import { available } from "./data.js";
import { fresh, h } from "./dom.js";
import { DATA, MOST_NETWORKS, NETWORK_RANGES, NORMS, PLACES, PRESETS, RANGES, SPEEDS } from "./state.js";

const EVERY = [5, 10, 50, 0];

function field(label, control, ...extra) {
  control.id = fresh("field");
  return h(
    "div",
    { class: extra.length ? "bnlab-field ranged" : "bnlab-field" },
    h("label", { for: control.id }, label),
    control,
    ...extra,
  );
}

/** {element, show(value)}; `choices`: () => [value, text] pairs. */
export function select(label, choices, set) {
  const control = h("select", { onchange: () => set(control.value) });
  const show = (value) => {
    const pairs = choices(value);
    control.replaceChildren(...pairs.map(([each, text]) => h("option", { value: each }, text)));
    control.value = String(value);
  };
  return { element: field(label, control), show };
}

function slider(label, { min, max, step }, text, set, toPosition = (v) => v, toValue = (p) => p) {
  const readout = h("output", { "aria-hidden": "true" });
  const say = (value) => {
    readout.textContent = text(value);
    control.setAttribute("aria-valuetext", text(value));
  };
  const control = h("input", {
    type: "range",
    min,
    max,
    step,
    oninput: () => say(toValue(control.valueAsNumber)),
    onchange: () => set(toValue(control.valueAsNumber)),
  });
  const show = (value) => {
    control.value = toPosition(value);
    say(value);
  };
  return { element: field(label, control, readout), show };
}

// Half a tenth of a decade per step, two significant digits.
const logSlider = (label, [low, high], set) =>
  slider(
    label,
    { min: Math.log10(low), max: Math.log10(high), step: 0.05 },
    (value) => spell(value),
    set,
    Math.log10,
    (position) => Number((10 ** position).toPrecision(2)),
  );

function number(label, [min, max], set) {
  const control = h("input", { type: "number", min, max, step: 1, onchange: () => set(control.value) });
  return { element: field(label, control), show: (value) => (control.value = value) };
}

function networkControls(index, set) {
  const one = (key) => (value) => set(index, { [key]: value });
  const legend = h("legend");
  const norms = select("Normalization", () => NORMS.map((norm) => [norm, ARMS[norm].label]), one("norm"));
  const where = select("Its place", () => Object.entries(PLACES), one("where"));
  const lr = logSlider("Learning rate", NETWORK_RANGES.lr, one("lr"));
  const depth = slider(
    "Layers",
    { min: NETWORK_RANGES.depth[0], max: NETWORK_RANGES.depth[1], step: 1 },
    String,
    one("depth"),
  );
  const element = h(
    "fieldset",
    { class: "bnlab-network" },
    legend,
    norms.element,
    where.element,
    lr.element,
    depth.element,
  );
  return {
    element,
    show(state, look) {
      const network = state.networks[index];
      legend.textContent = `Network ${look.letter}`;
      norms.show(network.norm);
      where.show(network.where);
      lr.show(network.lr);
      depth.show(network.depth);
    },
  };
}

/** {experiment, settings, show(state)}: two elements. `set(patch)` gets what the reader changed. */
export function makeControls(getState, set) {
  const one = (key) => (value) => set({ [key]: value });
  const presets = select(
    "Experiment",
    (value) => [
      ...Object.entries(PRESETS).map(([name, { title }]) => [name, title]),
      ...(value === "own" ? [["own", "Your own"]] : []),
    ],
    one("preset"),
  );
  const asks = h("p");
  const count = select(
    "Networks",
    () => Array.from({ length: MOST_NETWORKS }, (_, i) => [i + 1, i + 1]),
    (wanted) => {
      const { networks } = getState();
      const more = Array.from({ length: Math.max(0, wanted - networks.length) }, () => networks.at(-1));
      set({ networks: [...networks, ...more].slice(0, wanted) });
    },
  );
  const shared = {
    data: select("Images", () => available().map((name) => [name, DATA[name]]), one("data")),
    channels: number("Channels", RANGES.channels, one("channels")),
    batch: number("Batch size", RANGES.batch, one("batch")),
    gain: logSlider("Initial scale ×", RANGES.gain, one("gain")),
    noise: slider("Noise ×", { min: 0, max: RANGES.noise[1], step: 0.1 }, (v) => spell(v), one("noise")),
    seed: number("Seed", RANGES.seed, one("seed")),
    steps: number("Steps", RANGES.steps, one("steps")),
    every: select(
      "Measure",
      (value) => [...new Set([...EVERY, value])].map((n) => [n, n ? `every ${n} steps` : "not at all"]),
      one("every"),
    ),
    speed: slider(
      "Speed",
      { min: 0, max: RANGES.speed[1], step: 1 },
      (v) => SPEEDS[v],
      one("speed"),
      (v) => RANGES.speed[1] - v,
      (p) => RANGES.speed[1] - p,
    ),
  };
  const changeNetwork = (index, patch) =>
    set({ networks: getState().networks.map((each, i) => (i === index ? { ...each, ...patch } : each)) });
  const places = h("div", { class: "bnlab-networks" });
  let networks = [];
  const experiment = h("div", {}, presets.element, asks);
  const settings = h(
    "div",
    {},
    places,
    h(
      "div",
      { class: "bnlab-controls" },
      count.element,
      Object.values(shared).map((each) => each.element),
    ),
  );

  function show(state) {
    presets.show(state.preset);
    asks.textContent = PRESETS[state.preset]?.asks ?? "Your own settings: what do you expect?";
    count.show(state.networks.length);
    for (const [key, control] of Object.entries(shared)) control.show(state[key]);
    if (networks.length !== state.networks.length) {
      networks = state.networks.map((_, i) => networkControls(i, changeNetwork));
      places.replaceChildren(...networks.map((each) => each.element));
    }
    const looks = appearance(state);
    networks.forEach((each, i) => each.show(state, looks[i]));
  }

  return { experiment, settings, show };
}
