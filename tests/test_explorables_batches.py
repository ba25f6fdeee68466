"""The figures of chapter 13 compute what `small_batches`, pandas and the claims compute."""

import itertools
import math

import numpy as np
import pytest
import torch
from browser import assert_fits, drawn, rows_with, told
from sample import record_of

from bnlib import charts, norms, records
from bnlib.experiments import batches
from bnlib.explorables import batches as explorables
from bnlib.theory import small_batches

SEEDS = 3
SIZES = [2, 8, 32]


def _runs(arms, factors):
    """Runs for every arm, value of the factor and seed, each with 10 steps."""
    name, values = factors
    return [
        {
            "id": f"{arm} {value} {seed}",
            "arm": arm,
            "seed": seed,
            "settings": {name: value, "steps": 10},
            "diverged_at": None,
        }
        for arm, value, seed in itertools.product(arms, values, range(SEEDS))
    ]


def _sizes(seed: int, arms=tuple(batches.ARMS), sizes=SIZES) -> records.Record:
    rng = np.random.default_rng(seed)
    runs, rows = _runs(arms, ("batch_size", sizes)), []
    for run in runs:
        metrics = ["test_accuracy", "test_accuracy_running", "test_accuracy_batch", "mode_disagreement"]
        metrics += ["test_accuracy_reestimated"] if run["arm"] == "bn" else []
        rows += [(run["id"], 10, "", metric, rng.uniform()) for metric in metrics]
        rows += [(run["id"], 0, "", "test_accuracy", 0.0)]
        rows += [
            (run["id"], 10, layer, "inverse_variance", rng.uniform(1, 3)) for layer in ("linear1", "linear2")
        ]
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def sized() -> dict[str, records.Record]:
    return {"flat": _sizes(0, sizes=[2, 4, 8, 32]), "conv": _sizes(1, ("bn", "group", "batch_renorm"))}


@pytest.fixture(scope="module")
def shifted() -> records.Record:
    rng = np.random.default_rng(2)
    runs, rows = _runs(("bn", "group"), ("lr", [0.1])), []
    for run in runs:
        cases = ["clean=0", *(f"{k}={s:g}" for k, strengths in batches.SHIFTS.items() for s in strengths)]
        hows = ["running", "batch", "n=8", "n=32"] if run["arm"] == "bn" else ["running"]
        rows += [
            (run["id"], step, "", f"accuracy[{how}]@{case}", rng.uniform())
            for step, how, case in itertools.product((0, 10), hows, cases)
        ]
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def trained() -> records.Record:
    rng = np.random.default_rng(3)
    runs, rows = _runs(("bn",), ("train_only", batches.TRAINED)), []
    for run in runs:
        rows.append((run["id"], 10, "", "test_accuracy", rng.uniform()))
        rows += [
            (run["id"], step, layer, f"{letter}[{channel}]", rng.normal())
            for step, layer, letter, channel in itertools.product(
                (0, 10), ("conv1", "conv2"), ("gamma", "beta"), range(5)
            )
        ]
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def ranked() -> records.Record:
    rng = np.random.default_rng(4)
    runs, rows = _runs(("bn", "standard"), ("width", [8, 16])), []
    for run in runs:
        run["settings"]["depth"] = 100
        rows += [(run["id"], depth, "", "soft_rank", rng.uniform(1, 4)) for depth in (1, *range(2, 101))]
    return record_of(runs, rows)


IMAGES = {"one": [np.eye(8), np.zeros((8, 8))], "two": [np.eye(8) / 2, np.ones((8, 8))]}


@pytest.fixture(scope="module")
def page(sized, shifted, trained, ranked):
    """A page as narrow as a phone with all charts drawn."""
    figures = {
        "normalised": explorables.normalised(),
        "sizes": explorables.sizes(sized),
        "shifts": explorables.shifts(shifted, "a sample"),
        "modes": explorables.modes_chart(sized),
        "images": explorables.images_chart(IMAGES, 0, 1),
        "parts": explorables.parts_chart(trained),
        "scales": explorables.scales_chart(trained),
        "rank": explorables.rank_chart(ranked),
    }
    with drawn(figures, width=390) as page:
        yield page


# --- what normalising m values does to them ---


@pytest.mark.parametrize("m", [3, 4, 5, 16, 64])
def test_the_curve_is_the_density(view, m):
    found = rows_with(view("normalised", count=m, push=0), "u", "x", "y")
    assert len(found) == 161
    x = torch.tensor([row["x"] for row in found], dtype=torch.float64)
    expected = small_batches.normalised_density(x, m)
    inside = slice(2, -2)  # at the ends the density may be infinite
    y = torch.tensor([row["y"] for row in found], dtype=torch.float64)
    torch.testing.assert_close(y[inside], expected[inside], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("m", [2, 4, 64])
@pytest.mark.parametrize("push", [0, 7.5])
def test_the_dots_are_normalised_batches(view, m, push):
    found = rows_with(view("normalised", count=m, push=push), "row", "i", "raw", "x")
    values = torch.tensor(explorables.gaussian_batches()[:, :m])
    values[:, 0] += push
    expected = norms.batch_norm(values.T, eps=0.0).y.T
    assert len(found) == expected.numel()
    for row in found:
        assert row["x"] == pytest.approx(expected[row["row"], row["i"] - 1].item(), abs=1e-6)
    words = told(view("normalised", count=m, push=push))
    assert f"Largest |ŷ| of the dots: {expected.abs().max():.2f}" in words


@pytest.mark.parametrize("m", [2, 3, 8, 64])
def test_the_words_are_those_of_the_theory(view, m):
    words = told(view("normalised", count=m, push=0))
    bound, theory = small_batches.samuelson_bound(m), small_batches.gaussian_batch(m)
    assert f"m = {m}: no value beyond ±√{m - 1} = ±{bound:.2f}" in words
    assert f"Kurtosis {theory.kurtosis:.2f} (Gaussian: 3)" in words
    (line,) = (line for line in words if line.startswith("1/σ²"))
    said = line.split(" ")[4]
    if math.isinf(theory.inverse_variance):
        assert said == "infinite"
    else:
        assert float(said) == pytest.approx(theory.inverse_variance, abs=6e-4)


def test_of_two_only_two_spikes_are_left(view):
    data = view("normalised", count=2, push=0)
    assert [row["x"] for row in rows_with(data, "x", "y", "words")] == [-1, 1]
    assert not [row for rows in data for row in rows if "u" in row]
    assert not [row for rows in view("normalised", count=3, push=0) for row in rows if "words" in row]


# --- batch size ---


@pytest.mark.parametrize("net, quantity, size", [(0, 0, 2), (1, 2, 8), (0, 3, 4), (1, 0, 4), (0, 1, 32)])
def test_the_curves_are_medians_over_the_seeds(sized, view, net, quantity, size):
    record, metric = list(sized.values())[net], list(explorables.QUANTITIES)[quantity]
    data = view("sizes", net=net, quantity=quantity, size=size)
    expected = {
        (charts.ARMS[arm].label, s): 100 * float(np.median(list(values.values())))
        for arm in explorables.arms_of(record)
        for s, values in batches.by_size(record, arm, metric).items()
    }
    found = {
        (row["arm"], row["x"]): row["y"]
        for rows in data
        for row in rows
        if {"arm", "x", "y"} <= set(row) and "seed" not in row
    }
    assert found == {key: pytest.approx(value, rel=1e-3) for key, value in expected.items()}
    words = told(data)
    assert {f"{list(sized)[net]}, batch of {size}:", explorables.QUANTITIES[metric]} <= set(words)
    here = {arm: value for (arm, s), value in found.items() if s == size}
    assert {f"{arm} {value:.1f} %" for arm, value in here.items()} <= set(words)
    assert ("Not recorded." in words) == (not here)


def test_by_size_is_read_at_the_last_step(sized):
    record = sized["conv"]
    frame = record.frame("batch_size", metric="test_accuracy")
    part = frame[(frame["step"] == 10) & (frame["arm"] == "bn") & (frame["batch_size"] == 8)]
    assert batches.by_size(record, "bn")[8] == dict(zip(part["seed"], part["value"], strict=True))


def test_the_modes_have_a_curve_each(sized, view):
    found = rows_with(view("modes"), "panel", "arm", "x", "y", "seed")
    record = sized["flat"]
    for metric, arm in explorables.MODES.items():
        expected = batches.by_size(record, "bn", metric)[4][1]
        values = {
            row["y"]
            for row in found
            if (row["panel"], row["arm"], row["x"], row["seed"]) == ("flat", arm.label, 4, 1)
        }
        assert list(values) == [pytest.approx(100 * expected, rel=1e-4)]


def test_inverse_variances_stand_beside_the_theory(sized):
    table = explorables.inverse_variances(sized["flat"], 8)
    assert sorted(set(table["batch_size"])) == [8, 32]
    assert table["theory"].tolist() == [8 / 5] * 6 + [32 / 29] * 6  # two layers, three seeds
    frame = sized["flat"].frame("batch_size", metric="inverse_variance")
    part = frame[(frame["arm"] == "bn") & (frame["batch_size"] == 8) & (frame["seed"] == 0)]
    (value,) = part[part["layer"] == "linear1"]["value"]
    assert table["value"].iloc[0] == value


# --- other images ---


@pytest.mark.parametrize("kind, level", [("brightness", 2), ("noise", 0), ("blur", 3), ("colour", 1)])
def test_the_dots_are_the_recorded_accuracies(shifted, view, kind, level):
    data = view("shifts", kind=list(batches.SHIFTS).index(kind), level=level)
    frame = batches.shifted(shifted)
    if level == 0:
        frame = frame[frame["kind"] == "clean"]
    else:
        strength = batches.SHIFTS[kind][level - 1]
        frame = frame[(frame["kind"] == kind) & (frame["strength"] == strength)]
    words = explorables.hows(shifted)
    expected = sorted(
        ("group norm" if row.arm == "group" else words[row.how], float(f"{100 * row.value:.4g}"))
        for row in frame.itertuples()
    )
    found = sorted((row["x"], row["y"]) for row in rows_with(data, "values", "x", "y"))
    assert found == expected
    medians = 100 * frame.groupby(["arm", "how"])["value"].median()
    lines = told(data)
    assert lines[0].startswith(kind.capitalize() + (": no shift" if level == 0 else ", strength "))
    assert f"BN, training’s statistics: {medians['bn', 'running']:.1f} %" in lines
    assert f"BN, those of 32 such images: {medians['bn', 'n=32']:.1f} %" in lines
    assert f"Group norm, which has none: {medians['group', 'running']:.1f} %" in lines


def test_pixels_are_drawn_where_they_are(view):
    found = rows_with(view("images"), "x", "y", "grey")
    assert len(found) == 4 * 64
    at = {(row["x"], row["y"]): row["grey"] for row in found}
    assert at[3, 3] == 1 and at[3, 4] == 0  # the diagonal of the first image
    assert at[3, 14] == 0.5 and at[9 + 3, 14] == 1


# --- gamma and beta alone, and rank ---


def test_gammas_are_counted_by_layer(trained, view):
    found = rows_with(view("scales"), "arm", "row", "x", "top", "base")
    frame = batches.scales(trained, "gamma_beta")
    assert len(frame) == SEEDS * 2 * 5
    total = [row["top"] - row["base"] for row in found if row["row"] == 0 and row["arm"] == "γ and β"]
    others = [row["top"] - row["base"] for row in found if row["row"] == 1 and row["arm"] == "γ and β"]
    assert sum(total) == pytest.approx(sum(others), rel=1e-3), "each layer's shares add up to 1"


def test_parts_are_dots(trained, view):
    found = rows_with(view("parts"), "arm", "seed", "y")
    expected = {
        (explorables.PARTS[what].label, seed): 100 * value
        for what in batches.TRAINED
        for seed, value in batches.trained(trained, what).items()
    }
    assert {(row["arm"], row["seed"]): row["y"] for row in found} == {
        key: pytest.approx(value, rel=1e-4) for key, value in expected.items()
    }


def test_ranks_are_thinned_not_changed(ranked, view):
    found = rows_with(view("rank"), "panel", "arm", "x", "y", "seed")
    depths = sorted({row["x"] for row in found})
    assert depths == [1, *range(2, 101, 2)]
    frame = batches.ranks(ranked, "bn")
    (value,) = frame[(frame["width"] == 16) & (frame["seed"] == 2) & (frame["depth"] == 50)]["value"]
    key = ("width 16, root 4", "Batch norm", 50, 2)
    values = {row["y"] for row in found if (row["panel"], row["arm"], row["x"], row["seed"]) == key}
    assert list(values) == [pytest.approx(value, rel=1e-4)]


@pytest.mark.parametrize("name", ["normalised", "sizes", "shifts"])
def test_every_param_has_a_labelled_control_and_the_figure_an_alt_text(sized, shifted, name):
    build = {
        "normalised": explorables.normalised,
        "sizes": lambda: explorables.sizes(sized),
        "shifts": lambda: explorables.shifts(shifted, "a sample"),
    }[name]
    panel, explorer = build().children
    assert len(panel.children) == len(explorer.params)
    assert all(control.description for control in panel.children)
    assert len(explorer.description) > 100 and any(c.isdigit() for c in explorer.description)
    assert build().children[1].spec == explorer.spec


def test_alt_texts_have_the_medians(sized, shifted):
    value = 100 * float(np.median(list(batches.by_size(sized["flat"], "bn")[2].values())))
    assert f"Batch norm {charts.spell(value)} at 2" in explorables.sizes(sized).children[1].description
    frame = batches.shifted(shifted)
    frame = frame[(frame["kind"] == "blur") & (frame["strength"] == 4) & (frame["how"] == "running")]
    value = 100 * frame[frame["arm"] == "bn"]["value"].median()
    text = explorables.shifts(shifted, "a sample").children[1].description
    assert f"blur 4: {charts.spell(value)} with training's" in text


@pytest.mark.parametrize("width", [390, 900])
@pytest.mark.parametrize("name", ["normalised", "sizes", "shifts", "parts"])
def test_a_chart_fits_its_place(page, name, width):
    assert_fits(page, name, width)


@pytest.mark.parametrize("name", ["modes", "scales", "rank", "images"])
def test_panels_and_images_are_no_wider_than_a_phone(page, name):
    page.set_viewport_size({"width": 390, "height": 900})
    script = "id => document.querySelector(`#${id} svg`).getBoundingClientRect().width <= 390"
    page.wait_for_function(script, arg=name, timeout=5000)  # a chart draws itself anew
