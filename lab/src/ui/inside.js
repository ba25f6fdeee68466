// One image, from the test set or drawn, and what the networks make of it.
import { h, inSight } from "./dom.js";
import { insight, picture } from "./images.js";
import { asImage, makePad } from "./pad.js";

const EVERY = 1000; // milliseconds between two looks while networks run
const SHOWN = 192; // pixels of the page

/**
 * {element, look(now), forget()}. `ensure` makes networks if there are none; `networks()` gives {session, data,
 * runners, looks}; `changed` is called when networks may have been made; `notify` gets texts for the reader.
 */
export function makeInside({ ensure, networks, changed, notify }) {
  let image = null; // {values, drawn, text}
  let number = 0; // of the test image
  let looking = false;
  let again = false; // asked for while it was looking
  let last = -Infinity;

  const pad = makePad(useDrawing);
  const shown = h("div");
  const insights = h("div", { class: "bnlab-insights" });
  const hint =
    "Draw a digit and all networks classify it, or take one from the test images. " +
    "Filters: blue is negative, orange positive.";
  const buttons = h(
    "div",
    { class: "bnlab-buttons" },
    h("button", { type: "button", onclick: () => pad.clear() }, "Clear"),
    h("button", { type: "button", onclick: nextImage }, "Next test image"),
  );
  const element = h(
    "details",
    { "data-view": "inside", ontoggle: () => look(true) },
    h("summary", {}, "One image, and your own digit"),
    h("p", {}, hint),
    h("div", { class: "bnlab-look" }, h("div", {}, pad.element, buttons), shown),
    insights,
  );

  async function useDrawing() {
    if (!(await ensure())) return;
    const values = asImage(pad.cells, networks().data);
    const drawn = values.some(Boolean);
    image = drawn ? { values, drawn, text: "Your digit, as the networks see it." } : null;
    changed();
    look(true);
  }

  async function nextImage() {
    if (!(await ensure())) return;
    if (image && !image.drawn) number = (number + 1) % networks().data.test.labels.length;
    image = null;
    changed();
    look(true);
  }

  function testImage({ height, width, test }) {
    const values = test.images.slice(number * height * width, (number + 1) * height * width);
    return { values, drawn: false, text: `Test image ${number + 1}, a ${test.labels[number]}.` };
  }

  /** Ask the networks, at once with `now`, else if it is time. */
  async function look(now = false) {
    const { session, data, runners, looks } = networks();
    if (!element.open || !runners.length) return;
    if (looking) {
      again ||= now;
      return;
    }
    const training = runners.some((runner) => runner.running);
    if (!now && training && (performance.now() - last < EVERY || !inSight(element))) return;
    looking = true;
    last = performance.now();
    try {
      const size = data.height * data.width;
      if (image?.drawn && image.values.length !== size) image.values = asImage(pad.cells, data);
      image ??= testImage(data);
      const { values, text } = image;
      const large = picture(values, data.height, data.width, { label: text, scale: SHOWN / data.width });
      shown.replaceChildren(large, h("p", {}, text));
      const seen = await Promise.all(
        runners.map(async (runner, i) =>
          runner.problem ? null : insight(looks[i], await runner.classify(values), await runner.parameters()),
        ),
      );
      if (session === networks().session) insights.replaceChildren(...seen.filter(Boolean));
    } catch (error) {
      if (session === networks().session) notify([`The networks did not answer: ${error.message}`]);
    } finally {
      looking = false;
    }
    if (!again) return;
    again = false;
    look(true);
  }

  /** The networks are gone, and with other images perhaps the image. */
  function forget() {
    if (!image?.drawn) image = null;
    insights.replaceChildren();
  }

  return { element, look, forget };
}
