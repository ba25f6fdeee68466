"""The figures of chapter 10: gradients through many layers, measured and predicted.

Functions that end in `_chart` return a chart; `signal`, `training` and `first_steps` return finished widgets.
A series of numbers travels as one string (see `charts.packed`), and what a reader asks for is computed in
the page, with or without a kernel. No torch here: predictions come in as rows, from
`bnlib.signal_propagation.predict`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import altair as alt
import ipywidgets
import numpy as np
import pandas as pd

from bnlib import charts, widgets
from bnlib.charts import Arm
from bnlib.experiments import explosion
from bnlib.explorables.landscape import POWER
from bnlib.records import Record

GREY = "#7d838c"
BLUE = charts.ARMS["bn"].colour
#: a random network's arm -> its norm, and whether it has skip connections
NETS = {
    "bn": ("batch", False),
    "layer": ("layer", False),
    "bn_residual": ("batch", True),
    "layer_residual": ("layer", True),
    "standard": ("none", False),
    "residual": ("none", True),
}
ACTIVATIONS = {
    "relu": Arm("ReLU", BLUE, (1, 0)),
    "gelu": Arm("GELU", "#00a596", (2, 2)),
    "tanh": Arm("tanh", "#d25a00", (7, 3)),
    "sigmoid": Arm("sigmoid", "#8f76c8", (4, 2)),
    "linear": Arm("none (linear)", GREY, (1, 3)),
}
NORMS = {"batch": "Batch norm", "layer": "Layer norm"}
INFINITE = 1e9  # the batch that stands for infinitely many samples
MOMENTS = {0: ("before training", GREY), 1: ("after one step", "#d25a00"), 10: ("after ten steps", BLUE)}


def batch_words(batch: float) -> str:
    """A batch size as a label."""
    return "∞" if batch >= INFINITE else f"{batch:g}"


# --- (a) random networks: measured and predicted ------------------------------------------------------


def growth(record: Record) -> pd.DataFrame:
    """By how much the squared gradient at the start is larger than later on: rows (arm, activation,
    batch_size, seed, place, value), place 0, 1, ... counted from the start.

    The start is the input of the first block, or, in a plain network, the second layer: the first one's input
    has not come out of an activation, so its step is another one.
    """
    frame = explosion.signals(record, "gradient")
    frame = frame[(frame["weight_variance"] == explosion.HE) & (frame["layer"] != "h1")]
    frame = frame.drop(columns="weight_variance")
    number = frame["layer"].str[1:].astype(int)
    keys = ["arm", "activation", "batch_size", "seed"]
    groups = [frame[name] for name in keys]
    frame = frame.assign(place=number - number.groupby(groups).transform("min"))
    first = frame[frame["place"] == 0].set_index(keys)["value"].rename("first")
    frame = frame.join(first, on=keys)
    frame["value"] = frame["first"] / frame["value"]
    return frame[[*keys, "place", "value"]].sort_values([*keys, "place"], ignore_index=True)


def measured_rows(record: Record) -> list[dict]:
    """One row per network with a norm and seed: `growth` in decades, a word per place."""
    frame = growth(record)
    rows = []
    for (arm, activation, batch, seed), part in frame.groupby(["arm", "activation", "batch_size", "seed"]):
        norm, skips = NETS[arm]
        if norm in NORMS:
            rows.append(
                {
                    "net": norm,
                    "skips": skips,
                    "act": activation,
                    "batch": int(batch),
                    "seed": int(seed),
                    "values": charts.packed(np.log10(part["value"]), ".3f"),
                }
            )
    return rows


def predicted_rows(predictions: Iterable) -> list[dict]:
    """One row per prediction; with layer norm, whose batch plays no role, `batch` is 0."""
    rows = {}
    for found in predictions:
        batch = 0 if found.norm == "layer" else min(found.batch_size, INFINITE)
        rows[found.norm, found.activation, batch] = {
            "net": found.norm,
            "act": found.activation,
            "batch": batch,
            "rate": float(f"{found.rate:.8g}"),
            "start": float(f"{found.start:.6g}"),
        }
    return list(rows.values())


def signal_chart(record: Record, predictions: Iterable, start: Mapping[str, object]) -> alt.LayerChart:
    """How much larger the gradient at the start is than at a layer: every seed thin, the prediction dashed.

    Params: `net` ("batch" or "layer"), `skips`, `act` (an activation), `batch`, `depth` (of the prediction;
    of the measurement, if that is shorter) and `power`, 1 for the squared norm and 0.5 for the norm. Where
    the norm of a plain network with batch norm is shown, a dotted line grows by the rate itself.
    Below, in words: rate, predicted and measured growth.
    """
    height, predicted = 260, predicted_rows(predictions)
    across = alt.X(
        "x:Q",
        title="Layers (blocks) from the start",
        scale=alt.Scale(nice=False, zero=True),
        axis=alt.Axis(tickMinStep=1, tickCount=6, grid=False),
    )
    up = alt.Y("y:Q", title=None, scale=alt.Scale(zero=True), axis=alt.Axis(labelExpr=POWER, tickCount=6))
    theory = (
        alt.Chart(alt.Data(values=predicted))
        .transform_filter(
            "datum.net == net && datum.act == act && (datum.batch == 0 || datum.batch == batch)"
        )
        .transform_calculate(x="sequence(0, depth + 1)")
        .transform_flatten(["x"])
        .transform_calculate(
            step="datum.x == 0 ? 0 : power / LN10 * log(skips ? 1 + datum.rate / (datum.x - 1 + datum.start)"
            " : datum.rate)"
        )
        .transform_window(y="sum(step)", sort=[{"field": "x"}])
    )
    # Where nothing was measured, the axes still need a number.
    origin = {"net": "", "skips": False, "act": "", "batch": 0, "seed": -1, "values": "0"}
    measured = (
        alt.Chart(alt.Data(values=[*measured_rows(record), origin]))
        .transform_filter(
            "datum.seed < 0 || "
            "(datum.net == net && datum.skips == skips && datum.act == act && datum.batch == batch)"
        )
        .transform_calculate(y="split(datum['values'], ' ')")
        .transform_flatten(["y"])
        .transform_window(x="row_number()", groupby=["seed"])
        .transform_calculate(x="datum.x - 1", y="power * toNumber(datum.y)")
        .transform_filter("datum.x <= depth")
    )
    colour = {"condition": {"test": "net == 'batch'", "value": BLUE}, "value": "#d25a00"}
    lines = measured.mark_line(strokeWidth=1.2, opacity=0.7).encode(
        x=across, y=up, detail="seed:N", color=colour
    )
    expected = theory.mark_line(strokeWidth=2, strokeDash=[6, 4], color=charts.INK).encode(x=across, y=up)
    applies = "power < 1 && !skips && net == 'batch'"
    false = (
        theory.transform_calculate(y=f"({applies} ? 2 : 1) * datum.y")
        .mark_line(
            strokeWidth=2, strokeDash=[1, 4], color=charts.INK, opacity={"expr": f"{applies} ? 0.8 : 0"}
        )
        .encode(x=across, y=up)
    )
    one = alt.Chart(alt.Data(values=[{}]))
    names = json.dumps({name: arm.label for name, arm in ACTIVATIONS.items()}, ensure_ascii=False)
    norms = json.dumps(NORMS)

    def text(rows: alt.Chart, number: int, words: str, **style: object) -> alt.Chart:
        place = {"x": alt.value(-44), "y": alt.value(height + 66 + 18 * number)}
        return (
            rows.transform_calculate(told=words)
            .mark_text(align="left", fontSize=12, **style)
            .encode(text="told:N", **place)
        )

    def times(decades: str) -> str:
        """Powers of ten that a number format cannot hold, too."""
        return (
            f"(abs({decades}) < 5 ? format(pow(10, {decades}), '.3~r') : "
            f"replace(format(pow(10, {decades} - floor({decades})), '.1f') + '·10^' + floor({decades}), "
            "'-', '−'))"
        )

    heading = (
        one.transform_calculate(
            told="(power < 1 ? 'Gradient’s norm' : 'Squared norm') + ': at the start / at the layer'"
        )
        .mark_text(align="left", fontSize=13)
        .encode(text="told:N", x=alt.value(-44), y=alt.value(-16))
    )
    last = theory.transform_filter("datum.x == depth")
    ends = (
        measured.transform_filter("datum.seed >= 0")
        .transform_joinaggregate(end="max(x)")
        .transform_filter("datum.x == datum.end")
        .transform_aggregate(
            low="min(y)", middle="median(y)", high="max(y)", seeds="count()", end="max(end)", groupby=["net"]
        )
    )
    batch = f"(batch >= {INFINITE} ? '∞' : batch)"
    told = [
        text(
            one,
            0,
            f"({norms})[net] + ', ' + ({names})[act] + ', batch of ' + {batch}"
            " + (skips ? ', with skips' : ', no skips')",
            fontWeight="bold",
        ),
        text(
            last,
            1,
            "(skips ? 'λ = ' + format(datum.rate, '.4f') + ' is the exponent of a power of the depth'"
            " : 'λ = ' + format(datum.rate, '.4f') + ' per layer, √λ = ' + format(sqrt(datum.rate), '.4f')"
            " + ' for the norm')",
        ),
        text(last, 2, "'Predicted (dashed) over ' + depth + ': × ' + " + times("datum.y")),
        text(
            ends,
            3,
            "'Measured over ' + datum.end + ': × ' + "
            + times("datum.middle")
            + " + (datum.seeds > 1 ? ' (' + "
            + times("datum.low")
            + " + ' to ' + "
            + times("datum.high")
            + " + ')' : '')",
        ),
        text(
            one.transform_filter(applies),
            4,
            "'Dotted: a norm that grows by λ per layer, as Wikipedia has it'",
        ),
        text(one, 5, "' '"),
    ]
    return (
        alt.layer(lines, expected, false, heading, *told)
        .properties(width="container", height=height)
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def signal(record: Record, predictions: Sequence) -> ipywidgets.VBox:
    """The chart of `signal_chart` under its controls.

    `predictions` has the fields of `bnlib.signal_propagation.Prediction`; its batch sizes are the slider's.
    """
    batches = sorted({min(found.batch_size, INFINITE) for found in predictions if found.norm == "batch"})
    acts = [name for name in ACTIVATIONS if any(found.activation == name for found in predictions)]
    recorded = sorted({row["batch"] for row in measured_rows(record)})
    depth = max(run["settings"]["depth"] for run in record.runs if run["arm"] == "bn")
    start = {
        "net": "batch",
        "act": "relu",
        "skips": False,
        "batch": recorded[-1],
        "depth": depth,
        "power": 1.0,
    }
    table = growth(record)
    last = table[(table["arm"] == "bn") & (table["place"] == depth - 2)]
    told = "; ".join(
        f"{ACTIVATIONS[act].label} {charts.spell(part['value'].median())}"
        for act, part in last[last["batch_size"] == recorded[-1]].groupby("activation")
    )
    explorer = widgets.Explorer(
        signal_chart(record, predictions, start),
        description=(
            "Growth of the gradient from a layer back to the start, in wide random networks, against the "
            "number of the layer: a thin line per seed, and dashed what the theory of infinite width says. "
            "Norm, activation, batch size, depth, skip connections can be chosen. Squared norm with batch "
            f"norm, batches of {recorded[-1]}, start over last layer, medians: {told}."
        ),
    )
    return widgets.controls(
        explorer,
        net=ipywidgets.Dropdown(
            description="normalization",
            options=[(words, name) for name, words in NORMS.items()],
            value="batch",
        ),
        act=ipywidgets.Dropdown(
            description="activation",
            options=[(ACTIVATIONS[name].label, name) for name in acts],
            value="relu",
        ),
        batch=ipywidgets.SelectionSlider(
            description="batch size",
            options=[(batch_words(batch), batch) for batch in batches],
            value=recorded[-1],
        ),
        depth=ipywidgets.IntSlider(description="depth", value=depth, min=5, max=100),
        power=ipywidgets.Dropdown(
            description="show", options=[("the squared norm", 1.0), ("the norm", 0.5)], value=1.0
        ),
        skips=ipywidgets.Checkbox(description="skip connections", value=False),
    )


def rates_chart(record: Record, predictions: Iterable) -> alt.LayerChart:
    """The factor per layer with batch norm against the batch size: lines predicted, a dot per seed."""
    predicted = [
        {"arm": ACTIVATIONS[found.activation].label, "x": found.batch_size, "y": float(f"{found.rate:.5g}")}
        for found in predictions
        if found.norm == "batch" and math.isfinite(found.batch_size) and found.batch_size > 4
    ]
    rates = {act: explosion.rates(record, "bn", act) for act in ACTIVATIONS}
    measured = [
        {"arm": ACTIVATIONS[act].label, "x": batch, "values": charts.packed(by_seed.values(), ".5g")}
        for act, by_batch in rates.items()
        for batch, by_seed in by_batch.items()
    ]
    labels = [arm.label for arm in ACTIVATIONS.values()]
    scales = charts.arm_scales(labels, ACTIVATIONS, alt.Legend())
    across = alt.X(
        "x:Q",
        title="Batch size",
        scale=alt.Scale(type="log", base=2, nice=False, padding=12),
        axis=alt.Axis(values=[2**k for k in range(3, 12)], format="~g", grid=False),
    )
    up = alt.Scale(zero=False)
    lines = (
        alt.Chart(alt.Data(values=predicted))
        .mark_line(strokeWidth=1.6)
        .encode(x=across, y=alt.Y("y:Q", title="Factor per layer, squared norm", scale=up), **scales)
    )
    dots = (
        alt.Chart(alt.Data(values=measured))
        .transform_calculate(y="split(datum['values'], ' ')")
        .transform_flatten(["y"])
        .transform_calculate(y="toNumber(datum.y)")
        .mark_point(size=30, opacity=0.75)
        .encode(
            x=across,
            y=alt.Y("y:Q", title="Factor per layer, squared norm", scale=up),
            color=scales["color"],
        )
    )
    told = "; ".join(
        f"{ACTIVATIONS[act].label} "
        + ", ".join(
            f"{charts.spell(float(np.median(list(by_seed.values()))))} at {batch}"
            for batch, by_seed in by_batch.items()
        )
        for act, by_batch in rates.items()
    )
    return alt.layer(lines, dots).properties(
        width="container",
        height=charts.HEIGHT,
        description=(
            "Factor by which the squared gradient grows per layer with batch norm, against the batch size, "
            "by activation: lines are predicted, dots measured, one per seed. Measured medians: "
            f"{told}."
        ),
    )


# --- (b) trainability ---------------------------------------------------------------------------------

ARMS = {name: charts.ARMS[name] for name in ("standard", "bn", "layer", "bn_residual", "residual")}
BEST = -1.0  # in place of a learning rate: the one with the highest accuracy
QUANTITIES = {
    "accuracy": "accuracy",
    "range, start": "range_0",
    "range, one step": "range_1",
    "range, ten steps": "range_10",
}


def trained(record: Record) -> pd.DataFrame:
    """`explosion.trained` with, for each network, the dynamic range of its gradients in decades, `range_0`,
    `range_1` and `range_10`, and once more with lr = `BEST`: the rate with the highest accuracy."""
    keys = ["arm", "depth", "lr", "seed"]
    table = explosion.trained(record).set_index(keys)
    ranges = explosion.ranges(record).set_index([*keys, "step"])["value"]
    decades = np.log10(ranges.where(ranges > 0)).unstack("step")
    table = table.join(decades.rename(columns=lambda step: f"range_{step}")).reset_index()
    best = table.loc[table.groupby(["arm", "depth", "seed"])["accuracy"].idxmax()]
    return pd.concat([table, best.assign(lr=BEST)], ignore_index=True)


def rates_of(record: Record) -> list[float]:
    """The learning rates, from small to large."""
    return sorted({run["settings"]["lr"] for run in record.runs})


def depths_of(record: Record) -> list[int]:
    """The depths, from shallow to deep."""
    return sorted({run["settings"]["model"]["depth"] for run in record.runs})


def training_rows(record: Record) -> list[dict]:
    """One row per arm, learning rate (and `BEST`) and seed: a series over the depths for each quantity."""
    depths, rows = depths_of(record), []
    for (arm, lr, seed), part in trained(record).groupby(["arm", "lr", "seed"]):
        at = part.set_index("depth").reindex(depths)
        rows.append(
            {
                "arm": ARMS[arm].label,
                "lr": lr,
                "seed": int(seed),
                **{name: charts.packed(at[name], ".4g") for name in QUANTITIES.values()},
            }
        )
    return rows


def training_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """Accuracy after training, or the dynamic range of the gradients, against the depth; every seed thin.

    Params: `quantity` (a value of `QUANTITIES`), `rate` (a learning rate or `BEST`) and `at`, a depth. Below
    the axis, in words: every arm at this depth, median and range over the seeds.
    """
    depths, height = depths_of(record), 260
    labels = [arm.label for arm in ARMS.values()]
    scales = charts.arm_scales(labels, ARMS, alt.Legend(offset=30))
    across = alt.X(
        "x:Q",
        title="Depth (layers, or blocks with skip connections)",
        scale=alt.Scale(type="log", nice=False, padding=10),
        axis=alt.Axis(values=depths, format="~g", grid=False),
    )
    axis = alt.Axis(labelExpr=f"quantity == 'accuracy' ? datum.label : ({POWER})", tickCount=5)
    up = {"title": None, "scale": alt.Scale(zero=True), "axis": axis}
    base = alt.Chart()
    seeds = base.mark_line(strokeWidth=0.8, opacity=0.55).encode(
        x=across, y=alt.Y("y:Q", **up), detail="seed:N", **scales
    )
    middle = base.mark_line().encode(x=across, y=alt.Y("median(y):Q", **up), **scales)
    here = base.transform_filter("datum.x == at")
    rule = (
        alt.Chart(alt.Data(values=[{}]))
        .transform_calculate(x="at")
        .mark_rule(strokeDash=[2, 3])
        .encode(x=across)
    )
    one = alt.Chart(alt.Data(values=[{}]))

    def text(rows: alt.Chart, x: float, y: float, words: str, **style: object) -> alt.Chart:
        return (
            rows.transform_calculate(told=words)
            .mark_text(align="left", **{"fontSize": 12, **style})
            .encode(text="told:N", x=alt.value(x), y=alt.value(y))
        )

    titles = {
        "accuracy": "Accuracy on training images",
        "range_0": "Largest / smallest squared gradient, before",
        "range_1": "Largest / smallest squared gradient, step 1",
        "range_10": "Largest / smallest squared gradient, step 10",
    }
    rate = f"(rate == {BEST:g} ? 'each its best rate' : 'learning rate ' + format(rate, '~g'))"
    found = here.transform_aggregate(
        low="min(y)", middle="median(y)", high="max(y)", n="count()", groupby=["arm"]
    )

    def word(field: str) -> str:
        power = f"replace('10^' + format(datum.{field}, '.1~f'), '-', '−')"
        return f"(quantity == 'accuracy' ? format(datum.{field}, '.2f') : {power})"

    lines = [
        text(one, -44, height + 66, f"'At ' + at + ' layers, ' + {rate} + ':'", fontWeight="bold"),
        *(
            text(
                found.transform_filter(f"datum.arm == '{label}'"),
                -44,
                height + 84 + 18 * n,
                f"datum.arm + ': ' + {word('middle')} + (datum.n > 1 ? ' (' + {word('low')} + ' to ' + "
                f"{word('high')} + ')' : '')",
            )
            for n, label in enumerate(labels)
        ),
        text(one, -44, height + 84 + 18 * len(labels), "' '"),
    ]
    heading = text(one, -44, -16, f"({json.dumps(titles)})[quantity]", fontSize=13)
    return (
        alt.layer(seeds, middle, rule, heading, *lines)
        .properties(data=alt.Data(values=training_rows(record)), width="container", height=height)
        .transform_filter("datum.lr == rate")
        .transform_calculate(y="split(datum[quantity], ' ')")
        .transform_flatten(["y"])
        .transform_window(k="row_number()", groupby=["arm", "seed"])
        .transform_calculate(x=f"({json.dumps(depths)})[datum.k - 1]", y="toNumber(datum.y)")
        .transform_filter("isFinite(datum.y)")
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def training(record: Record, what: str) -> ipywidgets.VBox:
    """The chart of `training_chart` under its controls; `what` names the networks in the alt text."""
    depths, rates = depths_of(record), rates_of(record)
    start = {"quantity": "accuracy", "rate": BEST, "at": depths[-1]}
    table = trained(record)
    best = table[table["lr"] == BEST].groupby(["arm", "depth"])["accuracy"].median()
    told = "; ".join(
        f"{arm.label} " + ", ".join(f"{charts.spell(best[name, depth])} at {depth}" for depth in depths)
        for name, arm in ARMS.items()
    )
    explorer = widgets.Explorer(
        training_chart(record, start),
        description=(
            f"Against the depth of {what}: accuracy on training images after training, or the ratio of the "
            "largest to the smallest squared gradient of a layer in the first steps, for networks without a "
            "norm, with batch norm, with layer norm, and with skip connections. The learning rate can be "
            f"chosen. Median accuracy, each at its best rate. {told}."
        ),
    )
    return widgets.controls(
        explorer,
        quantity=ipywidgets.Dropdown(
            description="show", options=list(QUANTITIES.items()), value=start["quantity"]
        ),
        rate=ipywidgets.SelectionSlider(
            description="learning rate",
            options=[*((f"{rate:g}", rate) for rate in rates), ("best", BEST)],
            value=BEST,
        ),
        at=ipywidgets.SelectionSlider(
            description="read at depth", options=[(str(depth), depth) for depth in depths], value=depths[-1]
        ),
    )


# --- (c) the first steps ------------------------------------------------------------------------------

FIRST = ("bn", "layer", "standard", "bn_residual")


def step_rows(record: Record) -> list[dict]:
    """One row per arm, depth, learning rate, seed and step: the squared gradients of the hidden layers in
    decades, a word per layer from the input on. Networks of two layers have only one of them."""
    frame = explosion.gradients(record)
    frame = frame[frame["arm"].isin(FIRST) & (frame["depth"] > 2)]
    place = frame["layer"].str.extract(r"^(?:block(\d+)\.)?linear(\d+)$").fillna("0").astype(int)
    frame = frame.assign(block=place[0], number=place[1]).sort_values(["block", "number"])
    rows = []
    for (arm, depth, lr, seed, step), part in frame.groupby(["arm", "depth", "lr", "seed", "step"]):
        decades = np.log10(part["value"].where(part["value"] > 0))
        rows.append(
            {
                "net": arm,
                "depth": int(depth),
                "lr": lr,
                "seed": int(seed),
                "step": int(step),
                "values": charts.packed(decades, ".3f"),
            }
        )
    return rows


def first_steps_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """The squared gradient of every hidden layer before training, after one step and after ten.

    Params: `net` (one of `FIRST`), `layers` (the depth) and `rate`. Every seed thin, medians thick. Below, in
    words: the largest over the smallest at each of the three moments, median over the seeds.
    """
    height, rows = 250, step_rows(record)
    labels = [words for words, _ in MOMENTS.values()]
    moments = {
        words: Arm(words, colour, dash)
        for (words, colour), dash in zip(MOMENTS.values(), ((2, 2), (7, 3), (1, 0)), strict=True)
    }
    scales = charts.arm_scales(labels, moments, alt.Legend(offset=30))
    words = json.dumps({step: words for step, (words, _) in MOMENTS.items()})
    across = alt.X(
        "x:Q",
        title="Hidden layer, from the input on",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(tickMinStep=1, grid=False),
    )
    up = {"title": None, "scale": alt.Scale(zero=False), "axis": alt.Axis(labelExpr=POWER, tickCount=6)}
    base = alt.Chart()
    seeds = base.mark_line(strokeWidth=0.8, opacity=0.5).encode(
        x=across, y=alt.Y("y:Q", **up), detail="seed:N", **scales
    )
    middle = base.mark_line().encode(x=across, y=alt.Y("median(y):Q", **up), **scales)
    one = alt.Chart(alt.Data(values=[{}]))

    def text(data: alt.Chart, x: float, y: float, told: str, **style: object) -> alt.Chart:
        return (
            data.transform_calculate(told=told)
            .mark_text(align="left", **{"fontSize": 12, **style})
            .encode(text="told:N", x=alt.value(x), y=alt.value(y))
        )

    names = json.dumps({name: ARMS[name].label for name in FIRST})
    spread = (
        base.transform_aggregate(low="min(y)", high="max(y)", groupby=["arm", "seed"])
        .transform_calculate(wide="datum.high - datum.low")
        .transform_aggregate(decades="median(wide)", groupby=["arm"])
    )
    lines = [
        text(
            one,
            -44,
            height + 66,
            f"({names})[net] + ', ' + layers + ' layers, learning rate ' + format(rate, '~g') + ':'",
            fontWeight="bold",
        ),
        *(
            text(
                spread.transform_filter(f"datum.arm == '{label}'"),
                -44,
                height + 84 + 18 * n,
                "datum.arm + ': largest / smallest 10^' + format(datum.decades, '.1~f')",
            )
            for n, label in enumerate(labels)
        ),
        text(one, -44, height + 84 + 18 * len(labels), "' '"),
    ]
    heading = text(one, -44, -16, "'Squared gradient of the layer’s weights'", fontSize=13)
    return (
        alt.layer(seeds, middle, heading, *lines)
        .properties(data=alt.Data(values=rows), width="container", height=height)
        .transform_filter("datum.net == net && datum.depth == layers && datum.lr == rate")
        .transform_calculate(arm=f"({words})[datum.step]", y="split(datum['values'], ' ')")
        .transform_flatten(["y"])
        .transform_window(x="row_number()", groupby=["arm", "seed"])
        .transform_calculate(y="toNumber(datum.y)")
        .transform_filter("isFinite(datum.y)")
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def first_steps(record: Record, what: str) -> ipywidgets.VBox:
    """The chart of `first_steps_chart` under its controls; `what` names the networks in the alt text."""
    depths = [depth for depth in depths_of(record) if depth > 2]
    rates = rates_of(record)
    start = {"net": "bn", "layers": depths[-1], "rate": rates[-1]}
    ranges = {
        step: np.median(list(explosion.dynamic_range(record, "bn", rates[-1], step).values()) or [math.nan])
        for step in MOMENTS
    }
    told = ", ".join(f"{MOMENTS[step][0]} {charts.spell(float(value))}" for step, value in ranges.items())
    explorer = widgets.Explorer(
        first_steps_chart(record, start),
        description=(
            f"Squared gradient of each hidden layer of {what}, from the input on: before training, after one "
            "step and after ten; network, depth and learning rate can be chosen. Largest over smallest with "
            f"batch norm, {depths[-1]} layers, rate {rates[-1]:g}, medians: {told}."
        ),
    )
    return widgets.controls(
        explorer,
        net=ipywidgets.Dropdown(
            description="network", options=[(ARMS[name].label, name) for name in FIRST], value="bn"
        ),
        layers=ipywidgets.SelectionSlider(
            description="depth", options=[(str(depth), depth) for depth in depths], value=depths[-1]
        ),
        rate=ipywidgets.SelectionSlider(
            description="learning rate", options=[(f"{rate:g}", rate) for rate in rates], value=rates[-1]
        ),
    )
