// Vega for the page: loaded from the book itself, once, without holding up the page.
//
// Altair's HTML output and the Explorer widget both call `window.vegaEmbed`. The function here waits for the
// bundle and insists on SVG (whose `currentColor` follows the page's theme) without the actions menu.
"use strict";

(() => {
  const bundleAddress = new URL("vendor/vega.js", document.currentScript.src);
  const root = document.documentElement;

  const bundle = new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = bundleAddress;
    script.onload = () => resolve(window.bundledVegaEmbed);
    script.onerror = () => reject(new Error("the book's copy of Vega is missing"));
    document.head.append(script);
  });

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

  // How many charts are still being drawn: the tests wait for `data-charts="ready"`.
  let drawing = 0;
  function count(change) {
    drawing += change;
    root.dataset.charts = drawing === 0 ? "ready" : "drawing";
  }

  window.vegaEmbed = async (element, spec, options = {}) => {
    count(+1);
    try {
      const vegaEmbed = await bundle;
      const host = typeof element === "string" ? document.querySelector(element) : element;
      const result = await vegaEmbed(host, spec, { ...options, renderer: "svg", actions: false });
      measureAgainWhenShown(host);
      return result;
    } finally {
      count(-1);
    }
  };
})();
