"""Landscape probes and slices: quadratics, naive walks, the invariances of scale, and no trace."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnlib import data, models, probes, training
from bnlib.probes.landscape import (
    MISTAKES,
    activation_scan,
    frozen_moments,
    gradient_here,
    logits_for_loss,
    moved,
    relative_scan,
    scan,
    summed_gradients,
    walk,
)
from bnlib.probes.slices import direction_to, filter_normalised, line, plane

FACTORS = [0.5, 1, 2, 4]
#: every probe of the landscape, with arguments that keep it small
PROBES: dict[str, dict] = {
    "landscape": {"factors": [0.5, 4]},
    "relative_landscape": {"lengths": [1e-3, 1e-1]},
    "activation_beta": {"factors": [0.5, 4]},
    "landscape_mistakes": {"factors": [1]},
    "random_slice": {"positions": [-1, 0, 1], "dimensions": 2},
}
NORMS = ["none", "batch", "noisy_batch", "noise", "l1", "linf_centred"]


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", dtype=torch.float64)


def quadratic(w=(1.0, 1.0), curvatures=(1.0, 10.0), lr: float = 0.1) -> training.State:
    """L(w) = sum_i h_i w_i^2 / 2 as the loss of a linear layer."""
    model = nn.Sequential(nn.Linear(len(w), 1, bias=False).double())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([w]))
    x = torch.tensor(curvatures, dtype=torch.float64).sqrt().diag()
    y = torch.zeros(len(w), 1, dtype=torch.float64)
    loss = training.LOSSES["squared_sum"]
    return training.State(0, model, x, y, lr, None, lambda output, y: loss(output, y) / 2)


def network(norm: str = "batch", name: str = "digit_cnn", eps: float = 1e-5, **sizes) -> nn.Sequential:
    """A small network for digits, in float64, with gamma and beta (or biases) that are not 1 and 0."""
    sizes = sizes or {
        "digit_cnn": {"size": 8, "width": 2},
        "mlp": {"depth": 3, "width": 6, "in_features": 64},
    }.get(name, {})
    model = models.initialise(models.build(name, norm=norm, **sizes), seed=3).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(len(parameter), generator=generator, dtype=torch.float64)
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = eps
    return model


def state_of(model: nn.Sequential, dataset: data.Dataset, lr: float = 0.1, size: int = 32) -> training.State:
    return training.State(0, model, dataset.x_train[:size], dataset.y_train[:size], lr, dataset)


def naive(state: training.State, model: nn.Sequential) -> tuple[float, list[torch.Tensor]]:
    loss = state.loss(model.train()(state.x), state.y)
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


def norm_of(tensors: list[torch.Tensor]) -> float:
    return torch.cat([t.flatten() for t in tensors]).norm().item()


def rows(measured) -> dict[str, float]:
    measured = list(measured)
    table = {(layer, metric): value for layer, metric, value in measured}
    assert len(table) == len(measured), "a value is measured twice"
    assert all(math.isfinite(value) for value in table.values())
    return {metric: value for (layer, metric), value in table.items() if layer == ""} or table


# -- the paper's landscape -------------------------------------------------------------------------------


def test_quadratic_with_known_beta():
    """H = diag(1, 10), w = (1, 1): g = (1, 10), so beta = |Hg| / |g| at any step size."""
    measured = rows(probes.landscape(quadratic(), FACTORS))
    losses = [measured[f"loss@{factor:g}"] for factor in FACTORS]
    assert losses == pytest.approx([1.70125, 0.405, 5.32, 45.18], abs=1e-9)
    beta = math.sqrt(10001 / 101)
    assert beta == pytest.approx(9.950869408, abs=1e-9)
    assert scan(quadratic(), FACTORS).betas == pytest.approx([beta] * 4, abs=1e-9)
    assert measured["effective_beta"] == pytest.approx(beta, abs=1e-9)
    changes = [factor * 0.1 * math.sqrt(10001) for factor in FACTORS]
    assert [measured[f"predictiveness@{factor:g}"] for factor in FACTORS] == pytest.approx(changes, abs=1e-9)
    expected = {"loss_low": 0.405, "loss_high": 45.18, "loss": 5.5, "gradient_norm": math.sqrt(101)}
    expected |= {"predictiveness_low": changes[0], "predictiveness_high": changes[-1], "finite": 1}
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["digit_cnn", "mlp"])
@pytest.mark.parametrize("norm", ["none", "batch", "l1"])
def test_against_a_copy_that_really_takes_the_step(norm, name, digits):
    state = state_of(network(norm, name), digits)
    found = scan(state, FACTORS)
    loss, gradient = naive(state, copy.deepcopy(state.model))
    assert (found.loss, found.gradient_norm) == pytest.approx((loss, norm_of(gradient)), rel=1e-12)
    for k, factor in enumerate(FACTORS):
        other = copy.deepcopy(state.model)
        with torch.no_grad():
            for parameter, part in zip(other.parameters(), gradient, strict=True):
                parameter -= factor * state.lr * part
        there, moved_gradient = naive(state, other)
        change = norm_of([a - b for a, b in zip(gradient, moved_gradient, strict=True)])
        assert found.losses[k] == pytest.approx(there, rel=1e-10)
        assert found.changes[k] == pytest.approx(change, rel=1e-10)
        assert found.distances[k] == pytest.approx(factor * state.lr * norm_of(gradient), rel=1e-12)
    assert found.effective_beta == max(c / d for c, d in zip(found.changes, found.distances, strict=True))


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_of_length_zero_changes_nothing(norm, digits):
    """With noise, too: all points see the same."""
    state = state_of(network(norm), digits)
    for found in (
        scan(state, [0]),
        relative_scan(state, [0]),
        activation_scan(state, "conv1", [0]),
        frozen_moments(state, [0]),
        logits_for_loss(state, [0]),
    ):
        assert found.losses == [found.loss]
        assert found.changes == [0]
        assert math.isnan(found.effective_beta)
    assert "effective_beta" not in rows(probes.landscape(state, [0]))


def test_what_is_beyond_the_largest_number_is_left_out_and_said(digits):
    state = state_of(network("none").float(), data.load("digits"))
    good, bad = (rows(probes.landscape(state, factors)) for factors in ([1, 2], [1, 2, 1e30]))
    assert good["finite"] == 1
    assert bad["finite"] == pytest.approx(2 / 3)
    assert bad["loss_low"] == min(good["loss_low"], bad["loss@1"])
    assert not {"loss_high", "predictiveness_high", "effective_beta", "loss@1e+30"} & bad.keys()


def test_without_a_gradient_there_is_no_beta():
    measured = rows(probes.landscape(quadratic(w=(0.0, 0.0)), [1]))
    assert "effective_beta" not in measured
    assert measured["loss@1"] == measured["predictiveness@1"] == 0
    assert "relative_effective_beta" not in rows(probes.relative_landscape(quadratic(w=(0.0, 0.0)), [0.1]))
    with pytest.raises(ValueError, match="at least one"):
        scan(quadratic(), [])


def test_a_walk_goes_where_it_is_told():
    """Along the first axis of the quadratic only the first coordinate's loss and gradient change."""
    state = quadratic(w=(3.0, 2.0))
    first = {"0.weight": torch.tensor([[1.0, 0.0]], dtype=torch.float64)}
    points = walk(state, first, [1.0, 4.0])
    assert [point.loss for point in points] == pytest.approx([2 + 20, 0.5 + 20], abs=1e-12)
    assert points[1].gradient["0.weight"].flatten().tolist() == pytest.approx([-1.0, 20.0], abs=1e-12)


@pytest.mark.parametrize("norm", ["none", "batch", "l1"])
def test_in_a_smooth_network_beta_settles_at_the_curvature(norm, digits):
    """For short steps it is |Hg| / |g|, with H g from second derivatives, through the norms too."""
    model = network(norm)
    for name, module in list(model.named_children()):
        if isinstance(module, nn.ReLU | nn.MaxPool2d):
            setattr(model, name, nn.Softplus() if isinstance(module, nn.ReLU) else nn.AvgPool2d(2))
    state, parameters = state_of(model, digits), list(model.parameters())
    g = torch.autograd.grad(state.loss(model(state.x), state.y), parameters, create_graph=True)
    half = sum(part.square().sum() for part in g) / 2
    curvature = norm_of(list(torch.autograd.grad(half, parameters))) / norm_of(list(g))
    assert scan(state, [1e-6, 1e-5]).betas == pytest.approx([curvature] * 2, rel=1e-4)


# -- relative coordinates --------------------------------------------------------------------------------


def test_with_one_layer_it_is_the_plain_landscape_in_other_units():
    state = quadratic(w=(3.0, -1.0))
    start = gradient_here(state)
    length = 0.05
    alpha = length * math.sqrt(10) / norm_of(list(start.gradient.values()))
    plain, relative = scan(state, [alpha / state.lr]), relative_scan(state, [length])
    assert relative.losses == pytest.approx(plain.losses, rel=1e-12)
    assert relative.changes == pytest.approx([math.sqrt(10) * change for change in plain.changes], rel=1e-12)
    assert relative.effective_beta == pytest.approx(10 * plain.effective_beta, rel=1e-12)
    assert relative.distances == [length]


def test_the_relative_length_is_that_of_the_step(digits):
    state, visited = state_of(network("batch", "mlp"), digits), []
    start = {name: value.clone() for name, value in state.model.named_parameters()}

    def loss(output, y):
        visited.append({name: p.detach() - start[name] for name, p in state.model.named_parameters()})
        return F.cross_entropy(output, y)

    relative_scan(replace(state, loss=loss), [0.2])
    step = visited[-1]
    weights = [f"{name}.weight" for name, _ in models.layers(state.model)]
    lengths = [(step[name].norm() / start[name].norm()).item() for name in weights]
    assert math.hypot(*lengths) == pytest.approx(0.2, rel=1e-12)
    assert all(step[name].norm() == 0 for name in step if name not in weights)


def rescaled(model: nn.Sequential, factors: dict[str, float]) -> nn.Sequential:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, factor in factors.items():
            other.get_parameter(name).mul_(factor)
    return other


def same_scan(one, other, rel=1e-9):
    for field in ("loss", "gradient_norm", "losses", "changes", "distances", "effective_beta"):
        assert getattr(one, field) == pytest.approx(getattr(other, field), rel=rel)


SCALES = [0.03, 7.0, 2.0]


def test_rescaling_layers_before_batch_norm_leaves_the_relative_landscape_as_it_is(digits):
    model = network("batch", "mlp", eps=0.0)
    other = rescaled(model, {f"linear{i}.weight": c for i, c in enumerate(SCALES, start=1)})
    lengths = [1e-3, 1e-2, 1e-1]
    one, two = state_of(model, digits), state_of(other, digits)
    same_scan(relative_scan(one, lengths), relative_scan(two, lengths))
    # The plain landscape does not stay: the gradient of linear1's weight goes as 1 / c.
    assert two.loss(two.model(two.x), two.y).item() == pytest.approx(scan(one, [1]).loss, rel=1e-12)
    gradients = [gradient_here(state).gradient["linear1.weight"].norm().item() for state in (one, two)]
    assert gradients[1] == pytest.approx(gradients[0] / 0.03, rel=1e-9)
    # Nor does its beta; at short steps, for at long ones it is 1 / alpha wherever the gradient vanishes.
    assert scan(two, [1e-6]).effective_beta > 100 * scan(one, [1e-6]).effective_beta


def test_with_one_common_factor_beta_goes_as_one_over_its_square(digits):
    """g(cW) = g(W) / c and H(cW) = H(W) / c^2, so at the step c^2 alpha only the units change."""
    c = 5.0
    model = network("batch", "mlp", eps=0.0)
    names = [f"linear{i}.weight" for i in (1, 2, 3)]
    one, two = state_of(model, digits), state_of(rescaled(model, dict.fromkeys(names, c)), digits)
    start = [gradient_here(state, names) for state in (one, two)]
    (near,), (far,) = walk(one, start[0].gradient, [0.1]), walk(two, start[1].gradient, [0.1 * c**2])
    assert far.loss == pytest.approx(near.loss, rel=1e-10)
    for name in names:
        torch.testing.assert_close(
            c * start[1].gradient[name], start[0].gradient[name], rtol=1e-9, atol=1e-12
        )
        torch.testing.assert_close(c * far.gradient[name], near.gradient[name], rtol=1e-9, atol=1e-12)


def test_rescaling_a_relu_net_without_norms_leaves_the_relative_landscape_as_it_is(digits):
    model = network("none", "mlp")
    factors, product = {}, 1.0
    scales = [*SCALES, 1 / math.prod(SCALES)]
    for (name, _), c in zip(models.layers(model), scales, strict=True):
        product *= c
        factors |= {f"{name}.weight": c, f"{name}.bias": product}
    one, two = state_of(model, digits), state_of(rescaled(model, factors), digits)
    same_scan(relative_scan(one, [1e-3, 1e-1]), relative_scan(two, [1e-3, 1e-1]))


# -- in the space of activations -------------------------------------------------------------------------


def test_beta_of_the_output_is_that_of_the_loss(digits):
    """The squared error has the Hessian 2 in the network's output, whatever comes before it."""
    for norm in ("none", "batch"):
        state = state_of(network(norm, "mlp"), digits)
        state = replace(
            state, loss=training.LOSSES["squared_sum"], y=torch.zeros(32, 10, dtype=torch.float64)
        )
        found = activation_scan(state, "classifier", FACTORS)
        assert found.betas == pytest.approx([2.0] * 4, rel=1e-12)
        assert found.losses == pytest.approx([found.loss * (1 - 0.2 * f) ** 2 for f in FACTORS], rel=1e-12)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_activations_against_a_network_cut_in_two(norm, digits):
    state = state_of(network(norm), digits, lr=3.0)
    found = activation_scan(state, "conv1", FACTORS)
    cut = 2 if norm == "batch" else 1  # after norm1
    rest = copy.deepcopy(state.model)[cut:].train()
    a = copy.deepcopy(state.model)[:cut].train()(state.x).detach().requires_grad_()
    loss = F.cross_entropy(rest(a), state.y)
    (gradient,) = torch.autograd.grad(loss, a)
    assert (found.loss, found.gradient_norm) == pytest.approx(
        (loss.item(), gradient.norm().item()), rel=1e-12
    )
    for k, factor in enumerate(FACTORS):
        b = (a - factor * 3.0 * gradient).detach().requires_grad_()
        there = F.cross_entropy(rest(b), state.y)
        (other,) = torch.autograd.grad(there, b)
        assert found.losses[k] == pytest.approx(there.item(), rel=1e-12)
        assert found.changes[k] == pytest.approx((gradient - other).norm().item(), rel=1e-10)
        assert found.distances[k] == pytest.approx((a - b).norm().item(), rel=1e-10)


def test_activations_after_batch_norm_do_not_see_the_scale_of_weights(digits):
    model = network("batch", "mlp", eps=0.0)
    other = rescaled(model, {f"linear{i}.weight": c for i, c in enumerate(SCALES, start=1)})
    for layer in ("linear1", "linear3"):
        same_scan(*(activation_scan(state_of(net, digits), layer, FACTORS) for net in (model, other)))


def test_activation_beta_names_its_layers(digits):
    state = state_of(network("batch"), digits)
    found = {(layer, metric) for layer, metric, _ in probes.activation_beta(state, [1])}
    assert {layer for layer, _ in found} == {"conv1", "conv2", "classifier"}
    assert ("conv1", "activation_effective_beta") in found
    with pytest.raises(ValueError, match="no layer 'conv3'; choose from conv1, conv2, classifier"):
        list(probes.activation_beta(state, [1], ["conv3"]))


# -- mistakes --------------------------------------------------------------------------------------------


def test_mistakes_on_the_quadratic():
    state = quadratic()
    right, g = scan(state, FACTORS), (1.0, 10.0)
    summed = [math.hypot(2 - 0.1 * f, 20 - 0.1 * f * 100) for f in FACTORS]
    assert MISTAKES["summed_gradients"](state, FACTORS).changes == pytest.approx(summed, abs=1e-9)
    logits = logits_for_loss(state, [1])  # the sum of outputs has the gradient (1, sqrt 10) everywhere
    assert logits.gradient_norm == pytest.approx(math.sqrt(11))
    assert logits.changes == [0]
    unit = MISTAKES["normalised_steps"](state, FACTORS)
    assert unit.distances == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert unit.losses[1] == pytest.approx(
        sum(h * (1 - 0.1 * gi / math.hypot(*g)) ** 2 / 2 for h, gi in zip((1, 10), g, strict=True))
    )
    assert unit.betas == pytest.approx(right.betas), "a quadratic's beta does not depend on the step"


def test_the_norm_of_the_sum_does_not_vanish_with_the_step(digits):
    state = state_of(network(), digits)
    found = summed_gradients(state, [0])
    assert found.changes == pytest.approx([2 * found.gradient_norm], rel=1e-12)


def test_another_minibatch_changes_the_gradient_without_a_step(digits):
    state = state_of(network(), digits)
    found = MISTAKES["different_minibatches"](state, [0])
    x, y = data.probe_batch(digits, 32)
    one, other = gradient_here(state), gradient_here(replace(state, x=x, y=y))
    assert found.losses == [other.loss]
    change = norm_of([one.gradient[name] - other.gradient[name] for name in one.gradient])
    assert found.changes == pytest.approx([change], rel=1e-12)
    assert change > 0.1 * found.gradient_norm


def test_frozen_moments_make_batch_norm_a_fixed_affine_map(digits):
    state = state_of(network("batch", "mlp"), digits)
    found, right = frozen_moments(state, FACTORS), scan(state, FACTORS)
    assert found.loss == pytest.approx(right.loss, rel=1e-12)
    affine = copy.deepcopy(state.model)
    x = state.x
    for name, module in list(affine.named_children()):
        if name.startswith("norm"):  # evaluation mode with the moments of this batch
            module.running_mean, module.running_var = x.detach().mean(0), x.detach().var(0, correction=0)
            module.eval()
        x = module(x)
    names = [name for name, _ in affine.named_parameters()]

    def frozen(values):
        loss = F.cross_entropy(
            torch.func.functional_call(affine, dict(zip(names, values, strict=True)), state.x), state.y
        )
        return loss, torch.autograd.grad(loss, values)

    here = [parameter.detach().requires_grad_() for parameter in affine.parameters()]
    _, gradient = frozen(here)
    assert found.gradient_norm == pytest.approx(norm_of(list(gradient)), rel=1e-10)
    assert abs(found.gradient_norm - right.gradient_norm) > 1e-3 * right.gradient_norm
    for k, factor in enumerate(FACTORS):
        there = [
            (w - factor * 0.1 * g).detach().requires_grad_() for w, g in zip(here, gradient, strict=True)
        ]
        loss, other = frozen(there)
        assert found.losses[k] == pytest.approx(loss.item(), rel=1e-10)
        change = norm_of([a - b for a, b in zip(gradient, other, strict=True)])
        assert found.changes[k] == pytest.approx(change, rel=1e-9)
    assert not any(module._forward_hooks for module in state.model.modules())
    plain = state_of(network("none", "mlp"), digits)
    same_scan(frozen_moments(plain, FACTORS), scan(plain, FACTORS), rel=1e-15)


def test_logits_know_nothing_of_the_labels(digits):
    state = state_of(network(), digits)
    same_scan(*(logits_for_loss(replace(state, y=y), [1]) for y in (state.y, state.y.flip(0))), rel=1e-15)


def test_mistakes_carry_their_names(digits):
    state = state_of(network(), digits)
    found = rows(probes.landscape_mistakes(state, [1], ["frozen_moments"]))
    assert {name.partition("[")[2] for name in found} == {"frozen_moments]"}
    everything = rows(probes.landscape_mistakes(state, [1]))
    assert {name.partition("[")[2][:-1] for name in everything} == set(MISTAKES)
    assert everything["loss@1[frozen_moments]"] == found["loss@1[frozen_moments]"]
    with pytest.raises(ValueError, match="no mistake 'smoothing'; choose from summed_gradients"):
        list(probes.landscape_mistakes(state, [1], ["smoothing"]))


# -- slices ----------------------------------------------------------------------------------------------


def test_slices_of_a_quadratic():
    state = quadratic(w=(3.0, 2.0))
    first, second = (
        {"0.weight": torch.tensor([axis], dtype=torch.float64)} for axis in ([1.0, 0.0], [1.0, 1.0])
    )
    s, t = torch.linspace(-2, 2, 5, dtype=torch.float64), torch.tensor([-1.0, 0.0, 3.0], dtype=torch.float64)
    expected = (3 + s) ** 2 / 2 + 5 * 4
    torch.testing.assert_close(line(state, first, s.tolist()), expected, rtol=1e-12, atol=0)
    losses = plane(state, first, second, s.tolist(), t.tolist())
    expected = (3 + s[:, None] + t) ** 2 / 2 + 5 * (2 + t) ** 2
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", ["none", "batch", "noisy_batch"])
def test_a_slice_between_two_networks_ends_at_both(norm, digits):
    one, other = network(norm), network(norm)
    training.fit(other, digits, lr=0.05, steps=5, batch_size=32, seed=0)
    state, end = state_of(one, digits), state_of(other, digits)
    losses = line(state, direction_to(one, other.state_dict()), [0, 0.5, 1])
    assert losses[0].item() == gradient_here(state).loss
    middle = copy.deepcopy(one)
    with torch.no_grad():
        for a, b in zip(middle.parameters(), other.parameters(), strict=True):
            a.copy_((a + b) / 2)
    if norm != "noisy_batch":  # the other network's noise has gone on
        assert losses[2].item() == pytest.approx(gradient_here(end).loss, rel=1e-12)
    assert losses[1].item() == pytest.approx(gradient_here(state_of(middle, digits)).loss, rel=1e-12)


def test_a_direction_needs_the_same_parameters():
    one = network("batch")
    for end in (network("none"), network("batch", size=8, width=3)):
        with pytest.raises(ValueError, match="must hold conv1"):
            direction_to(one, {k: v for k, v in end.state_dict().items() if k != "conv1.weight"})
        with pytest.raises(ValueError, match="as the model does"):
            direction_to(one, end.state_dict())


def test_a_filter_normalised_direction_has_the_norms_of_the_filters():
    model = network("batch")
    before = torch.get_rng_state()
    direction = filter_normalised(model, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(direction) == {f"{name}.weight" for name, _ in models.layers(model)}
    for name, part in direction.items():
        weight = model.get_parameter(name)
        assert part.shape == weight.shape
        for mine, theirs in zip(part, weight, strict=True):
            assert mine.norm().item() == pytest.approx(theirs.norm().item(), rel=1e-12)
    again, other = filter_normalised(network("none"), seed=1), filter_normalised(model, seed=2)
    assert all(torch.equal(part, again[name]) for name, part in direction.items()), "the same in every arm"
    assert not any(torch.equal(part, other[name]) for name, part in direction.items())


def test_a_filter_normalised_slice_does_not_see_the_scale_of_filters(digits):
    model = network("batch", eps=0.0)
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (other.conv1, other.conv2):
            scales = 10 ** torch.empty(len(layer.weight), dtype=torch.float64).uniform_(
                -2, 2, generator=generator
            )
            layer.weight.mul_(scales.view(-1, 1, 1, 1))
    positions = [-1, -0.3, 0.4, 1]
    slices = [line(state_of(net, digits), filter_normalised(net, 5), positions) for net in (model, other)]
    torch.testing.assert_close(*slices, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        *(
            plane(
                state_of(net, digits), filter_normalised(net, 5), filter_normalised(net, 6), [-0.5], [0.2, 1]
            )
            for net in (model, other)
        ),
        rtol=1e-9,
        atol=0,
    )


def test_random_slice_is_for_recording(digits):
    state = state_of(network(), digits)
    positions = [-0.5, 0, 0.5]
    found = rows(probes.random_slice(state, positions, seed=4))
    losses = line(state, filter_normalised(state.model, 4), positions)
    assert [found[f"slice@{s:g}"] for s in positions] == losses.tolist()
    found = rows(probes.random_slice(state, positions, seed=4, dimensions=2))
    directions = [filter_normalised(state.model, seed) for seed in (4, 5)]
    losses = plane(state, *directions, positions, positions)
    assert [found[f"slice@{s:g},{t:g}"] for s in positions for t in positions] == losses.flatten().tolist()


# -- no trace --------------------------------------------------------------------------------------------


def everything(model: nn.Sequential) -> dict:
    """All that a probe could change."""
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "parameters": list(map(id, model.parameters())),
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "noise": [m.generator.get_state() for m in model.modules() if hasattr(m, "generator")],
        "global": torch.get_rng_state(),
        "autograd": torch.is_grad_enabled(),
    }


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def used(norm: str, digits: data.Dataset) -> nn.Sequential:
    """A network in the midst of training: gradients here and none there, noise drawn, modes of its own."""
    model = network(norm)
    F.cross_entropy(model(digits.x_train[:16]), digits.y_train[:16]).backward()
    model.conv1.weight.grad = None
    for module in model.norm2.modules() if norm != "none" else [model.relu2]:
        module.eval()
    return model


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PROBES)
def test_a_probe_leaves_no_trace(name, norm, digits):
    model = used(norm, digits)
    before = everything(model)
    first = list(getattr(probes, name)(state_of(model, digits), **PROBES[name]))
    assert first
    assert same(everything(model), before)
    assert list(getattr(probes, name)(state_of(model, digits), **PROBES[name])) == first


class Broken(Exception):
    """Raised in the middle of a probe."""


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_probe_that_breaks_off_leaves_no_trace_either(name, call, digits):
    model, calls = used("noisy_batch", digits), []

    def loss(output, y):
        calls.append(1)
        if len(calls) == call:
            raise Broken
        return F.cross_entropy(output, y)

    def breaking(state: training.State) -> Iterator:
        return getattr(probes, name)(replace(state, loss=loss), **PROBES[name])

    before = everything(model)
    with pytest.raises(Broken):
        list(breaking(state_of(model, digits)))
    assert same(everything(model), before)


def test_moved_comes_back_bit_for_bit():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    direction = {name: torch.full_like(p, 1e9) for name, p in model.named_parameters()}
    with pytest.raises(Broken), moved(model, (0.3, direction), (-7.0, direction)):
        assert model.conv1.bias is None and (model.conv1.weight < -1e9).all()
        raise Broken
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("norm", ["noisy_batch", "l1"])
def test_training_is_the_same_with_probes_plugged_in(norm, digits):
    def losses(plugged: list[training.Probe]) -> list[tuple]:
        model = models.initialise(network(norm), seed=1)
        found = training.fit(model, digits, lr=0.1, steps=6, batch_size=16, seed=1, plugged=plugged)
        return [row for row in found if row[2] == "train_loss"]

    def plug(name: str) -> Callable:
        return lambda state: list(getattr(probes, name)(state, **PROBES[name]))

    assert losses([training.Probe(plug(name), 2) for name in PROBES]) == losses([])


def test_they_can_be_declared():
    assert set(PROBES) <= set(probes.PROBES)
