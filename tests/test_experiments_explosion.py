"""Chapter 10: random networks as recorded, and what its claims measure on records made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bnlib import data, models, probes, records, signal_propagation, training
from bnlib.experiments import CLAIMS, EXPERIMENTS, explosion
from bnlib.experiments.explosion import HE, LIMIT
from bnlib.probes.state import State
from bnlib.specs import Run
from bnlib.theory import mean_field, wide_networks

SEEDS = range(5)
BATCHES = (8, 32, 128, 512)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    return tmp_path


def _saved(runs: list[Run], rows_of) -> records.Record:
    finished = {run.digest: {"rows": rows_of(run), "seconds": 0.0} for run in runs}
    return records.save("toy", "smoke", runs, finished, {})


# -- random networks ---------------------------------------------------------------------------------------

NET = {
    "network": "plain",
    "norm": "batch",
    "activation": "tanh",
    "depth": 12,
    "width": 48,
    "batch_size": 8,
    "weight_variance": 2.0,
}


def _values(**settings) -> dict[tuple[str, str], float]:
    rows = signal_propagation.run({**NET, **settings}, seed=3)
    return {(layer, metric): value for _, layer, metric, value in rows}


def test_a_plain_network_is_recorded_from_the_first_layer_on():
    values, layers = _values(), wide_networks.plain_network(12, 48, 8, torch.tanh, seed=3)
    assert [values[f"h{k}", "gradient"] for k in range(1, 13)] == layers.gradient.tolist()
    assert [values[f"h{k}", "variance"] for k in range(1, 13)] == layers.variance.tolist()
    assert values["", "rate"] == wide_networks.measured_rate(layers.gradient).item()
    assert values["", "predicted_rate"] == mean_field.growth_rate(torch.tanh, 8)
    assert len(values) == 2 * 12 + 2


def test_a_residual_network_is_recorded_between_its_blocks():
    values = _values(network="residual", activation="relu")
    layers = wide_networks.residual_network(12, 48, 8, torch.relu, seed=3)
    assert [values[f"x{k}", "gradient"] for k in range(13)] == layers.gradient.tolist()
    assert values["", "growth"] == pytest.approx((layers.gradient[0] / layers.gradient[-1]).item())
    assert values["", "exponent"] == wide_networks.measured_exponent(layers).item()
    assert values["", "predicted_exponent"] == pytest.approx(mean_field.relu_growth_rate(8))
    start = mean_field.residual_start(torch.relu, 8)
    predicted = mean_field.residual_growth(mean_field.relu_growth_rate(8), 12, start)
    assert values["", "predicted_growth"] == pytest.approx(predicted)


def test_what_is_predicted_with_layer_norm_and_without_a_norm():
    assert _values(norm="layer", activation="relu")["", "predicted_rate"] == pytest.approx(1)
    residual = _values(norm="layer", activation="relu", network="residual")
    assert residual["", "predicted_growth"] == pytest.approx(13)
    assert ("", "exponent") not in residual
    assert not [metric for _, metric in _values(norm="none") if metric.startswith("predicted")]


def test_predictions_are_the_theorys():
    found = signal_propagation.predict("batch", "relu", 128)
    assert found.rate == pytest.approx(mean_field.relu_growth_rate(128))
    assert found.start == pytest.approx(mean_field.residual_start(torch.relu, 128))
    layer = signal_propagation.predict("layer", "relu", math.inf)
    assert (layer.rate, layer.start) == pytest.approx((1, 1)), "the factor of K blocks is K + 1"


@pytest.mark.parametrize(("name", "value"), [("activation", "cube"), ("network", "dense"), ("norm", "group")])
def test_unknown_networks_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{value}"):
        signal_propagation.run({**NET, name: value}, seed=0)


@pytest.mark.parametrize("name", explosion.ACTIVATIONS)
def test_every_activation_that_is_declared_has_a_rate(name):
    rate = mean_field.growth_rate(signal_propagation.ACTIVATIONS[name], 512)
    assert rate > 1.003 if name != "linear" else rate == pytest.approx(510 / 509)


# -- the probe ---------------------------------------------------------------------------------------------


def test_weight_gradients_are_autograds():
    images = data.load("digits", dtype=torch.float64)
    model = models.initialise(models.mlp(2, 8, "batch", in_features=64), seed=1).double()
    x, y = images.x_train[:32], images.y_train[:32]
    state = State(3, model, x, y, 0.1, images)
    found = {(layer, metric): value for layer, metric, value in probes.weight_gradients(state)}
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    for name, layer in models.layers(model):
        squared = layer.weight.grad.square().sum().item()
        assert found[name, "squared_gradient"] == pytest.approx(squared, rel=1e-10)
        assert found[name, "squared_weights"] == pytest.approx(layer.weight.square().sum().item(), rel=1e-12)
    assert len(found) == 2 * 3
    assert list(probes.weight_gradients(state, at=[0, 1])) == []
    assert len(list(probes.weight_gradients(state, at=[0, 3]))) == 6


def test_the_first_steps_can_be_watched_and_the_rest_left_out():
    settings = dict(EXPERIMENTS["depth_trainability"].runs("smoke", 0)[0].settings)
    rows = training.run(settings, seed=0)
    steps = {step for step, _, metric, _ in rows if metric == "squared_gradient"}
    assert steps == {0, 1, 10}
    assert {step for step, _, metric, _ in rows if metric == "train_accuracy"} == {0, settings["steps"]}


def test_the_arms_of_a_seed_start_from_the_same_weights():
    runs = EXPERIMENTS["depth_curvature"].runs("smoke", 1)
    standard, bn = (next(run for run in runs if run.arm == arm) for arm in ("standard", "bn"))
    one, other = (training.prepare(run.settings, seed=run.seed)[0] for run in (standard, bn))
    for (_, a), (_, b) in zip(models.layers(one), models.layers(other), strict=True):
        assert torch.equal(a.weight, b.weight)


# -- claims ------------------------------------------------------------------------------------------------


def _net(arm, seed, activation="relu", batch=32, variance=HE) -> Run:
    settings = {"activation": activation, "batch_size": batch, "weight_variance": variance}
    return Run(arm, seed, settings, explosion.SIGNAL)


def test_what_is_measured_on_random_networks(folder):
    runs = [_net("bn", s, phi, b) for s in SEEDS for phi in explosion.ACTIVATIONS for b in BATCHES]
    runs += [_net("bn", s, variance=v) for s in SEEDS for v in (HE / 100, HE * 100)]
    runs += [_net(arm, s, batch=b) for s in SEEDS for arm in ("layer", "bn_residual") for b in BATCHES]

    def rows(run):
        s = run.settings
        predicted = {8: 2.0, 32: 1.6, 128: 1.5, 512: LIMIT}[s["batch_size"]]
        if run.arm == "bn_residual":
            return [(0, "", "exponent", LIMIT - 0.05 if s["batch_size"] == 128 else 9.0)]
        if run.arm == "layer":
            return [(0, "", "rate", {8: 2.0, 32: 0.5, 128: 1.0, 512: 1.1}[s["batch_size"]])]
        factor = {HE: 1.0, HE / 100: 1.0, HE * 100: 1.25}[s["weight_variance"]]
        if s["activation"] == "tanh":
            predicted, factor = 1.2, 0.5 if s["batch_size"] == 8 else 1.0
        if s["activation"] == "linear":
            predicted, factor = 1.0, 0.9
        layers = [(0, "h1", "gradient", 8.0), (0, "h2", "gradient", 4.0)]
        return [*layers, (0, "", "rate", factor * predicted), (0, "", "predicted_rate", predicted)]

    record = _saved(runs, rows)
    expected = {
        "wikipedia-norm": 1 - LIMIT**-0.5,
        "squared-norm": 0.0,
        "any-activation": 0.5,
        "always-explodes": 0.6,
        "batch-size-helps": 1.6 / 1.5,
        "weight-variance": 0.25,
        "layer-norm-rate": 1.1**0.25 - 1,
        "residual-polynomial": 0.05,
    }
    for claim, value in expected.items():
        assert CLAIMS[claim].measure(record) == pytest.approx(dict.fromkeys(SEEDS, value), abs=1e-12), claim
    back = explosion.by_layer(record)
    assert set(zip(back["layer"], back["back"], strict=True)) == {("h1", 1), ("h2", 0)}
    assert len(back) == 2 * 5 * 5 * 4, "networks with other weights are left out"


def test_what_is_measured_in_training(folder):
    runs = [
        Run(arm, seed, {"model": {"depth": depth}, "lr": lr, "steps": 20}, ("depth", "lr"))
        for seed in SEEDS
        for arm in explosion.NETS
        for depth in (2, 50, 100)
        for lr in explosion.RATES
    ]

    def rows(run):
        depth, lr = run.settings["model"]["depth"], run.settings["lr"]
        if run.arm == "standard" and lr == 0.1:
            return [(4, "", "diverged_at", 4.0)]
        accuracy = {"bn": 0.3, "bn_residual": 0.95}.get(run.arm, 0.5) + (lr == 0.01) * 0.02 - depth / 1e4
        first = {"bn": 1e6, "standard": 10.0}.get(run.arm, 2.0)
        after = first / 100 if lr == 0.1 else first
        return [
            (0, "", "train_accuracy", 0.99),
            (20, "", "train_accuracy", accuracy),
            *[(0, layer, "squared_gradient", 1e9) for layer in ("linear1", "stem", "classifier")],
            *[(0, layer, "squared_gradient", v) for layer, v in (("linear2", 3 * first), ("linear3", 3.0))],
            *[(1, layer, "squared_gradient", v) for layer, v in (("linear2", 3 * after), ("linear3", 3.0))],
        ]

    record = _saved(runs, rows)
    expected = {"no-explosion": 1e5, "deep-untrainable": 0.315, "skips-train": 0.965, "one-step": 0.01}
    for claim, value in expected.items():
        assert CLAIMS[claim].measure(record) == pytest.approx(dict.fromkeys(SEEDS, value)), claim
    assert explosion.best_accuracy(record, "bn", 2) == pytest.approx(dict.fromkeys(SEEDS, 0.3198))
    lost = explosion.trained(record)
    assert set(lost[(lost["arm"] == "standard") & (lost["lr"] == 0.1)]["accuracy"]) == {0.1}
    assert set(explosion.gradients(record)["layer"]) == {"linear2", "linear3"}


def test_a_gradient_that_vanishes_has_an_infinite_range(folder):
    run = Run("bn", 0, {"model": {"depth": 3}, "lr": 0.1, "steps": 1}, ("depth", "lr"))
    rows = [(0, layer, "squared_gradient", v) for layer, v in (("linear2", 0.0), ("linear3", 1.0))]
    single = [(1, "linear2", "squared_gradient", 1.0)]
    table = explosion.ranges(_saved([run], lambda run: rows + single))
    assert table[["step", "value"]].to_numpy().tolist() == [[0, math.inf]]


def test_what_is_measured_of_the_curvature(folder):
    runs = [
        Run(arm, seed, {"model": {"depth": depth}, "init": init}, ("depth", "init"))
        for seed in SEEDS
        for arm in ("standard", "bn")
        for depth in (2, 10, 20, 40)
        for init in ("he_normal", "glorot_normal")
    ]

    def rows(run):
        depth = run.settings["model"]["depth"]
        if run.settings["init"] == "glorot_normal" or run.arm == "standard":
            return [(0, "", "sharpness", 2.0)]
        return [(0, "", "sharpness", {2: 0.5, 10: 1.0, 20: 8.0, 40: 100.0}[depth])]

    record = _saved(runs, rows)
    assert CLAIMS["smooth-shallow"].measure(record) == dict.fromkeys(SEEDS, 0.5)
    assert CLAIMS["rough-deep"].measure(record) == dict.fromkeys(SEEDS, 4.0)
    assert explosion.sharper(record, 20, "glorot_normal") == dict.fromkeys(SEEDS, 1.0)
