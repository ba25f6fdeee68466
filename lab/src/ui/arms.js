// What a normalization is called and how it is drawn: the book's arms (`bnlib.charts.ARMS`, a test compares).

export const ARMS = {
  none: { label: "Standard", colour: "#d25a00", dash: [7, 3] },
  batch: { label: "Batch norm", colour: "#0078c3", dash: [1, 0] },
  noisy_batch: { label: "Noisy batch norm", colour: "#4b4bff", dash: [10, 3, 2, 3] },
  noise: { label: "Noisy standard", colour: "#a54b5a", dash: [4, 4] },
  l1: { label: "L1 norm", colour: "#6978ff", dash: [12, 4] },
  l2: { label: "L2 norm", colour: "#b4875a", dash: [6, 2, 2, 2, 2, 2] },
  linf: { label: "L∞ norm", colour: "#0087a5", dash: [1, 3] },
  layer: { label: "Layer norm", colour: "#00a596", dash: [6, 3] },
};

// A second network of the same arm keeps its colour and gets another dash, as in the book.
const OTHERS = [
  [2, 3],
  [8, 3, 2, 3],
  [3, 6],
];

const LETTERS = "ABCD";

/** For each network of a state: {letter, name, colour, dash}; the name says what tells it from the others. */
export function appearance({ networks }) {
  return networks.map(({ norm, lr, depth, where }, i) => {
    const arm = ARMS[norm];
    const twins = networks.slice(0, i).filter((other) => other.norm === norm).length;
    const differs = (key) => networks.some((other) => other.norm === norm && other[key] !== networks[i][key]);
    const told = [
      differs("lr") && `learning rate ${spell(lr)}`,
      differs("depth") && `${depth} ${depth === 1 ? "layer" : "layers"}`,
      differs("where") && norm !== "none" && `in ${where} layer`,
    ].filter(Boolean);
    const name = [`${LETTERS[i]} ${arm.label}`, ...told].join(", ");
    return { letter: LETTERS[i], name, colour: arm.colour, dash: twins ? OTHERS[twins - 1] : arm.dash };
  });
}

/** A number as prose reads it: 3 significant digits, a true minus sign. */
export function spell(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text =
    size === 0 || (size >= 1e-3 && size < 1e5)
      ? String(size >= 10 ** digits ? Math.round(value) : Number(value.toPrecision(digits)))
      : value
          .toExponential(digits - 1)
          .replace(/\.?0+e/, "e")
          .replace("e+", "e");
  return text.replace("-", "−");
}

/** An accuracy or probability in percent. */
export const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(1)}%` : "–");
