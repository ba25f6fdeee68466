"""The figures of chapter 15: what parts of batch norm do, and how far from it everything else stays.

Functions that end in `_chart` return a chart.  No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import altair as alt
import pandas as pd

from bnlib import charts
from bnlib.experiments import alternatives, effect, lp, noise
from bnlib.experiments.quantities import BySeed, paired
from bnlib.records import Record

#: experiment -> its chapter's number, and an arm's accuracy (0..1) by seed, as that chapter compares arms
COMPARED: dict[str, tuple[int, Callable[[Record, str], BySeed]]] = {
    "replication": (2, lambda record, arm: effect.final_accuracy(record, arm, 0.01)),
    "noise": (4, noise.late_accuracy),
    "lp_norms": (8, lp.late_accuracy),
    "alternatives": (14, alternatives.best),
    "ingredients": (15, alternatives.best),
}


def by_rate(record: Record, depth: int | None = None) -> pd.DataFrame:
    """Test accuracy in per cent after training: rows group (the rate in words), arm, seed, value; of the
    networks of that depth, None meaning the greatest.  A run that diverged counts as guessing."""
    table = alternatives.outcomes(record).sort_values(["lr", "seed"], kind="stable")
    table = table[table["depth"] == (table["depth"].max() if depth is None else depth)]
    table = table.assign(value=100 * table["accuracy"], group=[f"at rate {lr:g}" for lr in table["lr"]])
    return table[["group", "arm", "seed", "value"]].reset_index(drop=True)


def behind_batch_norm(records: Mapping[str, Record]) -> pd.DataFrame:
    """Accuracy minus that of batch norm in the same experiment, in points, paired by seed: rows experiment,
    chapter, arm, seed, value.  `records` has some of `COMPARED`, by name; what is compared is what the
    experiment's own chapter compares."""
    rows = []
    for name, (chapter, accuracy) in COMPARED.items():
        if name not in records:
            continue
        arms = dict.fromkeys(run["arm"] for run in records[name].runs)
        bn = accuracy(records[name], "bn")
        for arm in arms:
            lead = paired(accuracy(records[name], arm), bn) if arm != "bn" else {}
            rows += [(name, chapter, arm, seed, 100 * value) for seed, value in lead.items()]
    return pd.DataFrame(rows, columns=["experiment", "chapter", "arm", "seed", "value"])


def behind_batch_norm_chart(frame: pd.DataFrame) -> alt.LayerChart:
    """The rows of `behind_batch_norm`: a line per experiment and arm, by chapter and then by median; a dot
    per seed and a bar at the median, a rule at batch norm."""
    medians = frame.groupby(["chapter", "arm"], sort=False)["value"].median()
    order = sorted(medians.index, key=lambda key: (key[0], medians[key]))
    rows = [
        {
            "line": f"{chapter}: {charts.ARMS[arm].label}",
            "colour": charts.ARMS[arm].colour,
            "values": charts.packed(
                frame[(frame["chapter"] == chapter) & (frame["arm"] == arm)].sort_values("seed")["value"]
            ),
        }
        for chapter, arm in order
    ]
    down = alt.Y(
        "line:N",
        title=None,
        sort=[row["line"] for row in rows],
        axis=alt.Axis(grid=True, ticks=False, labelLimit=180, labelOverlap=False),
    )
    title = "Points from batch norm"  # short enough for a phone

    def across(field: str) -> alt.X:
        return alt.X(field, title=title, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5))

    base = alt.Chart()
    colour = alt.Color("colour:N", scale=None)
    dots = base.mark_point(size=32, opacity=0.75, filled=True).encode(x=across("v:Q"), y=down, color=colour)
    bars = base.mark_tick(thickness=3, height=14, orient="vertical").encode(
        x=across("median(v):Q"), y=down, color=colour
    )
    rule = base.mark_rule(color=charts.INK, strokeDash=[4, 3]).encode(x=alt.datum(0))
    told = "; ".join(
        f"chapter {chapter}, {charts.ARMS[arm].label} {charts.spell(medians[chapter, arm])}"
        for chapter, arm in order
    )
    return (
        alt.layer(rule, bars, dots, data=alt.Data(values=rows))
        .transform_calculate(v="split(datum.values, ' ')")
        .transform_flatten(["v"])
        .transform_calculate(v="toNumber(datum.v)")
        .properties(
            width="container",
            height=21 * len(rows),
            description=(
                "Accuracy, points from batch norm, one dot per seed, within each experiment. "
                f"Medians: {told}."
            ),
        )
    )
