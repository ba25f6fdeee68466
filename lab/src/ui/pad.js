// A pad to draw a digit on, by finger, mouse, pen or keyboard, and its way into the form of the training images.
import { h } from "./dom.js";

const SIZE = 64; // cells of the pad
const PEN = 3; // radius, in cells
const FINE = 8; // samples per pixel and direction

/**
 * The drawing (SIZE x SIZE, 0 to 1) as an image: its bounding box scaled into the pixels that digits of that
 * set fill (MNIST: 20 of 28; digits: all of 8, where widths rarely exceed 6), centred, averaged per pixel.
 */
export function asImage(cells, { height, width }) {
  let [top, bottom, left, right] = [SIZE, -1, SIZE, -1];
  cells.forEach((value, i) => {
    if (!value) return;
    const [row, column] = [Math.floor(i / SIZE), i % SIZE];
    [top, bottom] = [Math.min(top, row), Math.max(bottom, row)];
    [left, right] = [Math.min(left, column), Math.max(right, column)];
  });
  const image = new Uint8Array(height * width);
  if (bottom < 0) return image;
  const box = height >= 20 ? (20 / 28) * height : height;
  const widest = height >= 20 ? box : 0.8 * box;
  const zoom = Math.min(box / (bottom - top + 1), widest / (right - left + 1)); // pixels per cell
  const [middle, centre] = [(top + bottom + 1) / 2, (left + right + 1) / 2];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let s = 0; s < FINE * FINE; s++) {
        const row = Math.floor(middle + (y + (Math.floor(s / FINE) + 0.5) / FINE - height / 2) / zoom);
        const column = Math.floor(centre + (x + ((s % FINE) + 0.5) / FINE - width / 2) / zoom);
        if (row >= 0 && row < SIZE && column >= 0 && column < SIZE) sum += cells[row * SIZE + column];
      }
      image[y * width + x] = Math.round((255 * sum) / FINE ** 2);
    }
  }
  return image;
}

/** {element, cells, clear()}; `changed` is called after each stroke. */
export function makePad(changed) {
  const cells = new Float32Array(SIZE * SIZE);
  const canvas = h("canvas", {
    width: SIZE,
    height: SIZE,
    class: "bnlab-pad",
    tabindex: 0,
    role: "application",
    "aria-label": "Drawing pad. Arrow keys move the pen, space puts it down or lifts it, Delete clears.",
  });
  const context = canvas.getContext("2d", { willReadFrequently: true }); // small: no work for the graphics card
  let pen = [SIZE / 2, SIZE / 2];
  let down = false;
  let shown = false;

  function paint() {
    const image = context.createImageData(SIZE, SIZE);
    cells.forEach((value, i) => image.data.set([255 * value, 255 * value, 255 * value, 255], 4 * i));
    context.putImageData(image, 0, 0);
    if (!shown) return;
    context.strokeStyle = down ? "#ff9b3d" : "#8fc7ff";
    context.strokeRect(pen[0] - PEN, pen[1] - PEN, 2 * PEN, 2 * PEN);
  }

  function dot(x, y) {
    for (let row = Math.floor(y - PEN); row <= y + PEN; row++) {
      for (let column = Math.floor(x - PEN); column <= x + PEN; column++) {
        if (row < 0 || column < 0 || row >= SIZE || column >= SIZE) continue;
        if (Math.hypot(row + 0.5 - y, column + 0.5 - x) <= PEN) cells[row * SIZE + column] = 1;
      }
    }
  }

  function stroke([fromX, fromY], [toX, toY]) {
    const count = Math.ceil(Math.hypot(toX - fromX, toY - fromY)) + 1;
    for (let i = 0; i <= count; i++)
      dot(fromX + ((toX - fromX) * i) / count, fromY + ((toY - fromY) * i) / count);
  }

  const at = (event) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [((event.clientX - left) / width) * SIZE, ((event.clientY - top) / height) * SIZE];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    [pen, down, shown] = [at(event), true, false];
    dot(...pen);
    paint();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!down || !canvas.hasPointerCapture(event.pointerId)) return;
    const next = at(event);
    stroke(pen, next);
    pen = next;
    paint();
  });
  const lift = (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    canvas.releasePointerCapture(event.pointerId);
    down = false;
    changed();
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);

  const clear = () => {
    cells.fill(0);
    paint();
    changed();
  };
  const moves = { ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -2], ArrowDown: [0, 2] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key in moves) {
      const inside = (value) => Math.min(SIZE, Math.max(0, value));
      const next = [inside(pen[0] + moves[event.key][0]), inside(pen[1] + moves[event.key][1])];
      if (down) stroke(pen, next);
      pen = next;
    } else if (event.key === " ") {
      down = !down;
      if (down) dot(...pen);
      else changed();
    } else if (event.key === "Delete" || event.key === "Backspace") clear();
    else return;
    event.preventDefault();
    shown = true;
    paint();
  });
  canvas.addEventListener("focus", () => {
    shown = canvas.matches(":focus-visible");
    paint();
  });
  canvas.addEventListener("blur", () => {
    const drawn = down;
    [down, shown] = [false, false];
    paint();
    if (drawn) changed();
  });
  paint();

  return { element: canvas, cells, clear };
}
