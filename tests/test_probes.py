"""Probes: no trace of them is left, and what they measure is what torch, NumPy and pencil and paper say."""

from __future__ import annotations

import copy
import inspect
import runpy
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance
from torch import nn

from bnlib import data, models, probes, training
from bnlib.probes.activations import LEVELS, activations
from bnlib.probes.landscape import walk
from bnlib.updates import How

#: one of each kind: the l_p norms differ in their scale only, those over one sample's values in which values
NORMS = [
    "none",
    *(n for n in models.NORMS if n in ("linf", "group") or not n.startswith(("l", "instance", "rms"))),
]
#: what has nothing to measure in a network without batch norm
OF_BATCH_NORM = {"batch_norm_terms", "one_layer_pairs", "curvature_terms"}
#: every probe, with arguments that keep it small
PROBES: dict[str, dict] = {
    "activation_moments": {"size": 32},
    "activation_histogram": {"size": 32},
    "activation_shift": {"size": 32},
    "covariate_shift": {},
    "matched_covariate_shift": {"lengths": [1e-3, 1e-1]},
    "training_mode_accuracy": {"size": 32},
    "batch_norm_terms": {},
    "landscape": {"factors": [0.5, 4]},
    "relative_landscape": {"lengths": [1e-2]},
    "activation_beta": {"factors": [1], "layers": ["conv2"]},
    "landscape_mistakes": {"factors": [1], "mistakes": ["frozen_moments", "different_minibatches"]},
    "random_slice": {"positions": [0.0, 0.5]},
    "lp_scales": {"sizes": [8], "orders": [1, "inf"]},
    "one_layer_pairs": {"size": 24},
    "curvature_terms": {"channels": 1, "size": 24},
    "hessian_spectrum": {"steps": 3, "draws": 1, "between": [1.0]},
    "relative_spectrum": {"steps": 3, "draws": 1},
    "turning": {},
    "two_modes": {"size": 64, "many": 32},
    "shifted_accuracy": {"shifts": {"contrast": [0.5], "noise": [1.0]}, "size": 32, "samples": [8, 16]},
    "gammas": {},
    "weight_gradients": {},
    "evaluation": {"chunk": 200},
}
EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", dtype=torch.float64)


def _net(norm: str = "batch", name: str = "digit_cnn", seed: int = 3, **arguments) -> nn.Sequential:
    """A small network for digits, in float64, with gamma and beta (or biases) that are not 1 and 0."""
    sizes = {"digit_cnn": {"size": 8, "width": 2}, "mlp": {"depth": 3, "width": 6, "in_features": 64}}
    model = models.build(name, norm=norm, **sizes[name], **arguments)
    model = models.initialise(model, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(len(parameter), generator=generator, dtype=torch.float64)
    return model


def _state(model: nn.Sequential, dataset: data.Dataset, lr: float = 0.1, size: int = 32) -> training.State:
    return training.State(0, model, dataset.x_train[:size], dataset.y_train[:size], lr, dataset)


def _measure(name: str, state: training.State) -> list[tuple[str, str, float]]:
    return list(getattr(probes, name)(state, **PROBES[name]))


def _table(rows: Iterable[tuple[str, str, float]]) -> dict[tuple[str, str], float]:
    rows = list(rows)
    table = {(layer, metric): value for layer, metric, value in rows}
    assert len(table) == len(rows), "a value is measured twice"
    return table


# -- no trace --------------------------------------------------------------------------------------------


def _everything(model: nn.Sequential) -> dict:
    """All that a probe could change."""
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "parameters": list(map(id, model.parameters())),
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "noise": [m.generator.get_state() for m in model.modules() if hasattr(m, "generator")],
        "strengths": [module.strength for module in model.modules() if hasattr(module, "strength")],
        "global": torch.get_rng_state(),
        "autograd": torch.is_grad_enabled(),
    }


def _same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def _used(norm: str, dataset: data.Dataset) -> nn.Sequential:
    """A network in the midst of training: gradients here and none there, noise drawn, modes of its own."""
    model = _net(norm)
    F.cross_entropy(model(dataset.x_train[:16]), dataset.y_train[:16]).backward()
    model.conv1.weight.grad = None
    for module in model.norm2.modules() if norm != "none" else [model.relu2]:
        module.eval()
    return model


def test_every_probe_is_tested():
    assert set(PROBES) == {*probes.PROBES, "evaluation"}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PROBES)
def test_a_probe_leaves_no_trace(name, norm, digits):
    model = _used(norm, digits)
    before = _everything(model)
    first = _measure(name, _state(model, digits))
    nothing = set() if norm.endswith("batch") else OF_BATCH_NORM
    if norm in ("none", "noise"):
        nothing = nothing | {"gammas"}
    assert bool(first) == (name not in nothing)
    assert _same(_everything(model), before)
    assert _measure(name, _state(model, digits)) == first, "measured twice, the same"


class _Broken(Exception):
    pass


def _breaking(module: nn.Module, call: int):
    """From now on the call of that number to `module` raises; returns the handle of the hook."""
    calls = []

    def count(*_):
        calls.append(1)
        if len(calls) == call:
            raise _Broken

    return module.register_forward_hook(count)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PROBES)
def test_a_probe_that_breaks_off_leaves_no_trace_either(name, norm, digits):
    """Whichever of its passes it is, and wherever in the network."""
    model = _used(norm, digits)
    before, broken = _everything(model), 0
    for module in (model.conv1, model.classifier):
        for call in range(1, 20):
            hook = _breaking(module, call)
            try:
                _measure(name, _state(model, digits))
            except _Broken:
                broken += 1
            else:
                break
            finally:
                hook.remove()
            assert _same(_everything(model), before)
        else:
            raise AssertionError("more passes than this test looks at")
    assert broken >= 2 or name == "gammas" or (name in OF_BATCH_NORM and not norm.endswith("batch"))


@pytest.mark.parametrize("norm", NORMS)
def test_training_does_not_notice_its_probes(norm, digits):
    def train(plugged):
        model = _net(norm)
        rows = training.fit(model, digits, lr=0.1, steps=6, batch_size=32, seed=1, plugged=plugged)
        losses = [row for row in rows if row[2] == "train_loss"]
        return losses, _everything(model)["values"], _everything(model)["noise"]

    def plug(name):
        return training.Probe(lambda state: _measure(name, state), 2)

    assert _same(train([]), train([plug(name) for name in PROBES]))


# -- covariate shift -------------------------------------------------------------------------------------


def _gradient(model: nn.Sequential, state: training.State, layer: str) -> torch.Tensor:
    loss = state.loss(model(state.x), state.y)
    return torch.autograd.grad(loss, model.get_parameter(f"{layer}.weight"))[0]


def _naive(state: training.State, moved: nn.Sequential) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """G and G' of every layer by definition: one copy of the network per layer, in which every parameter of
    the modules before the layer is that of `moved`."""
    found = {}
    names = [name for name, _ in state.model.named_children()]
    for layer, _ in models.layers(state.model):
        mixed = copy.deepcopy(state.model).train()
        for earlier in names[: names.index(layer)]:
            mixed.get_submodule(earlier).load_state_dict(moved.get_submodule(earlier).state_dict())
        unmoved = copy.deepcopy(state.model).train()
        found[layer] = _gradient(unmoved, state, layer), _gradient(mixed, state, layer)
    return found


def _after_sgd(state: training.State) -> nn.Sequential:
    moved = copy.deepcopy(state.model).train()
    optimiser = torch.optim.SGD(moved.parameters(), lr=state.lr)
    optimiser.zero_grad()
    state.loss(moved(state.x), state.y).backward()
    optimiser.step()
    return moved


def _after_relative_step(state: training.State, length: float) -> nn.Sequential:
    moved, weights = copy.deepcopy(state.model).train(), {}
    for layer, module in models.layers(moved):
        gradient = _gradient(copy.deepcopy(state.model).train(), state, layer)
        weights[layer] = module.weight - length * module.weight.norm() * gradient / gradient.norm()
    with torch.no_grad():
        for layer, weight in weights.items():
            moved.get_parameter(f"{layer}.weight").copy_(weight)
    return moved


def _check(measured: dict, naive: dict[str, tuple[torch.Tensor, torch.Tensor]], suffix: str = "") -> None:
    for layer, (one, other) in naive.items():
        cosine = F.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()
        assert measured[layer, f"shift_l2{suffix}"] == pytest.approx((one - other).norm().item(), abs=1e-10)
        assert measured[layer, f"shift_cosine{suffix}"] == pytest.approx(cosine, abs=1e-10)


def test_three_weights_by_hand():
    """loss (w1 w2 w3 x - y)^2 / 2 with w = (1.2, 0.8, 1.5), x = 2, y = 1, learning rate 0.05."""
    model = models.deep_linear(3, 1).double()
    with torch.no_grad():
        for value, (_, layer) in zip((1.2, 0.8, 1.5), models.layers(model), strict=True):
            layer.weight.fill_(value)
    x, y = torch.full((1, 1), 2.0).double(), torch.ones(1, 1).double()
    state = training.State(0, model, x, y, 0.05, None, lambda output, y: (output - y).square().sum() / 2)
    measured = _table(probes.covariate_shift(state))
    gradients, moved = (4.512, 6.768, 3.6096), (4.512, 3.912878592, 0.3142626184)
    for i, (before, after) in enumerate(zip(gradients, moved, strict=True), start=1):
        assert measured[f"linear{i}", "gradient_norm"] == pytest.approx(before, abs=1e-9)
        assert measured[f"linear{i}", "shift_l2"] == pytest.approx(before - after, abs=1e-9)
        assert measured[f"linear{i}", "shift_cosine"] == pytest.approx(1.0, abs=1e-9)
    assert measured["linear2", "relative_step"] == pytest.approx(0.05 * 6.768 / 0.8, abs=1e-9)


@pytest.mark.parametrize("name", ["mlp", "digit_cnn"])
@pytest.mark.parametrize("norm", NORMS)
def test_covariate_shift_is_definition_2_1(name, norm, digits):
    """With noise too: it is the same for G and G', layer by layer."""
    state = _state(_net(norm, name), digits, lr=0.5)
    measured = _table(probes.covariate_shift(state))
    naive = _naive(state, _after_sgd(state))
    _check(measured, naive)
    for layer, (gradient, _) in naive.items():
        norm_of_weight = state.model.get_parameter(f"{layer}.weight").norm().item()
        assert measured[layer, "gradient_norm"] == pytest.approx(gradient.norm().item(), abs=1e-10)
        relative = 0.5 * gradient.norm().item() / norm_of_weight
        assert measured[layer, "relative_step"] == pytest.approx(relative, abs=1e-10)
    first, *others = naive
    assert measured[first, "shift_l2"] == 0.0
    assert all(measured[layer, "shift_l2"] > 1e-6 for layer in others), "the oracle is not empty"
    chosen = _table(probes.covariate_shift(state, layers=others[1:]))
    assert chosen == {key: measured[key] for key in measured if key[0] in others[1:]}


@pytest.mark.parametrize("name", ["mlp", "digit_cnn"])
@pytest.mark.parametrize("norm", NORMS)
def test_matched_covariate_shift_takes_steps_of_equal_relative_length(name, norm, digits):
    state = _state(_net(norm, name), digits)
    lengths = [1e-3, 0.1]
    measured = _table(probes.matched_covariate_shift(state, lengths))
    for length in lengths:
        _check(measured, _naive(state, _after_relative_step(state, length)), f"@{length:g}")


def test_every_earlier_weight_moves_by_its_share_and_nothing_else_does(digits):
    state, seen = _state(_net(), digits), []

    def look(*_):
        seen.append({name: value.detach().clone() for name, value in state.model.named_parameters()})

    hook = state.model.conv1.register_forward_hook(look)
    list(probes.matched_covariate_shift(state, [0.05]))
    hook.remove()
    before, moved, *_ = seen  # the pass for G, then the one through the moved network
    weights = {f"{layer}.weight" for layer, _ in models.layers(state.model)}
    for name, value in before.items():
        relative = ((moved[name] - value).norm() / value.norm()).item()
        assert relative == pytest.approx(0.05 if name in weights else 0.0, abs=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_step_there_is_no_shift(norm, digits):
    state = _state(_net(norm), digits, lr=0.0)
    measured = _table(probes.covariate_shift(state)) | _table(probes.matched_covariate_shift(state, [0.0]))
    assert {value for (_, metric), value in measured.items() if "shift_l2" in metric} == {0.0}
    cosines = [value for (_, metric), value in measured.items() if "shift_cosine" in metric]
    assert len(cosines) == 6 and cosines == pytest.approx([1.0] * 6, abs=1e-12)
    assert {value for (_, metric), value in measured.items() if metric == "relative_step"} == {0.0}


@pytest.mark.parametrize("norm", NORMS)
def test_as_the_step_shrinks_the_shift_shrinks_with_it(norm, digits):
    measured = _table(probes.matched_covariate_shift(_state(_net(norm), digits), [1e-6, 1e-7]))
    for layer in ("conv2", "classifier"):
        ratio = measured[layer, "shift_l2@1e-06"] / measured[layer, "shift_l2@1e-07"]
        assert ratio == pytest.approx(10, rel=1e-3)
        assert measured[layer, "shift_cosine@1e-07"] == pytest.approx(1.0, abs=1e-9)


def test_a_dead_network_has_no_direction_and_no_nan(digits):
    """All ReLUs are off: every gradient but that of the last bias is zero."""
    model = _net("none")
    with torch.no_grad():
        model.conv2.weight.zero_()
        model.conv2.bias.fill_(-1.0)
        model.conv2.weight[0, 0, 0, 0] = 1e-3  # a weight of length 0 has no relative step
    state = _state(model, digits)
    measured = _table(probes.covariate_shift(state))
    measured |= _table(probes.matched_covariate_shift(state, [1e-2]))
    assert np.isfinite(list(measured.values())).all()
    assert not [key for key in measured if "cosine" in key[1]]
    assert measured["conv2", "shift_l2"] == measured["conv2", "gradient_norm"] == 0.0


def test_a_shift_that_is_not_finite_is_left_out(digits):
    """A record holds finite numbers only, also of a network that is about to diverge."""
    model = _net("none")
    with torch.no_grad():
        model.conv1.weight.fill_(float("inf"))
    assert _measure("covariate_shift", _state(model, digits)) == []
    assert _measure("matched_covariate_shift", _state(model, digits)) == []
    with torch.no_grad():
        model.conv1.weight.zero_()
    measured = _table(probes.covariate_shift(_state(model, digits)))
    assert np.isfinite(list(measured.values())).all()
    assert ("conv1", "relative_step") not in measured and ("conv1", "gradient_norm") in measured


# -- activations -----------------------------------------------------------------------------------------


def _by_channel(a: torch.Tensor) -> torch.Tensor:
    return a.detach().movedim(1, 0).flatten(1)


def _by_hand(model: nn.Sequential, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each layer of `_net("none")` passes on to its nonlinearity."""
    first = F.conv2d(x, model.conv1.weight, model.conv1.bias, padding=1)
    pooled = F.max_pool2d(F.relu(first), 2)
    second = F.conv2d(pooled, model.conv2.weight, model.conv2.bias, padding=1)
    last = F.linear(F.max_pool2d(F.relu(second), 2).flatten(1), model.classifier.weight)
    return {"conv1": first, "conv2": second, "classifier": last + model.classifier.bias}


def test_moments_without_normalization_are_those_of_torch(digits):
    model = _net("none")
    x, _ = data.probe_batch(digits, 48)
    measured = _table(probes.activation_moments(_state(model, digits), size=48, channels=3))
    for layer, a in _by_hand(model, x).items():
        variance, mean = torch.var_mean(_by_channel(a), 1, correction=0)
        assert measured.pop((layer, "mean")) == pytest.approx(mean.mean().item(), abs=1e-12)
        assert measured.pop((layer, "variance")) == pytest.approx(variance.mean().item(), abs=1e-12)
        for c in range(min(3, len(mean))):
            assert measured.pop((layer, f"mean[{c}]")) == pytest.approx(mean[c].item(), abs=1e-12)
            assert measured.pop((layer, f"variance[{c}]")) == pytest.approx(variance[c].item(), abs=1e-12)
    assert measured == {}


@pytest.mark.parametrize("name", ["mlp", "digit_cnn"])
def test_batch_norm_sets_mean_to_beta_and_variance_to_gamma_squared(name, digits):
    """Training mode, so exactly so on this very batch, but for eps."""
    model = _net("batch", name)
    layer, norm = ("linear1", model.norm1) if name == "mlp" else ("conv1", model.norm1)
    x, _ = data.probe_batch(digits, 64)
    before = model[: list(dict(model.named_children())).index("norm1")](x)
    variance = _by_channel(before).var(1, correction=0)
    measured = _table(probes.activation_moments(_state(model, digits), [layer], size=64, channels=99))
    expected = norm.weight.detach() ** 2 * variance / (variance + norm.eps)
    for c in range(len(variance)):
        assert measured[layer, f"mean[{c}]"] == pytest.approx(norm.bias[c].item(), abs=1e-12)
        assert measured[layer, f"variance[{c}]"] == pytest.approx(expected[c].item(), abs=1e-12)
    assert {key[0] for key in measured} == {layer}


def test_the_histogram_is_numpys_quantiles(digits):
    model = _net("none")
    x, _ = data.probe_batch(digits, 40)
    measured = _table(probes.activation_histogram(_state(model, digits), size=40))
    for layer, a in _by_hand(model, x).items():
        expected = np.quantile(a.detach().numpy().ravel(), LEVELS)
        assert [measured[layer, f"quantile={p}"] for p in LEVELS] == pytest.approx(list(expected), abs=1e-12)
    assert len(LEVELS) == 41 and np.diff(LEVELS) == pytest.approx(np.full(40, 0.99 / 40), abs=1e-5)
    fewer = _table(probes.activation_histogram(_state(model, digits), ["conv1"], size=40, values=800))
    thinned = _by_channel(_by_hand(model, x)["conv1"])[:, ::6]  # 2 channels of 40 * 64 values
    expected = np.quantile(thinned.numpy(), LEVELS)
    assert list(fewer.values()) == pytest.approx(list(expected), abs=1e-12)


def test_activations_that_are_not_finite_are_left_out(digits):
    model = _net("none")
    with torch.no_grad():
        model.conv2.bias.fill_(float("inf"))
    state = _state(model, digits)
    assert {layer for layer, _, _ in probes.activation_moments(state, size=16)} == {"conv1"}
    assert {layer for layer, _, _ in probes.activation_histogram(state, size=16)} == {"conv1"}


@pytest.mark.parametrize("name", ["mlp", "digit_cnn"])
@pytest.mark.parametrize("norm", NORMS)
def test_activation_shift_is_scipys_wasserstein_distance_of_a_real_step(name, norm, digits):
    state = _state(_net(norm, name), digits, lr=0.5)
    measured = _table(probes.activation_shift(state, size=24))
    x, _ = data.probe_batch(digits, 24)
    moved, twin = _after_sgd(state), copy.deepcopy(state.model).train()
    with torch.no_grad():
        old = activations(twin, x)
        twin.load_state_dict(moved.state_dict())  # its noise goes on from one pass to the next
        new = activations(twin, x)
    for layer in old:
        before, after = _by_channel(old[layer]), _by_channel(new[layer])
        unit = before.std(1, correction=0).mean().item()
        distances = [wasserstein_distance(a, b) for a, b in zip(before, after, strict=True)]
        spreads = (after.std(1, correction=0) - before.std(1, correction=0)).abs().mean().item()
        means = (after.mean(1) - before.mean(1)).abs().mean().item()
        assert measured[layer, "wasserstein"] == pytest.approx(np.mean(distances) / unit, abs=1e-10)
        assert measured[layer, "mean_shift"] == pytest.approx(means / unit, abs=1e-10)
        assert measured[layer, "deviation_shift"] == pytest.approx(spreads / unit, abs=1e-10)
        assert measured[layer, "deviation"] == pytest.approx(unit, abs=1e-10)
    assert max(value for (_, metric), value in measured.items() if metric == "wasserstein") > 0.01


def test_a_bias_that_moves_shifts_the_activations_by_as_much(digits):
    """A linear loss on centred inputs: only the bias has a gradient, and it is known."""
    model = nn.Sequential()
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", _net("none", "mlp").classifier)
    x = torch.randn(500, 6, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slopes = torch.linspace(-2, 3, 10, dtype=torch.float64)
    normal = data.Dataset("normal", x, torch.zeros(500), x, torch.zeros(500))

    def loss(output: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
        return (output.mean(0) * slopes).sum()

    state = training.State(0, model, x - x.mean(0), slopes, 0.25, normal, loss)
    measured = _table(probes.activation_shift(state, size=400))
    move = 0.25 * slopes.abs().mean().item()
    unit = measured["classifier", "deviation"]
    assert measured["classifier", "wasserstein"] * unit == pytest.approx(move, abs=1e-10)
    assert measured["classifier", "mean_shift"] * unit == pytest.approx(move, abs=1e-10)
    assert measured["classifier", "deviation_shift"] == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_step_activations_move_with_the_noise_only(norm, digits):
    measured = _table(probes.activation_shift(_state(_net(norm), digits, lr=0.0), ["conv1"], size=64))
    assert (measured["conv1", "wasserstein"] == 0.0) == ("noise" not in norm and "noisy" not in norm)
    assert measured["conv1", "wasserstein"] < 2


def test_an_unknown_layer_is_named_with_the_known_ones(digits):
    state = _state(_net(), digits)
    for name in PROBES:
        if "layers" in inspect.signature(getattr(probes, name)).parameters:
            for layers in (["conv9"], ["conv2", "conv9"]):
                with pytest.raises(ValueError, match="no layer 'conv9'; choose from conv1, conv2"):
                    list(getattr(probes, name)(state, **{**PROBES[name], "layers": layers}))


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_that_is_not_read_to_its_end_leaves_no_trace_either(name, digits):
    model = _used("noisy_batch", digits)
    before, rows = _everything(model), len(_measure(name, _state(model, digits)))
    for read in range(1, rows + 1):
        measuring = getattr(probes, name)(_state(model, digits), **PROBES[name])
        for _ in range(read):
            next(measuring)
        assert torch.is_grad_enabled(), "also while it waits to be read on"
        measuring.close()
        assert _same(_everything(model), before)


@pytest.mark.parametrize("name", ["activation_moments", "activation_histogram", "activation_shift"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_activations_of_the_deep_linear_network(name, norm):
    made = data.linear_map(40, 4, seed=0)
    model = models.deep_linear(3, 4, norm).double()
    loss = training.LOSSES["squared_mean"]
    state = training.State(0, model, made.x_train, made.y_train, 0.1, made, loss)
    assert {layer for layer, _, _ in _measure(name, state)} == {"linear1", "linear2", "linear3"}


# -- accuracy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_training_mode_accuracy_uses_the_batch_and_the_noise_or_not(norm, digits):
    state = _state(_net(norm), digits)
    measured = _table(probes.training_mode_accuracy(state, size=100))
    model = copy.deepcopy(state.model).train()
    test, labels = digits.x_test[:100], digits.y_test[:100]

    def accuracy(x: torch.Tensor, y: torch.Tensor) -> float:
        with torch.no_grad():
            return (model(x).argmax(1) == y).double().mean().item()

    # In this order, because the noise of one pass comes after that of the other.
    assert measured.pop(("", "train_accuracy")) == accuracy(*data.probe_batch(digits, 100))
    assert measured.pop(("", "test_accuracy_noisy")) == accuracy(test, labels)
    silent = {"noisy_batch": "batch", "stationary_noise_batch": "batch", "noise": "none"}.get(norm, norm)
    plain = _net(silent)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        one.data.copy_(other)
    model = plain.train()
    assert measured.pop(("", "test_accuracy_batch")) == accuracy(test, labels)
    assert measured == {}


@pytest.mark.parametrize("norm", NORMS)
def test_evaluation_is_in_evaluation_mode_and_without_noise(norm, digits):
    model = _net(norm)
    measured = _table(probes.evaluation(_state(model, digits), chunk=77))
    model.eval()
    with torch.no_grad():
        logits = model(digits.x_test)
    expected = F.cross_entropy(logits, digits.y_test).item()
    assert measured["", "test_loss"] == pytest.approx(expected, rel=1e-12)
    assert measured["", "test_accuracy"] == (logits.argmax(1) == digits.y_test).double().mean().item()


@pytest.mark.parametrize("norm", ["none", "batch", "group", "weight"])
def test_the_points_of_a_walk_may_go_side_by_side(norm, digits):
    """Up to rounding, 1e-9 of each row in float64; and no trace is left."""
    model = _net(norm)
    names = [name for name, _ in model.named_parameters() if norm != "weight" or "classifier" in name]
    direction = {name: torch.ones_like(model.get_parameter(name)) / 30 for name in names}
    before = copy.deepcopy(model.state_dict())
    one, other = (
        walk(replace(_state(model, digits), batched=batched), direction, [0.0, 0.5, -2])
        for batched in (False, True)
    )
    for single, batched in zip(one, other, strict=True):
        assert single.loss == pytest.approx(batched.loss, rel=1e-9)
        for name in names:
            assert torch.allclose(single.gradient[name], batched.gradient[name], rtol=1e-9, atol=1e-12)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    settings = {"dataset": "digits", "model": {"name": "mlp"}, "norm": "noise", "where": "everywhere"}
    settings |= {"init": "glorot_uniform", "lr": 0.1, "steps": 1, "batch_size": 8}
    settings |= {"probes": {"landscape": {"every": 1, "factors": [1]}}}
    assert training.run(settings, seed=0, how=How(batched=True)) == training.run(settings, seed=0), (
        "has noise"
    )


# -- what they cost --------------------------------------------------------------------------------------

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "probes.py"


def _section(readme: str, name: str) -> str:
    return readme.split(f"<!-- {name} -->")[1].split(f"<!-- end {name} -->")[0]


def test_the_benchmark_runs_and_its_table_is_the_one_in_the_readme(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), "--quick"])
    runpy.run_path(str(BENCHMARK), run_name="__main__")
    output = capsys.readouterr().out
    rows, shown = (
        [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
        for text in (output, _section(BENCHMARK.with_name("README.md").read_text(encoding="utf-8"), "probes"))
    )
    assert rows == shown
    assert [name for name in probes.PROBES if not any(row.startswith(name) for row in rows)] == []
    assert "random images" in output
