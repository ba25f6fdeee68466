"""The explorables of chapter 6 compute what numpy, pandas and the claims compute, read out of running Vega
views."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from browser import assert_fits, drawn, rows_with
from sample import record_of

from bnlib import charts, records
from bnlib.experiments import surfaces
from bnlib.explorables import surfaces as explorables
from bnlib.widgets import Explorer

SEEDS, GAINS = 3, (0.25, 1.0, 4.0)
POSITIONS = [-0.25 + 0.25 * k for k in range(8)]
LENGTHS = [-1.0, -0.5, 0.0, 0.5, 1.0]
GRID, RANDOM_GRID = [-0.5, 0.0, 0.5, 1.0, 1.5], [-1.0, 0.0, 1.0]
LAYERS = ["conv1", "conv2", "classifier"]
LABELS = {"standard": "Standard", "bn": "Batch norm"}
LOST = ("bn", 2)  # its training with momentum has diverged: no plane
GONE = ("standard", 4.0, 1)  # its only training has


def sample() -> records.Record:
    """A record that was never on disk, random but for what has diverged."""
    rng = np.random.default_rng(0)
    runs, rows = [], []
    for arm, gain, seed in itertools.product(surfaces.ARMS, GAINS, range(SEEDS)):
        name = f"{arm} {gain} {seed}"
        optimisers = dict(surfaces.OPTIMISERS) if gain == 1.0 else {"sgd": surfaces.OPTIMISERS["sgd"]}
        settings = {"gain": gain, "optimisers": dict(sorted(optimisers.items())), "steps": 30}
        runs.append({"id": name, "arm": arm, "seed": seed, "settings": settings, "diverged_at": None})

        def note(metric: str, value: float, layer: str = "", name: str = name) -> None:
            rows.append((name, 10, layer, metric, value))

        for layer in LAYERS:
            note("input_spread", rng.uniform(1, 50), layer)
        solved = []
        for optimiser in optimisers:
            if (arm, gain, seed) == GONE or ((arm, seed) == LOST and optimiser == "momentum"):
                note(f"diverged_at[{optimiser}]", 3.0)
                continue
            solved.append(optimiser)
            for metric in ("end_loss", "end_accuracy", "end_test_accuracy"):
                note(f"{metric}[{optimiser}]", rng.uniform(0.1, 1))
            for layer in LAYERS:
                note(f"input_spread[{optimiser}]", rng.uniform(1, 50), layer)
        if gain != 1.0 or not solved:
            continue
        for one, other in itertools.combinations(["start", *solved], 2):
            for position in POSITIONS:
                note(f"line[{one}-{other}]@{position:g}", 10 ** rng.uniform(-2, 1))
                if position <= 1 or seed == 0:  # beyond, the others' running variances are negative
                    note(f"evaluation_line[{one}-{other}]@{position:g}", 10 ** rng.uniform(-2, 1))
        if len(solved) == 3:
            for s, t in itertools.product(GRID, repeat=2):
                note(f"plane@{s:g},{t:g}", 10 ** rng.uniform(-2, 1))
        for s, t in itertools.product(RANDOM_GRID, repeat=2):
            note(f"random_plane@{s:g},{t:g}", 10 ** rng.uniform(-2, 1))
        for direction in ("random[0]", "random[1]", "gradient[-]"):
            for length in LENGTHS:
                note(f"{direction}@{length:g}", 10 ** rng.uniform(-2, 1) + 10 * abs(length))
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def record() -> records.Record:
    return sample()


@pytest.fixture(scope="module")
def page(record):
    """A page with the charts drawn."""
    pair = ("start", "sgd")
    figures = {
        "bowl": explorables.bowl(),
        "lines": explorables.lines(record, "a net"),
        "planes": explorables.planes(record, "a net"),
        "walks": explorables.walks(record, "a net"),
        "spread": explorables.spread_chart(record),
        "stale": explorables.stale_chart(record, pair),
        "gain": explorables.gain_chart(record, "end_test_accuracy", "Test accuracy (%)", 100.0),
    }
    with drawn(figures) as page:
        yield page


def words_of(data: list[list[dict]]) -> set[str]:
    return {row["words"] for rows in data for row in rows if row.get("words")}


def written(page, name: str) -> set[str]:
    """All that can be read in the picture itself."""
    return set(
        page.evaluate("n => [...document.querySelectorAll(`#${n} svg text`)].map((e) => e.textContent)", name)
    )


def numbers_in(text: str) -> list[float]:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", text.replace("−", "-"))
    return [float(word.replace(",", "")) for word in found]


# --- Hinton's bowl ---

BOWLS = [
    (1.0, 0.0, 0.0, 1.8, False),
    (5.0, 1.0, 0.9, 0.5, False),
    (0.0, -1.0, -0.95, 1.9, False),
    (3.0, 0.3, 0.4, 2.1, False),
    (0.0, 0.0, 0.0, 1.0, False),
    (5.0, 1.0, 0.6, 1.0, True),
    (2.0, -0.5, -0.8, 2.0, True),
]


@pytest.mark.parametrize("mean, log_scale, correlation, rate, normalised", BOWLS)
def test_the_bowl_is_that_of_the_inputs_second_moments(view, mean, log_scale, correlation, rate, normalised):
    data = view(
        "bowl",
        mean=mean,
        log_scale=log_scale,
        correlation=correlation,
        rate=rate,
        normalised=normalised,
    )
    m, s = (0.0, 1.0) if normalised else (mean, 10.0**log_scale)
    hessian = np.array([[1.0, correlation * s], [correlation * s, s * s]]) + m * m
    low, high = np.linalg.eigvalsh(hessian)
    eta = rate / high
    path = pd.DataFrame(rows_with(data, "k", "x", "y"))
    path = path.drop_duplicates("k").set_index("k").loc[range(explorables.STEPS + 1)]
    away = np.array(explorables.START)
    losses = []
    for k in range(explorables.STEPS + 1):
        np.testing.assert_allclose(path.loc[k, ["x", "y"]].to_numpy(float), away, rtol=1e-7, atol=1e-9)
        losses.append(away @ hessian @ away)
        away = away - eta * hessian @ away
    assert path["l1"].iloc[0] == pytest.approx(high)
    assert path["l2"].iloc[0] == pytest.approx(low, rel=1e-9)
    told = words_of(data)
    (curvature,) = (text for text in told if text.startswith("Curvatures"))
    np.testing.assert_allclose(numbers_in(curvature), [high, low, high / low], rtol=6e-3)
    (left,) = (text for text in told if text.startswith("Rate"))
    found = numbers_in(left)
    assert found[0] == pytest.approx(eta, rel=0.06)
    share = losses[-1] / losses[0]
    if share > 1:
        assert "times the loss" in left and found[-1] == pytest.approx(share, rel=0.06)
    elif "less than" in left:
        assert share < 1e-5
    else:
        assert found[-1] == pytest.approx(100 * share, rel=0.06)
    (speed,) = told - {curvature, left}
    if rate > 2:
        assert speed.startswith("Diverges")
    elif rate == 2:
        assert speed.startswith("Swings")
    else:
        steps, factor = numbers_in(speed)[0], max(abs(1 - rate), abs(1 - eta * low))
        assert factor**steps <= 0.01 * (1 + 1e-6)
        assert steps == 1 or factor ** (steps - 1) > 0.01 * (1 - 1e-6)


def test_each_contour_is_a_line_of_equal_error_through_powers_of_four(view):
    mean, log_scale, correlation = 2.0, 0.4, -0.3
    data = view("bowl", mean=mean, log_scale=log_scale, correlation=correlation, rate=1.0, normalised=False)
    scale = 10.0**log_scale
    hessian = np.array([[1.0, correlation * scale], [correlation * scale, scale**2]]) + mean**2
    found = pd.DataFrame(rows_with(data, "level", "x", "y"))
    start = np.array(explorables.START) @ hessian @ np.array(explorables.START)
    assert found["level"].nunique() == explorables.LEVELS
    for level, part in found.groupby("level"):
        points = part[["x", "y"]].to_numpy(float)
        sizes = np.einsum("ni,ij,nj->n", points, hessian, points)
        np.testing.assert_allclose(sizes, start * 4.0 ** (1 - level), rtol=1e-7)


def test_normalising_removes_means_and_scales_but_not_the_correlation(view):
    ratios = [
        rows_with(
            view("bowl", mean=mean, log_scale=scale, correlation=rho, rate=1.0, normalised=True), "condition"
        )[0]["condition"]
        for mean, scale, rho in [(0, 0, 0), (5, 1, 0), (0, 0, 0.9), (5, -1, 0.9)]
    ]
    np.testing.assert_allclose(ratios, [1, 1, 19, 19], rtol=1e-9)


# --- how lopsided the inputs are ---


def test_spreads_leave_the_first_layer_and_the_other_gains_out(record):
    frame = explorables.spreads(record)
    assert set(frame["layer"]) == {"conv2", "classifier"}
    assert set(frame["number"]) == {2, 3}
    assert frame["moment"].iloc[0] == "at the start"
    raw = record.frame("gain", metric="input_spread[adam]")
    raw = raw[(raw["gain"] == 1.0) & (raw["layer"] == "conv2")].set_index(["arm", "seed"])["value"]
    mine = frame[(frame["moment"] == "after Adam") & (frame["layer"] == "conv2")]
    pd.testing.assert_series_equal(
        mine.set_index(["arm", "seed"])["value"].sort_index(), raw.sort_index(), check_names=False
    )


# --- lines ---


@pytest.mark.parametrize("logarithmic", [True, False])
@pytest.mark.parametrize(
    "pair, mode", [(0, "training"), (1, "evaluation"), (4, "training"), (5, "evaluation")]
)
def test_a_line_shows_every_seed_and_its_words_are_those_of_the_claims(view, record, pair, mode, logarithmic):
    data = view("lines", pair=pair, mode=mode, logarithmic=logarithmic)
    one, other = explorables.pairs_of(record)[pair]
    frame = surfaces.lines(record)
    frame = frame[(frame["one"] == one) & (frame["other"] == other) & (frame["mode"] == mode)]
    expected = frame.set_index(["arm", "seed", "position"])["value"]
    found = pd.DataFrame(rows_with(data, "x", "v", "y"))
    found["arm"] = found["arm"].map({label: arm for arm, label in LABELS.items()})
    found["x"] = found["x"].round(6)
    found = found.drop_duplicates(["arm", "seed", "x"]).set_index(["arm", "seed", "x"])
    assert set(found.index) == set(expected.index)
    np.testing.assert_allclose(found["v"].loc[list(expected.index)], expected, rtol=6e-3)
    drawn = np.log10(found["v"]) if logarithmic else found["v"]
    np.testing.assert_allclose(found["y"], drawn, rtol=1e-6, atol=1e-9)
    told = words_of(data)
    for arm, label in LABELS.items():
        profiles = [part for _, part in frame[frame["arm"] == arm].groupby("seed")]
        heights = [surfaces.barrier(part) for part in profiles]
        clean = sum(surfaces.minima(part.sort_values("position")["value"].tolist()) == 1 for part in profiles)
        (line,) = (text for text in told if text.startswith(f"{label}: "))
        numbers = numbers_in(line)
        np.testing.assert_allclose(
            numbers[:3], [np.median(heights), min(heights), max(heights)], atol=0.06, rtol=1e-2
        )
        assert numbers[3:] == [clean, len(profiles)]
    assert {explorables.WORDS[one], explorables.WORDS[other]} <= told


def test_a_line_has_no_median_where_a_seed_has_no_value(view):
    data = view("lines", pair=0, mode="evaluation", logarithmic=True)
    middle = next(rows for rows in data if rows and "median_y" in rows[0])
    assert max(row["x"] for row in middle) == pytest.approx(1.0)
    assert max(row["x"] for row in rows_with(data, "x", "v", "y")) == pytest.approx(1.5)


def test_pairs_are_in_the_order_of_a_reader(record):
    words = [explorables.pair_words(pair) for pair in explorables.pairs_of(record)]
    assert words == [
        "start to SGD",
        "start to momentum",
        "start to Adam",
        "SGD to momentum",
        "SGD to Adam",
        "momentum to Adam",
    ]


def test_profiles_keep_the_claims_numbers(record):
    table = explorables.profiles(record)
    table = table[(table["mode"] == "training") & (table["one"] != "start") & (table["arm"] == "standard")]
    assert table.groupby("seed")["barrier"].min().to_dict() == pytest.approx(
        surfaces.barriers(record, "standard")
    )


# --- planes ---


@pytest.mark.parametrize(
    "arm, kind, seed", [("bn", "plane", 1), ("standard", "random_plane", 2), ("bn", "random_plane", 2)]
)
def test_a_plane_is_where_it_was_measured(page, view, record, arm, kind, seed):
    level = 0.3
    data = view("planes", arm=LABELS[arm], kind=kind, seed=seed, level=level)
    frame = surfaces.plane(record, kind)
    frame = frame[(frame["arm"] == arm) & (frame["seed"] == seed)]
    found = pd.DataFrame(rows_with(data, "v", "left", "right", "low", "high"))
    found["s"] = ((found["left"] + found["right"]) / 2).round(6)
    found["t"] = ((found["low"] + found["high"]) / 2).round(6)
    found = found.drop_duplicates(["s", "t"]).set_index(["s", "t"])
    expected = frame.set_index(["s", "t"])["value"]
    assert set(found.index) == set(expected.index)
    np.testing.assert_allclose(found["v"].loc[list(expected.index)], expected, rtol=6e-3)
    share = 100 * (expected < level).mean()
    told = words_of(data)
    assert f"{share:.0f} % of this plane lies below a loss of {level:g}" in told
    assert share == pytest.approx(100 * explorables.below(record, kind, level)[arm][seed])
    (line,) = (text for text in told if text.startswith(f"{LABELS[arm]}, seed {seed}"))
    assert numbers_in(line)[-1] == pytest.approx(expected.min(), rel=0.06)
    names = {"plane": {"SGD", "momentum", "Adam"}, "random_plane": {"SGD"}}[kind]
    assert written(page, "planes") & set(explorables.WORDS.values()) == names


def test_a_plane_that_could_not_be_spanned_says_so(page, view):
    arm, seed = LOST
    message, solutions = "Not measured: a training has diverged", set(explorables.WORDS.values())
    view("planes", arm=LABELS[arm], kind="plane", seed=seed, level=1.0)
    assert message in written(page, "planes") and not solutions & written(page, "planes")
    view("planes", arm=LABELS[arm], kind="random_plane", seed=seed, level=1.0)
    assert message not in written(page, "planes") and solutions & written(page, "planes") == {"SGD"}


def test_all_planes_share_one_colour_scale(record):
    low, high = explorables.plane_range(record)
    losses = pd.concat([surfaces.plane(record, kind)["value"] for kind in ("plane", "random_plane")])
    assert low == pytest.approx(losses.min())
    assert high >= 2 * np.log(10)


# --- the scale of the initial weights ---


def test_final_values_know_what_has_diverged(view, record):
    frame = explorables.final_values(record, "end_test_accuracy")
    assert len(frame) == 2 * len(GAINS) * SEEDS
    gone = frame[frame["value"].isna()][["arm", "gain", "seed"]]
    assert [tuple(row) for row in gone.to_numpy()] == [GONE]
    shown = pd.DataFrame(rows_with(view("gain"), "group", "value", "seed"))
    assert len(shown.dropna()) == len(frame) - 1
    middle = next(rows for rows in view("gain") if rows and "median_value" in rows[0])
    cells = {(row["arm"], row["group"]): row["median_value"] for row in middle}
    assert ("Standard", "4") not in cells and len(cells) == 2 * len(GAINS) - 1
    expected = 100 * frame[(frame["arm"] == "bn") & (frame["gain"] == 0.25)]["value"].median()
    assert cells["Batch norm", "1/4"] == pytest.approx(expected, rel=1e-3)
    assert "1 runs diverged" in explorables.gain_chart(record, "end_loss", "Loss").description


# --- random directions and the gradient's ---


@pytest.mark.parametrize("gradient, logarithmic", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("seed, reach", [(0, 1.0), (2, 0.5)])
def test_walks_state_the_rises_of_both_kinds_of_direction(view, record, seed, reach, gradient, logarithmic):
    data = view("walks", seed=seed, reach=reach, gradient=gradient, logarithmic=logarithmic)
    frame = surfaces.walks(record)
    frame = frame[(frame["seed"] == seed) & (frame["length"].abs() <= reach)]
    expected = frame.set_index(["arm", "direction", "length"])["value"]
    found = pd.DataFrame(rows_with(data, "x", "v", "direction"))
    found["arm"] = found["arm"].map({label: arm for arm, label in LABELS.items()})
    found["x"] = found["x"].round(6)
    found = found.drop_duplicates(["arm", "direction", "x"]).set_index(["arm", "direction", "x"])
    shown = expected if gradient else expected[expected.index.get_level_values(1) != "gradient"]
    assert set(shown.index) <= set(found.index) <= set(expected.index)
    np.testing.assert_allclose(found["v"], expected.loc[list(found.index)], rtol=6e-3)
    drawn = np.log10(found["v"]) if logarithmic else found["v"]
    np.testing.assert_allclose(found["y"], drawn, rtol=1e-6, atol=1e-9)
    told = words_of(data)
    assert f"Largest rise at ±{reach:.1f}, seed {seed} (nats):" in told
    for arm, label in LABELS.items():
        rises = {}
        for direction, part in frame[frame["arm"] == arm].groupby("direction"):
            part = part.set_index("length")["value"]
            rises[direction] = max(part[reach], part[-reach]) - part[0.0]
        (line,) = (text for text in told if text.startswith(f"{label}: "))
        steep = rises.pop("gradient")
        np.testing.assert_allclose(numbers_in(line), [max(rises.values()), steep], rtol=2e-2, atol=0.02)
        if reach == max(LENGTHS):
            by_claim = surfaces.rise(record, arm).set_index("seed")["value"]
            assert by_claim[seed] == pytest.approx(steep)


def test_the_width_of_a_valley_is_where_the_loss_has_risen():
    runs = [{"id": "r", "arm": "bn", "seed": 0, "settings": {"gain": 1.0, "optimisers": {"sgd": {}}}}]
    # Slope 1 to the right, slope 2 to the left; the second direction never rises far enough.
    rows = [("r", 1, "", f"random[0]@{x:g}", 1 + (x if x > 0 else -2 * x)) for x in LENGTHS]
    rows += [("r", 1, "", f"random[1]@{x:g}", 1 + 0.1 * abs(x)) for x in LENGTHS]
    record = record_of(runs, rows)
    assert explorables.widths(record, "bn", height=0.5) == {
        0: pytest.approx(np.median([0.5, 0.25, 1.0, 1.0]))
    }


# --- all of them ---


def test_every_control_says_what_it_moves_and_the_figures_have_alt_text(record):
    for build in (
        explorables.bowl,
        lambda: explorables.lines(record, "a net"),
        lambda: explorables.planes(record, "a net"),
        lambda: explorables.walks(record, "a net"),
    ):
        panel, explorer = build().children
        assert isinstance(explorer, Explorer)
        assert len(explorer.description) > 100 and any(c.isdigit() for c in explorer.description)
        assert all(control.description for control in panel.children)
        assert len(panel.children) == len(explorer.params)
        assert build().children[1].spec == explorer.spec  # nothing random between two calls
    for chart in (
        explorables.spread_chart(record),
        explorables.stale_chart(record, ("start", "sgd")),
        explorables.gain_chart(record, "end_loss", "Loss (nats)"),
    ):
        assert any(c.isdigit() for c in chart.description)


def test_arms_look_as_in_every_chapter(record):
    assert [charts.ARMS[arm].label for arm in surfaces.ARMS] == explorables.LABELS


@pytest.mark.parametrize("chart", ["bowl", "lines", "planes", "walks", "spread", "stale", "gain"])
@pytest.mark.parametrize("width", [390, 900])
def test_a_chart_fits_the_page_and_its_words_stay_inside(page, chart, width):
    assert_fits(page, chart, width)
