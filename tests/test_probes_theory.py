"""Probes of Part III's theorems: l_p scales, pairs of networks and curvature, against naive twins of the
network, pencil and paper, and `bnlib.theory`."""

from __future__ import annotations

import copy
import math
from statistics import median

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlib import data, models, probes, training
from bnlib.norms import BatchNorm
from bnlib.probes.pairs import normalised_layers
from bnlib.probes.scales import outputs, varying
from bnlib.theory import theorem_4_1, theorem_4_2

SIZES = {"digit_cnn": {"size": 8, "width": 3}, "mlp": {"depth": 3, "width": 8, "in_features": 64}}
ORACLES = {"rel": 1e-9, "abs": 1e-12}


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", dtype=torch.float64)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(norm: str = "batch", name: str = "mlp", **settings) -> nn.Sequential:
    """A small network for digits, in float64, a little away from its start: gamma and beta of every sign."""
    model = models.build(name, norm=norm, **SIZES[name], **settings)
    model = models.initialise(model, seed=3, noise=0.3).double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:
                parameter += 0.7 * randn(len(parameter), seed=seed)
    return model


def state_of(model: nn.Sequential, dataset: data.Dataset, size: int = 32) -> training.State:
    return training.State(0, model, dataset.x_train[:size], dataset.y_train[:size], 0.1, dataset)


def table(measured, prefix: str = "") -> dict[tuple[str, str], float]:
    measured = list(measured)
    found = {(layer, metric.removeprefix(prefix)): value for layer, metric, value in measured}
    assert len(found) == len(measured), "a value is measured twice"
    assert all(math.isfinite(value) for value in found.values())
    return found


def of(found: dict[tuple[str, str], float], layer: str) -> dict[str, float]:
    return {metric: value for (name, metric), value in found.items() if name == layer}


def identity(x: Tensor, loss=None, norm: bool = False) -> training.State:
    """A linear layer that passes `x` (N, C) on, with a batch norm after it or not, as a whole network."""
    model = nn.Sequential()
    model.add_module("linear1", nn.Linear(x.shape[1], x.shape[1], bias=False).double())
    nn.init.eye_(model.linear1.weight)
    if norm:
        model.add_module("norm1", BatchNorm(x.shape[1]).double())
    return training.State(0, model, x, x, 0.1, None, loss or (lambda z, _: z.square().sum()))


# -- l_p scales ------------------------------------------------------------------------------------------


def test_scales_of_the_tiny_example():
    """y = (1, -2, 3, 6): mean 2, sigma^2 = 8.5; C_1 = 3, C_2^2 = 12.5, C_4^4 = 348.5, C_inf = 6."""
    found = table(
        probes.lp_scales(identity(tensor(1, -2, 3, 6)[:, None]), sizes=[4], orders=[1, 2, 4, "inf"])
    )
    sigma = 2.9154759474
    scales = {"1": 3.0, "2": 3.5355339059, "4": 348.5**0.25, "inf": 6.0}
    centred = {"1": 2.5, "2": sigma, "4": ((1 + 256 + 1 + 256) / 4) ** 0.25, "inf": 4.0}
    expected = {}
    for p in scales:
        expected["linear1", f"lp_scale[{p}]@4"] = scales[p] / sigma
        expected["linear1", f"lp_scale_centred[{p}]@4"] = centred[p] / sigma
        expected["linear1", f"lp_variance[{p}]@4"] = 8.5 / scales[p] ** 2
    assert found == pytest.approx(expected, rel=1e-9)


def test_scales_of_gaussian_values():
    """C_1 = sqrt(2 / pi) sigma, C_2 = sigma, C_4 = 3^(1/4) sigma; C_inf = E max |z|, which grows with m."""
    x = torch.cat([randn(1024, 1000), randn(1024, 1000, seed=1)], 1)
    found = of(table(probes.lp_scales(identity(x), sizes=[128, 1024])), "linear1")
    for p, constant in (("1", math.sqrt(2 / math.pi)), ("2", 1.0), ("4", 3**0.25)):
        assert found[f"lp_scale[{p}]@1024"] == pytest.approx(constant, rel=2e-3)
        assert found[f"lp_scale_centred[{p}]@1024"] == pytest.approx(constant, rel=2e-3)
    assert found["lp_variance[1]@1024"] == pytest.approx(math.pi / 2, rel=2e-3)
    assert found["lp_scale[inf]@128"] == pytest.approx(2.8276, rel=1e-2)
    assert found["lp_scale[inf]@1024"] == pytest.approx(3.4419, rel=1e-2)


@pytest.mark.parametrize("name", ["mlp", "digit_cnn"])
@pytest.mark.parametrize("norm", ["none", "batch", "l1", "linf_centred", "noisy_batch"])
def test_scales_are_numpys_on_what_the_norm_receives(norm, name, digits):
    """The network sees its whole batch; only then are the first images taken."""
    state = state_of(network(norm, name), digits, size=48)
    found = table(probes.lp_scales(state, sizes=[8, 32, 64]))
    seen, twin = {}, copy.deepcopy(state.model).train()
    for layer, module in models.layers(twin):
        module.register_forward_hook(lambda _, inputs, y, layer=layer: seen.update({layer: y.detach()}))
    twin(state.x)
    count = 0
    for layer, y in seen.items():
        for size in (8, 32):
            values = y[:size].movedim(1, 0).flatten(1).numpy()
            values = values[values.std(1) > 1e-9]
            sigma = values.std(1)
            for p in (1, 2, 4, math.inf):
                for metric, of_y in (
                    ("lp_scale", values),
                    ("lp_scale_centred", values - values.mean(1)[:, None]),
                ):
                    scale = np.abs(of_y).max(1) if p == math.inf else (np.abs(of_y) ** p).mean(1) ** (1 / p)
                    expected = (scale / sigma).mean()
                    assert found[layer, f"{metric}[{p:g}]@{size}"] == pytest.approx(expected, rel=1e-9)
                    if metric == "lp_scale":
                        expected = (sigma**2 / scale**2).mean()
                        assert found[layer, f"lp_variance[{p:g}]@{size}"] == pytest.approx(expected, rel=1e-9)
                    count += 1
            assert found[layer, f"lp_scale_centred[2]@{size}"] == pytest.approx(1, rel=1e-12)
    assert len(found) == count * 3 // 2, "nothing of 64 images, which the batch does not have"
    alone = table(probes.lp_scales(state, sizes=[8]))
    assert alone == {key: value for key, value in found.items() if key[1].endswith("@8")}


def test_scales_leave_out_channels_that_do_not_vary():
    """0.1 is rounded, and so is its mean over 7 values: the variance is not exactly 0."""
    y = torch.stack([randn(7), torch.full((7,), 0.1).double(), torch.zeros(7).double()], 1)
    assert varying(y).tolist() == [True, False, False]
    assert varying(torch.full((3, 2), math.nan)).tolist() == [False, False]
    assert varying(tensor(1, 1 + 1e-6)[:, None]).tolist() == [True]
    assert varying(tensor(1, 1 + 1e-6)[:, None].float()).tolist() == [False], "float32 has too few digits"
    alone = table(probes.lp_scales(identity(y[:, :1]), sizes=[7]))
    assert table(probes.lp_scales(identity(y), sizes=[7])) == pytest.approx(alone, rel=1e-12)
    assert list(probes.lp_scales(identity(y[:, 1:]), sizes=[7])) == []
    assert list(probes.lp_scales(identity(y), sizes=[1])) == [], "one value does not vary"


def test_scales_refuse_what_is_no_order_and_no_size(digits):
    state = state_of(network(), digits)
    with pytest.raises(ValueError, match="p must be at least 1"):
        list(probes.lp_scales(state, orders=[0.5]))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        list(probes.lp_scales(state, sizes=[8, 0]))
    with pytest.raises(ValueError, match="no layer 'conv7'"):
        list(probes.lp_scales(state, ["conv7"]))
    assert {layer for layer, *_ in probes.lp_scales(state, ["linear2"])} == {"linear2"}
    assert list(outputs(state.model, state.x, ["linear3", "linear1"])) == ["linear3", "linear1"]


# -- pairs of networks -----------------------------------------------------------------------------------

Y, TARGET = tensor(1, 2, 4, 9)[:, None], tensor(0.5, -1, 2, 0)[:, None]


def test_pairs_by_hand():
    """One channel with four values: mean 4, sigma^2 = 9.5; the layer before is y = w x with w = 1.

    L = sum (z - t)^2 / 2 + z^4 / 24 has the gradient z - t + z^3 / 6.  With the batch norm the weight's
    gradient <x, P g> is 0: x lies in the plane of 1 and y_hat, which P removes.
    """
    state = identity(Y, lambda z, _: ((z - TARGET) ** 2).sum() / 2 + (z**4).sum() / 24, norm=True)
    gamma, beta = 1.5, 0.25
    with torch.no_grad():
        state.model.norm1.weight.fill_(gamma)
        state.model.norm1.bias.fill_(beta)
    found = of(table(probes.one_layer_pairs(state), "pairs_"), "linear1")
    y, t = Y[:, 0].numpy(), TARGET[:, 0].numpy()
    y_hat = (y - 4) / math.sqrt(9.5)

    def taken_away(g: np.ndarray) -> float:
        return g @ g - g.sum() ** 2 / 4 - (g @ y_hat) ** 2 / 4

    z = gamma * y_hat + beta
    at_z, at_y = z - t + z**3 / 6, y - t + y**3 / 6
    same = gamma**2 / 9.5 * taken_away(at_z) / (at_y @ at_y)
    assert found.pop("error") < 1e-14
    assert found.pop("same_ratio") == pytest.approx(same, rel=1e-12)
    assert found.pop("matched_ratio") == pytest.approx(taken_away(at_y) / (at_y @ at_y), rel=1e-12)
    assert found.pop("weights_ratio") == pytest.approx(0, abs=1e-25)
    assert found.pop("same_weights_ratio") == pytest.approx(0, abs=1e-25)
    larger = {"same_larger", "matched_larger", "weights_larger", "same_weights_larger", "same_violated"}
    assert found == {"below": 1.0} | dict.fromkeys(larger, 0.0)


class _Exactly(nn.Module):
    """Batch norm with eps = 0 and a gamma and beta of its own, by the formula."""

    def __init__(self, gamma: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.gamma, self.beta = gamma, beta

    def forward(self, y: Tensor) -> Tensor:
        over = [d for d in range(y.ndim) if d != 1]
        variance, mean = torch.var_mean(y, over, correction=0, keepdim=True)
        shape = [-1] + [1] * (y.ndim - 2)
        return self.gamma.view(shape) * (y - mean) / variance.sqrt() + self.beta.view(shape)


def with_norm(model: nn.Sequential, number: int, norm: nn.Module) -> nn.Sequential:
    """A copy of the network with `norm` in the place of batch norm `number`, before the noise, if any."""
    twin = copy.deepcopy(model).train()
    place = twin.get_submodule(f"norm{number}")
    if isinstance(place, BatchNorm):
        twin._modules[f"norm{number}"] = norm
    else:
        place[0] = norm
    return twin


class Looked:
    """A pass through a whole network: the layer's output y, the loss's gradient there and at its weights."""

    def __init__(self, model: nn.Sequential, layer: str, state: training.State) -> None:
        seen, module = [], model.get_submodule(layer)
        hook = module.register_forward_hook(lambda _, inputs, y: seen.append(y))
        loss = state.loss(model(state.x), state.y)
        hook.remove()
        (y,) = seen
        self.gradient, of_weights = torch.autograd.grad(loss, (y, module.weight))
        self.y = y.detach()
        self.norms = self.gradient.movedim(1, 0).flatten(1).square().sum(1)
        self.of_weights = of_weights.flatten(1).square().sum(1)


def shares(left: Tensor, right: Tensor) -> tuple[float, float]:
    """The share of left > right, the median of left / right, over channels that a gradient reaches."""
    pairs = [(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True) if a or b]
    assert pairs, "the oracle is not empty"
    larger = sum(a > b * (1 + 1e-9) for a, b in pairs) / len(pairs)
    return larger, median(a / b if b else math.inf for a, b in pairs)


@pytest.mark.parametrize("name", ["mlp", "digit_cnn"])
@pytest.mark.parametrize("norm", ["batch", "noisy_batch", "stationary_noise_batch"])
def test_pairs_are_whole_networks_with_and_without_the_layer(norm, name, digits):
    """The batch norm really taken out, or given other parameters; gradients by whole backward passes."""
    model = network(norm, name)
    state = state_of(model, digits, size=24)
    found = table(probes.one_layer_pairs(state), "pairs_")
    layers = [layer for layer, _ in models.layers(model) if layer != "classifier"]
    assert list(dict.fromkeys(layer for layer, _ in found)) == layers
    for number, layer in enumerate(layers, start=1):
        place = model.get_submodule(f"norm{number}")
        own = place if isinstance(place, BatchNorm) else place[0]
        vanilla = Looked(with_norm(model, number, nn.Identity()), layer, state)
        gamma, beta = own.weight.detach(), own.bias.detach()
        same = Looked(with_norm(model, number, _Exactly(gamma, beta)), layer, state)
        variance, mean = torch.var_mean(same.y.movedim(1, 0).flatten(1), 1, correction=0)
        matched = Looked(with_norm(model, number, _Exactly(variance.sqrt(), mean)), layer, state)
        expected = {}
        for kind, pair in (("same", same), ("matched", matched)):
            weights = "same_weights" if kind == "same" else "weights"
            for key, sides in (
                (kind, (pair.norms, vanilla.norms)),
                (weights, (pair.of_weights, vanilla.of_weights)),
            ):
                expected[f"{key}_larger"], expected[f"{key}_ratio"] = shares(*sides)
        read = theorem_4_1(vanilla.y, vanilla.gradient, gamma)
        reached = (same.norms > 0) | (vanilla.norms > 0)
        violated = same.norms > read.rhs + 1e-9 * read.rhs.abs()
        expected["same_violated"] = violated[reached].double().mean().item()
        measured = of(found, layer)
        assert measured.pop("error") < 1e-12
        assert measured.pop("below") == 1.0
        assert measured == pytest.approx(expected, **ORACLES)
        assert measured["matched_larger"] == 0 and measured["matched_ratio"] < 1


def test_pairs_within_the_network_use_its_own_eps(digits):
    """A large eps: the inequality is strict; and the two networks are compared at eps = 0 nevertheless."""
    model = network()
    state, small = state_of(model, digits), table(probes.one_layer_pairs(state_of(model, digits)))
    model.norm2.eps = 0.5
    large = table(probes.one_layer_pairs(state))
    assert of(large, "linear2") == pytest.approx(of(small, "linear2"), **ORACLES)
    assert of(large, "linear1") != of(small, "linear1"), "for the others it is part of the rest"
    (layer,) = normalised_layers(state, ["linear2"])
    terms = theorem_4_1(layer.y, layer.g_z, layer.gamma, layer.eps, layer.g_y)
    assert layer.eps == 0.5 and (terms.lhs < terms.rhs)[terms.scale_term > 0].all()
    assert terms.error.max() < 1e-12


def test_pairs_at_equality_are_below_up_to_rounding(digits):
    model = network()
    for number in (1, 2, 3):
        model.get_submodule(f"norm{number}").eps = 0.0
    found = table(probes.one_layer_pairs(state_of(model, digits)), "pairs_")
    assert [found[f"linear{number}", "below"] for number in (1, 2, 3)] == [1.0, 1.0, 1.0]


class _Twice(BatchNorm):
    """A batch norm with a wrong backward pass: the gradient comes out doubled."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x - x.detach())


def test_pairs_find_a_wrong_gradient(digits, monkeypatch):
    """In the network's own backward pass, and in the layer at eps = 0."""
    model = network()
    wrong = _Twice(8).double()
    wrong.load_state_dict(model.norm2.state_dict())
    model.norm2 = wrong
    found = table(probes.one_layer_pairs(state_of(model, digits)), "pairs_")
    assert found["linear2", "below"] == 0 and found["linear1", "below"] == found["linear3", "below"] == 1
    assert max(value for (_, metric), value in found.items() if metric == "error") < 1e-12

    def off(y, g_z, gamma=None, eps=0.0, g_y=None):
        return theorem_4_1(y, g_z, gamma, eps, 1.1 * g_y)

    monkeypatch.setattr("bnlib.probes.pairs.theorem_4_1", off)
    found = table(probes.one_layer_pairs(state_of(network(), digits)), "pairs_")
    for layer in normalised_layers(state_of(network(), digits)):
        terms = theorem_4_1(layer.y, layer.g_z, layer.gamma)
        share = (terms.lhs / (terms.factor * terms.output_norm))[terms.output_norm > 0].max().item()
        assert found[layer.name, "error"] == pytest.approx(0.21 * share, rel=1e-3)
        assert found[layer.name, "below"] == 0


def test_a_layer_is_described_as_the_network_sees_it(digits):
    """Its own y, g and weights' gradient, and the rest of the network behind it."""
    state = state_of(network("noisy_batch", "digit_cnn"), digits)
    for layer in normalised_layers(state):
        whole = Looked(copy.deepcopy(state.model).train(), layer.name, state)
        torch.testing.assert_close(layer.y, whole.y, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(layer.g_y, whole.gradient, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(layer.weight_norms(layer.g_y), whole.of_weights, rtol=1e-10, atol=1e-14)
        z = F.batch_norm(layer.y, None, None, layer.gamma, layer.beta, True, eps=layer.eps).requires_grad_()
        (g_z,) = torch.autograd.grad(layer.loss(z), z)
        torch.testing.assert_close(g_z, layer.g_z, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_constant_channel_is_left_out_and_the_others_count(value, digits):
    """As if it were not there: the next layer does not look at it."""
    model = models.mlp(depth=2, width=6, in_features=64, norm="batch").double()
    smaller = models.mlp(depth=2, width=5, in_features=64, norm="batch").double()
    model.linear1 = nn.Linear(64, 6).double()
    smaller.linear1 = nn.Linear(64, 5).double()
    models.initialise(model, seed=5)
    kept = [0, 1, 3, 4, 5]
    with torch.no_grad():
        model.linear1.weight[2] = 0
        model.linear1.bias[2] = value
        model.linear2.weight[:, 2] = 0
        smaller.linear1.weight.copy_(model.linear1.weight[kept])
        smaller.linear2.weight.copy_(model.linear2.weight[:5, kept])
        smaller.classifier.weight.copy_(model.classifier.weight[:, :5])
        model.classifier.weight[:, 5] = 0
        smaller.linear1.bias.zero_()
    for probe in (probes.one_layer_pairs, probes.curvature_terms):
        found = table(probe(state_of(model, digits), ["linear1"]))
        expected = table(probe(state_of(smaller, digits), ["linear1"]))
        assert found and found == pytest.approx(expected, rel=1e-7, abs=1e-12)
    (layer,) = normalised_layers(state_of(model, digits), ["linear1"])
    assert layer.channels.tolist() == kept
    assert torch.autograd.grad(layer.loss(z := layer.y.clone().requires_grad_()), z)[0].shape == (32, 5)


def test_a_layer_of_constant_channels_only_is_left_out(digits):
    model = network()
    with torch.no_grad():
        model.linear2.weight.zero_()
    state = state_of(model, digits)
    names = {layer.name for layer in normalised_layers(state)}
    assert names == {"linear1"}, "linear3 sees the same value of every image"
    assert list(probes.one_layer_pairs(state)) == [], "and through linear2 no gradient comes back"
    assert list(probes.one_layer_pairs(state, ["linear2"])) == []
    assert list(probes.curvature_terms(state, ["linear2"])) == []


def test_pairs_count_only_channels_that_a_gradient_reaches(digits):
    """Channel 0's ReLU is off with the layer and on without it; channel 1 leads nowhere."""
    model = network(where=[1])
    with torch.no_grad():
        model.norm1.bias[0] = -100
        model.linear2.weight[:, 1] = 0
        model.linear1.weight[0] = model.linear1.weight[0].abs()
    state = state_of(model, digits)
    found = of(table(probes.one_layer_pairs(state), "pairs_"), "linear1")
    (layer,) = normalised_layers(state)
    reached = [c for c in range(8) if c not in (0, 1)]
    assert (layer.g_z.square().sum(0) > 0).nonzero().flatten().tolist() == reached
    counted = found["same_larger"] * 7, found["matched_larger"] * 7, found["weights_larger"] * 7
    assert counted == pytest.approx([round(count) for count in counted], abs=1e-9), "7 channels of 8"
    assert found["error"] < 1e-12 and found["below"] == 1


# -- curvature -------------------------------------------------------------------------------------------


def test_curvature_is_that_of_whole_hessians(digits):
    """v^T (Hessian in y_j) v and v^T H v with matrices, in a network with eps = 0 in the layer."""
    model = network()
    with torch.no_grad():
        model.norm2.weight[0::2] *= -1  # then <g, y_hat> and what the layer's curvature takes differ in sign
    state = state_of(model, digits)
    found = of(table(probes.curvature_terms(state, ["linear2"], channels=3, size=16), "thm42_"), "linear2")
    norm, rest = _Exactly(model.norm2.weight.detach(), model.norm2.bias.detach()), model.train()[6:]
    with torch.no_grad():
        y = copy.deepcopy(model)[:4](state.x[:16])
    assert [name for name, _ in model.named_children()][3:6] == ["relu1", "linear2", "norm2"]
    y = F.linear(y, model.linear2.weight.detach())

    def tail(z: Tensor) -> Tensor:
        return state.loss(rest(z), state.y[:16])

    numbers = sorted({int(key.split("[")[1][:-1]) for key in found if "[" in key})
    assert len(numbers) == 3
    flags = []
    for c in numbers:

        def through(values: Tensor, c: int = c) -> Tensor:
            return tail(norm(torch.cat([y[:, :c], values[:, None], y[:, c + 1 :]], 1)))

        z, sigma = norm(y), y[:, c].std(correction=0)

        def behind(values: Tensor, c: int = c, z: Tensor = z) -> Tensor:
            return tail(torch.cat([z[:, :c], values[:, None], z[:, c + 1 :]], 1))

        derive = torch.autograd.functional
        v, g = derive.jacobian(through, y[:, c].clone()), derive.jacobian(behind, z[:, c].clone())
        inner_hessian, hessian = (
            derive.hessian(through, y[:, c].clone()),
            derive.hessian(behind, z[:, c].clone()),
        )
        y_hat, gamma = (y[:, c] - y[:, c].mean()) / sigma, norm.gamma[c]
        bending = gamma / (16 * sigma**2) * (g @ y_hat) * (v @ v)
        curvature = gamma**2 / sigma**2 * (v @ hessian @ v)
        second = gamma**2 / sigma**2 * (g @ hessian @ g) - bending
        lhs = v @ inner_hessian @ v
        expected = {
            "lhs": lhs,
            "rhs": lhs,
            "second": second,
            "curvature": curvature,
            "bending": bending,
        }
        for key, value in expected.items():
            assert found[f"{key}[{c}]"] == pytest.approx(value.item(), rel=1e-8, abs=1e-14)
        flags.append((lhs > second, v @ hessian @ v <= g @ hessian @ g, v @ hessian @ v >= 0, g @ y_hat >= 0))
    averages = np.mean(flags, axis=0).tolist()
    names = ["second_violated", "preserves", "convex", "aligned"]
    assert [found[name] for name in names] == pytest.approx(averages, abs=1e-12)
    assert found["error"] < 1e-9


@pytest.mark.parametrize("name", ["mlp", "digit_cnn"])
@pytest.mark.parametrize("norm", ["batch", "noisy_batch"])
def test_curvature_is_theorem_4_2_and_its_first_form_an_equality(norm, name, digits):
    state = state_of(network(norm, name), digits)
    found = table(probes.curvature_terms(state, size=20), "thm42_")
    described = list(normalised_layers(state, size=20))
    assert list(dict.fromkeys(layer for layer, _ in found)) == [layer.name for layer in described]
    for layer in described:
        measured = of(found, layer.name)
        numbers = [int(key[4:-1]) for key in measured if key.startswith("lhs[")]
        assert len(numbers) == 2 and len(measured) == 2 * 5 + 5
        terms = theorem_4_2(layer.y, layer.loss, layer.gamma, layer.beta, channels=numbers)
        for c, lhs, second in zip(numbers, terms.lhs.tolist(), terms.second.tolist(), strict=True):
            assert measured[f"lhs[{c}]"] == pytest.approx(lhs, **ORACLES)
            assert measured[f"second[{c}]"] == pytest.approx(second, **ORACLES)
            first = measured[f"curvature[{c}]"] - measured[f"bending[{c}]"]
            assert measured[f"rhs[{c}]"] == pytest.approx(first, **ORACLES)
        assert measured["error"] < 1e-9
        assert measured["second_violated"] == pytest.approx(1 - measured["preserves"], abs=1e-12)


def test_curvature_takes_the_first_channels_that_a_gradient_reaches(digits):
    """Channel 0 is constant, channel 2 is off for the whole batch."""
    model = network(where=[1])
    with torch.no_grad():
        model.linear1.weight[0] = 0
        model.norm1.bias[2] = -100
    state = state_of(model, digits)
    found = of(table(probes.curvature_terms(state, channels=3), "thm42_"), "linear1")
    assert [key for key in found if key.startswith("lhs")] == ["lhs[1]", "lhs[3]", "lhs[4]"]
    everything = of(table(probes.curvature_terms(state, channels=99), "thm42_"), "linear1")
    assert sum(key.startswith("lhs") for key in everything) == 6
    assert list(probes.curvature_terms(state, channels=0)) == []


# -- both ------------------------------------------------------------------------------------------------

BOTH = ["one_layer_pairs", "curvature_terms"]


@pytest.mark.parametrize("probe", BOTH)
@pytest.mark.parametrize("norm", ["none", "noise", "l2", "l2_centred"])
def test_without_a_batch_norm_there_is_nothing_to_measure(norm, probe, digits):
    state = state_of(network(norm), digits)
    assert list(probes.PROBES[probe](state)) == []
    assert list(probes.PROBES[probe](state, ["linear1"])) == []


@pytest.mark.parametrize("probe", BOTH)
def test_layers_and_images_can_be_chosen(probe, digits):
    measure, state = probes.PROBES[probe], state_of(network(where=[1, 3]), digits)
    assert {layer for layer, *_ in measure(state)} == {"linear1", "linear3"}
    assert list(measure(state, ["linear2"])) == [], "no batch norm follows"
    with pytest.raises(ValueError, match="no layer 'conv7'; choose from linear1, linear2"):
        list(measure(state, ["linear1", "conv7"]))
    fewer = state_of(state.model, digits, size=12)
    assert list(measure(state, ["linear3"], size=12)) == list(measure(fewer, ["linear3"]))


@pytest.mark.parametrize("probe", BOTH)
def test_a_network_in_float32_is_measured_in_float64_and_stays_what_it_is(probe, digits):
    model = network().float()
    images = data.load("digits")
    found = table(probes.PROBES[probe](state_of(model, images)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    exact = data.Dataset(
        "digits",
        *(
            t.double() if t.is_floating_point() else t
            for t in (images.x_train, images.y_train, images.x_test, images.y_test)
        ),
    )
    expected = table(probes.PROBES[probe](state_of(copy.deepcopy(model).double(), exact)))
    assert found == expected


@pytest.mark.parametrize("probe", BOTH)
def test_targets_that_are_numbers_and_a_norm_without_gamma(probe):
    made = data.linear_map(40, 6, seed=0)
    model = models.deep_linear(3, 6, "batch")
    model.norm1 = BatchNorm(6, affine=False)
    loss = training.LOSSES["squared_mean"]
    state = training.State(0, model, made.x_train.float(), made.y_train.float(), 0.1, made, loss)
    found = table(probes.PROBES[probe](state))
    assert {layer for layer, _ in found} == {"linear1", "linear2"}
    errors = [value for (_, metric), value in found.items() if metric.endswith("error")]
    assert len(errors) == 2 and max(errors) < 1e-9


@pytest.mark.parametrize("probe", ["lp_scales", *BOTH])
def test_what_is_not_finite_is_left_out(probe, digits):
    model = network()
    with torch.no_grad():
        model.linear2.weight[0, 0] = math.nan
    found = table(probes.PROBES[probe](state_of(model, digits)))
    assert {layer for layer, _ in found} == ({"linear1", "linear2"} if probe == "lp_scales" else set())


@pytest.mark.parametrize("probe", ["lp_scales", *BOTH])
def test_a_training_can_declare_them(probe):
    declared = {
        "dataset": "digits",
        "model": {"name": "mlp", "depth": 2, "width": 16},
        "norm": "batch",
        "where": "everywhere",
        "init": "glorot_uniform",
        "lr": 0.1,
        "steps": 2,
        "batch_size": 32,
    }
    arguments = {"lp_scales": {"orders": [2, "inf"], "sizes": [8]}}.get(probe, {"size": 16})
    probing = {probe: {"every": 2, "layers": ["linear1"], **arguments}}
    with_probe = training.run({**declared, "probes": probing}, seed=1)
    without = training.run(declared, seed=1)
    assert [row for row in with_probe if row[1] == ""] == without, "bit for bit the same training"
    assert {row[:2] for row in with_probe if row[1]} == {(0, "linear1"), (2, "linear1")}
