"""The figures of chapter 8: what l_p norms divide by, and what networks with l_p norms do, from records.

Functions that end in `_chart` return a chart; `scale_and_variance`, `arms_over_training`, `final_shapes` and
`recorded_scales` return finished widgets.  A series of numbers travels as one string (see `charts.packed`),
and what a reader asks for is computed in the page, with or without a kernel.  No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import altair as alt
import ipywidgets
import numpy as np
import pandas as pd

from bnlib import charts, widgets
from bnlib.experiments import landscape, lp
from bnlib.explorables.distributions import density, quantiles
from bnlib.explorables.gradients import layer_words
from bnlib.explorables.noise import arms_of, grouped_dots_chart, layers_of
from bnlib.records import Record

BEFORE, AFTER, MARKED = "#8a8f98", "#2f86c9", "#d9622b"
#: the orders that a reader can choose
ORDERS = [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, math.inf]
#: the numbers of values m
SIZES = [2**k for k in range(4, 13)]
#: arms to look at together; batch norm and the standard net are always there
GROUPS = {"all": list(lp.ARMS), "as printed": lp.UNCENTRED, "centred": lp.CENTRED}


def _label(arm: str) -> str:
    return charts.ARMS[arm].label


# --- what a norm divides by ---------------------------------------------------------------------------


def gaussian_scale(p: float, m: int | None = None) -> float:
    r"""$C_p/\sigma$ of Gaussian values with mean 0.

    Finite p, infinitely many values: $(2^{p/2}\,\Gamma(\frac{p+1}2)/\sqrt\pi)^{1/p}$.  For p = inf it is the
    expected maximum of m absolute values, $\int_0^\infty1-\operatorname{erf}(x/\sqrt2)^m\,dx$ (trapezia).
    Raises ValueError for p = inf without m.
    """
    if math.isfinite(p):
        return (2 ** (p / 2) * math.gamma((p + 1) / 2) / math.sqrt(math.pi)) ** (1 / p)
    if m is None:
        raise ValueError("The largest of m Gaussian values needs their number: pass m.")
    grid = np.linspace(0, 10, 4001)
    missing = np.array([1 - math.erf(x / math.sqrt(2)) ** m for x in grid])
    return float(np.trapezoid(missing, grid))


def scale(y: np.ndarray, p: float) -> float:
    """C_p of the values y: the p-th root of the mean of |y|^p, or the largest |y|."""
    size = np.abs(y)
    return float(size.max() if math.isinf(p) else np.mean(size**p) ** (1 / p))


def samples(extra: Mapping[str, Sequence[float]] | None = None) -> dict[str, np.ndarray]:
    """Values of several distributions in the order in which they were drawn, and `extra` ones as they are.

    All have the standard deviation 1 but for the ReLU's, where it is 0.58, and the extra ones.
    """
    rng = np.random.default_rng(0)
    normal, other = rng.standard_normal((2, SIZES[-1]))
    drawn = {
        "Gaussian": normal,
        "uniform": rng.uniform(-math.sqrt(3), math.sqrt(3), SIZES[-1]),
        "Laplace (heavy tails)": rng.laplace(0, 1 / math.sqrt(2), SIZES[-1]),
        "ReLU of a Gaussian": np.maximum(other, 0),
        "Gaussian with mean 3": other + 3,
    }
    drawn |= {name: np.asarray(values, dtype=float)[: SIZES[-1]] for name, values in (extra or {}).items()}
    return {name: np.array([float(f"{v:.3g}") for v in values]) for name, values in drawn.items()}


def scale_rows(drawn: Mapping[str, np.ndarray]) -> list[dict]:
    """One row per distribution, m and kind of scale: C_p / sigma for all `ORDERS`, of the first m values.

    `gauss` holds the same for Gaussian values with mean 0 (finite p: infinitely many of them).
    """
    rows = []
    for m in SIZES:
        gauss = charts.packed([gaussian_scale(p, m) for p in ORDERS])
        for name, values in drawn.items():
            y = values[:m]
            for centred in (False, True):
                u = y - y.mean() if centred else y
                ratios = charts.packed([scale(u, p) / y.std() for p in ORDERS])
                rows.append({"law": name, "size": m, "centred": centred, "ratios": ratios, "gauss": gauss})
    return rows


def _order_words(p: float) -> str:
    return "∞" if math.isinf(p) else f"{p:g}"


def _order_value(p: float) -> float:
    """JSON has no infinity: 0 stands for it."""
    return 0.0 if math.isinf(p) else float(p)


_PLACE = f"indexof({[_order_value(p) for p in ORDERS]}, p)"
_ORDER = "(p == 0 ? '∞' : format(p, '~g'))"
LOW, HIGH, WIDTH = -5.0, 6.0, 0.2  # axis of the histograms, and their bins


def scale_chart(drawn: Mapping[str, np.ndarray], start: Mapping[str, object]) -> alt.VConcatChart:
    """The first m values of a distribution before and after an l_p norm, and its scale against p and m.

    Params: `law` (a name in `drawn`), `p` (0: infinity), `m` (one of `SIZES`) and `centred` (the norm is that
    of y - mu).  Lines of words: scale, Gaussian constant, output variance.
    """
    rows = [{"law": name, "values": charts.packed(values, ".3g")} for name, values in drawn.items()]
    chart = alt.vconcat(
        _histograms(rows),
        _against("order", scale_rows(drawn)),
        _against("size", scale_rows(drawn)),
        spacing=26,
    ).add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    return charts.fit_width(chart, gutter=74)


def _histograms(rows: list[dict]) -> alt.LayerChart:

    def bin_of(field: str) -> str:
        return f"clamp(floor(datum.{field} / {WIDTH}), {round(LOW / WIDTH)}, {round(HIGH / WIDTH) - 1})"

    base = (
        alt.Chart(alt.Data(values=rows))
        .transform_filter("datum.law == law")
        .transform_calculate(v="split(datum.values, ' ')")
        .transform_flatten(["v"])
        .transform_window(i="row_number()")
        .transform_filter("datum.i <= m")
        .transform_calculate(y="toNumber(datum.v)")
        .transform_joinaggregate(mu="mean(y)", variance="variancep(y)")
        .transform_calculate(size="abs(centred ? datum.y - datum.mu : datum.y)")
        .transform_calculate(power="p > 0 ? pow(datum.size, p) : 0")
        .transform_joinaggregate(power="mean(power)", largest="max(size)")
        .transform_calculate(scale="p > 0 ? pow(datum.power, 1 / p) : datum.largest")
        .transform_calculate(z="(datum.y - datum.mu) / datum.scale")
        .transform_calculate(**{f"bin_{field}": bin_of(field) for field in "yz"})
    )
    names = ["before: y", "after: (y − μ) / C"]
    bars = [
        base.transform_aggregate(n="count()", groupby=[f"bin_{field}"])
        .transform_calculate(
            which=f"'{name}'",
            bin=f"datum.bin_{field}",
            left=f"datum.bin_{field} * {WIDTH}",
            right=f"(datum.bin_{field} + 1) * {WIDTH}",
            density=f"datum.n / (m * {WIDTH})",
        )
        .mark_rect(opacity=0.5)
        .encode(
            x=alt.X(
                "left:Q",
                title="Value",
                scale=alt.Scale(domain=[LOW, HIGH], nice=False),
                axis=alt.Axis(tickCount=6),
            ),
            x2="right:Q",
            y=alt.Y("density:Q", title="Density", stack=None, axis=alt.Axis(tickCount=4)),
            y2=alt.datum(0),
            color=alt.Color(
                "which:N",
                scale=alt.Scale(domain=names, range=[BEFORE, AFTER]),
                legend=alt.Legend(symbolType="square", symbolSize=120, symbolStrokeWidth=0, offset=8),
            ),
        )
        for field, name in zip("yz", names, strict=True)
    ]
    first = base.transform_filter("datum.i == 1")
    mark = (
        first.transform_calculate(at=f"min(datum.scale, {HIGH})")
        .mark_rule(color=MARKED, strokeWidth=2, strokeDash=[5, 3], opacity=1)
        .encode(x="at:Q")
    )
    name = (
        first.transform_calculate(at=f"min(datum.scale, {HIGH})", words="'C'")
        .mark_text(color=MARKED, dx=8, align="left", fontWeight="bold", fontSize=13)
        .encode(x="at:Q", y=alt.value(8), text="words:N")
    )

    def words(text: str, above: int, **style: object) -> alt.Chart:
        place = {"x": alt.value(-30), "y": alt.value(-above)}
        return (
            first.transform_calculate(words=text)
            .mark_text(align="left", fontSize=12, **style)
            .encode(text="words:N", **place)
        )

    told = [
        words(f"law + ', m = ' + m + ', p = ' + {_ORDER}", 50, fontWeight="bold"),
        words(
            "'scale C = ' + format(datum.scale, '.3~f') + ' = '"
            " + format(datum.scale / sqrt(datum.variance), '.3~f') + ' σ'"
            " + (centred ? ', of y − μ' : ', of y')",
            31,
        ),
        words(
            "'output variance ' + format(datum.variance / (datum.scale * datum.scale), '.3~f')"
            " + ' (batch norm: 1)'",
            12,
        ),
    ]
    return alt.layer(*bars, mark, name, *told).properties(height=170)


def _against(axis: str, rows: list[dict]) -> alt.LayerChart:
    """C_p / sigma against p (axis `order`) at the chosen m, or against m (`size`) at the chosen p."""
    base = (
        alt.Chart(alt.Data(values=rows))
        .transform_filter("datum.law == law && datum.centred == centred")
        .transform_calculate(r="split(datum.ratios, ' ')", g="split(datum.gauss, ' ')")
        .transform_flatten(["r", "g"])
        .transform_window(i="row_number()", groupby=["size"])
        .transform_calculate(ours="toNumber(datum.r)", gaussian="toNumber(datum.g)", place="datum.i - 1")
    )
    if axis == "order":
        labels = [_order_words(p) for p in ORDERS]
        base = base.transform_filter("datum.size == m")
        across = alt.X(
            "place:Q",
            title="p, at the chosen m",
            scale=alt.Scale(domain=[0, len(ORDERS) - 1], nice=False),
            axis=alt.Axis(
                values=list(range(len(ORDERS))), labelExpr=f"{labels}[datum.value]", labelOverlap=False
            ),
        )
        chosen = f"datum.place == {_PLACE}"
    else:
        base = base.transform_filter(f"datum.place == {_PLACE}")
        across = alt.X(
            "size:Q",
            title="Number of values m, at the chosen p",
            scale=alt.Scale(type="log", base=2, domain=[SIZES[0], SIZES[-1]], nice=False),
            axis=alt.Axis(values=SIZES[::2], format="d", labelOverlap=False),
        )
        chosen = "datum.size == m"
    names = ["this sample", "Gaussian, mean 0"]
    lines = (
        base.transform_fold(["ours", "gaussian"], as_=["which", "value"])
        .transform_calculate(which=f"datum.which == 'ours' ? '{names[0]}' : '{names[1]}'")
        .mark_line()
        .encode(
            x=across,
            y=alt.Y("value:Q", title="C / σ", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4)),
            color=alt.Color(
                "which:N",
                scale=alt.Scale(domain=names, range=[AFTER, BEFORE]),
                legend=alt.Legend() if axis == "order" else None,
            ),
            strokeDash=alt.StrokeDash(
                "which:N",
                scale=alt.Scale(domain=names, range=[[1, 0], [5, 4]]),
                legend=alt.Legend() if axis == "order" else None,
            ),
        )
    )
    dot = (
        base.transform_filter(chosen)
        .mark_point(size=90, color=MARKED, opacity=1)
        .encode(x=across, y=alt.Y("ours:Q", title="C / σ"))
    )
    return (alt.layer(lines, dot).resolve_scale(color="independent", strokeDash="independent")).properties(
        height=120
    )


def scale_and_variance(extra: Mapping[str, Sequence[float]] | None = None) -> ipywidgets.VBox:
    """The chart of `scale_chart` under its controls; first a Gaussian with mean 3 and p = 2, which is not BN.

    `extra`: more distributions, as name -> at least as many values as the largest of `SIZES`.  Raises
    ValueError for fewer.
    """
    drawn = samples(extra)
    if short := [name for name, values in drawn.items() if len(values) < SIZES[-1]]:
        raise ValueError(f"{short[0]!r} has fewer than {SIZES[-1]} values: pass more.")
    start = {"law": "Gaussian with mean 3", "p": 2.0, "m": 1024, "centred": False}
    told = []
    for name, values in drawn.items():
        y = values[: start["m"]]
        variances = (charts.spell(y.var() / scale(y, p) ** 2) for p in (1, 2, math.inf))
        told.append(f"{name} {', '.join(variances)}")
    explorer = widgets.Explorer(
        scale_chart(drawn, start),
        description=(
            "Histograms of a sample before and after an l_p norm, with its scale C as a dashed rule; below, "
            "C in units of the standard deviation against p and against the number m of values, beside the "
            "constants of Gaussian values with mean 0. Variance after the uncentred l_1, l_2 and l_∞ norm of "
            f"{start['m']} values: {'; '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        p=ipywidgets.SelectionSlider(
            description="p", options=[(_order_words(p), _order_value(p)) for p in ORDERS], value=2.0
        ),
        m=ipywidgets.SelectionSlider(
            description="values m", options=[(str(m), m) for m in SIZES], value=start["m"]
        ),
        law=ipywidgets.Dropdown(description="distribution", options=list(drawn), value=start["law"]),
        centred=ipywidgets.Checkbox(description="centred: norm of y − μ", value=False, indent=False),
    )


# --- recorded: every arm over training ----------------------------------------------------------------


class Quantity(NamedTuple):
    """What can be looked at over training: the words of the control, the axis, and how it is drawn."""

    words: str
    title: str
    log: bool
    by_layer: bool
    frame: Callable[[Record], pd.DataFrame]


def _metric(name: str, factor: float = 1.0) -> Callable[[Record], pd.DataFrame]:
    return lambda record: record.frame(metric=name).assign(value=lambda f: factor * f["value"])


def _losses(record: Record) -> pd.DataFrame:
    """Training losses, averaged over a thirtieth of the run each."""
    frame = record.frame(metric="train_loss")
    window = max(1, (int(frame["step"].max()) + 1) // 30)
    frame["step"] = frame["step"] // window * window
    return frame.groupby(["arm", "seed", "step"], as_index=False)["value"].mean().assign(layer="")


def _walk(name: str, relative: bool = False) -> Callable[[Record], pd.DataFrame]:
    def frame(record: Record) -> pd.DataFrame:
        table = landscape.ranges(record, name, relative)
        value = table["high"] - table["low"] if name == "loss" else table["high"]
        return table[["arm", "seed", "step"]].assign(value=value, layer="")

    return frame


QUANTITIES = {
    "variance": Quantity("variance of activations", "Variance of a channel", True, True, _metric("variance")),
    "movement": Quantity(
        "movement in one step",
        "Movement in one step (W₁, standard deviations)",
        True,
        True,
        _metric("wasserstein"),
    ),
    "mean": Quantity("mean of activations", "Mean over channels", False, True, _metric("mean")),
    "loss": Quantity("training loss", "Training loss (nats)", False, False, _losses),
    "accuracy": Quantity(
        "accuracy on training images",
        "Accuracy on training images (%)",
        False,
        False,
        _metric("train_accuracy", 100),
    ),
    "range": Quantity("range of the loss", "Range of the loss (nats)", True, False, _walk("loss")),
    "predictiveness": Quantity(
        "gradient predictiveness", "Largest ‖g − g′‖", True, False, _walk("predictiveness")
    ),
    "beta": Quantity("effective β", "Effective β", True, False, _walk("effective_beta")),
    "relative_range": Quantity(
        "range of the loss, relative", "Range, relative steps (nats)", True, False, _walk("loss", True)
    ),
    "relative_beta": Quantity(
        "effective β, relative", "Effective β, relative steps", True, False, _walk("effective_beta", True)
    ),
}


def training_rows(record: Record) -> list[dict]:
    """One row per quantity, arm, seed and layer ("" for the whole network): its steps and its values."""
    rows = []
    for name, quantity in QUANTITIES.items():
        frame = quantity.frame(record)
        frame = frame[np.isfinite(frame["value"])].sort_values("step")
        for (arm, seed, layer), part in frame.groupby(["arm", "seed", "layer"], sort=False):
            rows.append(
                {
                    "quantity": name,
                    "arm": _label(arm),
                    "seed": int(seed),
                    "layer": layer,
                    "steps": charts.packed(part["step"], "d"),
                    "values": charts.packed(part["value"], ".3g"),
                }
            )
    return rows


def training_chart(record: Record, start: Mapping[str, object]) -> alt.LayerChart:
    """One quantity over the steps of training: every seed thin, each arm's median thick.

    Params: `quantity` (a key of `QUANTITIES`), `layer` (matters for activations only) and `group` (a key of
    `GROUPS`).  Words below: each arm's last value, median and range.
    """
    arms = arms_of(record)
    labels = [_label(arm) for arm in arms]
    scales = charts.arm_scales(labels, legend=alt.Legend(offset=30))
    height = 270
    logs = [name for name, quantity in QUANTITIES.items() if quantity.log]
    layered = [name for name, quantity in QUANTITIES.items() if quantity.by_layer]
    shown = {
        group: [_label(arm) for arm in arms if arm in members or arm in ("standard", "bn")]
        for group, members in GROUPS.items()
    }
    is_log = f"indexof({logs}, quantity) >= 0"
    has_layer = f"indexof({layered}, quantity) >= 0"
    across = alt.X("x:Q", title="Step", scale=alt.Scale(nice=False, zero=False))
    power = "format(pow(10, datum.value), '.1~g')"
    axis = alt.Axis(labelExpr=f"{is_log} ? {power} : datum.label", tickCount=5)

    def up(field: str) -> alt.Y:
        return alt.Y(field, title=None, scale=alt.Scale(zero=False), axis=axis)

    base = alt.Chart()
    seeds = base.mark_line(strokeWidth=0.7, opacity=0.4).encode(
        x=across, y=up("y:Q"), detail="seed:N", **scales
    )
    middle = base.mark_line().encode(x=across, y=up("median(y):Q"), **scales)
    titles = " : ".join(f"quantity == '{name}' ? '{q.title}'" for name, q in QUANTITIES.items())
    words = {name: layer_words(name) for name in layers_of(record)}
    heading = (
        base.transform_aggregate(n="count()")
        .transform_calculate(words=f"({titles} : '') + ({has_layer} ? ', ' + ({words})[layer] : '')")
        .mark_text(align="left", fontSize=13)
        .encode(x=alt.value(-30), y=alt.value(-14), text="words:N")
    )

    def line(part: alt.Chart, number: int) -> alt.Chart:
        place = {"x": alt.value(-34), "y": alt.value(height + 60 + 18 * number)}
        return part.mark_text(align="left", fontSize=12).encode(text="words:N", **place)

    ends = (
        base.transform_joinaggregate(last="max(x)", groupby=["arm", "seed"])
        .transform_filter("datum.x == datum.last")
        .transform_aggregate(middle="median(v)", low="min(v)", high="max(v)", groupby=["arm"])
        .transform_calculate(
            words="datum.arm + ': ' + format(datum.middle, '.3~g') + ' (' + format(datum.low, '.3~g')"
            " + ' to ' + format(datum.high, '.3~g') + ')'",
            place=f"indexof(({shown})[group], datum.arm)",
        )
    )
    title = base.transform_aggregate(n="count()").transform_calculate(
        words="'Last value, median (range over the seeds):'"
    )
    lines = [
        line(ends.transform_filter(f"datum.place == {number}"), 1 + number) for number in range(len(labels))
    ]
    chart = alt.layer(seeds, middle, heading, line(title, 0), *lines).properties(
        data=alt.Data(values=training_rows(record)), width="container", height=height
    )
    return (
        chart.transform_filter(f"datum.quantity == quantity && ({has_layer} ? datum.layer == layer : true)")
        .transform_filter(f"indexof(({shown})[group], datum.arm) >= 0")
        .transform_calculate(s="split(datum.steps, ' ')", w="split(datum.values, ' ')")
        .transform_flatten(["s", "w"])
        .transform_calculate(x="toNumber(datum.s)", v="toNumber(datum.w)")
        .transform_calculate(y=f"{is_log} ? log(max(datum.v, 1e-12)) / LN10 : datum.v")
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def last_values(record: Record, name: str, layer: str = "") -> dict[str, float]:
    """The last value of a quantity of `QUANTITIES`, by arm: the median over the seeds."""
    frame = QUANTITIES[name].frame(record)
    frame = frame[frame["layer"] == layer].sort_values("step")
    last = frame.groupby(["arm", "seed"])["value"].last().groupby("arm").median()
    return {arm: float(last[arm]) for arm in arms_of(record) if arm in last}


def arms_over_training(record: Record) -> ipywidgets.VBox:
    """The chart of `training_chart` under its controls; first the variance in a middle layer."""
    layers = layers_of(record)
    start = {"quantity": "variance", "layer": layers[len(layers) // 2], "group": "all"}
    told = []
    for name, quantity in QUANTITIES.items():
        found = last_values(record, name, start["layer"] if quantity.by_layer else "")
        told.append(
            f"{quantity.words}: " + ", ".join(f"{_label(arm)} {charts.spell(v)}" for arm, v in found.items())
        )
    explorer = widgets.Explorer(
        training_chart(record, start),
        description=(
            "Activations, loss, accuracy or landscape over the training steps, one thin line per seed, the "
            "median thick; quantity, layer and arms can be chosen. Last values, medians over the seeds, "
            f"activations in {layer_words(start['layer'])}. {'; '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        quantity=ipywidgets.Dropdown(
            description="quantity",
            options=[(quantity.words, name) for name, quantity in QUANTITIES.items()],
            value="variance",
        ),
        layer=ipywidgets.Dropdown(
            description="layer", options=[(layer_words(n), n) for n in layers], value=start["layer"]
        ),
        group=ipywidgets.Dropdown(description="arms", options=list(GROUPS), value="all"),
    )


# --- recorded: shapes of activations ------------------------------------------------------------------

GRID = 61  # points of a ridge
REACH = 4.0  # of the common axis


def shape_rows(record: Record, seed: int = 0) -> list[dict]:
    """One row per arm, layer and recorded step: the density of a layer's activations, all channels together.

    On the common axis from -`REACH` to `REACH`, in the activations' own unit; `top` is its largest value.
    """
    table = quantiles(record).xs(seed, level="seed")
    levels = table.columns.to_numpy(dtype=float)
    grid = np.linspace(-REACH, REACH, GRID)
    rows = []
    for (arm, layer, step), values in table.iterrows():
        heights = density(levels, values.to_numpy(), grid)
        rows.append(
            {
                "arm": _label(arm),
                "layer": layer,
                "step": int(step),
                "heights": charts.packed(heights, ".3g"),
                "top": float(f"{max(heights.max(), 1e-9):.3g}"),
            }
        )
    return rows


def shape_chart(record: Record, start: Mapping[str, object], seed: int = 0) -> alt.LayerChart:
    """The recorded histograms of every arm, one above the other on the same axis, at one layer and step.

    Params: `layer` and `step` (one of those recorded).  Each ridge's height is relative to its own highest
    point; dashes mark zero.
    """
    labels = [_label(arm) for arm in arms_of(record)]
    height = 46 * len(labels)
    base = alt.Chart()
    up = alt.Y(
        "high:Q",
        title=None,
        scale=alt.Scale(domain=[-len(labels) + 1, 1.4], nice=False, zero=False),
        axis=alt.Axis(
            values=list(range(1 - len(labels), 1)),
            labelExpr=f"{labels}[-datum.value]",
            grid=False,
            ticks=False,
            domain=False,
            labelBaseline="bottom",
        ),
    )
    across = alt.X(
        "x:Q",
        title="Value before the ReLU",
        scale=alt.Scale(domain=[-REACH, REACH], nice=False),
        axis=alt.Axis(tickCount=6),
    )
    ridges = base.mark_area(fillOpacity=0.35, strokeWidth=1.4, line=True, clip=True).encode(
        x=across, y=up, y2="low:Q", color=charts.arm_scales(labels)["color"], detail="arm:N"
    )
    zero = (
        base.transform_aggregate(n="count()")
        .transform_calculate(x="0")
        .mark_rule(strokeDash=[3, 3])
        .encode(x=across)
    )
    chart = alt.layer(ridges, zero).properties(
        data=alt.Data(values=shape_rows(record, seed)), width="container", height=height
    )
    return (
        chart.transform_filter("datum.layer == layer && datum.step == step")
        .transform_calculate(h="split(datum.heights, ' ')")
        .transform_flatten(["h"])
        .transform_window(i="row_number()", groupby=["arm"])
        .transform_calculate(
            x=f"{-REACH} + (datum.i - 1) * {2 * REACH / (GRID - 1):.6g}",
            low=f"-indexof({labels}, datum.arm)",
        )
        .transform_calculate(high="datum.low + 0.95 * toNumber(datum.h) / datum.top")
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def final_shapes(record: Record, seed: int = 0) -> ipywidgets.VBox:
    """The chart of `shape_chart` under its controls; first the middle one of the layers, at the end."""
    layers = layers_of(record)
    steps = sorted(int(step) for step in quantiles(record).index.unique(level="step"))
    start = {"layer": layers[len(layers) // 2], "step": steps[-1]}
    found = {layer: last_values(record, "variance", layer) for layer in layers}
    told = "; ".join(
        f"{layer_words(layer)}: {', '.join(f'{_label(arm)} {charts.spell(v)}' for arm, v in of_arms.items())}"
        for layer, of_arms in found.items()
    )
    explorer = widgets.Explorer(
        shape_chart(record, start, seed),
        description=(
            "Histograms of what reaches the ReLU, one ridge per arm on the same axis; layer and training "
            f"step can be chosen. Average variance of a channel at the end (medians over the seeds): {told}."
        ),
    )
    return widgets.controls(
        explorer,
        step=ipywidgets.SelectionSlider(
            description="step", options=[(str(step), step) for step in steps], value=steps[-1]
        ),
        layer=ipywidgets.Dropdown(
            description="layer", options=[(layer_words(n), n) for n in layers], value=start["layer"]
        ),
    )


# --- recorded: scales in networks ---------------------------------------------------------------------

RECORDED_ORDERS = ["1", "2", "4", "inf"]


def recorded_scale_table(record: Record, pixels: Mapping[str, int]) -> pd.DataFrame:
    """C_p / sigma in the recorded networks: rows (arm, layer, order, centred, images, m, value).

    `pixels` says how many places a channel of a layer has, so that m = images times pixels.  The value is the
    median over steps, then over the seeds.
    """
    frame = record.frame()
    found = frame["metric"].str.extract(r"^lp_scale(?P<kind>_centred)?\[(?P<order>\w+)\]@(?P<images>\d+)$")
    frame = frame.assign(order=found["order"], images=found["images"], centred=found["kind"].notna())
    frame = frame[frame["order"].notna()]
    keys = ["arm", "layer", "order", "centred", "images"]
    table = frame.groupby([*keys, "seed"])["value"].median().groupby(keys).median().reset_index()
    table["images"] = table["images"].astype(int)
    table["m"] = table["images"] * table["layer"].map(dict(pixels))
    return table.sort_values(["arm", "layer", "order", "centred", "images"], ignore_index=True)


def recorded_scale_chart(
    record: Record, pixels: Mapping[str, int], start: Mapping[str, object]
) -> alt.LayerChart:
    """C_p / sigma against the number m of values in all layers, with the line of Gaussian values.

    Params: `p` (a string: "1", "2", "4" or "inf") and `centred`.
    """
    table = recorded_scale_table(record, pixels)
    arms = arms_of(record)
    labels = [_label(arm) for arm in arms]
    layers = layers_of(record)
    rows = [
        {
            "arm": _label(arm),
            "layer": layer,
            "words": layer_words(layer),
            "order": order,
            "centred": bool(centred),
            "ms": charts.packed(part["m"], "d"),
            "values": charts.packed(part["value"]),
        }
        for (arm, layer, order, centred), part in table.groupby(["arm", "layer", "order", "centred"])
    ]
    low, high = int(table["m"].min()), int(table["m"].max())
    sizes = sorted({round(v) for v in np.geomspace(low, high, 25)})
    for order in RECORDED_ORDERS:
        line = [gaussian_scale(float(order), m) for m in sizes]
        for centred in (False, True):
            rows.append(
                {
                    "arm": "",
                    "layer": "",
                    "order": order,
                    "centred": centred,
                    "ms": charts.packed(sizes, "d"),
                    "values": charts.packed(line),
                }
            )
    scales = charts.arm_scales(labels, legend=alt.Legend())
    ticks = [m * 10**k for k in range(1, 6) for m in (1, 3)]
    across = alt.X(
        "m:Q",
        title="Number of values m (images × pixels)",
        scale=alt.Scale(type="log", domain=[0.9 * low, 1.1 * high], nice=False),
        axis=alt.Axis(values=[t for t in ticks if low <= t <= high], format="~s"),
    )

    def up(field: str) -> alt.Y:
        return alt.Y(field, title="C / σ", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))

    base = alt.Chart()
    gauss = (
        base.transform_filter("datum.arm == ''")
        .mark_line(color=charts.INK, strokeWidth=1.4, strokeDash=[2, 3], opacity=0.8)
        .encode(x=across, y=up("v:Q"))
    )
    name = (
        base.transform_filter("datum.arm == '' && datum.m == " + str(sizes[-2]))
        .mark_text(align="right", dy=16, fontSize=12)
        .encode(x=across, y=up("v:Q"), text=alt.datum("Gaussian values"))
    )
    networks = base.transform_filter("datum.arm != ''")
    lines = networks.mark_line(strokeWidth=1.8).encode(x=across, y=up("v:Q"), detail="layer:N", **scales)
    points = networks.mark_point(size=28, opacity=0.9).encode(
        x=across,
        y=up("v:Q"),
        color=scales["color"],
        shape=alt.Shape(
            "words:N",
            sort=[layer_words(layer) for layer in layers],
            legend=alt.Legend(
                orient="bottom",
                symbolSize=50,
                symbolFillColor=charts.INK,
                symbolStrokeColor=charts.INK,
            ),
        ),
    )
    chart = alt.layer(gauss, name, lines, points).properties(
        data=alt.Data(values=rows), width="container", height=290
    )
    return (
        chart.transform_filter("datum.order == p && datum.centred == centred")
        .transform_calculate(a="split(datum.ms, ' ')", b="split(datum.values, ' ')")
        .transform_flatten(["a", "b"])
        .transform_calculate(m="toNumber(datum.a)", v="toNumber(datum.b)")
        .add_params(*(alt.param(name=name, value=value) for name, value in start.items()))
    )


def recorded_scales(record: Record, pixels: Mapping[str, int]) -> ipywidgets.VBox:
    """The chart of `recorded_scale_chart` under its controls; first the centred l_inf."""
    start = {"p": "inf", "centred": True}
    table = recorded_scale_table(record, pixels)
    told = []
    for order in RECORDED_ORDERS:
        part = table[(table["order"] == order) & table["centred"] & (table["arm"] == "standard")]
        ends = ", ".join(
            f"{layer_words(layer)} {charts.spell(rows['value'].iloc[0])} for {rows['m'].iloc[0]} values and "
            f"{charts.spell(rows['value'].iloc[-1])} for {rows['m'].iloc[-1]}"
            for layer, rows in part.groupby("layer")
        )
        told.append(f"p = {order}: {ends}")
    explorer = widgets.Explorer(
        recorded_scale_chart(record, pixels, start),
        description=(
            "Scale over standard deviation of a channel against the number of values, every arm and layer, "
            "beside Gaussian values with mean 0; p and the kind of scale can be chosen. Centred scale, "
            f"standard net. {'; '.join(told)}."
        ),
    )
    return widgets.controls(
        explorer,
        p=ipywidgets.Dropdown(
            description="p", options=[(o.replace("inf", "∞"), o) for o in RECORDED_ORDERS], value="inf"
        ),
        centred=ipywidgets.Checkbox(description="centred: norm of y − μ", value=True, indent=False),
    )


# --- recorded: landscapes -----------------------------------------------------------------------------

WALKS = {
    "loss": "range of the loss",
    "predictiveness": "gradient difference",
    "effective_beta": "effective β",
}


def over_standard(record: Record, relative: bool = False) -> pd.DataFrame:
    """The landscape's quantities (`landscape.typical`) of every arm divided by the standard net's, by seed.

    Columns group, arm, seed, value.  Infinite values (a walk that left the numbers) become missing.
    """
    parts = []
    for name, words in WALKS.items():
        table = landscape.ranges(record, name, relative)
        table["value"] = table["high"] - table["low"] if name == "loss" else table["high"]
        typical = table.groupby(["arm", "seed"])["value"].median()
        share = typical / typical["standard"].reindex(typical.index, level="seed")
        parts.append(share.replace([math.inf, -math.inf], math.nan).reset_index().assign(group=words))
    found = pd.concat(parts, ignore_index=True)
    return found.loc[found["arm"] != "standard", ["group", "arm", "seed", "value"]]


def over_standard_chart(record: Record, relative: bool = False) -> alt.LayerChart:
    """`over_standard` as one dot per seed on a logarithmic axis, with a rule at 1: below it, smoother."""
    table = over_standard(record, relative)
    values = table["value"].dropna()
    ends = 0.8 * min(0.5, values.min()), 1.25 * max(2, values.max())
    dots = grouped_dots_chart(
        table, y_title="Divided by the standard net's (times)", log_y=True, y_domain=ends
    )
    one = (
        alt.Chart(pd.DataFrame({"one": [1.0]}))
        .mark_rule(strokeDash=[5, 4])
        .encode(y=alt.Y("one:Q", title="Divided by the standard net's (times)"))
    )
    return (one + dots).properties(width="container", height=300, description=dots.description)


def betas_by_step(record: Record, relative: bool = False) -> pd.DataFrame:
    r"""$\|g-g'\|/(\alpha\|g\|)$ for each step size, not only its largest: rows (arm, seed, at, value).

    Medians over the probed steps.  `at` is the step size in learning rates (relative: in lengths of weights).
    """
    frame = landscape.profiles(record, "predictiveness", relative)
    prefix = "relative_" if relative else ""
    norms = record.frame(metric=f"{prefix}gradient_norm").set_index(["arm", "seed", "step"])["value"]
    norm = norms.reindex(pd.MultiIndex.from_frame(frame[["arm", "seed", "step"]])).to_numpy()
    rates = {(run["arm"], run["seed"]): run["settings"]["lr"] for run in record.runs}
    rate = np.array([rates[key] for key in zip(frame["arm"], frame["seed"], strict=True)])
    # In relative coordinates `at` is the length of the whole step, gradient included.
    lengths = frame["at"] if relative else frame["at"] * rate * norm
    frame = frame.assign(value=frame["value"] / lengths)
    return frame.groupby(["arm", "seed", "at"], as_index=False)["value"].median()
