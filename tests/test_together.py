"""Several seeds at once give what single runs give, up to rounding; and every network goes its own way."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch

from bnlib import data, models, together, training
from bnlib.norms import BatchNorm
from bnlib.updates import Alone, How, Stacked

#: how far rows may be apart, in units of the largest number of their metric: in float64, and in float32,
#: where training amplifies a rounding of 1e-7
TIGHT, LOOSE = 1e-9, 1e-3

MLP = {"name": "mlp", "depth": 2, "width": 12}
CNN = {"name": "digit_cnn", "width": 3}
SEEDS = [0, 3, 5]


def _settings(model: dict = CNN, norm: str = "batch", dtype: str = "float64", **more) -> dict:
    return {
        "dataset": "digits",
        "model": model,
        "norm": norm,
        "where": "everywhere",
        "init": "glorot_uniform",
        "lr": 0.1,
        "steps": 9,
        "batch_size": 16,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "dtype": dtype,
        "eval_every": 4,
        "probes": {"landscape": {"every": 4, "factors": [0.5, 2]}, "weight_gradients": {"every": 3}},
        **more,
    }


def _compare(one: list, other: list, tolerance: float) -> None:
    assert [row[:3] for row in one] == [row[:3] for row in other]
    scales: dict[str, float] = {}
    for _, _, metric, value in one:
        scales[metric] = max(scales.get(metric, 0.0), abs(value))
    for (step, layer, metric, value), (*_, found) in zip(one, other, strict=True):
        assert found == pytest.approx(value, abs=tolerance * scales[metric], rel=0), (step, layer, metric)


def _alone(settings: dict) -> list[list]:
    return [training.run(settings, seed=seed) for seed in SEEDS]


@pytest.mark.parametrize("norm", sorted(together.NORMS))
@pytest.mark.parametrize("model", [MLP, CNN], ids=["mlp", "cnn"])
def test_rows_are_those_of_single_runs(model, norm):
    if (norm, model) == ("instance", MLP):
        with pytest.raises(ValueError, match="use fewer groups"):
            together.run(_settings(model, norm), seeds=SEEDS)
        return
    settings = _settings(model, norm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where vmap falls back to a loop
        found = together.run(settings, seeds=SEEDS)
    for one, other in zip(_alone(settings), found, strict=True):
        _compare(one, other, TIGHT)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_in_float32_too(layout):
    settings = _settings(dtype="float32", momentum=0.0, steps=6)
    for one, other in zip(
        _alone(settings), together.run(settings, seeds=SEEDS, how=How(layout=layout)), strict=True
    ):
        _compare(one, other, LOOSE)


def test_vgg_takes_the_same_steps():
    """Parameters and running statistics after two steps, and a network's tensors are views of the stack."""
    x = torch.randn(24, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = data.Dataset("made up", x, torch.arange(24) % 10, x, torch.arange(24) % 10)
    loss = training.LOSSES["cross_entropy"]
    several = [models.initialise(models.vgg(width=1 / 32, norm="batch"), seed=s).double() for s in SEEDS]
    single = copy.deepcopy(several)
    indices = torch.arange(24).view(3, 8)
    stacked = Stacked(several, images, loss, lambda parameters: torch.optim.SGD(parameters, 0.1))
    values = [stacked(indices) for _ in range(2)][-1]
    for k, model in enumerate(single):
        update = Alone(model, images, loss, torch.optim.SGD(model.parameters(), 0.1))
        value = [update(indices[k : k + 1]) for _ in range(2)][-1]
        assert value.item() == pytest.approx(values[k].item(), rel=1e-10)
        theirs = several[k].state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor.double(), theirs[name].double(), rtol=1e-8, atol=1e-10), name
    name = "conv1.weight"
    stacked.parameters[name].data[1].zero_()
    assert several[1].get_parameter(name).eq(0).all() and several[0].get_parameter(name).ne(0).any()


def test_a_network_that_diverges_stops_and_the_others_go_on(monkeypatch):
    """The second network starts from weights of 1e30; what is recorded of it is what a single run records."""
    initialise = models.initialise

    def one_is_huge(model, *arguments, seed=0, **named):
        model = initialise(model, *arguments, seed=seed, **named)
        if seed == SEEDS[1]:
            with torch.no_grad():
                model.conv2.weight *= 1e30
        return model

    monkeypatch.setattr(models, "initialise", one_is_huge)
    settings = _settings(norm="none", dtype="float32", momentum=0.0, steps=60, eval_every=20, probes={})
    ticks: list[int] = []
    found = together.run(settings, seeds=SEEDS, tick=ticks.append)
    assert sum(ticks) == 60 * len(SEEDS)
    expected = _alone(settings)
    stopped = [[row for row in rows if row[2] == "diverged_at"] for rows in found]
    assert [len(rows) for rows in stopped] == [0, 1, 0]
    assert [row[:3] for row in found[1]] == [row[:3] for row in expected[1]]
    assert all(math.isfinite(row[3]) for row in found[1])
    for k in (0, 2):
        _compare(expected[k], found[k], LOOSE)


def test_one_seed_is_an_ordinary_run():
    settings = _settings(dtype="float32")
    assert together.run(settings, seeds=[4]) == [training.run(settings, seed=4)]


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "noisy_batch"},
        {"norm": "batch_renorm"},
        {"norm": "weight"},
        {"optimiser": "adam"},
        {"train_only": "gamma_beta"},
        {"hidden_lr": 0.1},
        {"decayed": "hidden"},
        {"dataset": {"n": 8, "width": 4}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_not_possible_is_refused(change):
    settings = {**_settings(), **change}
    assert together.possible(_settings()) and not together.possible(settings)
    with pytest.raises(ValueError, match="run them one by one"):
        together.run(settings, seeds=SEEDS)


def test_batch_norm_under_vmap_has_exact_second_derivatives():
    """Oracle: each network's own Hessian-vector product."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 4, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    v = torch.randn(3, 6, 4, 2, 2, dtype=torch.float64, generator=generator)
    gammas = torch.rand(3, 4, dtype=torch.float64, generator=generator)

    def value(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        norm = BatchNorm(4).double()
        tensors = {"weight": gamma, "running_mean": 0 * gamma, "running_var": 0 * gamma}
        count = {"num_batches_tracked": (0 * gamma[0]).long()}
        y = torch.func.functional_call(norm, {**tensors, **count}, (x,))
        return (y**3).sum() + (y.sin() * x).sum()

    def twice(total: torch.Tensor) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(total, x, create_graph=True)
        return torch.autograd.grad((gradient * v).sum(), x)[0]

    found = twice(torch.func.vmap(value)(x, gammas).sum())
    expected = twice(sum(value(x[k], gammas[k]) for k in range(3)))
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
