"""The explorables of chapter 2: recorded runs in the page, read through sliders.

Each function takes records and returns a finished widget. A series of numbers travels as one string: in a
notebook's JSON a list would take a line per number. The charts split it, and compute what a reader asks for
(means, medians, steps to a level, shares) in the page, with or without a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import altair as alt
import ipywidgets
import pandas as pd

from bnlib import charts, widgets
from bnlib.experiments import effect
from bnlib.records import Record
from bnlib.specs import setting

POINTS = 200  # at most so many points per curve of the training loss
CUT = 4.0  # nats: losses above are drawn at this height
LOST = "×"  # stands for the value of a run that diverged


class Setting(NamedTuple):
    """One comparison of arms: the runs of a record that share a learning rate, and its words for readers."""

    words: str
    record: Record
    lr: float

    def runs(self) -> list[dict]:
        """The record's runs at this learning rate."""
        return [run for run in self.record.runs if run["settings"]["lr"] == self.lr]


def settings_of(words: str, record: Record) -> list[Setting]:
    """One setting per learning rate of `record`, from the lowest: `words`, rate ..."""
    rates = sorted({run["settings"]["lr"] for run in record.runs})
    return [Setting(f"{words}, rate {lr:g}", record, lr) for lr in rates]


def _label(arm: str) -> str:
    return charts.ARMS[arm].label


def _options(settings: Sequence[Setting]) -> list[tuple[str, int]]:
    return [(item.words, number) for number, item in enumerate(settings)]


def _arms(settings: Sequence[Setting]) -> list[str]:
    present = {run["arm"] for item in settings for run in item.runs()}
    return [arm for arm in charts.ARMS if arm in present]


# --- (a) learning curves ------------------------------------------------------------------------------


def window_length(steps: int, points: int = POINTS) -> int:
    """The shortest of 1, 2, 5, 10, 20, ... steps that makes at most `points` windows of a run's `steps`."""
    return next(m * 10**k for k in range(9) for m in (1, 2, 5) if steps <= points * m * 10**k)


QUANTITIES = {
    "training loss": "train_loss",
    "test loss": "test_loss",
    "test accuracy": "test_accuracy",
}


def curve_rows(settings: Sequence[Setting], metrics: Iterable[str] = QUANTITIES.values()) -> list[dict]:
    """One row per setting, run and metric; `every` is the distance of the points in steps, accuracies are in
    per cent, `n` is the number of seeds, `diverged` says that the run stopped early."""
    rows = []
    for number, item in enumerate(settings):
        runs = item.runs()
        seeds = len({run["seed"] for run in runs})
        for metric in metrics:
            every_run = dict(list(item.record.frame(metric=metric).groupby("run")))
            for run in runs:
                if run["id"] not in every_run:
                    continue  # a network that was lost before the first finite test loss
                values = every_run[run["id"]].set_index("step")["value"].sort_index()
                if metric == "train_loss":
                    every = window_length(run["settings"]["steps"])
                    first = (every - 1) / 2  # a window's middle
                    values = values.groupby(values.index // every).mean()
                else:
                    every, first = run["settings"]["eval_every"], 0.0
                    # A test loss that was not finite is not recorded: keep its place.
                    values = values.reindex(range(0, values.index.max() + 1, every))
                    values *= 100 if metric == "test_accuracy" else 1
                rows.append(
                    {
                        "setting": number,
                        "metric": metric,
                        "arm": _label(run["arm"]),
                        "seed": run["seed"],
                        "n": seeds,
                        "steps": run["settings"]["steps"],
                        "every": every,
                        "first": first,
                        "diverged": run["diverged_at"] is not None,
                        "values": charts.packed(values),
                    }
                )
    return rows


def _points(chart: alt.LayerChart) -> alt.LayerChart:
    """One row per point: i (from 1), x in steps, y."""
    return (
        chart.transform_calculate(y="split(datum.values, ' ')")
        .transform_flatten(["y"])
        .transform_window(i="row_number()", groupby=["arm", "seed"])
        .transform_calculate(
            y="toNumber(datum.y)", x="min(datum.first + (datum.i - 1) * datum.every, datum.steps)"
        )
    )


def curve_chart(settings: Sequence[Setting]) -> alt.LayerChart:
    """Learning curves of one setting: every seed thin, the median thick, the range as a band.

    Params: `setting` (its number), `metric`, `window` (so many neighbouring points become their mean) and
    `skipped` (per cent of the steps that are left out at the start, which lets the axes zoom in). A median is
    drawn where every seed has a value; a run that diverged ends in a cross.
    """
    labels = [_label(arm) for arm in _arms(settings)]
    scales = charts.arm_scales(labels, legend=alt.Legend(offset=30))  # room for the heading
    across = alt.X("x:Q", title="Step", scale=alt.Scale(nice=False, zero=False))
    scale = alt.Scale(zero=False)
    base = alt.Chart()
    whole = base.transform_filter("datum.seeds == datum.n")
    band = whole.mark_area(opacity=0.16).encode(
        x=across, y=alt.Y("min(y):Q", title=None, scale=scale), y2="max(y):Q", color=scales["color"]
    )
    seeds = base.mark_line(strokeWidth=0.8, opacity=0.6).encode(
        x=across, y=alt.Y("y:Q", title=None, scale=scale), detail="seed:N", **scales
    )
    median = whole.mark_line().encode(x=across, y=alt.Y("median(y):Q", title=None, scale=scale), **scales)
    # Every run's last point, so that the layer is never empty; only those of diverged runs are seen.
    ends = (
        base.transform_filter("datum.block == datum.end")
        .transform_calculate(seen="datum.diverged ? 1 : 0")
        .mark_point(shape="cross", angle=45, size=90)
        .encode(
            x=across,
            y=alt.Y("y:Q", title=None, scale=scale),
            color=scales["color"],
            opacity=alt.Opacity("seen:Q", scale=None),
        )
    )
    tests = "(window > 1 ? ', mean of ' + window + ' tests' : '')"
    windows = "(datum.width > 1 ? ', mean of ' + datum.width + ' steps' : '')"
    words = {
        "train_loss": f"'Training loss (nats), cut at {CUT:g}' + {windows}",
        "test_loss": f"'Test loss (nats), cut at {CUT:g}' + {tests}",
        "test_accuracy": f"'Test accuracy (%)' + {tests}",
    }
    title = f"({' : '.join(f'metric == {name!r} ? {text}' for name, text in words.items())} : '')"
    # The vertical axis has its title above: it changes with the controls, which an axis' own title cannot.
    heading = (
        base.transform_aggregate(width="max(width)")
        .transform_calculate(title=title)
        .mark_text(align="left", fontSize=13)
        .encode(x=alt.value(0), y=alt.value(-14), text="title:N")
    )
    chart = alt.layer(band, seeds, median, ends, heading).properties(
        data=alt.Data(values=curve_rows(settings)), width="container", height=300
    )
    chart = _points(
        chart.transform_filter("datum.setting == setting && datum.metric == metric")
    ).transform_filter("datum.x >= skipped / 100 * datum.steps")
    return (
        chart.transform_calculate(block="floor((datum.i - 1) / window)", width="window * datum.every")
        .transform_aggregate(
            y="mean(y)", groupby=["arm", "seed", "block", "n", "diverged", "width"], x="mean(x)"
        )
        .transform_calculate(y=f"metric == 'test_accuracy' ? datum.y : min(datum.y, {CUT})")
        .transform_joinaggregate(seeds="valid(y)", x="mean(x)", groupby=["arm", "block"])
        .transform_joinaggregate(end="max(block)", groupby=["arm", "seed"])
        .add_params(
            alt.param(name="setting", value=0),
            alt.param(name="metric", value="train_loss"),
            alt.param(name="window", value=1),
            alt.param(name="skipped", value=0),
        )
    )


def learning_curves(settings: Sequence[Setting]) -> ipywidgets.VBox:
    """The chart of `curve_chart` under its controls."""
    explorer = widgets.Explorer(curve_chart(settings), description=_describe_curves(settings))
    return widgets.controls(
        explorer,
        setting=ipywidgets.Dropdown(description="setting", options=_options(settings), value=0),
        window=ipywidgets.IntSlider(description="points averaged", value=1, min=1, max=10),
        skipped=ipywidgets.IntSlider(description="steps skipped (%)", value=0, min=0, max=90, step=5),
        metric=ipywidgets.Dropdown(
            description="quantity", options=list(QUANTITIES.items()), value="train_loss"
        ),
    )


def _describe_curves(settings: Sequence[Setting]) -> str:
    parts = []
    for item in settings:
        ends = []
        for arm in _arms([item]):
            accuracy = pd.Series(effect.final_accuracy(item.record, arm, item.lr))
            ends.append(f"{_label(arm)} {100 * accuracy.median():.1f}")
        parts.append(f"{item.words}: {', '.join(ends)}")
    return (
        "Learning curves over the training steps, one thin line per seed, the median thick; a setting and a "
        f"quantity can be chosen. Median test accuracy at the end, in per cent. {'; '.join(parts)}."
    )


# --- (b) steps to a level -----------------------------------------------------------------------------


LEVEL_HEIGHT = 270


def _steps_in_words(chart: alt.Chart) -> alt.Chart:
    """One row per arm, its steps as `words`."""
    standard = _label("standard")
    return (
        chart.transform_filter("datum.i == 1")
        .transform_calculate(own=f"datum.arm == '{standard}' ? datum.reached : null")
        .transform_joinaggregate(own="max(own)", groupby=["seed"])
        .transform_calculate(
            ratio="isValid(datum.own) && datum.reached > 0 ? datum.own / datum.reached : null"
        )
        .transform_aggregate(
            there="valid(reached)",
            middle="median(reached)",
            low="min(reached)",
            high="max(reached)",
            ratio="median(ratio)",
            paired="valid(ratio)",
            groupby=["arm", "n"],
        )
        .transform_calculate(
            low_to_high="datum.low == datum.high ? '' : ' (' + datum.low + '–' + datum.high + ')'",
            speed=f"datum.arm == '{standard}' || datum.paired < datum.n ? ''"
            " : ', ' + format(datum.ratio, '.3~g') + '× as fast'",
            missing="datum.n - datum.there",
        )
        .transform_calculate(
            words="datum.arm + ': ' + (datum.missing > 0"
            " ? 'not reached by ' + datum.missing + ' of ' + datum.n + ' seeds'"
            " : datum.middle + datum.low_to_high + datum.speed)"
        )
    )


def level_chart(settings: Sequence[Setting], level: float) -> alt.LayerChart:
    """When does each arm first reach an accuracy? Curves of the test accuracy, and the steps in words.

    Params: `setting` and `level` (per cent). A dot marks the first evaluation at or above the level, seed by
    seed, and the words give the median over the seeds and the range. The last number compares seed by seed:
    the steps of the standard network divided by the arm's, and of these the median.
    """
    arms = _arms(settings)
    scales = charts.arm_scales([_label(arm) for arm in arms], legend=alt.Legend())
    across = alt.X("x:Q", title="Step", scale=alt.Scale(nice=False))
    up = alt.Y("y:Q", title="Test accuracy (%)", scale=alt.Scale(domain=[0, 100], nice=False))
    base = alt.Chart()
    curves = base.mark_line(strokeWidth=1.3, opacity=0.8).encode(x=across, y=up, detail="seed:N", **scales)
    rule = (
        base.transform_aggregate(y="max(level)")
        .mark_rule(strokeWidth=1.2)
        .encode(y=alt.Y("y:Q", title="Test accuracy (%)"))
    )
    # Every point, so that the layer is never empty; only those where a run first reaches the level are seen.
    dots = (
        base.transform_calculate(seen="datum.x == datum.reached ? 0.9 : 0")
        .mark_point(size=60)
        .encode(x=across, y=up, color=scales["color"], opacity=alt.Opacity("seen:Q", scale=None))
    )
    # Below the axis and its title, one line per arm of the chosen setting. They start left of the axis:
    # on a phone they need all the room there is.
    line = {arm: 1 + _arms([item]).index(arm) for item in settings for arm in _arms([item])}

    def words(rows: alt.Chart, number: int) -> alt.Chart:
        place = {"x": alt.value(-44), "y": alt.value(LEVEL_HEIGHT + 60 + 18 * number)}
        return rows.mark_text(align="left", fontSize=12).encode(text="words:N", **place)

    once = base.transform_aggregate(level="max(level)")
    heading = once.transform_calculate(words="'Steps to ' + datum.level + ' %, median (range):'")
    # Keeps the room of the setting with the most arms: Vega does not make the figure higher later.
    room = once.transform_calculate(words="' '")
    steps = [
        words(_steps_in_words(base).transform_filter(f"datum.arm == '{_label(arm)}'"), line[arm])
        for arm in arms
    ]
    chart = alt.layer(
        curves, rule, dots, words(heading, 0), *steps, words(room, max(line.values()))
    ).properties(
        data=alt.Data(values=curve_rows(settings, ["test_accuracy"])), width="container", height=LEVEL_HEIGHT
    )
    return (
        _points(chart.transform_filter("datum.setting == setting"))
        .transform_calculate(level="level", hit="datum.y >= level ? datum.x : null")
        .transform_joinaggregate(reached="min(hit)", groupby=["arm", "seed"])
        .add_params(alt.param(name="setting", value=0), alt.param(name="level", value=level))
    )


def steps_to_level(settings: Sequence[Setting]) -> ipywidgets.VBox:
    """The chart of `level_chart` under its controls; first at a level that all standard networks reach."""
    start = settings[0]
    final = effect.final_accuracy(start.record, "standard", start.lr)
    level = max(15.0, math.floor(200 * min(final.values())) / 2)
    explorer = widgets.Explorer(
        level_chart(settings, level),
        description=(
            "Test accuracy over the training steps, one line per run, with a horizontal rule at the chosen "
            "level and a dot where a run first reaches it. Below, in words: each arm's median number of "
            "steps, the range over the seeds, and how many times as fast as the standard network. At first: "
            f"{start.words} at {level:g} per cent, which every standard network reaches in the end."
        ),
    )
    return widgets.controls(
        explorer,
        setting=ipywidgets.Dropdown(description="setting", options=_options(settings), value=0),
        level=ipywidgets.FloatSlider(
            description="level (%)", value=level, min=15, max=99, step=0.5, readout_format=".1f"
        ),
    )


# --- (c) robustness -----------------------------------------------------------------------------------


def robustness_rows(record: Record) -> list[dict]:
    """One row per arm, depth, learning rate and gain: final test accuracy (per cent) and training loss (nats)
    of every seed, a cross for a run that diverged."""
    finals = {}
    for metric in ("test_accuracy", "train_loss"):
        frame = record.frame(metric=metric).sort_values("step")
        finals[metric] = frame.groupby("run")["value"].last().to_dict()
    cells: dict[tuple, list[dict]] = {}
    for run in sorted(record.runs, key=lambda run: run["seed"]):
        where = (run["arm"], *(setting(run["settings"], name) for name in ("depth", "lr", "gain")))
        cells.setdefault(where, []).append(run)

    def values(runs: list[dict], metric: str, factor: float, number: str) -> str:
        kept = [math.nan if r["diverged_at"] is not None else factor * finals[metric][r["id"]] for r in runs]
        return charts.packed(kept, number)

    return [
        {
            "arm": _label(arm),
            "depth": depth,
            "lr": lr,
            "gain": gain,
            "row": f"{_label(arm)}|{gain:g}",
            "accuracy": values(runs, "test_accuracy", 100, ".1f"),
            "loss": values(runs, "train_loss", 1, ".2g"),
        }
        for (arm, depth, lr, gain), runs in cells.items()
    ]


def robustness_chart(record: Record, start: dict[str, float]) -> alt.LayerChart:
    """Learning rate across, gain upwards, one block of cells per arm; brighter is better.

    Params: `depth`, `metric` ("accuracy" or "loss"), `threshold` (per cent of test accuracy from which a run
    counts as trained), and `lr` and `gain`, which frame one cell and spell out its seeds. A cell shows the
    median over the seeds, or a cross if any diverged. Cells with a seed below the threshold are faint.
    """
    rows = robustness_rows(record)
    arms = [_label(arm) for arm in charts.ARMS if _label(arm) in {row["arm"] for row in rows}][::-1]
    rates = sorted({row["lr"] for row in rows})
    gains = sorted({row["gain"] for row in rows}, reverse=True)
    # Above each arm's cells two rows are left free for words.
    order = [f"{arm}|{g}" for arm in arms for g in ("title", "cell", *(f"{gain:g}" for gain in gains))]
    across = alt.X(
        "lr:O", title="Learning rate", sort=rates, axis=alt.Axis(labelAngle=0, grid=False, format="~g")
    )
    up = alt.Y(
        "row:O",
        title="Gain of the initial weights",
        sort=order,
        scale=alt.Scale(domain=order),
        axis=alt.Axis(
            grid=False,
            ticks=False,
            domain=False,
            labelOverlap=False,
            labelExpr="isFinite(toNumber(split(datum.value, '|')[1])) ? split(datum.value, '|')[1] : ''",
        ),
    )
    cell = alt.Chart()
    whole = cell.transform_filter("datum.lost == 0")
    faint = "datum.trained < datum.n ? 0.45 : 1"
    fill = (
        whole.transform_calculate(opacity=faint)
        .mark_rect()
        .encode(
            x=across,
            y=up,
            color=alt.Color("shade:Q", scale=alt.Scale(scheme="cividis", domain=[0, 1]), legend=None),
            opacity=alt.Opacity("opacity:Q", scale=None, legend=None),
            key="place:N",  # a cell stays where it is and changes its colour
        )
    )
    number = (
        whole.transform_calculate(
            # White on the dark half of cividis, black on the light half; faint cells show the page.
            ink="datum.trained < datum.n ? 'currentColor' : datum.shade < 0.47 ? '#ffffff' : '#000000'"
        )
        .mark_text(fontSize=12)
        .encode(x=across, y=up, text="shown:N", color=alt.Color("ink:N", scale=None), key="place:N")
    )
    lost = cell.transform_filter("datum.lost > 0")
    missing = lost.mark_rect(
        fillOpacity=0, stroke="currentColor", strokeOpacity=0.35, strokeDash=[3, 3]
    ).encode(x=across, y=up)
    cross = lost.mark_text(fontSize=15, text=LOST).encode(x=across, y=up)
    chosen = cell.transform_filter("datum.lr == lr && datum.gain == gain")
    frame = chosen.mark_rect(fillOpacity=0, stroke="#d9622b", strokeWidth=3).encode(x=across, y=up)

    def words(base: alt.Chart, row: str, text: str, **style: object) -> alt.Chart:
        return (
            base.transform_calculate(row=f"datum.arm + '|{row}'", words=text)
            .mark_text(align="left", fontSize=13, **style)
            .encode(x=alt.value(0), y=up, text="words:N")
        )

    shares = alt.Chart().transform_aggregate(trained="sum(trained)", n="sum(n)", groupby=["arm"])
    title = words(
        shares,
        "title",
        "datum.arm + ': ' + format(100 * datum.trained / datum.n, '.0f')"
        " + ' % of the runs reach ' + threshold + ' %'",
        fontWeight="bold",
    )
    spelled = words(
        chosen,
        "cell",
        "'in the frame: ' + (metric == 'accuracy' ? datum.accuracy + ' %' : datum.loss + ' nats')",
    )
    chart = (
        alt.layer(fill, number, missing, cross, frame, title, spelled)
        .resolve_scale(color="independent")  # the cells' shade and the numbers' ink
        .properties(data=alt.Data(values=rows), width="container", height=27 * len(order))
    )
    return (
        chart.transform_filter("datum.depth == depth")
        # New names: Vega writes into the rows, and a row comes by again when its depth is chosen again.
        .transform_calculate(a="split(datum.accuracy, ' ')", l="split(datum.loss, ' ')")
        .transform_flatten(["a", "l"])
        .transform_calculate(a="toNumber(datum.a)", l="toNumber(datum.l)")
        .transform_calculate(v="metric == 'accuracy' ? datum.a : datum.l")
        .transform_calculate(finite="isFinite(datum.a) ? 1 : 0", good="datum.a >= threshold ? 1 : 0")
        .transform_aggregate(
            n="count()",
            finite="sum(finite)",
            trained="sum(good)",
            v="median(v)",
            groupby=["arm", "row", "lr", "gain", "accuracy", "loss"],
        )
        .transform_calculate(
            lost="datum.n - datum.finite",
            place="datum.row + '|' + datum.lr",
            shade=f"metric == 'accuracy' ? datum.v / 100 : 1 - min(datum.v / {math.log(10):.4f}, 1)",
            shown="metric == 'accuracy' ? format(datum.v, '.0f') : format(datum.v, '.2~g')",
        )
        .add_params(
            *(alt.param(name=name, value=start[name]) for name in ("depth", "threshold", "lr", "gain")),
            alt.param(name="metric", value="accuracy"),
        )
    )


def robustness_map(record: Record) -> ipywidgets.VBox:
    """The chart of `robustness_chart` under its controls; it starts in the middle of the deepest grid."""
    grid = {
        name: sorted({setting(run["settings"], name) for run in record.runs})
        for name in ("depth", "lr", "gain")
    }
    start = {
        "depth": grid["depth"][-1],
        "threshold": 100 * effect.TRAINED,
        **{name: grid[name][len(grid[name]) // 2] for name in ("lr", "gain")},
    }
    shares = "; ".join(
        f"{_label(arm)} "
        + ", ".join(
            f"{100 * pd.Series(effect.trained_share(record, arm, depth)).median():.0f} at depth {depth}"
            for depth in grid["depth"]
        )
        for arm in _arms_of(record)
    )
    explorer = widgets.Explorer(
        robustness_chart(record, start),
        description=(
            "Two heatmaps, one per arm: learning rate across, gain of the initial weights upwards, brighter "
            "is better; sliders choose the depth, the threshold and one cell whose seeds are spelled out. "
            f"Share of the grid that reaches {100 * effect.TRAINED:g} per cent of test accuracy, median over "
            f"the seeds, in per cent: {shares}."
        ),
    )

    def picker(name: str, words: str) -> ipywidgets.SelectionSlider:
        options = [(f"{value:g}", value) for value in grid[name]]
        return ipywidgets.SelectionSlider(description=words, options=options, value=start[name])

    return widgets.controls(
        explorer,
        depth=picker("depth", "hidden layers"),
        threshold=ipywidgets.IntSlider(
            description="trained from (%)", value=int(start["threshold"]), min=15, max=99
        ),
        lr=picker("lr", "framed rate"),
        gain=picker("gain", "framed gain"),
        metric=ipywidgets.Dropdown(
            description="at the end",
            options=[("test accuracy (%)", "accuracy"), ("training loss (nats)", "loss")],
            value="accuracy",
        ),
    )


def _arms_of(record: Record) -> list[str]:
    present = {run["arm"] for run in record.runs}
    return [arm for arm in charts.ARMS if arm in present]
