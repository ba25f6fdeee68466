"""The figures of chapter 14: which values a norm averages over, what it does not see, how far it gets.

Functions that end in `_chart` return a chart; `averages`, `invariances` and `comparison` return finished
widgets.  A series of numbers travels as one string (see `charts.packed`), and what a reader asks for is
computed in the page, with or without a kernel.  No torch here.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping

import altair as alt
import ipywidgets
import numpy as np
import pandas as pd
import pyarrow as pa

from bnlib import charts, widgets
from bnlib.experiments import alternatives
from bnlib.records import Record

#: the colours of low and high values
LOW, HIGH = "#d2691e", "#1f77b4"


def label(arm: str) -> str:
    """An arm's name in a figure."""
    own = {"bn_eval": "BN, evaluation", "standard": "No norm", "residual": "No norm"}
    own |= {"bn_residual": "Batch norm"}
    return own.get(arm) or charts.ARMS[arm].label


# --- (a) which values a norm averages over --------------------------------------------------------------

SAMPLES, CHANNELS, SIDE, GROUP = 4, 4, 3, 2
#: norm -> the values that share their statistics with the chosen one, as a Vega expression and in words
SHARED: dict[str, tuple[str, str, str]] = {
    "Batch norm": ("datum.c", "'channel ' + channel", "of all samples"),
    "Layer norm": ("datum.n", "'sample ' + sample", "all channels"),
    "Instance norm": (
        f"datum.n * {CHANNELS + 1} + datum.c",
        "'sample ' + sample + ', channel ' + channel",
        "alone",
    ),
    "Group norm": (
        f"datum.n * {CHANNELS + 1} + floor((datum.c - 1) / {GROUP})",
        f"'sample ' + sample + ', channels ' + ({GROUP} * floor((channel - 1) / {GROUP}) + 1) + ' and '"
        f" + ({GROUP} * floor((channel - 1) / {GROUP}) + 2)",
        "",
    ),
    "RMSNorm": ("datum.n", "'sample ' + sample", "all channels"),
    "Weight norm": ("-1 - datum.c", "''", ""),
}


def activations() -> np.ndarray:
    """(N, C, H, W) = (4, 4, 3, 3) activations: samples differ in brightness and contrast, channels in their
    mean."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal((SAMPLES, CHANNELS, SIDE, SIDE))
    values = 0.8 * values + np.array([-0.6, 0.0, 0.4, 1.2])[:, None, None]
    values = values * np.array([0.5, 1.0, 1.6, 1.0])[:, None, None, None]
    values = values + np.array([0.0, 1.5, -0.5, -1.0])[:, None, None, None]
    return values.round(2)


def averages_chart(start: Mapping[str, object]) -> alt.LayerChart:
    """A batch of small activations as squares, and those that are averaged together with a chosen one.

    Params: `norm` (a name in `SHARED`), `sample` and `channel` (1 to 4), `images` (False: one value per
    channel, the middle one) and `after` (the values after the norm, with gamma = 1, beta = 0, eps = 1e-5).
    Three lines of words: what is chosen, which values share their statistics, and the numbers.
    """
    values = activations()
    rows = [
        {"n": n + 1, "c": c + 1, "values": charts.packed(values[n, c].ravel(), ".2f")}
        for n in range(SAMPLES)
        for c in range(CHANNELS)
    ]
    key = "-1"
    for name, (expression, _, _) in SHARED.items():
        key = f"norm == {json.dumps(name)} ? {expression} : {key}"
    middle = SIDE * SIDE // 2
    base = (
        alt.Chart(alt.Data(values=rows))
        .transform_calculate(v="split(datum.values, ' ')")
        .transform_flatten(["v"])
        .transform_window(i="row_number()", groupby=["n", "c"])
        .transform_filter(f"images || datum.i == {middle + 1}")
        .transform_calculate(x="toNumber(datum.v)", key=key)
        .transform_joinaggregate(mean="mean(x)", variance="variancep(x)", count="count()", groupby=["key"])
        .transform_calculate(
            used="norm != 'Weight norm'",
            variance="datum.count > 1 ? datum.variance : 0",  # of one value Vega has none
            square=(
                "norm == 'RMSNorm' ? datum.variance + datum.mean * datum.mean"
                " : norm == 'Weight norm' ? 1 : datum.variance + 1e-5"
            ),
            mean="norm == 'RMSNorm' || norm == 'Weight norm' ? 0 : datum.mean",
        )
        .transform_calculate(
            normed="(datum.x - datum.mean) / sqrt(datum.square)",
            chosen="datum.n == sample && datum.c == channel",
        )
        .transform_calculate(
            shown="after ? datum.normed : datum.x",
            column=(
                f"images ? (datum.c - 1) * {SIDE + 1} + (datum.i - 1) % {SIDE} : (datum.c - 1) * {SIDE + 1}"
            ),
            row=(
                f"images ? (datum.n - 1) * {SIDE + 1} + floor((datum.i - 1) / {SIDE})"
                f" : (datum.n - 1) * {SIDE + 1}"
            ),
            wide=f"images ? 1 : {SIDE}",
        )
        .transform_calculate(right="datum.column + datum.wide", bottom="datum.row + datum.wide")
    )
    # The key of the chosen value, on every row.
    base = base.transform_calculate(own="datum.chosen ? datum.key : null").transform_joinaggregate(
        own="max(own)"
    )
    base = base.transform_calculate(among="datum.used && datum.key == datum.own")
    end = SAMPLES * (SIDE + 1) - 1
    centres = [k * (SIDE + 1) + SIDE / 2 for k in range(SAMPLES)]
    names = f"floor(datum.value / {SIDE + 1}) + 1"

    def axis(title: str, **more: object) -> alt.Axis:
        return alt.Axis(
            title=title, values=centres, labelExpr=names, grid=False, ticks=False, domain=False, **more
        )

    scale = alt.Scale(domain=[-0.2, end + 0.2], nice=False)
    across = {
        "x": alt.X("column:Q", scale=scale, axis=axis("Channel c", orient="top")),
        "x2": "right:Q",
        "y": alt.Y(
            "row:Q",
            scale=alt.Scale(domain=[-0.2, end + 0.2], nice=False, reverse=True),
            axis=axis("Sample n"),
        ),
        "y2": "bottom:Q",
    }
    cells = base.mark_rect(strokeWidth=0.5, stroke=charts.INK, strokeOpacity=0.25).encode(
        color=alt.Color(
            "shown:Q",
            title="Value",
            scale=alt.Scale(domain=[-3, 0, 3], range=[LOW, "#f4f4f2", HIGH], clamp=True),
            legend=alt.Legend(orient="bottom", gradientLength=160, titleOrient="left", tickCount=3),
        ),
        opacity=alt.condition("datum.among || !datum.used", alt.value(1), alt.value(0.22)),
        **across,
    )
    # One frame for each sample and channel in which values are averaged.
    framed = (
        base.transform_filter("datum.among && (!images || datum.i == 1)")
        .transform_calculate(right=f"datum.column + {SIDE}", bottom=f"datum.row + {SIDE}")
        .mark_rect(fillOpacity=0, stroke=charts.INK, strokeWidth=2)
        .encode(**across)
    )
    pointed = (
        base.transform_filter(f"datum.chosen && datum.i == {middle + 1}")
        .transform_calculate(x0="(datum.column + datum.right) / 2", y0="(datum.row + datum.bottom) / 2")
        .mark_point(shape="cross", filled=True, color="#000000", stroke="#ffffff", size=70, opacity=1)
        .encode(x=alt.X("x0:Q", scale=scale), y=alt.Y("y0:Q"))
    )
    words, rest = "''", "''"
    for name, (_, shared, more) in SHARED.items():
        words = f"norm == {json.dumps(name)} ? {shared} : {words}"
        rest = f"norm == {json.dumps(name)} ? {json.dumps(', ' + more if more else '')} : {rest}"
    x, mean, spread, normed = (
        f"replace(format({value}, '.2f'), '-', '−')"
        for value in ("datum.x", "datum.mean", "sqrt(datum.square)", "datum.normed")
    )
    told = [
        "norm + ': a value of sample ' + sample + ', channel ' + channel",
        (
            "!datum.used ? 'No activation is averaged: it divides the weights.'"
            f" : datum.count + (datum.count == 1 ? ' value: ' : ' values: ') + ({words}) + ({rest})"
        ),
        (
            f"!datum.used ? {x} + ' stays ' + {x}"
            " : datum.count == 1 && norm != 'RMSNorm' ? 'Its own mean is subtracted: nothing is left'"
            f" : (norm == 'RMSNorm' ? 'root mean square ' : 'mean ' + {mean} + ', deviation ') + {spread}"
            f" + '; ' + {x} becomes_ {normed}"
        ).replace("becomes_", "+ ' becomes ' +"),
    ]
    point = base.transform_filter(f"datum.chosen && datum.i == {middle + 1}")
    lines = [
        point.transform_calculate(told=text)
        .mark_text(align="left", fontSize=12, fontWeight="bold" if k == 0 else "normal")
        .encode(text="told:N", x=alt.value(-34), y=alt.value(-86 + 18 * k))
        for k, text in enumerate(told)
    ]
    return (
        alt.layer(cells, framed, pointed, *lines)
        .properties(width="container", height=300)
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def averages() -> ipywidgets.VBox:
    """The chart of `averages_chart` under its controls; first batch norm of images."""
    start = {"norm": "Batch norm", "sample": 2, "channel": 3, "images": True, "after": False}
    m = {"n": SAMPLES, "c": CHANNELS, "p": SIDE * SIDE}
    explorer = widgets.Explorer(
        averages_chart(start),
        description=(
            "A batch of four samples with four channels of three by three pixels, as squares. A norm, a "
            "sample and a channel can be chosen; the values that share one mean and deviation are framed. "
            f"Batch norm: the {m['n'] * m['p']} values of a channel in all samples; layer norm and RMSNorm: "
            f"the {m['c'] * m['p']} of a sample in all channels; instance norm: the {m['p']} of one sample "
            f"and channel; group norm: the {GROUP * m['p']} of one sample and two neighbouring channels; "
            "weight norm: none."
        ),
    )
    return widgets.controls(
        explorer,
        norm=ipywidgets.Dropdown(description="norm", options=list(SHARED), value=start["norm"]),
        sample=ipywidgets.IntSlider(description="sample", value=2, min=1, max=SAMPLES),
        channel=ipywidgets.IntSlider(description="channel", value=3, min=1, max=CHANNELS),
        images=ipywidgets.Checkbox(description="images (else vectors)", value=True, indent=False),
        after=ipywidgets.Checkbox(description="show values after the norm", value=False, indent=False),
    )


# --- (b) what a norm does not see -----------------------------------------------------------------------

#: change -> words
CHANGES: dict[str, str] = {
    "neuron_scale": "one neuron's weights × 3",
    "layer_scale": "all weights × 3",
    "layer_shrink": "all weights / 100",
    "layer_shift": "same vector added to all",
    "neuron_bias": "one bias + 1",
    "layer_bias": "all biases + 1",
    "data_scale": "all inputs × 3",
    "data_shift": "all inputs shifted",
    "sample_scale": "one input × 3",
    "sample_shift": "one input shifted",
    "neighbours": "other neighbours",
    "order": "order of the batch",
    "mode": "other mode",
}
#: arm -> a heading of two or three letters
SHORT: dict[str, str] = {
    "bn": "BN",
    "bn_eval": "BNe",
    "batch_renorm": "BR",
    "layer": "LN",
    "instance": "IN",
    "group": "GN",
    "rms": "RN",
    "weight": "WN",
    "standard": "–",
}
EXACT, NEARLY = "unchanged", "nearly"
CLASSES = {EXACT: "#0078c3", NEARLY: "#7fb2d6", "changed": "#e9b08a"}


def table(record: Record, eps: float = 0.0) -> pd.DataFrame:
    """Rows kind, arm, change, value (the largest over the seeds) and class: "unchanged" if below 1e-10,
    "nearly" if below 1e-3, else "changed"."""
    frame = alternatives.changes(record, eps)
    found = frame.groupby(["kind", "arm", "change"], as_index=False)["value"].max()
    found["class"] = np.select(
        [found["value"] < alternatives.EXACT, found["value"] < 1e-3], [EXACT, NEARLY], "changed"
    )
    return found


def blind_to(record: Record, arm: str, kind: str, eps: float = 0.0) -> list[str]:
    """The changes, in words and in their order, that leave an arm's output exactly as it was."""
    found = table(record, eps)
    found = found[(found["arm"] == arm) & (found["kind"] == kind) & (found["class"] == EXACT)]
    return [words for change, words in CHANGES.items() if change in set(found["change"])]


def invariances_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """Change against norm: "=" where the output stays exactly as it is, "≈" where nearly, "×" where not.

    Params: `norm` (an arm, framed, which the words below are about), `kind` ("vectors" or "images") and `eps`
    (a string).
    """
    rows, told = [], []
    for eps in epsilons(record):
        found = table(record, float(eps)).assign(eps=eps)
        found["short"], found["words"] = found["arm"].map(SHORT), found["change"].map(CHANGES)
        found["value"] = [float(f"{value:.1e}") for value in found["value"]]
        rows += found.drop(columns="change").to_dict("records")
        for kind in ("vectors", "images"):
            for arm in SHORT:
                blind = ", ".join(blind_to(record, arm, kind, float(eps))) or "nothing"
                text = f"{label(arm)}, {kind}, ε = {eps}. It does not feel at all: {blind}."
                if not (found[(found["arm"] == arm) & (found["kind"] == kind)]).size:
                    text = f"{label(arm)} leaves nothing of vectors."
                told.append({"eps": eps, "kind": kind, "arm": arm, "told": textwrap.wrap(text, 48)})
    order, shorts = list(CHANGES.values()), list(SHORT.values())
    here = "datum.kind == kind && datum.eps == eps"
    across = alt.X(
        "short:N",
        title=None,
        sort=shorts,
        scale=alt.Scale(domain=shorts, paddingInner=0.06, paddingOuter=0.02),
        axis=alt.Axis(orient="top", labelAngle=0, grid=False, labelOverlap=False, ticks=False),
    )
    down = alt.Y(
        "words:N",
        title=None,
        sort=order,
        scale=alt.Scale(domain=order, paddingInner=0.08, paddingOuter=0.02),
        axis=alt.Axis(grid=False, labelLimit=170, labelOverlap=False, ticks=False),
    )
    base = alt.Chart(alt.Data(values=rows)).transform_filter(here)
    cells = base.mark_rect().encode(
        x=across,
        y=down,
        color=alt.Color(
            "class:N",
            title=None,
            sort=list(CLASSES),
            scale=alt.Scale(domain=list(CLASSES), range=list(CLASSES.values())),
            legend=None,
        ),
        tooltip=[
            alt.Tooltip("words:N", title="change"),
            alt.Tooltip("value:Q", title="relative change of the output", format=".1e"),
        ],
    )
    exact = f"datum['class'] == '{EXACT}'"
    signs = (
        base.transform_calculate(sign=f"{exact} ? '=' : datum['class'] == '{NEARLY}' ? '≈' : '×'")
        .mark_text(fontSize=13, fontWeight="bold")
        .encode(
            x=across,
            y=down,
            text="sign:N",
            color=alt.condition(exact, alt.value("#ffffff"), alt.value("#000000")),
        )
    )
    height = 24 * len(order)
    frame = (
        alt.Chart(alt.Data(values=[{"arm": arm, "short": short} for arm, short in SHORT.items()]))
        .transform_filter("datum.arm == norm")
        .mark_rect(fillOpacity=0, stroke=charts.INK, strokeWidth=2.5)
        .encode(x=across, y=alt.value(0), y2=alt.value(height))
    )
    words = (
        alt.Chart(alt.Data(values=told))
        .transform_filter(f"{here} && datum.arm == norm")
        .mark_text(align="left", baseline="top", fontSize=12, lineHeight=16)
        .encode(text="told:N", x=alt.value(-150), y=alt.value(height + 36))
    )
    key = (
        alt.Chart(alt.Data(values=[{"key": "= unchanged    ≈ nearly (below 0.001)    × changed"}]))
        .mark_text(align="left", baseline="top", fontSize=12, fontWeight="bold")
        .encode(text="key:N", x=alt.value(-150), y=alt.value(height + 12))
    )
    longest = max(len(row["told"]) for row in told)
    room = (
        alt.Chart(alt.Data(values=[{"room": " "}]))
        .mark_text(baseline="bottom", fontSize=12)
        .encode(text="room:N", x=alt.value(0), y=alt.value(height + 40 + 16 * longest))
    )
    return (
        alt.layer(cells, signs, frame, words, key, room)
        .properties(width="container", height=height)
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def epsilons(record: Record) -> list[str]:
    """The values of eps that were recorded, smallest first, as words."""
    return [f"{eps:g}" for eps in sorted({eps for run in record.runs for eps in run["settings"]["eps"]})]


def invariances(record: Record) -> ipywidgets.VBox:
    """The chart of `invariances_chart` under its controls; first layer norm on vectors, eps = 0."""
    start = {"norm": "layer", "kind": "vectors", "eps": epsilons(record)[0]}
    told = "; ".join(
        f"{label(arm)}: {', '.join(blind_to(record, arm, kind)) or 'nothing'}"
        for arm in SHORT
        for kind in (["images"] if arm == "instance" else ["vectors"])
    )
    explorer = widgets.Explorer(
        invariances_chart(record, start),
        description=(
            "Which changes of weights, inputs and batch leave a normalised layer's output as it is: a row "
            "for each change, a column for each norm. With eps = 0, on vectors (instance norm: on images), "
            f"what each does not feel. {told}."
        ),
    )
    return widgets.controls(
        explorer,
        norm=ipywidgets.Dropdown(
            description="norm", options=[(f"{label(a)} ({s})", a) for a, s in SHORT.items()], value="layer"
        ),
        kind=ipywidgets.Dropdown(description="layer", options=["vectors", "images"], value="vectors"),
        eps=ipywidgets.Dropdown(description="ε", options=epsilons(record), value=start["eps"]),
    )


# --- (c) how far they get -------------------------------------------------------------------------------

#: column of `alternatives.outcomes` -> words, factor
QUANTITIES: dict[str, tuple[str, float]] = {
    "accuracy": ("test accuracy (%)", 100.0),
    "loss": ("training loss (nats)", 1.0),
}
BEST = "best"
#: in words -> place among a network's learning rates; of three, the middle one is second from both ends
RATES = {"smallest": 0, "second smallest": 1, "second largest": -2, "largest": -1}


def networks(record: Record, deep: Record) -> dict[str, pd.DataFrame]:
    """What can be compared: a network in words -> its rows of `alternatives.outcomes`.

    `best` says whether the row is at its arm's best learning rate, `rates` what that is among the network's
    rates (some of `RATES`).
    """
    tables = {}
    convolutional = record.runs[0]["settings"]["model"]["name"]
    for source in (record, deep):
        outcomes = alternatives.outcomes(source)
        keys = ["arm", "depth", "lr", "seed"]
        chosen = pd.MultiIndex.from_frame(alternatives.at_best_rate(source)[keys])
        outcomes["best"] = pd.MultiIndex.from_frame(outcomes[keys]).isin(chosen)
        ordered = sorted(outcomes["lr"].unique())
        names = {lr: [word for word, place in RATES.items() if ordered[place] == lr] for lr in ordered}
        outcomes["rates"] = outcomes["lr"].map(names)
        for depth, part in outcomes.groupby("depth"):
            skips = ~part["arm"].isin(list(alternatives.NORMS))
            plain = f"{depth} layers" if depth else {"vgg": "VGG"}.get(convolutional, "small CNN")
            tables[plain] = part[~skips]
            if skips.any():
                tables[f"{depth} blocks with skips"] = part[skips]
    # The networks without skip connections first, in the order of their depth.
    return dict(sorted(tables.items(), key=lambda named: "skips" in named[0]))


def without_rate(record: Record, lr: float) -> Record:
    """The record as it would be if no run had had that learning rate."""
    gone = {run["id"] for run in record.runs if run["settings"]["lr"] == lr}
    kept = pa.array([run not in gone for run in record.table["run"].to_pylist()])
    return Record(record.name, record.scale, record.table.filter(kept), record.provenance)


def comparison_chart(tables: Mapping[str, pd.DataFrame], start: Mapping[str, object]) -> alt.LayerChart:
    """A row per arm, a dot per seed and a bar at the median; beside it the median and the learning rate.

    Params: `network` (a name in `tables`), `quantity` (one of `QUANTITIES`) and `rate` ("best" or one of
    `RATES`).  A run that diverged has no dot, and its arm no median.
    """
    order = list(dict.fromkeys(arm for part in tables.values() for arm in part["arm"]))
    rows = []
    for network, part in tables.items():
        for (arm, lr), runs in part.sort_values("seed").groupby(["arm", "lr"], sort=False):
            there = np.isfinite(runs["loss"])
            for quantity, (_, factor) in QUANTITIES.items():
                rows.append(
                    {
                        "network": network,
                        "arm": label(arm),
                        "colour": charts.ARMS[arm].colour,
                        "rank": order.index(arm),
                        "lr": lr,
                        "rates": runs["rates"].iloc[0],
                        "best": bool(runs["best"].iloc[0]),
                        "quantity": quantity,
                        "lost": int((~there).sum()),
                        "values": charts.packed((factor * runs[quantity]).where(there, math.nan)),
                    }
                )
    base = (
        alt.Chart(alt.Data(values=rows))
        .transform_filter(
            "datum.network == network && datum.quantity == quantity"
            f" && (rate == '{BEST}' ? datum.best : indexof(datum.rates, rate) >= 0)"
        )
        .transform_calculate(v="split(datum.values, ' ')")
        .transform_flatten(["v"])
        .transform_calculate(v="toNumber(datum.v)")
    )
    down = alt.Y(
        "arm:N",
        title=None,
        sort=alt.EncodingSortField("rank", op="min"),
        axis=alt.Axis(grid=True, labelOverlap=False, ticks=False, labelLimit=120),
    )

    def across(field: str) -> alt.X:
        scale = alt.Scale(zero=False, padding=8)
        return alt.X(field, title=None, scale=scale, axis=alt.Axis(tickCount=4))

    colour = alt.Color("colour:N", scale=None)
    there = base.transform_filter("isFinite(datum.v)")
    dots = there.mark_point(size=40, opacity=0.75, filled=True).encode(x=across("v:Q"), y=down, color=colour)
    bars = (
        there.transform_filter("datum.lost == 0")
        .mark_tick(thickness=3, height=18, orient="vertical")
        .encode(x=across("median(v):Q"), y=down, color=colour)
    )
    beside = (
        base.transform_aggregate(median="median(v)", groupby=["arm", "rank", "lr", "lost"])
        .transform_calculate(
            words=(
                "datum.lost ? datum.lost + ' diverged'"
                " : format(datum.median, '.3~r') + (rate == 'best' ? ' at ' + datum.lr : '')"
            )
        )
        .mark_text(align="left", fontSize=12)
        .encode(y=down, x=alt.value({"expr": "width + 8"}), text="words:N")
    )
    quantity = " : ".join(f"quantity == '{name}' ? '{words}'" for name, (words, _) in QUANTITIES.items())
    heads = [
        f"network + ': ' + ({quantity} : '')",
        f"rate == '{BEST}' ? 'each at its best rate' : 'the ' + rate + ' rate, ' + datum.lr",
    ]
    told = [
        base.transform_aggregate(lr="min(lr)")
        .transform_calculate(told=words)
        .mark_text(align="left", fontSize=12, fontWeight="normal" if k else "bold")
        .encode(text="told:N", x=alt.value(-90), y=alt.value(18 * k - 30))
        for k, words in enumerate(heads)
    ]
    return (
        alt.layer(bars, dots, beside, *told)
        .properties(width="container", height=230)
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def comparison(record: Record, deep: Record) -> ipywidgets.VBox:
    """The chart of `comparison_chart` under its controls; first the convolutional network."""
    tables = networks(record, deep)
    start = {"network": next(iter(tables)), "quantity": "accuracy", "rate": BEST}
    told = []
    for network, part in tables.items():
        median = 100 * part[part["best"]].groupby("arm", sort=False)["accuracy"].median()
        told.append(f"{network}: " + ", ".join(f"{label(a)} {charts.spell(v)}" for a, v in median.items()))
    explorer = widgets.Explorer(
        comparison_chart(tables, start),
        description=(
            "A dot per seed for every norm; network, quantity and learning rate can be chosen. Test accuracy "
            f"in per cent, each at its best rate, medians over the seeds. {'; '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        network=ipywidgets.Dropdown(description="network", options=list(tables), value=start["network"]),
        quantity=ipywidgets.Dropdown(
            description="quantity",
            options=[(words, name) for name, (words, _) in QUANTITIES.items()],
            value="accuracy",
        ),
        rate=ipywidgets.Dropdown(description="learning rate", options=[BEST, *RATES], value=BEST),
    )


# --- (d) training, and depth ----------------------------------------------------------------------------


def losses(record: Record, arms: list[str]) -> pd.DataFrame:
    """The training loss of `arms` at their best rates: rows arm, seed, step, value (mean over some steps)."""
    best = alternatives.at_best_rate(record).set_index(["arm", "seed"])["lr"]
    frame = record.frame("lr", metric="train_loss")
    mine = best.reindex(pd.MultiIndex.from_frame(frame[["arm", "seed"]])).to_numpy()
    found = frame[(frame["lr"] == mine) & frame["arm"].isin(arms)]
    return found[["arm", "seed", "step", "value"]].reset_index(drop=True)


def by_depth(record: Record, arms: list[str]) -> pd.DataFrame:
    """The test accuracy of `arms` in per cent, at their best rates: rows group (the depth in words), arm,
    seed, value, by depth."""
    found = alternatives.at_best_rate(record).sort_values("depth", kind="stable")
    found = found[found["arm"].isin(arms)]
    unit = "layers" if set(arms) <= set(alternatives.NORMS) else "blocks"
    found = found.assign(value=100 * found["accuracy"], group=[f"{depth} {unit}" for depth in found["depth"]])
    return found[["group", "arm", "seed", "value"]].reset_index(drop=True)


def disagreement(record: Record) -> dict[str, list[float]]:
    """At the best rates: the share of test images in per cent that training and evaluation mode put into
    different classes at the end, by arm, a value for each seed."""
    best = alternatives.at_best_rate(record).set_index(["arm", "seed"])["lr"]
    frame = record.frame("lr", "steps", metric="mode_disagreement")
    mine = best.reindex(pd.MultiIndex.from_frame(frame[["arm", "seed"]])).to_numpy()
    found = frame[(frame["lr"] == mine) & (frame["step"] == frame["steps"])]
    return {arm: (100 * part["value"]).tolist() for arm, part in found.groupby("arm", sort=False)}
