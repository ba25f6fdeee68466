"""The training loop: SGD as written, paired arms, probes that leave no trace, divergence as a recorded
outcome."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnlib import data, models, probes, training
from bnlib.experiments import find


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", dtype=torch.float64)


def _net(norm: str = "batch") -> nn.Module:
    return models.initialise(models.digit_cnn(norm=norm, size=8, width=4), seed=3).double()


def _rows(rows, metric):
    return {step: value for step, _, name, value in rows if name == metric}


def test_it_is_gradient_descent_on_the_index_stream(digits):
    """Oracle: W <- W - lr grad, written out by hand over the same batches."""
    trained, by_hand = _net(), _net()
    rows = training.fit(trained, digits, lr=0.05, steps=7, batch_size=32, seed=5)
    stream = data.batches(len(digits.x_train), 32, 5)
    for step in range(7):
        indices = next(stream)
        loss = F.cross_entropy(by_hand(digits.x_train[indices]), digits.y_train[indices])
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient
        assert _rows(rows, "train_loss")[step] == pytest.approx(loss.item(), abs=1e-6)
    for one, other in zip(trained.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-12, rtol=0)


def test_momentum_and_weight_decay_are_torchs(digits):
    ours, theirs = _net(), _net()
    training.fit(ours, digits, lr=0.05, steps=5, batch_size=32, seed=5, momentum=0.9, weight_decay=0.01)
    optimiser = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    stream = data.batches(len(digits.x_train), 32, 5)
    for _ in range(5):
        indices = next(stream)
        optimiser.zero_grad()
        F.cross_entropy(theirs(digits.x_train[indices]), digits.y_train[indices]).backward()
        optimiser.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-12, rtol=0)


def test_adam_is_torchs(digits):
    ours, theirs = _net(), _net()
    training.fit(ours, digits, lr=0.01, steps=5, batch_size=32, seed=5, momentum=0.9, optimiser="adam")
    optimiser = torch.optim.Adam(theirs.parameters(), lr=0.01)
    stream = data.batches(len(digits.x_train), 32, 5)
    for _ in range(5):
        indices = next(stream)
        optimiser.zero_grad()
        F.cross_entropy(theirs(digits.x_train[indices]), digits.y_train[indices]).backward()
        optimiser.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", ["none", "batch", "noisy_batch", "batch_renorm", "weight"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_probe_and_the_update_share_one_pass(norm, optimiser):
    """Bit for bit what training without the probe gives: weights, running statistics, noise, losses."""
    ends, losses, passes = [], [], []
    for plugged in ((), (training.Probe(probes.turning, 2), training.Probe(_gradient_norm, 3))):
        model = models.initialise(models.digit_cnn(norm=norm, size=8, width=4), seed=3)
        model.to(memory_format=torch.channels_last)
        model.register_forward_hook(lambda *_: passes.append(1))
        rows = training.fit(
            model,
            data.load("digits"),
            lr=0.01,
            steps=7,
            batch_size=32,
            seed=5,
            momentum=0.9,
            weight_decay=0.01,
            optimiser=optimiser,
            plugged=plugged,
        )
        ends.append(model.state_dict())
        losses.append(_rows(rows, "train_loss"))
        assert len(passes) == (8 if plugged else 7), "one pass a step, and one for the probes at the end"
        passes.clear()
    assert losses[0] == losses[1]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def _gradient_norm(state):
    gradient = [part for part in state.here.gradient.values() if part is not None]
    yield "", "norm", torch.stack([part.norm() for part in gradient]).norm().item()


def test_a_shared_pass_is_the_models_own_gradient(digits):
    model = _net("batch")
    state = training.State(0, model, digits.x_train[:32], digits.y_train[:32], 0.1, digits, shared=True)
    before = copy.deepcopy(model.state_dict())
    assert state.made is None
    here = state.here
    assert state.made is here and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    loss = F.cross_entropy(model.train()(state.x), state.y)
    assert here.loss.item() == loss.item()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for found, gradient in zip(here.gradient.values(), expected, strict=True):
        assert torch.equal(found, gradient)
    after = copy.deepcopy(model.state_dict())
    model.load_state_dict(before)
    here.leave(model)
    assert all(torch.equal(after[k], v) for k, v in model.state_dict().items())
    assert replace(state, lr=1.0).made is None, "another state makes a pass of its own"
    alone = replace(state, shared=False)
    with torch.no_grad():
        model.classifier.weight.zero_()
    assert alone.here.loss.item() != here.loss.item(), "without sharing it is where the model is now"


def test_an_unknown_optimiser_is_refused(digits):
    with pytest.raises(ValueError, match="Unknown optimiser 'lion'; choose one of sgd, adam"):
        training.fit(_net(), digits, lr=0.01, steps=1, batch_size=32, seed=5, optimiser="lion")


def test_arms_start_from_the_same_weights_and_see_the_same_batches(digits):
    seen: dict[str, list[torch.Tensor]] = {"none": [], "batch": []}
    for norm, batches in seen.items():
        watch = training.Probe(lambda state, batches=batches: batches.append(state.x.clone()) or [], 1)
        training.fit(_net(norm), digits, lr=0.1, steps=4, batch_size=16, seed=1, plugged=[watch])
    assert len(seen["none"]) == 5
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))
    for (_, one), (_, other) in zip(models.layers(_net("none")), models.layers(_net("batch")), strict=True):
        assert torch.equal(one.weight, other.weight)


def test_the_last_evaluation_comes_after_the_last_update(digits):
    steps = []
    watch = training.Probe(lambda state: steps.append(state.step) or [], 4)
    training.fit(_net(), digits, lr=0.1, steps=10, batch_size=16, seed=1, plugged=[watch])
    assert steps == [0, 4, 8, 10]


def test_the_loss_is_averaged_over_windows(digits):
    every = training.fit(_net(), digits, lr=0.1, steps=6, batch_size=16, seed=1)
    thirds = training.fit(_net(), digits, lr=0.1, steps=6, batch_size=16, seed=1, loss_every=3)
    losses = _rows(every, "train_loss")
    assert _rows(thirds, "train_loss")[3] == pytest.approx(sum(losses[s] for s in (3, 4, 5)) / 3, rel=1e-12)


def test_divergence_is_recorded_not_raised(digits):
    """A learning rate of 1e30 gives a loss that is not finite at step 1 or 2."""
    done = []
    rows = training.fit(
        _net("none").float(), data.load("digits"), lr=1e30, steps=60, batch_size=16, seed=1, tick=done.append
    )
    (step,) = _rows(rows, "diverged_at").values()
    assert 1 <= step <= 3
    assert all(s < step and math.isfinite(v) for s, v in _rows(rows, "train_loss").items())
    assert sum(done) == 60, "the progress bar still reaches its end"


def _snapshot(model: nn.Module) -> dict:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    return {"state": state, "gradients": gradients, "modes": modes, "rng": torch.get_rng_state()}


def _same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_the_evaluation_leaves_no_trace(digits):
    model = _net()
    x, y = digits.x_train[:32], digits.y_train[:32]
    F.cross_entropy(model(x), y).backward()
    model.norm1.eval()  # a mode of its own, which must come back
    before = _snapshot(model)
    state = training.State(0, model, x, y, 0.1, digits)
    measured = {metric: value for _, metric, value in probes.evaluation(state, chunk=100)}
    assert _same(_snapshot(model), before)
    with torch.no_grad(), probes.evaluating(model):
        logits = model(digits.x_test)
    assert measured["test_loss"] == pytest.approx(F.cross_entropy(logits, digits.y_test).item(), rel=1e-12)
    assert measured["test_accuracy"] == (logits.argmax(1) == digits.y_test).double().mean().item()


def test_a_declared_run_can_be_trained_and_repeats_bit_for_bit():
    declared = find("training").all_runs("smoke")[0]
    once, again = (training.run(declared.settings, seed=declared.seed) for _ in range(2))
    assert once == again
    assert _rows(once, "test_accuracy")[declared.settings["steps"]] > 0.5


def test_an_unknown_setting_is_refused():
    declared = find("training").all_runs("smoke")[0]
    with pytest.raises(TypeError, match="learning_rate"):
        training.run({**declared.settings, "learning_rate": 0.1}, seed=0)
    with pytest.raises(ValueError, match="Unknown probe 'curvature'; choose one of activation_moments"):
        training.run({**declared.settings, "probes": {"curvature": {"every": 1}}}, seed=0)
    with pytest.raises(ValueError, match="Unknown loss 'hinge'; choose one of cross_entropy"):
        training.run({**declared.settings, "loss": "hinge"}, seed=0)


# -- losses, and gradient descent on the linear map ------------------------------------------------------


def test_the_losses_by_hand():
    output = torch.tensor([[1.0, 3.0], [0.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[0.0, 1.0], [0.0, -3.0]], dtype=torch.float64)
    assert training.LOSSES["squared_sum"](output, y).item() == 1 + 4 + 0 + 9
    assert training.LOSSES["squared_mean"](output, y).item() == 14 / 2, "over samples, not over values"
    labels = torch.tensor([1, 0])
    by_hand = (-math.log(math.exp(3) / (math.exp(1) + math.exp(3))) + math.log(2)) / 2
    assert training.LOSSES["cross_entropy"](output, labels).item() == pytest.approx(by_hand, rel=1e-12)
    classes = training.LOSSES["squared_classes"](output, labels).item()
    assert classes == (1 + (3 - 1) ** 2 + 1) / 4, "half the squares, over samples"
    assert set(training.LOSSES) == {"cross_entropy", "squared_sum", "squared_mean", "squared_classes"}


LINEAR = {
    "dataset": {"n": 30, "width": 4},
    "model": {"name": "deep_linear", "depth": 3, "width": 4},
    "batch_size": 30,
    "init": "glorot_uniform",
    "dtype": "float64",
    "where": "everywhere",
    "steps": 8,
}


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("loss, lr", [("squared_sum", 1e-4), ("squared_mean", 3e-3)])
def test_full_batch_training_is_gradient_descent(norm, loss, lr):
    """Oracle: gradient descent written out, with torch's batch norm, on the whole of y = A x."""
    rows = training.run({**LINEAR, "norm": norm, "loss": loss, "lr": lr}, seed=2)
    made = data.linear_map(30, 4, seed=2)
    weights = [
        layer.weight.detach().double().requires_grad_()
        for _, layer in models.layers(models.initialise(models.deep_linear(3, 4), seed=2))
    ]
    affine = [make(4, dtype=torch.float64) for make in (torch.ones, torch.zeros) * 2]
    parameters = weights + ([p.requires_grad_() for p in affine] if norm == "batch" else [])
    losses = []
    for _ in range(8):
        x = made.x_train
        for i, weight in enumerate(weights):
            x = x @ weight.T
            if norm == "batch" and i < 2:
                x = F.batch_norm(x, None, None, affine[2 * i], affine[2 * i + 1], training=True)
        value = (x - made.y_train).square().sum() / (1 if loss == "squared_sum" else 30)
        losses.append(value.item())
        for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            parameter.data -= lr * gradient
    # The losses of a run are collected in float32.
    assert list(_rows(rows, "train_loss").values()) == pytest.approx(losses, rel=1e-6)
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize("norm", ["none", *(norm for norm in models.NORMS if norm != "instance")])
def test_a_run_with_declared_probes_trains_as_one_without(norm):
    settings = find("gradient_shift").all_runs("smoke")[0].settings
    settings = {**settings, "norm": norm, "where": "everywhere", "steps": 4, "noise": 0.5}
    plain = training.run({**settings, "probes": {}}, seed=0)
    probed = {
        "covariate_shift": {"every": 2},
        "matched_covariate_shift": {"every": 2, "lengths": [0.1]},
        "activation_shift": {"every": 1, "size": 16},
        "activation_moments": {"every": 4, "size": 16, "layers": ["linear2"]},
        "activation_histogram": {"every": 4, "size": 16, "layers": ["linear2"]},
        "training_mode_accuracy": {"every": 3, "size": 16},
    }
    rows = training.run({**settings, "eval_every": 2, "probes": probed}, seed=0)
    assert _rows(rows, "train_loss") == _rows(plain, "train_loss")
    steps = {
        metric: sorted({step for step, _, name, _ in rows if name == metric}) for _, _, metric, _ in rows
    }
    assert steps["shift_l2"] == steps["shift_l2@0.1"] == steps["test_loss"] == [0, 2, 4]
    assert steps["wasserstein"] == [0, 1, 2, 3, 4]
    assert steps["train_accuracy"] == [0, 3, 4]
    assert {layer for _, layer, metric, _ in rows if metric == "mean"} == {"linear2"}


def test_noise_of_strength_0_trains_as_no_noise():
    settings = find("noise_strength").all_runs("smoke")[0].settings
    settings = {**settings, "steps": 5, "probes": {}}

    def losses(norm: str, noise: float) -> dict[int, float]:
        return _rows(training.run({**settings, "norm": norm, "noise": noise}, seed=0), "train_loss")

    assert losses("noisy_batch", 0.0) == losses("batch", 0.0)
    assert losses("noise", 0.0) == losses("none", 0.0)
    assert losses("noisy_batch", 1.0) != losses("batch", 0.0)
