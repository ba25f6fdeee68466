// Draws the page's figures when the reader comes near them; Vega itself is loaded with the first.
//
// The figures of the text are specifications in the page; those with sliders call `window.vegaEmbed`. Both are
// drawn as SVG, whose `currentColor` follows the page's theme, without the actions menu. Vega hands over its
// expressions as trees (`ast`): the page's policy lets no text become code.
"use strict";

window.bookCharts = (() => {
  const AHEAD = "100% 0px"; // a window's height before a figure is in sight
  const address = new URL("vendor/vega.js", document.currentScript.src);
  const root = document.documentElement;

  let loaded = null;
  function vega() {
    loaded ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = address;
      script.onload = () => resolve(window.bundledVegaEmbed);
      script.onerror = () => reject(new Error("the book's copy of Vega is missing"));
      document.head.append(script);
    });
    return loaded;
  }

  // How many figures near the reader are not drawn yet: the tests wait for `data-charts="ready"`.
  let undrawn = 0;
  function count(change) {
    undrawn += change;
    root.dataset.charts = undrawn === 0 ? "ready" : "drawing";
  }

  // --- near ------------------------------------------------------------------------------------------------

  const waiting = new Map(); // figure -> {come, far}
  const observer = window.IntersectionObserver && new IntersectionObserver(look, { rootMargin: AHEAD });

  function look(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) admit(target);
      else if (waiting.has(target) && !waiting.get(target).far) {
        waiting.get(target).far = true;
        count(-1);
      }
    }
  }

  function admit(host) {
    const entry = waiting.get(host);
    if (!entry) return;
    waiting.delete(host);
    observer.unobserve(host);
    if (entry.far) count(+1);
    entry.come();
  }

  function near(host) {
    if (!observer) return;
    return new Promise((come) => {
      waiting.get(host)?.come(); // a new specification for the same place
      waiting.set(host, { come, far: false });
      observer.observe(host);
    });
  }

  // For paper, where nobody scrolls.
  async function drawAll() {
    for (const host of [...waiting.keys()]) admit(host);
    while (undrawn) await new Promise((resolve) => setTimeout(resolve, 20));
  }
  window.addEventListener("beforeprint", drawAll);

  // --- room ------------------------------------------------------------------------------------------------

  const ROOM = { around: 90, title: 25, between: 20, header: 50, usual: 260 }; // around: axis and legend
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

  // About how many pixels high a figure will be, so that the text below it stays where it is.
  function height(spec, datasets = spec.datasets) {
    const title = spec.title ? ROOM.title : 0;
    const parts = spec.vconcat ?? spec.hconcat ?? spec.concat;
    if (parts) {
      const heights = parts.map((part) => height(part, datasets));
      const columns = spec.vconcat ? 1 : (spec.columns ?? parts.length);
      const rows = [];
      for (let i = 0; i < heights.length; i += columns) rows.push(Math.max(...heights.slice(i, i + columns)));
      return title + sum(rows) + ROOM.between * (rows.length - 1);
    }
    if (spec.facet && spec.spec) {
      const { field } = spec.facet.row ?? spec.facet;
      const table = spec.data?.values ?? datasets?.[spec.data?.name] ?? [];
      const panels = new Set(table.map((row) => row[field])).size || 1;
      const rows = spec.facet.row ? panels : Math.ceil(panels / (spec.columns ?? panels));
      return title + rows * (height(spec.spec, datasets) - ROOM.around + ROOM.header) + ROOM.around;
    }
    return title + (typeof spec.height === "number" ? spec.height : ROOM.usual) + ROOM.around;
  }

  // --- drawing ---------------------------------------------------------------------------------------------

  // A chart as wide as its container cannot know its width while a closed solution or another tab hides it.
  // Vega measures again on the window's resize event.
  function measureAgainWhenShown(host) {
    let width = host.clientWidth;
    new ResizeObserver(() => {
      const hidden = width === 0;
      width = host.clientWidth;
      if (hidden && width > 0) window.dispatchEvent(new Event("resize"));
    }).observe(host);
  }

  async function embed(element, spec, options = {}) {
    const host = typeof element === "string" ? document.querySelector(element) : element;
    count(+1);
    try {
      host.style.minHeight = `${height(spec)}px`;
      await near(host);
      const vegaEmbed = await vega();
      const fixed = { renderer: "svg", actions: false, ast: true, expr: window.bookExpressions };
      const result = await vegaEmbed(host, spec, { ...options, ...fixed });
      measureAgainWhenShown(host);
      return result;
    } finally {
      host.style.minHeight = "";
      count(-1);
    }
  }
  window.vegaEmbed = embed;

  for (const script of document.querySelectorAll('script[type="application/vnd.vega-lite+json"]')) {
    const host = script.parentElement;
    const spec = JSON.parse(script.textContent);
    embed(host, spec, { mode: "vega-lite" }).catch((error) => {
      console.error(error);
      host.textContent = `This figure could not be drawn: ${error.message}. It shows: ${spec.description}`;
    });
  }
  root.dataset.charts ??= "ready";

  return { drawAll, waiting: () => waiting.size };
})();
