// The lab's images, from scripts that the book brings: those can be loaded from disk too, and only when asked.
"use strict";

window.bnlibLabData = (() => {
  const folder = new URL("lab/", document.currentScript.src);
  const names = JSON.parse(document.currentScript.dataset.names);
  const waiting = new Map();
  const loading = new Map();

  function load(name) {
    if (!loading.has(name)) {
      const ready = new Promise((resolve, reject) => {
        waiting.set(name, resolve);
        const script = document.createElement("script");
        script.src = new URL(`${name}.js`, folder);
        script.onerror = () => reject(new Error(`the book's file ${name}.js is missing`));
        document.head.append(script);
      });
      ready.catch(() => loading.delete(name));
      loading.set(name, ready);
    }
    return loading.get(name);
  }

  // What such a script calls.
  const deliver = (name, content) => waiting.get(name)?.(content);

  return { names, load, deliver };
})();
