"""Theorems about one BN layer: both sides computed, on a hand example, random networks and real ones."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bnlib import data, models, probes, training
from bnlib.norms import batch_norm
from bnlib.probes import batch_norm_gradients, batch_norm_terms, no_trace
from bnlib.theory import (
    gradient_through,
    hessian_through,
    lemma_4_5,
    matched_affine,
    observation_4_3,
    projector,
    random_network,
    same_weights,
    theorem_4_1,
    theorem_4_2,
    theorem_4_4,
    weight_gradients,
    worst_input,
)

ROUNDING = 1e-9  # relative: two sides that differ by less are equal


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)


def below(left, right):
    """left <= right, up to rounding."""
    return left <= right + ROUNDING * right.abs()


# --- a layer with four values, by hand ----------------------------------------------------------------------

Y, TARGET = tensor(1, 2, 4, 9)[:, None], tensor(0.5, -1, 2, 0)[:, None]
GAMMA, BETA = tensor(1.5), tensor(0.25)


def hand_loss(z):
    return ((z - TARGET) ** 2).sum() / 2 + (z**4).sum() / 24


def hand_gradient():
    z = batch_norm(Y, GAMMA, BETA, 0.0).y
    return z - TARGET + z**3 / 6, torch.diag((1 + z**2 / 2)[:, 0])


def test_hand_example():
    g, h = hand_gradient()
    first = theorem_4_1(Y, g, GAMMA)
    for side in (first.lhs, first.formula, first.rhs, first.exact):
        assert side.item() == pytest.approx(1.9281454293, abs=1e-9)
    assert first.printed.item() == pytest.approx(-5.753021, abs=1e-6)
    second = theorem_4_2(Y, hand_loss, GAMMA, BETA)
    for side in (second.lhs, second.rhs, second.exact):
        assert side.item() == pytest.approx(-0.2706273728, abs=1e-9)
    v = gradient_through(Y, g, GAMMA)[:, 0]
    hessian = hessian_through(Y[:, 0], g[:, 0], h, 1.5)
    assert (v @ hessian @ v).item() == pytest.approx(-0.2706273728, abs=1e-9)


def test_projector():
    y = randn(9)
    p = projector(y)
    close(p, p.T)
    close(p @ p, p)
    assert torch.linalg.matrix_rank(p) == 7
    y_hat = (y - y.mean()) / y.std(correction=0)
    for removed in (torch.ones_like(y), y_hat):
        close(p @ removed, torch.zeros_like(y))


def test_with_eps_it_no_longer_projects():
    y, eps = randn(9), 0.5
    p, s2 = projector(y, eps), y.var(correction=0) + eps
    y_hat = (y - y.mean()) / s2.sqrt()
    close(p @ torch.ones_like(y), torch.zeros_like(y))
    close(p @ y_hat, eps / s2 * y_hat)
    assert (p @ p - p).abs().max() > 0.01


@pytest.mark.parametrize("eps", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(11, 3), (3, 3, 2, 4)])
def test_gradient_through_the_layer(shape, eps):
    y, g, gamma = randn(*shape), randn(*shape, seed=1), tensor(1.5, -0.4, 2)
    at = y.clone().requires_grad_()
    (automatic,) = torch.autograd.grad(batch_norm(at, gamma, eps=eps).y, at, g)
    close(gradient_through(y, g, gamma, eps), automatic)
    row, row_g = (values.movedim(1, 0).flatten(1)[1] for values in (y, g))
    deviation = (row.var(correction=0) + eps).sqrt()
    expected = gamma[1] / deviation * projector(row, eps) @ row_g
    close(automatic.movedim(1, 0).flatten(1)[1], expected)


def derivatives(loss, at):
    """Gradient and Hessian of `loss` by automatic differentiation."""
    at = at.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), at, create_graph=True)
    every = torch.eye(len(at), dtype=at.dtype)
    (hessian,) = torch.autograd.grad(gradient, at, every, is_grads_batched=True)
    return gradient.detach(), hessian


@pytest.mark.parametrize("eps, count", [(0.0, 200), (0.3, 50)])
def test_full_hessian_through_the_layer(eps, count):
    """Networks with smooth activations: the formula against double backward, for the first unit."""
    worst = 0.0
    for seed in range(count):
        net = random_network(seed, smooth=True)
        z = batch_norm(net.y, net.gamma, net.beta, eps).y

        def at_output(z_j, net=net, z=z):
            return net.loss(torch.cat([z_j[:, None], z[:, 1:]], 1))

        def at_input(y_j, net=net, at_output=at_output):
            return at_output(batch_norm(y_j[:, None], net.gamma[:1], net.beta[:1], eps).y[:, 0])

        g, h = derivatives(at_output, z[:, 0])
        _, expected = derivatives(at_input, net.y[:, 0])
        formula = hessian_through(net.y[:, 0], g, h, net.gamma[0], eps)
        worst = max(worst, ((formula - expected).abs().max() / expected.abs().max()).item())
    assert worst < 1e-9


# --- Theorem 4.1 and Observation 4.3 on random networks -----------------------------------------------------


@pytest.fixture(scope="module")
def population():
    """310 networks, and of each the naive and the matched comparison and Theorem 4.1; live units only.

    A unit is live if a gradient reaches it with the layer and without (ReLU units can be dead).
    """
    found = []
    for seed in range(310):
        net = random_network(seed)
        naive, matched = same_weights(net.y, net.loss, net.gamma, net.beta), observation_4_3(net.y, net.loss)
        terms = theorem_4_1(net.y, naive.output_gradient, net.gamma)
        live = (terms.output_norm > 0) & (naive.vanilla > 0)
        if live.any():
            found.append((net, naive, matched, terms, live))
    assert len(found) >= 297
    return found


def over_units(population, values):
    """What `values(net, naive, matched, terms)` gives for each live unit, all networks together."""
    return torch.cat([values(*parts)[live] for *parts, live in population])


def test_theorem_4_1_is_an_equality(population):
    for side in ("formula", "rhs", "exact"):
        error = over_units(population, lambda n, a, m, t, side=side: (t.lhs - getattr(t, side)).abs() / t.lhs)
        assert error.max() < 1e-10
    assert over_units(population, lambda n, a, m, t: t.error).max() < 1e-12


def test_theorem_4_1_as_printed_is_violated_by_every_network(population):
    violated = over_units(population, lambda n, a, m, t: t.lhs > t.printed)
    assert violated.all()
    assert over_units(population, lambda n, a, m, t: t.printed < 0).any(), "a squared norm below zero"


def test_between_networks_of_the_same_weights_theorem_4_1_often_fails(population):
    violated = over_units(population, lambda n, naive, m, t: ~below(naive.lhs, naive.rhs))
    assert 0.2 < violated.double().mean() < 0.95
    for _, naive, _, terms, _ in population:
        close(naive.lhs, terms.lhs)


def test_matched_networks_never_violate_it(population):
    """Observation 4.3: the gap is exactly the two removed components."""
    assert over_units(population, lambda n, a, m, t: below(m.lhs, m.rhs)).all()
    assert over_units(population, lambda n, a, m, t: below(m.lhs, m.vanilla)).all()
    for net, _, matched, _, _ in population:
        close(batch_norm(net.y, matched.gamma, matched.beta, 0.0).y, net.y, atol=1e-9)
        close(matched.output_gradient, matched.vanilla_gradient, rtol=1e-7, atol=1e-9)
        terms = theorem_4_1(net.y, matched.vanilla_gradient, matched.gamma)
        close(terms.factor, torch.ones_like(terms.factor))
        removed = terms.mean_term + terms.scale_term
        close(matched.vanilla - matched.lhs, removed, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("eps", [1e-3, 1.0])
def test_with_eps_theorem_4_1_is_an_inequality(population, eps):
    for net, naive, _, _, live in population[:100]:
        terms = theorem_4_1(net.y, naive.output_gradient, net.gamma, eps)
        assert terms.error.max() < 1e-12
        close(terms.formula, terms.lhs)
        assert (terms.lhs < terms.rhs)[live].all(), "strict, because <g, y_hat> is not zero"
        matched = observation_4_3(net.y, net.loss, eps)
        assert below(matched.lhs, matched.vanilla).all()


def test_what_is_subtracted_are_the_gradients_of_gamma_and_beta(population):
    for net, _, _, terms, _ in population[:50]:
        gamma, beta = net.gamma.clone().requires_grad_(), net.beta.clone().requires_grad_()
        value = net.loss(batch_norm(net.y, gamma, beta, 0.0).y)
        d_gamma, d_beta = torch.autograd.grad(value, (gamma, beta))
        close(terms.inner, d_gamma)
        close(terms.mean_term, d_beta**2 / len(net.y))


def test_the_factor_is_a_change_of_units(population):
    net = population[0][0]
    one, other = (same_weights(c * net.y, net.loss, net.gamma, net.beta) for c in (1, 100))
    close(one.lhs, 100**2 * other.lhs)


# --- Theorem 4.2 --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curvatures():
    """Theorem 4.2 for the first unit of 200 networks with smooth activations."""
    nets = (random_network(seed, smooth=True) for seed in range(200))
    return [theorem_4_2(n.y, n.loss, n.gamma, n.beta, channels=[0]) for n in nets]


def test_the_first_form_of_theorem_4_2_is_an_equality(curvatures):
    for terms in curvatures:
        scale = terms.factor * terms.curvature.abs() + terms.bending.abs()
        assert ((terms.lhs - terms.rhs).abs() <= 1e-9 * scale).all()
        assert terms.error.max() < 1e-9


def test_the_second_form_fails_exactly_where_its_condition_does(curvatures):
    violated = torch.cat([terms.lhs > terms.second for terms in curvatures])
    assert torch.equal(violated, ~torch.cat([terms.preserves_norms for terms in curvatures]))
    assert 0.1 < violated.double().mean() < 0.9


def test_the_sign_of_the_inner_product_is_no_fact(curvatures):
    aligned = torch.cat([terms.inner >= 0 for terms in curvatures]).double().mean()
    assert 0.3 < aligned < 0.7


@pytest.mark.parametrize("shape", [(11, 3), (3, 3, 2, 4)])
def test_theorem_4_2_with_eps_and_for_images(shape):
    y, gamma, beta = randn(*shape), tensor(1.5, -0.4, 2), tensor(0, 1, -1)

    def loss(z):
        return (batch_norm(torch.tanh(z) + z**2, eps=0.1).y ** 3).sum() + z.flatten()[:5].prod()

    for eps in (0.0, 0.3):
        terms = theorem_4_2(y, loss, gamma, beta, eps)
        assert terms.error.max() < 1e-9
        equal = ((terms.lhs - terms.rhs).abs() < 1e-9 * terms.lhs.abs()).all()
        assert equal == (eps == 0)
        alone = theorem_4_2(y, loss, gamma, beta, eps, channels=[2])
        for field, whole in zip(alone, terms, strict=True):
            close(field, whole[2:])
    close(terms.step, theorem_4_1(y, same_weights(y, loss, gamma, beta, 0.3).output_gradient, gamma, 0.3).lhs)


def test_a_linear_loss_has_only_the_layers_own_curvature():
    y, weights = randn(8, 2), randn(8, 2, seed=1)
    terms = theorem_4_2(y, lambda z: (z * weights).sum())
    assert torch.equal(terms.curvature, torch.zeros(2, dtype=torch.float64))
    close(terms.lhs, -terms.bending)


# --- weights: Theorem 4.4, Wikipedia, Lemma 4.5 -------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.3, 1.0, 7.0])
def test_the_worst_input_attains_the_maximum_and_no_input_exceeds_it(radius):
    u = randn(6, seed=3)
    maximum = radius**2 * u.square().sum()
    x = worst_input(u, 4, radius)
    close(torch.linalg.matrix_norm(x, 2), tensor(radius)[0])
    close((x.T @ u).square().sum(), maximum)
    others = randn(5000, 6, 4, seed=4)
    others *= radius / torch.linalg.matrix_norm(others, 2)[:, None, None]
    reached = (others.mT @ u).square().sum(1)
    assert below(reached, maximum).all()
    assert reached.max() > 0.8 * maximum, "5000 random inputs come near it"


@pytest.mark.parametrize("radius", [0.5, 1.0, 3.0])
def test_theorem_4_4_corrected_is_an_equality(population, radius):
    printed_fails = 0
    for net, naive, _, terms, live in population[::3]:
        both = theorem_4_4(net.y, naive.output_gradient, net.gamma, radius)
        close(both.lhs, both.rhs)
        unit = int(live.int().argmax())
        x = worst_input(naive.gradient[:, unit], 3, radius)
        close(both.lhs[unit], (x.T @ naive.gradient[:, unit]).square().sum(), rtol=1e-9)
        m = len(net.y)
        mu2 = naive.output_gradient.mean(0) ** 2
        removed = radius**2 * m * mu2 + radius**2 / m * terms.inner**2
        close(both.rhs, terms.factor * (both.vanilla - removed), rtol=1e-9, atol=1e-9)
        printed_fails += int((both.lhs > both.printed * (1 + ROUNDING))[live].sum())
        if radius <= 1:
            assert (both.lhs > both.squared_once)[live].all()
    assert printed_fails > 0


def test_theorem_4_4_as_printed_depends_on_the_unit_of_the_loss():
    g, _ = hand_gradient()
    both, first = theorem_4_4(Y, g, GAMMA, 0.7), theorem_4_1(Y, g, GAMMA)
    g_j = 0.7**2 * g.square().sum()
    removed = 4 * g.mean() ** 2 + 0.7**2 * first.inner**2
    close(both.printed, first.factor * (g_j**2 - removed))
    close(both.squared_once, first.factor * (g_j - removed))
    one, other = (theorem_4_4(Y, c * g, GAMMA) for c in (1, 10))
    close(other.lhs, 100 * one.lhs)
    close(other.rhs, 100 * one.rhs)
    assert not math.isclose(other.printed.item(), 100 * one.printed.item(), rel_tol=0.5)


def test_wikipedias_bound_on_the_weights_gradient(population):
    """Corrected it bounds the gradient; but the gradient can be larger than without the layer."""
    larger = units = 0
    for net, naive, _, _, _ in population[::2]:
        found = weight_gradients(net.x, net.weight, net.loss, net.gamma, net.beta)
        close(found.lhs, (net.x.T @ naive.gradient).square().sum(0), rtol=1e-8, atol=1e-10)
        close(found.vanilla, (net.x.T @ naive.vanilla_gradient).square().sum(0), rtol=1e-8, atol=1e-10)
        assert below(found.lhs, found.rhs).all()
        matched = weight_gradients(net.x, net.weight, net.loss, *matched_affine(net.y))
        assert below(matched.lhs, matched.rhs).all()
        larger += int((matched.lhs > (1 + 1e-6) * matched.vanilla).sum())
        units += len(matched.lhs)
    assert 0.02 < larger / units < 0.5


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
def test_lemma_4_5_is_the_distance_to_a_ray(seed, scale):
    start, optimum = randn(3, 4, seed=seed), scale * randn(3, 4, seed=seed + 1)
    if (start * optimum).sum() < 0:
        start = -start
    lemma = lemma_4_5(start, optimum)
    assert lemma.inner > 0
    close(lemma.lhs, lemma.rhs, rtol=1e-9, atol=1e-9 * scale**2)
    for multiple in torch.linspace(0.01, 3, 50) * lemma.multiple:
        assert (start - multiple * optimum).square().sum() >= lemma.lhs - 1e-9
    assert lemma.lhs <= lemma.vanilla


def test_lemma_4_5_is_silent_where_the_optimum_points_away():
    lemma = lemma_4_5(tensor(1.0, 0), tensor(-1.0, 1))
    assert lemma.inner < 0
    assert lemma.lhs == 1 > lemma.rhs
    assert torch.equal(lemma.nearest, torch.zeros_like(lemma.nearest))


def test_every_multiple_of_an_optimum_is_one_of_the_normalised_network():
    net = random_network(0)
    gamma, beta = matched_affine(net.y)
    for multiple in (0.01, 1, 50):
        y = net.x @ (multiple * net.weight).T
        close(net.loss(batch_norm(y, gamma, beta, 0.0).y), net.loss(net.y))


# --- errors and side effects --------------------------------------------------------------------------------


def test_what_cannot_be_normalised_is_refused():
    constant = torch.ones(5, 2, dtype=torch.float64)
    for refused in (
        lambda: theorem_4_1(constant, constant),
        lambda: theorem_4_2(constant, torch.sum),
        lambda: theorem_4_4(constant, constant),
        lambda: same_weights(constant, torch.sum),
        lambda: observation_4_3(constant, torch.sum),
        lambda: projector(constant[:, 0]),
        lambda: gradient_through(constant, constant),
    ):
        with pytest.raises(ValueError, match="constant over the batch"):
            refused()
    assert theorem_4_1(constant, constant, eps=1e-5).lhs.max() == 0
    with pytest.raises(ValueError, match=r"shape \(5, 2\) of the activations, not \(5,\)"):
        theorem_4_1(constant, constant[:, 0])
    with pytest.raises(ValueError, match="more than 1 value"):
        theorem_4_1(constant[:1], constant[:1])
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        theorem_4_1(constant[:, 0], constant[:, 0])
    with pytest.raises(ValueError, match="gradient is zero"):
        worst_input(torch.zeros(3), 2)
    with pytest.raises(ValueError, match="no ray"):
        lemma_4_5(torch.ones(3), torch.zeros(3))
    with pytest.raises(ValueError, match="same shape"):
        lemma_4_5(torch.ones(3), torch.ones(4))


def test_nothing_global_changes_and_gradients_may_be_off():
    before, dtype = torch.get_rng_state(), torch.get_default_dtype()
    net = random_network(3)
    expected = theorem_4_2(net.y, net.loss, net.gamma, net.beta)
    with torch.no_grad():
        again = theorem_4_2(net.y, net.loss, net.gamma, net.beta)
        pair = same_weights(net.y.clone().requires_grad_(), net.loss, net.gamma, net.beta)
        weight_gradients(net.x, net.weight, net.loss, net.gamma, net.beta)
        assert not torch.is_grad_enabled()
    for one, other in zip(expected, again, strict=True):
        assert torch.equal(one, other)
    assert not any(field.requires_grad for terms in (again, pair) for field in terms)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == dtype


# --- real networks ------------------------------------------------------------------------------------------


def state(model, dtype=torch.float64, size=48):
    dataset = data.load("digits", dtype=dtype)
    return training.State(
        0, model.to(dtype), dataset.x_train[:size], dataset.y_train[:size], 0.1, dataset, F.cross_entropy
    )


def net(norm="batch", **settings):
    """A network a little away from its initialisation: gamma and beta of every sign, weights as drawn."""
    model = models.mlp(depth=3, width=12, in_features=64, norm=norm, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.7 * randn(*parameter.shape, seed=len(name)).float()
    return model


def table(rows):
    return {(layer, metric.removeprefix("thm41_")): value for layer, metric, value in rows}


def test_the_probe_measures_theorem_4_1_in_every_layer():
    seen = state(net())
    found = table(batch_norm_terms(seen, channels=12))
    assert {layer for layer, _ in found} == {"linear1", "linear2", "linear3"}
    y = seen.model.linear1(seen.model.flatten(seen.x)).detach().requires_grad_()
    with no_trace(seen.model) as model:
        z = model.norm1(y)
        value = F.cross_entropy(model[3:](z), seen.y)
        g_y, g_z, d_gamma = torch.autograd.grad(value, (y, z, model.norm1.weight))
    each = {
        "lhs": g_y.square().sum(0),
        "gradient": g_z.square().sum(0),
        "inner": d_gamma,
        "factor": model.norm1.weight.detach() ** 2 / (y.detach().var(0, correction=0) + 1e-5),
    }
    live = each["gradient"] > 0
    assert 0 < live.sum() < 12, "some ReLU is off for the whole batch: a channel without a gradient"
    for metric, expected in each.items():
        for c, value in enumerate(expected.tolist()):
            assert found["linear1", f"{metric}[{c}]"] == pytest.approx(value, rel=1e-9)
    assert found["linear1", "lhs"] == pytest.approx(each["lhs"].sum().item(), rel=1e-9)
    assert found["linear1", "factor"] == pytest.approx(each["factor"][live].mean().item(), rel=1e-9)
    assert found["linear1", "aligned"] == (d_gamma >= 0)[live].double().mean().item()
    for layer in ("linear1", "linear2", "linear3"):
        for c in ("", *(f"[{c}]" for c in range(12))):
            left, right = found[layer, f"lhs{c}"], found[layer, f"output{c}"]
            assert left == pytest.approx(
                right - found[layer, f"mean{c}"] - found[layer, f"scale{c}"], rel=1e-9
            )
            assert found[layer, f"printed{c}"] < left or right == 0
        assert found[layer, "printed_violated"] == 1
        assert found[layer, "error"] < 1e-12


def test_the_probe_works_on_images_in_float32():
    x, y = randn(40, 3, 32, 32).float(), torch.arange(40) % 10
    images = data.Dataset("random", x, y, x, y)
    model = models.vgg(width=0.125, norm="batch")
    seen = training.State(0, model, x, y, 0.1, images)
    found = table(batch_norm_terms(seen))
    assert {layer for layer, _ in found} == {f"conv{i}" for i in range(1, 9)}
    errors = [value for (_, metric), value in found.items() if metric == "error"]
    assert 0 < max(errors) < 1e-5


@pytest.mark.parametrize("norm", ["batch", "noisy_batch", "stationary_noise_batch", "noise", "none"])
def test_the_probe_leaves_no_trace(norm):
    seen = state(net(norm))
    F.cross_entropy(seen.model(seen.x), seen.y).backward()
    seen.model.relu2.eval()
    tensors = copy.deepcopy(seen.model.state_dict())
    gradients = [parameter.grad.clone() for parameter in seen.model.parameters()]
    modes = [module.training for module in seen.model.modules()]
    rng = torch.get_rng_state()
    once, again = list(batch_norm_terms(seen)), list(batch_norm_terms(seen))
    assert once == again, "the noise is drawn again as it was"
    assert bool(once) == ("batch" in norm)
    assert all(torch.equal(value, tensors[name]) for name, value in seen.model.state_dict().items())
    for parameter, gradient in zip(seen.model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert modes == [module.training for module in seen.model.modules()]
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(module._forward_hooks for module in seen.model.modules())


def test_the_probe_can_name_its_layers():
    seen = state(net(where=[1, 3]))
    assert {layer for layer, *_ in batch_norm_terms(seen)} == {"linear1", "linear3"}
    assert {layer for layer, *_ in batch_norm_terms(seen, ["linear3"])} == {"linear3"}
    assert list(batch_norm_terms(seen, ["linear2"])) == [], "no batch norm follows"
    with pytest.raises(ValueError, match="no layer 'conv7'"):
        list(batch_norm_terms(seen, ["conv7"]))


def test_the_probe_leaves_out_what_is_not_finite():
    seen = state(net())
    with torch.no_grad():
        seen.model.linear2.weight[0, 0] = math.nan
    found = table(batch_norm_terms(seen, channels=2))
    assert ("linear2", "lhs") not in found
    assert ("linear2", "error") not in found
    assert all(math.isfinite(value) for value in found.values())


def test_a_training_can_declare_the_probe():
    assert probes.PROBES["batch_norm_terms"] is batch_norm_terms
    declared = {
        "dataset": "digits",
        "model": {"name": "mlp", "depth": 2, "width": 16},
        "norm": "batch",
        "where": "everywhere",
        "init": "glorot_uniform",
        "lr": 0.1,
        "steps": 4,
        "batch_size": 32,
    }
    probing = {"batch_norm_terms": {"every": 2, "layers": ["linear1"], "channels": 0}}
    with_probe = training.run({**declared, "probes": probing}, seed=1)
    without = training.run(declared, seed=1)
    assert [row for row in with_probe if row[1] == ""] == without, "bit for bit the same training"
    assert {row[0] for row in with_probe if row[2] == "thm41_lhs"} == {0, 2, 4}
    assert not any("[" in row[2] for row in with_probe)


def test_theorem_4_2_in_a_real_network():
    """At eps = 0 the first form is an equality between the layer's input and its output in the network."""
    seen = state(net())
    with no_trace(seen.model) as model:
        layer = batch_norm_gradients(model, seen.x, seen.y, seen.loss, ["linear2"])["linear2"]
        end = next(block.end for block in models.blocks(model) if block.layer == "linear2")
        bias = model.norm2.bias

        def rest(z):
            return seen.loss(model[end:](z), seen.y)

        exact = theorem_4_2(layer.y, rest, layer.gamma, bias, layer.eps)
        ideal = theorem_4_2(layer.y, rest, layer.gamma, bias)
    close(exact.step, layer.g_y.square().sum(0))
    assert exact.error.max() < 1e-9
    close(ideal.lhs, ideal.rhs, rtol=1e-8, atol=1e-12)
