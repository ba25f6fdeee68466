// The controls: native inputs, so that keyboard, touch and screen readers work as everywhere else.
//
// A view takes a model and returns an element. Every control has a label, shows its value, and names it in
// `aria-valuetext` where the number alone would mislead.
"use strict";

(() => {
  const { views } = window.bookWidgets;
  let controlCount = 0;

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function typesetMath(target) {
    if (!/\\\(|\\\[|\$/.test(target.textContent)) return;
    target.classList.add("mathjax_process");
    window.bookMaths?.typeset([target]);
  }

  // ipywidgets' `readout_format` is a d3 format; these are the forms in use: "d", ".2f", ".3g", ".1e", ".0%".
  function formatNumber(value, format = "") {
    const [, digits, kind] = /(?:\.(\d+))?([dfgeE%]?)$/.exec(format);
    if (kind === "d") return String(Math.round(value));
    if (kind === "f") return value.toFixed(digits ?? 6);
    if (kind === "%") return `${(100 * value).toFixed(digits ?? 6)}%`;
    if (kind === "e" || kind === "E") return value.toExponential(digits ?? 6);
    if (kind === "g") return String(Number(value.toPrecision(digits || 6)));
    return String(value);
  }

  // A row: label, control, value. Follows the model's description and disabled state.
  function row(model, control, ...extra) {
    control.id ||= `book-control-${(controlCount += 1)}`;
    const label = element("label", { htmlFor: control.id, className: "book-label" });
    const follow = () => {
      label.textContent = model.get("description") ?? "";
      label.hidden = label.textContent === "";
      if (label.hidden) control.setAttribute("aria-label", model.get("tooltip") || "Value");
      control.disabled = Boolean(model.get("disabled"));
      typesetMath(label);
    };
    model.on("change:description change:disabled", follow);
    follow();
    return element("div", { className: "book-row" }, label, control, ...extra);
  }

  // All sliders are one range input; they differ in how its position and the model's value belong together.
  function slider(model, { key = "value", range, toPosition = (v) => v, toValue = (p) => p, text }) {
    const input = element("input", { type: "range" });
    const readout = element("span", { className: "book-readout", hidden: model.get("readout") === false });
    // The input announces its value itself; reading the text beside it as well would say it twice.
    readout.setAttribute("aria-hidden", "true");
    const show = () => {
      const { min, max, step } = range();
      Object.assign(input, { min, max, step });
      input.value = toPosition(model.get(key));
      readout.textContent = text(model.get(key));
      input.setAttribute("aria-valuetext", readout.textContent);
      if (key === "value") input.dataset.value = model.get(key); // exact, where the text is rounded
    };
    const event = model.get("continuous_update") === false ? "change" : "input";
    input.addEventListener(event, () => model.set(key, toValue(input.valueAsNumber)));
    model.on(`change:${key} change:min change:max change:step change:_options_labels`, show);
    show();
    return row(model, input, readout);
  }

  const limits = (model) => () => ({
    min: model.get("min"),
    max: model.get("max"),
    step: model.get("step") || "any",
  });
  const readoutText = (model, fallback) => (value) =>
    formatNumber(value, model.get("readout_format") ?? fallback);

  views.IntSliderModel = (model) => slider(model, { range: limits(model), text: readoutText(model, "d") });

  views.FloatSliderModel = (model) => slider(model, { range: limits(model), text: readoutText(model, ".2f") });

  // `min`, `max` and `step` of a log slider are exponents.
  views.FloatLogSliderModel = (model) => {
    const base = model.get("base") ?? 10;
    return slider(model, {
      range: limits(model),
      toPosition: (value) => Math.log(value) / Math.log(base),
      toValue: (exponent) => base ** exponent,
      text: readoutText(model, ".3g"),
    });
  };

  views.SelectionSliderModel = (model) =>
    slider(model, {
      key: "index",
      range: () => ({ min: 0, max: model.get("_options_labels").length - 1, step: 1 }),
      text: (index) => model.get("_options_labels")[index],
    });

  function numberInput(model) {
    const input = element("input", { type: "number" });
    const show = () => {
      input.min = model.get("min") ?? "";
      input.max = model.get("max") ?? "";
      input.step = model.get("step") ?? "any";
      input.value = model.get("value");
    };
    input.addEventListener("change", () => {
      if (input.checkValidity() && !Number.isNaN(input.valueAsNumber)) model.set("value", input.valueAsNumber);
      else show();
    });
    model.on("change:value change:min change:max", show);
    show();
    return row(model, input);
  }
  for (const kind of ["IntText", "FloatText", "BoundedIntText", "BoundedFloatText"]) {
    views[`${kind}Model`] = numberInput;
  }

  function dropdown(model) {
    const select = element("select");
    const fill = () => {
      const labels = model.get("_options_labels");
      select.replaceChildren(...labels.map((text, value) => element("option", { value, textContent: text })));
      show();
    };
    const show = () => (select.selectedIndex = model.get("index") ?? -1);
    select.addEventListener("change", () => model.set("index", select.selectedIndex));
    model.on("change:index", show);
    model.on("change:_options_labels", fill);
    fill();
    return row(model, select);
  }
  views.DropdownModel = dropdown;
  views.SelectModel = dropdown;

  // Toggle buttons are radio buttons in other clothes: the arrow keys come for free.
  function choice(model, className) {
    const legend = element("span", { className: "book-label", id: `book-control-${(controlCount += 1)}` });
    const options = element("div", { className });
    options.setAttribute("role", "radiogroup");
    options.setAttribute("aria-labelledby", legend.id);
    const fill = () => {
      legend.textContent = model.get("description") || "Choose";
      const radios = model.get("_options_labels").map((text, index) => {
        const input = element("input", { type: "radio", name: legend.id, value: index });
        input.disabled = Boolean(model.get("disabled"));
        input.addEventListener("change", () => model.set("index", index));
        return element("label", {}, input, element("span", { textContent: text }));
      });
      options.replaceChildren(...radios);
      typesetMath(legend);
      show();
    };
    const show = () => {
      const inputs = options.querySelectorAll("input");
      inputs.forEach((input, index) => (input.checked = index === model.get("index")));
    };
    model.on("change:index", show);
    model.on("change:_options_labels change:description change:disabled", fill);
    fill();
    return element("div", { className: "book-row" }, legend, options);
  }
  views.ToggleButtonsModel = (model) => choice(model, "book-pills");
  views.RadioButtonsModel = (model) => choice(model, "book-radios");

  views.CheckboxModel = (model) => {
    const input = element("input", { type: "checkbox" });
    const show = () => (input.checked = Boolean(model.get("value")));
    input.addEventListener("change", () => model.set("value", input.checked));
    model.on("change:value", show);
    show();
    const made = row(model, input);
    made.classList.add("book-check");
    return made;
  };

  views.ToggleButtonModel = (model) => {
    const button = element("button", { type: "button", className: "book-button" });
    const show = () => {
      button.textContent = model.get("description") || model.get("tooltip") || "Switch";
      button.disabled = Boolean(model.get("disabled"));
      button.setAttribute("aria-pressed", String(Boolean(model.get("value"))));
    };
    button.addEventListener("click", () => model.set("value", !model.get("value")));
    model.on("change:value change:description change:disabled", show);
    show();
    return element("div", { className: "book-row" }, button);
  };

  // Readers who ask their system for less motion get a button that takes one step at a time.
  views.PlayModel = (model) => {
    const stillness = window.matchMedia("(prefers-reduced-motion: reduce)");
    const button = element("button", { type: "button", className: "book-button" });
    let timer = null;

    const step = () => {
      let next = model.get("value") + (model.get("step") ?? 1);
      if (next > model.get("max")) {
        const again = stillness.matches || model.get("repeat");
        if (!again) return stop();
        next = model.get("min");
      }
      model.set("value", next);
    };
    const show = () => {
      const text = stillness.matches ? "Step" : timer === null ? "Play" : "Pause";
      const sign = { Step: "⏭", Play: "▶", Pause: "⏸" }[text];
      button.replaceChildren(element("span", { textContent: `${sign}\uFE0E`, ariaHidden: "true" }), ` ${text}`);
    };
    const stop = () => {
      clearInterval(timer);
      timer = null;
      show();
    };
    const start = () => {
      // Played to the end: begin again.
      if (model.get("value") >= model.get("max")) model.set("value", model.get("min"));
      timer = setInterval(step, model.get("interval") ?? 100);
      show();
    };
    button.addEventListener("click", () => {
      if (stillness.matches) step();
      else if (timer === null) start();
      else stop();
    });
    stillness.addEventListener("change", stop);
    document.addEventListener("visibilitychange", stop);
    show();
    return element("div", { className: "book-row" }, button);
  };

  function text(model, write) {
    const shown = element("div", { className: "book-text" });
    const show = () => {
      write(shown, model.get("value") ?? "");
      typesetMath(shown);
    };
    model.on("change:value", show);
    show();
    return shown;
  }
  views.LabelModel = (model) => text(model, (shown, value) => (shown.textContent = value));
  views.HTMLModel = (model) => text(model, (shown, value) => (shown.innerHTML = value));
  views.HTMLMathModel = views.HTMLModel;
})();
