"""l_p normalization: pencil and paper, Gaussian constants, autograd, and batch norm where it must be one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bnlib import data, models, probes, training
from bnlib.lp_norms import LpNorm
from bnlib.norms import BatchNorm

ORDERS = [1, 2, 3, math.inf]
SHAPES = [(12, 3), (4, 3, 3, 2)]
NAMES = ["l1", "l2", "linf", "l1_centred", "l2_centred", "linf_centred"]
EXACT = {"rtol": 0, "atol": 1e-12}


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours, theirs, **(tolerance or EXACT))


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm(channels=3, p=2, affine=True, **settings):
    """In float64, with gamma and beta that are not 1 and 0."""
    made = LpNorm(channels, p, **settings).double()
    if affine:
        with torch.no_grad():
            made.weight.copy_(torch.linspace(-0.5, 2, channels))
            made.bias.copy_(torch.linspace(1, -1, channels))
    return made


@pytest.mark.parametrize(
    ("p", "scale", "centred_scale"),
    [(1, 3.0, 2.5), (2, 3.5355339059, 2.9154759474), (math.inf, 6.0, 4.0)],
)
def test_tiny_example(p, scale, centred_scale):
    """y = (1, -2, 3, 6): the mean is 2."""
    y = torch.tensor([[1.0], [-2.0], [3.0], [6.0]], dtype=torch.float64)
    close(norm(1, p).scale(y).item(), scale, rtol=0, atol=1e-9)
    close(norm(1, p, affine=False, eps=0.0)(y), (y - 2) / scale, rtol=0, atol=1e-9)
    close(norm(1, p, affine=False, eps=0.0, centred=True)(y), (y - 2) / centred_scale, rtol=0, atol=1e-9)
    close(norm(1, p, affine=False, eps=0.7)(y), (y - 2) / math.sqrt(scale**2 + 0.7), rtol=0, atol=1e-9)


def test_gaussian_constants():
    """E max |z_i| of m standard normal values, and C_1 = sqrt(2 / pi), C_2 = 1."""
    z = randn(2**17, 20)
    close(norm(20, 1).scale(z).mean().item(), math.sqrt(2 / math.pi), rtol=1e-3, atol=0)
    close(norm(20, 2).scale(z).mean().item(), 1.0, rtol=1e-3, atol=0)
    variance = norm(20, 1, affine=False)(z).var(0, correction=0).mean().item()
    assert variance == pytest.approx(math.pi / 2, rel=2e-3)
    for m, largest in ((128, 2.8276), (1024, 3.4419)):
        scale = norm(2000, math.inf).scale(randn(m, 2000, seed=m)).mean().item()
        assert scale == pytest.approx(largest, rel=0.01)
    assert norm(20, math.inf).scale(z).mean().item() == pytest.approx(4.5903, rel=0.03)


def test_the_maximum_makes_the_output_depend_on_the_size_of_the_batch():
    spread = {}
    for p in (1, 2, math.inf):
        spread[p] = [norm(50, p, affine=False)(randn(m, 50, seed=m)).std().item() for m in (128, 8192)]
    for p in (1, 2):
        assert spread[p][0] == pytest.approx(spread[p][1], rel=0.03)
    assert spread[math.inf][0] > 1.3 * spread[math.inf][1]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centred_l2_norm_is_batch_norm(shape):
    ours, theirs = norm(centred=True, momentum=0.3), BatchNorm(3, momentum=0.3).double()
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if "running" not in k}, strict=False)
    m = math.prod(shape) // 3
    for update in range(4):
        results = []
        for module in (ours, theirs):
            y = (randn(*shape, seed=update) * 2 + 3).requires_grad_()
            z = module(y)
            inputs, along = [y, *module.parameters()], randn(*shape, seed=9)
            gradients = torch.autograd.grad(z, inputs, along, create_graph=True)
            second = torch.autograd.grad(gradients[0].pow(3).sum(), y)
            results.append((z, *gradients, *second))
        for a, b in zip(*results, strict=True):
            close(a, b, rtol=1e-11, atol=1e-11)
    close(ours.running_mean, theirs.running_mean)
    # Batch norm's running variance is the unbiased one; both start at 1.
    start = 0.7**4
    close(ours.running_square - start, (theirs.running_var - start) * (m - 1) / m)
    with torch.no_grad():
        theirs.running_var.copy_(ours.running_square)
    y = randn(*shape, seed=5)
    close(ours.eval()(y), theirs.eval()(y))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_papers_l2_norm_is_batch_norm_only_if_the_mean_is_zero(shape):
    over = [d for d in range(len(shape)) if d != 1]
    y = randn(*shape)
    y = (y - y.mean(over, keepdim=True)) / y.std(over, correction=0, keepdim=True)
    close(norm(affine=False)(y), BatchNorm(3).double()(y))
    shifted = norm(affine=False, eps=0.0)(2 * y + 3)
    close(shifted.var(over, correction=0), torch.full((3,), 4 / (4 + 9), dtype=torch.float64))
    assert (shifted - BatchNorm(3).double()(2 * y + 3)).abs().max() > 0.3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("centred", [False, True])
def test_the_scale_of_the_input_does_not_matter(shape, p, centred):
    y, module = randn(*shape) + 1, norm(p=p, centred=centred, eps=0.0)
    close(module(7 * y), module(y))
    over = [d for d in range(len(shape)) if d != 1]
    close(module(y).mean(over), module.bias.detach())
    shift = (module(y + 5) - module(y)).abs().max()
    assert (shift < 1e-12) if centred else (shift > 0.1)


@pytest.mark.parametrize("shape", [(6, 2), (2, 2, 2, 2)])
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_first_and_second_derivatives(shape, p, centred, training):
    module = norm(2, p, centred=centred).train(training)
    names = [name for name, _ in module.named_parameters()]

    def f(y, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), y)

    inputs = (randn(*shape).requires_grad_(), *(p.detach().requires_grad_() for p in module.parameters()))
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("centred", [False, True])
def test_running_statistics(p, centred):
    module, mean, square = norm(p=p, centred=centred, momentum=0.25), 0.0, 1.0
    for update in range(3):
        y = randn(10, 3, seed=update) + 2
        module(y)
        batch = y.mean(0)
        values = (y - batch if centred else y).abs()
        scale = values.amax(0) if math.isinf(p) else values.pow(p).mean(0).pow(1 / p)
        mean, square = 0.75 * mean + 0.25 * batch, 0.75 * square + 0.25 * scale**2
    close(module.running_mean, mean)
    close(module.running_square, square)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    expected = (y - mean) / (square + 1e-5).sqrt() * module.weight + module.bias
    close(module.eval()(y), expected)
    close(module(y[:1]), expected[:1])  # one sample is enough
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.reset_running_stats()
    assert (module.running_mean == 0).all() and (module.running_square == 1).all()


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("centred", [False, True])
def test_a_channel_without_a_signal_is_harmless(p, centred):
    y = randn(8, 3)
    y[:, 1] = 0
    y.requires_grad_()
    module = norm(p=p, centred=centred)
    z = module(y)
    close(z[:, 1], module.bias[1].expand(8))
    gradients = torch.autograd.grad(z.pow(2).sum(), [y, *module.parameters()])
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("p", ORDERS)
def test_float32_and_channels_last(p):
    y = randn(64, 3, 24, 24) * 2 + 1
    exact = norm(p=p)(y)
    module = norm(p=p).float()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        z = module(y.float().contiguous(memory_format=memory_format))
        assert z.is_contiguous(memory_format=memory_format)
        close(z.double(), exact, rtol=0, atol=2e-5)


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match="at least 1"):
        LpNorm(3, 0.5)
    for shape in [(3,), (2, 3, 4), (5, 4)]:
        for module in (LpNorm(3, 1), LpNorm(3, 1).eval()):
            with pytest.raises(ValueError, match=r"\(N, 3\) or \(N, 3, H, W\)"):
                module(torch.ones(shape))
    for shape in [(1, 3), (1, 3, 1, 1)]:
        with pytest.raises(ValueError, match="more than 1 value"):
            LpNorm(3, 1)(torch.ones(shape))
    assert "3, p=inf, centred=True" in repr(LpNorm(3, math.inf, centred=True))


@pytest.mark.parametrize("name", NAMES)
def test_networks_train_and_are_evaluated(name):
    digits = data.load("digits")
    model = models.digit_cnn(norm=name, size=8)
    rows = training.fit(model, digits, lr=0.1, steps=60, batch_size=64, seed=0)
    losses = [value for _, _, metric, value in rows if metric == "train_loss"]
    assert losses[-1] < 0.6 < losses[0]
    state = training.State(60, model, digits.x_train[:32], digits.y_train[:32], 0.1, digits)
    assert {metric: value for _, metric, value in probes.evaluation(state)}["test_accuracy"] > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_has_a_bias_where_a_bias_has_an_effect(name):
    digits = data.load("digits", dtype=torch.float64)
    layer = nn.Linear(64, 4).double()
    module = models.NORMS[name](4).double()
    z = module(layer(digits.x_train[:32].flatten(1)))
    (gradient,) = torch.autograd.grad((z * randn(32, 4)).sum(), layer.bias)
    kept = models.mlp(depth=1, norm=name).linear1.bias is not None
    assert kept == (gradient.abs().max() > 1e-9) == (not name.endswith("centred"))


@pytest.mark.parametrize("name", NAMES)
def test_arms_start_from_the_same_weights(name):
    for (_, one), (_, other) in zip(
        models.layers(models.vgg(width=0.1)), models.layers(models.vgg(width=0.1, norm=name)), strict=True
    ):
        assert torch.equal(one.weight, other.weight)
    made = models.initialise(models.digit_cnn(name), gamma=0.1)
    assert (made.norm1.weight == 0.1).all()
