"""Batch statistics: re-estimated, in both modes, on other images; and training gamma and beta alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnlib import data, models, norms, probes, training
from bnlib.probes.statistics import SHIFTS, shifted
from bnlib.theory.wide_networks import rank_collapse, run_rank_collapse

EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", dtype=torch.float64)


def _net(norm: str = "batch", **arguments) -> nn.Sequential:
    return models.initialise(models.digit_cnn(norm=norm, size=8, width=4, **arguments), seed=3).double()


def _state(model: nn.Sequential, dataset: data.Dataset, size: int = 16) -> training.State:
    return training.State(0, model, dataset.x_train[:size], dataset.y_train[:size], 0.1, dataset)


def _measured(rows) -> dict[tuple[str, str], float]:
    return {(layer, metric): value for layer, metric, value in rows}


# -- re-estimation ---------------------------------------------------------------------------------------


def test_re_estimated_statistics_are_torchs_cumulative_average(digits):
    """Oracle: the same net of torch's layers, momentum=None, in training mode over the same batches."""
    model = _net()
    model(digits.x_train[:50])  # running statistics that are not the initial ones
    theirs = nn.Sequential(
        *(
            nn.BatchNorm2d(part.channels, momentum=None, dtype=torch.float64)
            if isinstance(part, norms.BatchNorm)
            else part
            for part in model
        )
    )
    with torch.no_grad():
        for batch in digits.x_train[:96].split(32):
            theirs(batch)
    assert norms.re_estimate(model, digits.x_train[:110], batch_size=32) is model
    for ours, layer in zip(model, theirs, strict=True):
        if isinstance(ours, norms.BatchNorm):
            torch.testing.assert_close(ours.running_mean, layer.running_mean, **EXACT)
            torch.testing.assert_close(ours.running_var, layer.running_var, **EXACT)
            assert ours.momentum == 0.1 and ours.num_batches_tracked == 3


def test_one_batch_gives_its_own_mean_and_unbiased_variance(digits):
    model, x = _net(), digits.x_train[:40]
    norms.re_estimate(model.eval(), x)
    entering = model.conv1(x).movedim(1, 0).flatten(1)
    variance, mean = torch.var_mean(entering, 1, correction=1)
    torch.testing.assert_close(model.norm1.running_mean, mean, **EXACT)
    torch.testing.assert_close(model.norm1.running_var, variance, **EXACT)
    assert not any(module.training for module in model.modules())


def test_after_re_estimation_evaluation_computes_what_training_does(digits):
    """On the very batch whose statistics they are, but for m / (m - 1)."""
    model, x = _net(), digits.x_train
    with torch.no_grad():
        trained = model.train()(x)
        evaluated = norms.re_estimate(model, x).eval()(x)
    torch.testing.assert_close(evaluated, trained, rtol=0, atol=1e-3)


def test_re_estimation_changes_nothing_else(digits):
    model = _net("noisy_batch")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    norms.re_estimate(model, digits.x_train[:32], batch_size=16)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != ("running" in name or "tracked" in name), name


def test_re_estimation_refuses(digits):
    with pytest.raises(ValueError, match="no BatchNorm"):
        norms.re_estimate(_net("group"), digits.x_train[:8])
    with pytest.raises(ValueError, match="8 inputs do not fill a batch of 9"):
        norms.re_estimate(_net(), digits.x_train[:8], batch_size=9)


# -- the two modes ---------------------------------------------------------------------------------------


def test_two_modes_by_hand(digits):
    model = _net()
    for batch in digits.x_train[:160].split(16):
        model(batch)
    measured = _measured(probes.two_modes(_state(model, digits), size=70, many=100))
    x, y = digits.x_test[:64], digits.y_test[:64]  # whole batches of 16 only
    entering: list[torch.Tensor] = []
    with torch.no_grad():
        running = model.eval()(x).argmax(1)
        model.train()
        batched = torch.cat([model(part).argmax(1) for part in x.split(16)])
        for part in x.split(16):
            entering.append(model.conv1(part).movedim(1, 0).flatten(1))
        norms.re_estimate(model, digits.x_train[:400], 100)
        reestimated = model.eval()(x).argmax(1)
    assert measured["", "test_accuracy_running"] == (running == y).double().mean()
    assert measured["", "test_accuracy_batch"] == (batched == y).double().mean()
    assert measured["", "mode_disagreement"] == (running != batched).double().mean() > 0
    assert measured["", "test_accuracy_reestimated"] == (reestimated == y).double().mean()
    population = torch.cat(entering, 1).var(1, correction=0)
    ratio = torch.stack([population / part.var(1, correction=0) for part in entering]).mean()
    assert measured["conv1", "inverse_variance"] == pytest.approx(ratio.item(), rel=1e-10)
    assert ("conv2", "inverse_variance") in measured


def test_the_inverse_variance_of_gaussian_values(digits):
    """Images of independent Gaussian pixels, an MLP: m / (m - 3) at its first layer."""
    x = torch.randn(4096, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dataset = data.Dataset("gaussian", x, digits.y_train.new_zeros(4096), x, digits.y_train.new_zeros(4096))
    model = models.mlp(depth=1, width=40, norm="batch", in_features=64).double()
    measured = _measured(probes.two_modes(_state(model, dataset), size=4096, batch_size=8, many=64))
    assert measured["linear1", "inverse_variance"] == pytest.approx(8 / 5, rel=0.03)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_without_a_batch_there_is_only_one_mode(norm, digits):
    measured = _measured(probes.two_modes(_state(_net(norm), digits), size=64))
    assert measured["", "mode_disagreement"] == 0
    assert measured["", "test_accuracy_running"] == measured["", "test_accuracy_batch"]
    assert len(measured) == 3


# -- other images ----------------------------------------------------------------------------------------


def test_shifts_by_hand():
    x = torch.randn(5, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(shifted(x, "brightness", 0.5), x + 0.5)
    torch.testing.assert_close(shifted(x, "contrast", 0.75), x / 4)
    colour = shifted(x, "colour", 2.0) - x
    torch.testing.assert_close(colour.mean((0, 2, 3)), x.new_tensor([2.0, 0.0, -2.0]))
    noise = shifted(x, "noise", 0.5) - x
    assert noise.std() == pytest.approx(0.5, rel=0.1)
    assert torch.equal(noise[:2], shifted(x[:2], "noise", 0.5) - x[:2]), "an image's noise is its own"
    assert not torch.equal(noise[0], noise[1])
    line = x.new_tensor([0.25, 0.5, 0.25])
    once = shifted(x, "blur", 1.0)
    centre = torch.einsum("nchw,h,w->nc", x[:, :, 3:6, 2:5], line, line)
    torch.testing.assert_close(once[:, :, 4, 3], centre)
    torch.testing.assert_close(shifted(once, "blur", 1.0), shifted(x, "blur", 2.0))
    flat = torch.full_like(x, 1.5)
    torch.testing.assert_close(shifted(flat, "blur", 3.0), flat)
    for kind in SHIFTS:
        torch.testing.assert_close(shifted(x, kind, 0.0), x)
    with pytest.raises(ValueError, match="Unknown shift 'fog'; choose one of brightness, contrast"):
        shifted(x, "fog", 1.0)


def test_batch_statistics_undo_a_change_of_units(digits):
    """Contrast multiplies what enters the first norm, so with the batch's own statistics nothing changes."""
    model = _net().eval()
    rows = probes.shifted_accuracy(_state(model, digits), {"contrast": [0.9], "noise": [0.5]}, 128, [16, 64])
    measured = {metric: value for _, metric, value in rows}
    assert measured["accuracy[batch]@contrast=0.9"] == measured["accuracy[batch]@clean=0"]
    assert measured["accuracy[n=64]@contrast=0.9"] == measured["accuracy[n=64]@clean=0"]
    assert len(measured) == 3 * 4


def test_shifted_accuracy_by_hand(digits):
    model = _net()
    norms.re_estimate(model, digits.x_train[:256])
    rows = probes.shifted_accuracy(_state(model, digits), {"blur": [2.0]}, 100, [8, 32])
    measured = {metric: value for _, metric, value in rows}
    x, y = shifted(digits.x_test[:100], "blur", 2.0), digits.y_test[:100]
    with torch.no_grad():
        running = model.eval()(x).argmax(1)
        norms.re_estimate(model, shifted(digits.x_test[-8:], "blur", 2.0))
        adapted = model(x).argmax(1)
        batch = model.train()(x).argmax(1)
    for how, classes in (("running", running), ("n=8", adapted), ("batch", batch)):
        assert measured[f"accuracy[{how}]@blur=2"] == (classes == y).double().mean(), how
    without = probes.shifted_accuracy(_state(_net("group"), digits), {"blur": [2.0]}, 100, [8])
    assert [metric for _, metric, _ in without] == ["accuracy[running]@clean=0", "accuracy[running]@blur=2"]


def test_images_are_not_adapted_to_themselves(digits):
    with pytest.raises(ValueError, match="choose fewer"):
        list(probes.shifted_accuracy(_state(_net(), digits), {}, size=300, samples=[500]))


def test_gammas_are_the_norms_parameters(digits):
    model = _net("batch_renorm")
    with torch.no_grad():
        model.norm2.weight[3] = -0.25
        model.norm1.bias[1] = 7.0
    measured = _measured(probes.gammas(_state(model, digits)))
    assert measured["conv2", "gamma[3]"] == -0.25 and measured["conv1", "beta[1]"] == 7.0
    assert len(measured) == 2 * (4 + 8)
    assert _measured(probes.gammas(_state(_net("none"), digits))) == {}


# -- training a part -------------------------------------------------------------------------------------


def _changed(model: nn.Sequential, start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: p.detach() != start[name] for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "what", ["everything", "gamma_beta", "gamma_beta_readout", "readout", "random_weights"]
)
@pytest.mark.parametrize("settings", [{"momentum": 0.9, "weight_decay": 0.01}, {"optimiser": "adam"}])
def test_only_what_is_named_is_trained(what, settings, digits):
    model = _net()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = training.fit(model, digits, lr=0.05, steps=6, batch_size=32, seed=5, train_only=what, **settings)
    changed, entries = _changed(model, start), training.trained_entries(model, what, 5)
    for name, mask in changed.items():
        if name in entries:
            assert not mask[~entries[name]].any()
            assert mask[entries[name]].double().mean() > 0.5, name
        else:
            assert not mask.any(), name
    count = sum(int(mask.sum()) for mask in entries.values())
    said = [value for _, _, metric, value in rows if metric == "trained_parameters"]
    assert said == ([] if what == "everything" else [count])
    counts = {
        "everything": sum(p.numel() for p in model.parameters()),
        "gamma_beta": 2 * (4 + 8),
        "random_weights": 2 * (4 + 8),
        "readout": 8 * 4 * 10 + 10,
        "gamma_beta_readout": 2 * (4 + 8) + 8 * 4 * 10 + 10,
    }
    assert count == counts[what]


def test_random_weights_are_two_of_each_channel_and_others_for_another_seed():
    model = _net()
    one, other = (training.trained_entries(model, "random_weights", seed) for seed in (0, 1))
    assert set(one) == {"conv1.weight", "conv2.weight"}
    for mask in one.values():
        assert (mask.flatten(1).sum(1) == 2).all()
    assert not torch.equal(one["conv2.weight"], other["conv2.weight"])


def test_training_gamma_and_beta_is_gradient_descent_on_them(digits):
    trained, by_hand = _net(), _net()
    training.fit(trained, digits, lr=0.05, steps=4, batch_size=32, seed=5, train_only="gamma_beta")
    stream = data.batches(len(digits.x_train), 32, 5)
    wanted = [p for norm in (by_hand.norm1, by_hand.norm2) for p in norm.parameters()]
    for _ in range(4):
        indices = next(stream)
        loss = F.cross_entropy(by_hand(digits.x_train[indices]), digits.y_train[indices])
        with torch.no_grad():
            for parameter, gradient in zip(wanted, torch.autograd.grad(loss, wanted), strict=True):
                parameter -= 0.05 * gradient
    for one, other in zip(trained.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_what_cannot_be_trained_alone_is_refused():
    with pytest.raises(ValueError, match="Unknown train_only 'beta'; choose one of everything, gamma_beta"):
        training.trained_entries(_net(), "beta")
    for what in ("gamma_beta", "random_weights"):
        with pytest.raises(ValueError, match="Nothing of this model is left to train"):
            training.trained_entries(_net("none"), what)


# -- rank ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "normalised"), [("batch_uncentred", True), ("none", False)])
def test_the_recorded_rank_is_that_of_the_theory(norm, normalised):
    settings = {"norm": norm, "depth": 25, "width": 6, "batch": 12, "every": 10}
    rows = run_rank_collapse(settings, seed=4)
    expected = rank_collapse(25, 6, 12, normalised, seed=4)
    assert [step for step, *_ in rows] == [1, 10, 20, 25]
    assert [value for *_, value in rows] == [expected[step - 1].item() for step, *_ in rows]
    with pytest.raises(ValueError, match="norm must be one of batch_uncentred, none, not 'batch'"):
        run_rank_collapse({**settings, "norm": "batch"}, seed=4)
