"""The figures of chapter 9: the terms of the theorems about one BN layer, in networks that train.

Functions that end in `_chart` return a chart; `terms` and `ray` return finished widgets. A series of numbers
travels as one string (see `charts.packed`), and what a reader asks for is computed in the page, with or
without a kernel. No torch here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import altair as alt
import ipywidgets
import pandas as pd

from bnlib import charts, widgets
from bnlib.charts import Arm
from bnlib.explorables.gradients import layer_words
from bnlib.records import Record

GREY = "#7d838c"
BLUE, ORANGE = charts.ARMS["bn"].colour, charts.ARMS["standard"].colour
#: what Theorem 4.1 subtracts, in the order of its formula
REMOVED = {
    "mean": Arm("mean term", ORANGE, (7, 3)),
    "scale": Arm("scale term", BLUE, (1, 0)),
}
#: a network with the layer beside one without it
PAIRS = {
    "same": Arm("same weights", ORANGE, (7, 3)),
    "matched": Arm("same function", BLUE, (1, 0)),
    "weights": Arm("filters' weights", "#00a596", (2, 2)),
}
#: the same pairs, counted: where the theorem's bound is violated, and where the gradient is larger
SHARES = {
    "violated": Arm("4.1 violated", "#8f76c8", (4, 2)),
    "same": Arm("same weights", ORANGE, (7, 3)),
    "matched": Arm("same function", BLUE, (1, 0)),
    "weights": Arm("filters' weights", "#00a596", (2, 2)),
}
WAYS = {
    "standard": Arm("Standard, to the end", ORANGE, (7, 3)),
    "ray": Arm("Standard, to its ray", "#b4875a", (2, 2)),
    "bn": Arm("BN, to the end", BLUE, (1, 0)),
    "bn_ray": Arm("BN, to its ray", "#6978ff", (12, 4)),
}
ALL = "all"


def layers_of(record: Record, metric: str = "thm41_lhs") -> list[str]:
    """The layers that have `metric`, from input to output."""
    return in_order(record.frame(metric=metric)["layer"].unique())


def in_order(layers: Sequence[str]) -> list[str]:
    """Layers by their number; the classifier, which has none, last."""
    return sorted(layers, key=lambda name: int(re.sub(r"\D", "", name) or 10**6))


def _short(name: str) -> str:
    """A layer where there is room for one number."""
    return re.sub(r"\D", "", name) or "last"


def _wide(record: Record, metrics: Mapping[str, str]) -> pd.DataFrame:
    """Columns of the table by metric, index (seed, layer, step)."""
    frame = record.frame()
    frame = frame[frame["metric"].isin(metrics)]
    table = frame.pivot_table(index=["seed", "layer", "step"], columns="metric", values="value")
    return table.rename(columns=dict(metrics))


# --- (a) the terms of Theorem 4.1 ---------------------------------------------------------------------


def shares(record: Record, channel: int | str = ALL) -> pd.DataFrame:
    r"""The terms of Theorem 4.1 in units of the first one, $\frac{\gamma^2}{s^2}\|g\|^2$.

    Index (seed, layer, step); `mean` and `scale`, what is subtracted; `printed`, the right side as printed;
    `gradient`, $\|g\|^2$ itself; `factor`, first term over `gradient`; `inner`, $\langle g,\hat y\rangle$ of
    the `channel`, or, for all of them together, the share of channels in which it is not negative. Where no
    gradient arrives there is no row.
    """
    end = "" if channel == ALL else f"[{channel}]"
    names = ("output", "mean", "scale", "printed", "gradient")
    metrics = {f"thm41_{name}{end}": name for name in names}
    metrics["thm41_aligned" if channel == ALL else f"thm41_inner{end}"] = "inner"
    table = _wide(record, metrics)
    table = table[(table["output"] > 0) & (table["gradient"] > 0)]
    for name in ("mean", "scale", "printed"):
        table[name] = table[name] / table["output"]
    table["factor"] = table["output"] / table["gradient"]
    return table.drop(columns="output")


FIELDS = {"mean": ".3g", "scale": ".3g", "printed": ".6g", "gradient": ".3g", "factor": ".3g", "inner": ".3g"}


def channels_of(record: Record) -> list[int]:
    """The channels whose own terms were recorded."""
    metrics = record.frame()["metric"].unique()
    found = (re.fullmatch(r"thm41_output\[(\d+)\]", metric) for metric in metrics)
    return sorted(int(match[1]) for match in found if match)


def _steps(record: Record) -> tuple[int, int]:
    """The distance of the probed steps, and the last one."""
    settings = record.runs[0]["settings"]
    return settings["probes"]["batch_norm_terms"]["every"], settings["steps"]


def term_rows(record: Record) -> list[dict]:
    """One row per layer, channel (−1: all) and seed: `shares` over the probed steps, a string per column."""
    every, steps = _steps(record)
    grid = [*range(0, steps, every), steps]
    order = layers_of(record)
    rows = []
    seeds = sorted({run["seed"] for run in record.runs})
    for channel in (ALL, *channels_of(record)):
        table = shares(record, channel)
        for seed, layer in itertools.product(seeds, order):
            places = pd.MultiIndex.from_product([[seed], [layer], grid])
            values = table.reindex(places)
            rows.append(
                {
                    "layer": order.index(layer),
                    "words": layer_words(layer),
                    "channel": -1 if channel == ALL else channel,
                    "seed": seed,
                    "every": every,
                    **{name: charts.packed(values[name], number) for name, number in FIELDS.items()},
                }
            )
    return rows


#: the bars, top to bottom, and their colours
BARS = {"(γ²/σ²)‖g‖²": GREY, "− mean": ORANGE, "− scale": ORANGE, "= left side": BLUE}


def terms_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """Theorem 4.1 as a waterfall: the first term, what is taken from it, what is left, in per cent.

    Params: `layer` (its rank), `channel` (its number, −1 for all), `step`, `seed`, and `zoom`, which cuts off
    the common part of the bars. A dashed rule is the right side as printed, where it lies in the picture.
    Below, in words: the chosen place, the factor, the terms, the sign, and whether the printed bound holds.
    """
    height = 150
    names, ok = list(BARS), "isFinite(datum.a)"
    across = alt.X(
        "low:Q",
        title="Per cent of the first term",
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(tickCount=5),
    )
    up = alt.Y("bar:N", title=None, sort=names, axis=alt.Axis(grid=False, ticks=False, domain=False))
    base = alt.Chart()
    ends = {
        names[0]: ("base", "100"),
        names[1]: ("100 - datum.a", "100"),
        names[2]: ("datum.left", "100 - datum.a"),
        names[3]: ("base", "datum.left"),
    }

    def choose(place: int) -> str:
        pairs = ((name, pair[place].replace("base", "datum.base")) for name, pair in ends.items())
        return " : ".join(f"datum.bar == '{name}' ? {value}" for name, value in pairs) + " : 0"

    bars = (
        base.transform_calculate(bars=str(names))
        .transform_flatten(["bars"], as_=["bar"])
        .transform_calculate(low=f"{ok} ? ({choose(0)}) : 0", high=f"{ok} ? ({choose(1)}) : 0")
        .mark_bar(height={"band": 0.62})
        .encode(
            x=across,
            x2="high:Q",
            y=up,
            color=alt.Color(
                "bar:N", scale=alt.Scale(domain=names, range=list(BARS.values())), legend=None, sort=names
            ),
        )
    )
    printed = (
        base.transform_calculate(seen=f"{ok} && datum.printed > datum.base ? 0.8 : 0")
        .transform_calculate(low="datum.seen ? datum.printed : datum.base")
        .mark_rule(strokeDash=[5, 4], strokeWidth=1.5)
        .encode(x=across, opacity=alt.Opacity("seen:Q", scale=None))
    )

    def line(number: int, words: str, **style: object) -> alt.Chart:
        place = {"x": alt.value(-92), "y": alt.value(height + 62 + 18 * number)}
        rows = base if number == 0 else base.transform_filter(ok)
        return (
            rows.transform_calculate(told=words)
            .mark_text(align="left", fontSize=12, **style)
            .encode(text="told:N", **place)
        )

    def number(value: str, digits: str = ".3~g") -> str:
        return f"replace(format({value}, '{digits}'), '-', '−')"

    lines = [
        "datum.words + ', step ' + step + ', seed ' + seed + ', '"
        " + (channel < 0 ? 'all channels' : 'channel ' + channel) + ':'",
        f"'‖g‖² = ' + {number('datum.g')} + ', times γ²/σ² = ' + {number('datum.f')} + ': 100 %'",
        f"'Removed: mean ' + {number('datum.a')} + ' %, scale ' + {number('datum.b')} + ' %'",
        f"'Left: ' + {number('datum.left', '.7~g')} + ' %'",
        f"channel < 0 ? '⟨g, ŷ⟩ ≥ 0 in ' + {number('100 * datum.i')} + ' % of the channels'"
        f" : '⟨g, ŷ⟩ = ' + {number('datum.i')}",
        f"'Printed bound (dashed): ' + {number('datum.printed', '.5~g')}"
        " + (datum.printed < datum.left ? ' %: violated' : ' %: holds')",
    ]
    told = [line(n, words, fontWeight="bold" if n == 0 else "normal") for n, words in enumerate(lines)]
    empty = (
        base.transform_filter(f"!{ok}")
        .transform_calculate(told="'No gradient reaches it.'")
        .mark_text(align="left", fontSize=12)
        .encode(text="told:N", x=alt.value(8), y=alt.value(height / 2))
    )
    room = line(len(lines), "' '")
    at = "[ceil(step / datum.every)])"
    chart = alt.layer(bars, printed, *told, room, empty).properties(
        data=alt.Data(values=term_rows(record)), width="container", height=height
    )
    return (
        chart.transform_filter("datum.layer == layer && datum.channel == channel && datum.seed == seed")
        .transform_calculate(
            **{
                name: f"toNumber(split(datum.{field}, ' '){at}"
                for name, field in {
                    "a": "mean",
                    "b": "scale",
                    "p": "printed",
                    "g": "gradient",
                    "f": "factor",
                    "i": "inner",
                }.items()
            }
        )
        .transform_calculate(a="100 * datum.a", b="100 * datum.b", printed="100 * datum.p")
        .transform_calculate(left="100 - datum.a - datum.b")
        .transform_calculate(base=f"zoom && {ok} ? datum.left - 0.5 * (datum.a + datum.b) : 0")
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def terms(record: Record, what: str) -> ipywidgets.VBox:
    """The chart of `terms_chart` under its controls; `what` names the network in the alt text.

    It starts at the last layer, at the first step, with all channels.
    """
    order, (every, steps) = layers_of(record), _steps(record)
    seeds = sorted({run["seed"] for run in record.runs})
    start = {"layer": len(order) - 1, "channel": -1, "step": 0, "seed": seeds[0], "zoom": False}
    table = shares(record)
    removed = 100 * (table["mean"] + table["scale"]).groupby("layer").median()
    told = ", ".join(f"{layer_words(name)} {charts.spell(removed[name])}" for name in order)
    explorer = widgets.Explorer(
        terms_chart(record, start),
        description=(
            f"Theorem 4.1 as bars in the batch norm layers of {what}: the first term is 100 per cent, two "
            "terms are subtracted, the rest is the left side; layer, channel, training step and seed can be "
            f"chosen. Per cent removed, median over steps and seeds: {told}."
        ),
    )
    channels = [("all", -1), *((str(channel), channel) for channel in channels_of(record))]
    return widgets.controls(
        explorer,
        layer=ipywidgets.SelectionSlider(
            description="layer",
            options=[(layer_words(name), n) for n, name in enumerate(order)],
            value=start["layer"],
        ),
        step=ipywidgets.IntSlider(description="step", value=0, min=0, max=steps, step=every),
        channel=ipywidgets.Dropdown(description="channel", options=channels, value=-1),
        seed=ipywidgets.Dropdown(
            description="seed", options=[(str(seed), seed) for seed in seeds], value=seeds[0]
        ),
        zoom=ipywidgets.Checkbox(description="zoom in on what is removed", value=False),
    )


# --- (b) over training, a panel per layer -------------------------------------------------------------


def removed_chart(record: Record) -> alt.FacetChart:
    """What Theorem 4.1 subtracts, each term in per cent of the first one, over training: a panel per layer.

    Every seed thin, the median thick; logarithmic. All channels together.
    """
    every, steps = _steps(record)
    grid = [*range(0, steps, every), steps]
    table, order = shares(record), layers_of(record)
    rows = []
    for (seed, layer), part in table.groupby(["seed", "layer"]):
        values = 100 * part.droplevel(["seed", "layer"]).reindex(grid)
        for name, arm in REMOVED.items():
            rows.append(
                {
                    "panel": layer_words(layer),
                    "arm": arm.label,
                    "seed": seed,
                    "values": charts.packed(values[name], ".3g"),
                }
            )
    scales = charts.arm_scales([arm.label for arm in REMOVED.values()], REMOVED, alt.Legend())
    across = alt.X("x:Q", title="Step", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=3))
    powers = [10.0**k for k in range(-6, 3)]
    up = alt.Scale(type="log", nice=False)
    axis = alt.Axis(values=powers, format="~g")
    base = alt.Chart()
    seeds = base.mark_line(strokeWidth=0.8, opacity=0.5).encode(
        x=across, y=alt.Y("y:Q", title="Removed (%)", scale=up, axis=axis), detail="seed:N", **scales
    )
    median = base.mark_line(strokeWidth=2).encode(
        x=across, y=alt.Y("median(y):Q", title="Removed (%)", scale=up, axis=axis), **scales
    )
    panel = 160
    medians = 100 * table.groupby("layer")[list(REMOVED)].median()
    told = "; ".join(
        f"{layer_words(name)}: mean {charts.spell(medians.loc[name, 'mean'])}, "
        f"scale {charts.spell(medians.loc[name, 'scale'])}"
        for name in order
    )
    chart = (
        alt.layer(seeds, median, data=alt.Data(values=rows))
        .transform_calculate(y="split(datum.values, ' ')")
        .transform_flatten(["y"])
        .transform_window(i="row_number()", groupby=["panel", "arm", "seed"])
        .transform_calculate(y="toNumber(datum.y)", x=f"min((datum.i - 1) * {every}, {steps})")
        .transform_filter("isFinite(datum.y) && datum.y > 0")
        .properties(width=panel, height=110)
        .facet(
            alt.Facet("panel:N", sort=[layer_words(name) for name in order], title=None),
            columns=2,
        )
        .resolve_axis(x="independent", y="independent")
        .properties(
            description=(
                "Curves over the training steps, a panel per layer: the two terms that Theorem 4.1 "
                f"subtracts, in per cent of the first term, {record.seeds} seeds. "
                f"Medians over steps and seeds. {told}."
            )
        )
    )
    return charts.responsive(chart, panel, len(order))


# --- (c) by layer, a dot per seed ---------------------------------------------------------------------


def by_layer_chart(
    frame: pd.DataFrame,
    groups: Mapping[str, Arm],
    *,
    y_title: str,
    log_y: bool = False,
    y_domain: Sequence[float] | None = None,
    rule: float | None = None,
    expected: Mapping[str, float] | None = None,
    x_title: str = "Layer",
    height: int = 240,
) -> alt.LayerChart:
    """One dot per row of `frame` (layer, group, value), groups side by side in each layer, bars at medians.

    `rule` is a dashed line across, `expected` a hollow diamond per layer. On a logarithmic axis values that
    are not positive have no dot. The alt text has the medians.
    """
    order = in_order(frame["layer"].unique())
    groups = {name: arm for name, arm in groups.items() if name in set(frame["group"])}
    labels = [arm.label for arm in groups.values()]
    rows = [
        {"layer": _short(layer), "arm": groups[group].label, "values": charts.packed(part["value"])}
        for (layer, group), part in frame.groupby(["layer", "group"], sort=False)
    ]
    legend = alt.Legend(symbolType="circle", symbolSize=70) if len(groups) > 1 else None
    colour = charts.arm_scales(labels, groups, legend)["color"]
    options: dict = {"type": "log"} if log_y else {"zero": False}
    if y_domain is not None:
        options |= {"domain": list(y_domain), "nice": False}
    axis = alt.Axis(tickCount=5)
    if log_y:
        seen = [*frame[frame["value"] > 0]["value"], *(expected or {}).values(), *([rule] if rule else [])]
        options |= {"domain": [0.8 * min(seen), 1.25 * max(seen)], "nice": False}
        spread = max(seen) / min(seen)
        marks = (1,) if spread > 1e3 else (1, 2, 5)
        axis = alt.Axis(format="~g", values=[float(f"{m}e{k}") for k in range(-9, 7) for m in marks])

    def up(field: str) -> alt.Y:
        return alt.Y(field, title=y_title, scale=alt.Scale(**options), axis=axis)

    across = {
        "x": alt.X(
            "layer:N",
            title=x_title,
            sort=[_short(name) for name in order],
            axis=alt.Axis(labelAngle=0, grid=False),
            scale=alt.Scale(paddingInner=0.3, paddingOuter=0.15),
        ),
    }
    if len(groups) > 1:
        across["xOffset"] = alt.XOffset("arm:N", sort=labels, scale=alt.Scale(domain=labels))
    base = (
        alt.Chart(alt.Data(values=rows))
        .transform_calculate(v="split(datum.values, ' ')")
        .transform_flatten(["v"])
        .transform_calculate(v="toNumber(datum.v)")
        .transform_filter("isFinite(datum.v)" + (" && datum.v > 0" if log_y else ""))
    )
    dots = base.mark_point(size=26, opacity=0.7).encode(y=up("v:Q"), color=colour, **across)
    bars = base.mark_tick(thickness=2.5, width=max(8, 24 // len(groups))).encode(
        y=up("median(v):Q"), color=colour, **across
    )
    layers = [bars, dots]
    if expected is not None:
        given = alt.Data(values=[{"layer": _short(k), "v": float(f"{v:.4g}")} for k, v in expected.items()])
        layers.append(
            alt.Chart(given)
            .mark_point(shape="diamond", size=70, filled=False, stroke=charts.INK, strokeWidth=1.4)
            .encode(x=across["x"], y=up("v:Q"))
        )
    if rule is not None:
        line = alt.Chart(alt.Data(values=[{"v": rule}]))
        layers.insert(0, line.mark_rule(strokeDash=[5, 4]).encode(y=up("v:Q")))
    medians = frame.groupby(["group", "layer"])["value"].median()
    told = "; ".join(
        f"{arm.label}: "
        + ", ".join(
            f"{_short(layer)} {charts.spell(medians[name, layer])}"
            for layer in order
            if (name, layer) in medians.index
        )
        for name, arm in groups.items()
    )
    more = ""
    if expected is not None:
        more = " Diamonds: " + ", ".join(f"{_short(k)} {charts.spell(v)}" for k, v in expected.items()) + "."
    if rule is not None:
        more += f" The dashed rule is at {charts.spell(rule)}."
    return alt.layer(*layers).properties(
        width="container",
        height=height,
        description=f"{y_title}, by layer, dots with bars at the medians. Medians. {told}.{more}",
    )


def removed(record: Record) -> pd.DataFrame:
    """Per cent of the first term that Theorem 4.1 subtracts, median over the steps: layer, seed, value."""
    table = shares(record)
    value = 100 * (table["mean"] + table["scale"]).groupby(["layer", "seed"]).median()
    return value.rename("value").reset_index().assign(group="bn")


def factors(record: Record) -> pd.DataFrame:
    r"""$\gamma^2/\sigma^2$, mean over a layer's channels, at the first and at the last probed step."""
    frame = record.frame(metric="thm41_factor")
    frame = frame[frame["step"].isin([frame["step"].min(), frame["step"].max()])]
    return frame.assign(group=frame["step"].astype(str))[["layer", "group", "seed", "value"]]


def moments(steps: Sequence[int]) -> dict[str, Arm]:
    """Colours for a few moments of a training, by the step as a word."""
    shades = [GREY, "#8f76c8", "#3f8f8b", BLUE]
    return {str(step): Arm(f"step {step}", shades[n % 4], (1, 0)) for n, step in enumerate(steps)}


def pairs(record: Record, metrics: Mapping[str, str], scale: float = 1.0) -> pd.DataFrame:
    """Metrics of `one_layer_pairs`, mean over the steps: rows (layer, group, seed, value).

    `metrics` maps a group to the name of its metric; values are multiplied by `scale`.
    """
    parts = []
    for group, metric in metrics.items():
        frame = record.frame(metric=metric)
        value = scale * frame.groupby(["layer", "seed"])["value"].mean()
        parts.append(value.rename("value").reset_index().assign(group=group))
    return pd.concat(parts)


def bending(record: Record) -> pd.DataFrame:
    """The two terms of Theorem 4.2's first form: rows (layer, group, seed, channel, value).

    `group` is the step, as a word; `value` what the layer's own term subtracts, in per cent of the sum of
    both terms' sizes: positive where it makes the curvature smaller, negative where larger.
    """
    frame = record.frame()
    parts = frame["metric"].str.extract(r"^thm42_(curvature|bending)\[(\d+)\]$")
    frame = frame[parts[0].notna()].assign(term=parts[0], channel=parts[1])
    table = frame.pivot_table(index=["layer", "step", "seed", "channel"], columns="term", values="value")
    size = table["curvature"].abs() + table["bending"].abs()
    value = (100 * table["bending"] / size)[size > 0]
    found = value.rename("value").reset_index()
    return found.assign(group=found["step"].astype(str))


# --- (d) Lemma 4.5 ------------------------------------------------------------------------------------


def ways(record: Record, optimiser: str = "sgd") -> pd.DataFrame:
    r"""How far a layer's weights went, in units of $\|W_0\|$: layer, group, seed, value.

    Groups as in `WAYS`; a ray is the one through the end.
    """
    names = {f"{name}[{optimiser}]": name for name in ("moved", "ray", "start_norm")}
    frame = record.frame("gain")
    frame = frame[(frame["gain"] == 1.0) & frame["metric"].isin(names)]
    table = frame.pivot_table(index=["arm", "layer", "seed"], columns="metric", values="value")
    table = table.rename(columns=names)
    parts = []
    for arm, column, group in (
        ("standard", "moved", "standard"),
        ("standard", "ray", "ray"),
        ("bn", "moved", "bn"),
        ("bn", "ray", "bn_ray"),
    ):
        part = table.loc[arm]
        value = (part[column] / part["start_norm"]).rename("value")
        parts.append(value.reset_index().assign(group=group))
    return pd.concat(parts)


def ray_chart(angle: int = 50, length: float = 1.6) -> alt.LayerChart:
    r"""Lemma 4.5 in a plane, with $\|W_0\|=1$: the point $W^*$, the ray through it, and the nearest point.

    Params: `angle` between $W_0$ and $W^*$ in degrees and `length`, $\|W^*\|$. Below, in words: both squared
    distances and what the lemma subtracts, or that it is silent.
    """
    height = 250
    # Equal units on both axes, whatever the width.
    scale_x = alt.Scale(domain=[-1.2, 2.4], nice=False)
    top = {"expr": f"{height} * 3.6 / width - 0.2"}
    hidden = {"axis": None, "title": None}
    x = alt.X("x:Q", scale=scale_x, **hidden)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[-0.2, top], nice=False), **hidden)
    base = alt.Chart(alt.Data(values=[{}])).transform_calculate(
        c="cos(angle * PI / 180)", s="sin(angle * PI / 180)", k="max(0, cos(angle * PI / 180)) / length"
    )

    def segment(x1: str, y1: str, x2: str, y2: str, **style: object) -> alt.Chart:
        return (
            base.transform_calculate(x=x1, y=y1, xx=x2, yy=y2)
            .mark_rule(**style)
            .encode(x=x, y=y, x2="xx:Q", y2="yy:Q")
        )

    def point(at: tuple[str, str], words: str, below: bool, **style: object) -> list[alt.Chart]:
        here = base.transform_calculate(x=at[0], y=at[1], name=words)
        return [
            here.mark_point(size=70, opacity=1, **style).encode(x=x, y=y),
            here.mark_text(
                fontSize=13, align="center" if below else "left", dx=0 if below else 8, dy=18 if below else -8
            ).encode(x=x, y=y, text="name:N"),
        ]

    start, end, foot = ("datum.c", "datum.s"), ("length", "0"), ("datum.k * length", "0")
    line = {"opacity": 1, "strokeWidth": 2.5}
    drawing = [
        segment("0", "0", "2.4", "0", opacity=0.5, strokeWidth=1.2),
        segment("0", "0", *start, opacity=0.5, strokeWidth=1.2),
        segment(*start, *end, color=ORANGE, **line, strokeDash=[7, 3]),
        segment(*start, *foot, color=BLUE, **line),
        *point(("0", "0"), "'0'", True, color=GREY),
        *point(start, "'W₀'", False, color=GREY),
        *point(end, "'W*'", True, color=ORANGE),
        *point(foot, "datum.c > 0 && abs(datum.c - length) > 0.16 ? 'k W*' : ''", True, color=BLUE),
    ]

    def told(number: int, words: str, **style: object) -> alt.Chart:
        place = {"x": alt.value(0), "y": alt.value(height + 24 + 18 * number)}
        return (
            base.transform_calculate(told=words)
            .mark_text(align="left", fontSize=12, **style)
            .encode(text="told:N", **place)
        )

    lines = [
        "'To W*: ' + format(1 + length * length - 2 * length * datum.c, '.3f') + ' (squared, dashed)'",
        "datum.c > 0.001 ? 'To the ray: ' + format(datum.s * datum.s, '.3f') + ' (solid), k = '"
        " + format(datum.k, '.3f') : 'To the ray: nowhere nearer than at its end 0, which is no optimum'",
        "datum.c > 0.001 ? 'The lemma subtracts ' + format(pow(length - datum.c, 2), '.3f')"
        " : 'The angle is not acute: the lemma is silent'",
    ]
    readout = [told(number, words) for number, words in enumerate([*lines, "' '"])]
    return (
        alt.layer(*drawing, *readout)
        .properties(width="container", height=height)
        .add_params(alt.param(name="angle", value=angle), alt.param(name="length", value=length))
    )


def ray(angle: int = 50, length: float = 1.6) -> ipywidgets.VBox:
    """The chart of `ray_chart` under its two sliders."""
    explorer = widgets.Explorer(
        ray_chart(angle, length),
        description=(
            "Lemma 4.5 in a plane: the start W0 at distance 1 from the origin, an optimum W* on a ray from "
            "the origin, the way from W0 to W* and the shorter one to the nearest point of the ray. The "
            "angle between W0 and W* and the length of W* can be chosen; the squared distances stand below."
        ),
    )
    return widgets.controls(
        explorer,
        angle=ipywidgets.IntSlider(description="angle (degrees)", value=angle, min=0, max=150, step=5),
        length=ipywidgets.FloatSlider(
            description="length of W*", value=length, min=0.2, max=2.2, step=0.1, readout_format=".1f"
        ),
    )
