"""The explorables of chapter 1: charts that compute in the page, and the controls that drive them.

Each function returns a finished widget. The numbers a reader sees are computed by Vega-Lite transforms
inside the chart, so the sliders work with or without a kernel; the tests compare them with `bnlib.norms`.
"""

from __future__ import annotations

import altair as alt
import ipywidgets
import numpy as np

from bnlib import charts, widgets

EPSILON = 1e-5
INPUT, OUTPUT, MARKED = "#8a8f98", "#2f86c9", "#d9622b"


def _rounded(values: np.ndarray) -> list[float]:
    return charts.significant(values).tolist()


def _slider(label: str, value: float, low: float, high: float, step: float) -> ipywidgets.Widget:
    if isinstance(step, int):
        return ipywidgets.IntSlider(description=label, value=value, min=low, max=high, step=step)
    decimals = ".2f" if step < 0.1 else ".1f"
    return ipywidgets.FloatSlider(
        description=label, value=value, min=low, max=high, step=step, readout_format=decimals
    )


# --- (a) the transform, step by step ------------------------------------------------------------------


def batches_of_points(batches: int = 20, size: int = 32, seed: int = 0) -> np.ndarray:
    """Random batches of points in the plane, (batches, size, 2): shifted, unequally scaled, correlated."""
    rng = np.random.default_rng(seed)
    mix = np.array([[1.2, 0.0], [0.36, 0.27]])  # standard deviations 1.2 and 0.45, correlation 0.8
    points = np.array([2.2, 1.6]) + rng.standard_normal((batches, size, 2)) @ mix.T
    for batch in points:  # the first point of each batch is drawn as a diamond: one well away from the mean
        first = np.argsort(batch[:, 0])[size // 6]
        batch[[0, first]] = batch[[first, 0]]
    return np.array([_rounded(batch) for batch in points]).reshape(batches, size, 2)


def transform_chart() -> alt.LayerChart:
    r"""One batch of points on its way through batch normalization, on fixed axes.

    Params: `stage` (0 the raw batch, 1 minus the mean, 2 divided, 3 scaled and shifted; fractions lie in
    between), `gamma` and `beta` of the first feature, `log_epsilon`, `batch` and `whiten` (divide by the
    matrix $(\Sigma + \epsilon I)^{1/2}$, ZCA, instead of each feature's own $\sqrt{\sigma^2 + \epsilon}$).
    """
    points = batches_of_points()
    rows = [{"b": b, "x1": x1, "x2": x2} for b, (x1, x2) in enumerate(points.transpose(0, 2, 1).tolist())]
    height, low, high, centre = 320, -3.6, 4.6, 1.2
    half = f"{(high - low) / 2} * width / {height}"  # equal units on both axes at any width
    across = alt.Scale(
        domainMin=alt.ExprRef(f"{centre} - {half}"), domainMax=alt.ExprRef(f"{centre} + {half}"), nice=False
    )
    up = alt.Scale(domain=[low, high], nice=False)

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", scale=across, title="feature 1", axis=alt.Axis(tickMinStep=1))

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", scale=up, title="feature 2", axis=alt.Axis(tickMinStep=1))

    every, first = alt.Chart(), alt.Chart().transform_filter("datum.i == 1")
    diamond = alt.condition("datum.i == 1", alt.value("diamond"), alt.value("circle"))
    marked = alt.condition("datum.i == 1", alt.value(MARKED), alt.value(OUTPUT))

    def size(of_others: int) -> dict:
        return alt.condition("datum.i == 1", alt.value(110), alt.value(of_others))

    raw = every.mark_point(filled=False, color=INPUT, opacity=0.6, clip=True).encode(
        x("x1"), y("x2"), shape=diamond, size=size(20)
    )
    moved = every.mark_point(opacity=0.9, clip=True).encode(
        x("p1"), y("p2"), shape=diamond, size=size(36), color=marked
    )
    ellipse = every.mark_line(
        interpolate="cardinal-closed", color=OUTPUT, strokeWidth=1.6, filled=False, clip=True
    ).encode(x("e1"), y("e2"), order="i:Q")
    box = first.mark_rect(
        fillOpacity=0, stroke="currentColor", strokeDash=[5, 4], strokeWidth=1.2, clip=True
    ).encode(x("left"), alt.X2("right"), y("low"), alt.Y2("high"))
    mean = first.mark_point(shape="cross", size=110, color="currentColor", clip=True)
    mean = mean.encode(x("m1"), y("m2"))

    def line(field: str, above: int, **style) -> alt.Chart:
        return first.mark_text(align="left", **style).encode(
            x=alt.value(0), y=alt.value(-above), text=f"{field}:N"
        )

    words = line("step", 46, fontSize=13, fontWeight="bold"), line("means", 28), line("spreads", 11)
    chart = alt.layer(raw, box, ellipse, moved, mean, *words).properties(
        data=alt.Data(values=rows), width="container", height=height
    )
    chart = chart.transform_filter("datum.b == batch").transform_flatten(["x1", "x2"])
    chart = chart.transform_window(i="row_number()")
    return _with_moments(_with_normalised(chart), points.shape[1]).add_params(
        alt.param(name="stage", value=3),
        alt.param(name="whiten", value=False),
        alt.param(name="gamma", value=1.5),
        alt.param(name="beta", value=1),
        alt.param(name="log_epsilon", value=-5),
        alt.param(name="batch", value=0),
    )


def _with_normalised(chart: alt.LayerChart) -> alt.LayerChart:
    """Adds d1, d2 (centred), h1, h2 (divided), y1, y2 (scaled and shifted) and p1, p2 (at `stage`)."""
    chart = (
        chart.transform_joinaggregate(
            mu1="mean(x1)", mu2="mean(x2)", var1="variancep(x1)", var2="variancep(x2)"
        )
        .transform_calculate(d1="datum.x1 - datum.mu1", d2="datum.x2 - datum.mu2")
        .transform_calculate(
            product="datum.d1 * datum.d2",
            a="datum.var1 + pow(10, log_epsilon)",
            c="datum.var2 + pow(10, log_epsilon)",
        )
        .transform_joinaggregate(b="mean(product)")
        # Whitening multiplies by the inverse square root of [[a, b], [b, c]]: with root = sqrt(a c - b b)
        # and n = root * sqrt(a + c + 2 root), it is [[c + root, -b], [-b, a + root]] / n.
        .transform_calculate(root="sqrt(datum.a * datum.c - datum.b * datum.b)")
        .transform_calculate(n="datum.root * sqrt(datum.a + datum.c + 2 * datum.root)")
        .transform_calculate(
            white1="((datum.c + datum.root) * datum.d1 - datum.b * datum.d2) / datum.n",
            white2="((datum.a + datum.root) * datum.d2 - datum.b * datum.d1) / datum.n",
        )
        .transform_calculate(
            h1="whiten ? datum.white1 : datum.d1 / sqrt(datum.a)",
            h2="whiten ? datum.white2 : datum.d2 / sqrt(datum.c)",
        )
        .transform_calculate(y1="gamma * datum.h1 + beta", y2="datum.h2")
    )
    return chart.transform_calculate(
        **{
            f"p{k}": f"stage <= 1 ? datum.x{k} - stage * datum.mu{k}"
            f" : stage <= 2 ? (2 - stage) * datum.d{k} + (stage - 1) * datum.h{k}"
            f" : (3 - stage) * datum.h{k} + (stage - 2) * datum.y{k}"
            for k in (1, 2)
        }
    )


def _with_moments(chart: alt.LayerChart, size: int) -> alt.LayerChart:
    """Adds the moments of p1, p2, the lines that state them, and the ellipse: one vertex per point."""
    angle = f"2 * PI * datum.i / {size}"
    divided = "whiten ? 'whitened by the whole matrix' : 'divided by each standard deviation'"
    return (
        chart.transform_joinaggregate(m1="mean(p1)", m2="mean(p2)", w1="variancep(p1)", w2="variancep(p2)")
        .transform_calculate(q="(datum.p1 - datum.m1) * (datum.p2 - datum.m2)")
        .transform_joinaggregate(w12="mean(q)")
        .transform_calculate(
            s1="sqrt(datum.w1)",
            s2="sqrt(datum.w2)",
            det="sqrt(max(0, datum.w1 * datum.w2 - datum.w12 * datum.w12))",
        )
        .transform_calculate(
            correlation="datum.w12 / (datum.s1 * datum.s2)",
            trace="sqrt(datum.w1 + datum.w2 + 2 * datum.det)",
            left="datum.m1 - datum.s1",
            right="datum.m1 + datum.s1",
            low="datum.m2 - datum.s2",
            high="datum.m2 + datum.s2",
        )
        # The point mean + Cov^(1/2) (cos, sin), with the square root of a 2 x 2 matrix in closed form.
        .transform_calculate(
            e1=f"datum.m1 + ((datum.w1 + datum.det) * cos({angle}) + datum.w12 * sin({angle})) / datum.trace",
            e2=f"datum.m2 + ((datum.w2 + datum.det) * sin({angle}) + datum.w12 * cos({angle})) / datum.trace",
            step="stage == 0 ? 'the raw batch' : stage <= 1 ? 'minus the mean' : "
            f"stage <= 2 ? ({divided}) : 'feature 1 scaled by γ, shifted by β'",
            means="'mean (' + format(datum.m1, '.2f') + ', ' + format(datum.m2, '.2f') + ')'",
            spreads="'std (' + format(datum.s1, '.2f') + ', ' + format(datum.s2, '.2f') + ')   correlation '"
            " + format(datum.correlation, '.2f')",
        )
    )


def transform_steps() -> ipywidgets.VBox:
    """The chart of `transform_chart` under its sliders."""
    first = batches_of_points()[0]
    mean, std = first.mean(axis=0), first.std(axis=0)
    correlation = np.corrcoef(first.T)[0, 1]
    explorer = widgets.Explorer(
        transform_chart(),
        description=(
            f"A batch of {len(first)} points on fixed axes, with its mean, a dashed box of one standard "
            f"deviation per feature and its covariance ellipse. Raw: mean ({mean[0]:.2f}, {mean[1]:.2f}), "
            f"standard deviations {std[0]:.2f} and {std[1]:.2f}, correlation {correlation:.2f}. Subtracting "
            "the mean moves the cloud to the origin; dividing makes the box reach from −1 to 1 but keeps the "
            "correlation; whitening makes the ellipse a circle; γ and β stretch and shift feature 1."
        ),
    )
    return widgets.controls(
        explorer,
        stage=_slider("step", 3, 0, 3, 0.1),
        whiten=ipywidgets.Checkbox(description="whiten instead (ZCA)", value=False, indent=False),
        gamma=_slider("γ of feature 1", 1.5, -2, 2, 0.1),
        beta=_slider("β of feature 1", 1, -2, 2, 0.1),
        log_epsilon=_slider("log₁₀ ε", -5, -8, 1, 0.5),
        batch=_slider("random batch", 0, 0, len(batches_of_points()) - 1, 1),
    )


# --- (b) training against inference -------------------------------------------------------------------

POPULATION_MEAN, POPULATION_VARIANCE = 2.0, 2.25
FIXED_INPUT = 3.5  # one population standard deviation above the mean: its population output is 1
BATCH_SIZES = (2, 4, 8, 16, 32, 64, 128)
STEPS = 80


def batch_statistics(seed: int = 0) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Mean and biased variance of `STEPS` random batches of one feature, for every batch size."""
    rng = np.random.default_rng(seed)
    values = POPULATION_MEAN + np.sqrt(POPULATION_VARIANCE) * rng.standard_normal((STEPS, max(BATCH_SIZES)))
    return {
        m: (np.array(_rounded(values[:, :m].mean(axis=1))), np.array(_rounded(values[:, :m].var(axis=1))))
        for m in BATCH_SIZES
    }


def running_chart() -> alt.VConcatChart:
    """Batch statistics at every step, their running averages, and what both do to one fixed input.

    Params: `momentum` (weight of the new value), `batch_size` and `unbiased` (running
    variances use m/(m-1) times the batch variance, as PyTorch does; the batch itself is always divided by the
    biased one). The running averages start at 0 and 1. The recursion r <- (1 - momentum) r + momentum b is
    unrolled: r_t / (1 - momentum)^t is a cumulative sum.
    """
    rows = [
        {"m": m, "mean": mean.tolist(), "var": var.tolist()} for m, (mean, var) in batch_statistics().items()
    ]
    panels = [
        _running_panel("mean", "running_mean", "Mean", str(POPULATION_MEAN), [-1, 5]),
        _running_panel("var", "running_var", "Variance", str(POPULATION_VARIANCE), [0, 8]),
        _running_panel("train", "eval", f"Output of x = {FIXED_INPUT:g}", "1", [-1, 5], last=True),
    ]
    chart = (
        alt.vconcat(*panels, data=alt.Data(values=rows), spacing=12)
        .transform_filter("datum.m == batch_size")
        .transform_flatten(["mean", "var"])
        .transform_window(step="row_number()")
        .transform_calculate(decay="pow(1 - momentum, datum.step)")
        .transform_calculate(
            new_mean="momentum * datum.mean / datum.decay",
            new_var="momentum * datum.var * (unbiased ? datum.m / (datum.m - 1) : 1) / datum.decay",
        )
        .transform_window(sum_mean="sum(new_mean)", sum_var="sum(new_var)", frame=[None, 0])
        .transform_calculate(
            running_mean="datum.decay * datum.sum_mean",
            running_var="datum.decay * (1 + datum.sum_var)",
        )
        .transform_calculate(
            train=f"({FIXED_INPUT} - datum.mean) / sqrt(datum.var + {EPSILON})",
            eval=f"({FIXED_INPUT} - datum.running_mean) / sqrt(datum.running_var + {EPSILON})",
        )
        .add_params(
            alt.param(name="momentum", value=0.1),
            alt.param(name="batch_size", value=8),
            alt.param(name="unbiased", value=True),
        )
    )
    return charts.fit_width(chart)


def _running_panel(
    batch: str, running: str, title: str, exact: str, domain: list[float], last: bool = False
) -> alt.LayerChart:
    base = alt.Chart(height=130, width=300)
    x = alt.X(
        "step:Q",
        title="Training step" if last else None,
        scale=alt.Scale(domain=[0, STEPS], nice=False),
        axis=alt.Axis(labels=last),
    )
    axis = alt.Axis(tickCount=5, minExtent=28)
    y_scale = alt.Scale(domain=domain, nice=False)
    labels = ["batch (training)", "running (inference)", "population"]
    colour = alt.Color(
        "what:N",
        scale=alt.Scale(domain=labels, range=[MARKED, OUTPUT, INPUT]),
        legend=alt.Legend(orient="top", title=None),
    )
    dots = (
        base.transform_calculate(what=f"'{labels[0]}'")
        .mark_circle(size=26, opacity=0.8, clip=True)
        .encode(x, alt.Y(f"{batch}:Q", title=title, scale=y_scale, axis=axis), color=colour, key="step:Q")
    )
    rule = (
        base.transform_calculate(what=f"'{labels[2]}'", exact=exact)
        .mark_line(strokeDash=[6, 4], strokeWidth=2)
        .encode(x, alt.Y("exact:Q", title=title, scale=y_scale, axis=axis), color=colour)
    )
    line = (
        base.transform_calculate(what=f"'{labels[1]}'")
        .mark_line(strokeWidth=2.5, clip=True)
        .encode(x, alt.Y(f"{running}:Q", title=title, scale=y_scale, axis=axis), color=colour)
    )
    return alt.layer(dots, rule, line)


def running_statistics() -> ipywidgets.VBox:
    """The chart of `running_chart` under its sliders."""
    mean, var = batch_statistics()[8]
    explorer = widgets.Explorer(
        running_chart(),
        description=(
            f"Three panels over {STEPS} training steps: mean, variance, and the output of one fixed input. "
            f"With batches of 8 the means scatter from {mean.min():.2f} to {mean.max():.2f} around the "
            f"population's {POPULATION_MEAN:g}, the variances from {var.min():.2f} to {var.max():.2f} around "
            f"{POPULATION_VARIANCE:g}. The running averages start at 0 and 1 and approach the population: "
            "slowly for a small momentum, restlessly for a large one. The output scatters in training; at "
            "inference the running averages settle it."
        ),
    )
    return widgets.controls(
        explorer,
        momentum=_slider("momentum", 0.1, 0.01, 0.9, 0.01),
        batch_size=ipywidgets.SelectionSlider(description="batch size m", options=BATCH_SIZES, value=8),
        unbiased=ipywidgets.Checkbox(description="running variance × m/(m−1)", value=True, indent=False),
    )


# --- (c) a batch couples its items --------------------------------------------------------------------

ITEMS = (-1.6, -0.9, -0.5, 0.1, 0.6, 1.0, 1.9)


def coupling_chart() -> alt.VConcatChart:
    r"""Move one item of a batch: how far do the outputs of the others move?

    Params: `moved` (which one moves, from 1), `shift` (how far) and `inference` (fixed statistics: those of
    the unmoved batch). Above: every output before (ring) and after (disc). Below: row `moved` of the Jacobian
    at the moved batch,
    $$\frac{\partial\hat x_j}{\partial x_i}=\frac1s\Big(\delta_{ij}-\frac1m-\frac{\hat x_i\hat x_j}{m}\Big)$$
    with $s=\sqrt{\sigma^2+\epsilon}$; at inference $\delta_{ij}/s$.
    """
    x = alt.X(
        "label:O", title="Item of the batch", axis=alt.Axis(labelAngle=0), scale=alt.Scale(paddingOuter=0.3)
    )
    moved_colour = alt.condition("datum.j == moved", alt.value(MARKED), alt.value(OUTPUT))
    top = alt.Chart(height=190, width=300)
    y_scale = alt.Scale(domain=[-5, 5], nice=False)
    axis = alt.Axis(tickCount=5, minExtent=28)
    title = "Output, before ○ and after ●"
    # |x_hat| <= sqrt(m - 1), with equality when all the other items coincide.
    limit = float(np.sqrt(len(ITEMS) - 1))
    bound = (
        top.transform_filter("datum.j == 1")
        .transform_calculate(limits=f"[{-limit}, {limit}]")
        .transform_flatten(["limits"])
        .mark_rule(strokeDash=[5, 4], strokeWidth=1.2)
        .encode(y=alt.Y("limits:Q", title=title, scale=y_scale, axis=axis))
    )
    path = top.mark_rule(strokeWidth=2, opacity=0.8, clip=True).encode(
        x=x, y=alt.Y("before:Q", title=title, scale=y_scale, axis=axis), y2="after:Q", color=moved_colour
    )
    before = top.mark_point(filled=False, size=60, color=INPUT, opacity=1, strokeWidth=1.6, clip=True).encode(
        x, alt.Y("before:Q", title=title, scale=y_scale, axis=axis)
    )
    after = top.mark_circle(size=80, opacity=1, clip=True).encode(
        x, alt.Y("after:Q", title=title, scale=y_scale, axis=axis), color=moved_colour
    )
    bottom = alt.Chart(height=120, width=300)
    slope_y = alt.Y(
        "slope:Q",
        title="Slope of the output",
        scale=alt.Scale(domain=[-0.6, 1.2], nice=False),
        axis=alt.Axis(tickCount=5, minExtent=28),
    )
    bars = bottom.mark_bar(width={"band": 0.6}, clip=True).encode(x, slope_y, color=moved_colour)
    zero = bottom.mark_rule(strokeWidth=1, opacity=0.6).encode(y=alt.datum(0))
    numbers = bottom.mark_text(fontSize=11, clip=True).encode(
        x, alt.Y("place:Q", title="Slope of the output"), text=alt.Text("slope:Q", format=".2f")
    )
    chart = (
        alt.vconcat(
            alt.layer(bound, path, before, after),
            alt.layer(bars, zero, numbers),
            data=alt.Data(values=[{"j": j, "x0": x0} for j, x0 in enumerate(ITEMS, start=1)]),
            spacing=12,
        )
        .transform_calculate(x="datum.x0 + (datum.j == moved ? shift : 0)", label="'' + datum.j")
        .transform_joinaggregate(
            m="count()", mean0="mean(x0)", var0="variancep(x0)", mean="mean(x)", var="variancep(x)"
        )
        .transform_calculate(before=f"(datum.x0 - datum.mean0) / sqrt(datum.var0 + {EPSILON})")
        .transform_calculate(
            s=f"sqrt((inference ? datum.var0 : datum.var) + {EPSILON})",
            after=f"(datum.x - (inference ? datum.mean0 : datum.mean))"
            f" / sqrt((inference ? datum.var0 : datum.var) + {EPSILON})",
        )
        .transform_calculate(own="datum.j == moved ? datum.after : 0")
        .transform_joinaggregate(x_hat="sum(own)")
        .transform_calculate(
            slope="((datum.j == moved ? 1 : 0)"
            " - (inference ? 0 : (1 + datum.x_hat * datum.after) / datum.m)) / datum.s"
        )
        .transform_calculate(place="datum.slope + (datum.slope < 0 ? -0.1 : 0.1)")
        .add_params(
            alt.param(name="moved", value=7),
            alt.param(name="shift", value=2),
            alt.param(name="inference", value=False),
        )
    )
    return charts.fit_width(chart)


def coupling() -> ipywidgets.VBox:
    """The chart of `coupling_chart` under its sliders."""
    before = np.array(ITEMS)
    moved = before + 2.0 * (np.arange(len(ITEMS)) == 6)
    shifts = (moved - moved.mean()) / moved.std() - (before - before.mean()) / before.std()
    explorer = widgets.Explorer(
        coupling_chart(),
        description=(
            f"Outputs of a batch of {len(ITEMS)} items before and after one input moves, and the slopes of "
            f"all outputs with respect to that input. In training, moving item {len(ITEMS)} up by 2 changes "
            f"the other outputs by {shifts[:-1].min():.2f} to {shifts[:-1].max():.2f}; no output can pass "
            f"the dashed lines at plus and minus {np.sqrt(len(ITEMS) - 1):.2f}. At inference only the moved "
            "item's output changes."
        ),
    )
    return widgets.controls(
        explorer,
        moved=_slider("item to move", len(ITEMS), 1, len(ITEMS), 1),
        shift=_slider("move it by", 2, -3, 3, 0.1),
        inference=ipywidgets.Checkbox(description="inference (fixed statistics)", value=False, indent=False),
    )


# --- what a channel's statistics average over ---------------------------------------------------------


def channel_chart(x: np.ndarray) -> alt.LayerChart:
    """A small batch of images, (N, C, H, W), as squares: every channel has its colour, mean and variance."""
    images, channels, rows, columns = x.shape
    pixels = [
        {
            "left": c * (columns + 1) + w,
            "right": c * (columns + 1) + w + 0.94,
            "top": n * (rows + 0.6) + h,
            "bottom": n * (rows + 0.6) + h + 0.94,
            "channel": f"channel {c + 1}",
            "value": float(f"{x[n, c, h, w]:.5g}"),
        }
        for n, c, h, w in np.ndindex(x.shape)
    ]
    mean, var = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    words = [
        {"middle": c * (columns + 1) + columns / 2, "name": f"channel {c + 1}", "text": text, "above": above}
        for c in range(channels)
        for text, above in (
            (f"μ = {mean[c]:.2f}".replace("-", "−"), -1.15),
            (f"σ² = {var[c]:.2f}", -0.45),
        )
    ]
    across = alt.Scale(domain=[-0.2, channels * (columns + 1) - 0.8], nice=False)
    down = alt.Scale(domain=[-1.6, images * (rows + 0.6)], nice=False, reverse=True)
    squares = (
        alt.Chart(alt.Data(values=pixels))
        .mark_rect(stroke="currentColor", strokeOpacity=0.25, strokeWidth=0.5)
        .encode(
            x=alt.X("left:Q", scale=across, axis=None),
            x2="right:Q",
            y=alt.Y("top:Q", scale=down, axis=None),
            y2="bottom:Q",
            color=alt.Color("channel:N", scale=alt.Scale(range=[MARKED, OUTPUT, "#00a596"]), legend=None),
            fillOpacity=alt.FillOpacity("value:Q", scale=alt.Scale(range=[0.12, 1]), legend=None),
        )
    )
    text = (
        alt.Chart(alt.Data(values=words))
        .mark_text(fontSize=12)
        .encode(x=alt.X("middle:Q", scale=across, axis=None), y=alt.Y("above:Q", scale=down), text="text:N")
    )
    stated = ", ".join(f"channel {c + 1} {mean[c]:.2f} and {var[c]:.2f}" for c in range(channels))
    return alt.layer(squares, text).properties(
        width="container",
        height=260,
        description=(
            f"{images} images, one below the other, each as {channels} grids of {rows} by {columns} squares, "
            "one grid and one colour per channel. Mean and variance over all images and positions: "
            f"{stated}."
        ),
    )
