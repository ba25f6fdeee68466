"""The figures of chapter 11 compute what pandas and the theory compute, read out of running Vega views."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from browser import assert_fits, drawn, rows_with, told
from sample import record_of

from bnlib import charts, records
from bnlib.experiments import directions
from bnlib.explorables import directions as explorables
from bnlib.theory.least_squares import LeastSquares

SEEDS = 3
CONDITIONS, STEPS = (10, 100), (0, 1, 2, 60, 90)
RATES = (0.01, 1.0, 10_000.0)


def _gap(arm: str, condition: int, seed: int, step: int) -> float:
    return (0.9 if arm == "standard" else 0.8 - 0.01 * seed) ** (step * 10 / condition)


@pytest.fixture(scope="module")
def least_squares() -> records.Record:
    runs, rows = [], []

    def run(arm: str, seed: int, **settings: object) -> str:
        name = " ".join([arm, *(f"{k}={v}" for k, v in settings.items()), f"seed={seed}"])
        runs.append({"id": name, "arm": arm, "seed": seed, "settings": settings})
        return name

    for seed, arm in itertools.product(range(SEEDS), ("standard", "bn")):
        for condition in CONDITIONS:
            name = run(arm, seed, problem="least_squares", condition=condition)
            rows += [(name, step, "", "gap", _gap(arm, condition, seed, step)) for step in STEPS]
            rows.append((name, 5000, "", "gap", 1e-20))
            values = {"steps_to": 100 + seed, "late_factor": 0.7, "asymptotic_rate": 0.71, "bound": 0.8}
            rows += [(name, 0, "", metric, value) for metric, value in values.items()]
        name = run(arm, seed, problem="any_rate", condition=50)
        rows.append((name, 0, "", "limit", 0.04))
        for rate, step in itertools.product(RATES, (0, 5, 9)):
            if arm == "bn" or rate < 0.04 or step == 0:
                rows.append((name, step, "", f"gap@{rate:g}", 10.0 ** -(step + seed) * rate))
        if arm == "bn":
            for step, condition in itertools.product(("inverse", "euclidean"), (3, 30)):
                name = run(arm, seed, problem="rayleigh", condition=condition, step=step)
                ideal = 0.2 + 0.1 * seed
                measured = ideal if step == "inverse" else ideal + 0.3
                values = {"largest_factor": measured, "ideal_bound": ideal, "bound": measured + 0.1}
                rows += [(name, 0, "", metric, value) for metric, value in values.items()]
    return record_of(runs, rows)


@pytest.fixture(scope="module")
def hidden() -> records.Record:
    """Three starts; the last one has a bad quadrature, the second a singular b, and with the logistic loss
    and all units free the first one too."""
    rng = np.random.default_rng(0)
    runs, rows = [], []
    for seed, loss, units in itertools.product(range(2), ("square", "softplus"), ("all", "first")):
        name = f"standard loss={loss} units={units} seed={seed}"
        settings = {"problem": "one_hidden_layer", "loss": loss, "units": units}
        runs.append({"id": name, "arm": "standard", "seed": seed, "settings": settings})
        for start in range(3):
            values = {
                "found": 1.0,
                "off_line": rng.uniform(),
                "conditioning": 1e-9 if start == 1 or (loss, units) == ("softplus", "all") else 0.1,
                "stein_gap": 1e-3 if start == 2 else 1e-12,
            }
            rows += [(name, start, "", metric, value) for metric, value in values.items()]
            for unit in (1, 2, 3):
                rows += [(name, start, f"unit{unit}", axis, rng.normal()) for axis in ("along", "across")]
    return record_of(runs, rows)


def _paths() -> list[dict]:
    """One step of the plain method, and made-up ways of the others."""
    paths = []
    for condition, angle in itertools.product((2, 10), (0, 60)):
        s, u = (torch.tensor(part, dtype=torch.float64) for part in explorables.plane_problem(condition))
        problem = LeastSquares(s, u)
        for arm, rate in (("standard", 0), ("gdnp", 0), ("bn", 0.1), ("bn", 10.0)):
            at = problem.descend_without(torch.tensor([0.1 + rate, angle / 60], dtype=torch.float64), 4)
            gap = problem.norm_or_zero(at - problem.optimum) ** 2 / -problem.rho_star
            series = {"x": at[:, 0].tolist(), "y": at[:, 1].tolist(), "gap": gap.tolist()}
            paths.append({"condition": condition, "angle": angle, "arm": arm, "rate": rate, **series})
    return paths


PATHS = _paths()
START = {"condition": 10, "angle": 60, "rate": 10.0, "steps": 3}


@pytest.fixture(scope="module")
def page(least_squares, hidden):
    """A page as narrow as a phone with all charts drawn."""
    figures = {
        "plane": explorables.plane(PATHS, START),
        "gaps": explorables.gap_by_step(least_squares),
        "rates": explorables.rates_chart(least_squares),
        "rayleigh": explorables.rayleigh_chart(least_squares),
        "hidden": explorables.hidden(hidden),
    }
    with drawn(figures, width=390) as page:
        yield page


# --- (a) the plane ---


@pytest.mark.parametrize("condition", [1, 10, 100])
def test_the_planes_problem_has_the_condition_asked_for(condition):
    s, u = (np.array(part) for part in explorables.plane_problem(condition))
    np.testing.assert_allclose(np.linalg.eigvalsh(s), [1, condition], rtol=1e-9)
    best = -np.linalg.solve(s, u)
    turn = math.radians(explorables.OPTIMUM)
    np.testing.assert_allclose(best, [math.cos(turn), math.sin(turn)], rtol=1e-9)
    flat = np.array([math.cos(math.radians(explorables.FLAT)), math.sin(math.radians(explorables.FLAT))])
    np.testing.assert_allclose(s @ flat, flat, rtol=1e-9)


@pytest.mark.parametrize(
    "condition, angle, rate, steps", [(10, 60, 10.0, 3), (2, 0, 0.1, 4), (10, 0, 0.1, 0), (2, 60, 10.0, 1)]
)
def test_the_paths_and_the_readout_are_those_given(view, condition, angle, rate, steps):
    data = view("plane", condition=condition, angle=angle, rate=rate, steps=steps)
    found = pd.DataFrame(rows_with(data, "arm", "x", "y", "i"))
    words = told(data)
    mine = [p for p in PATHS if (p["condition"], p["angle"]) == (condition, angle) and p["rate"] in (0, rate)]
    assert len(mine) == 3
    for path in mine:
        label = explorables.WAYS[path["arm"]].label
        part = found[found["arm"] == label].sort_values("i")
        assert part["x"].tolist() == pytest.approx(path["x"][: steps + 1], rel=6e-3)
        assert part["y"].tolist() == pytest.approx(path["y"][: steps + 1], rel=6e-3)
        (line,) = (text for text in words if text.startswith(f"{label}"))
        assert (f"{label} {path['rate']:g}:" in line) == (path["arm"] == "bn")
        numbers = [
            float(word.replace("−", "-"))
            for word in line.split(": gap ")[1].replace(", last step ×", "").split()
        ]
        gap = path["gap"]
        expected = [gap[steps], *([gap[steps] / gap[steps - 1]] if steps else [])]
        assert numbers == pytest.approx(expected, rel=2e-2)
    bound = charts.spell((1 - 1 / condition) ** 2)
    assert f"Condition {condition}, step {steps}; (1 − μ/L)² = {bound}" in words


def test_contours_and_the_dotted_ellipse(view):
    """On every contour the loss has one value; the best lengths are those of the theory."""
    s, u = (np.array(part) for part in explorables.plane_problem(10))
    best = -np.linalg.solve(s, u)
    data = view("plane", condition=10)
    contours = pd.DataFrame(rows_with(data, "level", "x", "y"))
    off = contours[["x", "y"]].to_numpy() - best
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", off, s, off), contours["level"] ** 2, rtol=1e-5)
    dotted = next(
        rows for rows in data if rows and {"t", "x", "y"} <= rows[0].keys() and "level" not in rows[0]
    )
    at = pd.DataFrame(dotted)[["x", "y"]].to_numpy()
    error = np.einsum("ni,ij,nj->n", at, s, at - best)
    np.testing.assert_allclose(error, 0, atol=1e-5)


# --- (b) gaps by step ---


@pytest.mark.parametrize("condition, scaled", [(10, False), (100, True), (100, False)])
def test_gaps_are_those_recorded(view, condition, scaled):
    data = view("gaps", condition=condition, scaled=scaled)
    found = pd.DataFrame(rows_with(data, "arm", "seed", "step", "x", "y"))
    names = {charts.ARMS[arm].label: arm for arm in ("standard", "bn")}
    kept = [step for step in STEPS if step % 2 == 0 or step > 50]
    assert len(found) == 2 * SEEDS * len(kept)
    for row in found.itertuples():
        step = row.x * (condition if scaled else 1)
        assert round(step, 6) in kept
        assert row.y == pytest.approx(_gap(names[row.arm], condition, row.seed, round(step)), rel=6e-3)
    words = told(data)
    assert f"Condition {condition}: the bound is × 0.8 a step" in words
    assert "Batch norm: 101 steps to 1e−10, late × 0.7" in words
    assert "Batch norm, exact late factor: 0.71" in words


def test_the_bound_is_a_straight_line_from_1_to_rounding(view):
    data = view("gaps", condition=100, scaled=False)
    ends = rows_with([rows for rows in data if rows and "k" in rows[0]], "x", "y")
    first, last = sorted(ends, key=lambda row: row["x"])
    assert (first["x"], first["y"], last["y"]) == (0, 1, explorables.ROUNDING)
    assert (1 - 1 / 100) ** (2 * last["x"]) == pytest.approx(explorables.ROUNDING)


# --- (c) and (d) rates ---


def test_a_run_that_diverged_has_a_cross(least_squares, view):
    frame = explorables.final_gaps(least_squares)
    lost = frame[~np.isfinite(frame["value"])]
    assert len(lost) == 2 * SEEDS and set(lost["arm"]) == {"standard"}
    kept = frame[(frame["arm"] == "bn") & (frame["rate"] == 1.0)].set_index("seed")["value"]
    assert kept.to_dict() == pytest.approx({seed: 10.0 ** -(9 + seed) for seed in range(SEEDS)})
    drawn_rows = rows_with(view("rates"), "rate", "y", "lost")
    assert sum(row["lost"] for row in drawn_rows) in (0, 2 * SEEDS)
    chart = explorables.rates_chart(least_squares)
    assert "10000: diverged" in chart.description and "rule is at 0.04" in chart.description


def test_measured_rates_of_rayleigh_quotients(least_squares, view):
    table = explorables.measured_rates(least_squares)
    assert len(table) == 4 * SEEDS
    plain = table[table["step"] == "euclidean"]
    assert (plain["measured"] - plain["ideal"]).to_numpy() == pytest.approx(0.3)
    found = rows_with(view("rayleigh"), "ideal", "measured", "bound")
    assert sorted(row["measured"] for row in found) == pytest.approx(sorted(table["measured"]))


# --- (e) halfspaces and images ---


def _descents(problem: str, settings: list[tuple[str, dict]], metrics: tuple[str, ...]) -> records.Record:
    runs, rows = [], []
    for seed, (arm, more) in itertools.product(range(2), settings):
        name = " ".join([arm, *(f"{k}={v}" for k, v in more.items()), f"seed={seed}"])
        runs.append({"id": name, "arm": arm, "seed": seed, "settings": {"problem": problem, **more}})
        last = 400 if arm == "standard" else 100
        steps = [*range(51), *range(60, last + 1, 20)]
        for metric, step in itertools.product(metrics, steps):
            rows.append((name, step, "", metric, 0.5**step + more.get("start", 0)))
    return record_of(runs, rows)


def test_runs_of_halfspaces_are_told_apart():
    soft = {"loss": "softplus"}
    record = _descents(
        "halfspace",
        [
            ("standard", soft),
            ("bn", soft),
            ("gdnp", soft),
            ("gdnp", {"loss": "sigmoid"}),
            ("gdnp", {**soft, "halvings": 8}),
            *((arm, {**soft, "start": start}) for arm in ("gdnp", "gdnp_printed") for start in (0.1, 10.0)),
        ],
        ("gap", "gradient_norm"),
    )
    paths = explorables.halfspace_paths(record)
    assert not paths.duplicated(["arm", "seed", "step"]).any()
    assert set(paths["arm"]) == {"standard", "bn", "gdnp"} and paths["step"].max() <= 200
    assert (paths["value"] > explorables.ROUNDING).all()
    starts = explorables.by_start(record)
    assert set(starts["start"]) == {0.1, 10.0} and set(starts["arm"]) == {"gdnp", "gdnp_printed"}
    halvings = explorables.by_halvings(record)
    assert set(halvings["arm"]) == {"8", "50"} and not halvings.duplicated(["arm", "seed", "step"]).any()


def test_paths_on_images_take_the_smallest_rate():
    record = _descents(
        "real_halfspace",
        [
            (arm, {"whitened": whitened, **more})
            for whitened in (False, True)
            for arm, more in (("standard", {}), ("bn", {"lr": 1.0}), ("bn", {"lr": 10.0}), ("gdnp", {}))
        ],
        ("sine",),
    )
    paths = explorables.image_paths(record, "sine")
    assert not paths.duplicated(["arm", "whitened", "seed", "step"]).any()
    assert paths["step"].min() == 1
    assert paths[paths["arm"] == "standard"]["step"].max() == 400


def test_thinning_keeps_the_ends_and_the_first_steps():
    steps = pd.Series(range(1001))
    kept = steps[explorables.thinned(steps)].tolist()
    assert kept[:9] == list(range(9)) and kept[-1] == 1000 and len(kept) < 60
    gaps = [b / a for a, b in itertools.pairwise(kept[9:])]
    assert max(gaps) < 1.2


# --- (f) critical points ---


@pytest.mark.parametrize("regular", [False, True])
@pytest.mark.parametrize("loss, units, seed", [("square", "all", 0), ("softplus", "first", 1)])
def test_units_are_drawn_in_units_of_the_longest(hidden, view, loss, units, seed, regular):
    data = view("hidden", loss=loss, units=units, seed=seed, regular=regular)
    frame = hidden.frame("loss", "units")
    frame = frame[(frame["loss"] == loss) & (frame["units"] == units) & (frame["seed"] == seed)]
    starts = [0] if regular else [0, 1]
    expected = []
    for start in starts:
        part = frame[(frame["step"] == start) & (frame["layer"] != "")]
        table = part.pivot_table(index="layer", columns="metric", values="value")
        longest = np.hypot(table["along"], table["across"]).max()
        expected += [(x / longest, y / longest) for x, y in zip(table["along"], table["across"], strict=True)]
    numbers = [rows for rows in data if rows and isinstance(rows[0].get("x"), float | int)]
    found = [row for row in rows_with(numbers, "unit", "x", "y", "off", "kept") if row["kept"]]
    assert any(len(rows) == len(found) and all(row.get("kept") for row in rows) for rows in numbers)
    assert sorted((row["x"], row["y"]) for row in found) == [
        (pytest.approx(x, rel=6e-3), pytest.approx(y, rel=6e-3)) for x, y in sorted(expected)
    ]
    off = frame[(frame["metric"] == "off_line") & frame["step"].isin(starts)]["value"]
    words = told(data)
    assert f"{len(starts)} critical points" in words
    (line,) = (text for text in words if text.startswith("Off the line: "))
    ends = [float(word.replace("−", "-")) for word in line.removeprefix("Off the line: ").split(" to ")]
    assert ends == pytest.approx([off.min(), off.max()], rel=6e-3)
    free = explorables.FREE[units]
    assert f"{explorables.LOSSES[loss]} loss, free: {free}, seed {seed}" in words


def test_where_no_point_is_left_the_figure_says_so(view):
    data = view("hidden", loss="softplus", units="all", seed=1, regular=True)
    assert "No critical point of this kind" in told(data)
    assert "logistic loss, free: all units, seed 1" in told(data)
    assert not any(line.startswith("Off the line") for line in told(data))


def test_points_that_are_shown_are_those_of_the_claims(hidden):
    shown = explorables.units(hidden).drop_duplicates(["loss", "units", "seed", "start"])
    points = directions.critical_points(hidden)
    assert len(shown) == len(points) == 2 * 8
    assert sorted(shown["off_line"]) == pytest.approx(sorted(points["off_line"]))


@pytest.mark.parametrize("width", [350, 760])
@pytest.mark.parametrize("name", ["plane", "gaps", "rates", "rayleigh", "hidden"])
def test_the_figures_fit_the_page(page, name, width):
    assert_fits(page, name, width)
