"""The figures and explorables of chapter 3 against numpy, read out of running Vega views."""

import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from browser import drawn, rows_with
from sample import record_of

from bnlib import records
from bnlib.explorables import distributions as explorables
from bnlib.probes.activations import LEVELS

STEPS, HISTOGRAMS, MOMENTS, SEEDS = 45, 10, 5, 2  # the last histogram, at 45, is off the beat
LAYERS = ("conv2", "conv8")
NORMAL = np.array([NormalDist().inv_cdf(p) for p in LEVELS])


def spread_of(arm: str, layer: str, step: int) -> float:
    """The standard network starts narrow and grows; BN keeps 1."""
    return 1.0 if arm == "bn" else (0.1 if layer == "conv8" else 0.5) * (1 + step / 15)


def centre_of(arm: str, seed: int, step: int, channel: int = 0) -> float:
    return 0.01 * step * (1 + seed) * (1 + channel) if arm == "standard" else 0.0


@pytest.fixture(scope="module")
def record() -> records.Record:
    """Gaussian activations, so that every recorded number is known."""
    runs, rows = [], []
    for arm in ("standard", "bn"):
        for seed in range(SEEDS):
            name = f"{arm} seed={seed}"
            settings = {"lr": 0.1, "steps": STEPS}
            runs.append({"id": name, "arm": arm, "seed": seed, "settings": settings, "diverged_at": None})
            rows += [(name, step, "", "train_loss", 2 - 0.02 * step - 0.1 * seed) for step in range(STEPS)]
            for layer in LAYERS:
                for step in (s for s in range(STEPS + 1) if s % MOMENTS == 0):
                    spread, centre = spread_of(arm, layer, step), centre_of(arm, seed, step)
                    rows += [
                        (name, step, layer, "mean", centre),
                        (name, step, layer, "variance", spread**2),
                        (name, step, layer, "deviation", spread),
                        (name, step, layer, "wasserstein", 0.3 if arm == "standard" else 0.02),
                    ]
                    for channel in range(2):
                        rows += [
                            (name, step, layer, f"mean[{channel}]", centre_of(arm, seed, step, channel)),
                            (name, step, layer, f"variance[{channel}]", spread**2),
                        ]
                    if step % HISTOGRAMS == 0 or step == STEPS:
                        rows += [
                            (name, step, layer, f"quantile={p}", centre + spread * z)
                            for p, z in zip(LEVELS, NORMAL, strict=True)
                        ]
    return record_of(runs, rows)


WORDS = {"conv2": "layer 2", "conv8": "layer 8"}


@pytest.fixture(scope="module")
def places(record) -> list[explorables.Place]:
    return [explorables.Place(f"sample, {words}", record, layer) for layer, words in WORDS.items()]


# --- recorded histograms ---


def test_every_histogram_is_a_row_of_quantiles(record):
    table = explorables.quantiles(record)
    assert list(table.columns) == LEVELS
    assert len(table) == 2 * SEEDS * len(LAYERS) * 6
    expected = centre_of("standard", 1, 20) + spread_of("standard", "conv8", 20) * NORMAL
    np.testing.assert_allclose(table.loc["standard", 1, "conv8", 20], expected)


def test_a_density_holds_the_mass_between_the_quantiles_and_is_that_of_the_distribution():
    grid = np.linspace(-4, 4, 61)
    found = explorables.density(np.array(LEVELS), 0.3 + NORMAL, grid)
    assert found.sum() * (grid[1] - grid[0]) == pytest.approx(LEVELS[-1] - LEVELS[0])
    middle = np.abs(grid - 0.3) < 1.5
    expected = [NormalDist(0.3).pdf(x) for x in grid[middle]]
    np.testing.assert_allclose(found[middle], expected, atol=0.02)
    assert (found[np.abs(grid - 0.3) > 3] == 0).all()


def test_the_distance_of_snapshots_is_in_standard_deviations_of_the_earlier_one(record):
    frame = explorables.snapshot_shift(record).set_index(["arm", "seed", "layer", "step"])["value"]
    assert sorted(frame["bn", 0, "conv2"].index) == [0, 10, 20, 30, 40]
    assert frame["bn"].abs().max() == 0
    for step, later in ((0, 10), (40, STEPS)):
        old, new = (spread_of("standard", "conv8", s) for s in (step, later))
        shift = centre_of("standard", 1, later) - centre_of("standard", 1, step)
        # Between the outermost quantiles, by trapezia.
        apart = np.abs(shift + (new - old) * NORMAL)
        expected = np.sum((apart[1:] + apart[:-1]) / 2 * np.diff(LEVELS)) / old
        assert frame["standard", 1, "conv8", step] == pytest.approx(expected)


def test_a_snapshot_distance_is_the_gaussians_up_to_the_tails(record):
    frame = explorables.snapshot_shift(record).set_index(["arm", "seed", "layer", "step"])["value"]
    delta, s = 0.1 / 0.5, 1 + 10 / 15
    normal = NormalDist()
    a = s - 1
    exact = a * math.sqrt(2 / math.pi) * math.exp(-((delta / a) ** 2) / 2) + delta * (
        2 * normal.cdf(delta / a) - 1
    )
    assert frame["standard", 0, "conv2", 0] == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("gap", [5, 20])
def test_the_drift_of_channels_is_an_average_over_them(record, gap):
    frame = explorables.channel_drift(record, gap)
    found = frame.set_index(["arm", "seed", "layer", "step"])["value"]
    assert frame["step"].max() == STEPS - gap
    moved = 0.01 * gap * 2 * np.mean([1, 2])  # seed 1, channels 0 and 1
    assert found["standard", 1, "conv8", 10] == pytest.approx(moved / spread_of("standard", "conv8", 10))
    assert found["bn"].abs().max() == 0


# --- figures ---


def test_the_alt_texts_of_the_figures_say_what_is_in_them(record):
    ridges = explorables.ridge_grid(record, WORDS).description
    assert "from step 0 (top) to 45 (bottom)" in ridges
    assert "Standard, layer 8: standard deviation 0.25 and mean 0 at first, 1 and 1.1 at the end" in ridges
    bands = explorables.channel_bands(record, WORDS, seed=1).description
    assert "over 45 training steps" in bands
    assert "Standard, layer 8: means from 0 to 4.5" in bands
    assert "Batch norm, layer 2: means from 0 to 0" in bands


def test_ridges_are_packed_and_scaled_to_one_height(record):
    spec = explorables.ridge_grid(record, WORDS).to_dict()
    rows = spec["data"]["values"]
    assert [row["panel"] for row in rows[:6]] == ["Standard, layer 2"] * 6
    assert {row["place"] for row in rows} == set(range(6))
    for row in rows:
        assert max(float(h) for h in row["heights"].split()) == 1.8
        assert len(row["heights"].split()) == explorables.GRID


def test_movement_and_loss_has_one_dot_per_arm_and_rate():
    frame = pd.DataFrame(
        [("bn", 0.1, s, 0.02 + 0.01 * s, 0.2) for s in range(2)] + [("standard", 0.3, 0, 0.4, 1.5)],
        columns=["arm", "lr", "seed", "motion", "loss"],
    )
    chart = explorables.motion_and_loss(frame)
    assert "Batch norm: rate 0.1 moves 0.025 and ends at 0.2" in chart.description
    assert "Standard: rate 0.3 moves 0.4 and ends at 1.5" in chart.description
    (values,) = chart.to_dict()["datasets"].values()
    assert [(row["arm"], row["words"]) for row in values] == [("Batch norm", "0.1"), ("Standard", "0.3")]


# --- in the page ---


@pytest.fixture(scope="module")
def page(record, places):
    """A page with all charts drawn."""
    figures = {
        "histograms": explorables.moving_histograms(places),
        "toy": explorables.wasserstein_toy(),
        "ridges": explorables.ridge_grid(record, WORDS),
        "bands": explorables.channel_bands(record, WORDS),
    }
    with drawn(figures) as page:
        yield page


def bins(data: list[list[dict]], arm: str, back: int = 0) -> pd.DataFrame:
    """The drawn points of one arm's histogram."""
    frame = pd.DataFrame(rows_with(data, "following", "ink", "x", "y"))
    frame = frame[(frame["arm"] == arm) & (frame["back"] == back)].dropna(subset=["following"])
    return frame.drop_duplicates("k").sort_values("k")


@pytest.mark.parametrize(
    "place, seed, step, shown, before",
    [(0, 0, 0, 0, 0), (1, 1, 20, 20, 10), (1, 0, 29, 20, 10), (0, 1, 45, 45, 40), (1, 1, 400, 45, 40)],
)
@pytest.mark.parametrize("measure", ["raw", "own"])
def test_the_page_draws_the_recorded_histogram(view, place, seed, step, shown, before, measure):
    data = view("histograms", place=place, seed=seed, step=step, measure=measure, chosen="both")
    kept = explorables._kept(np.array(LEVELS))
    assert {0, 40} < set(kept.tolist()) and len(kept) == 22
    for arm, label in (("standard", "Standard"), ("bn", "Batch norm")):
        unit = spread_of(arm, LAYERS[place], STEPS) if measure == "own" else 1
        for back, at in ((0, shown), (1, before)):
            spread = spread_of(arm, LAYERS[place], at)
            edges = (centre_of(arm, seed, at) + spread * NORMAL)[kept]
            drawn = bins(data, label, back)
            np.testing.assert_allclose(drawn["x"], (edges[1:] + edges[:-1]) / 2 / unit, rtol=2e-3, atol=2e-3)
            height = np.diff(np.array(LEVELS)[kept]) / np.diff(edges) * spread
            np.testing.assert_allclose(drawn["y"], height, rtol=0.02)  # the page gets four digits
    headings = {row["words"] for rows in data for row in rows if isinstance(row.get("words"), str)}
    assert f"Step {shown} of {STEPS}" in headings


def test_the_words_are_those_of_the_record(view):
    data = view("histograms", place=1, seed=1, step=30, measure="raw", chosen="both")
    words = [row["words"] for rows in data for row in rows if isinstance(row.get("words"), list)]
    # The loss is a mean over steps 30 to 39 of 2 - 0.02 step - 0.1.
    expected = ["Standard: mean 0.600, std 0.3, loss 1.21", "one more step moves it by 0.3 std"]
    assert expected in words
    assert ["Batch norm: mean 0.000, std 1, loss 1.21", "one more step moves it by 0.02 std"] in words


def test_the_chosen_arm_is_drawn_strongly_and_the_axes_keep_still(page, view):
    frames = []
    for step in (0, 40):
        data = view("histograms", place=0, seed=0, step=step, measure="raw", chosen="Batch norm")
        assert set(bins(data, "Batch norm")["ink"]) == {1}
        assert set(bins(data, "Standard")["ink"]) == {0.25}
        scales = "document.getElementById('histograms').view"
        frames.append(page.evaluate(f"[{scales}.scale('x').domain(), {scales}.scale('y').domain()]"))
    assert frames[0] == frames[1]


def test_the_histograms_words_stay_within_the_figure(page, view):
    view("histograms", place=0, seed=0, step=10, measure="own", chosen="both")
    outside = page.evaluate(
        """() => {
            const svg = document.querySelector("#histograms svg").getBoundingClientRect();
            return [...document.querySelectorAll("#histograms svg text")]
                .filter((e) => e.getBoundingClientRect().bottom > svg.bottom + 0.5)
                .map((e) => e.textContent);
        }"""
    )
    assert outside == []


@pytest.mark.parametrize("shift, factor", [(1.0, 1.0), (0.0, 1.5), (0.5, 0.6), (2.0, 2.0), (0.0, 1.0)])
def test_the_toy_spells_out_the_distance_of_two_gaussians(view, shift, factor):
    data = view("toy", shift=shift, factor=factor)
    z = np.array([NormalDist().inv_cdf((k + 0.5) / 20000) for k in range(20000)])
    distance = np.abs(shift + (factor - 1) * z).mean()
    words = [row["words"] for rows in data for row in rows if isinstance(row.get("words"), list)]
    assert ["shaded area:", f"distance {distance:.2f}"] in words


def test_every_control_says_what_it_moves_and_the_figures_have_alt_text(places):
    for box in (explorables.moving_histograms(places), explorables.wasserstein_toy()):
        panel, explorer = box.children
        assert len(explorer.description) > 100
        assert all(control.description for control in panel.children)
        assert len(panel.children) == len(explorer.params)


def test_the_alt_text_of_the_histograms_names_every_place(places):
    (_, explorer) = explorables.moving_histograms(places).children
    assert "sample, layer 8: Standard from standard deviation 0.1 to 0.4" in explorer.description
    assert "of which a typical step moves 0.02" in explorer.description
