// What the theme's buttons do; its inline handlers would need a weaker policy. Printing waits for all figures.
"use strict";

(() => {
  const unfinished = () => window.bookCharts?.waiting() ?? 0;

  async function print() {
    await window.bookCharts?.drawAll();
    window.print();
  }

  const actions = { print, "full-screen": () => window.toggleFullScreen() };

  document.addEventListener("click", (event) => {
    const name = event.target.closest("[data-book-action]")?.dataset.bookAction;
    if (name) actions[name]();
  });

  window.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key !== "p" || !unfinished()) return;
    event.preventDefault();
    print();
  });
})();
