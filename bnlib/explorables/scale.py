"""The figures of chapter 12: lengths and turning of the weights, the spectrum, the edge of stability.

Functions that end in `_chart` return a chart; `spectra`, `edge` and `toy` return finished widgets.  A
series of numbers travels as one string (see `charts.packed`), and what a reader asks for is computed in the
page, with or without a kernel.  No torch here.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import altair as alt
import ipywidgets
import numpy as np
import pandas as pd

from bnlib import charts, widgets
from bnlib.charts import Arm
from bnlib.experiments import explosion, scale
from bnlib.experiments.quantities import BySeed
from bnlib.explorables.landscape import POWER, spelled_in_vega
from bnlib.records import Record

ARMS = ("standard", "bn")
LABELS = [charts.ARMS[arm].label for arm in ARMS]
BLUE, ORANGE, GREY = charts.ARMS["bn"].colour, charts.ARMS["standard"].colour, "#7d838c"


class Kind(NamedTuple):
    """One kind of run of `effective_rate`: its arm and how its hidden weights are treated."""

    arm: str
    decay: float
    decayed: str = "hidden"
    gain: float = 1.0


#: the kinds of run, in the order of the legend, and how each is drawn
KINDS = {
    Kind("bn", 0.0): Arm("no decay", BLUE, (1, 0)),
    Kind("bn", 0.0, gain=scale.GAIN): Arm("10 × longer", BLUE, (2, 3)),
    Kind("bn", 0.01): Arm("decay 0.01", "#00a596", (2, 2)),
    Kind("bn", 0.05): Arm("decay 0.05", "#8f76c8", (6, 3)),
    Kind("bn", 0.05, "as_rates"): Arm("0.05 as rates", "#4b4bff", (10, 3, 2, 3)),
    Kind("bn", 0.1): Arm("decay 0.1", "#a54b5a", (4, 4)),
    Kind("standard", 0.0): Arm("Standard", ORANGE, (7, 3)),
    Kind("standard", 0.01): Arm("Standard, 0.01", "#b4875a", (6, 2, 2, 2, 2, 2)),
}


def by_kind(record: Record, metric: str, kinds: Sequence[Kind]) -> pd.DataFrame:
    """A row of `effective_rate`, median over the layers: columns arm (a label of `KINDS`), seed, step,
    value."""
    parts = []
    for kind in kinds:
        frame = scale.turned(record, kind.arm, metric, kind.decay, kind.decayed, kind.gain)
        medians = frame.groupby(["seed", "step"])["value"].median().reset_index()
        parts.append(medians.assign(arm=KINDS[kind].label))
    return pd.concat(parts, ignore_index=True)


def windowed(frame: pd.DataFrame, width: int) -> pd.DataFrame:
    """The mean of `value` over windows of `width` steps, at the first of them."""
    start = frame["step"] // width * width
    return frame.assign(step=start).groupby(["arm", "seed", "step"])["value"].mean().reset_index()


def kinds_chart(
    record: Record, metric: str, kinds: Sequence[Kind], *, y_title: str, log_y: bool = True, width: int = 1
) -> alt.LayerChart:
    """A quantity over training for several kinds of run, median over the layers; see `charts.curves`."""
    frame = by_kind(record, metric, kinds)
    if width > 1:
        frame = windowed(frame, width)
    arms = {KINDS[kind].label: KINDS[kind] for kind in kinds}
    return charts.curves(frame, y_title=y_title, arms=arms, log_y=log_y)


# --- angles -------------------------------------------------------------------------------------------


def angle_chart(record: Record) -> alt.FacetChart:
    """The angle by which each step turns the weights, against the step, a panel per weight decay: BN, every
    hidden layer and seed thin, the median thick, and the predicted angle dashed; degrees."""
    decays = [decay for decay in scale.DECAYS if decay > 0]
    words = {decay: f"ηλ = {charts.spell(0.1 * decay)}" for decay in decays}
    rows, rules, told = [], [], []
    for decay in decays:
        frame = scale.turned(record, "bn", "angle", decay)
        steps = sorted(int(step) for step in frame["step"].unique())
        for (seed, layer), part in frame.groupby(["seed", "layer"]):
            values = np.degrees(part.set_index("step")["value"].reindex(steps))
            rows.append(
                {
                    "panel": words[decay],
                    "line": f"{layer} {seed}",
                    "s": " ".join(map(str, steps)),
                    "v": charts.packed(values, ".3g"),
                }
            )
        predicted = math.degrees(scale.predicted_angle(record, decay))
        rules.append({"panel": words[decay], "p": float(f"{predicted:.4g}")})
        settled = [math.degrees(angle) for angle in scale.settled_angle(record, decay).values()]
        told.append(
            f"{words[decay]}: predicted {charts.spell(predicted)}, "
            f"measured {charts.spell(float(np.median(settled)))}"
        )
    across = alt.X("x:Q", title="Step", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=4))
    scaled = alt.Scale(type="log", nice=False)
    axis = alt.Axis(values=[0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50], format="~g")

    def up(field: str) -> alt.Y:
        return alt.Y(field, title="Angle of a step (°)", scale=scaled, axis=axis)

    base = alt.Chart().transform_filter("isValid(datum.x)")
    lines = base.mark_line(strokeWidth=0.6, opacity=0.35, color=BLUE).encode(
        x=across, y=up("y:Q"), detail="line:N"
    )
    middle = base.mark_line(strokeWidth=2.2, color=BLUE).encode(x=across, y=up("median(y):Q"))
    rule = (
        alt.Chart()
        .transform_filter("isValid(datum.p)")
        .mark_rule(strokeDash=[6, 4], strokeWidth=1.6, opacity=1)
        .encode(y=up("p:Q"))
    )
    panel = 140
    chart = (
        alt.layer(lines, middle, rule, data=alt.Data(values=[*rows, *rules]))
        .transform_calculate(
            x="isValid(datum.s) ? split(datum.s, ' ') : [null]",
            y="isValid(datum.v) ? split(datum.v, ' ') : [null]",
        )
        .transform_flatten(["x", "y"])
        .transform_calculate(
            x="isValid(datum.x) ? toNumber(datum.x) : null", y="isValid(datum.y) ? toNumber(datum.y) : null"
        )
        .properties(width=panel, height=170)
        .facet(alt.Facet("panel:N", sort=list(words.values()), title=None), columns=3)
        .resolve_axis(x="independent", y="independent")
        .properties(
            description=(
                "Angle by which a step turns the weights of each hidden layer with batch norm, in degrees, "
                "over training, a panel per weight decay, with the predicted equilibrium angle as a dashed "
                f"line. Root mean square over the second half, medians. {'; '.join(told)}."
            )
        )
    )
    return charts.responsive(chart, panel, len(decays))


# --- any learning rate --------------------------------------------------------------------------------


def at_the_end(record: Record, metric: str) -> pd.DataFrame:
    """The last value of a metric in every run of `any_rate`, median over the layers: arm, seed, hidden_lr,
    value.  A run that diverged has none."""
    frame = record.frame("hidden_lr")
    lost = frame[frame["metric"] == "diverged_at"]["run"].unique()
    frame = frame[(frame["metric"] == metric) & ~frame["run"].isin(lost)]
    last = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    return last.groupby(["arm", "seed", "hidden_lr"])["value"].median().reset_index()


def rates_chart(
    record: Record, metric: str, y_title: str, y_domain: Sequence[float] | None = None
) -> alt.LayerChart:
    """`at_the_end` against the learning rate of the hidden weights, both arms, logarithmic axes."""
    return charts.curves(
        at_the_end(record, metric),
        x="hidden_lr",
        x_title="Learning rate of the hidden weights",
        y_title=y_title,
        log_x=True,
        log_y=True,
        y_domain=y_domain,
    )


# --- the spectrum -------------------------------------------------------------------------------------

COORDINATES = {"raw": 0, "relative": 1}
QUANTITIES: dict[str, Callable[[Record, str, bool], pd.DataFrame]] = {
    "λ₁": lambda record, arm, relative: scale.spectral(record, arm, "eigenvalue[1]", relative),
    "λ₁ / λ₁₀": lambda record, arm, relative: _quotient(record, arm, relative),
    "Share of ‖g‖² in ten": lambda record, arm, relative: scale.spectral(
        record, arm, "gradient_share[10]", relative
    ),
}


def _quotient(record: Record, arm: str, relative: bool) -> pd.DataFrame:
    one, ten = (
        scale.spectral(record, arm, f"eigenvalue[{k}]", relative).set_index(["seed", "step"])["value"]
        for k in (1, 10)
    )
    return (one / ten).reset_index()


def steps_of(record: Record) -> list[int]:
    """The steps at which the spectrum was taken."""
    return sorted(int(step) for step in record.frame(metric="sharpness")["step"].unique())


def seeds_of(record: Record) -> list[int]:
    """The seeds."""
    return sorted({run["seed"] for run in record.runs})


def over_training(record: Record, relative: bool) -> pd.DataFrame:
    """`QUANTITIES` over training: columns quantity, arm, seed, step, value."""
    parts = [
        measure(record, arm, relative).assign(arm=arm, quantity=words)
        for words, measure in QUANTITIES.items()
        for arm in ARMS
    ]
    return pd.concat(parts, ignore_index=True)


def outliers_chart(record: Record, relative: bool) -> alt.FacetChart:
    """`over_training`, a panel per quantity, each with its own logarithmic axis."""
    return charts.small_multiples(
        over_training(record, relative),
        "quantity",
        y_title="Value",
        facet_labels={words: words for words in QUANTITIES},
        log_y=True,
        independent_y=True,
        panel=140,
        height=150,
    )


def spectrum_rows(record: Record) -> list[dict]:
    """One row per coordinates, arm, step and seed: `nodes`, ascending, and `counts`, n times their weights,
    as strings (nodes that count for less than 0.001 of an eigenvalue are left out); `tops`, the ten largest
    eigenvalues; `smallest`; `share` of the squared gradient in the ten leading eigenvectors."""
    rows = []
    for relative in COORDINATES.values():
        prefix = "relative_" if relative else ""
        frame = record.frame()
        frame = frame[frame["metric"].str.startswith(prefix)] if prefix else frame
        frame = frame.assign(metric=frame["metric"].str.removeprefix(prefix))
        for (arm, step, seed), part in frame.groupby(["arm", "step", "seed"]):
            values = dict(zip(part["metric"], part["value"], strict=True))
            if "sharpness" not in values:
                continue
            nodes = [metric for metric in values if metric.startswith("ritz[0,")]
            pairs = sorted(
                (values[node], values["parameters"] * values[node.replace("ritz", "ritz_weight")])
                for node in nodes
            )
            pairs = [(node, count) for node, count in pairs if count >= 1e-3]
            rows.append(
                {
                    "relative": relative,
                    "arm": charts.ARMS[arm].label,
                    "step": int(step),
                    "seed": int(seed),
                    "nodes": charts.packed([node for node, _ in pairs], ".4g"),
                    "counts": charts.packed([count for _, count in pairs], ".3g"),
                    "tops": charts.packed([values[f"eigenvalue[{j}]"] for j in range(1, 11)], ".4g"),
                    "smallest": float(f"{values['smallest']:.4g}"),
                    "share": float(f"{values['gradient_share[10]']:.4g}"),
                }
            )
    return rows


FLOOR = -2  # the lowest density drawn, a power of ten
POINTS = 240


def spectrum_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """The density of the Hessian's eigenvalues, blurred, logarithmic, with the ten largest as ticks.

    Params: `moment` (a step at which it was taken), `relative` (0 or 1), `seed`, `sigma` (the width of the
    Gaussians in per cent of the range), `standard` and `bn` (arms shown; with none, both are), `fixed` (the
    range of all steps).  The height is the number of eigenvalues per width.  Below, in words: width, largest,
    tenth and smallest eigenvalue, and the gradient's share, of each arm.
    """
    height = 240
    rows = spectrum_rows(record)
    top = math.ceil(math.log10(max(sum(map(float, row["counts"].split())) for row in rows)))
    legend = alt.Legend(symbolType="square", symbolSize=120, symbolStrokeWidth=0)
    colour = charts.arm_scales(LABELS, legend=legend)["color"]
    across = alt.X(
        "x:Q",
        title="Eigenvalue",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(tickCount=6, labelExpr="replace(datum.label, '-', '−')"),
    )

    def up(field: str) -> alt.Y:
        return alt.Y(
            field,
            title="Eigenvalues per width ς",
            scale=alt.Scale(domain=[FLOOR, top], nice=False),
            axis=alt.Axis(labelExpr=POWER, values=list(range(FLOOR, top + 1))),
        )

    base = alt.Chart()
    # A row per point, whose Gaussians are summed in one expression: a row per point and node would be thirty
    # times as many, made anew at each move of a slider.
    nodes = range(max(len(row["nodes"].split()) for row in rows))
    near = ", ".join(f"toNumber(datum.node[{k}]) / datum.spread" for k in nodes)
    weights = ", ".join(f"toNumber(datum.count[{k}])" for k in nodes)
    gaussians = " + ".join(f"datum.weight[{k}] * exp(-pow(datum.at - datum.near[{k}], 2) / 2)" for k in nodes)
    blurred = (
        base.transform_calculate(spread="sigma / 100 * datum.reach")
        .transform_calculate(near=f"[{near}]", weight=f"[{weights}]", g=f"sequence(0, {POINTS + 1})")
        # Keeps these columns alone: each point would carry all others.
        .transform_aggregate(
            curves="count()", groupby=["arm", "low", "reach", "spread", "near", "weight", "g"]
        )
        .transform_flatten(["g"])
        .transform_calculate(x=f"datum.low - 0.04 * datum.reach + 1.08 * datum.reach * datum.g / {POINTS}")
        .transform_calculate(at="datum.x / datum.spread")
        .transform_calculate(sum=f"({gaussians}) / sqrt(2 * PI)")
        .transform_calculate(y=f"log(max(datum.sum, {10.0**FLOOR})) / LN10", floor=str(FLOOR))
        .mark_area(fillOpacity=0.28, line={"strokeWidth": 1.8}, clip=True)
        .encode(x=across, y=up("y:Q"), y2="floor:Q", color=colour)
    )
    pixel = (top - FLOOR) / height
    ticks = (
        base.transform_calculate(lambdas="split(datum.tops, ' ')")
        .transform_flatten(["lambdas"])
        .transform_calculate(
            x="toNumber(datum.lambdas)",
            y=f"{top} - {pixel} * (datum.arm == '{LABELS[0]}' ? 7 : 18)",
        )
        .mark_tick(orient="vertical", thickness=1.6, size=9, opacity=1)
        .encode(x=across, y=up("y:Q"), color=colour)
    )

    def line(rows: alt.Chart, number: int, words: str, **style: object) -> alt.Chart:
        return (
            rows.transform_calculate(told=words)
            .mark_text(align="left", fontSize=12, **style)
            .encode(text="told:N", x=alt.value(-44), y=alt.value(height + 62 + 18 * number))
        )

    one = base.transform_aggregate(step="min(step)", reach="min(reach)")
    lines = [
        line(
            one,
            0,
            "'Step ' + datum.step + ', seed ' + seed + (relative ? ', relative' : ', raw')"
            " + ', width ς = ' + " + spelled_in_vega("sigma / 100 * datum.reach"),
            fontWeight="bold",
        )
    ]
    for number, label in enumerate(LABELS):
        chosen = base.transform_filter(f"datum.arm == '{label}'").transform_calculate(
            ones="split(datum.tops, ' ')"
        )
        chosen = chosen.transform_calculate(a="toNumber(datum.ones[0])", b="toNumber(datum.ones[9])")
        lines += [
            line(
                chosen,
                1 + 2 * number,
                f"'{label}: λ₁ ' + {spelled_in_vega('datum.a')} + ', λ₁₀ ' + {spelled_in_vega('datum.b')}"
                f" + ', ratio ' + {spelled_in_vega('datum.a / datum.b')}",
            ),
            line(
                chosen,
                2 + 2 * number,
                f"'– smallest ' + {spelled_in_vega('datum.smallest')} + '; ten hold ' +"
                " format(100 * datum.share, '.0f') + ' % of ‖g‖²'",
            ),
        ]
    room = line(one, 1 + 2 * len(LABELS), "' '")
    return (
        alt.layer(blurred, ticks, *lines, room)
        .properties(data=alt.Data(values=rows), width="container", height=height)
        .transform_filter(
            "datum.relative == relative && datum.seed == seed && "
            f"(datum.arm == '{LABELS[0]}' ? standard || !bn : bn || !standard)"
        )
        .transform_calculate(node="split(datum.nodes, ' ')", count="split(datum.counts, ' ')")
        .transform_calculate(
            first="toNumber(datum.node[0])", last="toNumber(datum.node[length(datum.node)-1])"
        )
        .transform_joinaggregate(lowest="min(first)", highest="max(last)")
        .transform_joinaggregate(low_here="min(first)", high_here="max(last)", groupby=["step"])
        .transform_filter("datum.step == moment")
        .transform_calculate(
            low="fixed ? datum.lowest : datum.low_here",
            reach="fixed ? datum.highest - datum.lowest : datum.high_here - datum.low_here",
        )
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def spectra(record: Record, what: str) -> ipywidgets.VBox:
    """The chart of `spectrum_chart` under its controls; `what` names the network in the alt text."""
    steps, seeds = steps_of(record), seeds_of(record)
    gaps = {after - before for before, after in itertools.pairwise(steps)}
    if len(gaps) != 1:
        raise ValueError(f"The probed steps of {record.name} are not equally spaced: choose such steps.")
    start = {
        "moment": steps[-1],
        "relative": 0,
        "seed": seeds[0],
        "sigma": 1.0,
        "standard": True,
        "bn": True,
        "fixed": False,
    }
    told = []
    for words in COORDINATES:
        for arm in ARMS:
            values = scale.standing_out(record, arm, words == "relative").values()
            told.append(f"{charts.ARMS[arm].label}, {words}: {charts.spell(float(np.median(list(values))))}")
    explorer = widgets.Explorer(
        spectrum_chart(record, start),
        description=(
            f"The blurred density of the Hessian's eigenvalues in {what}, logarithmic, with and without "
            "batch norm, at a step of training that can be chosen; ticks mark the ten largest. Largest over "
            f"tenth largest eigenvalue, medians after the start: {'; '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        moment=ipywidgets.IntSlider(
            description="step of training", value=steps[-1], min=steps[0], max=steps[-1], step=gaps.pop()
        ),
        sigma=ipywidgets.FloatSlider(
            description="width (% of range)", value=1.0, min=0.5, max=6.0, step=0.5, readout_format=".1f"
        ),
        relative=ipywidgets.Dropdown(description="coordinates", options=list(COORDINATES.items()), value=0),
        seed=ipywidgets.Dropdown(
            description="seed", options=[(str(seed), seed) for seed in seeds], value=seeds[0]
        ),
        standard=ipywidgets.Checkbox(description=LABELS[0], value=True),
        bn=ipywidgets.Checkbox(description=LABELS[1], value=True),
        fixed=ipywidgets.Checkbox(description="range of all steps", value=False),
    )


def depth_chart(record: Record) -> alt.LayerChart:
    """The largest eigenvalue at the start against the number of hidden layers, He's initialisation: chapter
    10's `depth_curvature`, without its residual networks."""
    frame = explosion.sharpness(record)
    frame = frame[(frame["init"] == "he_normal") & frame["arm"].isin(ARMS)]
    return charts.curves(
        frame,
        x="depth",
        x_title="Hidden layers",
        y_title="Largest eigenvalue λ₁ at the start",
        log_x=True,
        log_y=True,
    )


# --- the edge of stability ----------------------------------------------------------------------------


def edge_rates(record: Record) -> list[float]:
    """The learning rates of the record."""
    return sorted({run["settings"]["lr"] for run in record.runs})


def edge_rows(record: Record) -> list[dict]:
    """One row per arm, learning rate and seed: `steps`, and the sharpness at the iterates, `at`, and halfway
    to the next one, `half`, in its own unit, as strings."""
    rows = []
    for arm in ARMS:
        tables = {
            name: scale.edges(record, arm, between).set_index(["lr", "seed", "step"])["value"]
            for name, between in (("at", False), ("half", True))
        }
        for (lr, seed), part in tables["at"].groupby(level=["lr", "seed"]):
            steps = sorted(int(step) for step in part.index.get_level_values("step"))
            places = pd.MultiIndex.from_product([[lr], [seed], steps])
            row = {"arm": charts.ARMS[arm].label, "lr": lr, "seed": int(seed)}
            row["steps"] = " ".join(map(str, steps))
            for name, table in tables.items():
                row[name] = charts.packed(2 / lr * table.reindex(places), ".4g")
            rows.append(row)
    return rows


def edge_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """Sharpness over gradient descent at one learning rate, both arms, and the edge 2/η as a dashed rule.

    Params: `lr`, `halfway` (between the iterates instead of at them), `units` (1: in units of 2/η),
    `standard` and `bn` (arms shown; with none, both are), `fixed` (the axis of all learning rates).  Every
    seed thin, the median thick; logarithmic.  Below, in words: the edge, and each arm's median over the
    second half.
    """
    height = 250
    rates = edge_rates(record)
    last = max(run["settings"]["steps"] for run in record.runs)
    scales = charts.arm_scales(LABELS, legend=alt.Legend(offset=24))
    across = alt.X("x:Q", title="Step", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=5))
    up_scale = alt.Scale(zero=False, nice=False, padding=6)
    axis = alt.Axis(labelExpr=POWER, tickCount=6)

    def up(field: str) -> alt.Y:
        return alt.Y(field, title=None, scale=up_scale, axis=axis)

    base = alt.Chart()
    here = base.transform_filter("datum.lr == lr")
    seeds = here.mark_line(strokeWidth=0.9, opacity=0.5).encode(
        x=across, y=up("y:Q"), detail="seed:N", **scales
    )
    middle = here.mark_line().encode(x=across, y=up("median(y):Q"), **scales)
    one = base.transform_aggregate(n="count()")
    rule = (
        one.transform_calculate(y="log(units ? 1 : 2 / lr) / LN10")
        .mark_rule(strokeDash=[6, 4], strokeWidth=1.6, opacity=1)
        .encode(y=up("y:Q"))
    )
    # Never seen: it holds the axis open, for all learning rates or for this one.
    frame = (
        base.transform_filter("fixed || datum.lr == lr")
        .transform_aggregate(low="min(y)", high="max(y)", first="min(x)", last="max(x)")
        .transform_fold(["low", "high"], as_=["which", "y"])
        .transform_calculate(x="datum.which == 'low' ? datum.first : datum.last")
        .mark_point(opacity=0)
        .encode(x=across, y=up("y:Q"))
    )

    def text(rows: alt.Chart, words: str, x: float, y: float, **style: object) -> alt.Chart:
        style = {"align": "left", "fontSize": 12, **style}
        return (
            rows.transform_calculate(told=words)
            .mark_text(**style)
            .encode(x=alt.value(x), y=alt.value(y), text="told:N")
        )

    heading = text(
        one,
        "'Sharpness' + (halfway ? ' halfway to the next iterate' : '') + (units ? ', in units of 2/η' : '')",
        0,
        -12,
        fontSize=13,
    )
    late = (
        here.transform_filter(f"datum.x >= {last / 2}")
        .transform_aggregate(v="median(v)", groupby=["arm", "seed"])
        .transform_aggregate(low="min(v)", v="median(v)", high="max(v)", n="count()", groupby=["arm"])
    )
    number = spelled_in_vega
    words = (
        f"datum.arm + ': ' + {number('datum.v')} + ' (' + {number('datum.low')} + ' to ' +"
        f" {number('datum.high')} + '), ' + {number('datum.v * (units ? 1 : lr / 2)')} + ' × 2/η'"
    )
    lines = [
        text(
            one,
            f"'η = ' + {number('lr')} + ', 2/η = ' + {number('2 / lr')} + ' (dashed). Second half:'",
            -44,
            height + 62,
            fontWeight="bold",
        ),
        *(
            text(late.transform_filter(f"datum.arm == '{label}'"), words, -44, height + 80 + 18 * n)
            for n, label in enumerate(LABELS)
        ),
        text(one, "' '", -44, height + 80 + 18 * len(LABELS)),
    ]
    return (
        alt.layer(seeds, middle, rule, frame, heading, *lines)
        .properties(data=alt.Data(values=edge_rows(record)), width="container", height=height)
        .transform_filter(
            f"indexof({json.dumps(rates)}, datum.lr) >= 0 && "
            f"(datum.arm == '{LABELS[0]}' ? standard || !bn : bn || !standard)"
        )
        .transform_calculate(
            place="split(datum.steps, ' ')", word="split(halfway ? datum.half : datum.at, ' ')"
        )
        .transform_flatten(["place", "word"])
        .transform_calculate(x="toNumber(datum.place)", v="toNumber(datum.word) * (units ? datum.lr / 2 : 1)")
        .transform_filter("datum.v > 0")
        .transform_calculate(y="log(datum.v) / LN10")
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def settled(record: Record, arm: str, rate: float, between: bool = False) -> BySeed:
    """The median sharpness in units of 2/η over the second half of the steps, by seed."""
    frame = scale.edges(record, arm, between)
    frame = frame[frame["lr"] == rate]
    late = frame[frame["step"] >= frame["step"].max() / 2]
    return {int(seed): float(value) for seed, value in late.groupby("seed")["value"].median().items()}


def edge(record: Record, what: str) -> ipywidgets.VBox:
    """The chart of `edge_chart` under its controls; `what` names the network in the alt text."""
    rates = edge_rates(record)
    first = rates[len(rates) // 2]
    start = {"lr": first, "halfway": False, "units": 0, "standard": True, "bn": True, "fixed": False}
    told = [
        f"{charts.ARMS[arm].label}, rate {charts.spell(rate)}: "
        + charts.spell(float(np.median(list(settled(record, arm, rate).values()))))
        for arm in ARMS
        for rate in rates
    ]
    explorer = widgets.Explorer(
        edge_chart(record, start),
        description=(
            f"The largest eigenvalue of the Hessian over full-batch gradient descent of {what}, with and "
            "without batch norm, at a learning rate that can be chosen, with a dashed line at 2 divided by "
            f"the rate. Medians over the second half in units of that line: {'; '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        lr=ipywidgets.Dropdown(
            description="learning rate", options=[(charts.spell(rate), rate) for rate in rates], value=first
        ),
        units=ipywidgets.Dropdown(description="units", options=[("as it is", 0), ("of 2/η", 1)], value=0),
        halfway=ipywidgets.Checkbox(description="halfway to the next iterate", value=False),
        standard=ipywidgets.Checkbox(description=LABELS[0], value=True),
        bn=ipywidgets.Checkbox(description=LABELS[1], value=True),
        fixed=ipywidgets.Checkbox(description="axis of all rates", value=False),
    )


# --- a toy: two weights whose length does not count -----------------------------------------------------

STEPS = 100
VIEWS = {
    "length ‖w‖": "r",
    "effective rate η/‖w‖²": "rate",
    "angle of a step (°)": "turn",
    "angle to the minimum (°)": "away",
}
TOY_RATES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
TOY_DECAYS = [0.0, 0.001, 0.003, 0.01, 0.03, 0.1]


def toy_noise() -> list[float]:
    """What is added to the slope at each step, times `noise`: fixed numbers, mean 0, variance 1."""
    values = np.random.default_rng(12).normal(size=STEPS)
    return [float(f"{v:.2f}") for v in (values - values.mean()) / values.std()]


def toy_path(eta: float, decay: float, length: float, noise: float) -> pd.DataFrame:
    r"""Descent on $f(w)=1-\cos\theta$, $\theta$ being the angle of w: rows step, r, theta, rate, turn.

    $w\leftarrow(1-\eta\lambda)w-\eta g$ with g at right angles to w and of the size
    $(\sin\theta+\text{noise})/\|w\|$; from $\theta=150°$.  What `toy_chart` computes in the page.
    """
    r, theta, rows = length, math.radians(150), []
    kept = 1 - eta * decay
    for step, added in enumerate(toy_noise()):
        slope = math.sin(theta) + noise * added
        turn = math.atan2(eta * slope / r, kept * r)
        rows.append({"step": step, "r": r, "theta": theta, "rate": eta / r**2, "turn": abs(turn)})
        r, theta = math.hypot(kept * r, eta * slope / r), theta - turn
    return pd.DataFrame(rows)


def toy_chart(start: Mapping[str, object]) -> alt.VConcatChart:
    """The path of `toy_path` in the plane and one quantity against the step, all computed in the page.

    Params: `eta`, `decay`, `len` (of w at the start), `noise`, and `view` (a value of `VIEWS`).  Below, in
    words: the last length and effective rate, the angle of a step (root mean square over the second half) and
    sqrt(2 eta decay).
    """
    height = 220
    kept = "(1 - eta * decay)"
    # The whole path, one step after the other: a page has no loops.
    computed = alt.Chart().transform_calculate(s0="[len, PI * 5 / 6]")
    for step, added in enumerate(toy_noise()):
        r, theta = f"datum.s{step}[0]", f"datum.s{step}[1]"
        computed = computed.transform_calculate(**{f"g{step}": f"sin({theta}) + noise * {added}"})
        if step < STEPS - 1:
            computed = computed.transform_calculate(a=f"{kept} * {r}", b=f"eta * datum.g{step} / {r}")
            after = f"[sqrt(datum.a * datum.a + datum.b * datum.b), {theta} - atan2(datum.b, datum.a)]"
            computed = computed.transform_calculate(**{f"s{step + 1}": after})
    states = ", ".join(f"datum.s{step}" for step in range(STEPS))
    slopes = ", ".join(f"datum.g{step}" for step in range(STEPS))
    computed = (
        computed.transform_calculate(state=f"[{states}]", slope=f"[{slopes}]")
        # Keeps these two columns alone: each row below would carry the whole path.
        .transform_aggregate(paths="count()", groupby=["state", "slope"])
        .transform_flatten(["state", "slope"])
        .transform_window(k="row_number()")
        .transform_calculate(k="datum.k - 1", r="datum.state[0]", theta="datum.state[1]")
        .transform_calculate(
            rate="eta / pow(datum.r, 2)",
            turn=f"abs(atan2(eta * datum.slope / datum.r, {kept} * datum.r)) * 180 / PI",
            away="abs(atan2(sin(datum.theta), cos(datum.theta))) * 180 / PI",
        )
        .transform_joinaggregate(longest="max(r)")
        .transform_calculate(
            px=f"datum.r * cos(datum.theta) / datum.longest * {height / 2 - 14}",
            py=f"datum.r * sin(datum.theta) / datum.longest * {height / 2 - 14}",
        )
    )
    path = alt.Chart()
    one = path.transform_filter("datum.k == 0")
    hidden = {"axis": None, "title": None}
    ends_of_x = [{"expr": "-width / 2"}, {"expr": "width / 2"}]
    x = alt.X("px:Q", scale=alt.Scale(domain=ends_of_x, nice=False), **hidden)
    y = alt.Y("py:Q", scale=alt.Scale(domain=[-height / 2, height / 2], nice=False), **hidden)
    ends = path.transform_filter(f"datum.k == 0 || datum.k == {STEPS - 1}")
    origin = one.transform_calculate(px="0", py="0", far="width / 2")
    words = one.transform_calculate(px="width / 2", py="0", name="'minimum: this way'")
    plane = alt.layer(
        origin.mark_rule(opacity=0.5, strokeDash=[5, 4]).encode(x=x, y=y, x2="far:Q"),
        origin.mark_point(size=50, color=GREY, opacity=1).encode(x=x, y=y),
        path.mark_line(color=BLUE, strokeWidth=1.4, opacity=0.8).encode(x=x, y=y, order="k:Q"),
        path.mark_point(color=BLUE, size=14, opacity=0.8).encode(x=x, y=y),
        ends.transform_calculate(name="datum.k ? 'end' : 'start'")
        .mark_text(fontSize=13, dy=-11)
        .encode(x=x, y=y, text="name:N"),
        words.mark_text(align="right", fontSize=12, dy=14).encode(x=x, y=y, text="name:N"),
    ).properties(height=height, width=400)

    across = alt.X("k:Q", title="Step", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=5))
    up = alt.Y("y:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    shown = path.transform_calculate(y="datum[view]")
    names = " : ".join(f"view == '{value}' ? '{words}'" for words, value in VIEWS.items()) + " : ''"
    ruled = "view == 'turn' && decay > 0"
    predicted = (
        one.transform_calculate(
            y=f"{ruled} ? sqrt(2 * eta * decay) * 180 / PI : datum[view]", seen=f"{ruled} ? 1 : 0"
        )
        .mark_rule(strokeDash=[6, 4], strokeWidth=1.6)
        .encode(y=up, opacity=alt.Opacity("seen:Q", scale=None))
    )
    low = height - 40

    def text(rows: alt.Chart, words: str, x: float, y: float, **style: object) -> alt.Chart:
        style = {"align": "left", "fontSize": 12, **style}
        return (
            rows.transform_calculate(told=words)
            .mark_text(**style)
            .encode(x=alt.value(x), y=alt.value(y), text="told:N")
        )

    late = path.transform_filter(f"datum.k >= {STEPS // 2}").transform_calculate(sq="pow(datum.turn, 2)")
    late = late.transform_aggregate(sq="mean(sq)").transform_calculate(turn="sqrt(datum.sq)")
    last = path.transform_filter(f"datum.k == {STEPS - 1}")
    number = spelled_in_vega
    told = [
        (last, f"'At the end: ‖w‖ ' + {number('datum.r')} + ', η/‖w‖² ' + {number('datum.rate')}"),
        (late, f"'A step of the second half turns by ' + {number('datum.turn')} + '°'"),
        (
            one,
            f"decay > 0 ? 'Equilibrium √(2ηλ): ' + {number('sqrt(2 * eta * decay) * 180 / PI')} + '°'"
            " : 'Without weight decay: no equilibrium'",
        ),
        (one, "' '"),
    ]
    lines = [text(rows, words, -30, low + 56 + 18 * n) for n, (rows, words) in enumerate(told)]
    curve = alt.layer(
        shown.mark_line(color=BLUE, strokeWidth=1.8).encode(x=across, y=up),
        predicted,
        text(one, names, 0, -10, fontSize=13),
        *lines,
    ).properties(height=low, width=400)
    chart = alt.vconcat(plane, curve, data=alt.Data(values=[{}])).add_params(
        *(alt.param(name=name, value=value) for name, value in start.items())
    )
    chart.transform = computed.transform
    return charts.fit_width(chart, gutter=50)


def toy() -> ipywidgets.VBox:
    """The chart of `toy_chart` under its controls."""
    start = {"eta": 0.1, "decay": 0.0, "len": 1.0, "noise": 0.5, "view": "r"}
    explorer = widgets.Explorer(
        toy_chart(start),
        description=(
            "A weight vector in a plane whose loss depends on its direction only, under gradient descent "
            "with noise: its path, and its length, effective learning rate or angle per step over a hundred "
            "steps. Learning rate, weight decay, length at the start and noise can be chosen."
        ),
    )
    return widgets.controls(
        explorer,
        eta=ipywidgets.SelectionSlider(
            description="learning rate η",
            options=[(charts.spell(rate), rate) for rate in TOY_RATES],
            value=start["eta"],
        ),
        decay=ipywidgets.SelectionSlider(
            description="weight decay λ",
            options=[(charts.spell(decay), decay) for decay in TOY_DECAYS],
            value=start["decay"],
        ),
        len=ipywidgets.SelectionSlider(
            description="‖w‖ at the start",
            options=[(charts.spell(v), v) for v in (0.1, 0.3, 1.0, 3.0, 10.0)],
            value=start["len"],
        ),
        noise=ipywidgets.FloatSlider(
            description="noise", value=start["noise"], min=0.0, max=2.0, step=0.25, readout_format=".2f"
        ),
        view=ipywidgets.Dropdown(description="shown below", options=list(VIEWS.items()), value="r"),
    )
