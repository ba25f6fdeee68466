// Line charts in SVG. Ink is the page's, so that one drawing reads in light and in dark.
import { spell } from "./arms.js";
import { h, svg } from "./dom.js";

const WIDTH = 360;
const HEIGHT = 200;
const LEFT = 46;
const RIGHT = 14;
const TOP = 8;
const BOTTOM = 32;

/** About `count` round numbers from `low` to `high`. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const [from, to] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const every = Math.max(1, Math.ceil((to - from) / 4));
  const powers = [];
  for (let power = from; power <= to; power += every) powers.push(10 ** power);
  if (powers.length > 1) return powers;
  const finer = [from - 1, from, from + 1]
    .flatMap((power) => [1, 2, 5].map((factor) => factor * 10 ** power))
    .filter((value) => value >= low && value <= high);
  return finer.length > 1 ? finer : [low, high].map((value) => Number(value.toPrecision(2)));
}

/** The smallest and the largest of all points' coordinates number `from` to `to`. */
function limits(points, from, to = Infinity) {
  let low = Infinity;
  let high = -Infinity;
  for (const point of points) {
    for (let i = from; i < Math.min(to, point.length); i++) {
      if (point[i] < low) low = point[i];
      if (point[i] > high) high = point[i];
    }
  }
  return [low, high];
}

/** No more points than pixels: of each pixel's the smallest and the largest, so that no spike is lost. */
function thinned(points, x) {
  if (points.length < 2 * WIDTH) return points;
  const pixels = new Map();
  for (const point of points) {
    const at = Math.floor(x(point[0]));
    const [least, most] = pixels.get(at) ?? [point, point];
    pixels.set(at, [point[1] < least[1] ? point : least, point[1] > most[1] ? point : most]);
  }
  return [...pixels.values()].flatMap(([a, b]) => (a === b ? [a] : a[0] < b[0] ? [a, b] : [b, a]));
}

/**
 * A chart: {element, draw(lines)}. A line is {name, colour, dash, points: [x, y]}, or with a band of its
 * points [x, low, high]; `faint` ones are drawn behind. `log`: a logarithmic scale; `domain`: fixed limits of y.
 */
export function lineChart({ title, x: xTitle, y: yTitle, log = false, domain = null, whole = false }) {
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  const element = h("figure", { class: "bnlab-chart" }, h("figcaption", {}, title), drawing);

  function draw(lines) {
    const usable = (value) => Number.isFinite(value) && (!log || value > 0);
    const kept = lines.map((line) => ({
      ...line,
      points: line.points.filter(([, ...values]) => values.every(usable)),
    }));
    const all = kept.flatMap((line) => line.points);
    drawing.setAttribute("aria-label", described(title, yTitle, kept));
    if (!all.length) {
      const text = svg("text", {
        x: WIDTH / 2,
        y: HEIGHT / 2,
        "text-anchor": "middle",
        fill: "currentColor",
      });
      text.append("Nothing to show yet.");
      drawing.replaceChildren(text);
      return;
    }
    let [left, right] = limits(all, 0, 1);
    if (left === right) right = left + 1;
    let [low, high] = domain ?? limits(all, 1);
    if (low === high) [low, high] = log ? [low / 2, low * 2] : [low - 0.5, low + 0.5];
    const scale = log ? Math.log10 : (value) => value;
    const x = (value) => LEFT + ((value - left) / (right - left)) * (WIDTH - LEFT - RIGHT);
    const y = (value) =>
      HEIGHT - BOTTOM - ((scale(value) - scale(low)) / (scale(high) - scale(low))) * (HEIGHT - TOP - BOTTOM);
    const label = (at, down, anchor, content, rest = {}) =>
      svg("text", { x: at, y: down, "text-anchor": anchor, fill: "currentColor", ...rest }, content);
    const marks = [];
    for (const value of log ? logTicks(low, high) : ticks(low, high, 4)) {
      marks.push(
        svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "bnlab-grid" }),
      );
      marks.push(label(LEFT - 5, y(value) + 4, "end", spell(value, 2)));
    }
    for (const value of ticks(left, right, 5).filter((each) => !whole || Number.isInteger(each))) {
      marks.push(label(x(value), HEIGHT - BOTTOM + 16, "middle", spell(value)));
    }
    marks.push(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "middle", xTitle));
    const path = (points, value) =>
      points
        .map((point, i) => `${i ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(value(point)).toFixed(1)}`)
        .join("");
    for (const { points, colour, dash, faint } of kept) {
      const stroke = {
        stroke: colour,
        "stroke-dasharray": dash.join(" "),
        opacity: faint ? 0.4 : 1,
        class: "bnlab-line",
      };
      if (points[0]?.length > 2) {
        const around = `${path(points, (p) => p[2])}L${path([...points].reverse(), (p) => p[1]).slice(1)}Z`;
        marks.push(svg("path", { d: around, fill: colour, opacity: 0.22 }));
        marks.push(svg("path", { d: path(points, (p) => p[2]), ...stroke }));
        marks.push(svg("path", { d: path(points, (p) => p[1]), ...stroke }));
      } else if (points.length === 1) {
        const [[at, value]] = points;
        marks.push(svg("circle", { cx: x(at), cy: y(value), r: 3, fill: colour, opacity: faint ? 0.4 : 1 }));
      } else {
        marks.push(svg("path", { d: path(thinned(points, x), (p) => p[1]), ...stroke }));
      }
    }
    drawing.replaceChildren(...marks);
  }

  return { element, draw };
}

/** Alt text: the chart's title and where each line ends. */
function described(title, yTitle, lines) {
  const ends = lines
    .filter(({ faint, points }) => !faint && points.length)
    .map(({ name, points }) => {
      const [, ...values] = points.at(-1);
      return `${name}: ${values.map((value) => spell(value)).join(" to ")}`;
    });
  return `${title}. ${ends.length ? `${yTitle} at the end of each line: ${ends.join("; ")}.` : "Nothing to show yet."}`;
}
