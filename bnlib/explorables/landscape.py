"""The figures of chapter 7: loss and gradient on a walk along the gradient, at many steps of training.

Each function takes records and returns a table, a chart or a finished widget. A series of numbers travels
as one string, which the chart splits; what a reader chooses is computed in the page, with or without a
kernel.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from statistics import median

import altair as alt
import ipywidgets
import numpy as np
import pandas as pd

from bnlib import charts, widgets
from bnlib.experiments import landscape
from bnlib.experiments.quantities import BySeed, ratio
from bnlib.records import Record

ARMS = ("standard", "bn")
LABELS = [charts.ARMS[arm].label for arm in ARMS]
KEYS = ["arm", "seed", "step"]
COORDINATES = {"raw": False, "relative": True}


def spelled_in_vega(value: str) -> str:
    """The Vega expression of a number in words: three digits, a true minus sign, no plus in an exponent."""
    small = f"abs({value}) < 1e-3 && {value} != 0"
    number = f"({small} ? format({value}, '.2~e') : format({value}, '.3~g'))"
    return f"replace(replace({number}, '-', '−'), '+', '')"


#: the label of an axis that shows logarithms to the base 10
POWER = (
    "datum.value > -3.1 && datum.value < 4.1 ? format(pow(10, datum.value), '.2~r') : "
    "replace(replace(format(pow(10, datum.value), '.1~e'), '-', '−'), '+', '')"
)


# --- what a record holds ------------------------------------------------------------------------------


def labels_of(record: Record, relative: bool = False) -> list[float]:
    """The step sizes of a walk, the shortest first: in units of the learning rate, or relative lengths."""
    return sorted(float(at) for at in landscape.profiles(record, "loss", relative)["at"].unique())


def rate_of(record: Record) -> float:
    """The learning rate, the same in all runs."""
    (lr,) = {run["settings"]["lr"] for run in record.runs}
    return lr


def steps_of(record: Record) -> list[int]:
    """The steps of training at which the landscape was probed."""
    return sorted(int(step) for step in landscape.ranges(record, "loss")["step"].unique())


def walks(record: Record, relative: bool = False) -> pd.DataFrame:
    """One row per probed step of training and step size `at`: columns arm, seed, step, at; `loss` and
    `change`, ‖g − g′‖, there; `start` and `norm`, loss and ‖g‖ at W_t; and `beta`, change / distance.

    In relative coordinates g is that of the record's `relative_` rows. Beyond the numbers is infinite.
    """
    prefix = "relative_" if relative else ""
    frame = record.frame()
    at_start = (
        frame[frame["metric"].isin([f"{prefix}loss", f"{prefix}gradient_norm"])]
        .pivot_table(index=KEYS, columns="metric", values="value")
        .rename(columns={f"{prefix}loss": "start", f"{prefix}gradient_norm": "norm"})
    )
    index = [*KEYS, "at"]
    ends = pd.concat(
        [
            landscape.profiles(record, metric, relative).set_index(index)["value"].rename(name)
            for metric, name in (("loss", "loss"), ("predictiveness", "change"))
        ],
        axis=1,
    )
    every = pd.DataFrame({"at": labels_of(record, relative)})
    table = at_start.reset_index().merge(every, how="cross").set_index(index)
    table = table.join(ends).fillna({"loss": math.inf, "change": math.inf}).reset_index()
    distance = table["at"] * (1 if relative else rate_of(record) * table["norm"])
    table["beta"] = table["change"] / distance
    return table.sort_values(index, kind="stable", ignore_index=True)


QUANTITIES = {
    "loss": "range of the loss",
    "predictiveness": "predictiveness",
    "effective_beta": "effective beta",
}


def by_step(record: Record, quantity: str, relative: bool = False) -> pd.DataFrame:
    """`landscape.ranges` with a column `value`, what the claims take the median of: high minus low for the
    loss, the upper end of the others; and `start`, the loss at W_t."""
    table = landscape.ranges(record, quantity, relative)
    table["value"] = table["high"] - table["low"] if quantity == "loss" else table["high"]
    frame = record.frame(metric="relative_loss" if relative else "loss")
    start = frame.set_index(KEYS)["value"].rename("start")
    return table.join(start, on=KEYS)


def typical_in(table: pd.DataFrame) -> BySeed:
    """BN divided by standard: the median of `value` over the rows of each arm, by seed."""
    medians = table.groupby(["arm", "seed"])["value"].median()
    one, other = ({int(s): float(v) for s, v in medians[arm].items()} for arm in ("bn", "standard"))
    return ratio(one, other)


THIRDS = ("first third", "middle third", "last third")


def third_of(steps: pd.Series) -> pd.Series:
    """The third of the training in which each probed step lies: 0, 1 or 2."""
    return np.minimum(3 * steps // (steps.max() + 1), 2).astype(int)


def thirds(record: Record, quantity: str, relative: bool = False) -> list[BySeed]:
    """BN divided by standard in each third of the training, by seed."""
    table = by_step(record, quantity, relative)
    third = third_of(table["step"])
    return [typical_in(table[third == number]) for number in range(len(THIRDS))]


def at_equal_loss(
    record: Record, quantity: str, relative: bool = False, within: float = 0.1
) -> dict[int, tuple[float, int]]:
    """BN divided by standard where the two stand at the same loss: seed -> (median ratio, number of pairs).

    Every probed step of the network with BN is paired with the step of the standard network, same seed, whose
    loss at W_t is closest; pairs whose losses differ by more than the fraction `within` are left out, and so
    is a seed without a pair.
    """
    table, found = by_step(record, quantity, relative), {}
    for seed, part in table.groupby("seed"):
        plain, normalised = (part[part["arm"] == arm].reset_index(drop=True) for arm in ARMS)
        if plain.empty or normalised.empty:
            continue
        gaps = np.abs(np.log(normalised["start"].to_numpy()[:, None] / plain["start"].to_numpy()[None, :]))
        nearest = gaps.argmin(axis=1)
        close = gaps.min(axis=1) <= math.log1p(within)
        values = normalised["value"].to_numpy()[close] / plain["value"].to_numpy()[nearest[close]]
        if len(values):
            found[int(seed)] = float(np.median(values)), len(values)
    return found


# --- (a) the profile along the gradient ---------------------------------------------------------------

PROFILES = {"loss": "loss", "‖g − g′‖": "change", "beta": "beta"}


def profile_rows(record: Record) -> list[dict]:
    """One row per coordinates, arm and seed. `loss`, `change` and `beta`: a word per step size, steps of
    training divided by `;`; `start`: the loss at W_t, a word per step. Unknown is `Infinity`."""
    rows, steps = [], steps_of(record)
    for relative in COORDINATES.values():
        table = walks(record, relative)
        for (arm, seed), part in table.groupby(["arm", "seed"]):
            at = dict(iter(part.groupby("step")))
            reached = [step for step in steps if step in at]
            row = {"relative": int(relative), "arm": charts.ARMS[arm].label, "seed": int(seed)}
            for name in PROFILES.values():
                row[name] = ";".join(charts.packed(at[s][name], ".3g", "Infinity") for s in reached)
            row["start"] = charts.packed((at[s]["start"].iloc[0] for s in reached), ".3g", "Infinity")
            rows.append(row)
    return rows


def _marks(record: Record, relative: bool) -> tuple[list[float], list[str]]:
    """Where the start and the step sizes lie on the axis, and their words: to scale, unless they span more
    than a decade and a bit."""
    labels = labels_of(record, relative)
    to_scale = labels[-1] / labels[0] <= 20
    places = [0.0, *labels] if to_scale else [float(n) for n in range(len(labels) + 1)]
    return places, ["0", *(charts.spell(label) for label in labels)]


def _wide(values: pd.Series) -> bool:
    """Whether a quantity spans so much that only a logarithmic axis shows it."""
    finite = values[np.isfinite(values) & (values > 0)]
    return not finite.empty and finite.max() / finite.quantile(0.05) > 30


def profile_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """A quantity along the walk at one step of training: band and thin lines of the seeds, median thick.

    Params: `moment` (a step of training, or the nearest probed one), `relative` (0 or 1), `quantity` (a value
    of `PROFILES`), `standard` and `bn` (arms that are shown; with none, both are), `fixed` (the axis of the
    whole training). Below the axis, in words: start, lowest and highest value of each arm.
    """
    steps, lr = steps_of(record), rate_of(record)
    scales = charts.arm_scales(LABELS, legend=alt.Legend(offset=30))
    marks = [_marks(record, relative) for relative in COORDINATES.values()]
    log_loss = _wide(pd.concat([walks(record, relative)["loss"] for relative in COORDINATES.values()]))
    logs = f"({'true' if log_loss else 'false'} || quantity != 'loss')"
    height = 260
    places = f"({json.dumps([places for places, _ in marks])})[relative]"
    words = f"({json.dumps([words for _, words in marks], ensure_ascii=False)})[relative]"
    across = alt.X(
        "x:Q",
        title=None,
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(
            values=alt.ExprRef(places), labelExpr=f"({words})[indexof({places}, datum.value)]", grid=False
        ),
    )
    axis = alt.Axis(labelExpr=f"{logs} ? ({POWER}) : datum.label", tickCount=5)

    def up(field: str) -> alt.Y:
        return alt.Y(field, title=None, scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart()
    here = base.transform_filter("datum.k == datum.chosen")
    band = here.mark_area(opacity=0.16).encode(
        x=across, y=up("min(y):Q"), y2="max(y):Q", color=scales["color"]
    )
    seeds = here.mark_line(strokeWidth=0.8, opacity=0.6).encode(
        x=across, y=up("y:Q"), detail="seed:N", **scales
    )
    middle = here.mark_line().encode(x=across, y=up("median(y):Q"), **scales)
    # Never seen: it holds the axis open, for the whole training or for this moment.
    frame = (
        base.transform_aggregate(low="min(y)", high="max(y)", first="min(x)", last="max(x)")
        .transform_fold(["low", "high"], as_=["which", "y"])
        .transform_calculate(x="datum.which == 'low' ? datum.first : datum.last")
        .mark_point(opacity=0)
        .encode(x=across, y=up("y:Q"))
    )
    names = (
        "quantity == 'loss' ? 'Loss L' : quantity == 'change' ? "
        "(relative ? '‖g̃ − g̃′‖, relative coordinates' : '‖g − g′‖') : "
        "(relative ? 'β = ‖g̃ − g̃′‖ / e' : 'β = ‖g − g′‖ / ‖αg‖')"
    )
    across_words = (
        f"relative ? 'Relative length e of the step' : 'Step size α, in units of η = {charts.spell(lr)}'"
    )

    def text(rows: alt.Chart, x: float, y: float, **style: object) -> alt.Chart:
        style = {"align": "left", "fontSize": 12, **style}
        return rows.mark_text(**style).encode(x=alt.value(x), y=alt.value(y), text="words:N")

    one = base.transform_aggregate(n="count()")
    heading = text(one.transform_calculate(words=names), 0, -14, fontSize=13)
    below = text(one.transform_calculate(words=across_words), 0, height + 38, fontSize=13)
    spread = here.transform_filter("datum.i > 1")  # without the start
    told = (
        spread.transform_aggregate(low="min(v)", high="max(v)", start="min(start)", groupby=["arm", "seed"])
        .transform_aggregate(
            low="median(low)", middle="median(high)", top="max(high)", start="median(start)", groupby=["arm"]
        )
        .transform_calculate(
            words="datum.arm + ': ' + (quantity == 'loss' ? 'from ' + "
            + spelled_in_vega("datum.start")
            + " + ', on the way ' : '') + "
            + spelled_in_vega("datum.low")
            + " + ' to ' + (isFinite(datum.middle) ? "
            + spelled_in_vega("datum.middle")
            + " : 'no number')"
        )
    )
    moment = here.transform_aggregate(step="min(step)").transform_calculate(
        words="'Step ' + datum.step + ' of training (medians over the seeds):'"
    )
    room = one.transform_calculate(words="' '")
    lines = [
        text(moment, -44, height + 66, fontWeight="bold"),
        *(
            text(told.transform_filter(f"datum.arm == '{label}'"), -44, height + 84 + 18 * n)
            for n, label in enumerate(LABELS)
        ),
        text(room, -44, height + 84 + 18 * len(LABELS)),
    ]
    chart = alt.layer(band, seeds, middle, frame, heading, below, *lines).properties(
        data=alt.Data(values=profile_rows(record)), width="container", height=height
    )
    every = json.dumps(steps)
    return (
        chart.transform_filter(
            f"datum.relative == relative && (datum.arm == '{LABELS[0]}' ? standard || !bn : bn || !standard)"
        )
        .transform_calculate(s="split(datum.start, ' ')", w="split(datum[quantity], ';')")
        .transform_flatten(["s", "w"])
        .transform_window(k="row_number()", groupby=["arm", "seed"])
        .transform_calculate(
            start="toNumber(datum.s)",
            step=f"({every})[datum.k - 1]",
            # The start of the walk: the loss there; no gradient has changed yet, so beta has no value.
            v="split((quantity == 'loss' ? datum.s : quantity == 'change' ? '0' : 'NaN')"
            " + ' ' + datum.w, ' ')",
        )
        .transform_calculate(gap="abs(datum.step - moment)")
        .transform_joinaggregate(nearest="min(gap)")
        .transform_calculate(chosen="datum.gap == datum.nearest ? datum.k : 0")
        .transform_joinaggregate(chosen="max(chosen)")
        # All other moments count for the axis of the whole training only.
        .transform_filter("fixed || datum.k == datum.chosen")
        .transform_flatten(["v"])
        .transform_window(i="row_number()", groupby=["arm", "seed", "k"])
        .transform_calculate(v="toNumber(datum.v)", x=f"({places})[datum.i - 1]")
        .transform_calculate(y=f"{logs} ? (datum.v > 0 ? log(datum.v) / LN10 : NaN) : datum.v")
        .transform_filter("isFinite(datum.y)")
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def profile(record: Record, what: str) -> ipywidgets.VBox:
    """The chart of `profile_chart` under its controls; `what` names the network in the alt text.

    The slider goes through the steps of training, so the probes must be equally spaced.
    """
    steps = steps_of(record)
    gaps = {after - before for before, after in itertools.pairwise(steps)}
    if len(gaps) != 1:
        raise ValueError(f"The probed steps of {record.name} are not equally spaced: choose such steps.")
    start = {
        "moment": steps[len(steps) // 4],
        "relative": 0,
        "quantity": "loss",
        "standard": True,
        "bn": True,
        "fixed": False,
    }
    explorer = widgets.Explorer(
        profile_chart(record, start),
        description=(
            f"A walk along the gradient in {what}, at a step of training that can be chosen: loss, change of "
            "the gradient, or effective beta against the step size, for the standard network and the one "
            f"with batch norm, one thin line per seed. {_told_typical(record)}"
        ),
    )
    return widgets.controls(
        explorer,
        moment=ipywidgets.IntSlider(
            description="step of training",
            value=start["moment"],
            min=steps[0],
            max=steps[-1],
            step=gaps.pop(),
        ),
        relative=ipywidgets.Dropdown(
            description="coordinates", options=[("raw", 0), ("relative", 1)], value=0
        ),
        quantity=ipywidgets.Dropdown(description="quantity", options=list(PROFILES.items()), value="loss"),
        standard=ipywidgets.Checkbox(description=LABELS[0], value=True),
        bn=ipywidgets.Checkbox(description=LABELS[1], value=True),
        fixed=ipywidgets.Checkbox(description="axis of all steps", value=False),
    )


def _told_typical(record: Record) -> str:
    told = []
    for relative in COORDINATES.values():
        for quantity, words in QUANTITIES.items():
            middle = median(landscape.bn_over_standard(quantity, relative)(record).values())
            told.append(f"{words}{', relative' if relative else ''}, {charts.spell(middle)}")
    return f"Medians over training and seeds, batch norm divided by standard: {'; '.join(told)}."


# --- (b) the three quantities over training -----------------------------------------------------------

SHOWN = {
    "range of the loss": "loss",
    "predictiveness ‖g − g′‖": "predictiveness",
    "effective beta": "effective_beta",
    "‖g‖ at the start of the walk": "norm",
}


def _series(record: Record, relative: bool) -> pd.DataFrame:
    """Rows (quantity, arm, seed, step, low, high): `landscape.ranges`, and the gradient's norm at W_t."""
    parts = [landscape.ranges(record, name, relative).assign(quantity=name) for name in QUANTITIES]
    frame = record.frame(metric="relative_gradient_norm" if relative else "gradient_norm")
    norm = frame[KEYS].assign(low=frame["value"], high=frame["value"], quantity="norm")
    return pd.concat([*parts, norm], ignore_index=True).sort_values(KEYS, kind="stable")


def training_rows(records: Mapping[str, Record]) -> list[dict]:
    """One row per network, coordinates, arm and seed; for each quantity two series, `<name>_low` and
    `<name>_high`, a word per probed step."""
    rows = []
    for network, record in enumerate(records.values()):
        steps = steps_of(record)
        for relative in COORDINATES.values():
            table = _series(record, relative)
            for (arm, seed), part in table.groupby(["arm", "seed"]):
                row = {
                    "network": network,
                    "relative": int(relative),
                    "arm": charts.ARMS[arm].label,
                    "seed": int(seed),
                    "last": steps[-1],
                    "every": steps[1] - steps[0],
                }
                for name, own in part.groupby("quantity"):
                    for end in ("low", "high"):
                        row[f"{name}_{end}"] = charts.packed(own[end], ".3g", "Infinity")
                rows.append(row)
    return rows


def training_chart(records: Mapping[str, Record], start: Mapping[str, object]) -> alt.LayerChart:
    """A quantity over the steps of training. Bands from low to high, medians over the seeds; thin lines: the
    upper end of each seed. All axes are logarithmic.

    Params: `quantity` (a value of `SHOWN`), `network` (its number), `relative` (0 or 1). Below the axis, in
    words: the claims' median of each arm, and the ratio, for the whole training and its thirds.
    """
    scales = charts.arm_scales(LABELS, legend=alt.Legend(offset=30))
    height = 270
    across = alt.X(
        "x:Q",
        title="Step of training",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(tickCount=8, format="d"),
    )
    axis = alt.Axis(labelExpr=POWER, tickCount=6)

    def up(field: str) -> alt.Y:
        return alt.Y(field, title=None, scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart()
    medians = base.transform_aggregate(low="median(bottom)", high="median(top)", groupby=["arm", "x"])
    # An area of no height, for beta, shall not hide the lines.
    band = medians.mark_area(opacity=0.22).encode(x=across, y=up("low:Q"), y2="high:Q", color=scales["color"])
    seeds = base.transform_filter("isFinite(datum.top)")
    seeds = seeds.mark_line(strokeWidth=0.8, opacity=0.55).encode(
        x=across, y=up("top:Q"), detail="seed:N", **scales
    )
    middle = (
        medians.transform_filter("isFinite(datum.high)")
        .mark_line()
        .encode(x=across, y=up("high:Q"), **scales)
    )
    names = (
        "quantity == 'loss' ? 'Loss along the walk' : quantity == 'predictiveness' ? "
        "(relative ? '‖g̃ − g̃′‖, relative coordinates' : '‖g − g′‖') : quantity == 'norm' ? "
        "(relative ? '‖g̃‖ where the walk starts' : '‖g‖ where the walk starts') : "
        "(relative ? 'Effective β, relative coordinates' : 'Effective β')"
    )

    def text(rows: alt.Chart, x: float, y: float, **style: object) -> alt.Chart:
        style = {"align": "left", "fontSize": 12, **style}
        return rows.mark_text(**style).encode(x=alt.value(x), y=alt.value(y), text="words:N")

    one = base.transform_aggregate(n="count()")
    heading = text(one.transform_calculate(words=names), 0, -14, fontSize=13)
    title = text(
        one.transform_calculate(
            words="(quantity == 'loss' ? 'High minus low' : quantity == 'norm' ? 'Norm' : 'Upper end')"
            " + ': median (range over the seeds)'"
        ),
        -44,
        height + 60,
    )
    each = base.transform_aggregate(v="median(v)", groupby=["arm", "seed"])

    def numbers(rows: alt.Chart) -> alt.Chart:
        return rows.transform_calculate(
            told=spelled_in_vega("datum.middle")
            + " + ' (' + "
            + spelled_in_vega("datum.low")
            + " + ' to ' + "
            + spelled_in_vega("datum.high")
            + " + ')'"
        )

    summary = numbers(
        each.transform_aggregate(middle="median(v)", low="min(v)", high="max(v)", groupby=["arm"])
    ).transform_calculate(words="datum.arm + ': ' + datum.told")

    def over(rows: alt.Chart, *groups: str) -> alt.Chart:
        """BN / standard, seed by seed."""
        return (
            rows.transform_aggregate(v="median(v)", groupby=["arm", "seed", *groups])
            .transform_pivot("arm", value="v", groupby=["seed", *groups])
            .transform_calculate(r=f"datum['{LABELS[1]}'] / datum['{LABELS[0]}']")
        )

    whole = numbers(
        over(base).transform_aggregate(middle="median(r)", low="min(r)", high="max(r)")
    ).transform_calculate(words=f"'{LABELS[1]} / {LABELS[0].lower()}: ' + datum.told")
    parts = (
        over(base, "third")
        .transform_aggregate(middle="median(r)", groupby=["third"])
        .transform_pivot("third", value="middle")
        .transform_calculate(
            words="'Its median by thirds of training: ' + "
            + " + ', ' + ".join(spelled_in_vega(f"datum['{n}']") for n in range(3))
        )
    )
    lines = [
        *(
            text(summary.transform_filter(f"datum.arm == '{label}'"), -44, height + 78 + 18 * n)
            for n, label in enumerate(LABELS)
        ),
        text(whole, -44, height + 114, fontWeight="bold"),
        text(parts, -44, height + 132),
        text(one.transform_calculate(words="' '"), -44, height + 150),
    ]
    chart = alt.layer(band, seeds, middle, heading, title, *lines).properties(
        data=alt.Data(values=training_rows(records)), width="container", height=height
    )
    return (
        chart.transform_filter("datum.network == network && datum.relative == relative")
        .transform_calculate(
            a="split(datum[quantity + '_low'], ' ')", b="split(datum[quantity + '_high'], ' ')"
        )
        .transform_flatten(["a", "b"])
        .transform_window(i="row_number()", groupby=["arm", "seed"])
        .transform_calculate(
            x="min((datum.i - 1) * datum.every, datum.last)",
            a="toNumber(datum.a)",
            b="toNumber(datum.b)",
        )
        .transform_calculate(
            v="quantity == 'loss' ? datum.b - datum.a : datum.b",
            bottom="log(max(datum.a, 1e-30)) / LN10",
            top="log(max(datum.b, 1e-30)) / LN10",
            third="min(floor(3 * datum.x / (datum.last + 1)), 2)",
        )
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def over_training(records: Mapping[str, Record]) -> ipywidgets.VBox:
    """The chart of `training_chart` under its controls; `records`: words of a network -> its record."""
    start = {"quantity": "predictiveness", "network": 0, "relative": 0}
    told = " ".join(f"{words}: {_told_typical(record)}" for words, record in records.items())
    explorer = widgets.Explorer(
        training_chart(records, start),
        description=(
            "What a walk along the gradient meets, over the steps of training: bands from the lowest to the "
            "highest value of the walk for the standard network and the one with batch norm, one thin line "
            f"per seed; quantity, network and coordinates can be chosen. {told}"
        ),
    )
    return widgets.controls(
        explorer,
        quantity=ipywidgets.Dropdown(
            description="quantity", options=list(SHOWN.items()), value=start["quantity"]
        ),
        network=ipywidgets.Dropdown(
            description="network", options=[(words, n) for n, words in enumerate(records)], value=0
        ),
        relative=ipywidgets.Dropdown(
            description="coordinates", options=[("raw", 0), ("relative", 1)], value=0
        ),
    )


# --- (c) raw and relative side by side ----------------------------------------------------------------


def _panels() -> list[tuple[str, bool, str]]:
    """(quantity, relative, words) of the six panels, raw to the left."""
    return [
        (quantity, relative, f"{words[0].upper()}{words[1:]}, {coordinates}")
        for quantity, words in QUANTITIES.items()
        for coordinates, relative in COORDINATES.items()
    ]


def side_by_side(record: Record, what: str) -> alt.FacetChart:
    """The three quantities over training, raw (left) and relative (right), logarithmic axes, one per panel:
    bands from low to high, medians over the seeds; thin lines: the upper end of each seed."""
    steps, rows, told = steps_of(record), [], []
    for quantity, relative, words in _panels():
        table = landscape.ranges(record, quantity, relative)
        for (arm, seed), part in table.groupby(["arm", "seed"]):
            part = part.sort_values("step")
            rows.append(
                {
                    "panel": words,
                    "arm": charts.ARMS[arm].label,
                    "seed": int(seed),
                    "low": charts.packed(part["low"], ".3g"),
                    "high": charts.packed(part["high"], ".3g"),
                }
            )
        middle = median(landscape.bn_over_standard(quantity, relative)(record).values())
        told.append(f"{words}: {charts.spell(middle)}")
    scales = charts.arm_scales(LABELS, legend=alt.Legend())
    across = alt.X("x:Q", title="Step of training", scale=alt.Scale(nice=False, zero=False))

    def up(field: str) -> alt.Y:
        axis = alt.Axis(title=None, labelExpr=POWER, tickCount=4)
        return alt.Y(field, scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart()
    band = base.mark_area(opacity=0.22).encode(
        x=across, y=up("median(bottom):Q"), y2="median(top):Q", color=scales["color"]
    )
    seeds = base.mark_line(strokeWidth=0.8, opacity=0.5).encode(
        x=across, y=up("top:Q"), color=scales["color"], detail="seed:N"
    )
    middle = base.mark_line().encode(x=across, y=up("median(top):Q"), **scales)
    chart = _facet(
        alt.layer(band, seeds, middle).properties(data=alt.Data(values=rows)),
        [words for *_, words in _panels()],
        150,
        f"The three quantities along the gradient over the training of {what}, raw and in relative "
        "coordinates, standard and batch norm, one thin line per seed. Median over steps and seeds, batch "
        f"norm divided by standard: {'; '.join(told)}.",
    )
    return (
        chart.transform_calculate(a="split(datum.low, ' ')", b="split(datum.high, ' ')")
        .transform_flatten(["a", "b"])
        .transform_window(i="row_number()", groupby=["panel", "arm", "seed"])
        .transform_calculate(
            x=f"({json.dumps(steps)})[datum.i - 1]",
            bottom="log(max(toNumber(datum.a), 1e-30)) / LN10",
            top="log(toNumber(datum.b)) / LN10",
        )
        .transform_filter("isFinite(datum.top)")
    )


def _facet(layers: alt.LayerChart, panels: list[str], height: int, description: str) -> alt.FacetChart:
    """Panels of a column `panel`, two beside each other where there is room, each with its own y axis."""
    panel = 254
    chart = (
        layers.properties(width=panel, height=height)
        .facet(alt.Facet("panel:N", sort=panels, title=None), columns=2)
        .resolve_scale(y="independent")
        .resolve_axis(x="independent", y="independent")
        .properties(description=description)
    )
    return charts.responsive(chart, panel, len(panels))


# --- (d) beta, step size by step size -----------------------------------------------------------------


def betas(record: Record, relative: bool = False) -> pd.DataFrame:
    """beta = ‖g − g′‖ / distance of each step size, median over the probed steps of the first and of the last
    third of the training: rows (third, arm, seed, at, value)."""
    table = walks(record, relative)
    table["third"] = third_of(table["step"])
    table = table[table["third"] != 1]
    keys = ["third", "arm", "seed", "at"]
    return table.groupby(keys)["beta"].median().rename("value").reset_index()


def beta_chart(records: Mapping[str, Record]) -> alt.FacetChart:
    """`betas` of every network against the step size, logarithmic axes: a panel for the first and one for the
    last third of training. Dotted: 1/α, where the gradient vanishes at the end; dashed: 2/η."""
    tables, panels, told = [], [], []
    for network, record in records.items():
        table, lr = betas(record), rate_of(record)
        table["panel"] = [f"β, {network}, {THIRDS[third]}" for third in table["third"]]
        table["flat"] = 1 / (table["at"] * lr)
        table["edge"] = 2 / lr
        tables.append(table)
        panels += [f"β, {network}, {THIRDS[third]}" for third in (0, 2)]
    table = pd.concat(tables, ignore_index=True)
    for panel in panels:
        part = table[table["panel"] == panel]
        ends = part[part["at"].isin([part["at"].min(), part["at"].max()])]
        middle = ends.groupby(["arm", "at"])["value"].median().unstack()
        told += [
            f"{panel}, {charts.ARMS[arm].label}: {charts.spell(row.iloc[0])} at the shortest and "
            f"{charts.spell(row.iloc[-1])} at the longest step"
            for arm, row in middle.iterrows()
        ]
    shown = charts.rounded(
        pd.DataFrame(
            {
                "panel": table["panel"],
                "arm": [charts.ARMS[arm].label for arm in table["arm"]],
                "seed": table["seed"],
                "x": table["at"],
                "y": np.log10(table["value"]),
                "flat": np.log10(table["flat"]),
                "edge": np.log10(table["edge"]),
            }
        ),
        4,
    )
    scales = charts.arm_scales(LABELS, legend=alt.Legend())
    across = alt.X(
        "x:Q",
        title="Step size α, in units of the learning rate",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(
            format="~g",
            grid=False,
            values=[0.01, 0.1, 0.5, 1, 2, 4, 10, 30],
        ),
    )

    def up(field: str) -> alt.Y:
        axis = alt.Axis(labelExpr=POWER, tickCount=4)
        return alt.Y(field, title=None, scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart(shown).transform_filter("isValid(datum.y)")
    seeds = base.mark_line(strokeWidth=0.8, opacity=0.55).encode(
        x=across, y=up("y:Q"), color=scales["color"], detail="seed:N"
    )
    middle = base.mark_line().encode(x=across, y=up("median(y):Q"), **scales)
    flat = base.mark_line(color=charts.INK, strokeWidth=1.2, strokeDash=[1, 4], opacity=0.9).encode(
        x=across, y=up("mean(flat):Q")
    )
    edge = base.mark_line(color=charts.INK, strokeWidth=1.2, strokeDash=[8, 4], opacity=0.7).encode(
        x=across, y=up("mean(edge):Q")
    )
    chart = _facet(
        alt.layer(flat, edge, seeds, middle),
        panels,
        170,
        "Effective beta of each single step size, logarithmic axes, median over the probed steps of the "
        "first and of the last third of training, standard and batch norm, one thin line per seed; dotted 1 "
        f"over the step size, dashed 2 over the learning rate. Median over the seeds: {'; '.join(told)}.",
    )
    return chart.resolve_scale(x="independent", y="independent")


def beta_ratios(record: Record, relative: bool = False) -> pd.DataFrame:
    """beta of each single step size, BN divided by standard, medians over the probed steps of training: one
    row per seed, one column per step size."""
    middle = walks(record, relative).groupby(["arm", "seed", "at"])["beta"].median()
    return (middle["bn"] / middle["standard"]).unstack("at")


LOWEST = 0.01  # smaller ratios are drawn here


def beta_ratio_chart(records: Mapping[str, Record]) -> alt.FacetChart:
    """`beta_ratios` against the step size, a panel per network and coordinates, logarithmic axes: the seeds
    thin, their median thick, a rule at 1. Ratios below `LOWEST` are drawn there."""
    parts, panels, told = [], [], []
    for network, record in records.items():
        for coordinates, relative in COORDINATES.items():
            panels.append(f"β, BN / standard: {network}, {coordinates}")
            table = beta_ratios(record, relative)
            middle = table.median()
            told.append(
                f"{panels[-1]}: {charts.spell(middle.iloc[0])} at {charts.spell(middle.index[0])}, "
                f"{charts.spell(middle.iloc[-1])} at {charts.spell(middle.index[-1])}"
            )
            long = table.clip(lower=LOWEST).stack().rename("y").reset_index().rename(columns={"at": "x"})
            parts.append(long.assign(panel=panels[-1]))
    shown = pd.concat(parts, ignore_index=True)
    shown["y"] = np.log10(shown["y"])
    across = alt.X(
        "x:Q",
        title="Step size: α/η (raw), e (relative)",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(format="~g", grid=False, values=[0.001, 0.01, 0.1, 0.5, 1, 2, 4, 10, 30]),
    )

    def up(field: str) -> alt.Y:
        axis = alt.Axis(title=None, labelExpr=POWER, tickCount=5)
        return alt.Y(field, scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart()
    seeds = base.mark_line(
        color=charts.INK, strokeWidth=0.8, opacity=0.55, point={"size": 14, "color": charts.INK}
    ).encode(x=across, y=up("y:Q"), detail="seed:N")
    middle = base.mark_line(color=charts.INK, strokeWidth=2.5).encode(x=across, y=up("median(y):Q"))
    one = base.transform_calculate(one="0").mark_line(
        color=charts.INK, strokeWidth=1.2, strokeDash=[5, 4], opacity=0.7
    )
    chart = _facet(
        alt.layer(one.encode(x=across, y=up("mean(one):Q")), seeds, middle, data=charts.rounded(shown, 4)),
        panels,
        150,
        "Beta of each single step size, batch norm divided by standard, median over the probed steps of "
        "training, one thin line per seed, the median thick, a dashed rule at 1, logarithmic axes. Median "
        f"over the seeds: {'; '.join(told)}.",
    )
    return chart.resolve_scale(x="independent", y="independent")


# --- (e) at equal loss --------------------------------------------------------------------------------


def loss_scatter(record: Record, what: str) -> alt.FacetChart:
    """Each quantity against the loss where the walk starts: one dot per probed step and seed, raw to the left
    and relative to the right, logarithmic axes."""
    rows, told = [], []
    for quantity, relative, words in _panels():
        table = by_step(record, quantity, relative)
        table = table[np.isfinite(table["value"]) & (table["value"] > 0) & (table["start"] > 0)]
        for arm, part in table.groupby("arm"):
            rows.append(
                {
                    "panel": words,
                    "arm": charts.ARMS[arm].label,
                    "a": charts.packed(np.log10(part["start"]), ".3f"),
                    "b": charts.packed(np.log10(part["value"]), ".3f"),
                }
            )
        pairs = at_equal_loss(record, quantity, relative)
        if pairs:
            told.append(f"{words}: {charts.spell(median(value for value, _ in pairs.values()))}")
    scales = charts.arm_scales(LABELS, legend=alt.Legend(symbolType="circle", symbolSize=80))
    across = alt.X(
        "x:Q",
        title="Loss where the walk starts",
        scale=alt.Scale(zero=False, nice=False, padding=8),
        axis=alt.Axis(labelExpr=POWER, tickCount=5, grid=False),
    )
    up = alt.Y(
        "y:Q",
        scale=alt.Scale(zero=False, padding=8),
        axis=alt.Axis(title=None, labelExpr=POWER, tickCount=4),
    )
    dots = alt.Chart().mark_point(size=16, opacity=0.55).encode(x=across, y=up, color=scales["color"])
    chart = _facet(
        alt.layer(dots).properties(data=alt.Data(values=rows)),
        [words for *_, words in _panels()],
        150,
        f"Each quantity against the loss where the walk starts, {what}, one dot per probed step and seed, "
        "standard and batch norm. Batch norm divided by standard where the losses are equal, median over the "
        f"seeds: {'; '.join(told) or 'the losses never are'}.",
    )
    return (
        chart.transform_calculate(a="split(datum.a, ' ')", b="split(datum.b, ' ')")
        .transform_flatten(["a", "b"])
        .transform_calculate(x="toNumber(datum.a)", y="toNumber(datum.b)")
    )


# --- (f) the activations ------------------------------------------------------------------------------


def activation_table(record: Record) -> pd.DataFrame:
    """Effective beta in the space of activations: rows (arm, seed, step, layer, value)."""
    return record.frame(metric="activation_effective_beta")[[*KEYS, "layer", "value"]]


def activation_chart(record: Record) -> alt.FacetChart:
    """`activation_table` over the steps of training, a panel per layer, the same axes."""
    table = activation_table(record)
    order = sorted(table["layer"].unique(), key=lambda name: int("".join(filter(str.isdigit, name)) or 0))
    return charts.small_multiples(
        table,
        "layer",
        y_title="Effective β",
        x_title="Step of training",
        facet_labels={name: name.replace("conv", "Convolution ") for name in order},
        log_y=True,
        y_domain=[0.9 * table["value"].min(), 1.1 * table["value"].max()],
        height=150,
    )


def activation_ratios(record: Record) -> dict[str, BySeed]:
    """Layer -> BN divided by standard, medians over the probed steps, by seed."""
    return {layer: typical_in(part) for layer, part in activation_table(record).groupby("layer")}


# --- (g) the wrong versions ---------------------------------------------------------------------------

VERSIONS = {
    "": "as defined",
    "summed_gradients": "norm of the sum",
    "different_minibatches": "another batch for g′",
    "frozen_moments": "frozen moments",
    "logits_for_loss": "logits, not the loss",
    "normalised_steps": "normalised steps",
}


def versions(record: Record, metric: str = "predictiveness") -> pd.DataFrame:
    """What each version of the measurement gives on the same run: rows (version, arm, seed, step, value).

    metric: `predictiveness`, the largest change of the gradient, or `effective_beta`. The right version, "",
    is taken at the step sizes and at the steps of training of the others. Beyond the numbers is infinite.
    """
    frame = record.frame()
    column = {"predictiveness": "predictiveness_high", "effective_beta": "effective_beta"}[metric]
    frame = frame.assign(
        version=frame["metric"].str.extract(r"\[(\w+)\]", expand=False),
        metric=frame["metric"].str.replace(r"\[\w+\]", "", regex=True),
    ).dropna(subset="version")
    index = ["version", *KEYS]
    wrong = frame[frame["metric"] == "finite"].set_index(index)[["value"]].rename(columns={"value": "finite"})
    wrong = wrong.join(frame[frame["metric"] == column].set_index(index)["value"])
    wrong.loc[wrong["finite"] < 1, "value"] = math.inf
    wrong = wrong.reset_index().drop(columns="finite")
    wrong = wrong.sort_values("version", key=lambda v: v.map(list(VERSIONS).index), kind="stable")
    right = walks(record)
    right = right[right["at"].isin(landscape.MISTAKE_FACTORS) & right["step"].isin(wrong["step"].unique())]
    name = "change" if metric == "predictiveness" else "beta"
    right = right.groupby(KEYS)[name].max().rename("value").reset_index().assign(version="")
    return pd.concat([right, wrong], ignore_index=True)[["version", *KEYS, "value"]]


def version_ratios(record: Record, metric: str = "predictiveness") -> dict[str, BySeed]:
    """Version -> BN divided by standard, medians over the probed steps, by seed; the right one first."""
    table = versions(record, metric)
    return {name: typical_in(table[table["version"] == name]) for name in VERSIONS}


def says(values: Iterable[float]) -> str:
    """What ratios, BN divided by standard, say together: "smaller", "larger" with BN, or "mixed"."""
    below = [value < 1 for value in values]
    return "smaller" if all(below) else "mixed" if any(below) else "larger"


def version_chart(record: Record) -> alt.FacetChart:
    """`versions` of the predictiveness over training, a panel per version, logarithmic axes of their own."""
    table = versions(record)
    table = table[np.isfinite(table["value"]) & (table["value"] > 0)]
    told = [
        f"{VERSIONS[name]}: {charts.spell(median(values.values()))}"
        for name, values in version_ratios(record).items()
    ]
    shown = charts.rounded(
        pd.DataFrame(
            {
                "panel": [VERSIONS[name] for name in table["version"]],
                "arm": [charts.ARMS[arm].label for arm in table["arm"]],
                "seed": table["seed"],
                "x": table["step"],
                "y": np.log10(table["value"]),
            }
        ),
        4,
    )
    scales = charts.arm_scales(LABELS, legend=alt.Legend())
    across = alt.X("x:Q", title="Step of training", scale=alt.Scale(nice=False, zero=False))

    def up(field: str) -> alt.Y:
        axis = alt.Axis(title=None, labelExpr=POWER, tickCount=4)
        return alt.Y(field, scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart()
    seeds = base.mark_line(strokeWidth=0.8, opacity=0.55).encode(
        x=across, y=up("y:Q"), color=scales["color"], detail="seed:N"
    )
    middle = base.mark_line().encode(x=across, y=up("median(y):Q"), **scales)
    return _facet(
        alt.layer(seeds, middle, data=shown),
        list(VERSIONS.values()),
        130,
        "Largest change of the gradient over training as the definition has it, and as measured in five "
        "wrong ways on the same runs, standard and batch norm, one thin line per seed. Batch norm divided by "
        f"standard, medians: {'; '.join(told)}.",
    )
