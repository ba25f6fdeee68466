"""Scale invariance: the identities, what eps leaves of them, weight decay as a rate, the equilibrium."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from bnlib import data, models
from bnlib.norms import BatchNorm, batch_norm
from bnlib.theory.scale_invariance import (
    decay_as_rates,
    descend,
    effective_rates,
    equilibrium,
    exponential_rates,
    radial_gradient,
    random_walk,
    scale_identities,
    squared_norms_after,
)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)


def network(norm="batch", eps=0.0, name="mlp"):
    """A small network for digits in float64, with gamma and beta that are not 1 and 0."""
    sizes = {"mlp": {"depth": 3, "width": 8, "in_features": 64}, "digit_cnn": {"size": 8, "width": 3}}
    model = models.build(name, norm=norm, **sizes[name]).double()
    with torch.no_grad():
        for k, parameter in enumerate(p for p in model.parameters() if p.ndim == 1):
            parameter += 0.3 * randn(len(parameter), seed=k)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.eps = eps
    return model


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", dtype=torch.float64)


def as_function(model, layer, digits, size=48):
    """The loss of the network on a batch as a function of one layer's weight, and that weight."""
    model = copy.deepcopy(model)
    x, y = digits.x_train[:size], digits.y_train[:size]
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(weight):
        return F.cross_entropy(functional_call(model, parameters | {f"{layer}.weight": weight}, (x,)), y)

    return loss, parameters[f"{layer}.weight"]


# --- the identities -----------------------------------------------------------------------------------------

LAYERS = [("mlp", "linear1"), ("mlp", "linear2"), ("mlp", "linear3"), ("digit_cnn", "conv2")]


@pytest.mark.parametrize("name, layer", LAYERS)
def test_scale_identities(name, layer, digits):
    """`scale.identities`: a factor for every neuron, through the batch norms of a whole network."""
    loss, weight = as_function(network(name=name), layer, digits)
    factors = 0.2 + 5 * torch.rand(len(weight), generator=torch.Generator().manual_seed(1)).double()
    found = scale_identities(loss, weight, factors, randn(*weight.shape))
    close(loss(weight * factors.view(-1, *[1] * (weight.ndim - 1))), loss(weight))
    assert found.gradient.norm() > 1e-3
    assert found.product.norm() > 1e-3
    assert max(found.errors.values()) < 1e-10, found.errors
    close(found.inner, torch.zeros_like(found.inner))
    close(found.radial, -found.gradient)
    close(found.scaled_product, found.product)


def test_one_factor_for_all_gives_the_identities_as_they_are_written(digits):
    loss, weight = as_function(network(), "linear2", digits)
    v = randn(*weight.shape)
    at, far = (w.clone().requires_grad_() for w in (weight, 3 * weight))
    g, h = torch.autograd.functional.vhp(loss, at, v)[1], torch.autograd.functional.vhp(loss, far, v)[1]
    close(h, g / 9)
    (near,), (there,) = torch.autograd.grad(loss(at), at), torch.autograd.grad(loss(far), far)
    close(there, near / 3)
    hessian = torch.autograd.functional.hessian(loss, weight).view(weight.numel(), -1)
    close(hessian @ weight.flatten(), -near.flatten())
    assert abs(weight.flatten() @ hessian @ weight.flatten()) < 1e-12 * hessian.norm() * weight.square().sum()
    # Block by block: moving along w_j turns its own gradient only.
    rows = hessian.view(*weight.shape, *weight.shape)
    block = torch.einsum("jdkf,kf->jdk", rows, weight)
    close(block, -near[:, :, None] * torch.eye(len(weight), dtype=torch.float64)[:, None])


def test_without_a_norm_they_do_not_hold(digits):
    loss, weight = as_function(network("none"), "linear2", digits)
    errors = scale_identities(loss, weight, torch.full((8,), 2.0), randn(*weight.shape)).errors
    assert min(errors.values()) > 1e-2, errors


def test_the_last_layer_is_not_scale_invariant(digits):
    loss, weight = as_function(network(), "classifier", digits)
    errors = scale_identities(loss, weight, torch.full((10,), 2.0), randn(*weight.shape)).errors
    assert errors["radial"] > 0.1


def test_a_sign_is_not_a_scale(digits):
    loss, weight = as_function(network(), "linear2", digits)
    with pytest.raises(ValueError, match="positive"):
        scale_identities(loss, weight, -torch.ones(8), weight)


def test_a_linear_loss_has_no_curvature():
    weight = randn(3, 4)
    found = scale_identities(lambda w: w.sum(), weight, torch.ones(3), weight)
    assert torch.equal(found.product, torch.zeros_like(weight))
    assert found.errors["radial"] == 1


def test_a_dead_loss_has_no_errors():
    weight = randn(3, 4)
    found = scale_identities(lambda w: 0 * w.square().sum(), weight, torch.ones(3), weight)
    assert set(found.errors.values()) == {0.0}


# --- eps ----------------------------------------------------------------------------------------------------


def with_eps(digits, eps, shrink=1.0):
    """`radial_gradient` for the second layer of a network with eps, its weights `shrink` times as large."""
    model = network(eps=eps)
    with torch.no_grad():
        model.linear2.weight *= shrink
    x, y = digits.x_train[:48], digits.y_train[:48]
    seen = {}
    model.linear2.register_forward_hook(lambda module, inputs, output: seen.update(y=output.detach()))
    norm = model.norm2
    loss = F.cross_entropy(model(x), y)
    gradient, of_gamma = torch.autograd.grad(loss, (model.linear2.weight, norm.weight))
    var = seen["y"].var(0, correction=0)
    gamma = norm.weight.detach()
    return radial_gradient(model.linear2.weight.detach(), gradient, gamma, of_gamma, var, eps)


@pytest.mark.parametrize("eps, shrink", [(1e-5, 1), (1e-5, 0.01), (0.3, 1), (0.0, 1)])
def test_what_eps_leaves_is_known_exactly(eps, shrink, digits):
    found = with_eps(digits, eps, shrink)
    close(found.inner, found.predicted, rtol=1e-9)


def test_eps_breaks_scale_invariance_more_for_small_weights(digits):
    near, small = (with_eps(digits, 1e-5, shrink).relative.abs().median() for shrink in (1, 0.01))
    assert 1e-7 < near < 1e-5
    assert 1e-3 < small < 1e-1
    assert 0.3e4 < small / near < 3e4, "delta goes as one over the weights' square"
    assert with_eps(digits, 0.0).relative.abs().max() < 1e-12


def test_the_radial_gradient_of_a_convolution(digits):
    x, weight, gamma = digits.x_train[:16], randn(3, 1, 3, 3), randn(3, seed=1)
    weight, gamma = weight.requires_grad_(), gamma.requires_grad_()
    y = F.conv2d(x, weight, padding=1)
    loss = (batch_norm(y, gamma, eps=0.1).y ** 3).mean()
    gradient, of_gamma = torch.autograd.grad(loss, (weight, gamma))
    var = y.detach().var((0, 2, 3), correction=0)
    found = radial_gradient(weight, gradient, gamma, of_gamma, var, 0.1)
    close(found.inner, found.predicted, rtol=1e-9)
    assert found.relative.abs().min() > 1e-4


# --- lengths and rates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_the_norm_after_a_step_is_pythagoras(decay, digits):
    loss, weight = as_function(network(), "linear2", digits)
    (gradient,) = torch.autograd.functional.jacobian(loss, (weight,))
    after = descend(lambda w, t: loss(w), weight, torch.tensor([0.5]), decay)[1]
    expected = squared_norms_after(weight, gradient, 0.5, decay)
    close(after.square().sum(1), expected)
    assert ((expected > weight.square().sum(1)) == (decay == 0)).all()


def test_directions_see_the_effective_rate(digits):
    """Weights twice as long with four times the rate go the same way."""
    loss, weight = as_function(network(), "linear2", digits)
    one = descend(lambda w, t: loss(w), weight, torch.full((10,), 0.5))
    other = descend(lambda w, t: loss(w), 2 * weight, torch.full((10,), 2.0))
    close(other, 2 * one)
    close(effective_rates(one[-1], 0.5), effective_rates(other[-1], 2.0))
    unit = weight / weight.norm(dim=1, keepdim=True)
    (gradient,) = torch.autograd.functional.jacobian(loss, (unit,))
    step = unit - effective_rates(weight, 0.5)[:, None] * gradient
    close(F.normalize(step), F.normalize(one[1]))


def minibatches(digits, steps, size=32):
    """The network's loss as a function of the second layer's weight, on another batch at every step."""
    model = network()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    batches = torch.randint(len(digits.x_train), (steps, size), generator=torch.Generator().manual_seed(2))

    def loss(weight, t):
        x, y = digits.x_train[batches[t]], digits.y_train[batches[t]]
        return F.cross_entropy(functional_call(model, parameters | {"linear2.weight": weight}, (x,)), y)

    return loss, parameters["linear2.weight"]


def test_weight_decay_is_an_exponentially_growing_rate(digits):
    """eta .5, lam .02, 60 steps, with minibatches."""
    loss, weight = minibatches(digits, 60)
    both = decay_as_rates(loss, weight, lr=0.5, decay=0.02, steps=60)
    assert both.error < 1e-10
    close(both.decayed, both.shrinkage[:, None, None] * both.growing)
    close(both.rates[0], torch.tensor(0.5 / 0.99, dtype=torch.float64))
    close(both.rates[1:] / both.rates[:-1], torch.full((59,), 0.99**-2, dtype=torch.float64))
    moved = F.cosine_similarity(both.decayed[0], both.decayed[-1]).min()
    assert moved < 0.9, "the directions did turn"


def test_with_the_exponent_2t_the_ways_part(digits):
    loss, weight = minibatches(digits, 60)
    wrong = 0.99 * exponential_rates(0.5, 0.02, 60)
    assert decay_as_rates(loss, weight, 0.5, 0.02, 60, rates=wrong).error > 1e-3
    constant = torch.full((60,), 0.5, dtype=torch.float64)
    assert decay_as_rates(loss, weight, 0.5, 0.02, 60, rates=constant).error > 1e-2


def test_without_decay_the_rate_is_constant():
    close(exponential_rates(0.3, 0.0, 5), torch.full((5,), 0.3, dtype=torch.float64))
    for decay in (-1, 4):
        with pytest.raises(ValueError, match="below 1"):
            exponential_rates(0.3, decay, 5)


# --- the equilibrium ----------------------------------------------------------------------------------------

ANGLES = [(0.001, 0.044725), (0.005, 0.100042), (0.01, 0.141539)]


@pytest.mark.parametrize("product, angle", ANGLES)
def test_the_equilibrium_angle(product, angle):
    expected = equilibrium(lr=0.1, decay=product / 0.1)
    assert expected.angle == pytest.approx(angle, abs=1e-6)
    assert expected.small_angle == pytest.approx(math.sqrt(2 * product), rel=1e-12)
    assert expected.small_angle == pytest.approx(expected.angle, rel=0.01)
    walk = random_walk(0.1, product / 0.1, steps=int(8 * expected.steps), norm=1.3 * expected.norm)
    close(walk.angles[-1], torch.tensor(expected.angle, dtype=torch.float64), rtol=1e-3)
    close(walk.norms[-1], torch.tensor(expected.norm, dtype=torch.float64), rtol=1e-3)
    assert expected.small_norm == pytest.approx(expected.norm, rel=0.01)


@pytest.mark.parametrize("lr, decay", [(0.1, 0.01), (0.02, 0.05), (1.0, 0.001)])
def test_the_angle_depends_on_the_product_only(lr, decay):
    found = equilibrium(lr, decay, gradient_norm=7.0)
    assert found.angle == pytest.approx(0.044725, abs=1e-6)
    assert found.small_norm**4 == pytest.approx(lr * 49 / (2 * decay))


def test_the_norm_relaxes_with_the_time_constant():
    expected = equilibrium(0.1, 0.05)
    walk = random_walk(0.1, 0.05, steps=100, norm=1.01 * expected.norm)
    distance = (walk.norms - expected.norm).abs()
    rate = (distance[60] / distance[20]).log() / 40
    assert -1 / rate.item() == pytest.approx(expected.steps, rel=0.05)


def test_a_network_turns_by_the_equilibrium_angle(digits):
    """A layer of a network on random labels, whose gradients are noise and never vanish."""
    model, steps, lr, decay = network(), 1200, 0.2, 0.05
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    random = torch.Generator().manual_seed(3)
    chosen = torch.randint(len(digits.x_train), (steps, 32), generator=random)
    labels = torch.randint(10, (steps, 32), generator=random)

    def loss(weight, t):
        output = functional_call(model, parameters | {"linear2.weight": weight}, (digits.x_train[chosen[t]],))
        return F.cross_entropy(output, labels[t])

    path = descend(loss, parameters["linear2.weight"], torch.full((steps,), lr), decay)[-800:]
    angles = F.cosine_similarity(path[1:], path[:-1], dim=2).clamp(max=1).arccos()
    expected = equilibrium(lr, decay)
    assert angles.square().mean().sqrt().item() == pytest.approx(expected.angle, rel=0.1)
    assert path.norm(dim=2).std(0).mean() < 0.2 * path.norm(dim=2).mean(), "settled"


@pytest.mark.parametrize("product", [0.0, 1.0])
def test_there_is_no_equilibrium_without_decay(product):
    with pytest.raises(ValueError, match="between 0 and 1"):
        equilibrium(1.0, product)
