"""The figures and explorables of chapter 4: what noise does to activations and to accuracy, from records.

Functions that end in `_chart` return a chart; `dose_and_accuracy` and `moments_over_time` return finished
widgets. A series of numbers travels as one string (see `charts.packed`), and what a reader asks for is
computed in the page, with or without a kernel. No torch here.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence

import altair as alt
import ipywidgets
import numpy as np
import pandas as pd

from bnlib import charts, widgets
from bnlib.experiments import noise
from bnlib.records import Record

#: words for a reader -> metric, from the situation of training to that of use (noise off, BN in evaluation
#: mode); the first three use the batch's statistics
ACCURACIES = {
    "training, noise on": "train_accuracy",
    "test, noise on": "test_accuracy_noisy",
    "test, noise off": "test_accuracy_batch",
    "test, evaluation mode": "test_accuracy",
}
MOMENTS = {"mean": "mean", "standard deviation": "deviation"}
SHAPES = ["circle", "square", "diamond", "triangle-up", "triangle-down"]
CHANNELS = 2  # so many of a layer's channels are shown


def _label(arm: str) -> str:
    return charts.ARMS[arm].label


def arms_of(record: Record) -> list[str]:
    """The arms of a record in the book's order."""
    present = {run["arm"] for run in record.runs}
    return [arm for arm in charts.ARMS if arm in present]


def layers_of(record: Record) -> list[str]:
    """The layers whose activations the record has, from input to output."""
    names = record.frame(metric="mean")["layer"].unique()
    return sorted(names, key=lambda name: int(name.lstrip("conv")))


# --- dots in groups -----------------------------------------------------------------------------------


def grouped_dots_chart(
    frame: pd.DataFrame,
    *,
    y_title: str,
    log_y: bool = False,
    y_domain: Sequence[float] | None = None,
    height: int = 300,
) -> alt.LayerChart:
    """One dot per group, arm and seed, a bar at each arm's median; the arms side by side in every group.

    `frame` has the columns `group` (words; the groups keep their order), `arm`, `seed` and `value`.  All
    groups share one axis.  A value that is not finite has no dot, and its arm no bar in that group.
    """
    groups = list(pd.unique(frame["group"]))
    arms = [arm for arm in charts.ARMS if arm in set(frame["arm"])]
    labels = [_label(arm) for arm in arms]
    rows = [
        {"group": group, "arm": _label(arm), "values": charts.packed(part.sort_values("seed")["value"])}
        for (group, arm), part in frame.groupby(["group", "arm"], sort=False)
    ]
    # Dots have no dash: here a shape tells arms apart that share a colour, and all of them in greyscale.
    legend = alt.Legend(symbolType="circle", symbolSize=70)
    marks = {
        "color": charts.arm_scales(labels, legend=legend)["color"],
        "shape": alt.Shape(
            "arm:N", scale=alt.Scale(domain=labels, range=SHAPES[: len(labels)]), legend=legend
        ),
    }
    lines = json.dumps({group: textwrap.wrap(group, 10) for group in groups}, ensure_ascii=False)
    across = {
        "x": alt.X(
            "group:N",
            title=None,
            sort=groups,
            axis=alt.Axis(labelAngle=0, grid=False, labelExpr=f"({lines})[datum.value]", labelOverlap=False),
            scale=alt.Scale(paddingInner=0.25, paddingOuter=0.1),
        ),
        "xOffset": alt.XOffset("arm:N", sort=labels, scale=alt.Scale(domain=labels)),
    }
    options = {"type": "log"} if log_y else {"zero": False}
    if y_domain is not None:
        options |= {"domain": list(y_domain), "nice": False}
    scale = alt.Scale(**options)
    axis = alt.Axis(format="~g", values=_one_and_three(frame["value"])) if log_y else alt.Axis()
    base = alt.Chart()
    seeds = base.mark_point(size=36, opacity=0.75).encode(
        y=alt.Y("v:Q", title=y_title, scale=scale, axis=axis), **across, **marks
    )
    bars = (
        base.transform_joinaggregate(n="count()", there="valid(v)", groupby=["group", "arm"])
        .transform_filter("datum.n == datum.there")
        .mark_tick(thickness=3, width=14)
        .encode(y=alt.Y("median(v):Q", title=y_title, scale=scale, axis=axis), color=marks["color"], **across)
    )
    medians = frame.groupby(["group", "arm"])["value"].median()
    told = "; ".join(
        f"{group}: " + ", ".join(f"{_label(arm)} {charts.spell(medians[group, arm])}" for arm in arms)
        for group in groups
    )
    seen = frame["seed"].nunique()
    return (
        alt.layer(bars, seeds, data=alt.Data(values=rows))
        .transform_calculate(v="split(datum.values, ' ')")
        .transform_flatten(["v"])
        .transform_calculate(v="toNumber(datum.v)")
        .properties(
            width="container",
            height=height,
            description=f"{y_title}, one dot per run, {seen} seeds for each arm. Medians. {told}.",
        )
    )


def _one_and_three(values: pd.Series) -> list[float]:
    """1 and 3 times the powers of ten around the positive values: where a logarithmic axis is ruled."""
    positive = values[values > 0]
    low, high = math.floor(math.log10(positive.min())), math.ceil(math.log10(positive.max()))
    return [float(f"{m}e{k}") for k in range(low, high + 1) for m in (1, 3)]


def accuracies(record: Record) -> pd.DataFrame:
    """The four late accuracies of every run in per cent: columns group, arm, seed, value."""
    rows = [
        {"group": words, "arm": arm, "seed": seed, "value": 100 * value}
        for words, metric in ACCURACIES.items()
        for arm in arms_of(record)
        for seed, value in noise.late_accuracy(record, arm, metric).items()
    ]
    return pd.DataFrame(rows)


def movement(record: Record, metric: str = "wasserstein") -> pd.DataFrame:
    """How far one step moves a layer's activations, median over the run: columns group, arm, seed, value."""
    frame = record.frame(metric=metric)
    medians = frame.groupby(["layer", "arm", "seed"], as_index=False)["value"].median()
    medians["order"] = medians["layer"].map(layers_of(record).index)
    return medians.sort_values(["order", "arm", "seed"]).rename(columns={"layer": "group"})


# --- one channel's mean over time, layers across and arms downwards -----------------------------------


def standing(record: Record, seed: int = 0, channel: int = 0) -> pd.DataFrame:
    r"""Where a channel's mean stands, $\mu_c/\sigma_c$: arm, layer, step, value, for one seed."""
    means, variances = (record.frame(metric=f"{moment}[{channel}]") for moment in ("mean", "variance"))
    where = ["arm", "layer", "step"]
    table = means[means["seed"] == seed].merge(
        variances[variances["seed"] == seed], on=where, suffixes=("", "_of_variance")
    )
    with np.errstate(divide="ignore"):
        table["value"] = table["value"] / np.sqrt(table["value_of_variance"])
    return table[[*where, "value"]]


def standing_chart(
    record: Record, seed: int = 0, channel: int = 0, limit: float | None = None
) -> alt.FacetChart:
    """A grid of small panels, a row per arm and a column per layer, on the same axes: `standing` over time.

    Values beyond `limit` (by default what holds 95 of 100 values) are drawn at the panels' edges.
    """
    table = standing(record, seed, channel)
    layers, arms = layers_of(record), arms_of(record)
    finite = table["value"].abs()[np.isfinite(table["value"])]
    limit = limit or math.ceil(2 * float(np.quantile(finite, 0.95))) / 2
    end = int(table["step"].max())
    rows = []
    for (arm, layer), part in table.groupby(["arm", "layer"]):
        values = part.set_index("step")["value"].sort_index()
        every = int(values.index[1])
        values = values.reindex(range(0, int(values.index.max()) + 1, every)).clip(-limit, limit)
        rows.append(
            {"arm": _label(arm), "layer": layer, "every": every, "values": charts.packed(values, ".3g")}
        )
    labels = [_label(arm) for arm in arms]
    ends = alt.Scale(domain=[0, end], nice=False)
    across = alt.X("x:Q", title="Step", scale=ends, axis=alt.Axis(tickCount=2, labelFlush=True))
    up = alt.Y(
        "y:Q",
        title=None,
        scale=alt.Scale(domain=[-limit, limit], nice=False),
        axis=alt.Axis(values=[-limit, 0, limit]),
    )
    base = alt.Chart()
    curve = base.mark_line(strokeWidth=1.2).encode(x=across, y=up, color=charts.arm_scales(labels)["color"])
    name = (
        base.transform_filter(f"datum.layer == '{layers[0]}' && datum.i == 1")
        .mark_text(align="left", baseline="bottom", fontSize=12, fontWeight="bold")
        .encode(x=alt.value(0), y=alt.value(-4), text="arm:N")
    )
    chart = (
        alt.layer(curve, name, data=alt.Data(values=rows))
        .transform_calculate(y="split(datum.values, ' ')")
        .transform_flatten(["y"])
        .transform_window(i="row_number()", groupby=["arm", "layer"])
        .transform_calculate(y="toNumber(datum.y)", x="(datum.i - 1) * datum.every")
        .properties(width=180, height=64)
        .facet(
            row=alt.Row("arm:N", sort=labels, title=None, header=None),
            column=alt.Column("layer:N", sort=layers, title=None, header=alt.Header(labelPadding=22)),
        )
        .properties(spacing={"row": 26, "column": 12}, bounds="flush")
    )
    return _share_width(chart, len(layers)).properties(description=_describe_standing(table, layers, arms))


def _share_width(chart: alt.FacetChart, columns: int) -> alt.FacetChart:
    """Make the columns of a grid share the width of the page (see `charts.responsive`)."""
    room = "(containerSize()[0] || 600)"
    width = f"max(60, floor(({room} - 48) / {columns}) - 14)"
    signal = {
        "name": "child_width",
        "update": width,
        "on": [{"events": "window:resize", "update": width}],
    }
    patch = [
        {"op": "test", "path": "/signals/0/name", "value": "child_width"},
        {"op": "replace", "path": "/signals/0", "value": signal},
    ]
    return chart.properties(usermeta={"embedOptions": {"patch": patch}})


def jumps(table: pd.DataFrame) -> pd.Series:
    """From a table of `standing`: median distance between two recorded steps, by arm and layer."""
    table = table.sort_values("step")
    steps = table.groupby(["arm", "layer"])["value"].diff().abs()
    return steps.groupby([table["arm"], table["layer"]]).median()


def _describe_standing(table: pd.DataFrame, layers: Sequence[str], arms: Sequence[str]) -> str:
    jump = jumps(table)
    told = "; ".join(
        f"{_label(arm)} " + ", ".join(charts.spell(jump[arm, layer], 2) for layer in layers) for arm in arms
    )
    return (
        "Small panels, a row per arm and a column per layer: the mean of one channel over the training "
        f"steps, in its standard deviations. Median jump between two recorded steps in {', '.join(layers)}: "
        f"{told}."
    )


# --- explorable: how much noise -----------------------------------------------------------------------


def dose_rows(record: Record) -> list[dict]:
    """One row per arm, noise strength and accuracy: the late accuracies of all seeds in per cent."""
    strengths = sorted({run["settings"]["noise"] for run in record.runs})
    return [
        {
            "arm": _label(arm),
            "noise": strength,
            "metric": metric,
            "values": charts.packed(
                [100 * v for _, v in sorted(noise.late_accuracy(record, arm, metric, strength).items())]
            ),
        }
        for arm in arms_of(record)
        for strength in strengths
        for metric in ACCURACIES.values()
    ]


DOSE_HEIGHT = 270


def dose_chart(record: Record, strength: float = 1.0) -> alt.LayerChart:
    """Accuracy against the strength of the noise: every seed a dot, the medians joined by a line.

    Params: `strength` (one of those recorded) and `metric` (one of `ACCURACIES`). At the chosen strength
    there is a rule, and words below give each arm's median, range and, compared seed by seed, the change
    against its own runs without noise.
    """
    rows = dose_rows(record)
    strengths = sorted({row["noise"] for row in rows})
    labels = [_label(arm) for arm in arms_of(record)]
    scales = charts.arm_scales(labels, legend=alt.Legend())
    # Roots spread the small strengths out, and have a place for 0.
    across = alt.X(
        "x:Q",
        title="Noise strength (1: the paper's)",
        scale=alt.Scale(type="sqrt", domain=[strengths[0], strengths[-1]], nice=False),
        axis=alt.Axis(values=strengths, format="~g", labelOverlap=False),
    )
    percent = {"title": "Accuracy (%)", "scale": alt.Scale(domain=[0, 100], nice=False)}
    up = alt.Y("y:Q", **percent)
    base = alt.Chart()
    curves = base.mark_line().encode(x=across, y=alt.Y("median(y):Q", **percent), **scales)
    dots = (
        base.transform_calculate(size="datum.x == strength ? 70 : 22")
        .mark_point(opacity=0.75)
        .encode(x=across, y=up, color=scales["color"], size=alt.Size("size:Q", scale=None))
    )
    rule = base.transform_aggregate(x="max(chosen)").mark_rule(strokeWidth=1.2).encode(x=across)

    def words(part: alt.Chart, line: int) -> alt.Chart:
        place = {"x": alt.value(-44), "y": alt.value(DOSE_HEIGHT + 60 + 18 * line)}
        return part.mark_text(align="left", fontSize=12).encode(text="words:N", **place)

    heading = base.transform_aggregate(chosen="max(chosen)").transform_calculate(
        words="'At strength ' + datum.chosen + ', median (range):'"
    )
    told = (
        base.transform_filter("datum.x == strength")
        .transform_aggregate(
            middle="median(y)", low="min(y)", high="max(y)", change="median(change)", groupby=["arm"]
        )
        .transform_calculate(
            words="datum.arm + ': ' + format(datum.middle, '.1f') + ' % (' + format(datum.low, '.1f')"
            " + '–' + format(datum.high, '.1f') + ')' + (strength > 0"
            " ? ', ' + format(datum.change, '+.1f') + ' by noise' : '')"
        )
    )
    lines = [
        words(told.transform_filter(f"datum.arm == '{label}'"), number)
        for number, label in enumerate(labels, start=1)
    ]
    chart = alt.layer(rule, curves, dots, words(heading, 0), *lines).properties(
        data=alt.Data(values=rows), width="container", height=DOSE_HEIGHT
    )
    return (
        chart.transform_filter("datum.metric == metric")
        .transform_calculate(y="split(datum.values, ' ')")
        .transform_flatten(["y"])
        .transform_window(seed="row_number()", groupby=["arm", "noise"])
        .transform_calculate(x="datum.noise", y="toNumber(datum.y)", chosen="strength")
        .transform_calculate(own="datum.noise == 0 ? datum.y : null")
        .transform_joinaggregate(own="max(own)", groupby=["arm", "seed"])
        .transform_calculate(change="datum.y - datum.own")
        .add_params(
            alt.param(name="strength", value=strength), alt.param(name="metric", value="train_accuracy")
        )
    )


def dose_and_accuracy(record: Record) -> ipywidgets.VBox:
    """The chart of `dose_chart` under its controls; first at the paper's strength."""
    strengths = sorted({run["settings"]["noise"] for run in record.runs})
    start = 1.0 if 1.0 in strengths else strengths[-1]
    told = []
    for words, metric in ACCURACIES.items():
        of_arms = []
        for arm in arms_of(record):
            medians = [
                float(np.median(list(noise.late_accuracy(record, arm, metric, k).values())))
                for k in strengths
            ]
            of_arms.append(f"{_label(arm)} {', '.join(f'{100 * v:.0f}' for v in medians)}")
        told.append(f"{words}: {'; '.join(of_arms)}")
    explorer = widgets.Explorer(
        dose_chart(record, start),
        description=(
            "Accuracy against the strength of the noise, one dot per run, with a rule at the chosen strength "
            "and, below, each arm's accuracies in words. Median accuracies in per cent at the strengths "
            f"{', '.join(f'{k:g}' for k in strengths)}. {'. '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        strength=ipywidgets.SelectionSlider(
            description="noise strength", options=[(f"{k:g}", k) for k in strengths], value=start
        ),
        metric=ipywidgets.Dropdown(
            description="accuracy on", options=list(ACCURACIES.items()), value="train_accuracy"
        ),
    )


# --- explorable: moments over time --------------------------------------------------------------------


def moment_rows(record: Record, channels: int = CHANNELS) -> list[dict]:
    """One row per arm, layer, seed and channel: its means and standard deviations, every `every` steps.

    `mean_low`, `mean_high`, `deviation_low`, `deviation_high` hold what 98 of 100 values of the layer lie
    between in all arms.
    """
    series: dict[str, pd.DataFrame] = {}
    for moment, root in (("mean", False), ("variance", True)):
        parts = [record.frame(metric=f"{moment}[{c}]").assign(channel=c) for c in range(channels)]
        table = pd.concat(parts)
        table["value"] = np.sqrt(table["value"]) if root else table["value"]
        series["deviation" if root else "mean"] = table
    ends = {
        (layer, moment): part["value"].quantile([0.01, 0.99]).tolist()
        for moment, table in series.items()
        for layer, part in table.groupby("layer")
    }
    keys = ["arm", "layer", "seed", "channel"]
    by_series = {moment: dict(list(table.groupby(keys))) for moment, table in series.items()}
    rows = []
    for key, part in by_series["mean"].items():
        arm, layer, seed, channel = key
        steps = sorted(part["step"])
        grid = range(0, steps[-1] + 1, steps[1] - steps[0])
        row: dict = {"arm": _label(arm), "layer": layer, "seed": seed, "channel": channel, "every": grid.step}
        for moment, tables in by_series.items():
            values = tables[key].set_index("step")["value"].reindex(grid)
            low, high = ends[layer, moment]
            row[moment] = charts.packed(values, ".3g")
            row |= {f"{moment}_low": float(f"{low:.3g}"), f"{moment}_high": float(f"{high:.3g}")}
        rows.append(row)
    return rows


def moment_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """A moment of a layer's first channels over time, one line per channel, for one arm and one seed.

    Params: `arm` (its label), `layer`, `moment` ("mean" or "deviation"), `seed`, and `same` (all arms on the
    vertical axis that holds 98 of 100 of their values). Words above say how far the mean jumps between two
    recorded steps, in standard deviations, and by what share the standard deviation changes.
    """
    labels = [_label(arm) for arm in arms_of(record)]
    scales = charts.arm_scales(labels)
    across = alt.X("x:Q", title="Step", scale=alt.Scale(nice=False, zero=False), axis=alt.Axis(tickCount=6))
    scale = alt.Scale(zero=False, nice=True)
    up = alt.Y("y:Q", title=None, scale=scale)
    base = alt.Chart()
    # Where arms share an axis, what lies beyond it is cut: drawn at the edge.
    lines = base.mark_line(strokeWidth=1.4, opacity=0.9).encode(
        x=across, y=up, color=scales["color"], strokeDash=alt.StrokeDash("channel:N", legend=None)
    )
    # Never seen: they hold the axis open.
    edges = base.transform_aggregate(low="min(low)", high="max(high)", x="min(x)").mark_point(opacity=0)
    low = edges.encode(x=across, y=alt.Y("low:Q", title=None, scale=scale))
    high = edges.encode(x=across, y=alt.Y("high:Q", title=None, scale=scale))
    told = base.transform_aggregate(
        mean_jump="median(mean_jump)",
        deviation_jump="median(deviation_jump)",
        every="max(every)",
        arm="min(arm)",
        layer="min(layer)",
    )

    def words(text: str, above: int, **style: object) -> alt.Chart:
        place = {"x": alt.value(-30), "y": alt.value(-above)}
        return (
            told.transform_calculate(words=text)
            .mark_text(align="left", fontSize=12, **style)
            .encode(text="words:N", **place)
        )

    heading = words("datum.arm + ', ' + datum.layer + ', seed ' + seed", 48, fontWeight="bold")
    jump = words(
        "'In ' + datum.every + ' steps the mean moves by ' + format(datum.mean_jump, '.2~g') + ' σ (median)'",
        30,
    )
    axis = words(
        f"'Vertical: ' + (moment == 'mean' ? 'mean' : 'standard deviation') + ' of {CHANNELS} channels'", 12
    )
    chart = alt.layer(low, high, lines, heading, jump, axis).properties(
        data=alt.Data(values=moment_rows(record)), width="container", height=260
    )
    return (
        chart.transform_filter("datum.arm == arm && datum.layer == layer && datum.seed == seed")
        .transform_calculate(m="split(datum.mean, ' ')", d="split(datum.deviation, ' ')")
        .transform_flatten(["m", "d"])
        .transform_window(i="row_number()", groupby=["channel"])
        .transform_calculate(m="toNumber(datum.m)", d="toNumber(datum.d)", x="(datum.i - 1) * datum.every")
        .transform_window(
            m_before="lag(m)", d_before="lag(d)", groupby=["channel"], sort=[alt.SortField("i")]
        )
        .transform_calculate(
            mean_jump="datum.i > 1 && datum.d > 0 ? abs(datum.m - datum.m_before) / datum.d : null",
            deviation_jump="datum.i > 1 && datum.d > 0 ? abs(datum.d - datum.d_before) / datum.d : null",
            bottom="moment == 'mean' ? datum.mean_low : datum.deviation_low",
            top="moment == 'mean' ? datum.mean_high : datum.deviation_high",
            own="moment == 'mean' ? datum.m : datum.d",
        )
        .transform_calculate(
            y="same && isValid(datum.own) ? clamp(datum.own, datum.bottom, datum.top) : datum.own",
            low="same ? datum.bottom : datum.own",
            high="same ? datum.top : datum.own",
        )
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def moments_over_time(record: Record) -> ipywidgets.VBox:
    """The chart of `moment_chart` under its controls; first noisy BN in the middle one of the layers."""
    arms, layers = arms_of(record), layers_of(record)
    seeds = sorted({run["seed"] for run in record.runs})
    first = "noisy_bn" if "noisy_bn" in arms else arms[0]
    start = {
        "arm": _label(first),
        "layer": layers[len(layers) // 2],
        "moment": "mean",
        "seed": seeds[0],
        "same": True,
    }
    told = jumps(standing(record, seeds[0]))
    explorer = widgets.Explorer(
        moment_chart(record, start),
        description=(
            f"Mean or standard deviation of {CHANNELS} channels of a layer over the training steps; arm, "
            "layer and seed can be chosen. Median jump of a channel's mean between two recorded steps, in "
            f"standard deviations, layers {', '.join(layers)}: "
            + "; ".join(
                f"{_label(arm)} " + ", ".join(charts.spell(told[arm, layer], 2) for layer in layers)
                for arm in arms
            )
            + "."
        ),
    )
    labels = [_label(arm) for arm in arms]
    return widgets.controls(
        explorer,
        arm=ipywidgets.Dropdown(description="arm", options=labels, value=start["arm"]),
        layer=ipywidgets.Dropdown(description="layer", options=layers, value=start["layer"]),
        moment=ipywidgets.Dropdown(description="moment", options=list(MOMENTS.items()), value="mean"),
        seed=ipywidgets.IntSlider(description="seed", value=seeds[0], min=seeds[0], max=seeds[-1]),
        same=ipywidgets.Checkbox(description="same axis for all arms", value=True, indent=False),
    )
