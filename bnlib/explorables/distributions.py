"""The figures and explorables of chapter 3: distributions that move while a network trains.

A recorded histogram is a list of quantiles with equal mass between neighbours (`activation_histogram`), all
channels of a layer together.  Each function here takes records and returns a finished chart or widget; series
travel as one string each (see `bnlib.charts.packed`), and the page computes densities and words from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import altair as alt
import ipywidgets
import numpy as np
import pandas as pd

from bnlib import charts, widgets
from bnlib.records import Record

GRID = 61  # points of a ridge
SNAPSHOTS = 9  # ridges one above the other


# --- recorded histograms ------------------------------------------------------------------------------


def quantiles(record: Record) -> pd.DataFrame:
    """All recorded histograms, one per row, indexed by (arm, seed, layer, step); columns: probabilities."""
    frame = record.frame()
    frame = frame[frame["metric"].str.startswith("quantile=")]
    level = frame["metric"].str.removeprefix("quantile=").astype(float)
    table = frame.assign(level=level).pivot(
        index=["arm", "seed", "layer", "step"], columns="level", values="value"
    )
    return table.sort_index().dropna()


def density(levels: np.ndarray, values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    r"""Density on an even `grid` of the distribution with quantiles `values` at the probabilities `levels`.

    The distribution function is interpolated linearly between the quantiles, and
    $(F(x+\frac d2)-F(x-\frac d2))/d$ with the grid's distance d is returned; outside of the outermost
    quantiles it is 0.
    """
    distance = grid[1] - grid[0]
    edges = np.append(grid - distance / 2, grid[-1] + distance / 2)
    mass = np.interp(edges, values, levels, left=levels[0], right=levels[-1])
    return np.diff(mass) / distance


def deviations(record: Record) -> pd.Series:
    """The unit of all distances: the channels' average standard deviation, by (arm, seed, layer, step)."""
    frame = record.frame(metric="deviation")
    return frame.set_index(["arm", "seed", "layer", "step"])["value"].sort_index()


def snapshot_shift(record: Record) -> pd.DataFrame:
    r"""Wasserstein-1 distance between one recorded histogram and the next: rows (arm, seed, layer, step,
    value).

    $W_1=\int|F^{-1}-G^{-1}|\,dp$ between the outermost recorded probabilities (trapezia), all channels of the
    layer together, in the channels' average standard deviation at the earlier one's `step`.
    """
    table, unit = quantiles(record), deviations(record)
    levels = table.columns.to_numpy(dtype=float)
    parts = []
    for (arm, seed, layer), rows in table.groupby(level=["arm", "seed", "layer"]):
        steps = rows.index.get_level_values("step")
        apart = np.abs(np.diff(rows.to_numpy(), axis=0))
        moved = (apart[:, 1:] + apart[:, :-1]) / 2 @ np.diff(levels)
        moved /= unit[arm, seed, layer].reindex(steps[:-1]).to_numpy()
        parts.append(
            pd.DataFrame({"arm": arm, "seed": seed, "layer": layer, "step": steps[:-1], "value": moved})
        )
    return pd.concat(parts, ignore_index=True)


def channel_drift(record: Record, gap: int) -> pd.DataFrame:
    """How far a channel's mean has come after `gap` steps: rows (arm, seed, layer, step, value).

    The distance |mean(step + gap) - mean(step)| of each recorded single channel, averaged over them, in
    their average standard deviation at `step`.
    """
    frame = record.frame()
    frame = frame[frame["metric"].str.endswith("]")]
    kind = frame["metric"].str.partition("[")
    table = frame.assign(kind=kind[0], channel=kind[2]).pivot(
        index=["arm", "seed", "layer", "step"], columns=["kind", "channel"], values="value"
    )
    parts = []
    for key, rows in table.groupby(level=["arm", "seed", "layer"]):
        rows = rows.droplevel(["arm", "seed", "layer"])
        later = rows["mean"].reindex(rows.index + gap).to_numpy()
        moved = np.abs(later - rows["mean"].to_numpy()).mean(axis=1)
        unit = np.sqrt(rows["variance"].to_numpy()).mean(axis=1)
        part = pd.DataFrame({"step": rows.index, "value": moved / unit}).dropna()
        parts.append(part.assign(**dict(zip(("arm", "seed", "layer"), key, strict=True))))
    return pd.concat(parts, ignore_index=True)


# --- figures ------------------------------------------------------------------------------------------


def _label(arm: str) -> str:
    return charts.ARMS[arm].label


def _arms(record: Record) -> list[str]:
    present = {run["arm"] for run in record.runs}
    return [arm for arm in charts.ARMS if arm in present]


def _word(value: float) -> str:
    """A number of standard deviations in words; rounding noise is not read out."""
    return charts.spell(round(float(value), 3) + 0.0, 2)


def _panels(record: Record, layers: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(layer, arm, words above the panel), row by row."""
    return [
        (layer, arm, f"{_label(arm)}, {words}") for layer, words in layers.items() for arm in _arms(record)
    ]


def _final_deviation(record: Record) -> pd.Series:
    return deviations(record).groupby(level=["arm", "seed", "layer"]).last()


def channel_bands(record: Record, layers: Mapping[str, str], seed: int = 0) -> alt.FacetChart:
    """Four channels over training: their means, and for the first of them one standard deviation each way.

    One panel per layer and arm, in the layer's own standard deviation at the end (an average over its
    channels).  `layers` maps a layer to its words.
    """
    unit = _final_deviation(record)
    frame = record.frame()
    frame = frame[frame["seed"] == seed]
    rows = []
    for layer, arm, words in _panels(record, layers):
        mine = frame[(frame["layer"] == layer) & (frame["arm"] == arm)]
        series = mine.pivot(index="step", columns="metric", values="value")
        series = series[[c for c in series if c.endswith("]")]].dropna().sort_index() / unit[arm, seed, layer]
        for channel in range(sum(c.startswith("mean[") for c in series)):
            mean = series[f"mean[{channel}]"]
            # The variance was divided by the unit once, and once more here.
            spread = np.sqrt(series[f"variance[{channel}]"] / unit[arm, seed, layer])
            rows.append(
                {
                    "panel": words,
                    "arm": _label(arm),
                    "channel": channel,
                    "steps": charts.packed(series.index, "d"),
                    "means": charts.packed(mean, ".3g"),
                    "spreads": charts.packed(spread, ".3g"),
                }
            )
    base = alt.Chart()
    colours = charts.arm_scales([_label(arm) for arm in _arms(record)])["color"]
    across = alt.X("x:Q", title="Step", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=4, format="d"))
    title = "Own standard deviations"
    band = (
        base.transform_filter("datum.channel == 0")
        .mark_area(opacity=0.25)
        .encode(x=across, y=alt.Y("low:Q", title=title), y2="high:Q", color=colours)
    )
    others = (
        base.transform_filter("datum.channel > 0")
        .mark_line(strokeWidth=0.9, opacity=0.75)
        .encode(x=across, y=alt.Y("m:Q", title=title), color=colours, detail="channel:N")
    )
    first = (
        base.transform_filter("datum.channel == 0")
        .mark_line(strokeWidth=2)
        .encode(x=across, y=alt.Y("m:Q", title=title), color=colours)
    )
    series = (
        alt.layer(band, others, first)
        .transform_calculate(
            x="split(datum.steps, ' ')", m="split(datum.means, ' ')", s="split(datum.spreads, ' ')"
        )
        .transform_flatten(["x", "m", "s"])
        .transform_calculate(x="toNumber(datum.x)", m="toNumber(datum.m)", s="toNumber(datum.s)")
        .transform_calculate(low="datum.m - datum.s", high="datum.m + datum.s")
    )
    chart = _grid(series, rows, height=120)
    steps = record.frame(metric="mean")["step"].max()
    return chart.properties(
        description=f"One panel per layer and arm: the means of four channels over {steps} training steps, "
        "with a band of one standard deviation each way around the first, in the layer's own standard "
        "deviation at the end. " + _ranges(record, layers, seed)
    )


def _ranges(record: Record, layers: Mapping[str, str], seed: int) -> str:
    """In words, how far the single channels' means reach, in each panel."""
    unit = _final_deviation(record)
    frame = record.frame()
    frame = frame[(frame["seed"] == seed) & frame["metric"].str.startswith("mean[")]
    words = []
    for layer, arm, name in _panels(record, layers):
        values = (
            frame.loc[(frame["layer"] == layer) & (frame["arm"] == arm), "value"] / unit[arm, seed, layer]
        )
        words.append(f"{name}: means from {_word(values.min())} to {_word(values.max())}")
    return "; ".join(words) + "."


def ridge_grid(
    record: Record, layers: Mapping[str, str], seed: int = 0, reach: float = 4.0
) -> alt.FacetChart:
    """Recorded histograms one above the other, from the first step (top) to the last, per layer and arm.

    Every panel has the same axis: the arm's own standard deviations at the end of training, cut at `reach`.
    Each ridge's height is relative to its own highest point: a density that starts narrow would be too high
    to draw.
    """
    table, units = quantiles(record), deviations(record)
    levels = table.columns.to_numpy(dtype=float)
    grid = np.linspace(-reach, reach, GRID)
    rows, spoken = [], []
    for layer, arm, words in _panels(record, layers):
        mine = table.xs((arm, seed, layer), level=("arm", "seed", "layer"))
        spreads = units[arm, seed, layer]
        unit = spreads.iloc[-1]
        chosen = sorted(set(np.linspace(0, len(mine) - 1, min(SNAPSHOTS, len(mine))).round().astype(int)))
        for place, number in enumerate(chosen):
            heights = density(levels, mine.iloc[number].to_numpy() / unit, grid)
            rows.append(
                {
                    "panel": words,
                    "arm": _label(arm),
                    "place": place,
                    "heights": charts.packed(1.8 * heights / heights.max(), ".3f"),
                }
            )
        steps = [int(mine.index[number]) for number in chosen]
        start, end = (mine.iloc[number].mean() / unit for number in (0, -1))
        spoken.append(
            f"{words}: standard deviation {_word(spreads.iloc[0] / unit)} and mean "
            f"{_word(start)} at first, 1 and {_word(end)} at the end"
        )
    names = [str(step) for step in steps]
    last = len(names) - 1
    up = alt.Y(
        "top:Q",
        title="Step",
        scale=alt.Scale(domain=[-last, 1.9], nice=False, zero=False),
        axis=alt.Axis(
            values=list(range(-last, 1)), labelExpr=f"{names}[-datum.value]", grid=False, ticks=False
        ),
    )
    across = alt.X(
        "x:Q",
        title="Own standard deviations",
        scale=alt.Scale(domain=[-reach, reach], nice=False),
        axis=alt.Axis(tickCount=5),
    )
    area = (
        alt.Chart()
        .transform_calculate(h="split(datum.heights, ' ')")
        .transform_flatten(["h"])
        .transform_window(i="row_number()", groupby=["panel", "place"])
        .transform_calculate(
            x=f"{-reach} + (datum.i - 1) * {2 * reach / (GRID - 1):.6g}",
            base="-datum.place",
            top="toNumber(datum.h) - datum.place",
        )
        .mark_area(fillOpacity=0.35, strokeWidth=1.2, line=True, clip=True)
        .encode(
            x=across,
            y=up,
            y2="base:Q",
            color=charts.arm_scales([_label(arm) for arm in _arms(record)])["color"],
            detail="place:O",
        )
    )
    return _grid(area, rows, height=40 + 14 * len(names)).properties(
        description=f"Ridges of histograms from step {names[0]} (top) to {names[-1]} (bottom), one panel per "
        f"layer and arm, in the arm's own standard deviations at the end. {'; '.join(spoken)}."
    )


def _grid(chart: alt.Chart | alt.LayerChart, rows: list[dict], height: int) -> alt.FacetChart:
    """One panel per value of `panel`, two in a row where there is room, all on the same axes."""
    words = list(dict.fromkeys(row["panel"] for row in rows))
    faceted = (
        chart.properties(width=260, height=height)
        .facet(alt.Facet("panel:N", sort=words, title=None), columns=2, data=alt.Data(values=rows))
        .resolve_axis(x="independent", y="independent")
    )
    return charts.responsive(faceted, 260, 2)


# --- (a) the histograms, step by step -----------------------------------------------------------------


class Place(NamedTuple):
    """A recorded layer of a network, and its words for readers."""

    words: str
    record: Record
    layer: str


def _kept(levels: np.ndarray) -> np.ndarray:
    """Positions of the quantiles that the page gets: the outermost ones, and every second between them."""
    return np.unique([0, *range(1, len(levels), 2), len(levels) - 1])


def histogram_rows(places: Sequence[Place]) -> list[dict]:
    """One row per place, arm and seed: every recorded histogram (`;` between steps), the mean and the
    channels' average standard deviation, how far one more step moves a channel, and the training loss (a
    mean of ten steps)."""
    rows = []
    for number, place in enumerate(places):
        table, units = quantiles(place.record), deviations(place.record)
        kept = _kept(table.columns)
        shares = np.diff(table.columns.to_numpy(dtype=float)[kept])
        index = ["arm", "seed", "layer", "step"]
        means, moved = (
            place.record.frame(metric=metric).set_index(index)["value"].sort_index()
            for metric in ("mean", "wasserstein")
        )
        losses = place.record.frame(metric="train_loss").set_index(["arm", "seed", "step"])["value"]
        losses = losses.sort_index()
        for (arm, seed), mine in table.xs(place.layer, level="layer").groupby(level=["arm", "seed"]):
            steps = mine.index.get_level_values("step")
            values = mine.to_numpy()[:, kept]
            mean, spread, motion = (
                series[arm, seed, place.layer].reindex(steps).to_numpy() for series in (means, units, moved)
            )
            loss = losses[arm, seed].to_numpy()
            heights = spread[:, None] * shares / np.diff(values, axis=1)
            rows.append(
                {
                    "place": number,
                    "arm": _label(arm),
                    "seed": int(seed),
                    "low": float(f"{values.min():.4g}"),
                    "high": float(f"{values.max():.4g}"),
                    "peak": float(f"{heights.max():.3g}"),
                    "steps": charts.packed(steps, "d"),
                    "quantiles": ";".join(charts.packed(row) for row in values),
                    "means": charts.packed(mean, ".3f"),
                    "spreads": charts.packed(spread, ".3g"),
                    "moved": charts.packed(motion, ".2g"),
                    "losses": charts.packed(
                        [loss[min(s, max(0, len(loss) - 10)) :][:10].mean() for s in steps], ".3g"
                    ),
                }
            )
    return rows


HEIGHT = 250


def histogram_chart(places: Sequence[Place]) -> alt.LayerChart:
    """A layer's histogram at a step, both arms, with the recorded one before it as a thin outline.

    Params: `place` (its number), `seed`, `step` (the latest recorded one up to it is shown), `chosen` (the
    label of the arm that is drawn strongly, or "both") and `measure` ("raw": as they are; "own": in the arm's
    standard deviation at the end).  A bar between two quantiles has the same share of the values everywhere;
    the line joins the bars' middles.
    """
    rows = histogram_rows(places)
    labels = [_label(arm) for arm in _arms(places[0].record)]
    levels = quantiles(places[0].record).columns.to_numpy(dtype=float)
    shares = np.diff(levels[_kept(levels)]).round(6).tolist()
    scales = charts.arm_scales(labels, legend=alt.Legend(offset=30))  # room for the heading
    unit = "(measure == 'raw' ? 1 : datum.unit)"
    base = alt.Chart()
    across = alt.X("x:Q", title=None, scale=alt.Scale(zero=False, nice=False))
    # Areas of one colour each would be stacked on one another.
    up = alt.Y("y:Q", title="Density × std", scale=alt.Scale(nice=False), stack=None)
    now, before = (
        base.transform_filter(f"datum.back == {back} && isValid(datum.following)") for back in (0, 1)
    )
    once_per_arm = base.transform_filter("datum.back == 0 && datum.k == 1")
    opacity = alt.Opacity("ink:Q", scale=None, legend=None)
    area = (
        now.transform_calculate(ink="0.28 * datum.ink")
        .mark_area()
        .encode(x=across, y=up, color=scales["color"], opacity=opacity)
    )
    outline = now.mark_line(strokeWidth=2.2).encode(x=across, y=up, opacity=opacity, order="k:Q", **scales)
    ghost = before.mark_line(strokeWidth=0.9).encode(
        x=across, y=up, color=scales["color"], opacity=opacity, order="k:Q"
    )
    # Invisible: they keep the axes still while the step moves.
    corners = [
        once_per_arm.transform_calculate(x=f"datum.{x} / {unit}", y=y)
        .mark_point(opacity=0)
        .encode(x=across, y=up)
        for x, y in (("low", "0"), ("high", "datum.peak"))
    ]
    zero = base.transform_aggregate(n="count()").transform_calculate(x="0").mark_rule(strokeDash=[2, 2])

    def words(chart: alt.Chart, dx: float, dy: float, **style: object) -> alt.Chart:
        place = {"x": alt.value(dx), "y": alt.value(dy)}
        return chart.mark_text(align="left", fontSize=12, **style).encode(text="words:N", **place)

    once = base.transform_aggregate(step="max(now)", last="max(last)")
    heading = words(
        once.transform_calculate(words="'Step ' + datum.step + ' of ' + datum.last"),
        0,
        -12,
        fontWeight="bold",
    )
    title = words(
        once.transform_calculate(
            words="measure == 'raw' ? 'Activation before the ReLU, as it is'"
            " : 'Activation before the ReLU, in its standard deviation at the end'"
        ),
        0,
        HEIGHT + 34,
    )
    spoken = once_per_arm.transform_calculate(
        words="[datum.arm + ': mean ' + replace(datum.middle, '-', '−') + ', std ' + datum.all[datum.at]"
        " + ', loss ' + datum.nats, 'one more step moves it by ' + datum.motion + ' std']"
    )
    lines = [
        words(
            spoken.transform_filter(f"datum.arm == '{label}'"), -40, HEIGHT + 62 + 38 * number, lineHeight=16
        )
        for number, label in enumerate(labels)
    ]
    chart = alt.layer(
        area, ghost, outline, *corners, zero.encode(x=across), heading, title, *lines
    ).properties(data=alt.Data(values=rows), width="container", height=HEIGHT)
    return (
        chart.transform_filter("datum.place == place && datum.seed == seed")
        # New names: Vega writes into the rows, and a row comes by again when it is chosen again.
        .transform_calculate(times="split(datum.steps, ' ')")
        .transform_calculate(last="toNumber(datum.times[length(datum.times) - 1])")
        .transform_calculate(every="toNumber(datum.times[1])")
        .transform_calculate(
            at="step >= datum.last ? length(datum.times) - 1 : floor(step / datum.every)",
            all="split(datum.spreads, ' ')",
        )
        .transform_calculate(
            now="toNumber(datum.times[datum.at])",
            unit="toNumber(datum.all[length(datum.all) - 1])",
            middle="split(datum.means, ' ')[datum.at]",
            motion="split(datum.moved, ' ')[datum.at]",
            nats="split(datum.losses, ' ')[datum.at]",
            back="[0, 1]",
        )
        .transform_flatten(["back"])
        .transform_calculate(at="max(datum.at - datum.back, 0)")
        .transform_calculate(
            q="split(split(datum.quantiles, ';')[datum.at], ' ')", spread="toNumber(datum.all[datum.at])"
        )
        .transform_flatten(["q"])
        .transform_calculate(q="toNumber(datum.q)")
        .transform_window(k="row_number()", following="lead(q)", groupby=["arm", "back"], frame=[None, None])
        .transform_calculate(
            x=f"(datum.q + datum.following) / 2 / {unit}",
            y=f"{shares}[datum.k - 1] * datum.spread / (datum.following - datum.q)",
            ink="chosen == 'both' || chosen == datum.arm ? 1 : 0.25",
        )
        .add_params(
            alt.param(name="place", value=0),
            alt.param(name="seed", value=0),
            alt.param(name="step", value=_start(places)),
            alt.param(name="chosen", value="both"),
            alt.param(name="measure", value="raw"),
        )
    )


def _recorded_steps(place: Place) -> np.ndarray:
    return quantiles(place.record).index.get_level_values("step").unique().sort_values().to_numpy()


def _start(places: Sequence[Place]) -> int:
    """The third recorded step: something has moved, and there is more to come."""
    return int(_recorded_steps(places[0])[2])


def moving_histograms(places: Sequence[Place]) -> ipywidgets.VBox:
    """The chart of `histogram_chart` under its controls."""
    labels = [_label(arm) for arm in _arms(places[0].record)]
    seeds = sorted({run["seed"] for place in places for run in place.record.runs})
    last = max(int(_recorded_steps(place)[-1]) for place in places)
    every = int(np.diff(_recorded_steps(places[0])).max())
    explorer = widgets.Explorer(histogram_chart(places), description=_describe(places))
    return widgets.controls(
        explorer,
        step=ipywidgets.IntSlider(description="step", value=_start(places), min=0, max=last, step=every),
        place=ipywidgets.Dropdown(
            description="layer", options=[(place.words, n) for n, place in enumerate(places)], value=0
        ),
        chosen=ipywidgets.Dropdown(
            description="arm", options=[("both", "both"), *((label, label) for label in labels)], value="both"
        ),
        measure=ipywidgets.Dropdown(
            description="measured",
            options=[("as it is", "raw"), ("in its final std", "own")],
            value="raw",
        ),
        seed=ipywidgets.Dropdown(description="seed", options=[(str(s), s) for s in seeds], value=seeds[0]),
    )


def _describe(places: Sequence[Place]) -> str:
    parts = []
    for place in places:
        spread = deviations(place.record)
        moved = place.record.frame(metric="wasserstein")
        moved = moved[moved["layer"] == place.layer].groupby("arm")["value"].median()
        ends = []
        for arm in _arms(place.record):
            mine = spread.xs((arm, place.layer), level=("arm", "layer"))
            steps = mine.index.get_level_values("step")
            first, last = (charts.spell(mine[steps == s].median(), 2) for s in (steps.min(), steps.max()))
            ends.append(
                f"{_label(arm)} from standard deviation {first} to {last}, of which a typical step moves "
                f"{charts.spell(moved[arm], 2)}"
            )
        parts.append(f"{place.words}: {', '.join(ends)}")
    return (
        "Histograms of a layer's activations before the ReLU at one training step, both arms, with the "
        "recorded one before as a thin line; a slider moves the step, and layer, arm, unit and seed can be "
        f"chosen. {'; '.join(parts)}."
    )


# --- (b) what the distance measures -------------------------------------------------------------------


def wasserstein_chart() -> alt.LayerChart:
    r"""The distribution functions of N(0, 1) and N(`shift`, `factor`²), and the area between them, $W_1$.

    In one dimension the best transport keeps the order, so $W_1=\mathrm E|\delta+(s-1)Z|$: with a=|s-1|,
    $W_1=a\sqrt{2/\pi}\,e^{-\delta^2/2a^2}+\delta\,(2\Phi(\delta/a)-1)$.
    """
    base = alt.Chart(alt.Data(sequence=alt.SequenceParams(start=-6, stop=8.05, step=0.1, **{"as": "x"})))
    base = base.transform_calculate(
        before="cumulativeNormal(datum.x, 0, 1)", after="cumulativeNormal(datum.x, shift, factor)"
    )
    across = alt.X(
        "x:Q", title="Activation (standard deviations)", scale=alt.Scale(domain=[-6, 8], nice=False)
    )
    title = "Share of values below"
    up = alt.Scale(domain=[0, 1], nice=False)
    between = base.mark_area(opacity=0.3).encode(
        x=across, y=alt.Y("before:Q", title=title, scale=up), y2="after:Q", color=alt.value("#0078c3")
    )
    lines = [
        base.mark_line(strokeWidth=2, strokeDash=dash).encode(
            x=across, y=alt.Y(f"{name}:Q", title=title, scale=up), color=alt.value("#0078c3")
        )
        for name, dash in (("before", [5, 3]), ("after", [1, 0]))
    ]
    words = (
        alt.Chart(alt.Data(values=[{}]))
        .transform_calculate(a="max(abs(factor - 1), 0.000001)")
        .transform_calculate(
            w="datum.a * sqrt(2 / PI) * exp(-shift * shift / (2 * datum.a * datum.a))"
            " + shift * (2 * cumulativeNormal(shift / datum.a, 0, 1) - 1)"
        )
        .transform_calculate(words="['shaded area:', 'distance ' + format(datum.w, '.2f')]")
        .mark_text(align="right", fontSize=13, fontWeight="bold", lineHeight=17)
        .encode(x=alt.value(alt.expr("width - 8")), y=alt.value(150), text="words:N")
    )
    return (
        alt.layer(between, *lines, words)
        .properties(width="container", height=200)
        .add_params(alt.param(name="shift", value=1.0), alt.param(name="factor", value=1.0))
    )


def wasserstein_toy() -> ipywidgets.VBox:
    """The chart of `wasserstein_chart` under its controls."""
    explorer = widgets.Explorer(
        wasserstein_chart(),
        description="Two distribution functions, a standard normal one and the same after a shift and a "
        "scaling that two sliders choose; the area between them is the Wasserstein-1 distance, which the "
        "chart spells out in standard deviations. At first the shift is 1 and the distance 1.",
    )
    return widgets.controls(
        explorer,
        shift=ipywidgets.FloatSlider(description="shift δ", value=1.0, min=0.0, max=2.0, step=0.1),
        factor=ipywidgets.FloatSlider(description="scaling s", value=1.0, min=0.2, max=2.0, step=0.1),
    )


# --- movement against progress ------------------------------------------------------------------------


def motion_and_loss(frame: pd.DataFrame) -> alt.LayerChart:
    """Loss against movement per step, one dot per arm and learning rate (written beside it), means over
    seeds.

    `frame` has the columns arm, lr, seed, motion (standard deviations per step) and loss (nats).
    """
    table = frame.groupby(["arm", "lr"], as_index=False)[["motion", "loss"]].mean()
    present = [arm for arm in charts.ARMS if arm in set(table["arm"])]
    spoken = [
        f"{_label(arm)}: "
        + "; ".join(
            f"rate {row.lr:g} moves {charts.spell(row.motion, 2)} and ends at {charts.spell(row.loss, 2)}"
            for row in table[table["arm"] == arm].itertuples()
        )
        for arm in present
    ]
    table["arm"] = [_label(arm) for arm in table["arm"]]
    table["words"] = [f"{lr:g}" for lr in table["lr"]]
    scales = charts.arm_scales([_label(arm) for arm in present], legend=alt.Legend())
    top = float(f"{1.15 * table['loss'].max():.2g}")  # room for the highest dot's rate
    base = alt.Chart(charts.rounded(table, 4)).encode(
        x=alt.X(
            "motion:Q",
            title="Moved in one step (std)",
            scale=alt.Scale(type="log", nice=False, padding=24),
            axis=alt.Axis(format="~g", tickCount=5),
        ),
        y=alt.Y("loss:Q", title="Training loss (nats)", scale=alt.Scale(domain=[0, top], nice=False)),
    )
    line = base.mark_line(strokeWidth=1.5).encode(order="lr:Q", **scales)
    dot = base.mark_point(size=70).encode(color=scales["color"])
    text = base.mark_text(dx=9, dy=-9, align="left").encode(text="words:N")
    return alt.layer(line, dot, text).properties(
        width="container",
        height=230,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        description="Training loss (nats) against the standard deviations that one step moves a layer, one "
        f"dot per learning rate. {'. '.join(spoken)}.",
    )
