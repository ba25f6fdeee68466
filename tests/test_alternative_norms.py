"""The alternatives to batch norm: against torch's own layers, their equations, pencil and paper, autograd."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnlib import data, models, training
from bnlib.alternative_norms import (
    BatchRenorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RMSNorm,
    SampleNorm,
    sample_norm,
    weight_normalised,
)
from bnlib.norms import BatchNorm

EXACT = {"rtol": 0, "atol": 1e-12}
VECTORS, IMAGES = (6, 8), (4, 8, 3, 2)
NAMES = ["layer", "instance", "group", "rms", "batch_renorm"]


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours, theirs, **(tolerance or EXACT))


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shifted(module):
    """In float64, with gamma and beta that are not 1 and 0."""
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-0.5, 2, len(module.weight)))
        module.bias.copy_(torch.linspace(1, -1, len(module.bias)))
    return module.double()


def affine(module, x_hat):
    shape = (1, -1) if x_hat.ndim == 2 else (1, -1, 1, 1)
    return module.weight.view(shape) * x_hat + module.bias.view(shape)


# -- over one sample's values ----------------------------------------------------------------------------


def torch_layer(x, eps=1e-5):
    return F.layer_norm(x, x.shape[1:], eps=eps)


TORCH = {
    LayerNorm: torch_layer,
    InstanceNorm: lambda x, eps=1e-5: F.instance_norm(x, eps=eps),
    RMSNorm: lambda x, eps=1e-5: F.rms_norm(x, x.shape[1:], eps=eps),
    GroupNorm: lambda x, eps=1e-5: F.group_norm(x, 8, eps=eps),
}


@pytest.mark.parametrize("shape", [VECTORS, IMAGES])
@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_agrees_with_torch_forward_and_backward(kind, shape, eps):
    if shape == VECTORS and kind in (InstanceNorm, GroupNorm):
        with pytest.raises(ValueError, match="use fewer groups, or batch norm"):
            kind(8)(randn(*shape))
        return
    module = shifted(kind(8, eps=eps))
    x = (randn(*shape) + 2).requires_grad_()
    theirs = affine(module, TORCH[kind](x, eps))
    dy = randn(*shape, seed=1)
    close(module(x), theirs)
    wanted = [x, *module.parameters()]
    for one, other in zip(
        torch.autograd.grad(module(x), wanted, dy), torch.autograd.grad(theirs, wanted, dy), strict=True
    ):
        close(one, other)
    close(module.eval()(x), theirs)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [VECTORS, IMAGES])
def test_the_formula_agrees_with_torch_and_the_module(groups, shape):
    x = randn(*shape) + 2
    close(sample_norm(x, groups), F.group_norm(x, groups))
    module = shifted(GroupNorm(8, groups))
    close(module(x), affine(module, sample_norm(x, groups)))
    uncentred = shifted(SampleNorm(8, groups, centred=False))
    parts = x.reshape(len(x), groups, -1)
    expected = (parts / (parts.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(shape)
    close(uncentred(x), affine(uncentred, expected))


def test_torchs_own_layers():
    x, images = randn(*VECTORS), randn(*IMAGES)
    for ours, theirs, values in (
        (LayerNorm(8), nn.LayerNorm(8), x),
        (RMSNorm(8), nn.RMSNorm(8, eps=1e-5), x),
        (GroupNorm(8, 2), nn.GroupNorm(2, 8), images),
        (InstanceNorm(8), nn.InstanceNorm2d(8), images),
    ):
        close(ours.double()(values), theirs.double()(values))


def test_tiny_example():
    """One sample (1, 3, 2, 6): mean 3, variance 3.5, mean square 12.5; in two groups 2 +- 1 and 4 +- 2."""
    x = torch.tensor([[1.0, 3.0, 2.0, 6.0]], dtype=torch.float64)
    close(sample_norm(x, 1, eps=0.0), (x - 3) / math.sqrt(3.5))
    close(sample_norm(x, 2, eps=0.0), torch.tensor([[-1.0, 1.0, -1.0, 1.0]], dtype=torch.float64))
    close(sample_norm(x, 1, centred=False, eps=0.0), x / math.sqrt(12.5))
    close(sample_norm(x, 1, eps=0.5), (x - 3) / 2)
    assert GroupNorm(4).groups == 4
    assert [GroupNorm(channels).groups for channels in (16, 12, 10, 7)] == [8, 4, 2, 1]


@pytest.mark.parametrize("name", ["layer", "instance", "group", "rms", "batch_renorm"])
def test_first_and_second_derivatives(name):
    module = shifted(models.NORMS[name](4))
    if name == "batch_renorm":
        module = shifted(BatchRenorm(4, limits=(1.0, 0.0)))  # else r and d are constants that autograd sees
    names = [key for key, _ in module.named_parameters()]

    def f(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), x)

    inputs = (randn(3, 4, 2, 2).requires_grad_(), *(p.detach().requires_grad_() for p in module.parameters()))
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_what_raises():
    with pytest.raises(ValueError, match="nothing is left when"):
        InstanceNorm(3)(torch.ones(5, 3))
    with pytest.raises(ValueError, match="nothing is left when"):
        InstanceNorm(3).eval()(torch.ones(5, 3, 1, 1))
    with pytest.raises(ValueError, match="8 channels cannot be split into 3"):
        GroupNorm(8, 3)(torch.ones(2, 8))
    for module in (LayerNorm(3), RMSNorm(3), BatchRenorm(3)):
        with pytest.raises(ValueError, match="Expected"):
            module(torch.ones(2, 4))
        with pytest.raises(ValueError, match="Expected"):
            module(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="more than 1 value"):
        BatchRenorm(3)(torch.ones(1, 3))
    close(RMSNorm(1, eps=0.0)(torch.tensor([[-2.0]])), torch.tensor([[-1.0]]))


# -- batch renormalization -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [VECTORS, IMAGES])
def test_batch_renorm_follows_its_equations(shape):
    module = shifted(BatchRenorm(8, momentum=0.2, start=1, r_full=5, d_full=3))
    over = [0, 2, 3][: len(shape) - 1]
    view = (1, -1) if len(shape) == 2 else (1, -1, 1, 1)
    mean, deviation = torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    clipped = set()
    for seen in range(8):
        x = (randn(*shape, seed=seen) * 1.7 ** (seen % 3) + seen).requires_grad_()
        r_max, d_max = 1 + 2 * min(1, max(0, (seen - 1) / 4)), 5 * min(1, max(0, (seen - 1) / 2))
        assert module.limits() == pytest.approx((r_max, d_max))
        batch_mean = x.mean(over)
        batch_deviation = (x.var(over, correction=0) + 1e-5).sqrt()
        r_free = (batch_deviation / deviation).detach()
        r = r_free.clamp(1 / r_max, r_max)
        clipped |= set((r != r_free).tolist())
        d = ((batch_mean - mean) / deviation).detach().clamp(-d_max, d_max)
        x_hat = (x - batch_mean.view(view)) / batch_deviation.view(view) * r.view(view) + d.view(view)
        expected = affine(module, x_hat)
        found = module(x)
        close(found, expected)
        dy, wanted = randn(*shape, seed=50 + seen), [x, *module.parameters()]
        gradients = (torch.autograd.grad(y, wanted, dy) for y in (found, expected))
        for one, other in zip(*gradients, strict=True):
            close(one, other, rtol=1e-12, atol=1e-12)
        new = max(0.2, 1 / (seen + 1))
        mean = mean + new * (batch_mean.detach() - mean)
        deviation = deviation + new * (batch_deviation.detach() - deviation)
        close(module.running_mean, mean)
        close(module.running_deviation, deviation)
    assert clipped == {True, False}
    module.eval()
    close(module(x), affine(module, (x - mean.view(view)) / deviation.view(view)))
    assert module.num_batches_tracked == 8, "evaluation must not count"
    module.reset_running_stats()
    assert (module.running_mean == 0).all()
    assert (module.running_deviation == 1).all()
    assert module.limits() == (1, 0)


@pytest.mark.parametrize("shape", [VECTORS, IMAGES])
def test_batch_renorm_between_its_extremes(shape):
    """Limits 1 and 0: batch norm in training.  No limits: what evaluation mode computes, in training."""
    x, dy = randn(*shape) * 2 + 1, randn(*shape, seed=1)
    ours, theirs = shifted(BatchRenorm(8, limits=(1.0, 0.0))), shifted(BatchNorm(8))
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    close(ours(one), theirs(other))
    ours(one).backward(dy), theirs(other).backward(dy)
    close(one.grad, other.grad)
    free = shifted(BatchRenorm(8, limits=(1e9, 1e9)))
    free(randn(*shape, seed=2))
    before = {name: value.clone() for name, value in free.named_buffers()}
    trained = free(x)
    for name, value in before.items():
        free.get_buffer(name).copy_(value)
    close(trained, free.eval()(x), rtol=0, atol=1e-11)


# -- of the weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv2d(3, 4, 3)])
def test_weight_norm_is_torchs(layer):
    layer = layer.double()
    weight = layer.weight.detach().clone()
    ours = weight_normalised(layer)
    close(ours.weight, weight)
    g, v = ours.parametrizations.weight.original0, ours.parametrizations.weight.original1
    close(g, weight.flatten(1).norm(dim=1))
    assert torch.equal(v, weight)
    theirs = nn.Linear(5, 4) if isinstance(layer, nn.Linear) else nn.Conv2d(3, 4, 3)
    theirs = nn.utils.parametrizations.weight_norm(theirs.double())
    with torch.no_grad():
        g.mul_(torch.linspace(1, 2, 4)), v.mul_(3).add_(0.1)
        theirs.parametrizations.weight.original0.copy_(g.view(-1, *[1] * (v.ndim - 1)))
        theirs.parametrizations.weight.original1.copy_(v)
    close(ours.weight, theirs.weight)
    dw = randn(*v.shape, seed=2)
    gradients = torch.autograd.grad(ours.weight, [g, v], dw)
    expected = torch.autograd.grad(theirs.weight, list(theirs.parametrizations.weight.parameters()), dw)
    close(gradients[0], expected[0].flatten())
    close(gradients[1], expected[1])
    inner = (gradients[1] * v).flatten(1).sum(1)
    close(inner, torch.zeros_like(inner)), "the direction's gradient is orthogonal to it"


def test_weight_norm_in_the_models():
    """It starts as the standard network, computes the same, and has a length for each output on top."""
    for name, arguments in (
        ("vgg", {"width": 0.1}),
        ("digit_cnn", {"size": 8}),
        ("mlp", {"width": 20}),
        ("deep_linear", {"depth": 4}),
        ("residual_mlp", {"depth": 2, "width": 20}),
    ):
        plain, made = (models.build(name, norm=norm, **arguments) for norm in ("none", "weight"))
        models.initialise(plain, "he_normal", seed=3), models.initialise(made, "he_normal", seed=3)
        assert [n for n, _ in models.layers(made)] == [n for n, _ in models.layers(plain)]
        for (_, one), (_, other) in zip(models.layers(plain), models.layers(made), strict=True):
            close(other.weight, one.weight, rtol=1e-6, atol=0)
            assert (one.bias is None) == (other.bias is None)
            assert one.bias is None or torch.equal(one.bias, other.bias)
        assert models.blocks(made) == models.blocks(plain)
    only = models.vgg(width=0.1, norm="weight", where=[3])
    assert [n for n, m in models.layers(only) if nn.utils.parametrize.is_parametrized(m)] == ["conv3"]


# -- in networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "weight"])
def test_trains_a_digit_network(name):
    digits = data.load("digits")
    model = models.initialise(models.digit_cnn(norm=name, size=8), "he_normal", seed=1)
    rows = training.fit(model, digits, lr=0.1, steps=80, batch_size=64, seed=0)
    losses = [value for _, _, metric, value in rows if metric == "train_loss"]
    assert losses[-1] < 0.6 < 2 < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_has_a_bias_where_a_bias_has_an_effect(name):
    images = data.load("digits", dtype=torch.float64).x_train[:32]
    layer = nn.Conv2d(1, 4, 3).double()
    module = (BatchRenorm(4) if name == "batch_renorm" else GroupNorm(4, 2)).double()
    module = module if name in ("batch_renorm", "group") else models.NORMS[name](4).double()
    z = module(layer(images))
    (gradient,) = torch.autograd.grad((z * randn(*z.shape)).sum(), layer.bias)
    kept = models.digit_cnn(norm=name).conv1.bias is not None
    assert kept == (gradient.abs().max() > 1e-9) == (name not in ("instance", "batch_renorm"))


@pytest.mark.parametrize("name", NAMES)
def test_arms_start_from_the_same_weights(name):
    for (_, one), (_, other) in zip(
        models.layers(models.vgg(width=0.1)), models.layers(models.vgg(width=0.1, norm=name)), strict=True
    ):
        assert torch.equal(one.weight, other.weight)
    made = models.initialise(models.digit_cnn(name), gamma=0.1)
    assert (made.norm1.weight == 0.1).all()


# -- without normalization -------------------------------------------------------------------------------


def test_fixup_starts_as_the_zero_function_with_small_first_layers():
    plain, made = (models.residual_mlp(depth=9, width=32, in_features=64) for _ in range(2))
    models.initialise(plain, "he_normal", seed=2), models.initialise(made, "fixup", seed=2)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    assert (made(x) == 0).all()
    assert torch.equal(made.stem.weight, plain.stem.weight)
    close(made.block4.linear1.weight, plain.block4.linear1.weight / 3, rtol=1e-6, atol=0)
    assert (made.block4.linear2.weight == 0).all()
    F.cross_entropy(made(x), torch.arange(5)).backward()
    assert made.classifier.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="is for residual networks"):
        models.initialise(models.mlp(), "fixup")
