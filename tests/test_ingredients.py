"""Chapter 15: batch normalization taken apart, beside what it is made of; what its claims measure."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bnlib import data, models, norms, records, training
from bnlib.experiments import CLAIMS, EXPERIMENTS, ingredients
from bnlib.specs import SCALES, Run

SEEDS = range(5)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 3


def pair(affine: bool = True) -> tuple[norms.BatchNorm, norms.DetachedBatchNorm]:
    pair = norms.BatchNorm(5, affine=affine).double(), norms.DetachedBatchNorm(5, affine=affine).double()
    for module in pair if affine else ():
        with torch.no_grad():
            module.weight.copy_(torch.linspace(0.5, 2, 5))
            module.bias.copy_(torch.linspace(-1, 1, 5))
    return pair


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(12, 5), (4, 5, 3, 2)])
def test_forward_is_batch_norms_and_the_statistics_are_constants_for_the_gradient(shape, affine):
    whole, detached = pair(affine)
    x, dy = values(*shape).requires_grad_(), values(*shape, seed=1)
    ours, theirs = detached(x), whole(x)
    torch.testing.assert_close(ours, theirs)
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(detached.get_buffer(name), buffer)

    over = [d for d in range(len(shape)) if d != 1]
    wide = [1, -1, *[1] * (len(shape) - 2)]
    mean, var = x.detach().mean(over).view(wide), x.detach().var(over, correction=0).view(wide)
    gamma = detached.weight.view(wide) if affine else 1.0
    (dx,) = torch.autograd.grad(ours, x, dy, retain_graph=True)
    torch.testing.assert_close(dx, gamma / (var + detached.eps).sqrt() * dy)
    oracle = gamma * (x - mean) / (var + detached.eps).sqrt()
    torch.testing.assert_close(dx, torch.autograd.grad(oracle, x, dy)[0])
    assert dx.sum(over).abs().max() > 1  # batch norm's own sums to zero
    for name, parameter in whole.named_parameters():
        mine = torch.autograd.grad(ours, detached.get_parameter(name), dy, retain_graph=True)
        torch.testing.assert_close(mine, torch.autograd.grad(theirs, parameter, dy, retain_graph=True))

    whole.eval(), detached.eval()
    torch.testing.assert_close(detached(x), whole(x))


def test_one_value_per_channel_raises():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        pair()[1](values(1, 5))


@pytest.mark.parametrize(
    "model", [{"name": "mlp", "depth": 6, "width": 20, "in_features": 64}, {"name": "digit_cnn", "size": 8}]
)
def test_normalised_once_a_network_does_what_batch_norm_does_on_these_images(model):
    x = data.load("digits", dtype=torch.float64).x_train[:200]
    plain, bn = (
        models.initialise(models.build(**model, norm=norm, where="everywhere"), seed=3).double()
        for norm in ("none", "batch")
    )
    last = plain.classifier.weight.clone()
    assert models.normalise_start(plain, x) is plain
    assert torch.equal(plain.classifier.weight, last)
    for module in bn.modules():
        if isinstance(module, norms.BatchNorm):
            module.eps = 0.0
    torch.testing.assert_close(plain(x), bn.train()(x))

    outputs = []
    layers = [layer for _, layer in models.layers(plain)][:-1]
    hooks = [layer.register_forward_hook(lambda layer, x, y: outputs.append(y)) for layer in layers]
    plain(x)
    for hook in hooks:
        hook.remove()
    for output in outputs:
        over = [0, *range(2, output.ndim)]
        torch.testing.assert_close(output.mean(over), torch.zeros(output.shape[1]).double())
        torch.testing.assert_close(output.var(over, correction=0), torch.ones(output.shape[1]).double())


def test_what_cannot_be_normalised_once_is_explained():
    x = data.load("digits").x_train[:50]
    with pytest.raises(ValueError, match="linear1 has no bias"):
        models.normalise_start(models.mlp(in_features=64, depth=2, width=8, norm="batch"), x)
    with pytest.raises(ValueError, match="A channel of linear1 is the same for all images"):
        models.normalise_start(models.mlp(in_features=64, depth=2, width=8), x[:1].repeat(9, 1, 1, 1))


def test_a_declared_run_starts_normalised():
    settings = {
        "dataset": "digits",
        "model": {"name": "mlp", "depth": 3, "width": 16},
        "norm": "none",
        "where": "everywhere",
        "init": "glorot_uniform",
        "normalise_start": 100,
    }
    model, dataset, rest = training.prepare(settings, seed=0)
    first = model.linear1(dataset.x_train[:100].flatten(1))
    torch.testing.assert_close(first.var(0, correction=0), torch.ones(16))
    assert rest == {} and all(p.requires_grad for p in model.parameters())
    assert isinstance(model, nn.Sequential)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["ingredients", "ingredients_deep"])
def test_the_arms_differ_in_their_parts_only(name, scale):
    groups: dict[str, list[dict]] = {}
    for run in EXPERIMENTS[name].runs(scale, 0):
        rest = {k: v for k, v in run.settings.items() if k not in ("norm", "normalise_start")}
        groups.setdefault(run.id.removeprefix(run.arm), []).append(rest)
    for rests in groups.values():
        assert len(rests) == len(ingredients.ARMS)
        assert all(rest == rests[0] for rest in rests)


def record_of(accuracy, monkeypatch, folder, depths=(None,), rates=(0.1, 0.3, 1.0)) -> records.Record:
    """`accuracy(arm, lr, depth)` after 60 steps, with a loss that falls as it rises; None: diverged."""
    monkeypatch.setenv("BNLIB_RECORDS", str(folder))
    runs = [
        Run(arm, seed, {"lr": lr, "depth": depth, "steps": 60}, ("lr", "depth"))
        for seed in SEEDS
        for arm in ingredients.ARMS
        for lr in rates
        for depth in depths
    ]

    def rows(arm, lr, depth):
        end = accuracy(arm, lr, depth)
        if end is None:
            return [(2, "", "diverged_at", 2.0)]
        return [
            (0, "", "test_accuracy", 0.1),
            (55, "", "train_loss", 1 - end),
            (60, "", "test_accuracy", end),
        ]

    finished = {
        run.digest: {"rows": rows(run.arm, run.settings["lr"], run.settings["depth"]), "seconds": 0.0}
        for run in runs
    }
    return records.save("toy", "smoke", runs, finished, {})


def test_what_is_measured_on_the_vgg(tmp_path, monkeypatch):
    best = {"standard": 0.2, "start": 0.5, "forward": 0.3, "bn": 0.7}
    record = record_of(lambda arm, lr, _: best[arm] if lr == 0.3 else 0.1, monkeypatch, tmp_path)
    for claim, value in {"once-suffices": 0.6, "moments-suffice": 40.0, "always-over-once": -20.0}.items():
        assert CLAIMS[claim].measure(record) == pytest.approx(dict.fromkeys(SEEDS, value)), claim
    worse = record_of(lambda arm, *_: 0.1 if arm == "bn" else 0.5, monkeypatch, tmp_path)
    assert CLAIMS["once-suffices"].measure(worse) == {}


def test_what_is_measured_at_depth(tmp_path, monkeypatch):
    """The shallow networks train at any rate; of the deep ones each arm up to its own."""
    up_to = {"standard": 0.0, "start": 0.1, "forward": 0.0, "bn": 1.0}

    def accuracy(arm, lr, depth):
        if depth == 2:
            return 0.99
        return 0.9 if lr <= up_to[arm] else None if arm == "start" else 0.3

    record = record_of(accuracy, monkeypatch, tmp_path, depths=(2, 12))
    assert ingredients.largest_trained_rate(record, "bn") == dict.fromkeys(SEEDS, 1.0)
    expected = {"rates-not-from-start": 10.0, "rates-from-gradient": 20.0, "once-deep": 60.0}
    for claim, value in expected.items():
        assert CLAIMS[claim].measure(record) == pytest.approx(dict.fromkeys(SEEDS, value)), claim
