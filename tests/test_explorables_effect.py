"""The explorables of chapter 2 compute what pandas and the claims compute, read out of running Vega views."""

import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from browser import drawn, rows_with
from sample import record_of

from bnlib import records
from bnlib.experiments import effect
from bnlib.explorables import effect as explorables

STEPS, EVERY, SEEDS = 40, 10, 3


@pytest.fixture(scope="module")
def training() -> records.Record:
    """Two arms at the lower rate, three at the higher one; there a standard run diverges after 20 steps."""
    rng = np.random.default_rng(0)
    runs, rows = [], []
    arms = [("standard", 0.1), ("bn", 0.1), ("standard", 0.5), ("bn", 0.5), ("bn_after_4", 0.5)]
    for (arm, lr), seed in itertools.product(arms, range(SEEDS)):
        diverged = 20 if (arm, lr, seed) == ("standard", 0.5, 2) else None
        name = f"{arm} lr={lr} seed={seed}"
        settings = {"lr": lr, "steps": STEPS, "eval_every": EVERY}
        runs.append({"id": name, "arm": arm, "seed": seed, "settings": settings, "diverged_at": diverged})
        last = STEPS if diverged is None else diverged
        losses = 2.3 * np.exp(-np.arange(last) / (30 if arm == "standard" else 10)) + rng.uniform(
            0, 0.2, last
        )
        rows += [(name, step, "", "train_loss", float(loss)) for step, loss in enumerate(losses)]
        for step in range(0, last + (diverged is None), EVERY):
            right = 0.1 + 0.8 * (1 - np.exp(-step / (20 if arm == "standard" else 8))) + 0.01 * seed
            rows += [
                (name, step, "", "test_accuracy", float(right)),
                (name, step, "", "test_loss", 3 - 2 * float(right)),
            ]
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def robustness() -> records.Record:
    """Two arms on a small map; one seed of one standard cell diverges."""
    rng = np.random.default_rng(1)
    runs, rows = [], []
    cells = itertools.product(("standard", "bn"), (2, 4), (0.01, 0.1, 1.0), (0.1, 1.0), range(SEEDS))
    for arm, depth, lr, gain, seed in cells:
        diverged = 5 if (arm, depth, lr, gain, seed) == ("standard", 4, 1.0, 1.0, 1) else None
        name = f"{arm} lr={lr} gain={gain} depth={depth} seed={seed}"
        settings = {"lr": lr, "gain": gain, "model": {"name": "mlp", "depth": depth}}
        runs.append({"id": name, "arm": arm, "seed": seed, "settings": settings, "diverged_at": diverged})
        rows += [(name, 0, "", "train_loss", 2.4), (name, 0, "", "test_accuracy", 0.1)]
        if diverged is None:
            rows += [
                (name, 20, "", "train_loss", rng.uniform(0, 2)),
                (name, 40, "", "test_accuracy", rng.uniform(0.5, 1)),
            ]
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def page(training: records.Record, robustness: records.Record):
    """A page with the three charts drawn."""
    settings = explorables.settings_of("sample", training)
    figures = {
        "curves": explorables.learning_curves(settings),
        "levels": explorables.steps_to_level(settings),
        "map": explorables.robustness_map(robustness),
    }
    with drawn(figures) as page:
        yield page


# --- learning curves ---


@pytest.mark.parametrize(
    "metric, window, skipped", [("train_loss", 1, 0), ("train_loss", 4, 50), ("test_accuracy", 2, 0)]
)
def test_curves_are_means_of_neighbouring_points(view, training, metric, window, skipped):
    data = view("curves", setting=0, metric=metric, window=window, skipped=skipped)
    found = pd.DataFrame(rows_with(data, "block", "end"))
    frame = training.frame("lr", metric=metric)
    frame = frame[(frame["lr"] == 0.1) & (frame["step"] >= skipped / 100 * STEPS)].copy()
    every = 1 if metric == "train_loss" else EVERY
    frame["block"] = frame["step"] // every // window
    frame["value"] *= 100 if metric == "test_accuracy" else 1
    expected = frame.groupby(["arm", "seed", "block"])["value"].mean()
    names = {"Standard": "standard", "Batch norm": "bn"}
    got = {(names[row.arm], row.seed, row.block): row.y for row in found.itertuples()}
    assert got.keys() == set(expected.index)
    # The page gets four significant digits.
    np.testing.assert_allclose([got[key] for key in expected.index], expected, rtol=1e-3)


def test_a_median_is_drawn_only_where_every_seed_lives(view, training):
    data = view("curves", setting=1, metric="train_loss", window=1, skipped=0)
    found = pd.DataFrame(rows_with(data, "block", "end"))
    standard = found[found["arm"] == "Standard"]
    assert set(standard[standard["seeds"] == standard["n"]]["x"]) == set(range(20))
    assert standard["x"].max() == STEPS - 1
    ends = standard[standard["diverged"] & (standard["block"] == standard["end"])]
    assert ends[["seed", "x"]].to_numpy().tolist() == [[2, 19]]


def test_a_test_loss_that_was_not_finite_keeps_its_place(training):
    frame = training.table.to_pandas()
    name = "bn lr=0.1 seed=1"
    lost = (frame["run"] == name) & (frame["step"] == 2 * EVERY) & (frame["metric"] == "test_loss")
    rest = records.Record("sample", "smoke", training.table.filter(pa.array(~lost)), training.provenance)
    rows = explorables.curve_rows(explorables.settings_of("sample", rest), ["test_loss"])
    (values,) = [r["values"] for r in rows if (r["setting"], r["arm"], r["seed"]) == (0, "Batch norm", 1)]
    assert [text == "×" for text in values.split()] == [False, False, True, False, False]


def test_long_losses_are_thinned_to_round_windows_that_all_runs_share(training, monkeypatch):
    assert [explorables.window_length(steps) for steps in (60, 400, 1500, 2000, 15000)] == [1, 2, 10, 10, 100]
    monkeypatch.setattr(explorables, "window_length", lambda steps: steps // 8)
    rows = explorables.curve_rows(explorables.settings_of("sample", training), ["train_loss"])
    assert {row["every"] for row in rows} == {5}
    assert {(row["diverged"], len(row["values"].split())) for row in rows} == {(False, 8), (True, 4)}
    frame = training.frame(metric="train_loss")
    for row, (_, part) in zip(rows, frame.groupby("run", sort=False), strict=True):
        expected = part["value"].to_numpy().reshape(-1, 5).mean(1)
        np.testing.assert_allclose([float(v) for v in row["values"].split()], expected, rtol=1e-3)


# --- steps to a level ---


@pytest.mark.parametrize("level", [20, 45.5, 60, 89.5, 99])
def test_steps_to_a_level_are_those_of_the_claims(view, training, level):
    data = view("levels", setting=0, level=level)
    words = {row["arm"]: row["words"] for rows in data for row in rows if "words" in row and "there" in row}
    assert f"Steps to {level:g} %, median (range):" in {row.get("words") for rows in data for row in rows}
    steps = {
        arm: effect.steps_to_accuracy(training, arm, 0.1, dict.fromkeys(range(SEEDS), level / 100))
        for arm in ("standard", "bn")
    }
    for arm, label in (("standard", "Standard"), ("bn", "Batch norm")):
        values = pd.Series(steps[arm])
        missing = int(np.isinf(values).sum())
        if missing:
            assert words[label] == f"{label}: not reached by {missing} of {SEEDS} seeds"
            continue
        low, high = int(values.min()), int(values.max())
        expected = f"{label}: {int(values.median())}" + (f" ({low}–{high})" if low != high else "")
        if arm == "bn" and not np.isinf(list(steps["standard"].values())).any():
            ratio = pd.Series(
                {seed: steps["standard"][seed] / values[seed] for seed in values.index}
            ).median()
            expected += f", {ratio:.3g}× as fast"
        assert words[label] == expected


def test_the_words_of_the_setting_with_most_arms_stay_within_the_figure(page, view):
    arms = ["Standard", "Batch norm", "BN after 4th conv"]
    for setting, shown in ((0, arms[:2]), (1, arms)):
        view("levels", setting=setting, level=50)
        texts = page.evaluate(
            """() => {
                const svg = document.querySelector("#levels svg");
                const bottom = svg.getBoundingClientRect().bottom;
                return [...svg.querySelectorAll("text")]
                    .map((e) => [e.textContent, e.getBoundingClientRect().bottom <= bottom]);
            }"""
        )
        for arm in shown:
            assert [inside for text, inside in texts if text.startswith(f"{arm}: ")] == [True]


# --- robustness ---


@pytest.mark.parametrize("depth, threshold", [(2, 80), (4, 80), (4, 65)])
def test_shares_and_cells_are_those_of_the_record(view, robustness, depth, threshold):
    data = view("map", depth=depth, threshold=threshold, lr=0.1, gain=1.0, metric="accuracy")
    last = robustness.frame("lr", "gain", "depth", metric="test_accuracy").sort_values("step")
    last = last.groupby("run", as_index=False).last()
    last = last[last["depth"] == depth]
    gone = {run["id"] for run in robustness.runs if run["diverged_at"] is not None}
    last["value"] = (100 * last["value"]).where(~last["run"].isin(gone)).round(1)

    cells = {(row["arm"], row["lr"], row["gain"]): row for row in rows_with(data, "shade", "shown")}
    titles = [row["words"] for rows in data for row in rows if str(row.get("row", "")).endswith("|title")]
    for arm, label in (("standard", "Standard"), ("bn", "Batch norm")):
        mine = last[last["arm"] == arm]
        share = 100 * (mine["value"] >= threshold).mean()
        assert f"{label}: {share:.0f} % of the runs reach {threshold} %" in titles
        for (lr, gain), part in mine.groupby(["lr", "gain"]):
            cell = cells[label, lr, gain]
            assert cell["lost"] == part["value"].isna().sum()
            if cell["lost"] == 0:
                assert cell["v"] == pytest.approx(part["value"].median())
    assert sum(cell["lost"] for cell in cells.values()) == (depth == 4)


def test_the_share_at_the_declared_threshold_is_the_claims(view, robustness):
    data = view("map", depth=4, threshold=100 * effect.TRAINED, lr=0.1, gain=1.0, metric="accuracy")
    cells = rows_with(data, "shade", "shown")
    for arm, label in (("standard", "Standard"), ("bn", "Batch norm")):
        mine = [cell for cell in cells if cell["arm"] == label]
        by_seed = effect.trained_share(robustness, arm, 4).values()
        assert sum(cell["trained"] for cell in mine) / sum(cell["n"] for cell in mine) == pytest.approx(
            np.mean(list(by_seed))
        )


def test_the_frame_spells_out_every_seed(view, robustness):
    chosen = {"depth": 4, "lr": 1.0, "gain": 1.0, "threshold": 80}
    for metric, unit in (("accuracy", " %"), ("loss", " nats")):
        data = view("map", metric=metric, **chosen)
        words = {row["words"] for rows in data for row in rows if str(row.get("row", "")).endswith("|cell")}
        assert len(words) == 2
        assert all(text.startswith("in the frame: ") and text.endswith(unit) for text in words)
        # The diverged seed keeps its place among the others.
        assert [text.removeprefix("in the frame: ").split()[1] for text in words].count("×") == 1


def test_every_control_says_what_it_moves_and_the_figures_have_alt_text(training, robustness):
    settings = explorables.settings_of("sample", training)
    for box in (
        explorables.learning_curves(settings),
        explorables.steps_to_level(settings),
        explorables.robustness_map(robustness),
    ):
        panel, explorer = box.children
        assert len(explorer.description) > 100
        assert all(control.description for control in panel.children)
        assert len(panel.children) == len(explorer.params)
