// Widget models without a kernel: the state that the notebook saved, and the links between models.
//
// The three files model.js, controls.js and widgets.js share one object. They are classic scripts because
// browsers do not load modules from file://, and readers open the book from disk too.
"use strict";

window.bookWidgets = (() => {
  const REFERENCE = "IPY_MODEL_";
  const models = new Map();

  // Binary values are saved apart from the state, as base64, each with the path where it belongs.
  function restoreBuffers(entry) {
    const state = structuredClone(entry.state);
    for (const { path, data } of entry.buffers ?? []) {
      const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
      const parent = path.slice(0, -1).reduce((value, key) => value[key], state);
      parent[path.at(-1)] = new DataView(bytes.buffer);
    }
    return state;
  }

  // The part of the Jupyter widget model that controls and anywidget modules use.
  class Model {
    #state;
    #listeners = new Map();

    constructor(id, entry) {
      this.id = id;
      this.name = entry.model_name;
      this.#state = restoreBuffers(entry);
      this.widget_manager = { get_model: async (reference) => find(reference) };
    }

    get(key) {
      return this.#state[key];
    }

    set(key, value) {
      if (typeof key === "object") {
        for (const [name, each] of Object.entries(key)) this.set(name, each);
        return;
      }
      if (Object.is(this.#state[key], value)) return;
      this.#state[key] = value;
      this.#emit(`change:${key}`, this, value);
      this.#emit("change", this);
    }

    // Without a kernel there is nobody to save to or to send to.
    save_changes() {}
    send() {}

    on(events, listener) {
      for (const event of events.split(/\s+/)) {
        if (!this.#listeners.has(event)) this.#listeners.set(event, new Set());
        this.#listeners.get(event).add(listener);
      }
    }

    off(events, listener) {
      const named = events ? events.split(/\s+/) : [...this.#listeners.keys()];
      for (const event of named) {
        if (listener) this.#listeners.get(event)?.delete(listener);
        else this.#listeners.delete(event);
      }
    }

    #emit(event, ...details) {
      // A copy: a listener may add or remove listeners.
      for (const listener of [...(this.#listeners.get(event) ?? [])]) listener(...details);
    }
  }

  function find(reference) {
    return models.get(reference?.replace(REFERENCE, ""));
  }

  // jslink (both ways) and jsdlink (one way).
  function connect(link) {
    const [sourceReference, sourceKey] = link.get("source");
    const [targetReference, targetKey] = link.get("target");
    const source = find(sourceReference);
    const target = find(targetReference);
    if (!source || !target) return;
    const forward = () => target.set(targetKey, source.get(sourceKey));
    source.on(`change:${sourceKey}`, forward);
    if (link.name === "LinkModel") {
      target.on(`change:${targetKey}`, () => source.set(sourceKey, target.get(targetKey)));
    }
    forward();
  }

  function load(savedState) {
    for (const [id, entry] of Object.entries(savedState)) models.set(id, new Model(id, entry));
    for (const model of models.values()) {
      if (["LinkModel", "DirectionalLinkModel"].includes(model.name)) connect(model);
    }
  }

  // `modules`: the name of an anywidget's module -> a function that returns what it exports.
  return { find, load, views: {}, modules: new Map() };
})();
