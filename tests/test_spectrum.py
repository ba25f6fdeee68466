"""The Hessian's spectrum: Lanczos against eigenvalues, products and rows against whole Hessians."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from bnlib import data, models
from bnlib.norms import BatchNorm
from bnlib.probes.spectrum import curvature, hessian_spectrum, relative_spectrum
from bnlib.probes.state import State
from bnlib.theory.lanczos import Spectrum, lanczos, rademacher, ritz, spectrum


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours, expected, rtol=1e-9, atol=1e-11):
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)


def with_eigenvalues(values, seed=0):
    """A symmetric matrix with these eigenvalues in random directions."""
    values = torch.as_tensor(values, dtype=torch.float64)
    axes = torch.linalg.qr(randn(len(values), len(values), seed=seed)).Q
    return axes @ torch.diag(values) @ axes.T


def symmetric(n, seed=0):
    half = randn(n, n, seed=seed)
    return (half + half.T) / 2


# --- Lanczos' method ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_lanczos_is_a_partial_tridiagonalisation(steps):
    h, v = symmetric(40), randn(40, seed=1)
    t = lanczos(lambda q: h @ q, v, steps)
    q = t.basis
    close(q @ q.T, torch.eye(steps, dtype=torch.float64))
    close(q[0], v / v.norm())
    inside = q @ h @ q.T
    close(inside.diagonal(), t.diagonal)
    close(inside.diagonal(1), t.off_diagonal)
    assert inside.triu(2).abs().max() < 1e-12 if steps > 2 else True
    outside = h @ q.T - q.T @ inside
    close(outside[:, :-1], torch.zeros(40, steps - 1, dtype=torch.float64))
    assert outside[:, -1].norm().item() == pytest.approx(t.residual)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_m_steps_reproduce_the_moments_up_to_2m_minus_1_and_no_more(steps):
    h, v = symmetric(30) / 4, randn(30, seed=1)
    found = ritz(lanczos(lambda q: h @ q, v, steps))
    close(found.weights.sum(), torch.tensor(1.0, dtype=torch.float64))

    def both(k):
        exact = v @ torch.linalg.matrix_power(h, k) @ v
        return (found.weights * found.values**k).sum() * v.square().sum(), exact

    for k in range(2 * steps):
        close(*both(k))
    quadrature, exact = both(2 * steps)
    assert (quadrature - exact).abs() > 1e-6 * exact.abs()


def test_no_ghosts():
    """Eigenvalues far from the bulk are found at once; without reorthogonalisation they would come again."""
    h = with_eigenvalues([1e6, 1e5, 1e4, *torch.linspace(-1, 1, 197).tolist()])
    v = randn(200, seed=1)
    t = lanczos(lambda q: h @ q, v, 60)
    close(t.basis @ t.basis.T, torch.eye(60, dtype=torch.float64))
    values = ritz(t).values
    close(values[-3:], torch.tensor([1e4, 1e5, 1e6], dtype=torch.float64))
    assert values[-4] < 1.0001

    alphas, betas, last, q = [], [], torch.zeros_like(v), v / v.norm()
    for _ in range(60):
        w = h @ q - (betas[-1] * last if betas else 0)
        alphas.append(q @ w)
        w = w - alphas[-1] * q
        betas.append(w.norm())
        last, q = q, w / w.norm()
    off = torch.diag(torch.stack(betas[:-1]), 1)
    naive = torch.linalg.eigvalsh(torch.diag(torch.stack(alphas)) + off + off.T)
    assert (naive > 9e5).sum() > 1, "the naive recurrence does have ghosts here"


def test_ritz_values_are_inside_and_their_errors_are_bounds():
    h = symmetric(60, seed=2)
    exact = torch.linalg.eigvalsh(h)
    for steps in (3, 10, 25):
        found = ritz(lanczos(lambda q: h @ q, randn(60, seed=steps), steps))
        assert (found.values.flip(0) <= exact.flip(0)[:steps] + 1e-10).all()
        assert (found.values >= exact[:steps] - 1e-10).all()
        distance = (found.values[:, None] - exact).abs().min(1).values
        assert (distance <= found.errors + 1e-10).all()
    assert found.errors[-1] < 0.1, "and they become small"


def test_lanczos_ends_where_there_is_no_new_direction():
    start = randn(20)
    for h, longest in (
        (torch.eye(20, dtype=torch.float64), 1),
        (torch.zeros(20, 20, dtype=torch.float64), 1),
        (with_eigenvalues([5.0] * 4 + [-1.0] * 16), 15),  # rounding may go on, without weight
    ):
        found = ritz(lanczos(lambda q, h=h: h @ q, start, 15))
        assert len(found.values) <= longest
        exact, axes = torch.linalg.eigh(h)
        along = (axes.T @ start).square() / start.square().sum()
        for value in exact:
            near, there = (found.values - value).abs() < 1e-9, (exact - value).abs() < 1e-9
            close(found.weights[near].sum(), along[there].sum())
    whole = symmetric(6)
    found = ritz(lanczos(lambda q: whole @ q, randn(6), 50))
    close(found.values, torch.linalg.eigvalsh(whole))
    assert len(found.values) == 6


def test_lanczos_says_what_is_wrong():
    h = torch.eye(3, dtype=torch.float64)
    for start in (torch.zeros(3), torch.ones(3, 1), torch.full((3,), math.nan)):
        with pytest.raises(ValueError, match="start"):
            lanczos(lambda q: h @ q, start.double(), 2)
    with pytest.raises(ValueError, match="one step"):
        lanczos(lambda q: h @ q, torch.ones(3), 0)
    with pytest.raises(ArithmeticError, match="not finite"):
        lanczos(lambda q: q / 0, torch.ones(3), 2)
    with pytest.raises(ValueError, match="one draw"):
        spectrum(lambda q: h @ q, 3, 2, 0)


# --- stochastic Lanczos quadrature --------------------------------------------------------------------------

OUTLIERS = [30.0, 12.0, *torch.linspace(-2, 4, 298).tolist()]


def gaussians(values, grid, width):
    """The exact density: one Gaussian for each eigenvalue."""
    z = (grid[:, None] - torch.as_tensor(values, dtype=torch.float64)) / width
    return (torch.exp(-z.square() / 2) / width / math.sqrt(2 * math.pi)).mean(1)


def test_the_density_of_a_matrix_with_outliers():
    h = with_eigenvalues(OUTLIERS)
    found = spectrum(lambda v: h @ v, 300, steps=40, draws=10)
    grid = torch.linspace(-6, 36, 2000, dtype=torch.float64)
    density, exact = found.density(grid, 0.5), gaussians(OUTLIERS, grid, 0.5)
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-6)
    assert torch.trapezoid((density - exact).abs(), grid) < 0.06, "total variation, twice"
    close(found.largest(2), torch.tensor([30.0, 12.0], dtype=torch.float64))
    assert found.smallest == pytest.approx(-2, abs=1e-3)
    peak = torch.trapezoid(density[grid > 25], grid[grid > 25])
    assert peak.item() == pytest.approx(1 / 300, rel=0.5), "one eigenvalue of 300"


def test_all_steps_and_all_starts_give_the_whole_spectrum():
    """With the axes as starts, the quadrature is the spectrum itself, not an estimate."""
    h = symmetric(12)
    axes = torch.eye(12, dtype=torch.float64)
    whole = Spectrum(12, tuple(ritz(lanczos(lambda v: h @ v, axis, 12)) for axis in axes))
    grid = torch.linspace(-8, 8, 400, dtype=torch.float64)
    close(whole.density(grid, 0.3), gaussians(torch.linalg.eigvalsh(h), grid, 0.3))
    assert whole.trace == pytest.approx(h.trace().item())
    assert whole.moment(2) == pytest.approx(h.square().sum().item() / 12)
    close(whole.largest(99), torch.linalg.eigvalsh(h).flip(0))
    with pytest.raises(ValueError, match="width"):
        whole.density(grid, 0)


def test_moments_are_the_mean_over_the_draws_and_the_trace_is_hutchinsons():
    h = symmetric(50, seed=3)
    found = spectrum(lambda v: h @ v, 50, steps=3, draws=7, seed=5)
    starts = [rademacher(50, 5, draw) for draw in range(7)]
    for k in range(6):
        exact = sum((v @ torch.linalg.matrix_power(h, k) @ v).item() for v in starts) / 7 / 50
        assert found.moment(k) == pytest.approx(exact)
    many = spectrum(lambda v: h @ v, 50, steps=1, draws=2000)
    deviation = math.sqrt(2 * (h.square().sum() - h.diagonal().square().sum()).item() / 2000)
    assert many.trace == pytest.approx(h.trace().item(), abs=4 * deviation)
    diagonal = torch.diag(randn(50))
    assert spectrum(lambda v: diagonal @ v, 50, 1, 1).trace == pytest.approx(diagonal.trace().item())


def test_starts_are_signs_and_differ():
    before = torch.get_rng_state()
    one, again, other, third = (rademacher(1000, *key) for key in ((1, 0), (1, 0), (1, 1), (2, 0)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert set(one.tolist()) == {-1.0, 1.0}
    for different in (other, third):
        assert abs(one @ different) < 200


# --- against whole Hessians of small networks ---------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", dtype=torch.float64)


def state_of(model, digits, size=40, lr=0.1):
    return State(0, model, digits.x_train[:size], digits.y_train[:size], lr, digits)


def small(norm="batch", name="mlp"):
    sizes = {"mlp": {"depth": 2, "width": 5, "in_features": 64}, "digit_cnn": {"size": 8, "width": 1}}
    model = models.build(name, norm=norm, **sizes[name]).double()
    with torch.no_grad():
        for k, parameter in enumerate(p for p in model.parameters() if p.ndim == 1):
            parameter += 0.3 * randn(len(parameter), seed=k)
    return model


def plain_mlp(vector, model, x):
    """The small MLP written out with torch's own functions, all parameters in one vector."""
    parts = dict(
        zip(
            (name for name, _ in model.named_parameters()),
            vector.split([p.numel() for p in model.parameters()]),
            strict=True,
        )
    )
    x = x.flatten(1)
    for i in (1, 2):
        x = F.linear(x, parts[f"linear{i}.weight"].view(5, -1), parts.get(f"linear{i}.bias"))
        if f"norm{i}.weight" in parts:
            gamma, beta = parts[f"norm{i}.weight"], parts[f"norm{i}.bias"]
            x = F.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-5)
        x = x.relu()
    return F.linear(x, parts["classifier.weight"].view(10, 5), parts["classifier.bias"])


def vector_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def whole_hessian(model, x, y):
    vector = vector_of(model)
    return torch.autograd.functional.hessian(lambda at: F.cross_entropy(plain_mlp(at, model, x), y), vector)


@pytest.fixture(scope="module", params=["none", "batch"])
def case(request, digits):
    """A small MLP, its state, its whole Hessian in training mode and its gradient."""
    model = small(request.param)
    state = state_of(model, digits)
    hessian = whole_hessian(model, state.x, state.y)
    loss = F.cross_entropy(plain_mlp(vector_of(model), model, state.x), state.y)
    gradient = torch.autograd.functional.jacobian(
        lambda at: F.cross_entropy(plain_mlp(at, model, state.x), state.y), vector_of(model)
    )
    return state, hessian, gradient, loss


def test_products_are_those_of_the_whole_hessian(case):
    state, hessian, gradient, loss = case
    directions = randn(5, len(gradient))
    with curvature(state) as here:
        assert here.loss == pytest.approx(loss.item(), abs=1e-12)
        close(here.gradient, gradient)
        for v in directions:
            close(here.product(v), hessian @ v)


@pytest.mark.parametrize("norm", ["none", "batch", "noisy_batch", "linf"])
def test_products_are_differences_of_gradients(norm, digits):
    """For convolutions, max pooling and noise: (g(W + hv) - g(W - hv)) / 2h, with the same noise."""
    model = small(norm, "digit_cnn")
    state = state_of(model, digits)
    v = randn(sum(p.numel() for p in model.parameters()))
    with curvature(state) as here:
        product = here.product(v)
    ends = []
    for h in (1e-6, -1e-6):
        moved = small(norm, "digit_cnn")
        at = 0
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter += h * v[at : at + parameter.numel()].view_as(parameter)
                at += parameter.numel()
        with curvature(replace(state, model=moved)) as there:
            ends.append(there.gradient)
    difference = (ends[0] - ends[1]) / 2e-6
    assert (product - difference).norm() < 1e-5 * product.norm()


def test_rows_against_all_eigenvalues(case):
    state, hessian, gradient, loss = case
    rows = list(hessian_spectrum(state, steps=70, draws=3, top=6))
    assert {layer for layer, _, _ in rows} == {""}
    found = {metric: value for _, metric, value in rows}
    assert len(found) == len(rows)
    exact, axes = torch.linalg.eigh(hessian)
    n = len(exact)
    largest = [found[f"eigenvalue[{j}]"] for j in range(1, 7)]
    assert largest == pytest.approx(exact.flip(0)[:6].tolist(), rel=1e-6)
    assert found["sharpness"] == largest[0]
    assert found["sharpness_error"] < 1e-3 * found["sharpness"]
    assert found["smallest"] == pytest.approx(exact[0].item(), rel=1e-6)
    assert found["edge"] == pytest.approx(0.1 * exact[-1].item() / 2, rel=1e-6)
    assert found["parameters"] == n == len(gradient)
    assert found["loss"] == pytest.approx(loss.item())
    assert found["gradient_norm"] == pytest.approx(gradient.norm().item())
    weights = [layer.weight for _, layer in models.layers(state.model)]
    assert found["weight_norm"] == pytest.approx(math.sqrt(sum(w.square().sum().item() for w in weights)))
    along = (axes.T @ gradient).flip(0).square().cumsum(0) / gradient.square().sum()
    shares = [found[f"gradient_share[{j}]"] for j in range(1, 7)]
    assert shares == pytest.approx(along[:6].tolist(), abs=1e-3)

    starts = [rademacher(n, 0, draw) for draw in range(3)]
    for k in (1, 2, 5):
        moment = sum((v @ torch.linalg.matrix_power(hessian, k) @ v).item() for v in starts) / n / 3
        ours = sum(
            found[f"ritz_weight[{d},{i}]"] * found[f"ritz[{d},{i}]"] ** k for d in range(3) for i in range(70)
        )
        assert ours / 3 == pytest.approx(moment, rel=1e-9)
    assert found["trace"] == pytest.approx(sum((v @ hessian @ v).item() for v in starts) / 3)


def test_of_several_draws_the_best_counts(case):
    """After four steps nothing has converged, and the draws differ."""
    state, hessian, _, _ = case
    n = len(hessian)
    found = table(state, steps=4, draws=5, top=2)
    draws = [ritz(lanczos(lambda v: hessian @ v, rademacher(n, 0, d), 4)) for d in range(5)]
    best = max(draws, key=lambda draw: draw.values[-1])
    assert found["sharpness"] == pytest.approx(best.values[-1].item())
    assert found["sharpness"] > 1.001 * min(draw.values[-1].item() for draw in draws)
    assert found["eigenvalue[2]"] == pytest.approx(max(draw.values[-2].item() for draw in draws))
    assert found["smallest"] == pytest.approx(min(draw.values[0].item() for draw in draws))
    # A Ritz pair's error is the residual of its own equation.
    start = next(d for d in range(5) if draws[d] is best)
    t = lanczos(lambda v: hessian @ v, rademacher(n, 0, start), 4)
    vector = t.basis.T @ best.vectors[:, -1]
    residual = (hessian @ vector - best.values[-1] * vector).norm().item()
    assert found["sharpness_error"] == pytest.approx(residual)


def test_what_pyhessian_publishes_agrees(case):
    """Its three quantities, by its methods: power iteration with deflation, Hutchinson's trace, the density.

    Power iteration finds the eigenvalues of largest modulus, ours the largest: they may differ in sign.
    """
    state, hessian, _, _ = case
    exact = torch.linalg.eigvalsh(hessian)
    n = len(exact)
    with curvature(state) as here:
        vectors = []
        for seed in range(2):
            v = randn(n, seed=seed)
            for _ in range(300):
                for known in vectors:
                    v = v - (v @ known) * known
                v = here.product(v / v.norm())
            v = v / v.norm()
            vectors.append(v)
        powers = [(v @ here.product(v)).item() for v in vectors]
        traces = torch.stack([v @ here.product(v) for v in (rademacher(n, 1, d) for d in range(100))])
        found = spectrum(here.product, n, steps=60, draws=10)
    by_modulus = sorted(exact.tolist(), key=abs)[::-1]
    assert powers == pytest.approx(by_modulus[:2], rel=1e-2)
    assert max(found.largest().item(), found.smallest, key=abs) == pytest.approx(powers[0], rel=1e-3)
    error = (traces.std() / 10).item()
    assert traces.mean().item() == pytest.approx(exact.sum().item(), abs=4 * error)
    assert found.trace == pytest.approx(exact.sum().item(), abs=4 * traces.std().item() / math.sqrt(10))
    reach = float(exact[-1] - exact[0])
    grid = torch.linspace(exact[0] - 0.2 * reach, exact[-1] + 0.2 * reach, 2000, dtype=torch.float64)
    width = 0.03 * reach
    apart = (found.density(grid, width) - gaussians(exact, grid, width)).abs()
    assert torch.trapezoid(apart, grid) < 0.1


def test_in_evaluation_mode_it_is_another_matrix(digits):
    """PyHessian calls model.eval(): fixed affine maps in the place of the batch norms."""
    model = small("batch")
    state = state_of(model, digits)
    for _ in range(100):
        model.train()(state.x)  # the running statistics are now those of this very batch
    with curvature(state) as here:
        train = lanczos(here.product, rademacher(len(here.gradient), 0), 60)
    model.eval()
    vector = vector_of(model)
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(at):
        named = zip(parameters, at.split(sizes), strict=True)
        values = {name: part.view_as(parameters[name]) for name, part in named}
        return F.cross_entropy(functional_call(model, values, (state.x,)), state.y)

    frozen = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, vector))
    assert abs(frozen[-1] / ritz(train).values[-1] - 1) > 0.2
    assert abs(frozen[0] / ritz(train).values[0] - 1) > 0.2


# --- scale, the way to the next step, and the rest of the contract ------------------------------------------


def table(state, **arguments):
    return {metric: value for _, metric, value in hessian_spectrum(state, **arguments)}


def scaled(model, factors):
    """The model with each layer's weight times a factor."""
    with torch.no_grad():
        for (_, layer), factor in zip(models.layers(model), factors, strict=True):
            layer.weight *= factor
    return model


def test_relative_curvature_is_that_of_the_whole_hessian(case):
    state, hessian, gradient, _ = case
    units = torch.cat(
        [
            torch.full((p.numel(),), p.detach().norm().item() if p.ndim > 1 else 0.0, dtype=torch.float64)
            for p in state.model.parameters()
        ]
    )
    kept = units > 0
    exact = torch.linalg.eigvalsh((units[:, None] * hessian * units)[kept][:, kept])
    found = table(state, steps=60, draws=1, relative=True)
    assert all(metric.startswith("relative_") for metric in found)
    assert "relative_edge" not in found
    assert found["relative_sharpness"] == pytest.approx(exact[-1].item(), rel=1e-6)
    assert found["relative_smallest"] == pytest.approx(exact[0].item(), rel=1e-6)
    assert found["relative_gradient_norm"] == pytest.approx((units * gradient).norm().item())
    assert found["relative_parameters"] == kept.sum()


def test_sharpness_depends_on_the_scale_and_relative_sharpness_does_not(digits):
    """Layers before a batch norm ten and three times smaller compute the same, a hundred times sharper."""
    plain, small_weights = small("batch"), scaled(small("batch"), [0.1, 0.3, 1.0])
    for module in (*plain.modules(), *small_weights.modules()):
        if isinstance(module, BatchNorm):
            module.eps = 0.0
    one, other = (state_of(model, digits) for model in (plain, small_weights))
    before, after = table(one, steps=40, draws=1), table(other, steps=40, draws=1)
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-12)
    assert after["sharpness"] > 5 * before["sharpness"]
    relative = [table(state, steps=40, draws=1, relative=True) for state in (one, other)]
    for metric in ("sharpness", "smallest", "trace", "gradient_norm", "eigenvalue[3]"):
        assert relative[1][f"relative_{metric}"] == pytest.approx(relative[0][f"relative_{metric}"], rel=1e-8)

    all_smaller = scaled(plain, [0.1, 0.1, 1.0])
    blocks = [layer.weight.numel() for _, layer in models.layers(plain)[:2]]
    with curvature(state_of(all_smaller, digits)) as here:
        v = torch.zeros_like(here.gradient)
        v[: blocks[0]] = randn(blocks[0])
        near = here.product(v)[: blocks[0]]
    with curvature(state_of(scaled(all_smaller, [10, 10, 1]), digits)) as here:
        close(near, 100 * here.product(v)[: blocks[0]], rtol=1e-8, atol=1e-9)


def test_between_is_the_sharpness_on_the_way_to_the_next_step(digits):
    state = state_of(small("batch"), digits, lr=0.5)
    found = table(state, steps=40, draws=1, between=[0.0, 0.5, 1.0])
    assert found["sharpness@0"] == pytest.approx(found["sharpness"], rel=1e-12)
    moved = small("batch")
    F.cross_entropy(moved(state.x), state.y).backward()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter -= 0.5 * 0.5 * parameter.grad
    there = table(replace(state, model=moved), steps=40, draws=1)
    assert found["sharpness@0.5"] == pytest.approx(there["sharpness"], rel=1e-6)
    assert found["sharpness@1"] != pytest.approx(found["sharpness"], rel=1e-3)


def test_the_edge_decides_on_a_quadratic(digits):
    """Least squares with a linear network: descent converges below the edge and diverges above it."""
    model = models.deep_linear(depth=1, width=6).double()
    x, target = randn(50, 6), randn(50, 6, seed=1)

    def loss(output, y):
        return (output - y).square().mean()

    curve = State(0, model, x, target, 1.0, digits, loss)
    rate = 1 / table(curve, steps=36, draws=1)["edge"]  # of the edge itself
    floor = (x @ torch.linalg.lstsq(x, target).solution - target).square().mean().item()
    for factor, converges in ((0.98, True), (1.02, False)):
        weight = model.linear1.weight.detach().clone().requires_grad_()
        for _ in range(1500):
            (gradient,) = torch.autograd.grad(loss(x @ weight.T, target), weight)
            weight = (weight - factor * rate * gradient).detach().requires_grad_()
        assert (loss(x @ weight.T, target).item() < floor + 1e-6) == converges
        state = replace(curve, lr=factor * rate)
        assert (table(state, steps=36, draws=1)["edge"] < 1) == converges


def test_size_is_the_fixed_probe_batch(digits):
    model = small("batch")
    found = table(state_of(model, digits), steps=5, draws=1, size=64)
    x, y = data.probe_batch(digits, 64)
    assert found == table(State(0, model, x, y, 0.1, digits), steps=5, draws=1)
    assert found == table(state_of(model, digits, size=7), steps=5, draws=1, size=64)


@pytest.mark.parametrize("norm", ["none", "batch", "noisy_batch"])
def test_no_trace(norm, digits):
    model = small(norm, "digit_cnn")
    F.cross_entropy(model(digits.x_train[:8]), digits.y_train[:8]).backward()
    model.conv1.weight.grad = None
    model.relu2.eval()

    def everything():
        values = [value.clone() for value in model.state_dict().values()]
        gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
        noise = [m.generator.get_state().tolist() for m in model.modules() if hasattr(m, "generator")]
        return values, gradients, [m.training for m in model.modules()], noise, torch.get_rng_state().tolist()

    before, state = everything(), state_of(model, digits)
    arguments = {"steps": 4, "between": [1.0]}
    first = list(hessian_spectrum(state, **arguments))
    assert first
    next(iter(hessian_spectrum(state, **arguments)))
    after = everything()
    assert all(map(torch.equal, before[0], after[0]))
    assert before[1:] == after[1:]
    assert list(hessian_spectrum(state, **arguments)) == first, "measured twice, the same"
    before = everything()
    model.classifier.weight.requires_grad_(False)  # it breaks off
    with pytest.raises(RuntimeError):
        list(hessian_spectrum(state, **arguments))
    assert all(map(torch.equal, before[0], everything()[0]))
    assert before[1:] == everything()[1:]


def test_a_loss_without_curvature_and_one_that_is_not_finite(digits):
    model = nn.Sequential()
    model.add_module("linear1", nn.Linear(3, 1, bias=False, dtype=torch.float64))
    x = randn(10, 3)
    linear = State(0, model, x, x, 0.1, digits, lambda output, y: output.sum())
    found = table(linear, steps=3)
    assert found["sharpness"] == found["smallest"] == found["trace"] == 0
    assert found["gradient_norm"] > 0
    broken = replace(linear, loss=lambda output, y: output.square().sum() * math.inf)
    assert table(broken, steps=3) == {}
    still = replace(linear, loss=lambda output, y: 0 * output.square().sum())
    assert "gradient_share[1]" not in table(still, steps=3)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"draws": 0}, {"top": 0}])
def test_what_cannot_be_measured_is_said(wrong, digits):
    with pytest.raises(ValueError, match="at least 1"):
        list(hessian_spectrum(state_of(small(), digits), **wrong))


def test_float32_has_the_extreme_eigenvalues_to_four_digits(digits):
    model = small("batch")
    exact = table(state_of(model, digits), steps=30, draws=1)
    single = data.load("digits")
    found = table(state_of(model.float(), single), steps=30, draws=1)
    for metric in ("sharpness", "smallest", "eigenvalue[2]", "trace"):
        assert found[metric] == pytest.approx(exact[metric], rel=1e-4)


# --- what the chapter claims at initialisation --------------------------------------------------------------


def test_batch_norm_smooths_shallow_networks_and_sharpens_deep_ones(digits):
    """`hessian.depth`: an MLP of width 64 with He's initialisation, three seeds; orderings only."""

    def sharpness(norm, depth, seed):
        model = models.mlp(depth=depth, width=64, in_features=64, norm=norm)
        model = models.initialise(model, "he_normal", seed=seed).double()
        return table(state_of(model, digits, size=256), steps=20, draws=1)["sharpness"]

    for seed in range(3):
        assert sharpness("batch", 2, seed) < 0.5 * sharpness("none", 2, seed)
        assert sharpness("batch", 10, seed) < sharpness("none", 10, seed)
        assert sharpness("batch", 20, seed) > 3 * sharpness("none", 20, seed)


def test_the_relative_spectrum_under_its_own_name(digits):
    state = state_of(small("batch"), digits)
    found = {metric: value for _, metric, value in relative_spectrum(state, steps=5, draws=1)}
    assert found == table(state, steps=5, draws=1, relative=True)
