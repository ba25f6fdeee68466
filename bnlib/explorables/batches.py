"""The figures of chapter 13: small batches, other images, gamma and beta alone, and rank.

Functions that end in `_chart` return a chart, `normalised`, `sizes` and `shifts` finished widgets.  What a
reader chooses is computed in the page, with or without a kernel.  No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import altair as alt
import ipywidgets
import numpy as np
import pandas as pd

from bnlib import charts, widgets
from bnlib.charts import Arm
from bnlib.experiments import batches
from bnlib.records import Record

GREY = "#7d838c"
BLUE, ORANGE = charts.ARMS["bn"].colour, charts.ARMS["standard"].colour

#: which statistics a trained network with BN is used with
MODES = {
    "test_accuracy_running": Arm("Running statistics", BLUE, (1, 0)),
    "test_accuracy_reestimated": Arm("Re-estimated", "#00a596", (6, 3)),
    "test_accuracy_batch": Arm("The batch's own", "#8f76c8", (2, 2)),
}
#: what was trained
PARTS = {
    "readout": Arm("Readout", "#b4875a", (6, 2, 2, 2, 2, 2)),
    "random_weights": Arm("Random weights", ORANGE, (7, 3)),
    "gamma_beta": Arm("γ and β", BLUE, (1, 0)),
    "gamma_beta_readout": Arm("γ, β and readout", "#6978ff", (12, 4)),
    "everything": Arm("All", GREY, (2, 2)),
}


def _told(base: alt.Chart, words: str, top: int, number: int, **style: object) -> alt.Chart:
    """Line `number` of what a figure says in words, `top` pixels below the top of its plot."""
    return (
        base.transform_calculate(told=words)
        .mark_text(align="left", fontSize=12, **style)
        .encode(text="told:N", x=alt.value(0), y=alt.value(top + 18 * number))
    )


# --- (a) what normalising m values does to them -------------------------------------------------------

LARGEST = 64
ROWS = 12  # batches that are drawn as dots
RANGE = 4.4  # of the axis


def gaussian_batches(seed: int = 0) -> np.ndarray:
    """Standard normal values (ROWS, LARGEST); the first m of each row are a batch of m."""
    return np.random.default_rng(seed).standard_normal((ROWS, LARGEST)).round(4)


def log_factor(m: int) -> float:
    r"""The logarithm of $\Gamma(\frac{m-1}2)/(\sqrt{\pi(m-1)}\,\Gamma(\frac{m-2}2))$, the factor in the
    density of one normalised value, see `bnlib.theory.small_batches.normalised_density`; m >= 3."""
    return math.lgamma((m - 1) / 2) - math.lgamma((m - 2) / 2) - math.log(math.pi * (m - 1)) / 2


def normalised_chart(count: int = 4) -> alt.LayerChart:
    """The density of one normalised value of a Gaussian batch of m, the Gaussian's, and batches as dots.

    Params: `count`, m, and `push`, by how much the first value of each batch is moved before the batch is
    normalised.  Below the axis, in words: Samuelson's bound, the kurtosis, E 1/σ², the largest dot.
    """
    height, points = 330, 161
    low, high = -0.78, 0.9  # below 0 lie the dots
    across = alt.X(
        "x:Q",
        title="Normalised value ŷ",
        scale=alt.Scale(domain=[-RANGE, RANGE], nice=False),
        axis=alt.Axis(values=list(range(-4, 5)), grid=False),
    )
    up = alt.Y(
        "y:Q",
        title="Density",
        scale=alt.Scale(domain=[low, high], nice=False),
        axis=alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8], titleY=height * high / (high - low) / 2),
    )
    factors = [{"m": m, "c": float(f"{log_factor(m):.6g}") if m > 2 else 0.0} for m in range(2, LARGEST + 1)]
    chosen = (
        alt.Chart(alt.Data(values=factors))
        .transform_filter("datum.m == count")
        .transform_calculate(bound="sqrt(datum.m - 1)")
    )
    curve = (
        chosen.transform_filter("datum.m > 2")
        .transform_calculate(i=f"sequence({points})")
        .transform_flatten(["i"])
        # Equal steps of the angle u, y = bound sin u: the density may be steep or infinite at the ends.
        .transform_calculate(u=f"(datum.i / {points - 1} - 0.5) * PI")
        .transform_calculate(
            x="datum.bound * sin(datum.u)",
            y="exp(datum.c + (datum.m - 4) * log(max(1e-4, cos(datum.u))))",
        )
    )
    area = curve.mark_area(fillOpacity=0.22, color=BLUE, clip=True).encode(x=across, y=up, y2=alt.datum(0))
    line = curve.mark_line(strokeWidth=2.4, color=BLUE, clip=True).encode(x=across, y=up, order="i:Q")
    two = (
        chosen.transform_filter("datum.m == 2")
        .transform_calculate(x="[-1, 1]")
        .transform_flatten(["x"])
        .transform_calculate(y="0.8", words="'half of all'")
    )
    spikes = two.mark_rule(strokeWidth=4, color=BLUE).encode(x=across, y=up, y2=alt.datum(0))
    halves = two.mark_text(dy=-9, fontSize=12).encode(x=across, y=up, text="words:N")
    gaussian = (
        alt.Chart(alt.Data(values=[{}]))
        .transform_calculate(i="sequence(89)")
        .transform_flatten(["i"])
        .transform_calculate(x=f"-{RANGE} + datum.i / 10")
        .transform_calculate(y="exp(-datum.x * datum.x / 2) / sqrt(2 * PI)")
        .mark_line(strokeDash=[3, 3], strokeWidth=1.6, color=charts.INK, opacity=0.75)
        .encode(x=across, y=up)
    )
    bounds = (
        chosen.transform_calculate(x="[-datum.bound, datum.bound]")
        .transform_flatten(["x"])
        .transform_filter(f"abs(datum.x) <= {RANGE}")
        .mark_rule(strokeDash=[6, 4], strokeWidth=1.6, color=ORANGE)
        .encode(x=across)
    )
    values = [{"row": n, "values": charts.packed(row, ".5g")} for n, row in enumerate(gaussian_batches())]
    dots = (
        alt.Chart(alt.Data(values=values))
        .transform_calculate(value="split(datum.values, ' ')")
        .transform_flatten(["value"])
        .transform_window(i="row_number()", groupby=["row"])
        .transform_filter("datum.i <= count")
        .transform_calculate(raw="toNumber(datum.value) + (datum.i == 1 ? push : 0)")
        .transform_joinaggregate(mean="mean(raw)", variance="variancep(raw)", groupby=["row"])
        .transform_calculate(x="(datum.raw - datum.mean) / sqrt(datum.variance)", y="-0.06 * (datum.row + 1)")
    )
    first = alt.condition("datum.i == 1", alt.value(ORANGE), alt.value(BLUE))
    marks = dots.mark_point(filled=True, clip=True).encode(
        x=across,
        y=up,
        color=first,
        shape=alt.condition("datum.i == 1", alt.value("diamond"), alt.value("circle")),
        size=alt.condition("datum.i == 1", alt.value(60), alt.value(16)),
        opacity=alt.condition("datum.i == 1", alt.value(1), alt.value(0.6)),
    )
    ground = alt.Chart(alt.Data(values=[{"y": 0}])).mark_rule(opacity=0.5).encode(y=up)
    top = height + 52
    furthest = dots.transform_calculate(size="abs(datum.x)").transform_aggregate(far="max(size)")
    lines = [
        _told(
            chosen,
            "'m = ' + count + ': no value beyond ±√' + (count - 1) + ' = ±' + format(datum.bound, '.2f')",
            top,
            0,
            fontWeight="bold",
        ),
        _told(
            chosen,
            "'Kurtosis ' + format(3 * (count - 1) / (count + 1), '.2f') + ' (Gaussian: 3)'",
            top,
            1,
        ),
        _told(
            chosen,
            "'1/σ² is on average ' + (count > 3 ? format(count / (count - 3), '.3~f') : 'infinite')"
            " + ' (large batch: 1)'",
            top,
            2,
        ),
        _told(furthest, "'Largest |ŷ| of the dots: ' + format(datum.far, '.2f')", top, 3),
        _told(chosen, "' '", top, 4),
    ]
    return (
        alt.layer(area, line, spikes, halves, gaussian, bounds, ground, marks, *lines)
        .properties(width="container", height=height)
        .add_params(alt.param(name="count", value=count), alt.param(name="push", value=0))
    )


def normalised() -> ipywidgets.VBox:
    """The chart of `normalised_chart` under its two sliders."""
    explorer = widgets.Explorer(
        normalised_chart(),
        description=(
            "Above: the density of one normalised value of m independent Gaussian values, with m from 2 to "
            f"{LARGEST}, beside the Gaussian density, dashed, and Samuelson's bound, the root of m minus 1. "
            "For m = 2 only plus and minus 1 are left; m = 3 is highest at the bounds, m = 4 is uniform "
            f"between plus and minus {math.sqrt(3):.2f}, a large m is nearly Gaussian. Below: {ROWS} random "
            "batches, normalised, as dots; the first value of each, a diamond, can be pushed away and "
            "never passes the bound."
        ),
    )
    return widgets.controls(
        explorer,
        count=ipywidgets.IntSlider(description="batch m", value=4, min=2, max=LARGEST),
        push=ipywidgets.FloatSlider(
            description="push first by", value=0, min=0, max=20, step=0.5, readout_format=".1f"
        ),
    )


# --- (b) batch size -----------------------------------------------------------------------------------

#: metric -> words
QUANTITIES = {
    "test_accuracy": "accuracy, evaluation mode",
    "test_accuracy_batch": "accuracy, the batch’s own",
    "test_accuracy_reestimated": "accuracy, re-estimated",
    "mode_disagreement": "the modes disagree",
}


def arms_of(record: Record) -> list[str]:
    """The arms of a record in the order of `batches.ARMS`."""
    present = {run["arm"] for run in record.runs}
    return [arm for arm in batches.ARMS if arm in present]


def sizes_of(record: Record) -> list[int]:
    """The batch sizes of a record, the smallest first."""
    return sorted({run["settings"]["batch_size"] for run in record.runs})


def size_rows(records: Mapping[str, Record]) -> list[dict]:
    """One row per network, quantity, arm and seed: per cent, a word per batch size."""
    rows = []
    for net, record in enumerate(records.values()):
        for quantity, metric in enumerate(QUANTITIES):
            frame = batches.at_the_end(record, metric, "batch_size")
            for (arm, seed), part in frame.groupby(["arm", "seed"]):
                values = 100 * part.set_index("batch_size")["value"].reindex(sizes_of(record))
                rows.append(
                    {
                        "net": net,
                        "quantity": quantity,
                        "arm": charts.ARMS[arm].label,
                        "seed": int(seed),
                        "sizes": charts.packed(sizes_of(record), "d"),
                        "values": charts.packed(values, ".6g"),
                    }
                )
    return rows


def size_chart(records: Mapping[str, Record], start: Mapping[str, int]) -> alt.LayerChart:
    """A quantity over the batch size, a colour per arm: every seed thin, the medians thick.

    Params: `net` (which of `records`), `quantity` (of `QUANTITIES`), `size`, a batch size whose medians stand
    below in words.
    """
    height = 260
    arms = [arm for arm in batches.ARMS if any(arm in arms_of(record) for record in records.values())]
    labels = [charts.ARMS[arm].label for arm in arms]
    scales = charts.arm_scales(labels, legend=alt.Legend(columns=2))
    ticks = sorted({size for record in records.values() for size in sizes_of(record)})
    across = alt.X(
        "x:Q",
        title="Batch size",
        scale=alt.Scale(type="log", base=2, domain=[ticks[0] / 1.15, ticks[-1] * 1.15], nice=False),
        axis=alt.Axis(values=ticks, format="d", grid=False),
    )
    up = {"title": "Per cent of the test images", "scale": alt.Scale(zero=False)}
    base = (
        alt.Chart(alt.Data(values=size_rows(records)))
        .transform_filter("datum.net == net && datum.quantity == quantity")
        .transform_calculate(x="split(datum.sizes, ' ')", y="split(datum.values, ' ')")
        .transform_flatten(["x", "y"])
        .transform_calculate(x="toNumber(datum.x)", y="toNumber(datum.y)")
        .transform_filter("isFinite(datum.y)")
    )
    seeds = base.mark_line(strokeWidth=0.8, opacity=0.5).encode(
        x=across, y=alt.Y("y:Q", **up), detail="seed:N", **scales
    )
    middle = base.transform_aggregate(y="median(y)", groupby=["arm", "x"])
    median = middle.mark_line(strokeWidth=2.4, point=alt.OverlayMarkDef(size=34)).encode(
        x=across, y=alt.Y("y:Q", **up), **scales
    )
    rule = (
        alt.Chart(alt.Data(values=[{}]))
        .transform_calculate(x="size")
        .mark_rule(strokeDash=[3, 3], opacity=0.8)
        .encode(x=across)
    )
    top = height + 56
    names = list(records)
    words = list(QUANTITIES.values())
    one = alt.Chart(alt.Data(values=[{}]))
    recorded = [sizes_of(record) for record in records.values()]
    head = [
        _told(one, f"{names}[net] + ', batch of ' + size + ':'", top, 0, fontWeight="bold"),
        _told(one, f"{words}[quantity]", top, 1),
    ]
    at = middle.transform_filter("datum.x == size")
    lines = [
        _told(
            at.transform_filter(f"datum.arm == '{label}'"),
            "datum.arm + ' ' + format(datum.y, '.1f') + ' %'",
            top,
            n,
        )
        for n, label in enumerate(labels, start=2)
    ]
    absent = one.transform_filter(f"indexof({recorded}[net], size) < 0")
    lines += [_told(absent, "'Not recorded.'", top, 2), _told(one, "' '", top, len(labels) + 2)]
    return (
        alt.layer(seeds, median, rule, *head, *lines)
        .properties(width="container", height=height)
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def sizes(records: Mapping[str, Record]) -> ipywidgets.VBox:
    """The chart of `size_chart` under its controls; `records` by the words for their networks."""
    ticks = sorted({size for record in records.values() for size in sizes_of(record)})
    start = {"net": 0, "quantity": 0, "size": ticks[0]}
    told = []
    for name, record in records.items():
        medians = {
            arm: {
                size: 100 * float(np.median(list(v.values())))
                for size, v in batches.by_size(record, arm).items()
            }
            for arm in arms_of(record)
        }
        told.append(
            f"{name}: "
            + "; ".join(
                f"{charts.ARMS[arm].label} "
                + ", ".join(f"{charts.spell(value)} at {size}" for size, value in table.items())
                for arm, table in medians.items()
            )
        )
    explorer = widgets.Explorer(
        size_chart(records, start),
        description=(
            "Test accuracy, or how often training and evaluation mode disagree, over the batch size, one "
            "colour per normalization, every seed; network, quantity and a batch size to read off can be "
            f"chosen. Test accuracy in per cent, medians. {'. '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        net=ipywidgets.Dropdown(
            description="network", options=[(name, n) for n, name in enumerate(records)], value=0
        ),
        quantity=ipywidgets.Dropdown(
            description="quantity",
            options=[(words, n) for n, words in enumerate(QUANTITIES.values())],
            value=0,
        ),
        size=ipywidgets.SelectionSlider(
            description="batch size", options=[(str(size), size) for size in ticks], value=start["size"]
        ),
    )


def modes(record: Record) -> pd.DataFrame:
    """BN's test accuracy in per cent with each of `MODES`: rows (arm, batch_size, seed, value)."""
    parts = [batches.at_the_end(record, metric, "batch_size").assign(mode=metric) for metric in MODES]
    frame = pd.concat(parts)
    frame = frame[frame["arm"] == "bn"]
    return frame.assign(arm=frame["mode"], value=100 * frame["value"])[["arm", "batch_size", "seed", "value"]]


def modes_chart(records: Mapping[str, Record]) -> alt.FacetChart:
    """Test accuracy of networks with BN over the batch size, by which statistics they are used with."""
    frame = pd.concat([modes(record).assign(network=name) for name, record in records.items()])
    chart = charts.small_multiples(
        frame,
        "network",
        x="batch_size",
        y_title="Test accuracy (%)",
        x_title="Batch size",
        facet_labels={name: name for name in records},
        log_x=True,
        independent_y=True,
        arms=MODES,
    )
    ticks = sorted(frame["batch_size"].unique().tolist())
    for layer in chart.spec.layer:
        layer.encoding.x.axis = alt.Axis(values=ticks, format="d", grid=False)
    return chart


def inverse_variances(record: Record, smallest: int = 4) -> pd.DataFrame:
    """Mean of σ²/σ_B² in networks with BN, from a batch of `smallest` on: rows (batch_size, layer, seed,
    value, theory), `theory` being m / (m − 3)."""
    frame = batches.at_the_end(record, "inverse_variance", "batch_size")
    frame = frame[(frame["arm"] == "bn") & (frame["batch_size"] >= smallest)]
    frame = frame.assign(theory=frame["batch_size"] / (frame["batch_size"] - 3))
    columns = ["batch_size", "layer", "seed", "value", "theory"]
    return frame[columns].sort_values(columns[:3], ignore_index=True)


# --- (c) other images ---------------------------------------------------------------------------------

#: what each shift's strength counts
UNITS = {
    "brightness": "in deviations",
    "contrast": "1: all grey",
    "colour": "red up, blue down",
    "noise": "in deviations",
    "blur": "passes of a filter",
}


def hows(record: Record) -> dict[str, str]:
    """Which statistics were tried, in order: how -> words."""
    found = set(batches.shifted(record)["how"])
    counts = sorted(int(name[2:]) for name in found if name.startswith("n="))
    return {"running": "training’s", **{f"n={n}": f"{n} images’" for n in counts}, "batch": "the batch’s own"}


def shift_rows(record: Record) -> list[dict]:
    """One row per kind, level (0: clean), arm and statistics: per cent, a word per seed."""
    frame = batches.shifted(record)
    clean = frame[frame["kind"] == "clean"]
    rows = []
    for number, kind in enumerate(batches.SHIFTS):
        part = pd.concat([clean, frame[frame["kind"] == kind]])
        for level, strength in enumerate(sorted(part["strength"].unique())):
            for (arm, how), found in part[part["strength"] == strength].groupby(["arm", "how"]):
                rows.append(
                    {
                        "kind": number,
                        "level": level,
                        "strength": charts.spell(strength),
                        "arm": charts.ARMS[arm].label,
                        "how": hows(record)[how],
                        "values": charts.packed(100 * found.sort_values("seed")["value"], ".4g"),
                    }
                )
    return rows


def shift_chart(record: Record, start: Mapping[str, int]) -> alt.LayerChart:
    """Test accuracy on shifted images by the statistics used: a dot per seed, bars at the medians.

    Params: `kind` (rank in `batches.SHIFTS`), `level` (0: no shift, then the strengths).  A dashed rule: the
    same networks with training's statistics on clean images, median.  Below, in words: shift and medians.
    """
    height = 240
    kinds, names = list(batches.SHIFTS), hows(record)
    bn, group = charts.ARMS["bn"].label, charts.ARMS["group"].label
    order = [*names.values(), "group norm"]
    frame = batches.shifted(record)
    clean = frame[(frame["kind"] == "clean") & (frame["how"] == "running") & (frame["arm"] == "bn")]
    rule = (
        alt.Chart(alt.Data(values=[{"y": float(f"{100 * clean['value'].median():.4g}")}]))
        .mark_rule(strokeDash=[5, 4])
        .encode(y="y:Q")
    )
    base = (
        alt.Chart(alt.Data(values=shift_rows(record)))
        .transform_filter("datum.kind == kind && datum.level == level")
        .transform_calculate(
            y="split(datum.values, ' ')", x=f"datum.arm == '{group}' ? 'group norm' : datum.how"
        )
        .transform_flatten(["y"])
        .transform_calculate(y="toNumber(datum.y)")
        .transform_filter("isFinite(datum.y)")
    )
    lines = {name: name.split(" ") for name in order}
    across = alt.X(
        "x:N",
        title="Statistics used",
        sort=order,
        scale=alt.Scale(domain=order),
        axis=alt.Axis(labelAngle=0, grid=False, labelExpr=f"({lines})[datum.value]", labelOverlap=False),
    )
    up = {"title": "Test accuracy (%)", "scale": alt.Scale(domain=[0, 100], nice=False)}
    colour = charts.arm_scales([bn, group], legend=alt.Legend(symbolType="circle", symbolSize=70))["color"]
    dots = base.mark_point(size=36, opacity=0.8).encode(x=across, y=alt.Y("y:Q", **up), color=colour)
    bars = base.mark_tick(thickness=3, width=24).encode(x=across, y=alt.Y("median(y):Q", **up), color=colour)
    top = height + 84
    middle = base.transform_aggregate(y="median(y)", groupby=["x", "strength"])
    titles, units = [kind.capitalize() for kind in kinds], [UNITS[kind] for kind in kinds]
    told = [
        _told(
            middle.transform_filter(f"datum.x == '{names['running']}'"),
            f"{titles}[kind] + (level == 0 ? ': no shift' : "
            f"', strength ' + datum.strength + ' (' + {units}[kind] + ')')",
            top,
            0,
            fontWeight="bold",
        ),
        *(
            _told(
                middle.transform_filter(f"datum.x == '{name}'"),
                f"'{label}: ' + format(datum.y, '.1f') + ' %'",
                top,
                n,
            )
            for n, (name, label) in enumerate(
                [
                    (names["running"], "BN, training’s statistics"),
                    (names[_most(record)], f"BN, those of {_most(record)[2:]} such images"),
                    ("group norm", "Group norm, which has none"),
                ],
                start=1,
            )
        ),
        _told(alt.Chart(alt.Data(values=[{}])), "' '", top, 4),
    ]
    return (
        alt.layer(rule, bars, dots, *told)
        .properties(width="container", height=height)
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def _most(record: Record) -> str:
    """The statistics of the most images."""
    return max((name for name in hows(record) if name.startswith("n=")), key=lambda name: int(name[2:]))


def shifts(record: Record, what: str) -> ipywidgets.VBox:
    """The chart of `shift_chart` under its controls; `what` names the network in the alt text."""
    start = {"kind": list(batches.SHIFTS).index("brightness"), "level": 2}
    frame = batches.shifted(record)
    frame = frame[frame["arm"] == "bn"]
    medians = 100 * frame.groupby(["kind", "strength", "how"])["value"].median()
    worst = {kind: max(strengths) for kind, strengths in batches.SHIFTS.items()}
    told = "; ".join(
        f"{kind} {charts.spell(strength)}: {charts.spell(medians[kind, strength, 'running'])} with "
        f"training's, {charts.spell(medians[kind, strength, _most(record)])} with theirs"
        for kind, strength in worst.items()
    )
    explorer = widgets.Explorer(
        shift_chart(record, start),
        description=(
            f"Test accuracy of {what} on shifted images, by the images whose statistics batch norm uses, and "
            "of group norm, which uses none; kind and strength of the shift can be chosen. Per cent, medians "
            f"over the seeds, clean {charts.spell(medians['clean', 0.0, 'running'])}; strongest: {told}."
        ),
    )
    levels = ["none", "weak", "middle", "strong"]
    return widgets.controls(
        explorer,
        kind=ipywidgets.Dropdown(
            description="shift",
            options=[(kind, n) for n, kind in enumerate(batches.SHIFTS)],
            value=start["kind"],
        ),
        level=ipywidgets.SelectionSlider(
            description="strength",
            options=[(words, n) for n, words in enumerate(levels)],
            value=start["level"],
        ),
    )


def images_chart(images: Mapping[str, Sequence[np.ndarray]], low: float, high: float) -> alt.LayerChart:
    """Grey images in a row per kind of shift, its strengths from left to right; `low` is black, `high` white.

    `images` maps words to arrays of shape (H, W).
    """
    rows, gap = [], 3  # rows of pixels between the pictures, for the words
    for row, pictures in enumerate(images.values()):
        for column, picture in enumerate(pictures):
            grey = np.clip((np.asarray(picture) - low) / (high - low), 0, 1)
            for line, shades in enumerate(grey):
                rows.append(
                    {
                        "top": row * (len(grey) + gap) + line,
                        "left": column * (len(shades) + 1),
                        "values": charts.packed(shades, ".2f"),
                    }
                )
    tall, wide = len(grey), len(shades)
    count = max(len(pictures) for pictures in images.values())
    pixels = (
        alt.Chart(alt.Data(values=rows))
        .transform_calculate(value="split(datum.values, ' ')")
        .transform_flatten(["value"])
        .transform_window(i="row_number()", groupby=["top", "left"])
        .transform_calculate(
            x="datum.left + datum.i - 1",
            x2="datum.left + datum.i",
            y="datum.top",
            y2="datum.top + 1",
            grey="toNumber(datum.value)",
        )
        .mark_rect(strokeWidth=0)
        .encode(
            x=alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, count * (wide + 1)], nice=False)),
            x2="x2:Q",
            y=alt.Y(
                "y:Q", axis=None, scale=alt.Scale(domain=[len(images) * (tall + gap) - gap, -gap], nice=False)
            ),
            y2="y2:Q",
            color=alt.Color(
                "grey:Q", scale=alt.Scale(domain=[0, 1], range=["#000000", "#ffffff"]), legend=None
            ),
        )
    )
    words = [{"y": row * (tall + gap) - 1.2, "x": 0, "name": name} for row, name in enumerate(images)]
    labels = (
        alt.Chart(alt.Data(values=words))
        .mark_text(align="left", fontSize=12)
        .encode(x="x:Q", y="y:Q", text="name:N")
    )
    side = 7  # of a pixel, on the page
    return alt.layer(pixels, labels).properties(
        width=side * count * (wide + 1),
        height=side * len(images) * (tall + gap),
        description=(
            f"One digit of {tall} by {wide} pixels, shifted in {len(images)} ways, a row each "
            f"({', '.join(images)}), {count} strengths from left to right."
        ),
    )


# --- (d) gamma and beta alone, and rank ---------------------------------------------------------------


def parts(record: Record) -> pd.DataFrame:
    """Test accuracy after training one of `PARTS`, in per cent: rows (arm, seed, value)."""
    frame = batches.at_the_end(record, "test_accuracy", "train_only")
    return frame.assign(arm=frame["train_only"], value=100 * frame["value"])[["arm", "seed", "value"]]


def parts_chart(record: Record) -> alt.LayerChart:
    """A dot per seed for each part that was trained."""
    frame = parts(record)
    order = pd.Categorical(frame["arm"], list(PARTS))
    frame = frame.assign(rank=order).sort_values(["rank", "seed"]).drop(columns="rank")
    return charts.dots(frame, y_title="Test accuracy (%)", arms=PARTS)


def scales_chart(
    record: Record, letter: str = "gamma", domain: tuple[float, float] = (-1, 3), bins: int = 40
) -> alt.FacetChart:
    """Histograms of gamma (or beta) after training, by layer, all seeds; values beyond the domain in the last
    bins."""
    edges = np.linspace(*domain, bins + 1)
    rows = []
    for what in ("gamma_beta", "everything"):
        frame = batches.scales(record, what, letter)
        for layer, part in frame.groupby("layer"):
            share = np.histogram(part["value"].clip(*domain), edges)[0] / len(part)
            centres = (edges[1:] + edges[:-1]) / 2
            rows += [
                {"arm": what, "layer": int("".join(filter(str.isdigit, layer))), "bin": x, "density": y}
                for x, y in zip(centres, share, strict=True)
            ]
    symbol = {"gamma": "γ", "beta": "β"}[letter]
    return charts.ridges(
        pd.DataFrame(rows), row="layer", x_title=symbol, row_title="Layer", x_domain=domain, arms=PARTS
    )


def rank_chart(record: Record) -> alt.FacetChart:
    """The soft rank by depth, with and without BN, a panel per width."""
    frame = pd.concat([batches.ranks(record, arm).assign(arm=arm) for arm in ("bn", "standard")])
    widths, depth = sorted(frame["width"].unique()), frame["depth"].max()
    frame = frame[(frame["depth"] == 1) | (frame["depth"] % (depth // 50) == 0)]  # fifty points are enough
    return charts.small_multiples(
        frame,
        "width",
        x="depth",
        y_title="Soft rank",
        x_title="Layers",
        facet_labels={width: f"width {width}, root {charts.spell(math.sqrt(width))}" for width in widths},
        log_y=True,
    )
