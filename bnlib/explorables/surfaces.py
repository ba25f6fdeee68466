"""The figures of chapter 6: Hinton's bowl, and slices through the loss of trained networks.

`bowl` computes everything in the page.  The others take a record: a series of losses travels as one string,
which the chart splits, and what a reader chooses works with or without a kernel.  Functions that end in
`_chart` return a chart, the others a finished widget.  No torch here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import altair as alt
import ipywidgets
import pandas as pd

from bnlib import charts, widgets
from bnlib.experiments import surfaces
from bnlib.experiments.quantities import BySeed
from bnlib.records import Record

STANDARD, BN = charts.ARMS["standard"], charts.ARMS["bn"]
LABELS = [STANDARD.label, BN.label]
WORDS = {"start": "start", "sgd": "SGD", "momentum": "momentum", "adam": "Adam"}
GUESS = math.log(10)  # the loss (nats) of guessing among ten classes
FLOOR = 1e-6  # a logarithmic axis ends here


def optimisers_of(record: Record) -> list[str]:
    """The optimisers that a record's runs have been trained with, in the order of the slices."""
    seen = {name for run in record.runs for name in run["settings"]["optimisers"]}
    return [name for name in surfaces.OPTIMISERS if name in seen]


def _present(frame: pd.DataFrame) -> list[str]:
    """The arms of a frame in the book's order."""
    return [arm for arm in charts.ARMS if arm in set(frame["arm"])]


def _label(arm: str) -> str:
    return charts.ARMS[arm].label


def _words_at(rows: alt.Chart, x: float, y: float, **style: object) -> alt.Chart:
    """The column `words` of `rows` as text, `x` and `y` pixels from the upper left corner."""
    return rows.mark_text(align="left", **{"fontSize": 12, **style}).encode(
        x=alt.value(x), y=alt.value(y), text="words:N"
    )


def _split(chart: alt.LayerChart | alt.Chart, *keys: str) -> alt.LayerChart | alt.Chart:
    """One row per number of the string `values`: `v`, and its place `i`, from 0, among the rows of `keys`."""
    return (
        chart.transform_calculate(v="split(datum.values, ' ')")
        .transform_flatten(["v"])
        .transform_window(i="row_number()", groupby=list(keys))
        .transform_calculate(v="toNumber(datum.v)", i="datum.i - 1")
        .transform_filter("isFinite(datum.v)")
    )


def _log_labels(condition: str) -> str:
    """An axis label: the power of ten where `condition` holds, else the number itself."""
    return (
        f"({condition}) ? format(pow(10, datum.value), abs(datum.value) < 3.5 ? '.2~r' : '.0e') : "
        "abs(datum.value) < 1e5 ? datum.label : format(datum.value, '.0e')"
    )


# --- (a) Hinton's bowl --------------------------------------------------------------------------------

PATH, LEVEL = "#d9622b", "#2f86c9"
START = (-1.5, 0.6)  # of gradient descent, as a distance from the minimum
STEPS = 40
CORNERS = 96  # of a contour
LEVELS = 6  # each contour stands for four times the loss of the next one inwards


def _bowl(rows: alt.Chart) -> alt.Chart:
    r"""Adds the Hessian $E[xx^\top]=\begin{pmatrix}a&b\\b&c\end{pmatrix}$ of the two inputs, its eigenvalues
    l1 >= l2, the angle of the first eigenvector, the start in the eigenvectors' coordinates (p, q), the
    learning rate `eta`, and by which factors a step multiplies p and q."""
    return (
        rows.transform_calculate(m="normalised ? 0 : mean", s="normalised ? 1 : pow(10, log_scale)")
        .transform_calculate(
            a="datum.m * datum.m + 1",
            b="datum.m * datum.m + correlation * datum.s",
            c="datum.m * datum.m + datum.s * datum.s",
            # a c - b b, without the cancellation of two large numbers
            det="datum.m * datum.m * (1 + datum.s * datum.s - 2 * correlation * datum.s)"
            " + datum.s * datum.s * (1 - correlation * correlation)",
        )
        .transform_calculate(
            l1="(datum.a + datum.c) / 2 + sqrt(pow((datum.a - datum.c) / 2, 2) + datum.b * datum.b)",
            angle="atan2(2 * datum.b, datum.a - datum.c) / 2",
        )
        .transform_calculate(
            l2="datum.det / datum.l1",
            p=f"{START[0]} * cos(datum.angle) + {START[1]} * sin(datum.angle)",
            q=f"{START[1]} * cos(datum.angle) - {START[0]} * sin(datum.angle)",
            eta="rate / datum.l1",
        )
        .transform_calculate(f1="1 - rate", f2="1 - datum.eta * datum.l2", condition="datum.l1 / datum.l2")
    )


def bowl_chart() -> alt.LayerChart:
    r"""The error of a linear unit with two inputs, its contours, and the way of gradient descent.

    Params: `mean` of both inputs, `log_scale` (power of ten of the second input's standard deviation; that of
    the first is 1), their `correlation`, the learning rate `rate` in units of $1/\lambda_{\max}$, and
    `normalised`: each input minus its mean, divided by its standard deviation.  In the eigenvectors'
    coordinates step k multiplies the distance from the minimum by $(1-\eta\lambda)^k$.
    """
    height, reach = 330, 2.0
    half = f"{reach} * width / {height}"  # equal units on both axes at any width
    across = alt.X(
        "x:Q",
        title="First weight, distance from the minimum",
        axis=alt.Axis(tickMinStep=1),
        scale=alt.Scale(
            domainMin=alt.ExprRef(f"-({half})"), domainMax=alt.ExprRef(f"{half}"), nice=False, zero=False
        ),
    )
    up = alt.Y(
        "y:Q",
        title="Second weight",
        axis=alt.Axis(tickMinStep=1),
        scale=alt.Scale(domain=[-reach, reach], nice=False),
    )

    def placed(rows: alt.Chart) -> alt.Chart:
        """From the eigenvectors' coordinates u, v to the weights."""
        return rows.transform_calculate(
            x="datum.u * cos(datum.angle) - datum.v * sin(datum.angle)",
            y="datum.u * sin(datum.angle) + datum.v * cos(datum.angle)",
        )

    corners = alt.sequence(0, LEVELS * (CORNERS + 1), as_="i")
    turn = f"2 * PI * (datum.i % {CORNERS + 1}) / {CORNERS}"
    contours = _bowl(alt.Chart(corners)).transform_calculate(
        level=f"floor(datum.i / {CORNERS + 1})",
        start="datum.l1 * datum.p * datum.p + datum.l2 * datum.q * datum.q",
    )
    contours = contours.transform_calculate(size="datum.start * pow(4, 1 - datum.level)")
    contours = placed(
        contours.transform_calculate(
            u=f"sqrt(datum.size / datum.l1) * cos({turn})", v=f"sqrt(datum.size / datum.l2) * sin({turn})"
        )
    )
    contours = contours.mark_line(color=LEVEL, strokeWidth=1.3, opacity=0.8, clip=True).encode(
        x=across, y=up, detail="level:O", order="i:Q"
    )
    path = placed(
        _bowl(alt.Chart(alt.sequence(0, STEPS + 1, as_="k"))).transform_calculate(
            u="datum.p * pow(datum.f1, datum.k)", v="datum.q * pow(datum.f2, datum.k)"
        )
    )
    way = path.mark_line(color=PATH, strokeWidth=1.2, clip=True).encode(x=across, y=up, order="k:Q")
    stops = path.mark_point(color=PATH, size=22, clip=True).encode(x=across, y=up)
    first = path.transform_filter("datum.k == 0")
    start = first.mark_point(shape="diamond", size=110, color=PATH).encode(x=across, y=up)
    aim = alt.Chart(pd.DataFrame({"x": [0.0], "y": [0.0]}))
    aim = aim.mark_point(shape="cross", size=120, color=charts.INK).encode(x=across, y=up)

    once = _bowl(alt.Chart(alt.sequence(0, 1, as_="k"))).transform_calculate(
        worst="max(abs(datum.f1), abs(datum.f2))",
        loss=f"(datum.l1 * pow(datum.p * pow(datum.f1, {STEPS}), 2)"
        f" + datum.l2 * pow(datum.q * pow(datum.f2, {STEPS}), 2))"
        " / (datum.l1 * datum.p * datum.p + datum.l2 * datum.q * datum.q)",
    )
    steps = "max(1, ceil(log(0.01) / log(max(datum.worst, 1e-9)) - 1e-9))"
    lines = {
        "curvature": "'Curvatures ' + format(datum.l1, '.3~r') + ' and ' + format(datum.l2, '.3~r')"
        " + ', ratio ' + format(datum.condition, ',.3~r')",
        "speed": "rate > 2 ? 'Diverges: the learning rate is beyond 2 / λmax'"
        " : rate == 2 ? 'Swings for ever: the learning rate is 2 / λmax'"
        f" : format({steps}, ',') + ({steps} == 1 ? ' step' : ' steps') + ' to within 1 % both ways'",
        "left": "'Rate ' + format(datum.eta, '.2~g')"
        f" + '; after {STEPS} steps ' + (datum.loss > 1 ? format(datum.loss, ',.2~r') + ' times the loss' :"
        " (datum.loss < 1e-5 ? 'less than 0.001' : format(100 * datum.loss, '.2~g')) + ' % loss left')",
    }
    words = [
        _words_at(
            once.transform_calculate(words=line),
            -44,
            y,
            fontWeight="bold" if name == "curvature" else "normal",
            fontSize=13 if name == "curvature" else 12,
        )
        for (name, line), y in zip(lines.items(), (-46, -28, -11), strict=True)
    ]
    return (
        alt.layer(contours, way, stops, start, aim, *words)
        .properties(width="container", height=height)
        .add_params(
            alt.param(name="mean", value=1.0),
            alt.param(name="log_scale", value=0.0),
            alt.param(name="correlation", value=0.0),
            alt.param(name="rate", value=1.8),
            alt.param(name="normalised", value=False),
        )
    )


def bowl() -> ipywidgets.VBox:
    """The chart of `bowl_chart` under its controls."""
    explorer = widgets.Explorer(
        bowl_chart(),
        description=(
            "Contours of the error of a linear unit with two inputs, and 40 steps of gradient descent from a "
            "fixed start. With mean 1, equal scales and no correlation the curvatures are 3 and 1. A mean of "
            "5 makes them 51 and 1, a long valley along which the path creeps; normalising each input makes "
            "them 1 and 1, a round bowl; with correlation 0.9 they are 1.9 and 0.1 even then. Beyond twice "
            "the inverse of the largest curvature the path diverges."
        ),
    )

    def slider(label: str, value: float, low: float, high: float, step: float) -> ipywidgets.FloatSlider:
        number = ".2f" if step < 0.1 else ".1f"
        return ipywidgets.FloatSlider(
            description=label, value=value, min=low, max=high, step=step, readout_format=number
        )

    return widgets.controls(
        explorer,
        mean=slider("mean of both", 1, 0, 5, 0.1),
        log_scale=slider("log₁₀ scale of 2nd", 0, -1, 1, 0.1),
        correlation=slider("correlation", 0, -0.95, 0.95, 0.05),
        rate=slider("rate × λmax", 1.8, 0.1, 2.1, 0.1),
        normalised=ipywidgets.Checkbox(description="normalise the inputs", value=False),
    )


# --- (b) how lopsided the layers' inputs are ----------------------------------------------------------


def spreads(record: Record) -> pd.DataFrame:
    """Largest over mean eigenvalue of the second moments of each layer's inputs, at initial weights of scale
    1: rows (arm, seed, layer, number, moment, value); the first layer, which sees the images, is left out.

    moment: "at the start" or after training with an optimiser; number: the layer's, from the input.
    """
    moments = {"input_spread": "at the start"} | {
        f"input_spread[{name}]": f"after {WORDS[name]}" for name in optimisers_of(record)
    }
    frame = record.frame("gain")
    frame = frame[frame["metric"].isin(list(moments)) & (frame["gain"] == 1.0)]
    order = layers_of(record)
    frame = frame[frame["layer"] != order[0]]
    return frame[["arm", "seed", "layer", "value"]].assign(
        number=frame["layer"].map({name: n for n, name in enumerate(order, start=1)}),
        moment=frame["metric"].map(moments),
    )


def layers_of(record: Record) -> list[str]:
    """The layers from input to output; the classifier is the last."""
    names = record.frame(metric="input_spread")["layer"].unique()
    return sorted(names, key=lambda name: int("".join(filter(str.isdigit, name)) or 10**6))


def spread_chart(record: Record) -> alt.FacetChart:
    """`spreads` layer by layer, before and after training, every seed."""
    frame = spreads(record)
    moments = list(dict.fromkeys(frame["moment"]))
    return charts.small_multiples(
        frame,
        "moment",
        x="number",
        x_title=f"Layer ({len(layers_of(record))}: classifier)",
        y_title="Largest / mean eigenvalue",
        facet_labels={name: name[0].upper() + name[1:] for name in moments},
        log_y=True,
        height=150,
    )


# --- (c) straight lines -------------------------------------------------------------------------------

MODES = {"the batch's moments": "training", "running statistics": "evaluation"}


def pairs_of(record: Record) -> list[tuple[str, str]]:
    """The places that lines join, those from the start first."""
    order = ["start", *optimisers_of(record)]
    frame = surfaces.lines(record)[["one", "other"]].drop_duplicates()
    return sorted(
        frame.itertuples(index=False, name=None), key=lambda pair: [order.index(name) for name in pair]
    )


def pair_words(pair: tuple[str, str]) -> str:
    """A line as readers say it: start to SGD, SGD to Adam."""
    return f"{WORDS[pair[0]]} to {WORDS[pair[1]]}"


def profiles(record: Record) -> pd.DataFrame:
    """Every line as a whole: rows (arm, seed, mode, one, other, valleys, barrier, values).

    valleys: how many, over all positions, see `surfaces.minima`; barrier: in nats, see `surfaces.barrier`;
    values: the losses in the order of the positions.  An evaluation in which the loss was beyond all numbers
    is a missing value there and, as in the claims, left out of the other two.
    """
    frame = surfaces.lines(record)
    positions = sorted(frame["position"].unique())
    rows = []
    for key, part in frame.groupby(["arm", "seed", "mode", "one", "other"]):
        part = part.sort_values("position")
        values = part.set_index("position")["value"].reindex(positions).tolist()
        rows.append((*key, surfaces.minima(part["value"].tolist()), surfaces.barrier(part), values))
    return pd.DataFrame(rows, columns=["arm", "seed", "mode", "one", "other", "valleys", "barrier", "values"])


def line_rows(record: Record) -> list[dict]:
    """`profiles` as the page gets them; `pair` is the number of the pair in `pairs_of`."""
    positions = sorted(surfaces.lines(record)["position"].unique())
    numbers = {pair: number for number, pair in enumerate(pairs_of(record))}
    return [
        {
            "pair": numbers[row.one, row.other],
            "mode": row.mode,
            "arm": _label(row.arm),
            "seed": row.seed,
            "valleys": row.valleys,
            "first": positions[0],
            "gap": (positions[-1] - positions[0]) / (len(positions) - 1),
            "values": charts.packed(row.values_, ".4g"),
        }
        for row in profiles(record).rename(columns={"values": "values_"}).itertuples()
    ]


def line_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """The loss on the straight line between two places, both arms, every seed thin, the median thick.

    Params: `pair` (its number in `pairs_of`), `mode` of BN ("training" or "evaluation"), `logarithmic`.
    Below the axis, in words: each arm's barrier (see `surfaces.barrier`; median and range over the seeds) and
    in how many seeds the line has a single valley.
    """
    height = 270
    scales = charts.arm_scales(LABELS, legend=alt.Legend(offset=26))
    across = alt.X(
        "x:Q",
        title="Position on the line",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(values=[0, 0.5, 1, 1.5], format="~g"),
    )
    axis = alt.Axis(labelExpr=_log_labels("logarithmic"), tickCount=6)

    def up(field: str) -> alt.Y:
        return alt.Y(field, title="Loss (nats)", scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart()
    # No median over those that are left where some seeds have no value.
    whole = base.transform_filter("datum.here == datum.seeds")
    band = whole.mark_area(opacity=0.16).encode(
        x=across, y=up("min(y):Q"), y2="max(y):Q", color=scales["color"]
    )
    seeds = base.mark_line(strokeWidth=0.8, opacity=0.6).encode(
        x=across, y=up("y:Q"), detail="seed:N", **scales
    )
    median = whole.mark_line().encode(x=across, y=up("median(y):Q"), **scales)
    places = [
        {"pair": number, "x": x, "words": WORDS[name]}
        for number, pair in enumerate(pairs_of(record))
        for x, name in enumerate(pair)
    ]
    place = alt.Chart(alt.Data(values=places)).transform_filter("datum.pair == pair")
    rules = place.mark_rule(strokeDash=[4, 3]).encode(x=across)
    names = place.mark_text(fontSize=13, fontWeight="bold").encode(x=across, y=alt.value(-11), text="words:N")
    told = (
        base.transform_filter("datum.x > -1e-9 && datum.x < 1 + 1e-9")
        .transform_calculate(end="abs(datum.x) < 1e-9 || abs(datum.x - 1) < 1e-9 ? datum.v : 0")
        .transform_aggregate(
            top="max(v)", end="max(end)", valleys="min(valleys)", groupby=["arm", "seed"]
        )
        .transform_calculate(rise="datum.top - datum.end", one="datum.valleys == 1 ? 1 : 0")
        .transform_aggregate(
            middle="median(rise)", low="min(rise)", high="max(rise)", ones="sum(one)", n="count()",
            groupby=["arm"],
        )
        .transform_calculate(
            words="datum.arm + ': ' + format(datum.middle, '.2f') + ' (' + format(datum.low, '.2f')"
            " + ' to ' + format(datum.high, '.2f') + '); one valley: ' + datum.ones + ' of ' + datum.n"
        )
    )  # fmt: skip
    heading = base.transform_aggregate(n="count()").transform_calculate(
        words="'Barrier (nats); lines with one valley:'"
    )
    room = base.transform_aggregate(n="count()").transform_calculate(words="' '")
    arms = [told.transform_filter(f"datum.arm == '{label}'") for label in LABELS]
    words = [
        _words_at(rows, -44, height + 60 + 18 * number, fontWeight="bold" if number == 0 else "normal")
        for number, rows in enumerate([heading, *arms, room])
    ]
    chart = alt.layer(rules, band, seeds, median, names, *words).properties(
        data=alt.Data(values=line_rows(record)), width="container", height=height
    )
    chart = _split(
        chart.transform_filter("datum.pair == pair && datum.mode == mode"), "arm", "seed"
    ).transform_calculate(
        x="datum.first + datum.i * datum.gap",
        y=f"logarithmic ? log(max(datum.v, {FLOOR})) / LN10 : datum.v",
    )
    chart = chart.transform_joinaggregate(seeds="distinct(seed)", groupby=["arm"])
    chart = chart.transform_joinaggregate(here="count()", groupby=["arm", "i"])
    return chart.add_params(*(alt.param(name=name, value=value) for name, value in start.items()))


def lines(record: Record, what: str) -> ipywidgets.VBox:
    """The chart of `line_chart` under its controls; `what` names the network in the alt text."""
    start = {"pair": 0, "mode": "training", "logarithmic": True}
    table, told = profiles(record), []
    for pair in pairs_of(record):
        part = table[(table["one"] == pair[0]) & (table["other"] == pair[1]) & (table["mode"] == "training")]
        medians = part.groupby("arm")["barrier"].median()
        numbers = ", ".join(f"{_label(arm)} {charts.spell(medians[arm], 2)}" for arm in _present(part))
        told.append(f"{pair_words(pair)}: {numbers}")
    explorer = widgets.Explorer(
        line_chart(record, start),
        description=(
            f"Loss of {what} on straight lines between the start and the solutions of several optimisers, "
            "one thin line per seed, the median thick; the line and the mode of batch norm can be chosen. "
            f"Median height in nats above the higher end, BN in training mode. {'; '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        pair=ipywidgets.Dropdown(
            description="line", options=[(pair_words(p), n) for n, p in enumerate(pairs_of(record))], value=0
        ),
        mode=ipywidgets.Dropdown(description="BN uses", options=list(MODES.items()), value="training"),
        logarithmic=ipywidgets.Checkbox(description="logarithmic loss", value=True),
    )


def stale_chart(
    record: Record, pair: tuple[str, str], y_domain: Sequence[float] | None = None
) -> alt.FacetChart:
    """The loss of the networks with BN on one line, with the batch's moments and with running statistics that
    were interpolated like the weights; every seed."""
    frame = surfaces.lines(record)
    frame = frame[(frame["arm"] == "bn") & (frame["one"] == pair[0]) & (frame["other"] == pair[1])]
    return charts.small_multiples(
        frame,
        "mode",
        x="position",
        x_title=f"Position, {pair_words(pair)}",
        y_title="Loss (nats)",
        facet_labels={mode: f"BN uses {words}" for words, mode in MODES.items()},
        y_domain=y_domain,
        height=180,
    )


# --- (d) planes ---------------------------------------------------------------------------------------

KINDS = {"through three solutions": "plane", "random directions": "random_plane"}
LEVELS_OF_WATER = 8


def plane_rows(record: Record) -> list[dict]:
    """One row per arm, seed and kind of plane: the losses, s slowly and t fast, over an evenly spaced grid.

    A seed without a plane (its training has diverged) has none.
    """
    rows = []
    for kind in KINDS.values():
        frame = surfaces.plane(record, kind)
        positions = sorted(frame["s"].unique())
        for (arm, seed), part in frame.groupby(["arm", "seed"]):
            table = part.pivot_table(index="s", columns="t", values="value").reindex(
                index=positions, columns=positions
            )
            rows.append(
                {
                    "arm": _label(arm),
                    "seed": seed,
                    "kind": kind,
                    "n": len(positions),
                    "first": positions[0],
                    "gap": (positions[-1] - positions[0]) / (len(positions) - 1),
                    "values": charts.packed(table.to_numpy().ravel(), ".3g"),
                }
            )
    return rows


def plane_range(record: Record) -> tuple[float, float]:
    """The ends of the one colour scale of all planes: the lowest loss, and the higher of twice guessing and
    the 90th percentile."""
    losses = pd.concat([surfaces.plane(record, kind)["value"] for kind in KINDS.values()])
    return max(float(losses.min()), FLOOR), max(2 * GUESS, float(losses.quantile(0.9)))


def water(record: Record) -> list[float]:
    """Levels of loss (nats) from a little above the lowest on any plane up to guessing, evenly spaced in the
    logarithm."""
    low = min(1.05 * plane_range(record)[0], GUESS / 2)
    ratio = (GUESS / low) ** (1 / (LEVELS_OF_WATER - 1))
    return [float(f"{low * ratio**k:.2g}") for k in range(LEVELS_OF_WATER)]


def plane_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """The loss on a plane as colours, dark blue low and yellow high, on one scale for all planes.

    Params: `arm` (its label), `kind` of plane ("plane", "random_plane"), `seed`, and `level`: what lies
    above this loss fades.  Marks: the solutions.  Above, in words: the share of the plane below the level,
    and the lowest loss on it.
    """
    height = 330
    low, high = plane_range(record)

    rows = plane_rows(record)
    ends = {row["kind"]: [row["first"], row["first"] + (row["n"] - 1) * row["gap"]] for row in rows}
    wide = {row["kind"]: row["gap"] / 2 for row in rows}

    def limit(end: int) -> alt.ExprRef:
        """Both kinds of plane have axes of their own."""
        at = {kind: round(ends[kind][end] + (2 * end - 1) * wide[kind], 6) for kind in ends}
        return alt.ExprRef(f"({json.dumps(at)})[kind]")

    def axis(letter: str) -> dict[str, object]:
        return {
            "title": f"Along the {letter} direction",
            "scale": alt.Scale(zero=False, nice=False, domain=[limit(0), limit(1)]),
            "axis": alt.Axis(values=[-1, -0.5, 0, 0.5, 1, 1.5], format="~g", grid=False),
        }

    across, up = alt.X("left:Q", **axis("first")), alt.Y("low:Q", **axis("second"))
    scale = alt.Scale(
        type="log", scheme="cividis", domain=[float(f"{low:.2g}"), float(f"{high:.2g}")], clamp=True
    )
    colour = alt.Color(
        "v:Q",
        scale=scale,
        legend=alt.Legend(
            title="Loss (nats)",
            titleOrient="left",
            type="gradient",
            gradientLength=150,
            format="~g",
            offset=56,
            tickCount=3,
            values=[float(f"{v:.2g}") for v in (1.02 * low, math.sqrt(low * high), 0.98 * high)],
        ),
    )
    base = alt.Chart()
    cells = base.mark_rect(clip=True, strokeWidth=0).encode(
        x=across,
        x2="right:Q",
        y=up,
        y2="high:Q",
        color=colour,
        opacity=alt.Opacity("under:Q", scale=alt.Scale(domain=[0, 1], range=[0.3, 1]), legend=None),
        key="i:O",  # a cell stays where it is and changes its colour
    )
    chosen = "datum.arm == arm && datum.kind == kind && datum.seed == seed"
    marks = _solutions_on_planes(record)
    place = alt.Chart(alt.Data(values=marks)).transform_filter(chosen)
    rings = place.mark_point(shape="cross", size=120, color="white", stroke="black", strokeWidth=1).encode(
        x=across, y=up
    )
    label = {"align": "center", "dy": -14, "fontSize": 13, "fontWeight": "bold"}
    halo = place.mark_text(stroke="black", strokeWidth=3.5, strokeJoin="round", **label).encode(
        x=across, y=up, text="words:N"
    )
    text = place.mark_text(color="white", **label).encode(x=across, y=up, text="words:N")
    told = base.transform_aggregate(under="mean(under)", lowest="min(v)", arm="min(arm)")
    lines = [
        "datum.arm + ', seed ' + seed + ', lowest loss on the grid ' + format(datum.lowest, '.2~g')",
        "format(100 * datum.under, '.0f') + ' % of this plane lies below a loss of ' + format(level, '.2~g')",
    ]
    words = [
        _words_at(told.transform_calculate(words=line), -44, y, fontWeight="bold" if y < -20 else "normal")
        for line, y in zip(lines, (-28, -10), strict=True)
    ]
    measured = {(row["arm"], row["kind"], row["seed"]) for row in rows}
    every = [(_label(arm), kind, seed) for arm, seed in _runs(record) for kind in KINDS.values()]
    gone = [
        {"arm": arm, "kind": kind, "seed": seed, "words": "Not measured: a training has diverged"}
        for arm, kind, seed in every
        if (arm, kind, seed) not in measured
    ]
    if gone:
        words.append(_words_at(alt.Chart(alt.Data(values=gone)).transform_filter(chosen), -44, -10))
    chart = alt.layer(cells, rings, halo, text, *words).properties(
        data=alt.Data(values=rows), width="container", height=height
    )
    chart = _split(chart.transform_filter(chosen), "seed").transform_calculate(
        left="datum.first + (floor(datum.i / datum.n) - 0.5) * datum.gap",
        low="datum.first + (datum.i % datum.n - 0.5) * datum.gap",
        under="datum.v < level ? 1 : 0",
    )
    chart = chart.transform_calculate(right="datum.left + datum.gap", high="datum.low + datum.gap")
    return chart.add_params(*(alt.param(name=name, value=value) for name, value in start.items()))


def _runs(record: Record) -> list[tuple[str, int]]:
    """Arm and seed of the runs that have slices."""
    return [(run["arm"], run["seed"]) for run in record.runs if run["settings"]["gain"] == 1.0]


def _solutions_on_planes(record: Record) -> list[dict]:
    """Where the solutions lie on each plane, with their names; a diverged one is missing, and the next takes
    its place."""
    frame, rows = surfaces.lines(record), []
    for (arm, seed), part in frame.groupby(["arm", "seed"]):
        there = [name for name in optimisers_of(record) if name in {*part["one"], *part["other"]}]
        for kind, corners in {"plane": [(0, 0), (1, 0), (0, 1)], "random_plane": [(0, 0)]}.items():
            rows += [
                {"arm": _label(arm), "seed": seed, "kind": kind, "left": s, "low": t, "words": WORDS[name]}
                for (s, t), name in zip(corners, there, strict=False)
                if kind == "random_plane" or len(there) >= 3
            ]
    return rows


def below(record: Record, kind: str, level: float) -> dict[str, BySeed]:
    """By arm and seed: the share of a plane's grid on which the loss is below `level`."""
    frame = surfaces.plane(record, kind)
    frame = frame.assign(value=frame["value"] < level)
    shares = frame.groupby(["arm", "seed"])["value"].mean()
    return {arm: {int(seed): float(v) for seed, v in shares[arm].items()} for arm in _present(frame)}


def planes(record: Record, what: str) -> ipywidgets.VBox:
    """The chart of `plane_chart` under its controls; `what` names the network in the alt text."""
    seeds = sorted({run["seed"] for run in record.runs})
    levels = water(record)
    start = {"arm": STANDARD.label, "kind": "plane", "seed": seeds[0], "level": levels[-1]}
    told = []
    for words, kind in KINDS.items():
        shares = below(record, kind, start["level"])
        told += [
            f"{words}, {_label(arm)}: {100 * pd.Series(values).median():.0f} %"
            for arm, values in shares.items()
        ]
    explorer = widgets.Explorer(
        plane_chart(record, start),
        description=(
            f"Loss of {what} on planes through the solutions of three optimisers, and on planes of two "
            "random directions through the first solution, as colours on one scale; network, plane, seed "
            f"and a level can be chosen. Share of the plane with a loss below {levels[-1]:g} nats, about "
            "that of guessing, median over the seeds. "
            f"{'; '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        arm=ipywidgets.Dropdown(description="network", options=LABELS, value=start["arm"]),
        kind=ipywidgets.Dropdown(description="plane", options=list(KINDS.items()), value="plane"),
        seed=ipywidgets.IntSlider(description="seed", value=seeds[0], min=seeds[0], max=seeds[-1]),
        level=ipywidgets.SelectionSlider(
            description="fade above",
            options=[(f"{level:g} nats", level) for level in levels],
            value=start["level"],
        ),
    )


# --- (e) the scale of the initial weights -------------------------------------------------------------


def final_values(record: Record, metric: str) -> pd.DataFrame:
    """A value at the end of training with SGD, for every scale of the initial weights: rows (arm, gain, seed,
    value); a diverged training has no value (NaN)."""
    found = surfaces.ends(record, metric).set_index(["arm", "gain", "seed"])["value"]
    runs = [(run["arm"], run["settings"]["gain"], run["seed"]) for run in record.runs]
    return found.reindex(pd.MultiIndex.from_tuples(runs, names=["arm", "gain", "seed"])).reset_index()


def gain_chart(record: Record, metric: str, y_title: str, factor: float = 1.0) -> alt.LayerChart:
    """`final_values` times `factor` against the scale of the initial weights: one dot per seed, a line
    through the medians.  Where a training has diverged, its arm has no median; the alt text counts them."""
    frame = final_values(record, metric).assign(value=lambda rows: factor * rows["value"])
    gains = sorted(frame["gain"].unique())
    name = {gain: f"1/{round(1 / gain)}" if gain < 1 else f"{gain:g}" for gain in gains}
    frame = frame.assign(group=frame["gain"].map(name), arm_=frame["arm"].map(_label))
    shown = charts.rounded(frame[["group", "seed", "value"]].assign(arm=frame["arm_"]), 4)
    lost = frame["value"].isna().groupby([frame["arm_"], frame["group"]]).transform("any")
    shown["all"] = (~lost).astype(int)
    across = alt.X(
        "group:N",
        title="Initial weights, multiples of the Glorot scale",
        sort=list(name.values()),
        axis=alt.Axis(labelAngle=0, grid=False),
        scale=alt.Scale(type="point", padding=0.5),
    )
    up = alt.Y("value:Q", title=y_title, scale=alt.Scale(zero=True, padding=6))
    scales = charts.arm_scales([_label(arm) for arm in _present(frame)], legend=alt.Legend())
    base = alt.Chart(shown)
    dots = base.transform_filter("isValid(datum.value)").mark_point(size=45, opacity=0.75)
    middle = base.transform_filter("datum.all == 1").mark_line()
    diverged = {arm: int(part["value"].isna().sum()) for arm, part in frame.groupby("arm")}
    medians = frame.groupby(["arm", "gain"])["value"].median()
    told = "; ".join(
        f"{_label(arm)}: " + ", ".join(f"{charts.spell(medians[arm, g])} at {name[g]}" for g in gains)
        + (f", {diverged[arm]} runs diverged" if diverged[arm] else "")
        for arm in _present(frame)
    )  # fmt: skip
    return alt.layer(
        middle.encode(x=across, y=alt.Y("median(value):Q", title=y_title), **scales),
        dots.encode(x=across, y=up, color=scales["color"]),
    ).properties(
        width="container",
        height=220,
        description=(
            f"{y_title} against the scale of the initial weights, one dot per seed, lines through the "
            f"medians. {told}."
        ),
    )


# --- (f) random directions and the gradient's ---------------------------------------------------------


def walk_rows(record: Record) -> list[dict]:
    """One row per arm, seed and direction: the losses over the evenly spaced relative lengths."""
    frame = surfaces.walks(record)
    lengths = sorted(frame["length"].unique())
    return [
        {
            "arm": _label(arm),
            "seed": seed,
            "direction": direction,
            "steep": int(direction == "gradient"),
            "first": lengths[0],
            "gap": (lengths[-1] - lengths[0]) / (len(lengths) - 1),
            "values": charts.packed(part.set_index("length")["value"].reindex(lengths), ".3g"),
        }
        for (arm, seed, direction), part in frame.groupby(["arm", "seed", "direction"])
    ]


def walk_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """The loss around a solution, along random filter-normalised directions (thin) and along the gradient
    (thick), both arms.

    Params: `seed`, `reach` (the longest relative length shown), `gradient` (show its direction),
    `logarithmic`.  Below the axis, in words: the largest rise at this length, both ways, along the random
    directions and along the gradient.
    """
    height = 270
    scales = charts.arm_scales(LABELS, legend=alt.Legend())
    across = alt.X(
        "x:Q",
        title="Relative length (right: downhill)",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(tickCount=5, format="~g"),
    )

    def up(field: str) -> alt.Y:
        axis = alt.Axis(labelExpr=_log_labels("logarithmic"), tickCount=6)
        return alt.Y(field, title="Loss (nats)", scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart()
    # Never an empty layer, which would leave the axes without an extent.
    chosen = "datum.direction == (gradient ? 'gradient' : 'random 0')"
    thin = base.transform_filter("datum.steep == 0").mark_line(strokeWidth=0.9, opacity=0.75)
    thick = base.transform_filter(chosen).mark_line(strokeWidth=3.5, opacity=alt.ExprRef("gradient ? 1 : 0"))
    paths = [
        kind.encode(x=across, y=up("y:Q"), detail="direction:N", order="x:Q", **scales)
        for kind in (thin, thick)
    ]
    here = (
        base.transform_aggregate(here="max(here)", far="max(far)", groupby=["arm", "direction", "steep"])
        .transform_calculate(drawn="datum.steep ? -1e9 : datum.far - datum.here",
                             along="datum.steep ? datum.far - datum.here : -1e9")
        .transform_aggregate(drawn="max(drawn)", along="max(along)", groupby=["arm"])
    )  # fmt: skip
    told = here.transform_calculate(
        words="datum.arm + ': random ' + format(datum.drawn, '.3~g')"
        " + ', gradient ' + format(datum.along, '.3~g')"
    )
    heading = base.transform_aggregate(n="count()").transform_calculate(
        words="'Largest rise at ±' + format(reach, '.1f') + ', seed ' + seed + ' (nats):'"
    )
    room = base.transform_aggregate(n="count()").transform_calculate(words="' '")
    below_axis = [heading, *(told.transform_filter(f"datum.arm == '{label}'") for label in LABELS), room]
    words = [
        _words_at(rows, -44, height + 60 + 18 * number, fontWeight="bold" if number == 0 else "normal")
        for number, rows in enumerate(below_axis)
    ]
    chart = alt.layer(*paths, *words).properties(
        data=alt.Data(values=walk_rows(record)), width="container", height=height
    )
    chart = _split(chart.transform_filter("datum.seed == seed"), "arm", "direction").transform_calculate(
        x="datum.first + datum.i * datum.gap",
        y=f"logarithmic ? log(max(datum.v, {FLOOR})) / LN10 : datum.v",
    )
    chart = chart.transform_filter("abs(datum.x) < reach + 1e-9").transform_calculate(
        here="abs(datum.x) < 1e-9 ? datum.v : 0", far="abs(datum.x) > reach - 1e-9 ? datum.v : -1e9"
    )
    return chart.add_params(*(alt.param(name=name, value=value) for name, value in start.items()))


def walks(record: Record, what: str) -> ipywidgets.VBox:
    """The chart of `walk_chart` under its controls; `what` names the network in the alt text."""
    seeds = sorted({run["seed"] for run in record.runs})
    lengths = sorted({abs(length) for length in surfaces.walks(record)["length"]} - {0.0})
    start = {"seed": seeds[0], "reach": lengths[-1], "gradient": True, "logarithmic": True}
    told = []
    for arm in surfaces.ARMS:
        drawn, along = (surfaces.rise(record, arm, way)["value"] for way in ("random", "gradient"))
        told.append(
            f"{_label(arm)}: at most {charts.spell(drawn.max())} along the random ones, along the gradient "
            f"{charts.spell(along.median())} in the median"
        )
    explorer = widgets.Explorer(
        walk_chart(record, start),
        description=(
            f"Loss of {what} around the first solution against the relative length of the step, along random "
            "filter-normalised directions and along the gradient; seed and longest length can be chosen. "
            f"Rise at the longest length in nats. {'; '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        seed=ipywidgets.IntSlider(description="seed", value=seeds[0], min=seeds[0], max=seeds[-1]),
        reach=ipywidgets.SelectionSlider(
            description="longest length", options=[(f"{v:g}", v) for v in lengths], value=lengths[-1]
        ),
        gradient=ipywidgets.Checkbox(description="show the gradient's direction", value=True),
        logarithmic=ipywidgets.Checkbox(description="logarithmic loss", value=True),
    )


def widths(record: Record, arm: str, height: float = 0.5) -> BySeed:
    """How wide the valley around the first solution is in units of the filters' norms: the relative length at
    which the loss has risen by `height` nats, median over the random directions and both ways.

    Straight lines between the measured lengths; where the loss does not rise so far, the longest length.
    """
    frame = surfaces.walks(record)
    frame = frame[(frame["arm"] == arm) & (frame["direction"] != "gradient")]
    found: dict[int, float] = {}
    for seed, part in frame.groupby("seed"):
        lengths = [
            _crossing(side, height)
            for _, profile in part.groupby("direction")
            for side in (profile[profile["length"] >= 0], profile[profile["length"] <= 0])
        ]
        found[int(seed)] = float(pd.Series(lengths).median())
    return found


def _crossing(side: pd.DataFrame, height: float) -> float:
    side = side.assign(length=side["length"].abs()).sort_values("length")
    points = list(zip(side["length"], side["value"] - side["value"].iloc[0], strict=True))
    for (a, low), (b, high) in pairwise(points):
        if high >= height:
            return a + (b - a) * (height - low) / (high - low)
    return points[-1][0]
