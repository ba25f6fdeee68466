// Typesets the page in pieces, what is in sight first, so that it answers all the while.
"use strict";

window.bookMaths = (() => {
  const SLICE = 10; // milliseconds of typesetting between two breaths
  const PIECE = 4; // expressions; each piece measures its surroundings, which costs as much as one of them
  const root = document.documentElement;
  const queue = [];
  let working = false;
  let begin;
  const started = new Promise((resolve) => (begin = resolve));

  // What MathJax's menu offers without loading anything: its own speech, which a screen reader does better out
  // of the hidden MathML, its other output and its languages are not among the book's files.
  const STORED = "MathJax-Menu-Settings";
  const ABSENT = ["Renderer", "Language"];
  const HERE = { Accessibility: ["InTabOrder", "AssistiveMml"] }; // of this submenu, only these
  const LOADING = ["renderer", "explorer", "collapsible", "autocollapse"]; // settings that load a file

  // A reader may have chosen them in an earlier edition.
  function forgetWhatIsAbsent() {
    try {
      const stored = JSON.parse(localStorage.getItem(STORED));
      if (!stored) return;
      for (const name of LOADING) delete stored[name];
      localStorage.setItem(STORED, JSON.stringify(stored));
    } catch {
      // Without storage there is nothing to forget.
    }
  }

  function offerWhatIsHere(menu, only) {
    const offered = menu.items.filter(({ id }) => !ABSENT.includes(id) && (!only || only.includes(id)));
    const rule = (item) => item !== undefined && !item.id;
    menu.items = offered.filter((item, i) => !rule(item) || (i > 0 && !rule(offered[i - 1])));
    for (const { id, submenu } of menu.items) if (submenu) offerWhatIsHere(submenu, HERE[id]);
  }

  window.MathJax = {
    ...window.MathJax,
    startup: {
      typeset: false,
      ready() {
        forgetWhatIsAbsent();
        window.MathJax.startup.defaultReady();
        const { menu } = window.MathJax.startup.document;
        menu.enableExplorerItems = () => {}; // there are none; "Reset to defaults" asks for it
        offerWhatIsHere(menu.menu);
        window.MathJax.startup.promise.then(begin);
      },
    },
  };

  const breath = () => new Promise((resolve) => setTimeout(resolve));

  async function work() {
    await started;
    while (queue.length) {
      const end = performance.now() + SLICE;
      do await window.MathJax.typesetPromise(queue.splice(0, PIECE));
      while (queue.length && performance.now() < end);
      await breath();
    }
    working = false;
    root.dataset.maths = "ready";
  }

  function typeset(elements) {
    queue.push(...elements);
    if (working) return;
    working = true;
    root.dataset.maths = "working";
    work();
  }

  // Below the window in the order of reading, above it last.
  function distance(element) {
    const { top, bottom } = element.getBoundingClientRect();
    if (bottom < 0) return window.innerHeight - bottom + root.scrollHeight;
    return Math.max(0, top - window.innerHeight);
  }

  started.then(() => {
    const far = new Map([...document.querySelectorAll(".math")].map((each) => [each, distance(each)]));
    queue.push(...[...far.keys()].sort((a, b) => far.get(a) - far.get(b)));
  });
  typeset([]);

  return { typeset };
})();
