"""The figures of chapter 15, on records made by hand."""

from __future__ import annotations

import math

import altair as alt
import pytest

from bnlib import records
from bnlib.explorables import ingredients
from bnlib.specs import Run

ACCURACY = {"standard": 0.3, "start": 0.5, "bn": 0.8}


@pytest.fixture
def record(tmp_path, monkeypatch) -> records.Record:
    """Depths 2 and 9 at two rates; at the higher one the deep network diverges without a norm."""
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    runs = [
        Run(arm, seed, {"lr": lr, "depth": depth, "steps": 60}, ("lr", "depth"))
        for seed in range(5)
        for arm in ACCURACY
        for lr in (1.0, 0.1)
        for depth in (2, 9)
    ]

    def rows(run):
        if run.arm == "standard" and run.settings["lr"] == 1.0 and run.settings["depth"] == 9:
            return [(3, "", "diverged_at", 3.0)]
        accuracy = ACCURACY[run.arm] + 0.01 * run.seed
        return [(55, "", "train_loss", run.settings["lr"]), (60, "", "test_accuracy", accuracy)]

    finished = {run.digest: {"rows": rows(run), "seconds": 0.0} for run in runs}
    return records.save("toy", "smoke", runs, finished, {})


def test_accuracy_by_rate(record):
    deep = ingredients.by_rate(record)
    assert list(dict.fromkeys(deep["group"])) == ["at rate 0.1", "at rate 1"]
    found = deep.set_index(["group", "arm", "seed"])["value"]
    assert found["at rate 0.1", "standard", 2] == pytest.approx(32)
    assert found["at rate 1", "standard", 2] == pytest.approx(10)  # diverged: chance
    shallow = ingredients.by_rate(record, depth=2).set_index(["group", "arm", "seed"])["value"]
    assert shallow["at rate 1", "standard", 2] == pytest.approx(32)


def test_the_distance_from_batch_norm_is_paired_by_seed(record):
    frame = ingredients.behind_batch_norm({"alternatives": record, "ingredients": record})
    assert set(frame["chapter"]) == {14, 15}
    assert set(frame["arm"]) == {"standard", "start"}
    found = frame.groupby(["chapter", "arm"])["value"]
    assert found.median()[14, "start"] == pytest.approx(-30)
    assert found.max()[15, "standard"] == pytest.approx(found.min()[15, "standard"]) == pytest.approx(-50)


def test_the_chart_has_a_line_for_each_comparison_and_says_its_median(record):
    frame = ingredients.behind_batch_norm({"alternatives": record, "ingredients": record})
    spec = ingredients.behind_batch_norm_chart(frame).to_dict()
    assert [row["line"] for row in spec["data"]["values"]] == [
        *("14: Standard", "14: Normalised once"),
        *("15: Standard", "15: Normalised once"),
    ]
    assert isinstance(alt.LayerChart.from_dict(spec), alt.LayerChart)
    assert "chapter 15, Normalised once −30" in spec["description"]
    assert all(math.isfinite(float(v)) for row in spec["data"]["values"] for v in row["values"].split())
