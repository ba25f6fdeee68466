"""Length and direction apart: least squares, Rayleigh quotients, halfspaces, one hidden layer."""

import math
from fractions import Fraction

import pytest
import torch
from sklearn.datasets import load_breast_cancer

from bnlib.theory.halfspaces import (
    SIGMOID,
    SOFTPLUS,
    SQUARE,
    Gaussian,
    Halfspace,
    Sample,
    equal_steps,
    gauss_hermite,
    gdnp,
    logistic_optimum,
)
from bnlib.theory.least_squares import LeastSquares, train_both
from bnlib.theory.one_hidden_layer import OneHiddenLayer
from bnlib.theory.rayleigh import RayleighQuotient

ROUNDING = 1e-9  # relative: two sides that differ by less are equal
LOSSES = {"softplus": SOFTPLUS, "sigmoid": SIGMOID, "square": SQUARE}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)


def positive(d, condition, seed):
    """A random symmetric matrix with eigenvalues from 1 to `condition`, equally spaced in the logarithm."""
    rotation = torch.linalg.qr(randn(d, d, seed=seed)).Q
    values = torch.logspace(0, math.log10(condition), d, dtype=torch.float64)
    matrix = rotation * values @ rotation.T
    return (matrix + matrix.T) / 2


def derivative(function, at):
    at = at.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(at), at)
    return gradient


# --- least squares ------------------------------------------------------------------------------------------

TINY = LeastSquares(torch.diag(tensor(1, 2, 4)), tensor(1, 1, 1))


def least_squares(condition, seed=0, d=8):
    return LeastSquares(positive(d, condition, seed), randn(d, seed=seed + 1)), randn(d, seed=seed + 2)


def test_tiny_example_exactly():
    """The step in rational numbers, with S = diag(1, 2, 4), u = 1 and w_0 = e_1."""
    s, w, exact = (1, 2, 4), [Fraction(1), Fraction(0), Fraction(0)], []
    for _ in range(6):
        inner, squared = sum(w), sum(a * b**2 for a, b in zip(s, w, strict=True))
        exact.append(-(inner**2) / squared)
        w = [b - (a * b - squared / inner) / 4 for a, b in zip(s, w, strict=True)]
    ours = TINY.rho(TINY.descend(tensor(1, 0, 0), 5))
    close(ours, tensor(*map(float, exact)), rtol=0, atol=1e-12)
    printed = tensor(-1, -1.6363636, -1.7196576, -1.7406249, -1.7469381, -1.7489750)
    close(ours, printed, rtol=0, atol=5e-8)
    assert TINY.rho_star.item() == pytest.approx(-1.75, abs=1e-12)


def test_rho_is_the_loss_with_the_best_length():
    problem, w = least_squares(20)
    g = problem.best_length(w)
    close(problem.loss(problem.weights(w, g)), problem.rho(w))
    for other in (0.9 * g, g + 0.1):
        assert problem.loss(problem.weights(w, other)) > problem.rho(w)
    close(problem.loss(problem.optimum), problem.rho_star)
    close(problem.rho(problem.optimum), problem.rho_star)


def test_gradient_and_identity():
    problem, _ = least_squares(30)
    w = randn(5, 8, seed=9)  # five runs side by side
    gradient = problem.gradient(w)
    close(gradient, derivative(lambda at: problem.rho(at).sum(), w))
    close((gradient * w).sum(-1), torch.zeros(5, dtype=torch.float64))
    close(problem.gap(w), problem.rho(w) - problem.rho_star)
    sides = problem.gradient_identity(w)
    close(sides.lhs, sides.rhs)


def test_the_gap_does_not_round():
    problem, off = least_squares(10)
    near = problem.optimum + 1e-9 * off
    assert problem.gap(near).item() == pytest.approx(
        4 * problem.gap((problem.optimum + near) / 2).item(), rel=1e-5
    )
    assert 0 < problem.gap(near) < 1e-15


def test_rho_is_not_convex():
    hessian = torch.autograd.functional.hessian(TINY.rho, tensor(1, 1, -1))
    assert torch.linalg.eigvalsh(hessian)[0] < -0.1


@pytest.mark.parametrize("condition", [10, 100, 50])
def test_linear_rate(condition):
    """No violation of the bound, at any step; late steps have the asymptotic rate, below the bound's."""
    problem, w = least_squares(condition, seed=condition)
    steps = 30 * condition
    gap = problem.gap(problem.descend(w, steps))
    bound = problem.bound(w, steps)
    resolved = gap > 1e-18
    assert (gap <= bound * (1 + ROUNDING))[resolved].all()
    one_step = (1 - problem.mu / problem.smoothness) ** 2
    ratios = (gap[1:] / gap[:-1])[resolved[1:]]
    assert (ratios <= one_step * (1 + ROUNDING)).all()
    assert ratios[-1].item() == pytest.approx(problem.asymptotic_rate, rel=1e-3)
    assert problem.asymptotic_rate < one_step


def test_three_line_proof():
    problem, w = least_squares(10)
    s, smoothness = problem.s, problem.smoothness
    multiple = problem.norm(w) ** 2 / (problem.u @ w)
    target = -multiple * problem.optimum
    r = w - target
    close(r @ s @ w, tensor(0.0)[0], atol=1e-10)
    after = problem.step(w) - target
    close(after, r - s @ r / smoothness)
    close(problem.step(w), w - (s @ w - multiple * problem.u) / smoothness)
    assert problem.norm(after) <= (1 - problem.mu / smoothness) * problem.norm(r)
    sine = problem.norm(r) / problem.norm(target)
    close(problem.gap(w), problem.rho_star.abs() * sine**2)


def test_rate_is_better_where_u_is_an_eigenvector():
    """u along the smallest eigenvector of S = diag(1, 2, 10): 0.64 a step where the bound has 0.81."""
    problem = LeastSquares(torch.diag(tensor(1, 2, 10)), tensor(1, 0, 0))
    gap = problem.gap(problem.descend(tensor(1, 1, 1), 40))
    assert (gap[-1] / gap[-2]).item() == pytest.approx(0.64, rel=1e-6)
    assert problem.asymptotic_rate == pytest.approx(0.64)


@pytest.mark.parametrize("condition", [10, 100])
def test_plain_gradient_descent_has_the_same_linear_rate(condition):
    problem, w = least_squares(condition, seed=condition)
    path = problem.descend_without(w, 12 * condition)
    gap = problem.loss(path) - problem.rho_star
    rate = (1 - problem.mu / problem.smoothness) ** 2
    powers = rate ** torch.arange(len(path), dtype=torch.float64)
    assert (gap <= powers * gap[0] * (1 + ROUNDING)).all()
    late = problem.norm(path - problem.optimum) ** 2
    assert (late[-1] / late[-2]).item() == pytest.approx(rate, rel=2e-3)


def test_least_squares_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="positive definite"):
        LeastSquares(torch.diag(tensor(1, 0)), tensor(1, 1))
    with pytest.raises(ValueError, match="positive definite"):
        LeastSquares(tensor([1, 0], [1, 1]), tensor(1, 1))
    with pytest.raises(ValueError, match="square"):
        LeastSquares(torch.ones(2, 3), tensor(1, 1))
    with pytest.raises(ValueError, match="shape"):
        LeastSquares(torch.eye(2, dtype=torch.float64), tensor(1, 1, 1))
    with pytest.raises(ValueError, match="u is zero"):
        LeastSquares(torch.eye(2, dtype=torch.float64), tensor(0, 0))
    with pytest.raises(ValueError, match="weights are zero"):
        TINY.rho(tensor(0, 0, 0))
    for method in (TINY.step, TINY.gradient_identity):
        with pytest.raises(ValueError, match="orthogonal to u"):
            method(tensor(1, -1, 0))


# --- any learning rate --------------------------------------------------------------------------------------


def test_one_step_of_both():
    problem, w = least_squares(10)
    g, lr = tensor(0.7)[0], 0.3
    by_w = derivative(lambda at: problem.loss(problem.weights(at, g)) / 2, w)
    by_g = derivative(lambda at: problem.loss(problem.weights(w, at)) / 2, g)
    after = train_both(problem, w, g, lr, lr_length=0.5)
    close(after.w, w - lr * by_w)
    close(after.g, g - 0.5 * by_g)
    close(after.w.square().sum(), w.square().sum() + lr**2 * by_w.square().sum())


def test_any_learning_rate():
    """Learning rates from 0.01 to 1000 all converge, where without the layer the limit is 2 / 50 = 0.04."""
    problem, w = least_squares(50, seed=3)
    rates = torch.logspace(-2, 3, 6, dtype=torch.float64)
    start = w.expand(len(rates), -1)
    trained = train_both(problem, start, torch.ones_like(rates), rates, steps=10_000)
    weights = problem.weights(trained.w, trained.g)
    assert (problem.loss(weights) - problem.rho_star < 1e-10).all()
    assert (trained.w.norm(dim=-1) >= w.norm()).all()
    below, above = (problem.descend_without(w, 10_000, lr)[-1] for lr in (0.0399, 0.0401))
    assert problem.loss(below) - problem.rho_star < 1e-10
    assert not problem.loss(above) < 1e6
    slow = train_both(problem, w, tensor(1.0)[0], 1e6, steps=2000)
    assert 1e-10 < problem.gap(slow.w) < problem.gap(w)
    for wrong in ({"lr": -1.0}, {"lr": 1.0, "lr_length": 1.5}):
        with pytest.raises(ValueError, match="learning rate"):
            train_both(problem, w, tensor(1.0)[0], **wrong)


# --- Rayleigh quotients -------------------------------------------------------------------------------------


def quotient(seed, d=8):
    matrix = randn(d, d, seed=20 + seed)
    return RayleighQuotient(positive(d, (3, 10, 30)[seed], 10 + seed), (matrix + matrix.T) / 2)


def inverse(problem):
    return torch.linalg.inv(problem.a)


def euclidean(problem):
    return torch.eye(len(problem.a), dtype=torch.float64) / torch.linalg.eigvalsh(problem.a)[-1]


def climb(problem, t, w):
    """Steps from w until the gap is 1e-12, with the theorem where it speaks; the last squared rate."""
    first, second = problem.eigenvalues[:2]
    while problem.gap(w) > 1e-12 * first.abs():
        if problem.rho(w) > second:
            sides = problem.theorem(w, t)
            assert sides.lhs <= sides.rhs * (1 + 1e-6)
            measured = (sides.lhs / sides.rhs).item() * sides.rate**2
        w = problem.step(w, t)
        w = w / w.norm()
    return measured


@pytest.mark.parametrize("seed", range(3))
def test_rate_with_and_without_preconditioning(seed):
    """With the inverse of A it is q_0^2; the plain gradient is slower than that and within its own bound."""
    problem, w = quotient(seed), randn(8, seed=30 + seed)
    ideal = problem.ideal_rate**2
    assert problem.rate(inverse(problem)) ** 2 == pytest.approx(ideal, rel=1e-9)
    assert climb(problem, inverse(problem), w) == pytest.approx(ideal, rel=0.01)
    t = euclidean(problem)
    plain = climb(problem, t, w)
    assert 1.1 * ideal < plain <= problem.rate(t) ** 2


def test_eigenvalues_and_gap():
    problem, w = quotient(1), randn(4, 8, seed=5)
    values = torch.linalg.eigvals(torch.linalg.solve(problem.a, problem.b)).real.sort(descending=True).values
    close(problem.eigenvalues, values)
    close(problem.gap(w), problem.eigenvalues[0] - problem.rho(w))
    values, vectors = problem.eigenpairs
    close(vectors.T @ problem.a @ vectors, torch.eye(8, dtype=torch.float64))
    close(problem.b @ vectors, problem.a @ vectors * values)


def test_preconditioned_step_is_the_power_method():
    problem, w = quotient(2), randn(8, seed=4)
    shifted = torch.linalg.solve(problem.a, problem.b @ w) - problem.eigenvalues[-1] * w
    close(problem.step(w, inverse(problem)), shifted / (problem.rho(w) - problem.eigenvalues[-1]))


def test_least_squares_is_the_case_of_rank_one():
    problem, w = least_squares(10)
    t = torch.eye(8, dtype=torch.float64) / problem.smoothness
    rayleigh = RayleighQuotient(problem.s, torch.outer(problem.u, problem.u))
    close(rayleigh.rho(w), -problem.rho(w))
    close(rayleigh.eigenvalues[0], -problem.rho_star)
    close(rayleigh.eigenvalues[1:], torch.zeros(7, dtype=torch.float64))
    close(rayleigh.step(w, t), problem.step(w))
    assert rayleigh.ideal_rate == pytest.approx(0, abs=1e-12)
    assert rayleigh.rate(t) == pytest.approx(1 - problem.mu / problem.smoothness)


def test_rayleigh_says_what_it_cannot_do():
    problem, identity = quotient(0), torch.eye(8, dtype=torch.float64)
    with pytest.raises(ValueError, match="below 1"):
        problem.rate(-identity)
    with pytest.raises(ValueError, match="second eigenvalue"):
        problem.theorem(problem.eigenpairs[1][:, 2], inverse(problem))
    with pytest.raises(ValueError, match="smallest value"):
        RayleighQuotient(identity, identity).step(identity[0], identity)
    with pytest.raises(ValueError, match="All eigenvalues are equal"):
        _ = RayleighQuotient(identity, identity).ideal_rate
    with pytest.raises(ValueError, match="B must be symmetric"):
        RayleighQuotient(identity, randn(8, 8))
    with pytest.raises(ValueError, match="two rows"):
        RayleighQuotient(torch.ones(1, 1), torch.ones(1, 1))


# --- expectations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [4, 48, 200])
def test_gauss_hermite_gives_the_moments(nodes):
    points, weights = gauss_hermite(nodes)
    for power, moment in ((0, 1), (1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        assert (weights @ points**power).item() == pytest.approx(moment, abs=1e-11)
    with pytest.raises(ValueError, match="at least one node"):
        gauss_hermite(0)


@pytest.mark.parametrize("name", LOSSES)
def test_two_quadratures_agree(name):
    """While s varies little, both are exact; beyond, equal steps agree with finer ones."""
    for function in LOSSES[name]:
        for deviation, tolerance in ((0.3, 1e-13), (1, 1e-13), (2, 1e-12)):
            (t, p), (x, q) = gauss_hermite(200), equal_steps(deviation)
            close(p @ function(deviation * t - 1), q @ function(deviation * x - 1), rtol=0, atol=tolerance)
        (t, p), (x, q) = equal_steps(300), equal_steps(30)
        close(p @ function(30 * t - 1), q @ function(30 * x - 1), rtol=1e-12, atol=1e-13)


# --- halfspaces ---------------------------------------------------------------------------------------------


def halfspace(seed, loss=SOFTPLUS, distance=1.0, d=10):
    """Random Gaussian inputs with u^T Sigma^{-1} u = `distance`, and a start with u^T w < 0."""
    sigma, u, w = positive(d, 10, seed), randn(d, seed=seed + 100), randn(d, seed=seed + 200)
    u = u * (distance / (u @ torch.linalg.solve(sigma, u))).sqrt()
    return Halfspace(Gaussian(u, sigma), loss), -w * (w @ u).sign()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_a_halfspace(name):
    """By Stein's lemma, as the derivative of f, and split in direction and length."""
    problem, w = halfspace(3, LOSSES[name], d=4)
    s, u, g = problem.geometry.s, problem.inputs.u, tensor(1.3)[0]
    weights = problem.weights(w, g)
    close(problem.gradient(weights), derivative(problem.value, weights))
    scores, p = problem.inputs.scores(weights)
    c_2 = p @ problem.loss.second(scores)
    c_1 = p @ problem.loss.first(scores) - c_2 * (u @ weights)
    close(problem.gradient(weights), c_1 * u + c_2 * s @ weights)
    close(problem.criterion(w, g), c_1 * (u @ w))
    by_w = derivative(lambda at: problem.value(problem.weights(at, g)), w)
    close(problem.direction_gradient(w, g), by_w)
    close(problem.length_gradient(w, g), derivative(lambda at: problem.value(problem.weights(w, at)), g))
    sides = problem.gradient_identity(w, g)
    close(sides.lhs, sides.rhs)


def test_the_two_lines_are_one():
    problem, _ = halfspace(0)
    with_mean = torch.linalg.solve(problem.geometry.s, problem.inputs.u)
    without = torch.linalg.solve(problem.inputs.sigma, problem.inputs.u)
    close(with_mean / with_mean.norm(), without / without.norm())


@pytest.mark.parametrize("seed", [0, 1])
def test_gdnp_converges_linearly(seed):
    """No violation of the rate; direction, length and gradient to their limits."""
    problem, w = halfspace(seed)
    geometry = problem.geometry
    path = gdnp(problem, w, 1.0, 150)
    gap, bound = geometry.gap(path.w), geometry.bound(w, 150)
    rate, resolved = (1 - geometry.mu / geometry.smoothness) ** 2, gap > 1e-18
    assert (gap <= bound * (1 + ROUNDING))[resolved].all()
    ratios = (gap[1:] / gap[:-1])[resolved[1:]]
    assert (ratios <= rate * (1 + ROUNDING)).all()
    assert ratios[-1].item() == pytest.approx(geometry.asymptotic_rate, rel=0.02)
    assert path.g[-1].item() == pytest.approx(2 * math.sqrt(2), abs=1e-10)
    assert path.g[-1].item() == pytest.approx(2.8284271247, abs=1e-10)
    optimum = logistic_optimum(problem.inputs)
    close(problem.weights(path.w[-1], path.g[-1]), optimum, atol=1e-7)
    assert problem.gradient(optimum).norm() < 1e-14
    assert geometry.norm(optimum).item() == pytest.approx(2 * math.sqrt(2), abs=1e-12)
    assert path.gradient_norm[-1] < 1e-7 and not path.stopped


def test_gdnp_reaches_a_gradient_of_zero():
    problem, w = halfspace(0)
    start = problem.geometry.descend(w, 350)[-1]
    assert gdnp(problem, start, 1.0, 10).gradient_norm[-1] < 1e-14


@pytest.mark.parametrize("distance", [0.2, 3.0])
def test_length_of_the_logistic_optimum(distance):
    problem, w = halfspace(5, distance=distance, d=3)
    path = gdnp(problem, w, 0.5, 120)
    assert path.g[-1].item() == pytest.approx(2 * math.sqrt(distance * (1 + distance)), abs=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_gdnp_moves_the_direction_as_least_squares_does(name):
    problem, w = halfspace(1, LOSSES[name])
    path = gdnp(problem, w, 0.4, 20, halvings=20, bracket=(0.0, 10.0))
    close(path.w, problem.geometry.descend(w, 20))


def test_wikipedias_criterion_loses_the_rate():
    for seed in (0, 1):
        problem, w = halfspace(seed)
        geometry = problem.geometry
        rate = (1 - geometry.mu / geometry.smoothness) ** 2
        path = gdnp(problem, w, 1.0, 60, criterion=Halfspace.wikipedia_criterion)
        gap = geometry.gap(path.w)
        assert (gap[1:] > rate * gap[:-1] * (1 + ROUNDING)).sum() > 40
        assert gap[-1] > 10 * geometry.gap(gdnp(problem, w, 1.0, 60, halvings=1).w[-1])
        unit = w / geometry.norm(w)  # the two agree where ||w||_S = g
        close(problem.wikipedia_criterion(unit, tensor(1.0)[0]), problem.criterion(unit, tensor(1.0)[0]))


def test_few_halvings_leave_a_floor():
    """The gradient stays within the bound: a term of the direction, one of the length."""
    problem, w = halfspace(0)
    geometry, (low, high) = problem.geometry, (0.0, 10.0)
    gap = geometry.gap(w)
    rate, curvature, slope = (1 - geometry.mu / geometry.smoothness) ** 2, 0.25, 2.0
    floors = []
    for halvings in (4, 8, 16):
        path = gdnp(problem, w, 1.0, 100, halvings, (low, high))
        for t in (1, 10, 100):
            lhs = problem.gradient_identity(path.w[t], path.g[t]).lhs
            width = 2.0 ** (-halvings - 1) * curvature * (high - low)
            assert lhs <= rate**t * slope**2 * gap + width**2
        assert geometry.gap(path.w[-1]) < 1e-8
        floors.append(path.gradient_norm[-1].item())
    assert floors[0] > floors[1] > 1e-5 > floors[2] > 1e-8


def test_sigmoid_loss_has_no_finite_critical_point():
    """The slope in g is negative everywhere, as the integral says; the length takes all of any bracket."""
    problem, _ = halfspace(0, SIGMOID)
    optimal = logistic_optimum(problem.inputs)
    for g in (0.1, 1.0, 5.0, 30.0, 300.0):
        length = tensor(g)[0]
        measured = problem.length_gradient(optimal, length)
        assert measured < 0
        mean = (problem.inputs.u @ optimal) / problem.geometry.norm(optimal)
        s = torch.arange(0, 60 / min(g, 6), 0.002 / max(g, 1), dtype=torch.float64)
        deviation = (1 - mean**2).sqrt()
        left, right = (torch.exp(-(((sign * s - mean) / deviation) ** 2) / 2) for sign in (-1, 1))
        density = (right - left) / (deviation * math.sqrt(2 * math.pi))
        integral = torch.trapezoid(SIGMOID.first(g * s) * s * density, s)
        assert measured.item() == pytest.approx(integral.item(), rel=1e-5)
    for end in (10.0, 1000.0):
        assert problem.best_length(optimal, (0.0, end), 40).item() == pytest.approx(end)


def test_sigmoid_loss_stalls_gdnp():
    """With h below any tolerance, given a wide bracket, long before the direction is found."""
    problem, w = halfspace(0, SIGMOID)
    line = torch.linalg.solve(problem.inputs.sigma, problem.inputs.u)
    stalled = gdnp(problem, w, 1.0, 40, bracket=(0.0, 2000.0), tolerance=0.05)
    assert stalled.stopped and len(stalled.g) < 4
    assert 1 - torch.cosine_similarity(-stalled.w[-1], line, dim=0) > 0.05
    reached = [abs(problem.criterion(-line, tensor(g)[0]).item()) for g in (10.0, 100.0, 1000.0)]
    assert reached[1] / reached[0] == pytest.approx(0.1, rel=0.1)
    assert reached[2] / reached[1] == pytest.approx(0.1, rel=0.01)
    logistic, w = halfspace(0)
    assert not gdnp(logistic, w, 1.0, 40, bracket=(0.0, 2000.0), tolerance=0.05).stopped


def test_gdnp_says_what_it_cannot_do():
    problem, w = halfspace(0)
    with pytest.raises(ValueError, match="must not be 0"):
        gdnp(problem, w, 0.0, 1)
    with pytest.raises(ValueError, match="start from -w"):
        gdnp(problem, -w, 1.0, 1)
    with pytest.raises(ValueError, match="Sigma must be symmetric"):
        Gaussian(tensor(1, 1), -torch.eye(2, dtype=torch.float64))


def test_a_sample_comes_near_the_population():
    problem, w = halfspace(2, d=3)
    factor = torch.linalg.cholesky(problem.inputs.sigma)
    data = Halfspace(Sample(problem.inputs.u + randn(40_000, 3, seed=1) @ factor.T))
    weights = problem.weights(w, tensor(1.0)[0])
    close(data.gradient(weights), derivative(data.value, weights))
    close(data.gradient(weights), problem.gradient(weights), rtol=0, atol=0.05)
    path = gdnp(data, w, 1.0, 60)
    found = data.weights(path.w[-1], path.g[-1])
    close(found, logistic_optimum(problem.inputs), rtol=0, atol=0.1)


def test_whitened_data_are_a_problem_too():
    """Their S is the identity but for rounding, which a product need not do alike on both sides."""
    problem = Sample(torch.linalg.qr(randn(200, 5, seed=4)).Q.T.contiguous().T * math.sqrt(200)).least_squares
    assert torch.equal(problem.s, problem.s.T)
    close(problem.s, torch.eye(5, dtype=torch.float64))


def test_gdnp_on_data_that_are_not_gaussian():
    """Breast cancer, five features: the loss goes down; the direction is not the one of least squares."""
    features, classes = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor(features[:, :5]), torch.tensor(2.0 * classes - 1)
    x = (x - x.mean(0)) / x.std(0)
    problem = Halfspace(Sample(-y[:, None] * x))
    w = -problem.inputs.u
    path = gdnp(problem, w, 1.0, 30)
    losses = [problem.value(problem.weights(*point)) for point in zip(path.w, path.g, strict=True)]
    assert losses[-1] < losses[1] < losses[0]
    sides = problem.gradient_identity(path.w[-1], path.g[-1])
    assert sides.lhs > 2 * sides.rhs or sides.rhs > 2 * sides.lhs


# --- one hidden layer ---------------------------------------------------------------------------------------

MEAN, COVARIANCE = tensor(-0.8, 0.5, -0.3), torch.diag(tensor(1, 0.6, 1.5)) + 0.2


def hidden(theta=(1, 0.7, -0.5), loss=SQUARE, nodes=48):
    return OneHiddenLayer(MEAN, COVARIANCE, tensor(*theta), loss, nodes)


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_of_the_hidden_layer(name):
    net, w = hidden(loss=LOSSES[name], nodes=8), randn(3, 3)
    close(net.gradient(w), derivative(net.value, w))
    hessian = torch.autograd.functional.hessian(lambda at: net.value(at.reshape(3, 3)), w.flatten())
    close(net.hessian(w), hessian)
    b = net.moments(w).b
    close(b, b.T)


def test_stein_on_the_grid():
    """The two forms of the gradient differ by the quadrature's error, which falls with the nodes."""
    w = 0.7 * randn(3, 3)
    gaps = [hidden(nodes=nodes).stein_gap(w) for nodes in (16, 32, 48)]
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2] and gaps[2] < 1e-8


def test_nothing_of_weight_is_left_out_of_the_grid():
    z, p = hidden().grid
    assert len(p) < 48**3 / 3
    assert p.sum().item() == pytest.approx(1, abs=1e-13)
    mean = p @ z
    close(mean, MEAN)
    close((p[:, None] * (z - mean)).T @ (z - mean), COVARIANCE)


@pytest.mark.parametrize("seed", [1, 4, 19])
def test_critical_points_lie_on_one_line(seed):
    """Three joint minima, b well off singular: all three units on the line.

    The starts were looked for.  Of the seeds 0 to 24 ten lead to such minima (1 - cos < 1e-9), ten to minima
    where b is singular to 1e-9 and units are off the line, and five to none within 100 steps.
    """
    net = hidden()
    w = net.critical_point(randn(3, 3, seed=seed) / 2)
    assert net.gradient(w).norm() < 1e-12
    assert net.conditioning(w) > 1e-3
    assert (net.alignment(w) < 1e-12).all() and (net.effective_alignment(w) < 1e-12).all()


@pytest.mark.parametrize("loss", [SQUARE, SOFTPLUS])
def test_one_unit_lies_on_the_line(loss):
    net = hidden((1,), loss)
    assert (net.alignment(net.critical_point(randn(1, 3, seed=1))) < 1e-11).all()


@pytest.mark.parametrize("loss, seed, critical", [(SQUARE, 6, 1e-12), (SOFTPLUS, 0, 1e-8)])
def test_nearly_singular_minima_say_little_of_the_units(loss, seed, critical):
    """The gradient is as good as zero, yet units are off the line; only the rows of bW are on it."""
    net = hidden(loss=loss)
    w = net.critical_point(randn(3, 3, seed=seed) / 2, tolerance=critical)
    assert net.gradient(w).norm() <= critical
    assert net.conditioning(w) < 1e-8
    assert net.alignment(w).max() > 1e-3
    assert (net.effective_alignment(w) < 1e-9).all()


def test_beside_frozen_units_a_unit_is_off_the_line():
    net = hidden()
    for seed in (0, 1, 2):
        start = randn(3, 3, seed=seed)
        w = net.critical_point(start, units=[0])
        assert net.gradient(w)[0].norm() < 1e-12 and torch.equal(w[1:], start[1:])
        assert net.alignment(w)[0] > 0.01


def test_hidden_layer_says_what_it_cannot_do():
    with pytest.raises(RuntimeError, match="No critical point after 2 steps"):
        hidden(nodes=8).critical_point(randn(3, 3), steps=2)
    with pytest.raises(ValueError, match="no direction"):
        hidden(nodes=8).alignment(torch.zeros(3, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="one output weight per unit"):
        OneHiddenLayer(MEAN, COVARIANCE, torch.ones(2, 2))
    with pytest.raises(ValueError, match="u is zero"):
        OneHiddenLayer(0 * MEAN, COVARIANCE, tensor(1))
