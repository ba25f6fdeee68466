"""Figures of the book: one theme, one fixed colour and dash per arm, one function per kind of figure.

Every function takes a tidy `pandas.DataFrame` (usually `Record.frame(...)`) and returns an Altair chart
whose `description`, computed from the same numbers, is its alt text. Ink, grid and labels are `currentColor`
and the background is transparent, so one SVG reads in the light and in the dark page. No torch here.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import altair as alt
import numpy as np
import pandas as pd


class Arm(NamedTuple):
    """How one arm of an experiment is drawn everywhere in the book."""

    label: str
    colour: str
    dash: tuple[int, ...]


# The colours lie in a band of relative luminance that reads on white and on #121212, and were chosen to
# stay apart under simulated protanopia and deuteranopia (tests/test_charts.py measures both). In
# greyscale the dash tells the arms apart.
ARMS: dict[str, Arm] = {
    "standard": Arm("Standard", "#d25a00", (7, 3)),
    # Parts of batch norm: its start alone, and its forward pass alone.  Beside no other of these colours.
    "start": Arm("Normalised once", "#00a596", (8, 2, 2, 2)),
    "forward": Arm("BN, forward only", "#4b4bff", (5, 3)),
    "bn": Arm("Batch norm", "#0078c3", (1, 0)),
    # Batch norm too, started differently: the same colour, another dash.
    "bn_small_gamma": Arm("BN, γ from 0.1", "#0078c3", (2, 3)),
    "bn_after_4": Arm("BN after 4th conv", "#00a596", (2, 2)),
    "noisy_bn": Arm("Noisy batch norm", "#4b4bff", (10, 3, 2, 3)),
    # Noise after batch norm too, of another kind: the same colour, another dash.
    "stationary_bn": Arm("BN, stationary noise", "#4b4bff", (3, 2)),
    "noisy_standard": Arm("Noisy standard", "#a54b5a", (4, 4)),
    "l1": Arm("L1 norm", "#6978ff", (12, 4)),
    "l2": Arm("L2 norm", "#b4875a", (6, 2, 2, 2, 2, 2)),
    "linf": Arm("L∞ norm", "#0087a5", (1, 3)),
    # Not the paper's: the scale is that of the centred values. The same colours, other dashes.
    "l1_centred": Arm("L1, centred", "#6978ff", (2, 2, 8, 2)),
    "linf_centred": Arm("L∞, centred", "#0087a5", (8, 3)),
    # Batch norm's parametrisation with a step and a length of its own; never beside `bn_after_4`.
    "gdnp": Arm("GDNP", "#00a596", (9, 2)),
    "gdnp_printed": Arm("GDNP, h as printed", "#00a596", (3, 3, 1, 3)),
    # Networks with skip connections: the colour of the same norm without, another dash.
    "bn_residual": Arm("BN with skips", "#0078c3", (6, 2, 1, 2)),
    "residual": Arm("Skips, no norm", "#d25a00", (1, 2, 6, 2)),
    "layer": Arm("Layer norm", "#00a596", (6, 3)),  # never beside `bn_after_4` or `gdnp`
    # The other alternatives, in colours of arms that they never stand beside.
    "group": Arm("Group norm", "#a54b5a", (5, 2)),
    "batch_renorm": Arm("Batch renorm", "#4b4bff", (3, 1)),
    "instance": Arm("Instance norm", "#b4875a", (2, 1)),
    "rms": Arm("RMSNorm", "#0087a5", (7, 2, 2, 2)),
    "weight": Arm("Weight norm", "#6978ff", (4, 2)),
    "skipinit": Arm("SkipInit", "#0087a5", (4, 1)),
    "fixup": Arm("Fixup", "#b4875a", (9, 4)),
}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK = "currentColor"
HEIGHT = 260


@alt.theme.register("bnlib", enable=False)
def theme() -> alt.theme.ThemeConfig:
    """The book's Altair theme; `bnlib.notebook.setup` switches it on."""
    quiet = {"domainColor": INK, "domainOpacity": 0.45, "tickColor": INK, "tickOpacity": 0.45}
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 13}
    return {
        "config": {
            "background": "transparent",
            "font": FONT,
            "view": {"stroke": None, "continuousHeight": HEIGHT, "discreteHeight": HEIGHT},
            "axis": {
                **quiet,
                **text,
                "gridColor": INK,
                "gridOpacity": 0.14,
                "titleFontWeight": "normal",
                "titlePadding": 8,
                "labelOverlap": "greedy",
                "labelSeparation": 6,
            },
            "header": {**text, "titleFontWeight": "normal", "labelFontWeight": "bold", "labelPadding": 4},
            "legend": {
                **text,
                "orient": "top",
                "direction": "horizontal",
                "title": None,
                "symbolType": "stroke",
                "symbolStrokeWidth": 2.5,
                "symbolOpacity": 1,  # not that of the faint band
                "symbolSize": 600,
                "labelLimit": 0,
                "columnPadding": 14,
                # A phone has room for two entries in a row.
                "columns": {"expr": "max(1, floor((containerSize()[0] || 560) / 165))"},
            },
            "title": {
                "color": INK,
                "subtitleColor": INK,
                "fontSize": 14,
                "fontWeight": "bold",
                "anchor": "start",
            },
            # A screen reader gets the description of the figure and its axes, not thousands of marks.
            "mark": {"aria": False},
            "line": {"strokeWidth": 2.5, "strokeCap": "butt"},
            "rule": {"color": INK, "opacity": 0.6},
            "text": {"color": INK, "fontSize": 12},
            "point": {"size": 45, "filled": True},
        }
    }


# --- numbers ---


def rounded(frame: pd.DataFrame, digits: int = 5) -> pd.DataFrame:
    """Copy of `frame` with floating-point columns rounded to `digits` significant digits (not finite:
    missing).

    A figure cannot show more, pages stay small, and re-execution on another machine gives the same bytes.
    """
    out = frame.copy()
    for name in out.columns:
        if pd.api.types.is_float_dtype(out[name]):
            out[name] = significant(out[name].to_numpy(dtype=float), digits)
    return out


def significant(values: np.ndarray, digits: int = 5) -> np.ndarray:
    """`values` rounded to `digits` significant decimal digits; non-finite values become NaN."""
    return np.array([float(f"{v:.{digits}g}") if np.isfinite(v) else np.nan for v in np.ravel(values)])


def spell(value: float, digits: int = 3) -> str:
    """A number as prose reads it: 3 significant digits, no needless exponent, a true minus sign."""
    if not np.isfinite(value):
        return "not finite"
    plain = 1e-3 <= abs(value) < 1e5 or value == 0
    if plain:
        # Whole numbers keep all their digits: 15000 steps, not 1.5e4.
        exact = float(f"{value:.{digits}g}") if abs(value) < 10**digits else round(value)
        word = f"{exact:.10g}"
    else:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        word = f"{float(mantissa):g}e{int(exponent)}"
    return word.replace("-", "−")


def arm_labels(frame: pd.DataFrame, arms: Mapping[str, Arm] = ARMS, colour: str = "arm") -> list[str]:
    """Labels of the arms present in `frame`, in the order of `arms`. An unknown arm raises ValueError."""
    present = list(pd.unique(frame[colour]))
    unknown = [name for name in present if name not in arms]
    if unknown:
        raise ValueError(
            f"Unknown arm {unknown[0]!r}: use one of {', '.join(arms)}, or pass arms={{name: Arm(...)}}."
        )
    return [arms[name].label for name in arms if name in present]


def arm_scales(
    labels: Sequence[str], arms: Mapping[str, Arm] = ARMS, legend: alt.Legend | None = None
) -> dict[str, alt.Color | alt.StrokeDash]:
    """Encodings `color` and `strokeDash` of a column `arm` that holds `labels`: each arm as in every figure.

    No legend unless one is given.
    """
    by_label = {arm.label: arm for arm in arms.values()}
    chosen = [by_label[label] for label in labels]
    # The domains are the order. `sort` would say it again, and Vega-Lite would number every row for it.
    colours = alt.Scale(domain=list(labels), range=[arm.colour for arm in chosen])
    dashes = alt.Scale(domain=list(labels), range=[list(arm.dash) for arm in chosen])
    return {
        "color": alt.Color("arm:N", scale=colours, legend=legend, title=None),
        "strokeDash": alt.StrokeDash("arm:N", scale=dashes, legend=legend, title=None),
    }


def packed(values: Iterable[float], number: str = ".4g", missing: str = "×") -> str:
    """A series as one string, which a chart splits: in a notebook's JSON a list takes a line per number.

    `missing` stands for a value that is not finite.
    """
    return " ".join(f"{v:{number}}" if math.isfinite(v) else missing for v in values)


def _require(frame: pd.DataFrame, *columns: str | None) -> None:
    missing = [c for c in columns if c is not None and c not in frame.columns]
    if missing:
        raise ValueError(
            f"The frame has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}."
        )
    if frame.empty:
        raise ValueError("The frame has no rows: check the filter that selects the metric.")


def _scale(log: bool, domain: Sequence[float] | None, nice: bool = True) -> alt.Scale:
    options: dict = {"type": "log", "nice": nice} if log else {"zero": False, "nice": nice}
    if domain is not None:
        options.update(domain=list(domain), nice=False)
    return alt.Scale(**options)


def _log_axis(values: pd.Series, domain: Sequence[float] | None) -> alt.Axis:
    """Over two decades or more, label and rule the powers of ten only: the lines between them are noise."""
    positive = values[values > 0]
    low, high = domain if domain is not None else (positive.min(), positive.max())
    if not (low > 0 and high / low >= 100):
        return alt.Axis(format="~g", tickCount=5)
    powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    return alt.Axis(format="~g", values=powers[:: math.ceil(len(powers) / 7)])


# --- curves ---


def curves(
    frame: pd.DataFrame,
    y: str = "value",
    x: str = "step",
    *,
    title: str | None = None,
    y_title: str,
    x_title: str = "Step",
    colour: str = "arm",
    log_x: bool = False,
    log_y: bool = False,
    x_domain: Sequence[float] | None = None,
    y_domain: Sequence[float] | None = None,
    height: int = HEIGHT,
    arms: Mapping[str, Arm] = ARMS,
) -> alt.LayerChart:
    """One panel of curves against `x`: the median over seeds thick, every seed thin, min to max as a band.

    `frame` has the columns `x`, `y`, `colour` (arm names, keys of `arms`) and, if there are several runs,
    `seed`. A median is drawn only where every seed of its arm has a finite value: a median over the
    survivors would flatter an arm whose runs diverge. Missing columns, no rows or an unknown arm raise
    ValueError.
    """
    table = _curve_table(frame, y, x, colour, None, arms)
    chart = _curve_layers(
        table,
        arms,
        title_x=x_title,
        title_y=y_title,
        log_x=log_x,
        log_y=log_y,
        x_domain=x_domain,
        y_domain=y_domain,
    )
    chart = chart.properties(
        width="container",
        height=height,
        autosize=_FIT,
        description=describe_curves(
            frame, y, x, y_title=y_title, x_title=x_title, colour=colour, title=title, arms=arms
        ),
    )
    return chart.properties(title=title) if title else chart


def small_multiples(
    frame: pd.DataFrame,
    facet: str,
    y: str = "value",
    x: str = "step",
    *,
    title: str | None = None,
    y_title: str,
    x_title: str = "Step",
    facet_title: str | None = None,
    facet_labels: Mapping | None = None,
    colour: str = "arm",
    log_x: bool = False,
    log_y: bool = False,
    x_domain: Sequence[float] | None = None,
    y_domain: Sequence[float] | None = None,
    independent_y: bool = False,
    panel: int = 260,
    height: int = 170,
    arms: Mapping[str, Arm] = ARMS,
) -> alt.FacetChart:
    """`curves` once per value of the column `facet` (a layer, a learning rate), on the same axes.

    Panels are about `panel` pixels wide and wrap to the width of the page. `facet_labels` maps a value of
    `facet` to the words above its panel; the panels keep the order of `facet_labels`, or else the sorted
    values. `independent_y` gives each panel its own y axis: say so in the caption.
    """
    table = _curve_table(frame, y, x, colour, facet, arms)
    values = list(facet_labels) if facet_labels is not None else sorted(pd.unique(frame[facet]))
    words = {
        v: str(facet_labels[v]) if facet_labels is not None else _facet_word(facet_title or facet, v)
        for v in values
    }
    absent = [v for v in pd.unique(frame[facet]) if v not in words]
    if absent:
        raise ValueError(f"facet_labels has no words for {facet} = {absent[0]!r}.")
    table["panel"] = [words[v] for v in table["panel"]]
    chart = _curve_layers(
        table,
        arms,
        title_x=x_title,
        title_y=y_title,
        log_x=log_x,
        log_y=log_y,
        x_domain=x_domain,
        y_domain=y_domain,
    )
    chart = (
        chart.properties(width=panel, height=height)
        .facet(alt.Facet("panel:N", sort=list(words.values()), title=None), columns=2)
        .resolve_axis(x="independent", y="independent")
        .properties(
            description=describe_curves(
                frame,
                y,
                x,
                y_title=y_title,
                x_title=x_title,
                colour=colour,
                title=title,
                facet=facet,
                words=words,
                arms=arms,
            ),
        )
    )
    if independent_y:
        chart = chart.resolve_scale(y="independent")
    return responsive(chart.properties(title=title) if title else chart, panel, len(values))


_FIT = alt.AutoSizeParams(type="fit-x", contains="padding")


def _facet_word(name: str, value: object) -> str:
    return f"{name} {spell(value)}" if isinstance(value, int | float | np.number) else str(value)


def fit_width(chart: alt.VConcatChart, gutter: int = 62) -> alt.VConcatChart:
    """Make the panels of a column of charts follow the width of the page; `gutter`: pixels beside a panel.

    Vega-Lite knows `width="container"` for single views only, so the compiled Vega is patched: the panels'
    common width becomes a function of the container's, as Vega-Lite writes it for a single view.
    """
    width = f"max(200, (containerSize()[0] || 600) - {gutter})"
    signal = {"name": "width", "init": width, "on": [{"events": "window:resize", "update": width}]}
    patch = [{"op": "remove", "path": "/width"}, {"op": "add", "path": "/signals/-", "value": signal}]
    return chart.properties(usermeta={"embedOptions": {"patch": patch}})


def responsive(chart: alt.FacetChart, panel: int, panels: int) -> alt.FacetChart:
    """Make a wrapped facet follow the width of the page: as many columns of about `panel` pixels as fit.

    Three panels stand in one row or in one column: two columns would leave a hole. Vega-Lite knows
    `width="container"` for single views only, so the compiled Vega is patched: the panel's width and the
    number of columns become signals of the container's width.
    """
    room = "(containerSize()[0] || 600)"
    gutter = 76  # y axis with its title, and the gap to the next panel
    if panels == 3:
        columns = f"({room} < {3 * (min(panel, 150) + gutter)} ? 1 : 3)"
    else:
        columns = f"clamp(floor({room} / {panel + gutter}), 1, {panels})"
    width = f"floor({room} / {columns}) - {gutter}"
    patch = [
        {"op": "test", "path": "/signals/0/name", "value": "child_width"},
        {
            "op": "replace",
            "path": "/signals/0",
            "value": {
                "name": "child_width",
                "update": width,
                "on": [{"events": "window:resize", "update": width}],
            },
        },
        {"op": "replace", "path": "/layout/columns", "value": {"signal": f"{columns} + 0 * child_width"}},
    ]
    # Without `resize` the picture keeps the size that it had at first, and a window that grows cuts it off.
    autosize = alt.AutoSizeParams(type="pad", resize=True)
    return chart.properties(autosize=autosize, usermeta={"embedOptions": {"patch": patch}})


def _curve_table(
    frame: pd.DataFrame, y: str, x: str, colour: str, facet: str | None, arms: Mapping[str, Arm]
) -> pd.DataFrame:
    _require(frame, y, x, colour, facet)
    arm_labels(frame, arms, colour)
    table = pd.DataFrame(
        {
            "arm": [arms[name].label for name in frame[colour]],
            "seed": frame["seed"].to_numpy() if "seed" in frame.columns else 0,
            "x": frame[x].to_numpy(dtype=float),
            "y": frame[y].to_numpy(dtype=float),
        }
    )
    group = ["arm"]
    if facet is not None:
        table["panel"] = frame[facet].to_numpy()
        group.append("panel")
    if table.duplicated([*group, "seed", "x"]).any():
        raise ValueError(
            f"Several rows share one arm, seed{', ' + facet if facet else ''} and {x}: "
            "select one metric, layer and setting first."
        )
    table = rounded(table)
    seeds = table.groupby(group)["seed"].transform("nunique")
    finite = table["y"].notna().groupby([table[c] for c in [*group, "x"]]).transform("sum")
    table["all"] = (finite == seeds).astype(int)
    if (table["x"] == table["x"].round()).all():
        table["x"] = table["x"].astype(int)
    return table


def _curve_layers(
    table: pd.DataFrame,
    arms: Mapping[str, Arm],
    *,
    title_x: str,
    title_y: str,
    log_x: bool,
    log_y: bool,
    x_domain: Sequence[float] | None,
    y_domain: Sequence[float] | None,
) -> alt.LayerChart:
    labels = {arm.label for arm in arms.values() if arm.label in set(table["arm"])}
    present = [arm.label for arm in arms.values() if arm.label in labels]
    scales = arm_scales(present, arms, alt.Legend() if len(present) > 1 else None)
    colour, dash = scales["color"], scales["strokeDash"]
    thousands = "datum.value >= 1000 ? format(datum.value / 1000, '~g') + 'k' : datum.label"
    ticks = alt.Axis(labelExpr=thousands) if table["x"].abs().max() >= 10_000 else alt.Axis()
    if table["x"].dtype.kind == "i":
        ticks.tickMinStep = 1
    grid = _log_axis(table["y"], y_domain) if log_y else alt.Axis()
    across = alt.X("x:Q", title=title_x, scale=_scale(log_x, x_domain, nice=False), axis=ticks)
    up = _scale(log_y, y_domain)
    base = alt.Chart(table)
    middle = (
        base.transform_filter("datum.all == 1")
        .mark_line(clip=True)
        .encode(
            x=across,
            y=alt.Y("median(y):Q", title=title_y, scale=up, axis=grid),
            color=colour,
            strokeDash=dash,
        )
    )
    if table["seed"].nunique() == 1:
        return alt.layer(middle)
    band = (
        base.transform_filter("datum.all == 1")
        .mark_area(opacity=0.16, clip=True)
        .encode(
            x=across, y=alt.Y("min(y):Q", title=title_y, scale=up, axis=grid), y2="max(y):Q", color=colour
        )
    )
    seeds = base.mark_line(strokeWidth=0.8, opacity=0.55, clip=True).encode(
        x=across, y=alt.Y("y:Q", title=title_y, scale=up, axis=grid), color=colour, detail="seed:N"
    )
    return alt.layer(band, seeds, middle)


# --- other kinds of figure ---


def heatmap(
    frame: pd.DataFrame,
    x: str,
    y: str,
    value: str = "value",
    *,
    x_title: str,
    y_title: str,
    value_title: str,
    title: str | None = None,
    number: str = ".3~g",
    log: bool = False,
    domain: Sequence[float] | None = None,
    height: int | None = None,
) -> alt.LayerChart:
    """Ordered x and y as cells: the median over seeds as colour and as text, "×" where a run diverged.

    Dark blue is low and yellow high in both themes (cividis). A cell is "×" as soon as one of its seeds
    has no finite value. `log` makes the colour scale logarithmic (all values must be positive), `domain`
    fixes its ends so that two heatmaps can be compared. Missing columns, no rows, or a non-positive value
    under `log` raise ValueError.
    """
    _require(frame, x, y, value)
    cells = _cells(frame, x, y, value)
    finite = cells["value"].dropna()
    low, high = domain if domain is not None else (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    if log and low <= 0:
        raise ValueError("A logarithmic heatmap needs positive values: choose another scale or domain.")
    position = _unit(cells["value"].to_numpy(dtype=float), low, high, log)
    # White text on the dark half of cividis, black on the light half: at least 4.2 : 1 everywhere.
    cells["dark"] = (position < 0.47).astype(int)
    across = alt.X("x:O", title=x_title, sort=_order(cells["x"]), axis=alt.Axis(labelAngle=0, grid=False))
    up = alt.Y("y:O", title=y_title, sort=_order(cells["y"])[::-1], axis=alt.Axis(grid=False))
    scale = alt.Scale(type="log" if log else "linear", scheme="cividis", domain=[float(low), float(high)])
    if not log:
        scale.clamp = True
    base = alt.Chart(cells).encode(x=across, y=up)
    fill = (
        base.transform_filter("isValid(datum.value)")
        .mark_rect()
        .encode(
            color=alt.Color("value:Q", scale=scale, legend=None),
            tooltip=[
                alt.Tooltip("x:O", title=x_title),
                alt.Tooltip("y:O", title=y_title),
                alt.Tooltip("value:Q", title=value_title, format=number),
            ],
        )
    )
    text = (
        base.transform_filter("isValid(datum.value)")
        .mark_text(fontSize=12)
        .encode(
            text=alt.Text("value:Q", format=number),
            color=alt.condition("datum.dark == 1", alt.value("#ffffff"), alt.value("#000000")),
        )
    )
    lost = base.transform_filter("!isValid(datum.value)")
    frame_mark = lost.mark_rect(fillOpacity=0, stroke=INK, strokeOpacity=0.4, strokeDash=[3, 3])
    cross = lost.mark_text(fontSize=16, text="×")
    rows = cells["y"].nunique()
    chart = alt.layer(fill, frame_mark, text, cross).properties(
        width="container",
        height=height or max(90, 34 * rows),
        autosize=_FIT,
        description=describe_heatmap(
            frame, x, y, value, x_title=x_title, y_title=y_title, value_title=value_title, title=title
        ),
    )
    return chart.properties(title=title) if title else chart


def ridges(
    frame: pd.DataFrame,
    x: str = "bin",
    y: str = "density",
    row: str = "step",
    *,
    x_title: str,
    row_title: str,
    title: str | None = None,
    colour: str = "arm",
    overlap: float = 2.2,
    x_domain: Sequence[float] | None = None,
    panel: int = 260,
    height: int | None = None,
    arms: Mapping[str, Arm] = ARMS,
) -> alt.FacetChart:
    """Histograms one above the other, the first `row` at the top, one panel per arm, on the same axes.

    `frame` has one row per bin: `x` the bin's centre, `y` its density, `row` what orders the histograms
    (a step, a layer), `colour` the arm. All densities share one scale; the highest reaches `overlap` rows
    up. Missing columns, no rows, an unknown arm or two values for one bin raise ValueError.
    """
    _require(frame, x, y, row, colour)
    present = arm_labels(frame, arms, colour)
    if frame.duplicated([colour, row, x]).any():
        raise ValueError(f"Several rows share one arm, {row} and {x}: select one seed and layer first.")
    rows = sorted(pd.unique(frame[row]))
    table = rounded(
        pd.DataFrame(
            {
                "arm": [arms[name].label for name in frame[colour]],
                "row": [rows.index(r) for r in frame[row]],
                "x": frame[x].to_numpy(dtype=float),
                "up": overlap * frame[y].to_numpy(dtype=float) / max(float(frame[y].max()), 1e-300),
            }
        )
    )
    table["base"] = -table["row"]
    table["top"] = significant(table["base"] + table["up"])
    table = table.sort_values(["arm", "row", "x"], kind="stable").drop(columns=["up"])
    colours = arm_scales(present, arms, alt.Legend() if len(present) > 1 else None)["color"]
    colours.legend = None
    names = [str(r) if isinstance(r, str) else spell(r) for r in rows]
    every = max(1, math.ceil(len(rows) / 10))
    labels = f"({json.dumps(names, ensure_ascii=False)})[-datum.value]"
    up = alt.Y(
        "top:Q",
        title=row_title,
        scale=alt.Scale(domain=[1 - len(rows), 1.05 * overlap], nice=False, zero=False),
        axis=alt.Axis(
            values=[-i for i in range(0, len(rows), every)], labelExpr=labels, grid=False, ticks=False
        ),
    )
    across = alt.X(
        "x:Q", title=x_title, scale=_scale(False, x_domain, nice=False), axis=alt.Axis(tickCount=5)
    )
    # One layer per row, drawn from the top down, so that a nearer histogram covers the one behind it.
    area = (
        alt.Chart(table)
        .mark_area(fillOpacity=0.35, strokeWidth=1.2, clip=True, line=True, interpolate="monotone")
        .encode(x=across, y=up, y2="base:Q", color=colours, detail="row:O")
    )
    chart = (
        area.properties(width=panel, height=height or 60 + 18 * len(rows))
        .facet(alt.Facet("arm:N", sort=present, title=None), columns=2)
        .resolve_axis(x="independent", y="independent")
        .properties(
            description=describe_ridges(
                frame, x, y, row, x_title=x_title, row_title=row_title, colour=colour, title=title, arms=arms
            )
        )
    )
    return responsive(chart.properties(title=title) if title else chart, panel, len(present))


def dots(
    frame: pd.DataFrame,
    value: str = "value",
    *,
    y_title: str,
    title: str | None = None,
    colour: str = "arm",
    log_y: bool = False,
    y_domain: Sequence[float] | None = None,
    threshold: float | None = None,
    height: int = HEIGHT,
    arms: Mapping[str, Arm] = ARMS,
) -> alt.LayerChart:
    """One dot per arm and seed; a line joins the dots of one seed, a bar marks each arm's median.

    The lines show the paired differences, which the medians hide. A run without a finite value has no dot
    (the alt text counts it), and its arm has no median. `threshold` draws a dashed rule. Missing columns,
    no rows, an unknown arm or two values for one arm and seed raise ValueError.
    """
    _require(frame, value, "seed", colour)
    present = arm_labels(frame, arms, colour)
    if frame.duplicated([colour, "seed"]).any():
        raise ValueError("Several rows share one arm and seed: select one metric, layer and setting first.")
    table = rounded(
        pd.DataFrame(
            {
                "arm": [arms[name].label for name in frame[colour]],
                "seed": frame["seed"].to_numpy(),
                "y": frame[value].to_numpy(dtype=float),
            }
        )
    )
    table["all"] = table["y"].notna().groupby(table["arm"]).transform("all").astype(int)
    colours = arm_scales(present, arms, alt.Legend() if len(present) > 1 else None)["color"]
    colours.legend = None
    axis = _log_axis(table["y"], y_domain) if log_y else alt.Axis()
    up = alt.Y("y:Q", title=y_title, scale=_scale(log_y, y_domain), axis=axis)
    lines = json.dumps({label: textwrap.wrap(label, 10) for label in present}, ensure_ascii=False)
    words = alt.Axis(labelAngle=0, grid=False, labelExpr=f"({lines})[datum.value]", labelOverlap=False)
    across = alt.X("arm:N", title=None, sort=present, axis=words, scale=alt.Scale(padding=0.5))
    base = alt.Chart(table).encode(x=across)
    pairs = base.mark_line(color=INK, strokeWidth=1, opacity=0.4).encode(y=up, detail="seed:N")
    each = base.mark_point(size=55, opacity=0.9).encode(
        y=up,
        color=colours,
        tooltip=[
            alt.Tooltip("arm:N", title="arm"),
            alt.Tooltip("seed:N", title="seed"),
            alt.Tooltip("y:Q", title=y_title),
        ],
    )
    median = (
        base.transform_filter("datum.all == 1")
        .mark_tick(thickness=3, width=44)
        .encode(
            y=alt.Y("median(y):Q", title=y_title, scale=_scale(log_y, y_domain), axis=axis), color=colours
        )
    )
    layers = [pairs, median, each]
    if threshold is not None:
        rule = alt.Chart(pd.DataFrame({"threshold": [float(threshold)]}))
        layers.append(
            rule.mark_rule(strokeDash=[5, 4]).encode(
                y=alt.Y("threshold:Q", title=y_title, scale=_scale(log_y, y_domain), axis=axis)
            )
        )
    chart = alt.layer(*layers).properties(
        width="container",
        height=height,
        autosize=_FIT,
        description=describe_dots(
            frame, value, y_title=y_title, colour=colour, title=title, threshold=threshold, arms=arms
        ),
    )
    return chart.properties(title=title) if title else chart


def _cells(frame: pd.DataFrame, x: str, y: str, value: str) -> pd.DataFrame:
    rows = []
    for (a, b), part in frame.groupby([x, y], sort=True):
        numbers = part[value].to_numpy(dtype=float)
        good = bool(np.isfinite(numbers).all())
        rows.append({"x": a, "y": b, "value": float(np.median(numbers)) if good else np.nan})
    return rounded(pd.DataFrame(rows))


def _order(values: pd.Series) -> list:
    return sorted(pd.unique(values).tolist())


def _unit(values: np.ndarray, low: float, high: float, log: bool) -> np.ndarray:
    """Position of `values` on the colour scale from `low` (0) to `high` (1)."""
    if log:
        values, low, high = np.log(values), np.log(low), np.log(high)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(len(values), 0.5)


# --- alt text ---


def describe_curves(
    frame: pd.DataFrame,
    y: str = "value",
    x: str = "step",
    *,
    y_title: str,
    x_title: str = "Step",
    colour: str = "arm",
    title: str | None = None,
    facet: str | None = None,
    words: Mapping | None = None,
    arms: Mapping[str, Arm] = ARMS,
) -> str:
    """Alt text of curves: what is drawn, both ranges, and each arm's last median over its seeds."""
    _require(frame, y, x, colour, facet)
    values = frame[y].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    head = f"{title}. " if title else ""
    axes = f"{y_title} against {x_title.lower()} ({_range(frame[x])})"
    if len(values) == 0:
        return f"{head}Curves of {axes}; no value is finite."
    text = [f"{head}Curves of {axes}; values from {_range(values)}{_seed_words(frame)}."]
    if facet is None:
        text.append(f"Median at the end: {_ends(frame, y, x, colour, arms)}.")
    else:
        for value in words or sorted(pd.unique(frame[facet])):
            part = frame[frame[facet] == value]
            if len(part):
                where = words[value] if words else f"{facet} {_word(value)}"
                text.append(f"{where}, median at the end: {_ends(part, y, x, colour, arms)}.")
    return " ".join(text)


def _ends(frame: pd.DataFrame, y: str, x: str, colour: str, arms: Mapping[str, Arm]) -> str:
    """Each arm's median over its seeds at its last x, or how many of its runs have no finite value there."""
    ends = []
    for name in [a for a in arms if a in set(frame[colour])]:
        mine = frame[frame[colour] == name]
        last = mine[mine[x] == mine[x].max()][y].to_numpy(dtype=float)
        seeds = mine["seed"].nunique() if "seed" in mine.columns else 1
        lost = seeds - int(np.isfinite(last).sum())  # a run that stopped earlier has no last value
        if lost:
            ends.append(f"{arms[name].label}: none, {lost} of {seeds} runs are not finite")
        else:
            ends.append(f"{arms[name].label} {spell(float(np.median(last)))}")
    return "; ".join(ends)


def describe_heatmap(
    frame: pd.DataFrame,
    x: str,
    y: str,
    value: str = "value",
    *,
    x_title: str,
    y_title: str,
    value_title: str,
    title: str | None = None,
) -> str:
    """Alt text of a heatmap: its axes, the lowest and highest cell and where they are, and what diverged."""
    _require(frame, x, y, value)
    cells = _cells(frame, x, y, value)
    finite = cells.dropna(subset=["value"])
    head = f"{title}. " if title else ""
    text = [
        f"{head}Heatmap of {value_title}{_seed_words(frame, 'median over {} seeds')}: "
        f"{x_title.lower()} {_listed(cells['x'])} across, {y_title.lower()} {_listed(cells['y'])} upwards."
    ]
    for word, pick in (("Lowest", "idxmin"), ("Highest", "idxmax")) if len(finite) else ():
        cell = finite.loc[getattr(finite["value"], pick)()]
        text.append(
            f"{word} {spell(cell['value'])} at {x_title.lower()} {_word(cell['x'])}, "
            f"{y_title.lower()} {_word(cell['y'])}."
        )
    lost = len(cells) - len(finite)
    if lost:
        text.append(f"{lost} of {len(cells)} cells diverged.")
    return " ".join(text)


def describe_ridges(
    frame: pd.DataFrame,
    x: str = "bin",
    y: str = "density",
    row: str = "step",
    *,
    x_title: str,
    row_title: str,
    colour: str = "arm",
    title: str | None = None,
    arms: Mapping[str, Arm] = ARMS,
) -> str:
    """Alt text of ridges: the rows, and each arm's mean and standard deviation in the first and the last."""
    _require(frame, x, y, row, colour)
    rows = sorted(pd.unique(frame[row]))
    head = f"{title}. " if title else ""
    text = [
        f"{head}Histograms of {x_title} for {row_title.lower()} {_word(rows[0])} (top) to {_word(rows[-1])} "
        f"(bottom); {x_title} from {_range(frame[x])}."
    ]
    for name in [a for a in arms if a in set(frame[colour])]:
        ends = []
        for r in (rows[0], rows[-1]) if len(rows) > 1 else rows[:1]:
            part = frame[(frame[colour] == name) & (frame[row] == r)]
            weight = part[y].to_numpy(dtype=float)
            if weight.sum() > 0:
                centre = part[x].to_numpy(dtype=float)
                mean = float(np.average(centre, weights=weight))
                spread = math.sqrt(np.average((centre - mean) ** 2, weights=weight))
                # Rounding noise is not a number to read out.
                mean = 0.0 if abs(mean) < 1e-6 * spread else mean
                ends.append(f"mean {spell(mean, 2)}, standard deviation {spell(spread, 2)} at {_word(r)}")
        text.append(f"{arms[name].label}: {'; '.join(ends) or 'empty'}.")
    return " ".join(text)


def describe_dots(
    frame: pd.DataFrame,
    value: str = "value",
    *,
    y_title: str,
    colour: str = "arm",
    title: str | None = None,
    threshold: float | None = None,
    arms: Mapping[str, Arm] = ARMS,
) -> str:
    """Alt text of dots: median and range of each arm, and how many runs have no finite value."""
    _require(frame, value, "seed", colour)
    head = f"{title}. " if title else ""
    text = [f"{head}{y_title} of each run, one dot per seed, lines join equal seeds."]
    for name in [a for a in arms if a in set(frame[colour])]:
        numbers = frame[frame[colour] == name][value].to_numpy(dtype=float)
        finite = numbers[np.isfinite(numbers)]
        if len(finite) < len(numbers):
            text.append(
                f"{arms[name].label}: {len(numbers) - len(finite)} of {len(numbers)} runs not finite."
            )
        else:
            text.append(f"{arms[name].label}: median {spell(float(np.median(finite)))}, {_range(finite)}.")
    if threshold is not None:
        text.append(f"The dashed rule is at {spell(threshold)}.")
    return " ".join(text)


def _word(value: object) -> str:
    return spell(float(value)) if isinstance(value, int | float | np.number) else str(value)


def _listed(values: pd.Series) -> str:
    words = [_word(v) for v in _order(values)]
    return ", ".join(words) if len(words) <= 6 else f"{words[0]} to {words[-1]}"


def _range(values: Sequence | pd.Series | np.ndarray) -> str:
    array = np.asarray(values, dtype=float)
    return f"{spell(float(np.nanmin(array)))} to {spell(float(np.nanmax(array)))}"


def _seed_words(frame: pd.DataFrame, words: str = "{} seeds each") -> str:
    seeds = frame["seed"].nunique() if "seed" in frame.columns else 1
    return f", {words.format(seeds)}" if seeds > 1 else ""
