"""Length and direction apart: what a recorded run measures, against independent computations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from bnlib import data, directions, records
from bnlib.experiments import EXPERIMENTS
from bnlib.specs import Run
from bnlib.theory.halfspaces import SOFTPLUS, Halfspace, Sample
from bnlib.theory.least_squares import train_both

LEAST_SQUARES = {"problem": "least_squares", "d": 4, "condition": 10, "steps": 300}
HALFSPACE = {"problem": "halfspace", "loss": "softplus", "d": 4, "condition": 5, "distance": 1.0, "steps": 40}
REAL = {
    "problem": "real_halfspace",
    "dataset": "digits",
    "classes": [[3, 8], [8, 9]],
    "d": 4,
    "whitened": False,
    "steps": 40,
}
HIDDEN = {
    "problem": "one_hidden_layer",
    "loss": "square",
    "units": "all",
    "starts": 3,
    "theta": [1.0, 0.7],
    "d": 2,
    "nodes": 128,
    "tolerance": 1e-12,
}


def measured(settings, seed=0, **changed) -> dict[tuple[str, int, str], float]:
    rows = directions.run({**settings, **changed}, seed=seed)
    return {(metric, step, layer): value for step, layer, metric, value in rows}


def series(rows, metric) -> np.ndarray:
    return np.array([value for (name, _, _), value in rows.items() if name == metric])


def test_conditioned_matrices_have_the_eigenvalues_asked_for():
    matrix = directions.conditioned(5, 100, seed=3)
    assert torch.equal(matrix, matrix.T)
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix.numpy()), 10 ** np.linspace(0, 2, 5), rtol=1e-12)


def test_steps_are_measured_densely_first():
    assert directions.measured_steps(7) == list(range(8))
    steps = directions.measured_steps(1000)
    assert steps[:51] == list(range(51)) and steps[-1] == 1000
    assert all(b <= math.ceil(1.04 * a) for a, b in itertools.pairwise(steps[50:]))


def test_factors_of_a_known_sequence():
    """Halved twice, then multiplied by 3/4, until it is below the floor; what comes later does not count."""
    gap = torch.tensor([1.0, 0.5, 0.25, 0.1875, 1e-9, 0.5], dtype=torch.float64)
    found = {metric: (step, value) for step, _, metric, value in directions.factors(gap, 1e-3)}
    assert found == {
        "largest_factor": (0, 0.75),
        "late_factor": (3, 0.75),
        "resolved_steps": (0, 3),
    }
    nothing = list(directions.factors(gap[:1], 1e-3))
    assert nothing == [(0, "", "resolved_steps", 0)]


@pytest.mark.parametrize("method", ["bn", "standard"])
def test_least_squares_against_plain_numpy(method):
    problem, w = directions.drawn_least_squares(4, 10, 2)
    s, u, w = problem.s.numpy(), problem.u.numpy(), w.numpy()
    values = np.linalg.eigvalsh(s)
    best = -np.linalg.solve(s, u)
    gaps, plain = [], -(u @ w) / (w @ s @ w) * w
    for _ in range(LEAST_SQUARES["steps"]):
        rho = -((u @ w) ** 2) / (w @ s @ w)
        gaps.append(
            1 - rho / (u @ best) if method == "bn" else ((plain - best) @ s @ (plain - best)) / -(u @ best)
        )
        w = w - (s @ w - (w @ s @ w) / (u @ w) * u) / values[-1]
        plain = plain - (s @ plain + u) / values[-1]
    rows = measured(LEAST_SQUARES, seed=2, method=method)
    np.testing.assert_allclose(series(rows, "gap")[:11], gaps[:11], rtol=1e-9)
    assert rows["bound", 0, ""] == pytest.approx((1 - values[0] / values[-1]) ** 2, rel=1e-12)
    assert rows["largest_factor", 0, ""] <= rows["bound", 0, ""] * (1 + 1e-7)
    assert rows["steps_to", 0, ""] == np.argmax(np.array(gaps) <= 1e-10 * gaps[0])


def test_both_start_from_the_same_weights():
    """The best length makes rho the loss: the two gaps are equal before the first step."""
    one, other = (measured(LEAST_SQUARES, method=method)["gap", 0, ""] for method in ("bn", "standard"))
    assert one == pytest.approx(other, rel=1e-12)


def test_any_rate_is_train_both_and_ends_where_it_diverges():
    settings = {"problem": "any_rate", "d": 4, "condition": 50, "steps": 60, "rates": [0.01, 1.0]}
    rows = measured(settings, method="bn")
    problem, w = directions.drawn_least_squares(4, 50, 0)
    w = w / problem.norm(w)
    trained = train_both(problem, w, problem.best_length(w), 1.0, steps=60)
    off = problem.weights(trained.w, trained.g) - problem.optimum
    assert rows["gap@1", 60, ""] == pytest.approx((off @ problem.s @ off / -problem.rho_star).item())
    rows = measured(settings, method="standard")
    assert rows["limit", 0, ""] == pytest.approx(0.04)
    path = problem.descend_without(problem.weights(w, problem.best_length(w)), 60, 0.01)
    off = path[-1] - problem.optimum
    assert rows["gap@0.01", 60, ""] == pytest.approx((off @ problem.s @ off / -problem.rho_star).item())
    assert max(step for metric, step, _ in rows if metric == "gap@1") < 10
    assert all(value < directions.DIVERGED for value in rows.values())


@pytest.mark.parametrize("step", ["inverse", "euclidean"])
def test_rayleigh_rows(step):
    rows = measured({"problem": "rayleigh", "step": step, "d": 5, "condition": 10, "steps": 300})
    assert rows["largest_factor", 0, ""] <= rows["bound", 0, ""] * (1 + 1e-5)
    if step == "inverse":
        assert rows["bound", 0, ""] == pytest.approx(rows["ideal_bound", 0, ""], rel=1e-9)
    else:
        assert rows["bound", 0, ""] > rows["ideal_bound", 0, ""]
    assert 0 < series(rows, "gap")[-1] < 1e-10


@pytest.mark.parametrize("method", ["bn", "standard"])
def test_descent_follows_the_gradient_of_the_value(method):
    """One step of each method, from automatic differentiation of f alone."""
    problem = directions.drawn_halfspace(4, 5, 1.0, "softplus", 1)
    w = -problem.inputs.u + 0.3
    path, lengths, gradients = directions._descent(problem, w, method, "softplus", 1, lr=0.7)
    w = w / problem.geometry.norm(w)
    g = problem.best_length(w, (0.0, 100.0), 50)
    if method == "bn":
        at, length = w.clone().requires_grad_(), g.clone().requires_grad_()
        by_w, by_g = torch.autograd.grad(problem.value(problem.weights(at, length)), (at, length))
        torch.testing.assert_close(path[1], w - 0.7 * by_w, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(lengths[1], g - 4 * by_g, rtol=1e-10, atol=1e-12)
    else:
        at = problem.weights(w, g).requires_grad_()
        (slope,) = torch.autograd.grad(problem.value(at), at)
        torch.testing.assert_close(path[1], at - 4 / problem.geometry.smoothness * slope)
        assert gradients[0].item() == pytest.approx(slope.norm().item())


def test_gdnp_on_gaussian_inputs_is_least_squares_whatever_its_start():
    rows = {start: measured(HALFSPACE, method="gdnp", start=start) for start in (0.1, 10.0)}
    for found in rows.values():
        assert found["least_squares_distance", 0, ""] < 1e-12
        assert found["largest_factor", 0, ""] <= found["bound", 0, ""] * (1 + 1e-9)
        assert found["length", 40, ""] == pytest.approx(math.sqrt(8), rel=1e-4)
    np.testing.assert_allclose(*(series(found, "gap") for found in rows.values()), rtol=1e-7)
    printed = [measured(HALFSPACE, method="gdnp_printed", start=start) for start in (0.1, 10.0)]
    late = [series(found, "late_factor")[0] for found in printed]
    assert late[1] > 1.1 * late[0]


def test_two_classes_are_centred_components():
    images = data.load("digits", dtype=torch.float64)
    kept = (images.y_train == 3) | (images.y_train == 8)
    y = torch.where(images.y_train[kept] == 3, 1.0, -1.0)
    x = images.x_train.flatten(1)[kept].numpy()
    x = x - x.mean(0)
    scores = x @ np.linalg.svd(x, full_matrices=False)[2][:4].T
    ours = -y[:, None].numpy() * directions.two_classes("digits", [3, 8], 4, False).z.numpy()
    scale = np.sqrt((scores**2).mean())
    np.testing.assert_allclose(np.abs(ours), np.abs(scores / scale), rtol=1e-7, atol=1e-9)
    white = directions.two_classes("digits", [3, 8], 4, True).least_squares
    torch.testing.assert_close(white.s, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_minimiser_is_that_of_scikit_learn():
    sample = directions.two_classes("digits", [8, 9], 4, False)
    ours = directions.minimiser(Halfspace(sample, SOFTPLUS))
    signs = np.where(np.arange(len(sample.z)) % 2, 1, -1)  # z = -yx: any labels give the same problem
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
    model.fit(-signs[:, None] * sample.z.numpy(), signs)
    np.testing.assert_allclose(model.coef_[0], ours.numpy(), rtol=1e-4, atol=1e-4)


def test_separated_classes_have_no_minimiser():
    z = torch.tensor([[-1.0, 0.5], [-2.0, -0.5], [-1.0, -1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="separates the classes"):
        directions.minimiser(Halfspace(Sample(z)))


@pytest.mark.parametrize("method", ["gdnp", "bn", "standard"])
def test_real_halfspaces_go_to_the_minimiser(method):
    rows = measured(REAL, seed=1, method=method, steps=400, **({"lr": 1.0} if method == "bn" else {}))
    sample = directions.two_classes("digits", [8, 9], 4, False)
    best = directions.minimiser(Halfspace(sample))
    s = sample.least_squares.s
    towards = -torch.linalg.solve(s, sample.u)
    cosine = (towards @ s @ best) / ((towards @ s @ towards) * (best @ s @ best)).sqrt()
    assert rows["line", 0, ""] == pytest.approx((1 - cosine**2).item(), rel=1e-9)
    assert series(rows, "sine")[-1] < 1e-3 * series(rows, "sine")[0]
    assert 0 <= series(rows, "excess")[-1] < 1e-2 * series(rows, "excess")[0]
    assert rows["length", 400, ""] == pytest.approx((best @ s @ best).sqrt().item(), rel=0.2)


def test_critical_points_of_a_hidden_layer():
    rows = measured(HIDDEN, seed=0)
    for start in range(3):
        assert rows["found", start, ""] == 1
        assert rows["stein_gap", start, ""] < 1e-8
        assert rows["off_line", start, ""] < 1e-9 and rows["effective_off_line", start, ""] < 1e-9
        parts = [rows[part, start, f"unit{unit}"] for unit in (1, 2) for part in ("along", "across")]
        assert math.hypot(*parts) == pytest.approx(rows["size", start, ""])
    frozen = measured(HIDDEN, seed=0, units="first")
    assert frozen["off_line", 0, ""] > 1e-3
    lost = measured(HIDDEN, seed=0, tolerance=0.0)
    assert {metric for metric, _, _ in lost} == {"found"} and not any(lost.values())


def test_distance_from_the_line_is_measured_in_the_longest_unit():
    rows = torch.tensor([[3.0, 4.0], [1.0, 0.5]], dtype=torch.float64)
    assert directions._off(rows, torch.tensor([1.0, 0.0], dtype=torch.float64)) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "settings",
    [
        {**LEAST_SQUARES, "method": "bn"},
        {**HALFSPACE, "method": "gdnp"},
        {**REAL, "method": "gdnp"},
        HIDDEN,
    ],
    ids=lambda settings: settings["problem"],
)
def test_the_seed_settles_the_run(settings):
    assert measured(settings, seed=1) == measured(settings, seed=1) != measured(settings, seed=0)


@pytest.mark.parametrize("name", ["least_squares", "halfspaces", "halfspaces_real", "one_hidden_layer"])
def test_declared_runs_name_problems_and_have_one_seed_each(name):
    for scale in ("smoke", "laptop", "paper"):
        for run in EXPERIMENTS[name].all_runs(scale, 1):
            assert run.task == "directions" and run.settings["problem"] in directions.PROBLEMS


def test_a_run_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    run = Run("bn", 0, {**LEAST_SQUARES, "method": "bn"}, ("condition",), task="directions")
    rows = directions.run(run.settings, seed=0)
    record = records.save("toy", "smoke", [run], {run.digest: {"rows": rows, "seconds": 0.0}}, {})
    assert record.frame("condition", metric="bound")["value"].iloc[0] == pytest.approx(0.81)
