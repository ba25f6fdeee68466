// The lab as an anywidget: what the reader does, the networks that train in their workers, and what is shown.
import { appearance, percent } from "./arms.js";
import { makeControls, select } from "./controls.js";
import { available, brought, loader } from "./data.js";
import { h, inSight, svg } from "./dom.js";
import { makeInside } from "./inside.js";
import { csv, inWords, RESULTS, story, summary } from "./report.js";
import { Runner, useEngine } from "./runner.js";
import { clean, DELAYS, describe, fromFragment, preset, PRESETS, toFragment } from "./state.js";
import { STYLE } from "./style.js";
import { makeViews } from "./views.js";

const FRAME = 100; // milliseconds between two drawings
const CALM = 1000; // the same for readers who ask for less motion
const TEST_EVERY = { digits: 10, mnist: 100 };
// These change nothing that has been computed: a run goes on.
const HARMLESS = new Set(["steps", "every", "speed"]);

function render({ model, el }) {
  const stillness = window.matchMedia("(prefers-reduced-motion: reduce)");
  const endEngine = useEngine();
  const load = loader(model);
  const linked = Boolean(model.get("link"));

  let { state, notices } = (linked && fromFragment(window.location.hash)) || clean(model.get("state"));
  let looks = appearance(state);
  let runners = [];
  let data = null;
  let building = null; // the promise of networks that are being made
  // A reset begins a new session; what belongs to an older one is dropped. `working`: runs and steps under way.
  let session = { working: 0 };
  let target = 0;
  let layer = 2; // the first that has earlier ones
  let removed = false;

  // --- the page -------------------------------------------------------------------------------------------

  const notice = h("div", { role: "status", class: "bnlab-notices" });
  const status = h("span", { class: "bnlab-status" });
  const runButton = h(
    "button",
    { type: "button", class: "bnlab-run", onclick: () => (busy() ? pause() : run()) },
    "Run",
  );
  const stepButton = h("button", { type: "button", onclick: () => busy() || step() }, "Step");
  const resetButton = h("button", { type: "button", onclick: () => reset() }, "Reset");
  const linkButton = linked ? h("button", { type: "button", onclick: copyLink }, "Copy link") : null;
  const csvButton = h("button", { type: "button", onclick: saveCsv }, "Download CSV");
  const controls = makeControls(() => state, change);
  // Folded, so that Run and the charts are in sight together.
  const settings = h(
    "details",
    {},
    h("summary", {}, "Settings: networks, learning rates, depth, images, seed …"),
    controls.settings,
  );
  const legend = h("ul", { class: "bnlab-legend", "aria-label": "Networks" });
  const layers = select(
    "Layer shown below",
    () =>
      Array.from({ length: Math.max(...state.networks.map(({ depth }) => depth)) }, (_, i) => [i + 1, i + 1]),
    (value) => {
      layer = Number(value);
      draw();
    },
  );
  const views = makeViews().map((view) => {
    const element = h(
      "details",
      { "data-view": view.name, ontoggle: () => draw() },
      h("summary", {}, view.title),
      h("p", {}, view.note),
      h("div", { class: "bnlab-charts" }, view.charts.map((chart) => chart.element)),
    );
    return { ...view, element };
  });
  const inside = makeInside({
    ensure,
    // While networks are being made there are none to ask.
    networks: () => ({ session, data, runners: building || removed ? [] : runners, looks }),
    changed: () => changed(),
    notify,
  });
  const told = h("div", { "aria-live": "polite", class: "bnlab-story" });
  const table = h("table", { class: "bnlab-results" });
  const root = h(
    "div",
    {
      class: "bnlab",
      role: "group",
      "aria-label": "Lab: networks that train in your browser",
      // Keys meant for the lab are no commands to the page: in JupyterLab an arrow leaves the cell, M ends the lab.
      onkeydown: (event) => event.ctrlKey || event.metaKey || event.altKey || event.stopPropagation(),
    },
    h("style", {}, STYLE),
    controls.experiment,
    h("div", { class: "bnlab-buttons" }, runButton, stepButton, resetButton, linkButton, status),
    notice,
    settings,
    legend,
    h("div", { class: "bnlab-layer" }, layers.element),
    views.map((view) => view.element),
    inside.element,
    h("div", { class: "bnlab-title" }, "What just happened"),
    told,
    h("div", { class: "bnlab-scroll", tabindex: 0, role: "region", "aria-label": "Table of results" }, table),
    h("div", { class: "bnlab-buttons" }, csvButton),
  );

  function notify(texts) {
    notice.replaceChildren(...texts.map((text) => h("p", { class: "bnlab-notice" }, text)));
  }

  // --- drawing --------------------------------------------------------------------------------------------

  let waiting = null; // for the next drawing
  let drawn = -Infinity;
  let undrawn = []; // charts of the drawing under way
  let ends = []; // what to call when it is done
  function changed() {
    if (waiting !== null || removed) return;
    const pause = (stillness.matches ? CALM : FRAME) - (performance.now() - drawn);
    waiting = setTimeout(() => drawByAndBy(), Math.max(0, pause));
  }

  const charts = () => views.flatMap((view) => (view.element.open ? view.charts : []));

  /** All at once: what the reader has asked for. */
  function draw() {
    begin();
    for (const chart of charts()) chart.draw(looks, runners, layer);
  }

  /** One chart after the other, so that the page never stands still; by default those in sight. */
  function drawByAndBy(chosen = (chart) => inSight(chart.element)) {
    const late = undrawn; // where a machine is slow, those come first
    begin();
    undrawn = [...late, ...charts().filter((chart) => chosen(chart) && !late.includes(chart))];
    if (!late.length) drawNext();
  }

  function drawNext() {
    undrawn.shift()?.draw(looks, runners, layer);
    if (undrawn.length) setTimeout(drawNext);
    else for (const end of ends.splice(0)) end();
  }

  function begin() {
    clearTimeout(waiting);
    waiting = null;
    undrawn = [];
    if (removed) return;
    drawn = performance.now();
    showProgress();
    inside.look();
  }

  const busy = () => session.working > 0;
  const time = () => Math.max(0, ...runners.map((runner) => runner.time));

  function showProgress() {
    runButton.textContent = busy() ? "Pause" : "Run";
    stepButton.setAttribute("aria-disabled", busy()); // a disabled button would lose the focus
    csvButton.disabled = !time();
    const speed = runners.some(({ backend }) => backend === "plain")
      ? " WebAssembly with SIMD is missing here: plain JavaScript computes the same, but slower."
      : "";
    status.textContent = (time() ? `Step ${time()} of ${Math.max(target, time())}.` : "Step 0.") + speed;
    root.dataset.state = busy() ? "running" : "idle";
    for (const [i, runner] of runners.entries()) fillColumn(i, runner);
  }

  function fillColumn(i, runner) {
    const result = summary(runner);
    RESULTS.forEach(([, , text], row) => {
      table.tBodies[0].rows[row].cells[i + 1].textContent = text(result);
    });
    if (runner.stopped) table.tHead.rows[0].cells[i + 1].textContent = `${looks[i].name} (stopped)`;
  }

  function showSettings() {
    looks = appearance(state);
    layer = Math.min(layer, Math.max(...state.networks.map(({ depth }) => depth)));
    controls.show(state);
    layers.show(layer);
    legend.replaceChildren(
      ...looks.map(({ name, colour, dash }) => {
        const line = svg("line", {
          x1: 0,
          x2: 34,
          y1: 5,
          y2: 5,
          stroke: colour,
          "stroke-width": 3,
          "stroke-dasharray": dash.join(" "),
        });
        return h("li", {}, svg("svg", { width: 34, height: 10, "aria-hidden": "true" }, line), name);
      }),
    );
    const networks = looks.map(({ name }, i) =>
      h("th", { scope: "col", title: inWords(state.networks[i]) }, name),
    );
    const results = RESULTS.map(([text, meaning]) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, text, h("small", {}, meaning)),
        looks.map(() => h("td", {}, "–")),
      ),
    );
    table.replaceChildren(
      h("caption", {}, "Results so far"),
      h("thead", {}, h("tr", {}, h("td"), networks)),
      h("tbody", {}, results),
    );
  }

  /** Sentences, once the networks have come to rest. */
  function tell() {
    const sentences = story(state, looks, runners, data?.classes ?? 10);
    told.replaceChildren(...sentences.map((sentence) => h("p", {}, sentence)));
  }

  function openViews() {
    const wanted = PRESETS[state.preset]?.view;
    for (const { name, element } of views) if (name === "learning" || name === wanted) element.open = true;
  }

  // --- the networks ---------------------------------------------------------------------------------------

  /** Networks at step 0, if there are none yet. False: there are none, and a notice says why. */
  function ensure() {
    if (building) return building;
    if (runners.length) return Promise.resolve(true);
    const made = build(session);
    building = made;
    return made.finally(() => {
      if (building === made) building = null;
    });
  }

  async function build(mine) {
    const problems = [];
    // The workers start while the images are read.
    const made = state.networks.map(() => new Runner(() => made === runners && changed()));
    const dropped = () => {
      if (mine === session && !removed) return false;
      for (const runner of made) runner.end();
      return true;
    };
    try {
      status.textContent = brought() ? "Loading the images …" : "Asking the kernel for the images …";
      const loaded = await load(state.data);
      if (dropped()) return false;
      data = loaded;
    } catch (error) {
      for (const runner of made) runner.end();
      if (mine === session) notify([`The images could not be loaded: ${error.message}.`]);
      return false;
    }
    runners = made;
    const created = [];
    for (const [i, runner] of made.entries()) {
      created.push(
        runner.create(describe(state, state.networks[i], data), data).catch((error) => {
          runner.problem = error.message;
          problems.push(`${looks[i].letter}: ${error.message}`);
        }),
      );
      await new Promise((resolve) => setTimeout(resolve)); // each gets a copy of the images: time to breathe
    }
    await Promise.all(created);
    if (dropped()) return false;
    if (problems.length) notify(problems);
    return true;
  }

  /** Do something with the networks, which are made if there are none, and then say what happened. */
  async function work(job) {
    const mine = session;
    mine.working++;
    showProgress();
    try {
      if ((await ensure()) && mine === session) await job();
    } catch (error) {
      if (mine === session) notify([`The networks did not answer: ${error.message}`]);
    } finally {
      mine.working--;
    }
    if (mine === session && !mine.working && !removed) rest();
  }

  let wantsPause = false; // pressed while the networks were being made

  const run = () =>
    work(async () => {
      if (wantsPause) {
        wantsPause = false;
        return;
      }
      const now = time();
      if (now >= target) target = now < state.steps ? state.steps : now + state.steps;
      const settings = {
        until: target,
        every: state.every,
        testEvery: TEST_EVERY[state.data],
        delay: DELAYS[state.speed],
      };
      await Promise.all(runners.map((runner) => runner.run(settings)));
    });

  const step = () => work(() => Promise.all(runners.map((runner) => runner.step())));

  function pause() {
    wantsPause = Boolean(building);
    for (const runner of runners) runner.pause();
  }

  /** All networks have come to rest: draw everything, and say what happened. */
  async function rest() {
    const mine = session;
    await new Promise((resolve) => {
      ends.push(resolve);
      drawByAndBy(() => true);
    });
    if (mine !== session || mine.working || removed) return;
    tell();
    root.dataset.rests = Number(root.dataset.rests ?? 0) + 1; // tests wait for it
    const stopped = runners.flatMap(({ stopped: end, problem }, i) =>
      end || problem ? [`${looks[i].letter} stopped: ${end?.reason ?? problem}`] : [],
    );
    if (stopped.length) notify(stopped.length < runners.length ? [...stopped, "The others go on."] : stopped);
  }

  function reset() {
    session = { working: 0 };
    for (const runner of runners) runner.end();
    runners = [];
    building = null;
    wantsPause = false;
    target = 0;
    inside.forget();
    notify([]);
    showSettings();
    tell();
    draw();
  }

  // --- settings -------------------------------------------------------------------------------------------

  function change(patch) {
    const keys = Object.keys(patch);
    const harmless = keys.every((key) => HARMLESS.has(key));
    const wanted =
      patch.preset && patch.preset !== "own"
        ? { ...preset(patch.preset), speed: state.speed }
        : { ...state, ...patch, preset: harmless ? state.preset : "own" };
    adopt(wanted, harmless ? keys : null);
    save();
    if (patch.preset) openViews();
  }

  /** Take a state, corrected; `kept`: the settings that changed, if the networks can stay. */
  function adopt(wanted, kept = null) {
    const cleaned = clean(wanted);
    state = cleaned.state;
    if (!available().includes(state.data)) {
      cleaned.notices.push("These images did not come with this page, so it is the digits here.");
      state = { ...state, data: "digits" };
    }
    // As soon as they are chosen, so that Run need not wait; if it fails, Run tries again and says so.
    if (brought()) load(state.data).catch(() => {});
    if (kept) {
      if (target && kept.includes("steps")) target = Math.max(state.steps, time());
      showSettings();
      showProgress();
      goOn();
    } else {
      reset();
    }
    notify(cleaned.notices);
  }

  /** A run under way takes up the settings of now. */
  async function goOn() {
    const mine = session;
    if (!runners.some((runner) => runner.running)) return;
    await Promise.all(runners.map((runner) => runner.pause()));
    if (mine === session && !removed && time() < target) run();
  }

  function save() {
    saved = JSON.stringify(state);
    model.set("state", structuredClone(state));
    model.save_changes();
    if (linked) {
      try {
        window.history.replaceState(null, "", toFragment(state));
      } catch {
        // Where a page may not change its address, the button still gives the link.
      }
    }
  }

  async function copyLink() {
    const link = window.location.href.split("#")[0] + toFragment(state);
    try {
      await navigator.clipboard.writeText(link);
      notify(["The link to these settings is copied."]);
    } catch {
      notify([`The link to these settings: ${link}`]);
    }
  }

  function saveCsv() {
    const address = URL.createObjectURL(new Blob([csv(state, looks, runners)], { type: "text/csv" }));
    h("a", { href: address, download: `lab-seed-${state.seed}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  // --- life -----------------------------------------------------------------------------------------------

  let saved = JSON.stringify(model.get("state"));
  const fromModel = () => {
    const given = JSON.stringify(model.get("state"));
    if (given === saved) return;
    saved = given;
    adopt(model.get("state"));
  };
  const fromAddress = () => {
    const found = fromFragment(window.location.hash);
    if (!found) return;
    adopt(found.state);
    save();
    notify(found.notices);
    openViews();
  };
  model.on("change:state", fromModel);
  window.addEventListener("scroll", changed, { capture: true, passive: true }); // more may be in sight
  if (linked) window.addEventListener("hashchange", fromAddress);

  el.replaceChildren(root);
  const first = notices;
  adopt(state);
  notify([...notice.querySelectorAll("p")].map((p) => p.textContent).concat(first));
  openViews();

  return () => {
    removed = true;
    session = { working: 0 };
    clearTimeout(waiting);
    model.off("change:state", fromModel);
    window.removeEventListener("hashchange", fromAddress);
    window.removeEventListener("scroll", changed, { capture: true });
    for (const runner of runners) runner.end();
    endEngine();
    el.replaceChildren();
  };
}

export default { render };
