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

  window.MathJax = {
    ...window.MathJax,
    startup: {
      typeset: false,
      ready() {
        window.MathJax.startup.defaultReady();
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
