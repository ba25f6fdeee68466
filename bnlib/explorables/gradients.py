"""The figures of chapter 5: how much a layer's gradient changes when the layers before it move.

Each function takes records and returns a chart or a finished widget. A series of numbers travels as one
string, which the chart splits; what a reader chooses is computed in the page, with or without a kernel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import altair as alt
import ipywidgets
import pandas as pd

from bnlib import charts, widgets
from bnlib.experiments import gradients
from bnlib.experiments.quantities import paired, ratio
from bnlib.records import Record
from bnlib.specs import setting as of_run

STANDARD, BN = charts.ARMS["standard"], charts.ARMS["bn"]
LOSSES = {"cross_entropy": "", "squared_sum": "sum loss, ", "squared_mean": "mean loss, "}
TINY = 1e-16  # below this a double cannot tell 1 − cosine from 0


class Setting(NamedTuple):
    """The runs of a record that share loss and learning rate, and its words for readers."""

    words: str
    loss: str
    lr: float


def settings_of(record: Record) -> list[Setting]:
    """One setting per loss and learning rate: the sum before the mean, the higher rate first."""
    found = {(run["settings"].get("loss", "cross_entropy"), run["settings"]["lr"]) for run in record.runs}
    ordered = sorted(found, key=lambda key: (list(LOSSES).index(key[0]), -key[1]))
    return [Setting(f"{LOSSES[loss]}rate {charts.spell(lr)}", loss, lr) for loss, lr in ordered]


def layers_of(record: Record) -> list[str]:
    """The probed layers from input to output, without the first one, whose shift is zero by definition."""
    frame = gradients.shifts(record)
    numbers = {name: int(re.sub(r"\D", "", name) or 10**6) for name in pd.unique(frame["layer"])}
    return sorted(numbers, key=numbers.__getitem__)


def layer_words(name: str) -> str:
    """`conv5` as readers say it: convolution 5."""
    kind, number = re.fullmatch(r"([a-z]+)(\d*)", name).groups()
    return f"{ {'conv': 'convolution', 'linear': 'layer'}.get(kind, kind) } {number}".strip()


def _short_words(name: str) -> str:
    """The same where a phone has little room: conv 5."""
    return layer_words(name).replace("convolution", "conv")


def _label(arm: str) -> str:
    return charts.ARMS[arm].label


def _label_lines(arms: list[str]) -> list[str]:
    return [_label(arm) for arm in charts.ARMS if arm in arms]


# --- (a) equal learning rates -------------------------------------------------------------------------


QUANTITIES = {
    "cosine": "cosine",
    "‖G − G′‖": "l2",
    "‖G − G′‖ / ‖G‖": "relative",
    "relative step": "step",
}
TITLES = {
    "cosine": "cos(G, G′)",
    "l2": "‖G − G′‖ (loss per unit of weight)",
    "relative": "‖G − G′‖ / ‖G‖",
    "step": "relative step η‖G‖ / ‖W‖",
}
DIGITS = {"cosine": ".4g", "l2": ".3g", "relative": ".3g", "step": ".3g"}


def shift_rows(record: Record) -> list[dict]:
    """One row per setting, layer and run: what definition 2.1 gives at each probed step, a column per
    quantity.

    `every` is the distance of the points in steps; the last point is at `steps`, also if that is no multiple.
    A value that could not be formed is a cross.
    """
    columns = {"shift_cosine": "cosine", "shift_l2": "l2", "gradient_norm": "norm", "relative_step": "step"}
    keys = ["arm", "lr", "loss", "seed", "layer", "step"]
    table = pd.concat(
        [
            gradients.shifts(record, metric).set_index(keys)["value"].rename(columns[metric])
            for metric in columns
        ],
        axis=1,
    )
    table["relative"] = table["l2"] / table["norm"]
    series = {key: part.droplevel(keys[:-1]) for key, part in table.groupby(keys[:-1])}
    places = {(item.loss, item.lr): number for number, item in enumerate(settings_of(record))}
    order = layers_of(record)
    rows = []
    for run in record.runs:
        about = run["settings"]
        loss, steps = about.get("loss", "cross_entropy"), about["steps"]
        every = about["probes"]["covariate_shift"]["every"]
        for layer in order:
            values = series.get((run["arm"], about["lr"], loss, run["seed"], layer))
            if values is None:
                continue  # diverged before it was probed
            values = values.reindex([s for s in [*range(0, steps, every), steps] if s <= values.index.max()])
            rows.append(
                {
                    "setting": places[loss, about["lr"]],
                    "layer": layer,
                    "arm": _label(run["arm"]),
                    "seed": run["seed"],
                    "every": every,
                    "steps": steps,
                    **{name: charts.packed(values[name], DIGITS[name]) for name in TITLES},
                }
            )
    return rows


def shift_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """Definition 2.1 over the steps of training, one layer at a time: every seed thin, the median thick.

    Params: `setting` (its number), `layer`, `quantity` (a value of `QUANTITIES`), `whole` (the axis of the
    cosine from −1 to 1; else it zooms in). All quantities but the cosine are drawn on a logarithmic axis.
    Below the axis, in words: each arm's median over the steps, seed by seed, and of these median and range.
    """
    labels = _label_lines([run["arm"] for run in record.runs])
    scales = charts.arm_scales(labels, legend=alt.Legend(offset=30))  # room for the heading
    height = 270
    across = alt.X("x:Q", title="Step", scale=alt.Scale(nice=False, zero=False))
    power = "replace(format(pow(10, datum.value), datum.value % 1 == 0 ? '.0e' : '.1e'), '+', '')"
    axis = alt.Axis(labelExpr=f"quantity == 'cosine' ? datum.label : {power}", tickCount=6)

    def up(field: str) -> alt.Y:
        return alt.Y(field, title=None, scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart()
    band = base.mark_area(opacity=0.16).encode(
        x=across, y=up("min(y):Q"), y2="max(y):Q", color=scales["color"]
    )
    seeds = base.mark_line(strokeWidth=0.8, opacity=0.6).encode(
        x=across, y=up("y:Q"), detail="seed:N", **scales
    )
    median = base.mark_line().encode(x=across, y=up("median(y):Q"), **scales)
    # Never seen: it holds the axis open.
    frame = (
        base.transform_aggregate(low="min(y)", high="max(y)", first="min(x)", last="max(x)")
        .transform_calculate(
            low="whole && quantity == 'cosine' ? -1 : datum.low",
            high="whole && quantity == 'cosine' ? 1 : datum.high",
        )
        .transform_fold(["low", "high"], as_=["which", "y"])
        .transform_calculate(x="datum.which == 'low' ? datum.first : datum.last")
        .mark_point(opacity=0)
        .encode(x=across, y=up("y:Q"))
    )
    words = " : ".join(f"quantity == '{name}' ? '{title}'" for name, title in TITLES.items())
    heading = (
        base.transform_aggregate(n="count()")
        .transform_calculate(words=f"{words} : ''")
        .mark_text(align="left", fontSize=13)
        .encode(x=alt.value(0), y=alt.value(-14), text="words:N")
    )

    def line(rows: alt.Chart, number: int) -> alt.Chart:
        place = {"x": alt.value(-44), "y": alt.value(height + 60 + 18 * number)}
        return rows.mark_text(align="left", fontSize=12).encode(text="words:N", **place)

    number = "'.3~g'"
    summary = (
        base.transform_aggregate(v="median(v)", groupby=["arm", "seed"])
        .transform_aggregate(middle="median(v)", low="min(v)", high="max(v)", groupby=["arm"])
        .transform_calculate(
            words=f"datum.arm + ': ' + format(datum.middle, {number})"
            f" + ' (' + format(datum.low, {number}) + ' to ' + format(datum.high, {number}) + ')'"
        )
    )
    title = base.transform_aggregate(n="count()").transform_calculate(
        words="'Median over the steps (range over the seeds):'"
    )
    room = base.transform_aggregate(n="count()").transform_calculate(words="' '")
    lines = [
        line(summary.transform_filter(f"datum.arm == '{label}'"), 1 + place)
        for place, label in enumerate(labels)
    ]
    chart = alt.layer(
        band, seeds, median, frame, heading, line(title, 0), *lines, line(room, len(labels))
    ).properties(data=alt.Data(values=shift_rows(record)), width="container", height=height)
    return (
        chart.transform_filter("datum.setting == setting && datum.layer == layer")
        .transform_calculate(v="split(datum[quantity], ' ')")
        # Keeps these columns alone: each point would carry all others.
        .transform_aggregate(runs="count()", groupby=["arm", "seed", "every", "steps", "v"])
        .transform_flatten(["v"])
        .transform_window(i="row_number()", groupby=["arm", "seed"])
        .transform_calculate(v="toNumber(datum.v)", x="min((datum.i - 1) * datum.every, datum.steps)")
        .transform_filter("isFinite(datum.v)")
        .transform_calculate(
            y=f"quantity == 'cosine' ? datum.v : log(max(datum.v, {TINY})) / LN10",
        )
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def equal_rate(record: Record, what: str, layer: str | None = None) -> ipywidgets.VBox:
    """The chart of `shift_chart` under its controls; `what` names the network in the alt text.

    It starts at the record's first setting and at `layer`, by default one in the middle.
    """
    settings, layers = settings_of(record), layers_of(record)
    start = {
        "setting": 0,
        "layer": layer or layers[len(layers) // 2],
        "quantity": "cosine",
        "whole": True,
    }
    told = []
    present = {run["arm"] for run in record.runs}
    arms = [arm for arm in charts.ARMS if arm in present]
    for item in settings:
        medians = (
            f"{_label(arm)} {charts.spell(pd.Series(values).median())}"
            for arm in arms
            if (values := gradients.typical(record, arm, item.lr, item.loss))
        )
        told.append(f"{item.words}: {', '.join(medians)}")
    explorer = widgets.Explorer(
        shift_chart(record, start),
        description=(
            f"Definition 2.1 in {what} over the training steps, one thin line per seed, the median thick; "
            "setting, layer and quantity can be chosen. Cosine of the gradients before and after the earlier "
            f"layers have moved, median over steps, layers and seeds. {'; '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        setting=ipywidgets.Dropdown(
            description="setting", options=[(item.words, n) for n, item in enumerate(settings)], value=0
        ),
        layer=ipywidgets.SelectionSlider(
            description="layer", options=[(layer_words(name), name) for name in layers], value=start["layer"]
        ),
        whole=ipywidgets.Checkbox(description="cosine from −1 to 1", value=True),
        quantity=ipywidgets.Dropdown(
            description="quantity", options=list(QUANTITIES.items()), value="cosine"
        ),
    )


# --- (b) how far did they move? -----------------------------------------------------------------------


def step_ratios(records: Mapping[str, Record]) -> pd.DataFrame:
    """Relative step of a layer (median over steps and layers), BN divided by standard: rows (network, lr,
    setting, seed, value). The mean loss is left out: its steps are those of the sum divided by n."""
    rows = []
    for network, record in records.items():
        for item in settings_of(record):
            if item.loss == "squared_mean":
                continue
            steps = [
                gradients.typical(record, arm, item.lr, item.loss, "relative_step")
                for arm in ("bn", "standard")
            ]
            for seed, value in ratio(*steps).items():
                rows.append((network, item.lr, f"{network}|rate|{charts.spell(item.lr)}", seed, value))
    return pd.DataFrame(rows, columns=["network", "lr", "setting", "seed", "value"])


def step_ratio_chart(records: Mapping[str, Record]) -> alt.LayerChart:
    """`step_ratios` as one dot per seed, a bar at each median, on a logarithmic axis with a rule at 1."""
    table = step_ratios(records)
    order = list(dict.fromkeys(table["setting"]))
    told = "; ".join(
        f"{name.replace('|', ', ', 1).replace('|', ' ')}: median {charts.spell(part.median())}, "
        f"{charts.spell(part.min())} to {charts.spell(part.max())}"
        for name, part in table.groupby("setting", sort=False)["value"]
    )
    low, high = 0.8 * min(1, table["value"].min()), 1.25 * max(1, table["value"].max())
    marks = [m * 10.0**k for k in range(-6, 7) for m in (1, 2, 5)]

    def up(field: str) -> alt.Y:
        return alt.Y(
            field,
            title="Relative step, batch norm / standard (times)",
            scale=alt.Scale(type="log", domain=[low, high], nice=False),
            axis=alt.Axis(format="~g", values=[v for v in marks if low <= v <= high]),
        )

    across = alt.X(
        "setting:N",
        title=None,
        sort=order,
        axis=alt.Axis(labelAngle=0, grid=False, labelExpr="split(datum.value, '|')", labelOverlap=False),
        scale=alt.Scale(padding=0.5),
    )
    base = alt.Chart(charts.rounded(table[["setting", "seed", "value"]])).encode(x=across)
    dots = base.mark_point(size=55, opacity=0.8, color=charts.INK).encode(y=up("value:Q"))
    bars = base.mark_tick(thickness=3, width=40, color=charts.INK).encode(y=up("median(value):Q"))
    one = alt.Chart(pd.DataFrame({"value": [1.0]})).mark_rule(strokeDash=[5, 4]).encode(y=up("value:Q"))
    return alt.layer(one, bars, dots).properties(
        width="container",
        height=240,
        description=(
            "Relative step of a layer with batch norm divided by that without, at equal learning rates, one "
            f"dot per seed, with a dashed rule at equal steps. {told}."
        ),
    )


# --- (c) equal relative steps: the whole grid ---------------------------------------------------------


class Place(NamedTuple):
    """A moment of a training at which the earlier layers were moved by equal relative lengths."""

    words: str
    loss: str
    lr: float
    step: int


def places_of(record: Record) -> list[Place]:
    """The probed moments. At step 0 the runs of all rates are the same network, so it is listed once; the
    mean loss is left out, because a constant factor changes no cosine at equal relative length."""
    frame = gradients.matched_shifts(record)
    frame = frame[(frame["loss"] != "squared_mean") & frame["arm"].isin(["standard", "bn"])]
    keys = sorted(
        set(zip(frame["loss"], frame["lr"], frame["step"], strict=True)), key=lambda k: (-k[1], k[2])
    )
    first = next(key for key in keys if key[2] == 0)
    start = Place("at the start", first[0], first[1], 0)
    return [
        start,
        *(
            Place(f"rate {charts.spell(lr)}, step {step}", loss, lr, int(step))
            for loss, lr, step in keys
            if step
        ),
    ]


def lengths_of(record: Record) -> list[float]:
    """The relative lengths of the moves, the shortest first."""
    return sorted(gradients.matched_shifts(record)["length"].unique())


def cells(record: Record) -> pd.DataFrame:
    """cos(G, G') of both arms in every cell: index (place, layer, length, seed), columns `standard`, `bn`."""
    frame = gradients.matched_shifts(record)
    table = frame.pivot_table(
        index=["loss", "lr", "step", "layer", "length", "seed"], columns="arm", values="value"
    )[["standard", "bn"]]
    parts = {}
    for number, place in enumerate(places_of(record)):
        try:
            parts[number] = table.loc[(place.loss, place.lr, place.step)]
        except KeyError:
            continue
    return pd.concat(parts, names=["place"]).dropna()


def grid_cells(record: Record) -> pd.DataFrame:
    """One row per place, layer and length: `gap`, the median over the seeds of standard minus BN; `agree`,
    1 if all seeds have the same sign."""
    gap = (table := cells(record))["standard"] - table["bn"]
    keys = ["place", "layer", "length"]
    grouped = gap.groupby(keys)
    agree = (gap > 0).groupby(keys).mean().isin([0, 1]).astype(int)
    return pd.DataFrame({"gap": grouped.median(), "agree": agree}).reset_index()


def grid_chart(record: Record, what: str) -> alt.FacetChart:
    """The whole grid: a panel per moment, layers downwards, relative length across.

    Blue cells: batch norm shifts more, orange: the standard network; the stronger, the larger the gap. The
    number is the gap; bold if all seeds agree in its sign (and it is not 0.00).
    """
    table, places = grid_cells(record), places_of(record)
    rows = {name: _short_words(name) for name in layers_of(record)}
    panels = [place.words for place in places]
    table["panel"] = [panels[number] for number in table["place"]]
    table["row"] = [rows[name] for name in table["layer"]]
    table["shift"] = [BN.label if gap > 0 else STANDARD.label for gap in table["gap"]]
    # A root, so that gaps of a few hundredths are seen beside those of 1.
    table["strength"] = [round(0.8 * math.sqrt(min(abs(gap), 1)), 3) for gap in table["gap"]]
    table["shown"] = [
        f"{gap:+.2f}".replace("-", "−") if abs(gap) >= 0.005 else "0.00" for gap in table["gap"]
    ]
    table["agree"] *= (table["gap"].abs() >= 0.005).astype(int)
    across = alt.X(
        "length:O",
        title="Relative length of the step",
        axis=alt.Axis(labelAngle=0, grid=False, labelExpr="format(toNumber(datum.value), '~e')"),
    )
    up = alt.Y(
        "row:N",
        title=None,
        sort=list(rows.values()),
        axis=alt.Axis(grid=False, ticks=False, labelFontSize=11, labelPadding=3),
    )
    base = alt.Chart(table[["panel", "row", "length", "shown", "agree", "shift", "strength"]])
    fill = base.mark_rect().encode(
        x=across,
        y=up,
        color=alt.Color(
            "shift:N",
            scale=alt.Scale(domain=[STANDARD.label, BN.label], range=[STANDARD.colour, BN.colour]),
            legend=alt.Legend(
                symbolType="square",
                symbolSize=160,
                labelFontSize=11,
                columnPadding=8,
                labelExpr="datum.label + ' shifts more'",
                symbolStrokeWidth=0,
                symbolOpacity=0.8,
            ),
        ),
        opacity=alt.Opacity("strength:Q", scale=None, legend=None),
    )
    plain, bold = (
        base.transform_filter(f"datum.agree == {agree}")
        .mark_text(fontSize=11, fontWeight=weight, opacity=1 if agree else 0.8)
        .encode(x=across, y=up, text="shown:N")
        for agree, weight in ((0, "normal"), (1, "bold"))
    )
    panel = 254  # two of them beside each other on the page
    chart = (
        alt.layer(fill, plain, bold)
        .properties(width=panel, height=22 * len(rows))
        .facet(alt.Facet("panel:N", sort=panels, title=None), columns=2)
        .resolve_axis(x="independent", y="independent")
        .properties(description=_describe_grid(record, what))
    )
    return charts.responsive(chart, panel, len(panels))


def _describe_grid(record: Record, what: str) -> str:
    table, places = grid_cells(record), places_of(record)
    told = []
    for number, part in table.groupby("place"):
        told.append(f"{places[number].words}: in {int((part['gap'] > 0).sum())} of {len(part)}")
    low, high = table.loc[table["gap"].idxmin()], table.loc[table["gap"].idxmax()]

    def where(row: pd.Series) -> str:
        return (
            f"{charts.spell(row['gap'])} in {layer_words(row['layer'])} at relative length "
            f"{charts.spell(row['length'])}, {places[row['place']].words}"
        )

    return (
        f"Heatmaps for {what}, one per moment: cosine of the standard network minus cosine with batch norm "
        "after steps of equal relative length, median over the seeds; layers downwards, relative length "
        f"across. Batch norm shifts more, moment by moment: {'; '.join(told)} cells. "
        f"Lowest {where(low)}; highest {where(high)}."
    )


# --- (d) equal relative steps: one cell and its seeds -------------------------------------------------


class Grid(NamedTuple):
    """A network's record and its words."""

    words: str
    record: Record


def sensitivity_rows(grids: list[Grid]) -> list[dict]:
    """One row per network, place, layer and seed: 1 − cos(G, G') of both arms, one number per length.

    `k` is the layer's rank among the probed ones, from 1, and `last` the largest rank. A cell in which one of
    the arms has no value is a cross in both.
    """
    rows, offset = [], 0
    for grid in grids:
        table, layers, lengths = cells(grid.record), layers_of(grid.record), lengths_of(grid.record)
        places = [place.words for place in places_of(grid.record)]
        for (place, layer, seed), part in table.groupby(["place", "layer", "seed"]):
            values = part.droplevel(["place", "layer", "seed"]).reindex(lengths)
            rows.append(
                {
                    "place": offset + place,
                    "where": f"{grid.words}, {places[place]}, {_short_words(layer)}",
                    "k": 1 + layers.index(layer),
                    "last": len(layers),
                    "first": round(math.log10(lengths[0])),
                    "longest": round(math.log10(lengths[-1])),
                    "seed": seed,
                    "standard": charts.packed(1 - values["standard"], ".5g"),
                    "bn": charts.packed(1 - values["bn"], ".5g"),
                }
            )
        offset += len(places)
    return rows


def sensitivity_chart(grids: list[Grid], start: Mapping[str, object]) -> alt.LayerChart:
    """Cosine of the gradients against the relative length of the step, both arms, every seed.

    Params: `place` (a network and a moment), `depth` (rank of the layer among the probed ones; the last
    if there are fewer), `exponent` (the length is 10 to this power, or the nearest that was measured) and
    `show` ("cosine", or "distance": 1 − cosine on a logarithmic axis). Below the axis, in words: the chosen
    cell, and in how many cells of this moment batch norm has the smaller cosine.
    """
    labels = [STANDARD.label, BN.label]
    scales = charts.arm_scales(labels, legend=alt.Legend(offset=30))
    height = 270
    across = alt.X(
        "x:Q",
        title="Relative length of the step of every earlier layer",
        scale=alt.Scale(nice=False, zero=False, padding=12),
        axis=alt.Axis(tickMinStep=1, labelExpr="'1e' + datum.label"),
    )
    power = "replace(format(pow(10, datum.value), '.0e'), '+', '')"
    axis = alt.Axis(labelExpr=f"show == 'cosine' ? datum.label : {power}", tickCount=6)

    def up(field: str) -> alt.Y:
        return alt.Y(field, title=None, scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart()
    by_arm = (
        base.transform_fold(["a", "b"], as_=["which", "d"])
        .transform_calculate(
            arm=f"datum.which == 'a' ? '{STANDARD.label}' : '{BN.label}'",
            y=f"show == 'cosine' ? 1 - datum.d : log(max(datum.d, {TINY})) / LN10",
        )
        .transform_filter("isFinite(datum.d)")
    )
    seeds = by_arm.mark_line(strokeWidth=0.8, opacity=0.6).encode(
        x=across, y=up("y:Q"), detail="seed:N", **scales
    )
    median = by_arm.mark_line().encode(x=across, y=up("median(y):Q"), **scales)
    here = by_arm.transform_filter("datum.x == datum.chosen")
    dots = here.mark_point(size=50, opacity=0.9).encode(x=across, y=up("y:Q"), color=scales["color"])
    # Never seen: it holds the axis open.
    frame = (
        by_arm.transform_aggregate(x="min(x)", low="min(y)", high="max(y)")
        .transform_calculate(
            low="show == 'cosine' ? -1 : datum.low", high="show == 'cosine' ? 1 : datum.high"
        )
        .transform_fold(["low", "high"], as_=["which", "y"])
        .mark_point(opacity=0)
        .encode(x=across, y=up("y:Q"))
    )
    rule = base.transform_aggregate(x="min(chosen)").mark_rule(strokeDash=[4, 3]).encode(x=across)
    heading = (
        base.transform_aggregate(n="count()")
        .transform_calculate(words="show == 'cosine' ? 'cos(G, G′)' : '1 − cos(G, G′)'")
        .mark_text(align="left", fontSize=13)
        .encode(x=alt.value(0), y=alt.value(-14), text="words:N")
    )

    def line(rows: alt.Chart, number: int, **style: object) -> alt.Chart:
        place = {"x": alt.value(-44), "y": alt.value(height + 60 + 18 * number)}
        return rows.mark_text(align="left", fontSize=12, **style).encode(text="words:N", **place)

    cell = base.transform_filter("datum.x == datum.chosen")
    where = cell.transform_aggregate(where="min(where)", length="min(x)").transform_calculate(
        words="datum.where + ', length 1e' + replace(toString(datum.length), '-', '−') + ':'"
    )

    numbers = by_arm.transform_filter("datum.x == datum.chosen").transform_aggregate(
        middle="median(d)", low="min(d)", high="max(d)", groupby=["arm"]
    )
    told = numbers.transform_calculate(
        words="datum.arm + ': cosine ' + format(1 - datum.middle, '.4~f') + ' ('"
        " + format(1 - datum.high, '.4~f') + ' to ' + format(1 - datum.low, '.4~f') + ')'"
    )
    arms = [told.transform_filter(f"datum.arm == '{label}'") for label in labels]
    this = cell.transform_aggregate(lower="sum(lower)", both="sum(both)").transform_calculate(
        words=f"'{BN.label} shifts more in ' + datum.lower + ' of ' + datum.both + ' seeds here,'"
    )
    all_ = base.transform_aggregate(lower="min(lowers)", both="min(boths)").transform_calculate(
        words="'and in ' + datum.lower + ' of ' + datum.both + ' cells (layer, length, seed) then.'"
    )
    lines = [where, *arms, this, all_]
    chart = alt.layer(
        rule,
        seeds,
        median,
        dots,
        frame,
        heading,
        *(
            line(rows, number, fontWeight="bold" if number == 0 else "normal")
            for number, rows in enumerate(lines)
        ),
    ).properties(data=alt.Data(values=sensitivity_rows(grids)), width="container", height=height)
    return (
        chart.transform_filter("datum.place == place")
        .transform_calculate(a="split(datum.standard, ' ')", b="split(datum.bn, ' ')")
        .transform_flatten(["a", "b"])
        .transform_window(i="row_number()", groupby=["k", "seed"])
        .transform_calculate(a="toNumber(datum.a)", b="toNumber(datum.b)", x="datum.first + datum.i - 1")
        .transform_calculate(both="isFinite(datum.a) && isFinite(datum.b) ? 1 : 0")
        .transform_calculate(lower="datum.both && datum.b > datum.a ? 1 : 0")
        .transform_joinaggregate(lowers="sum(lower)", boths="sum(both)")
        .transform_filter("datum.k == min(depth, datum.last)")
        .transform_calculate(chosen="clamp(exponent, datum.first, datum.longest)")
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def sensitivity(grids: list[Grid]) -> ipywidgets.VBox:
    """The chart of `sensitivity_chart` under its controls; the lengths must be powers of ten in a row."""
    options, ranks, exponents = [], [], set()
    for grid in grids:
        lengths = [math.log10(length) for length in lengths_of(grid.record)]
        if any(abs(value - round(lengths[0]) - n) > 1e-9 for n, value in enumerate(lengths)):
            raise ValueError(f"The lengths of {grid.words} are not powers of ten in a row.")
        exponents |= {round(value) for value in lengths}
        ranks.append(len(layers_of(grid.record)))
        options += [f"{grid.words}, {place.words}" for place in places_of(grid.record)]
    start = {
        "place": 0,
        "depth": 1 + ranks[0] // 2,
        "exponent": sorted(exponents)[-2],
        "show": "cosine",
    }
    told = []
    for grid in grids:
        table = cells(grid.record)
        told.append(f"{grid.words}: {int((table['bn'] < table['standard']).sum())} of {len(table)}")
    explorer = widgets.Explorer(
        sensitivity_chart(grids, start),
        description=(
            "Cosine of a layer's gradients before and after all earlier layers have moved by the same "
            "relative length, against this length, for the standard network and the one with batch norm, one "
            "thin line per seed; network, moment, layer and length can be chosen. Cells (moment, layer, "
            f"length, seed) in which batch norm shifts more: {'; '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        place=ipywidgets.Dropdown(
            description="moment", options=[(words, n) for n, words in enumerate(options)], value=0
        ),
        depth=ipywidgets.IntSlider(
            description="layer, early to late", value=start["depth"], min=1, max=max(ranks)
        ),
        exponent=ipywidgets.SelectionSlider(
            description="relative length",
            options=[(f"1e−{-value}", value) for value in sorted(exponents)],
            value=start["exponent"],
        ),
        show=ipywidgets.Dropdown(
            description="show",
            options=[("cosine", "cosine"), ("1 − cosine, logarithmic", "distance")],
            value="cosine",
        ),
    )


# --- (e) shift and training ---------------------------------------------------------------------------


def shift_and_loss(records: Mapping[str, Record]) -> pd.DataFrame:
    """One row per run: `shift`, one minus the median of cos(G, G') over steps and layers, and `loss`, the
    mean training loss of its last tenth; columns network, setting, arm, seed. Diverged runs are left out, and
    so is the mean loss."""
    rows = []
    for network, record in records.items():
        losses = record.frame("lr", "loss", metric="train_loss")
        losses["loss"] = losses["loss"].fillna("cross_entropy")
        gone = {run["id"] for run in record.runs if run["diverged_at"] is not None}
        for item in settings_of(record):
            if item.loss == "squared_mean":
                continue
            steps = max(
                of_run(run["settings"], "steps") for run in record.runs if run["settings"]["lr"] == item.lr
            )
            part = losses[(losses["lr"] == item.lr) & (losses["loss"] == item.loss)]
            part = part[(part["step"] >= 0.9 * steps) & ~part["run"].isin(gone)]
            ends = part.groupby(["arm", "seed"])["value"].mean()
            for arm in ("standard", "bn"):
                cosines = gradients.typical(record, arm, item.lr, item.loss)
                for seed, cosine in cosines.items():
                    if (arm, seed) in ends.index:
                        words = f"{network}, rate {charts.spell(item.lr)}"
                        rows.append((network, words, arm, seed, 1 - cosine, ends[arm, seed]))
    return pd.DataFrame(rows, columns=["network", "setting", "arm", "seed", "shift", "loss"])


def lower_loss_more_shift(table: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Setting -> (pairs in which the arm with more shift has the lower loss, all pairs); a pair is a seed."""
    counts = {}
    for name, part in table.groupby("setting", sort=False):
        arms = {arm: rows.set_index("seed") for arm, rows in part.groupby("arm")}
        if len(arms) < 2:
            continue
        shift, loss = (
            paired(arms["bn"][column].to_dict(), arms["standard"][column].to_dict())
            for column in ("shift", "loss")
        )
        counts[name] = (sum(shift[seed] * loss[seed] < 0 for seed in shift), len(shift))
    return counts


def shift_and_loss_chart(records: Mapping[str, Record]) -> alt.FacetChart:
    """`shift_and_loss`: one dot per run, lines join the two arms of a seed, a panel per setting with axes of
    its own."""
    table = shift_and_loss(records)
    panels = list(dict.fromkeys(table["setting"]))
    counts = lower_loss_more_shift(table)
    shown = charts.rounded(
        pd.DataFrame(
            {
                "panel": table["setting"],
                "arm": [_label(arm) for arm in table["arm"]],
                "seed": table["seed"],
                "x": table["shift"].clip(lower=TINY),
                "y": table["loss"],
            }
        ),
        4,
    )
    scales = charts.arm_scales(
        [STANDARD.label, BN.label], legend=alt.Legend(symbolType="circle", symbolSize=80)
    )
    across = alt.X(
        "x:Q",
        title="Typical shift, 1 − median cos(G, G′)",
        scale=alt.Scale(type="log", nice=False, padding=10),
        axis=alt.Axis(format="~g", tickCount=3, grid=False),
    )
    up = alt.Y(
        "y:Q",
        title="Loss at the end",
        scale=alt.Scale(zero=False, padding=10),
        axis=alt.Axis(tickCount=5, format="~s"),
    )
    base = alt.Chart(shown)
    pairs = base.mark_line(color=charts.INK, strokeWidth=1, opacity=0.4).encode(
        x=across, y=up, detail="seed:N"
    )
    dots = base.mark_point(size=65, opacity=0.9).encode(x=across, y=up, color=scales["color"])
    panel = 260
    told = "; ".join(f"{name}: {more} of {n}" for name, (more, n) in counts.items())
    chart = (
        alt.layer(pairs, dots)
        .properties(width=panel, height=180)
        .facet(alt.Facet("panel:N", sort=panels, title=None), columns=2)
        .resolve_scale(x="independent", y="independent")
        .resolve_axis(x="independent", y="independent")
        .properties(
            description=(
                "Typical covariate shift of each run against its training loss at the end, one dot per run, "
                "a line joins the two arms of a seed, one panel per setting. Seeds in which the arm with the "
                f"larger shift ends at the lower loss: {told}."
            )
        )
    )
    return charts.responsive(chart, panel, len(panels))


# --- in words -----------------------------------------------------------------------------------------


def contradiction(record: Record) -> tuple[str, str] | None:
    """Two cells of the grid that say opposite things with all seeds agreeing, in words: the one in which BN
    shifts most beyond the standard network, and the one in which it is the other way round most."""
    table, places = grid_cells(record), places_of(record)
    table = table[table["agree"] == 1]
    if table.empty or not (table["gap"].min() < 0 < table["gap"].max()):
        return None
    values = cells(record)

    def words(row: pd.Series) -> str:
        part = values.loc[(row["place"], row["layer"], row["length"])].median()
        cosines = (f"{part[arm]:.2f}".replace("-", "−") for arm in ("standard", "bn"))
        return "{} ({}, relative length {}): median cosine {} without BN, {} with it".format(
            layer_words(row["layer"]), places[row["place"]].words, charts.spell(row["length"]), *cosines
        )

    return words(table.loc[table["gap"].idxmax()]), words(table.loc[table["gap"].idxmin()])
