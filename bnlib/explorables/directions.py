"""The figures of chapter 11: paths in a plane, recorded gaps and rates, critical points around a line.

Each function takes records, or rows that a chapter has computed, and returns a table, a chart or a finished
widget. A series of numbers travels as one string (see `charts.packed`), and what a reader chooses is computed
in the page, with or without a kernel. No torch here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import median

import altair as alt
import ipywidgets
import pandas as pd

from bnlib import charts, widgets
from bnlib.charts import Arm
from bnlib.experiments import directions
from bnlib.explorables.landscape import spelled_in_vega
from bnlib.records import Record

ORANGE, BLUE, GREEN = (charts.ARMS[arm].colour for arm in ("standard", "bn", "gdnp"))
#: the ways through the plane: plain, fixed learning rates, and the step of the theory with the best length
WAYS = {
    "standard": Arm("Plain, step 1/L", *charts.ARMS["standard"][1:]),
    "bn": Arm("BN, fixed rate", *charts.ARMS["bn"][1:]),
    "gdnp": Arm("BN, step of the theory", *charts.ARMS["gdnp"][1:]),
}
#: below this, relative to the problem's size, a gap is rounding
ROUNDING = 1e-16
#: in degrees: where the flat axis of the plane's problem points, and where the optimum lies
FLAT, OPTIMUM = 20.0, 35.0


def _words(base: alt.Chart, lines: Sequence[str], top: int, left: int = 0) -> list[alt.Chart]:
    """Vega expressions as lines of text from `top` downwards, the first one bold, and room below."""
    return [
        base.transform_calculate(told=words)
        .mark_text(align="left", fontSize=12, fontWeight="normal" if number else "bold")
        .encode(text="told:N", x=alt.value(left), y=alt.value(top + 18 * number))
        for number, words in enumerate([*lines, "' '"])
    ]


def thinned(steps: pd.Series) -> pd.Series:
    """Which steps a figure keeps: 0 to 8, then those that are about 12 % apart, and the last one."""
    last, kept, at = int(steps.max()), set(range(9)), 8.0
    while at < last:
        at *= 1.12
        kept.add(round(at))
    present = sorted(steps.unique())
    nearest = {min(present, key=lambda step: abs(step - k)) for k in kept if k <= last}
    return steps.isin(nearest | {last})


# --- (a) three ways through a plane ---------------------------------------------------------------------


def plane_problem(condition: float) -> tuple[list[list[float]], list[float]]:
    r"""S (2, 2) with eigenvalues 1 and `condition`, and u = -S w* (2,), for a w* of length 1.

    The flat axis points to `FLAT` degrees, the optimum w* lies at `OPTIMUM` degrees.
    """
    turn, at = math.radians(FLAT), math.radians(OPTIMUM)
    c, s = math.cos(turn), math.sin(turn)
    matrix = [
        [c * c + condition * s * s, (1 - condition) * c * s],
        [(1 - condition) * c * s, s * s + condition * c * c],
    ]
    best = math.cos(at), math.sin(at)
    return matrix, [-(row[0] * best[0] + row[1] * best[1]) for row in matrix]


def plane_rows(paths: Sequence[Mapping]) -> list[dict]:
    """`paths` for `plane`: keys condition, angle, arm (of `WAYS`), rate (0 unless arm is "bn"), and the
    series x, y and gap, one value per step."""
    return [
        {
            **{key: path[key] for key in ("condition", "angle", "rate")},
            "arm": WAYS[path["arm"]].label,
            **{key: charts.packed(path[key], ".3g") for key in ("x", "y", "gap")},
        }
        for path in paths
    ]


def plane_chart(rows: Sequence[Mapping], start: Mapping[str, float]) -> alt.LayerChart:
    r"""Contours of f and three paths from the same weights, for the problem of `plane_problem`.

    Params: `condition`, `angle` of the first direction in degrees, `rate` (BN with fixed rates), `steps`.
    Solid grey: contours. Dotted: where the best length puts the weights of every direction, an ellipse
    through 0 and w*. Below, in words: each path's gap, $(f-f^*)/|\rho^*|$, and what its last step did.
    """
    height = 280
    low, high, middle = -1.2, 2.2, 0.2
    ends = [{"expr": f"{middle} {sign} {height / 2} * {high - low} / width"} for sign in "-+"]
    hidden = {"axis": None, "title": None}
    x = alt.X("x:Q", scale=alt.Scale(domain=[low, high], nice=False), **hidden)
    y = alt.Y("y:Q", scale=alt.Scale(domain=ends, nice=False), **hidden)
    c, s = math.cos(math.radians(FLAT)), math.sin(math.radians(FLAT))
    ox, oy = math.cos(math.radians(OPTIMUM)), math.sin(math.radians(OPTIMUM))
    turned = math.radians(OPTIMUM - FLAT)
    size = f"sqrt({math.cos(turned) ** 2:.6f} + condition * {math.sin(turned) ** 2:.6f})"

    def ellipse(cx: float, cy: float, radius: str) -> dict[str, str]:
        a, b = f"{radius} * cos(datum.t)", f"{radius} * sin(datum.t) / sqrt(condition)"
        return {
            "x": f"{cx:.6f} + {c:.6f} * {a} - {s:.6f} * {b}",
            "y": f"{cy:.6f} + {s:.6f} * {a} + {c:.6f} * {b}",
        }

    turn = alt.sequence(0, 2 * math.pi + 0.04, 0.04, as_="t")
    contours = (
        alt.Chart(turn)
        .transform_calculate(levels="[0.3, 0.7, 1.2, 1.8, 2.5]")
        .transform_flatten(["levels"], as_=["level"])
        .transform_calculate(**ellipse(ox, oy, "datum.level"))
        .mark_line(strokeWidth=1, opacity=0.3, color=charts.INK, clip=True)
        .encode(x=x, y=y, detail="level:Q", order="t:Q")
    )
    lengths = (
        alt.Chart(turn)
        .transform_calculate(**ellipse(ox / 2, oy / 2, f"{size} / 2"))
        .mark_line(strokeWidth=1.2, opacity=0.7, color=charts.INK, strokeDash=[1, 3], clip=True)
        .encode(x=x, y=y, order="t:Q")
    )
    places = alt.Data(values=[{"x": 0, "y": 0, "name": "0"}, {"x": ox, "y": oy, "name": "w*"}])
    marked = alt.Chart(places).encode(x=x, y=y)
    points = [
        marked.mark_point(size=45, color=charts.INK, opacity=0.9, shape="cross"),
        marked.mark_text(fontSize=13, dx=10, dy=-10).encode(text="name:N"),
    ]
    chosen = "datum.condition == condition && datum.angle == angle"
    mine = alt.Chart().transform_filter(f"{chosen} && (datum.rate == 0 || datum.rate == rate)")
    labels = [arm.label for arm in WAYS.values()]
    legend = alt.Legend(columns=1)
    scales = charts.arm_scales(labels, WAYS, legend)
    walked = (
        mine.transform_calculate(x="split(datum.x, ' ')", y="split(datum.y, ' ')")
        .transform_flatten(["x", "y"])
        .transform_window(row="row_number()", groupby=["arm"])
        .transform_calculate(x="toNumber(datum.x)", y="toNumber(datum.y)", i="datum.row - 1")
        .transform_filter("datum.i <= steps")
    )
    lines = walked.mark_line(clip=True, strokeWidth=2).encode(x=x, y=y, order="i:Q", **scales)
    dots = walked.mark_point(clip=True, size=22, opacity=0.9).encode(x=x, y=y, color=scales["color"])
    first = (
        walked.transform_filter("datum.i == 0")
        .mark_point(size=90, filled=False, stroke=charts.INK, strokeWidth=1.5)
        .encode(x=x, y=y)
    )
    told = (
        mine.transform_calculate(
            here="toNumber(split(datum.gap, ' ')[steps])",
            before="toNumber(split(datum.gap, ' ')[max(0, steps - 1)])",
        )
        .transform_calculate(
            number=spelled_in_vega("datum.here"), factor=spelled_in_vega("datum.here / datum.before")
        )
        .transform_calculate(
            told="datum.arm + (datum.rate ? ' ' + datum.rate : '') + ': gap ' + datum.number"
            f" + (steps > 0 && datum.before > {ROUNDING} ? ', last step × ' + datum.factor : '')",
            place=f"{height + 38} + 18 * indexof({labels}, datum.arm)",
        )
        .mark_text(align="left", fontSize=12)
        .encode(text="told:N", x=alt.value(0), y=alt.Y("place:Q", scale=None, axis=None))
    )
    bound = "pow(1 - 1 / condition, 2)"
    head = _words(
        alt.Chart(alt.Data(values=[{}])),
        [f"'Condition ' + condition + ', step ' + steps + '; (1 − μ/L)² = ' + {spelled_in_vega(bound)}"],
        height + 20,
    )
    room = (
        alt.Chart(alt.Data(values=[{"told": " "}]))
        .mark_text()
        .encode(text="told:N", x=alt.value(0), y=alt.value(height + 38 + 18 * len(labels)))
    )
    return (
        alt.layer(contours, lengths, lines, dots, first, *points, told, *head[:1], room)
        .properties(data=alt.Data(values=list(rows)), width="container", height=height)
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def plane(paths: Sequence[Mapping], start: Mapping[str, float]) -> ipywidgets.VBox:
    """The chart of `plane_chart` under its controls; `start` has the first condition, angle, rate, steps."""
    frame = pd.DataFrame(paths)
    steps = len(frame["gap"].iloc[0]) - 1

    def choices(name: str, spell: str = "{:g}") -> list[tuple[str, float]]:
        found = sorted(value for value in frame[name].unique().tolist() if name != "rate" or value)
        return [(spell.format(value), value) for value in found]

    here = frame[(frame["condition"] == start["condition"]) & (frame["angle"] == start["angle"])]
    here = here[here["rate"].isin([0, start["rate"]])]
    ends = ", ".join(
        f"{WAYS[row.arm].label} {charts.spell(row.gap[start['steps']])}" for row in here.itertuples()
    )
    explorer = widgets.Explorer(
        plane_chart(plane_rows(paths), start),
        description=(
            "Contours of a least-squares loss in a plane, long ellipses around the optimum w*, and the paths "
            "of three methods that start at the same weights. The condition number, the first direction, "
            "the learning rate of batch norm and the number of steps can be chosen. Gap after "
            f"{start['steps']} steps at condition {start['condition']:g}: {ends}."
        ),
    )
    return widgets.controls(
        explorer,
        condition=ipywidgets.SelectionSlider(
            description="condition", options=choices("condition"), value=start["condition"]
        ),
        angle=ipywidgets.SelectionSlider(
            description="first direction", options=choices("angle", "{:g}°"), value=start["angle"]
        ),
        rate=ipywidgets.SelectionSlider(
            description="rate of BN", options=choices("rate"), value=start["rate"]
        ),
        steps=ipywidgets.IntSlider(description="steps", value=start["steps"], min=0, max=steps),
    )


# --- (b) recorded gaps by condition number --------------------------------------------------------------


def gaps(record: Record, **chosen: object) -> pd.DataFrame:
    """Gaps above rounding by step: rows (arm, condition, seed, step, value)."""
    frame = directions.values(record, "gap", "condition", problem="least_squares", **chosen)
    frame = frame[frame["value"] > ROUNDING]
    return frame[["arm", "condition", "seed", "step", "value"]]


def conditions_of(record: Record) -> list[int]:
    """The condition numbers of the least-squares problems, the smallest first."""
    return sorted(int(value) for value in gaps(record)["condition"].unique())


def once(record: Record, metric: str, *columns: str, **chosen: object) -> pd.DataFrame:
    """Values that each run has once: rows (arm, seed, columns..., value)."""
    return directions.values(record, metric, *columns, **chosen)[["arm", "seed", *columns, "value"]]


def gap_rows(record: Record) -> list[dict]:
    """One row per arm, condition and seed: `at`, the steps, and `gap`, a word for each."""
    rows = []
    for (arm, condition, seed), part in gaps(record).groupby(["arm", "condition", "seed"]):
        part = part.sort_values("step")
        # Every second step is enough for a line on these axes.
        part = part[(part["step"] % 2 == 0) | (part["step"] > 50)]
        rows.append(
            {
                "arm": charts.ARMS[arm].label,
                "condition": int(condition),
                "seed": int(seed),
                "at": charts.packed(part["step"], "g"),
                "gap": charts.packed(part["value"], ".3g"),
            }
        )
    return rows


def gap_words(record: Record, condition: int) -> list[str]:
    """What the readout says of one condition number: medians over the seeds."""
    told = []
    for arm in ("standard", "bn"):
        steps, late, exact = (
            median(once(record, metric, "condition", arm=arm, condition=condition)["value"])
            for metric in ("steps_to", "late_factor", "asymptotic_rate")
        )
        told.append(f"{charts.ARMS[arm].label}: {steps:.0f} steps to 1e−10, late × {charts.spell(late, 5)}")
    told.append(f"Batch norm, exact late factor: {charts.spell(exact, 5)}")
    bound = median(once(record, "bound", "condition", arm="bn", condition=condition)["value"])
    return [f"Condition {condition}: the bound is × {charts.spell(bound, 5)} a step", *told]


def gap_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """The gap by step at one condition number, every seed, and the bound (dotted) from the first gap 1.

    Params: `condition`, and `scaled`: count steps in units of L/μ. Below, in words: medians over the seeds.
    """
    height = 260
    labels = [charts.ARMS[arm].label for arm in ("standard", "bn")]
    scales = charts.arm_scales(labels, charts.ARMS, alt.Legend())
    across = alt.X(
        "x:Q",
        title="Step (scaled: step × μ/L)",
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(tickCount=5),
    )
    up = alt.Y(
        "y:Q",
        title="(ρ − ρ*) / |ρ*|",
        scale=alt.Scale(type="log", domain=[ROUNDING, 1.5], nice=False),
        axis=alt.Axis(values=[10.0**k for k in range(-16, 1, 4)], format="~g"),
    )
    base = alt.Chart(alt.Data(values=gap_rows(record))).transform_filter("datum.condition == condition")
    lines = (
        base.transform_calculate(step="split(datum.at, ' ')", y="split(datum.gap, ' ')")
        .transform_flatten(["step", "y"])
        .transform_calculate(x="toNumber(datum.step) / (scaled ? datum.condition : 1)", y="toNumber(datum.y)")
        .mark_line(strokeWidth=1.4, opacity=0.8, clip=True)
        .encode(x=across, y=up, detail="seed:N", **scales)
    )
    # From gap 1 down to rounding, which the bound reaches after log(1e16) / -2 log(1 - 1 / condition) steps.
    bound = (
        alt.Chart(alt.Data(values=[{"k": 0}, {"k": 1}]))
        .transform_calculate(
            x=f"datum.k * log({ROUNDING}) / (2 * log(1 - 1 / condition)) / (scaled ? condition : 1)",
            y=f"datum.k ? {ROUNDING} : 1",
        )
        .mark_line(strokeWidth=1.5, color=charts.INK, strokeDash=[1, 3], clip=True)
        .encode(x=across, y=up)
    )
    names = ("first", "second", "third", "fourth")
    said = [
        {"c": condition, **dict(zip(names, gap_words(record, condition), strict=True))}
        for condition in conditions_of(record)
    ]
    readout = _words(
        alt.Chart(alt.Data(values=said)).transform_filter("datum.c == condition"),
        [f"datum.{name}" for name in names],
        height + 56,
        -46,
    )
    return (
        alt.layer(bound, lines, *readout)
        .properties(width="container", height=height)
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def gap_by_step(record: Record) -> ipywidgets.VBox:
    """The chart of `gap_chart` under its controls."""
    conditions = conditions_of(record)
    start = {"condition": conditions[-1] if len(conditions) < 3 else conditions[2], "scaled": False}
    told = "; ".join(", ".join(gap_words(record, condition)) for condition in conditions)
    explorer = widgets.Explorer(
        gap_chart(record, start),
        description=(
            f"The gap to the optimum by step, logarithmic, {record.seeds} random problems each, plain "
            f"gradient descent and batch norm, with the bound as a dotted line. Medians. {told}."
        ),
    )
    return widgets.controls(
        explorer,
        condition=ipywidgets.SelectionSlider(
            description="condition",
            options=[(str(condition), condition) for condition in conditions],
            value=start["condition"],
        ),
        scaled=ipywidgets.Checkbox(description="count steps in units of L/μ", value=False),
    )


# --- (c) any learning rate ------------------------------------------------------------------------------


def final_gaps(record: Record) -> pd.DataFrame:
    """The gap at the end for every learning rate: rows (arm, seed, rate, value); infinite if it diverged."""
    frame = record.frame("problem")
    frame = frame[frame["problem"] == "any_rate"]
    rate = frame["metric"].str.extract(r"^gap@(.+)$")[0]
    frame = frame[rate.notna()].assign(rate=rate.dropna().astype(float))
    final = frame["step"].max()
    keys = ["arm", "seed", "rate"]
    last = frame.loc[frame.groupby(keys)["step"].idxmax()]
    value = last["value"].where(last["step"] == final, math.inf)
    return last[keys].assign(value=value).sort_values(keys, ignore_index=True)


def rates_chart(record: Record, height: int = 260) -> alt.LayerChart:
    """The gap after all steps against the learning rate, both logarithmic; a run that diverged is a cross at
    the top; the dashed rule is plain gradient descent's limit, 2 / L."""
    frame = final_gaps(record)
    limit = median(once(record, "limit", arm="standard")["value"])
    labels = [charts.ARMS[arm].label for arm in ("standard", "bn")]
    scales = charts.arm_scales(labels, charts.ARMS, alt.Legend())
    lost = ~frame["value"].map(math.isfinite)
    top = 1e3
    table = charts.rounded(
        frame.assign(
            arm=[charts.ARMS[arm].label for arm in frame["arm"]],
            y=frame["value"].where(~lost, top).clip(lower=1e-18),
            lost=lost.astype(int),
        ).drop(columns="value")
    )
    across = alt.X(
        "rate:Q",
        title="Learning rate of the weights",
        scale=alt.Scale(type="log", nice=False, padding=8),
        axis=alt.Axis(
            values=sorted(table["rate"].unique().tolist()),
            labelExpr="datum.value < 1e4 ? format(datum.value, '~g') : '1e' + round(log(datum.value) / LN10)",
        ),
    )
    up = alt.Y(
        "y:Q",
        title="Gap after all steps",
        scale=alt.Scale(type="log", domain=[1e-18, 4 * top], nice=False),
        axis=alt.Axis(values=[1e-18, 1e-12, 1e-6, 1], format="~g"),
    )
    base = alt.Chart(table)
    kept = base.transform_filter("datum.lost == 0")
    lines = kept.mark_line(strokeWidth=1, opacity=0.6).encode(x=across, y=up, detail="seed:N", **scales)
    dots = kept.mark_point(size=30).encode(x=across, y=up, color=scales["color"])
    crosses = (
        base.transform_filter("datum.lost == 1")
        .mark_point(shape="cross", angle=45, size=70)
        .encode(x=across, y=up, color=scales["color"])
    )
    rule = (
        alt.Chart(alt.Data(values=[{"rate": float(f"{limit:.5g}")}]))
        .mark_rule(strokeDash=[5, 4])
        .encode(x=across)
    )
    counts = []
    for arm in ("standard", "bn"):
        part = frame[frame["arm"] == arm]
        medians = part.groupby("rate")["value"].median()
        told = ", ".join(
            f"{charts.spell(rate)}: {charts.spell(value) if math.isfinite(value) else 'diverged'}"
            for rate, value in medians.items()
        )
        counts.append(f"{charts.ARMS[arm].label}, median gap by learning rate: {told}.")
    return alt.layer(rule, lines, dots, crosses).properties(
        width="container",
        height=height,
        description=(
            "The gap after all steps against the learning rate of the weights, logarithmic, one line per "
            f"problem. {' '.join(counts)} The dashed rule is at {charts.spell(limit)}."
        ),
    )


# --- (d) Rayleigh quotients -----------------------------------------------------------------------------

STEPS = {
    "inverse": Arm("T = A⁻¹", *charts.ARMS["bn"][1:]),
    "euclidean": Arm("T = I/L", *charts.ARMS["standard"][1:]),
}


def measured_rates(record: Record) -> pd.DataFrame:
    """Rayleigh quotients: rows (seed, condition, step, measured, ideal, bound): the largest factor of one
    step, q0 squared and q squared."""
    keys = ["seed", "condition", "step"]
    # The setting `step` takes the place of the table's column of that name.
    parts = [
        directions.values(record, metric, "condition", "step", problem="rayleigh")
        .set_index(keys)["value"]
        .rename(name)
        for metric, name in (("largest_factor", "measured"), ("ideal_bound", "ideal"), ("bound", "bound"))
    ]
    return pd.concat(parts, axis=1).reset_index()


def rayleigh_chart(record: Record, height: int = 280) -> alt.LayerChart:
    """The largest factor of one step against q0 squared, one dot per problem; hollow diamonds: the bound q
    squared of the plain step; on the dotted diagonal the factor is q0 squared."""
    table = charts.rounded(measured_rates(record)).assign(arm=lambda f: [STEPS[s].label for s in f["step"]])
    labels = [arm.label for arm in STEPS.values()]
    colour = charts.arm_scales(labels, STEPS, alt.Legend(symbolType="circle", symbolSize=70))["color"]
    unit = alt.Scale(domain=[0, 1], nice=False)
    across = alt.X("ideal:Q", title="q₀², the rate with T = A⁻¹", scale=unit, axis=alt.Axis(tickCount=5))

    def up(field: str) -> alt.Y:
        return alt.Y(field, title="Largest factor of a step", scale=unit)

    base = alt.Chart(table)
    diagonal = (
        alt.Chart(alt.Data(values=[{"ideal": 0, "v": 0}, {"ideal": 1, "v": 1}]))
        .mark_line(strokeWidth=1.5, color=charts.INK, opacity=0.7, strokeDash=[1, 3])
        .encode(x=across, y=up("v:Q"))
    )
    dots = base.mark_point(size=45, opacity=0.85).encode(x=across, y=up("measured:Q"), color=colour)
    bounds = (
        base.transform_filter(f"datum.arm == '{STEPS['euclidean'].label}'")
        .mark_point(shape="diamond", size=55, filled=False, strokeWidth=1.2)
        .encode(x=across, y=up("bound:Q"), color=colour)
    )
    told = "; ".join(
        f"{arm.label}: q₀² {charts.spell(part['ideal'].median())}, measured "
        f"{charts.spell(part['measured'].median())}, q² {charts.spell(part['bound'].median())}"
        for step, arm in STEPS.items()
        if len(part := table[table["step"] == step])
    )
    return alt.layer(diagonal, bounds, dots).properties(
        width="container",
        height=height,
        description=(
            "The largest factor by which one step multiplies the distance, against the squared rate q0 of "
            f"the preconditioned step, one dot per problem and step. Medians. {told}."
        ),
    )


# --- (e) halfspaces -------------------------------------------------------------------------------------

HALVINGS = {
    "8": Arm("8 halvings", "#4b4bff", (4, 3)),
    "16": Arm("16 halvings", "#a54b5a", (7, 3)),
    "50": Arm("50 halvings", GREEN, (1, 0)),
}


def _every(steps: pd.Series, number: int = 2) -> pd.Series:
    """Of the first 50 steps every `number`-th; of the later ones, which are sparse, all."""
    return (steps % number == 0) | (steps > 50)


def halfspace_paths(record: Record, metric: str = "gap", floor: float = ROUNDING) -> pd.DataFrame:
    """Softplus, the plain, the BN and the GDNP run of each seed: rows (arm, seed, step, value), value >
    floor."""
    frame = directions.values(record, metric, "start", "halvings", loss="softplus")
    frame = frame[frame["start"].isna() & frame["halvings"].isna()]
    last = frame[frame["arm"] == "gdnp"]["step"].max()
    frame = frame[(frame["step"] <= 2 * last) & _every(frame["step"]) & (frame["value"] > floor)]
    return frame[["arm", "seed", "step", "value"]]


def by_start(record: Record) -> pd.DataFrame:
    """GDNP with h as derived and as printed, by the length of the first weights: rows (arm, start, seed,
    step, value)."""
    frame = directions.values(record, "gap", "start", loss="softplus")
    frame = frame[frame["start"].notna() & _every(frame["step"], 4) & (frame["value"] > ROUNDING)]
    return frame[["arm", "start", "seed", "step", "value"]]


def by_halvings(record: Record) -> pd.DataFrame:
    """The gradient's norm of GDNP by the number of halvings, a key of `HALVINGS`: rows (arm, seed, step,
    value)."""
    frame = directions.values(record, "gradient_norm", "start", "halvings", arm="gdnp", loss="softplus")
    frame = frame[frame["start"].isna() & _every(frame["step"])]
    return frame.assign(arm=frame["halvings"].fillna(50).astype(int).astype(str))[
        ["arm", "seed", "step", "value"]
    ]


def image_paths(record: Record, metric: str, floor: float = 0.0) -> pd.DataFrame:
    """Two classes of images: rows (arm, whitened, seed, step, value) of the plain, the BN (the smallest
    recorded rate) and the GDNP run, at steps > 0 and while value > floor."""
    frame = directions.values(record, metric, "lr", "whitened")
    rate = frame["lr"].min()
    frame = frame[(frame["lr"].isna() | (frame["lr"] == rate)) & (frame["step"] > 0)]
    frame = pd.concat([part[thinned(part["step"])] for _, part in frame.groupby("arm")])
    return frame[frame["value"] > floor][["arm", "whitened", "seed", "step", "value"]]


# --- (f) critical points of a hidden layer --------------------------------------------------------------

UNITS = {"1": BLUE, "2": ORANGE, "3": GREEN}


def units(record: Record) -> pd.DataFrame:
    """The units of all critical points with a good quadrature: rows (loss, units, seed, start, unit, along,
    across), the weights along the line and off it, of the point's longest unit's length, with the longest
    unit turned to the right; and `off_line`, `conditioning` of the point."""
    frame = record.frame("loss", "units")
    parts = frame[frame["layer"] != ""].pivot_table(
        index=["loss", "units", "seed", "step", "layer"], columns="metric", values="value"
    )
    points = directions.critical_points(record)
    points = points.set_index(["loss", "units", "seed", "step"])[["off_line", "conditioning"]]
    table = parts.reset_index(level="layer").join(points, how="inner").reset_index()
    size = (table["along"] ** 2 + table["across"] ** 2) ** 0.5
    longest = size.groupby([table[key] for key in ("loss", "units", "seed", "step")]).transform("max")
    table["along"], table["across"] = table["along"] / longest, table["across"] / longest
    table["unit"] = table["layer"].str.removeprefix("unit")
    return table.rename(columns={"step": "start"})


LOSSES = {"square": "square", "softplus": "logistic"}
FREE = {"all": "all units", "first": "the first unit only"}


def hidden_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """The units of critical points in the plane, the line of all theory horizontal: one dot per unit and
    start.

    Params: `loss`, `units` (which are free), `seed`, `regular` (only points with b far from singular).
    Below, in words: how many critical points, and how far off the line their units are.
    """
    height = 240
    rows = [
        {
            **dict(zip(("loss", "units", "seed", "unit"), key, strict=True)),
            "start": charts.packed(part["start"], "g"),
            "x": charts.packed(part["along"], ".3g"),
            "y": charts.packed(part["across"], ".3g"),
            "off": charts.packed(part["off_line"], ".3g"),
            "regular": charts.packed((part["conditioning"] > directions.REGULAR).astype(int), "g"),
        }
        for key, part in units(record).groupby(["loss", "units", "seed", "unit"])
    ]
    series = ["start", "x", "y", "off", "regular"]
    across = alt.X(
        "x:Q",
        title="Along the line",
        scale=alt.Scale(domain=[-1.1, 1.1], nice=False),
        axis=alt.Axis(tickCount=5),
    )
    most = 1.1 * max(abs(float(word)) for row in rows for word in row["y"].split())
    most = float(f"{max(most, 0.1):.2g}")
    up = alt.Y(
        "y:Q",
        title="Off the line",
        scale=alt.Scale(domain=[-most, most], nice=False),
        axis=alt.Axis(tickCount=5),
    )
    chosen = "datum.loss == loss && datum.units == units && datum.seed == seed"
    base = (
        alt.Chart()
        .transform_filter(chosen)
        .transform_calculate(**{name: f"split(datum.{name}, ' ')" for name in series})
        .transform_flatten(series)
        .transform_calculate(**{name: f"toNumber(datum.{name})" for name in series})
        .transform_calculate(kept="!regular || datum.regular ? 1 : 0")
    )
    colour = alt.Color(
        "unit:N",
        scale=alt.Scale(domain=list(UNITS), range=list(UNITS.values())),
        legend=alt.Legend(symbolType="circle", symbolSize=70, labelExpr="'unit ' + datum.label", columns=3),
    )
    line = alt.Chart(alt.Data(values=[{"y": 0}])).mark_rule(strokeDash=[5, 4]).encode(y=up)
    shown = base.transform_filter("datum.kept")
    dots = shown.mark_point(size=50, opacity=0.6).encode(
        x=across, y=up, color=colour, shape=alt.Shape("unit:N", legend=None)
    )
    # Counted before points are left out, so that there is a row even if all of them are.
    counted = (
        base.transform_filter("datum.unit == '1'")
        .transform_calculate(seen="datum.kept ? datum.off : null")
        .transform_aggregate(points="sum(kept)", largest="max(seen)", smallest="min(seen)")
        .transform_calculate(number=spelled_in_vega("datum.largest"), least=spelled_in_vega("datum.smallest"))
    )
    names = json.dumps(LOSSES), json.dumps(FREE)
    readout = _words(
        counted,
        [
            f"{names[0]}[loss] + ' loss, free: ' + {names[1]}[units] + ', seed ' + seed",
            "datum.points ? datum.points + ' critical points' : 'No critical point of this kind'",
            "datum.points ? 'Off the line: ' + datum.least + ' to ' + datum.number : ' '",
        ],
        height + 56,
        -46,
    )
    return (
        alt.layer(line, dots, *readout)
        .properties(data=alt.Data(values=rows), width="container", height=height)
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def hidden(record: Record) -> ipywidgets.VBox:
    """The chart of `hidden_chart` under its controls."""
    seeds = sorted({run["seed"] for run in record.runs})
    start = {"loss": "softplus", "units": "all", "seed": seeds[0], "regular": False}
    points = directions.critical_points(record)
    told = "; ".join(
        f"{LOSSES[loss]} loss, {FREE[free]}: {len(part)} points, median "
        f"{charts.spell(part['off_line'].median())}"
        for (loss, free), part in points.groupby(["loss", "units"])
    )
    explorer = widgets.Explorer(
        hidden_chart(record, start),
        description=(
            "The hidden units of critical points as dots in the plane, with the line of the theory "
            "horizontal. Loss, free units and seed can be chosen. Largest distance of a unit from the line "
            f"over the longest unit's length. {told}."
        ),
    )
    return widgets.controls(
        explorer,
        loss=ipywidgets.Dropdown(
            description="loss", options=[(word, name) for name, word in LOSSES.items()], value="softplus"
        ),
        units=ipywidgets.Dropdown(
            description="free", options=[(word, name) for name, word in FREE.items()], value="all"
        ),
        seed=ipywidgets.SelectionSlider(
            description="network (seed)", options=[(str(seed), seed) for seed in seeds], value=seeds[0]
        ),
        regular=ipywidgets.Checkbox(description="only where b is far from singular", value=False),
    )
