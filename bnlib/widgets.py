"""Interactive figures: ipywidgets controls linked to the named params of a Vega-Lite chart, and the lab.

    gamma = alt.param(name="gamma", value=1.0)
    explorer = Explorer(alt.Chart(...).add_params(gamma), description="...")
    controls(explorer, gamma=ipywidgets.FloatSlider(value=1.0, min=0.0, max=3.0, description="γ"))

The links run in the browser (`jslink`), so the same cell works in JupyterLab, in Colab and, without a
kernel, in the static book. `Lab` trains networks in the browser. This module never imports torch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import altair as alt
import anywidget
import ipywidgets
import traitlets

from bnlib import (
    charts,  # noqa: F401  (registers the theme)
    lab_images,
)

# These mean something else in a Vega expression.
VEGA_NAMES = {"datum", "event", "item", "parent"}


class Explorer(anywidget.AnyWidget):
    """A Vega-Lite chart whose named top-level params (`alt.param(name=..., value=...)`) are synced traits.

    `explorer.gamma = 2` moves the chart, and what changes inside the chart moves `explorer.gamma`.
    `description` is the alt text; it defaults to the chart's own `description`, and one of them is required.
    Selections and derived params (`expr`) belong to the chart alone and are not traits.
    Raises ValueError for a chart without params, without a description, or with a param whose name is taken;
    AttributeError when a name is set that is neither a param nor a trait.
    """

    _esm = Path(__file__).with_name("explorer.js")

    spec = traitlets.Dict(help="The Vega-Lite specification, data and theme included.").tag(sync=True)
    description = traitlets.Unicode(help="Alt text of the chart.").tag(sync=True)
    params = traitlets.List(traitlets.Unicode(), help="Names of the chart's params.").tag(sync=True)
    choices = traitlets.Dict(help="Param -> values of its drop-down, see `controls`.").tag(sync=True)

    def __init__(self, chart: alt.TopLevelMixin, description: str | None = None, **values: Any):
        with alt.theme.enable("bnlib"):
            spec = chart.to_dict()
        start = {p["name"]: p["value"] for p in spec.get("params", []) if "value" in p and "select" not in p}
        description = description or spec.get("description")
        if not start:
            raise ValueError("The chart has no named param with a value: add alt.param(name=..., value=...).")
        if not description:
            raise ValueError("An Explorer needs a description: say in one sentence what the chart shows.")
        for name in start:
            taken = self.has_trait(name) or hasattr(type(self), name) or name in VEGA_NAMES
            if taken or not name.isidentifier():
                raise ValueError(f"The param name {name!r} is taken by the widget or Vega: choose another.")
        for name in values:
            if name not in start:
                raise ValueError(f"Unknown param {name!r}: the chart has {', '.join(start)}.")
        self.add_traits(**{name: _trait(value).tag(sync=True) for name, value in start.items()})
        super().__init__(
            spec=spec, description=description, params=list(start), choices={}, **{**start, **values}
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name.startswith("_") or self.has_trait(name) or hasattr(type(self), name)):
            raise AttributeError(f"Unknown param {name!r}: the chart has {', '.join(self.params)}.")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"Explorer({', '.join(f'{name}={getattr(self, name)!r}' for name in self.params)})"

    def choose_from(self, param: str, values: list) -> None:
        """Let `param` take one of `values`, addressed by the new synced trait `<param>_index`.

        A drop-down syncs the index of its choice and the labels, but not the values: only a kernel knows
        them. So the values live here, and the index is what gets linked.
        """
        index = f"{param}_index"
        if self.has_trait(index):
            raise ValueError(f"The param {param!r} already has a list of choices.")
        if getattr(self, param) not in values:
            raise ValueError(f"{param} = {getattr(self, param)!r} is not among the choices {values!r}.")
        self.choices = {**self.choices, param: list(values)}
        self.add_traits(**{index: traitlets.Int().tag(sync=True)})
        setattr(self, index, values.index(getattr(self, param)))
        self.observe(lambda change: setattr(self, param, values[change["new"]]), index)
        self.observe(lambda change: self._point_at(index, values, change["new"]), param)

    def _point_at(self, index: str, values: list, value: Any) -> None:
        if value in values:
            setattr(self, index, values.index(value))


def controls(explorer: Explorer, /, **widgets: ipywidgets.Widget | tuple) -> ipywidgets.VBox:
    """The controls, linked in the browser to the params of the same names, above the chart.

    Sliders, checkboxes, toggle buttons and number fields link their `value`. Drop-downs, selection
    sliders, radio and toggle-button groups link their `index`: their options become the values of the
    param (see `choose_from`). A tuple of widgets, for instance `(Play(...), IntSlider(...))`, drives one
    param together. Raises ValueError for an unknown param, for a control without a description, or when a
    control and the chart start from different values; TypeError for a widget that has neither `value` nor
    `index`.
    """
    rows = []
    labels = [w.description for group in widgets.values() for w in _group(group) if w.description]
    label_width = f"{min(max((len(label) for label in labels), default=0) + 1, 22)}ch"
    for param, group in widgets.items():
        if param not in explorer.params:
            raise ValueError(f"Unknown param {param!r}: the chart has {', '.join(explorer.params)}.")
        if not any(w.description for w in _group(group)):
            raise ValueError(
                f"The control of {param!r} needs a description: a reader has to know what moves."
            )
        for widget in _group(group):
            _link(explorer, param, widget)
            _lay_out(widget, label_width)
        row = _group(group)
        rows.append(row[0] if len(row) == 1 else ipywidgets.HBox(row, layout=_row_layout()))
    # Side by side where there is room, one below the other on a phone.
    panel = ipywidgets.HBox(rows, layout=ipywidgets.Layout(flex_flow="row wrap", width="100%"))
    return ipywidgets.VBox([panel, explorer], layout=ipywidgets.Layout(width="100%"))


def _group(group: ipywidgets.Widget | tuple) -> tuple:
    return tuple(group) if isinstance(group, tuple | list) else (group,)


def _link(explorer: Explorer, param: str, widget: ipywidgets.Widget) -> None:
    kind = type(widget).__name__
    if not widget.has_trait("value"):
        raise TypeError(f"A {kind} cannot drive the param {param!r}: it has no value.")
    chosen = widget.has_trait("index") and widget.has_trait("options")
    if chosen and not isinstance(widget.index, int):
        raise TypeError(f"A {kind} cannot drive the param {param!r}: use a control with a single choice.")
    start = getattr(explorer, param)
    if widget.value != start and not _close(widget.value, start):
        raise ValueError(
            f"The control of {param!r} starts at {widget.value!r}, the chart at {start!r}: make them equal."
        )
    if not chosen:
        ipywidgets.jslink((widget, "value"), (explorer, param))
        return
    if not explorer.has_trait(f"{param}_index"):
        explorer.choose_from(param, [value for _, value in _options(widget)])
    ipywidgets.jslink((widget, "index"), (explorer, f"{param}_index"))


def _options(widget: ipywidgets.Widget) -> list[tuple[str, Any]]:
    return list(zip(widget._options_labels, widget._options_values, strict=True))


def _close(a: Any, b: Any) -> bool:
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return numbers and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def _row_layout() -> ipywidgets.Layout:
    return ipywidgets.Layout(flex="1 1 300px", flex_flow="row wrap", max_width="100%")


def _lay_out(widget: ipywidgets.Widget, label_width: str) -> None:
    if isinstance(widget, ipywidgets.Play):
        return
    widget.layout.flex = "1 1 300px"
    widget.layout.width = "auto"
    widget.layout.max_width = "100%"
    if widget.has_trait("style") and widget.style.has_trait("description_width"):
        widget.style.description_width = label_width


def _trait(value: Any) -> traitlets.TraitType:
    """The trait of a param, so that Python refuses what the chart cannot use."""
    if isinstance(value, bool):
        return traitlets.Bool()
    if isinstance(value, int | float):
        return traitlets.Float()
    return traitlets.Unicode() if isinstance(value, str) else traitlets.Any()


# The experiments that the lab knows and what can be set; lab/src/ui/state.js says what they mean.
PRESETS = ("rates", "noise", "smoothness", "high_rate", "depth")
SETTINGS = ("data", "networks", "channels", "batch", "gain", "noise", "seed", "steps", "every", "speed")
NETWORK = ("norm", "where", "lr", "depth")


class Lab(anywidget.AnyWidget):
    """Up to four small convolutional networks, side by side, that train in the reader's browser.

        Lab("smoothness")
        Lab("rates", seed=3, networks=[{"norm": "batch", "lr": 0.5}, {"norm": "none", "lr": 0.5}])

    `preset` names an experiment; settings replace what it says. Networks of one lab share seed, batches and,
    where their shapes agree, initial weights. `state` is a plain dict, synced both ways: what the reader
    changes arrives here, and assigning it resets the lab. Numbers out of range are clamped in the browser,
    with a notice. No kernel is needed, except that in JupyterLab and Colab it sends the images once.
    Raises ValueError for an unknown preset or setting.
    """

    _esm = Path(__file__).parent / "lab" / "lab.js"

    state = traitlets.Dict(help="Preset and settings, see lab/src/ui/state.js.").tag(sync=True)
    link = traitlets.Bool(False, help="Whether the page's address holds the state.").tag(sync=True)

    def __init__(self, preset: str = "rates", *, link: bool = False, **settings: Any):
        if preset not in PRESETS:
            raise ValueError(f"Unknown preset {preset!r}: choose one of {', '.join(PRESETS)}.")
        for name in settings:
            if name not in SETTINGS:
                raise ValueError(f"Unknown setting {name!r}: choose from {', '.join(SETTINGS)}.")
        for network in settings.get("networks", []):
            if unknown := set(network) - set(NETWORK):
                raise ValueError(f"A network has no {unknown.pop()!r}: choose from {', '.join(NETWORK)}.")
        super().__init__(state={"preset": preset, **settings}, link=link)
        self.on_msg(self._send_images)

    def __repr__(self) -> str:
        return f"Lab({', '.join(f'{name}={value!r}' for name, value in self.state.items())})"

    def _send_images(self, _: Any, content: Any, buffers: Any) -> None:
        """Answer the page, which asks for images once: so no notebook has to hold them."""
        if not isinstance(content, dict) or content.get("type") != "data":
            return
        name = content.get("name")
        try:
            about, packet = lab_images.pack(name)
        except Exception as error:  # the page has to hear of every problem, or it would wait
            self.send({"type": "data", "name": name, "problem": str(error).removesuffix(".")})
        else:
            self.send({"type": "data", "name": name, "about": about}, [packet])
