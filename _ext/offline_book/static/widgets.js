// Boxes, anywidget modules, and putting every widget of the page in its place.
"use strict";

(() => {
  const { find, load, modules, views } = window.bookWidgets;
  const STATE = 'script[type="application/vnd.jupyter.widget-state+json"]';
  const VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]';
  const exported = new Map();
  const initialised = new Map();

  // anywidget modules render into an element that is already on the page, so that a chart can measure it.
  let waiting = [];

  function message(text) {
    const paragraph = document.createElement("p");
    paragraph.className = "book-message";
    paragraph.setAttribute("role", "alert");
    paragraph.textContent = text;
    return paragraph;
  }

  function applyLayout(model, target) {
    const layout = find(model.get("layout"));
    for (const name of ["width", "max_width", "min_width", "flex", "margin", "display", "visibility"]) {
      const value = layout?.get(name);
      if (value != null) target.style.setProperty(name.replace("_", "-"), value);
    }
    target.classList.add(...(model.get("_dom_classes") ?? []));
  }

  function view(reference) {
    const model = find(reference);
    const make = views[model?.name];
    if (!make) {
      const kind = model?.name?.replace(/Model$/, "") ?? "missing";
      return message(`This part (${kind}) needs a running notebook: open the chapter on Binder or Colab.`);
    }
    const made = make(model);
    applyLayout(model, made);
    return made;
  }

  function box(model, className) {
    const made = document.createElement("div");
    made.className = `book-box ${className}`;
    made.append(...model.get("children").map(view));
    return made;
  }
  views.VBoxModel = (model) => box(model, "book-column");
  views.HBoxModel = (model) => box(model, "book-line");
  views.BoxModel = (model) => box(model, "book-line");

  // The build has put a module's name in the place of its source, and the module into a script of this name.
  function importModule(name) {
    if (!exported.has(name)) exported.set(name, modules.get(name)());
    return exported.get(name);
  }

  async function start(model, host) {
    const found = importModule(model.get("_esm"));
    const widget = typeof found === "function" ? await found() : found;
    if (!initialised.has(model)) initialised.set(model, widget.initialize?.({ model }));
    await initialised.get(model);
    await widget.render?.({ model, el: host });
  }

  views.AnyModel = (model) => {
    const host = document.createElement("div");
    host.className = "book-anywidget";
    if (model.get("_css")) {
      const style = document.createElement("style");
      style.textContent = model.get("_css");
      document.head.append(style);
    }
    waiting.push(() =>
      start(model, host).catch((error) => {
        console.error(error);
        host.replaceChildren(message(`This interactive figure could not start: ${error.message}`));
      }),
    );
    return host;
  };

  function mountAll() {
    for (const script of document.querySelectorAll(STATE)) load(JSON.parse(script.textContent).state);
    for (const script of document.querySelectorAll(VIEW)) {
      const host = document.createElement("div");
      host.className = "book-widget";
      host.append(view(JSON.parse(script.textContent).model_id));
      script.after(host);
    }
    const starts = waiting;
    waiting = [];
    // Not awaited: a figure far below is drawn when the reader comes near it.
    for (const begin of starts) begin();
    document.documentElement.dataset.widgets = "ready";
  }

  mountAll();
})();
