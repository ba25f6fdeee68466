// Shows a Vega-Lite chart and keeps its named params equal to the widget's traits.
// In the static book an import map sends the one address below to a local copy of Vega.

const loadVega = async () => {
  const module = await import("https://esm.sh/vega-embed@7.0.2?deps=vega@6.2.0,vega-lite@6.4.1");
  return module.default;
};

const same = (a, b) => a === b || JSON.stringify(a) === JSON.stringify(b);

function explainFailure(el, model, error) {
  const text = document.createElement("p");
  text.setAttribute("role", "alert");
  text.textContent =
    `This figure could not be drawn (${error.message}). It needs Vega from the network the first time: ` +
    `connect and run the cell again. What it shows: ${model.get("description")}`;
  el.replaceChildren(text);
  el.dataset.ready = "error";
}

// The spec as it should start: the chart's params already have the values of the sliders.
function currentSpec(model) {
  const spec = structuredClone(model.get("spec"));
  spec.description = model.get("description");
  for (const param of spec.params ?? []) {
    if (model.get("params").includes(param.name)) param.value = model.get(param.name);
  }
  return spec;
}

async function render({ model, el }) {
  let vegaEmbed;
  try {
    vegaEmbed = await loadVega();
  } catch (error) {
    explainFailure(el, model, error);
    return () => el.replaceChildren();
  }

  const names = model.get("params");
  const host = document.createElement("div");
  host.style.width = "100%";
  el.replaceChildren(host);

  let embedded = null; // what vega-embed returned
  let drawing = Promise.resolve();
  let removed = false;

  // Trait -> signal. A dragged slider fires faster than a chart can be drawn: one update per frame is enough.
  const waiting = new Set();
  const sent = new Map();
  let frame = 0;
  const flush = () => {
    frame = 0;
    if (!embedded) return;
    for (const name of waiting) {
      sent.set(name, model.get(name));
      embedded.view.signal(name, model.get(name));
    }
    waiting.clear();
    embedded.view.runAsync();
  };
  const send = (name) => {
    waiting.add(name);
    frame ||= requestAnimationFrame(flush);
  };

  // Signal -> trait: a click or drag inside the chart, or an input that Vega itself shows.
  const receive = (name, value) => {
    if (waiting.has(name) || same(value, sent.get(name)) || same(value, model.get(name))) return;
    sent.set(name, value);
    model.set(name, value);
    model.save_changes();
  };

  // A drop-down in a page without a kernel has an index, not a value; `choices` says what each index means.
  const choose = (name) => {
    const value = model.get("choices")[name]?.[model.get(`${name}_index`)];
    if (value === undefined || same(value, model.get(name))) return;
    model.set(name, value);
    model.save_changes();
  };
  const pointAt = (name) => {
    const index = (model.get("choices")[name] ?? []).findIndex((choice) => same(choice, model.get(name)));
    if (index < 0 || index === model.get(`${name}_index`)) return;
    model.set(`${name}_index`, index);
    model.save_changes();
  };

  const draw = async () => {
    embedded?.finalize();
    embedded = null;
    delete el.vegaView;
    try {
      const result = await vegaEmbed(host, currentSpec(model), { mode: "vega-lite", renderer: "svg", actions: false });
      if (removed) return result.finalize();
      embedded = result;
      for (const name of names) {
        sent.set(name, result.view.signal(name));
        result.view.addSignalListener(name, receive);
        if (!same(sent.get(name), model.get(name))) send(name); // moved while the chart was being built
      }
      el.vegaView = result.view; // tests read the numbers behind the picture here
      el.dataset.ready = "true";
    } catch (error) {
      explainFailure(el, model, error);
    }
  };
  const redraw = () => (drawing = drawing.then(draw));
  const describe = () => embedded?.view.description(model.get("description"));

  const listeners = [
    ["change:spec", redraw],
    ["change:description", describe],
  ];
  for (const name of names) {
    listeners.push([`change:${name}`, () => (pointAt(name), send(name))]);
    listeners.push([`change:${name}_index`, () => choose(name)]);
  }
  for (const [event, listener] of listeners) model.on(event, listener);

  // JupyterLab may render into a container that has no width yet; Vega only listens to the window.
  let width = el.clientWidth;
  const observer = new ResizeObserver(() => {
    if (el.clientWidth === width) return;
    width = el.clientWidth;
    window.dispatchEvent(new Event("resize"));
  });

  await redraw();
  observer.observe(el);

  return () => {
    removed = true;
    observer.disconnect();
    cancelAnimationFrame(frame);
    for (const [event, listener] of listeners) model.off(event, listener);
    embedded?.finalize();
    delete el.vegaView;
    delete el.dataset.ready;
    el.replaceChildren();
  };
}

export default { render };
