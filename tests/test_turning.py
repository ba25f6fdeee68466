"""The turning of the weights, against steps of SGD as they are taken; and the training of hidden weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bnlib import data, models, training
from bnlib.norms import BatchNorm
from bnlib.probes.turning import turning
from bnlib.theory.scale_invariance import squared_norms_after


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", dtype=torch.float64)


def network(norm="batch", eps=0.0, name="mlp", seed=1):
    sizes = {"mlp": {"depth": 2, "width": 8, "in_features": 64}, "digit_cnn": {"size": 8, "width": 3}}
    model = models.initialise(models.build(name, norm=norm, **sizes[name]), seed=seed).double()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.eps = eps
    return model


def state_of(model, digits, lr=0.1, decay=0.0, hidden_lr=None, size=48):
    x, y = digits.x_train[:size], digits.y_train[:size]
    return training.State(0, model, x, y, lr, digits, hidden_lr=hidden_lr, hidden_decay=decay)


def table(rows):
    return {(layer, metric): value for layer, metric, value in rows}


def stepped(model, digits, lr, decay, size=48):
    """The model after one step of torch's own SGD on the same batch."""
    model = copy.deepcopy(model)
    optimiser = torch.optim.SGD(model.parameters(), lr, weight_decay=decay)
    state = state_of(model, digits, size=size)
    state.loss(model.train()(state.x), state.y).backward()
    optimiser.step()
    return model


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("name", ["mlp", "digit_cnn"])
@pytest.mark.parametrize("lr, decay", [(0.1, 0.0), (0.5, 0.02), (3.0, 0.1)])
def test_the_angle_is_that_of_the_step_taken(norm, name, lr, decay, digits):
    model = network(norm, eps=1e-5, name=name)
    found = table(turning(state_of(model, digits, lr, decay)))
    after = dict(models.layers(stepped(model, digits, lr, decay)))
    hidden = models.layers(model)[:-1]
    assert {layer for layer, _ in found} == {layer for layer, _ in hidden} | ({""} if decay else set())
    for layer, module in hidden:
        w, moved = (m.weight.detach().flatten(1) for m in (module, after[layer]))
        angles = torch.nn.functional.cosine_similarity(w, moved, dim=1).clamp(max=1).arccos()
        whole = torch.nn.functional.cosine_similarity(w.flatten(), moved.flatten(), dim=0).arccos()
        assert found[layer, "angle"] == pytest.approx(whole.item(), rel=1e-6)
        assert found[layer, "neuron_angle"] == pytest.approx(angles.median().item(), rel=1e-6, abs=1e-7)
        assert found[layer, "weight_norm"] == pytest.approx(w.norm().item())
        assert found[layer, "effective_rate"] == pytest.approx(lr / w.square().sum().item())
        rates = lr / w.square().sum(1)
        assert found[layer, "neuron_effective_rate"] == pytest.approx(rates.median().item())


def test_the_gradient_is_orthogonal_behind_a_batch_norm(digits):
    exact = table(turning(state_of(network(), digits)))
    with_eps = table(turning(state_of(network(eps=1e-5), digits)))
    standard = table(turning(state_of(network("none"), digits)))
    for layer in ("linear1", "linear2"):
        for kind in ("radial", "neuron_radial"):
            assert exact[layer, kind] < 1e-12
            assert 1e-9 < with_eps[layer, kind] < 1e-3
            assert standard[layer, kind] > 1e-2
    model = network()
    found = table(turning(state_of(model, digits, lr=0.5, decay=0.02)))
    w, g = torch.tensor(found["linear2", "weight_norm"]), torch.tensor(found["linear2", "gradient_norm"])
    after = dict(models.layers(stepped(model, digits, 0.5, 0.02)))["linear2"].weight
    one = squared_norms_after(w.view(1, 1), g.view(1, 1), 0.5, 0.02).item()
    assert after.square().sum().item() == pytest.approx(one, rel=1e-6)


def test_the_predicted_angle_and_the_rate_of_the_hidden_weights(digits):
    found = table(turning(state_of(network(), digits, lr=0.1, decay=0.02, hidden_lr=0.5)))
    assert found["", "equilibrium_angle"] == pytest.approx(math.sqrt(2 * 0.5 * 0.02))
    square = found["linear1", "weight_norm"] ** 2
    assert found["linear1", "effective_rate"] == pytest.approx(0.5 / square)
    assert ("", "equilibrium_angle") not in table(turning(state_of(network(), digits)))


def test_a_neuron_without_a_gradient_does_not_turn(digits):
    model = network("none")
    with torch.no_grad():
        model.linear2.bias.fill_(-1e3)  # no unit of this layer is ever active
    found = table(turning(state_of(model, digits)))
    assert found["linear2", "angle"] == found["linear2", "radial"] == found["linear2", "neuron_angle"] == 0


# --- the training of hidden weights -------------------------------------------------------------------------


def trained(digits, steps=40, model=None, **arguments):
    model = model or network()
    seen = []
    plugged = [training.Probe(lambda state: seen.append(state.hidden_lr) or turning(state), 10)]
    rows = training.fit(
        model, digits, steps=steps, batch_size=32, seed=0, plugged=plugged, **{"lr": 0.5, **arguments}
    )
    return model, [value for _, _, metric, value in rows if metric == "train_loss"], seen, rows


def test_weight_decay_of_hidden_weights_is_a_growing_rate(digits):
    """To rounding, in a whole network that trains on minibatches: the same losses at every step."""
    decayed, one, _, rows = trained(digits, weight_decay=0.02, decayed="hidden")
    growing, other, rates, _ = trained(digits, weight_decay=0.02, decayed="as_rates")
    assert other == pytest.approx(one, rel=1e-10)
    assert rates == pytest.approx([0.5 * 0.99 ** -(2 * t + 1) for t in (0, 10, 20, 30, 40)])
    torch.testing.assert_close(growing.linear1.weight * 0.99**40, decayed.linear1.weight)
    torch.testing.assert_close(growing.classifier.weight, decayed.classifier.weight)
    assert any(metric == "equilibrium_angle" for _, _, metric, _ in rows)
    _, everything, _, _ = trained(digits, weight_decay=0.02)
    assert everything != pytest.approx(one, rel=1e-3), "the classifier decays too"
    _, without, _, _ = trained(digits)
    assert without != pytest.approx(one, rel=1e-3)


def test_hidden_weights_have_a_rate_of_their_own(digits):
    """Weights ten times longer with a hundred times the rate train the same."""
    _, plain, _, _ = trained(digits)
    longer = network()
    with torch.no_grad():
        for weight in training.hidden_weights(longer):
            weight *= 10
    _, same, rates, _ = trained(digits, model=longer, hidden_lr=50.0)
    assert same == pytest.approx(plain, rel=1e-9)
    assert set(rates) == {50.0}
    _, equal, _, _ = trained(digits, hidden_lr=0.5)
    assert equal == pytest.approx(plain, rel=1e-12)


def test_the_gain_of_the_hidden_weights(digits):
    common = {"dataset": "digits", "model": {"name": "mlp", "depth": 2, "width": 8}, "init": "he_normal"}
    common |= {"norm": "batch", "where": "everywhere"}
    one, _, _ = training.prepare(common, seed=3)
    other, _, _ = training.prepare({**common, "hidden_gain": 10.0}, seed=3)
    torch.testing.assert_close(other.linear2.weight, 10 * one.linear2.weight)
    assert torch.equal(other.classifier.weight, one.classifier.weight)
    assert torch.equal(other.norm1.weight, one.norm1.weight)


@pytest.mark.parametrize("wrong", [{"momentum": 0.9}, {"optimiser": "adam"}])
def test_a_growing_rate_is_for_plain_descent(wrong, digits):
    with pytest.raises(ValueError, match="plain SGD"):
        trained(digits, decayed="as_rates", weight_decay=0.1, **wrong)


def test_an_unknown_decay_is_named(digits):
    with pytest.raises(ValueError, match="choose one of all, hidden, as_rates"):
        trained(digits, decayed="hiden")


def test_only_the_first_images(digits):
    common = {"dataset": "digits", "model": {"name": "mlp", "depth": 2, "width": 8}, "init": "he_normal"}
    common |= {"norm": "batch", "where": "everywhere", "dtype": "float64"}
    _, few, _ = training.prepare({**common, "images": 100}, seed=0)
    assert torch.equal(few.x_train, digits.x_train[:100])
    assert torch.equal(few.y_train, digits.y_train[:100])
    assert torch.equal(few.x_test, digits.x_test)
