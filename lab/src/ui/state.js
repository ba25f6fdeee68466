// The lab's state: one plain value that says everything about a run. Bad values are clamped or replaced, and
// every correction is told.

export const NORMS = ["none", "batch", "noisy_batch", "noise", "l1", "l2", "linf", "layer"];
export const PLACES = { every: "every layer", first: "first layer only", last: "last hidden layer only" };
export const DATA = { digits: "Digits, 8×8", mnist: "MNIST, 28×28" };
export const DELAYS = [0, 30, 100, 300, 1000]; // milliseconds per step
export const SPEEDS = ["full", "30 steps/s", "10 steps/s", "3 steps/s", "1 step/s"];

// key: [smallest, largest, default, whole?, what it is called]
export const RANGES = {
  channels: [1, 32, 8, true, "The number of channels"],
  batch: [8, 256, 64, true, "The batch size"],
  gain: [0.1, 10, 1, false, "The factor on the initial weights"],
  noise: [0, 4, 1, false, "The strength of the noise"],
  seed: [0, 4294967295, 1, true, "The seed"],
  steps: [10, 5000, 300, true, "The number of steps"],
  every: [0, 100, 10, true, "The interval of measurements"],
  speed: [0, DELAYS.length - 1, 0, true, "The speed"],
};
export const NETWORK_RANGES = {
  lr: [1e-4, 1e3, 0.1, false, "The learning rate"],
  depth: [1, 12, 4, true, "The depth"],
};
export const MOST_NETWORKS = 4;

const network = (norm, lr = 0.1, depth = 4, where = "every") => ({ norm, where, lr, depth });

/** Name -> {title, asks, view (the section to open), networks and other settings}. */
export const PRESETS = {
  rates: {
    title: "Batch norm at a low and a high learning rate",
    asks: "Does batch norm help at a low rate, or does it only allow a high one?",
    view: "learning",
    networks: [network("none", 0.01), network("none", 0.5), network("batch", 0.01), network("batch", 0.5)],
  },
  noise: {
    title: "Batch norm with noise after it",
    asks: "If stable distributions were the reason, noise after batch norm should undo its effect. Does it?",
    view: "distributions",
    networks: ["none", "batch", "noisy_batch", "noise"].map((norm) => network(norm, 0.1, 6)),
  },
  smoothness: {
    title: "The loss along the gradient",
    asks: "Same rate, same start: along its own gradient, whose loss changes more evenly?",
    view: "landscape",
    networks: [network("none"), network("batch")],
  },
  high_rate: {
    title: "A rate that is too high without batch norm",
    asks: "Both train at the lower rate. Which ones survive the higher?",
    view: "learning",
    networks: [network("none", 0.1), network("none", 1), network("batch", 0.1), network("batch", 1)],
  },
  depth: {
    title: "Depth without skip connections",
    asks: "Ten layers and no shortcut: who still learns?",
    view: "gradients",
    networks: [
      network("none", 0.1, 2),
      network("none", 0.1, 10),
      network("batch", 0.1, 2),
      network("batch", 0.1, 10),
    ],
  },
};
export const DEFAULT_PRESET = "rates";

const defaults = Object.fromEntries(Object.entries(RANGES).map(([key, [, , value]]) => [key, value]));

/** The state of a preset; settings not named there have their defaults. */
export function preset(name) {
  const { networks, ...rest } = PRESETS[name];
  const own = Object.fromEntries(Object.entries(rest).filter(([key]) => key in RANGES || key === "data"));
  return { preset: name, data: "digits", ...defaults, ...own, networks: structuredClone(networks) };
}

function number(value, [low, high, standard, whole, what], notices) {
  let good = typeof value === "string" && value.trim() === "" ? NaN : Number(value);
  if (!Number.isFinite(good)) {
    notices.push(`${what} must be a number from ${low} to ${high}, so it is ${standard} here.`);
    return standard;
  }
  if (whole) good = Math.round(good);
  const inside = Math.min(high, Math.max(low, good));
  if (inside !== good) notices.push(`${what} can lie between ${low} and ${high}, so it is ${inside} here.`);
  return inside;
}

function choice(value, choices, standard, what, notices) {
  if (choices.includes(value)) return value;
  notices.push(`${what} “${String(value).slice(0, 20)}” is unknown, so it is ${standard} here.`);
  return standard;
}

/** A state in which everything is possible, and what had to be changed: {state, notices}. */
export function clean(wanted) {
  const notices = [];
  const given = wanted && typeof wanted === "object" ? wanted : {};
  const base = preset(
    given.preset === undefined || given.preset === "own"
      ? DEFAULT_PRESET
      : choice(given.preset, Object.keys(PRESETS), DEFAULT_PRESET, "The preset", notices),
  );
  const own = given.preset === "own" || (given.preset === undefined && given.networks);
  const state = { ...base, preset: own ? "own" : base.preset };
  if (given.data !== undefined) {
    state.data = choice(given.data, Object.keys(DATA), "digits", "The data set", notices);
  }
  for (const [key, range] of Object.entries(RANGES)) {
    if (given[key] !== undefined) state[key] = number(given[key], range, notices);
  }
  if (Array.isArray(given.networks) && given.networks.length) {
    if (given.networks.length > MOST_NETWORKS) {
      notices.push(`There is room for ${MOST_NETWORKS} networks; the others are left out.`);
    }
    state.networks = given.networks.slice(0, MOST_NETWORKS).map((one) => {
      const each = { ...network("batch"), ...(one && typeof one === "object" ? one : {}) };
      return {
        norm: choice(each.norm, NORMS, "batch", "The normalization", notices),
        where: choice(each.where, Object.keys(PLACES), "every", "The place", notices),
        lr: number(each.lr, NETWORK_RANGES.lr, notices),
        depth: number(each.depth, NETWORK_RANGES.depth, notices),
      };
    });
  }
  return { state, notices };
}

// --- the link -----------------------------------------------------------------------------------------------

const MARK = "lab=1"; // the form's version

/** #lab=1&data=digits&channels=8&...&net=batch,every,0.1,4&net=... */
export function toFragment(state) {
  const settings = Object.keys(RANGES).map((key) => `${key}=${state[key]}`);
  const networks = state.networks.map(({ norm, where, lr, depth }) => `net=${norm},${where},${lr},${depth}`);
  return `#${[MARK, `preset=${state.preset}`, `data=${state.data}`, ...settings, ...networks].join("&")}`;
}

/** {state, notices} of a link; null for a fragment that is none of ours; a notice alone if it is damaged. */
export function fromFragment(fragment) {
  const text = fragment.replace(/^#/, "");
  if (!text.startsWith("lab=")) return null;
  try {
    const parts = decodeURIComponent(text).split("&");
    if (parts.shift() !== MARK) throw new Error("version");
    const wanted = { networks: [] };
    for (const part of parts) {
      const [key, value, ...rest] = part.split("=");
      if (!value || rest.length) throw new Error(part);
      if (key === "net") {
        const [norm, where, lr, depth, ...more] = value.split(",");
        if (depth === undefined || more.length) throw new Error(part);
        wanted.networks.push({ norm, where, lr, depth });
      } else if (key === "preset" || key === "data" || key in RANGES) {
        if (key in wanted) throw new Error(part);
        wanted[key] = value;
      } else {
        throw new Error(part);
      }
    }
    if (!wanted.networks.length) throw new Error("no network");
    return clean(wanted);
  } catch {
    return { state: preset(DEFAULT_PRESET), notices: ["This link is damaged; here is the default instead."] };
  }
}

// --- for the engine -----------------------------------------------------------------------------------------

/** What `createNetwork` needs: convolutions 3x3, the first with `channels`, later ones with twice as many;
 * the first two halve the image. */
export function describe(state, { norm, where, lr, depth }, { height, width, classes }) {
  const normed = { every: () => true, first: (i) => i === 0, last: (i) => i === depth - 1 }[where];
  return {
    image: { channels: 1, height, width },
    classes,
    batch: state.batch,
    seed: state.seed,
    gain: state.gain,
    noise: state.noise,
    lr,
    layers: Array.from({ length: depth }, (_, i) => ({
      kind: "conv",
      kernel: 3,
      channels: i ? 2 * state.channels : state.channels,
      norm: normed(i) ? norm : "none",
      pool: i < 2,
    })),
  };
}
