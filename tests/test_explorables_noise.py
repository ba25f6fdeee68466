"""The figures and explorables of chapter 4 compute what pandas and the claims compute, read out of running
Vega views."""

import itertools
from statistics import median

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from browser import drawn, rows_with
from sample import record_of
from scene import drawn_rows

from bnlib import charts, records
from bnlib.experiments import noise
from bnlib.explorables import noise as explorables

STEPS, EVERY, SEEDS = 40, 4, 3
LAYERS = ["conv2", "conv10"]  # in this order, which is not that of the alphabet
STRENGTHS = [0.0, 0.5, 1.0, 4.0]


def run_of(arm: str, seed: int, diverged: int | None = None, **settings) -> dict:
    name = " ".join([arm, *(f"{key}={value}" for key, value in settings.items()), f"seed={seed}"])
    settings = {"steps": STEPS, **settings}
    return {"id": name, "arm": arm, "seed": seed, "settings": settings, "diverged_at": diverged}


@pytest.fixture(scope="module")
def sample() -> records.Record:
    """All five arms; the noisy standard net of the last seed diverges after 20 steps."""
    rng = np.random.default_rng(0)
    runs, rows = [], []
    for (number, arm), seed in itertools.product(enumerate(noise.ARMS), range(SEEDS)):
        diverged = 20 if (arm, seed) == ("noisy_standard", SEEDS - 1) else None
        runs.append(run_of(arm, seed, diverged))
        for step in range(0, (diverged or STEPS) + 1, EVERY):
            name = runs[-1]["id"]
            rows += [
                (name, step, "", metric, float(rng.uniform(0.3, 0.4) + 0.1 * number))
                for metric in explorables.ACCURACIES.values()
            ]
            for depth, layer in enumerate(LAYERS, start=1):
                size = number + depth  # arms and layers of clearly different size
                rows.append((name, step, layer, "wasserstein", float(rng.uniform(1, 1.1) * 0.01 * size)))
                for part, centre in (("", 0), *((f"[{c}]", c) for c in range(4))):
                    rows.append((name, step, layer, f"mean{part}", float(rng.normal(centre, 0.1 * size))))
                    rows.append((name, step, layer, f"variance{part}", float(size * rng.uniform(1, 2))))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def strengths() -> records.Record:
    """Two arms at four strengths: the accuracy falls with the strength, and differently for every seed."""
    rng = np.random.default_rng(1)
    runs, rows = [], []
    for arm, strength, seed in itertools.product(("noisy_bn", "noisy_standard"), STRENGTHS, range(SEEDS)):
        runs.append(run_of(arm, seed, noise=strength))
        fall = 0.05 if arm == "noisy_bn" else 0.15
        for step in range(0, STEPS + 1, EVERY):
            rows += [
                (runs[-1]["id"], step, "", metric, float(0.9 - fall * strength + rng.uniform(-0.05, 0.05)))
                for metric in explorables.ACCURACIES.values()
            ]
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def page(sample: records.Record, strengths: records.Record):
    """A page as narrow as a phone with all charts drawn."""
    figures = {
        "accuracies": explorables.grouped_dots_chart(
            explorables.accuracies(sample), y_title="Accuracy (%)", y_domain=(0, 100)
        ),
        "movement": explorables.grouped_dots_chart(
            explorables.movement(sample), y_title="Movement", log_y=True
        ),
        "standing": explorables.standing_chart(sample, limit=50),
        "dose": explorables.dose_and_accuracy(strengths),
        "moments": explorables.moments_over_time(sample),
    }
    with drawn(figures, width=390) as page:
        yield page


def words(data: list[list[dict]]) -> set[str]:
    return {row["words"] for rows in data for row in rows if "words" in row}


LABELS = {arm: charts.ARMS[arm].label for arm in noise.ARMS}


# --- dots in groups ---


def test_the_four_accuracies_are_the_claims_late_accuracies(view, sample):
    found = rows_with(view("accuracies"), "group", "v")
    got = {}
    for row in found:
        got.setdefault((row["group"], row["arm"]), []).append(row["v"])
    assert len(got) == 4 * len(noise.ARMS)
    for words_, metric in explorables.ACCURACIES.items():
        for arm, label in LABELS.items():
            late = noise.late_accuracy(sample, arm, metric)
            assert got[words_, label] == pytest.approx([100 * late[s] for s in sorted(late)], rel=1e-3)
    # A run that diverged counts as guessing, as in the claims.
    assert got[next(iter(explorables.ACCURACIES)), LABELS["noisy_standard"]][-1] == pytest.approx(10)


def test_every_bar_is_a_median_and_every_dot_a_run(view, sample, page):
    bars = rows_with(view("movement"), "median_v")
    frame = sample.frame(metric="wasserstein")
    by_run = frame.groupby(["layer", "arm", "seed"])["value"].median()
    assert len(bars) == len(LAYERS) * len(noise.ARMS)
    for bar in bars:
        arm = next(name for name, label in LABELS.items() if label == bar["arm"])
        expected = median(by_run[bar["group"], arm])
        assert bar["median_v"] == pytest.approx(expected, rel=1e-3)
    assert page.locator("#movement .mark-symbol.role-mark path").count() == (
        len(LAYERS) * len(noise.ARMS) * SEEDS
    )


def test_layers_stand_in_the_order_of_the_network(sample):
    assert explorables.layers_of(sample) == LAYERS
    assert list(explorables.movement(sample)["group"].unique()) == LAYERS


def test_a_value_that_is_not_finite_has_no_dot_and_its_arm_no_bar():
    frame = pd.DataFrame(
        {
            "group": "a",
            "arm": ["bn", "bn", "standard", "standard"],
            "seed": [0, 1, 0, 1],
            "value": [1, 2, 3, 4.0],
        }
    )
    frame.loc[0, "value"] = np.inf
    rows = explorables.grouped_dots_chart(frame, y_title="y").to_dict()["data"]["values"]
    assert {row["arm"]: row["values"] for row in rows} == {"Batch norm": "× 2", "Standard": "3 4"}


# --- where a mean stands ---


def test_standing_is_the_mean_in_standard_deviations(page, sample):
    table = explorables.standing(sample)
    frame = sample.table.to_pandas()
    one = (frame["run"] == "bn seed=0") & (frame["layer"] == "conv10")
    mean, variance = (
        frame[one & (frame["metric"] == metric)].set_index("step")["value"]
        for metric in ("mean[0]", "variance[0]")
    )
    mine = table[(table["arm"] == "bn") & (table["layer"] == "conv10")].set_index("step")["value"]
    np.testing.assert_allclose(mine, mean / np.sqrt(variance))
    drawn = {
        (row["arm"], row["layer"], row["x"]): row["y"]
        for row in drawn_rows(page, "standing")
        if {"x", "y", "every"} <= row.keys()
    }
    assert len(drawn) == len(noise.ARMS) * len(LAYERS) * (STEPS // EVERY + 1)
    for step, value in mine.items():
        assert drawn[LABELS["bn"], "conv10", step] == pytest.approx(value, rel=0.01, abs=1e-3)


def test_what_lies_beyond_the_limit_is_cut_and_what_is_not_finite_keeps_its_place(sample):
    spec = explorables.standing_chart(sample, limit=0.05).to_dict()
    values = [float(v) for row in spec["data"]["values"] for v in row["values"].split()]
    assert min(values) == -0.05 and max(values) == 0.05
    frame = sample.table.to_pandas()
    lost = (frame["run"] == "bn seed=0") & (frame["step"] == 2 * EVERY) & (frame["layer"] == "conv2")
    rest = records.Record("sample", "smoke", sample.table.filter(pa.array(~lost)), sample.provenance)
    spec = explorables.standing_chart(rest).to_dict()
    (row,) = [r for r in spec["data"]["values"] if (r["arm"], r["layer"]) == ("Batch norm", "conv2")]
    assert [text == "×" for text in row["values"].split()][:4] == [False, False, True, False]


def test_jumps_are_medians_of_the_distances_between_neighbours(sample):
    table = explorables.standing(sample)
    values = table[(table["arm"] == "noisy_bn") & (table["layer"] == "conv2")].sort_values("step")["value"]
    assert explorables.jumps(table)["noisy_bn", "conv2"] == pytest.approx(median(abs(np.diff(values))))


# --- how much noise ---


@pytest.mark.parametrize("metric", ["train_accuracy", "test_accuracy"])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_words_give_the_medians_ranges_and_paired_changes_of_the_record(
    view, strengths, metric, strength
):
    found = words(view("dose", strength=strength, metric=metric))
    assert f"At strength {strength:g}, median (range):" in found
    for arm in ("noisy_bn", "noisy_standard"):
        late, without = (noise.late_accuracy(strengths, arm, metric, k) for k in (strength, 0.0))
        values = [100 * late[seed] for seed in late]
        change = median(100 * (late[seed] - without[seed]) for seed in late)
        (line,) = [text for text in found if text.startswith(LABELS[arm])]
        numbers = [
            float(text.replace("−", "-"))
            for text in line.removeprefix(f"{LABELS[arm]}: ")
            .replace(" % (", " ")
            .replace("–", " ")
            .replace(")", "")
            .replace(",", "")
            .split()
            if text not in ("by", "noise")
        ]
        expected = [median(values), min(values), max(values)] + ([change] if strength else [])
        # The page gets four significant digits and rounds to one decimal.
        assert numbers == pytest.approx(expected, abs=0.12)


def test_every_seed_is_drawn_at_every_strength(view, strengths):
    found = pd.DataFrame(rows_with(view("dose", strength=1.0, metric="train_accuracy"), "x", "change"))
    assert set(found["x"]) == set(STRENGTHS)
    assert (found.groupby(["arm", "x"])["seed"].nunique() == SEEDS).all()


def test_the_words_stay_within_a_phone(page, view):
    view("dose", strength=4.0, metric="test_accuracy")
    for seed, arm in itertools.product(range(SEEDS), LABELS.values()):
        view("moments", arm=arm, layer="conv10", moment="deviation", seed=seed, same=True)
    outside = page.evaluate(
        """() => [...document.querySelectorAll("#dose svg, #moments svg")].flatMap((svg) => {
            const box = svg.getBoundingClientRect();
            return [...svg.querySelectorAll("text")].filter((e) => {
                const own = e.getBoundingClientRect();
                return own.right > box.right + 1 || own.left < box.left - 1 || own.bottom > box.bottom + 1;
            }).map((e) => e.textContent);
        })"""
    )
    assert outside == []


# --- moments over time ---


@pytest.mark.parametrize("arm, layer, seed", [("bn", "conv2", 0), ("noisy_standard", "conv10", 1)])
def test_moments_and_jumps_are_those_of_the_record(view, sample, arm, layer, seed):
    frame = sample.table.to_pandas()
    mine = frame[(frame["run"] == f"{arm} seed={seed}") & (frame["layer"] == layer)]
    channels = range(explorables.CHANNELS)
    means, variances = (
        {c: mine[mine["metric"] == f"{m}[{c}]"].set_index("step")["value"] for c in channels}
        for m in ("mean", "variance")
    )
    chosen = {"arm": LABELS[arm], "layer": layer, "seed": seed, "same": False}
    for moment in ("mean", "deviation"):
        data = view("moments", moment=moment, **chosen)
        found = {(row["channel"], row["x"]): row["y"] for row in rows_with(data, "y", "mean_jump", "channel")}
        assert len(found) == len(channels) * (STEPS // EVERY + 1)
        for c in channels:
            expected = means[c] if moment == "mean" else np.sqrt(variances[c])
            np.testing.assert_allclose(
                [found[c, step] for step in expected.index], expected, rtol=0.01, atol=1e-3
            )
    assert f"{LABELS[arm]}, {layer}, seed {seed}" in words(data)
    jumps = [abs(np.diff(means[c])) / np.sqrt(variances[c].to_numpy()[1:]) for c in channels]
    (line,) = [text for text in words(data) if text.startswith(f"In {EVERY} steps")]
    said = float(line.removeprefix(f"In {EVERY} steps the mean moves by ").removesuffix(" σ (median)"))
    assert said == pytest.approx(np.median(np.concatenate(jumps)), rel=0.06)


def test_all_arms_share_an_axis_if_asked_to(view, page, sample):
    def axis() -> list[float]:
        return page.evaluate("() => document.getElementById('moments').view.scale('y').domain()")

    shared, own = set(), set()
    for arm in LABELS.values():
        for same, ends in ((True, shared), (False, own)):
            view("moments", arm=arm, layer="conv2", moment="mean", seed=0, same=same)
            ends.add(tuple(axis()))
    assert len(shared) == 1
    assert len(own) > 1


def test_a_run_that_stopped_early_has_a_shorter_series(sample):
    rows = explorables.moment_rows(sample)
    lengths = {
        (row["arm"], row["seed"]): {len(row["mean"].split()), len(row["deviation"].split())} for row in rows
    }
    assert lengths.pop((LABELS["noisy_standard"], SEEDS - 1)) == {20 // EVERY + 1}
    assert set(map(frozenset, lengths.values())) == {frozenset({STEPS // EVERY + 1})}


# --- for every reader ---


def test_every_control_says_what_it_moves_and_every_figure_has_alt_text(sample, strengths):
    for box in (explorables.dose_and_accuracy(strengths), explorables.moments_over_time(sample)):
        panel, explorer = box.children
        assert len(explorer.description) > 100
        assert all(control.description for control in panel.children)
        assert len(panel.children) == len(explorer.params)
    dots = explorables.grouped_dots_chart(explorables.accuracies(sample), y_title="Accuracy (%)")
    standing = explorables.standing_chart(sample)
    for chart in (dots, standing):
        text = chart.to_dict()["description"]
        assert all(label in text for label in LABELS.values())
