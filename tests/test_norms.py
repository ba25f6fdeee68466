"""Batch normalization from scratch against torch's, in float64, and against its own theorems."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnlib.norms import BatchNorm, batch_norm, batch_norm_backward, fold, zca_whiten

EXACT = {"rtol": 0, "atol": 1e-12}
SHAPES = [(12, 5), (4, 5, 3, 2)]
TORCH = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours, theirs, **(tolerance or EXACT))


def closed_form(shape, phase=0.0):
    """An input of order one without random numbers."""
    i = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return (torch.sin(1.7 * i + phase) + 0.3 * torch.cos(0.11 * i * i) + 0.5).reshape(shape)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(shape, affine=True, **settings):
    """Our module and torch's with the same gamma and beta, in float64."""
    ours = BatchNorm(shape[1], affine=affine, **settings).double()
    theirs = TORCH[len(shape)](shape[1], affine=affine, **settings).double()
    if affine:
        with torch.no_grad():
            for bn in (ours, theirs):
                bn.weight.copy_(torch.linspace(-0.5, 2, shape[1]))
                bn.bias.copy_(torch.linspace(1, -1, shape[1]))
    return ours, theirs


def step(bn, x, dy):
    """Output and gradients of sum(dy * bn(x))."""
    x = x.clone().requires_grad_()
    y = bn(x)
    return y, *torch.autograd.grad(y, [x, *bn.parameters()], dy)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_agrees_with_torch_forward_backward_running_and_eval(shape, affine, momentum):
    ours, theirs = pair(shape, affine, momentum=momentum)
    for update in range(4):
        x, dy = closed_form(shape, update), closed_form(shape, 9 + update)
        for a, b in zip(step(ours, x, dy), step(theirs, x, dy), strict=True):
            close(a, b)
        for name, buffer in theirs.named_buffers():
            close(ours.get_buffer(name), buffer)
    ours.eval(), theirs.eval()
    for a, b in zip(step(ours, x, dy), step(theirs, x, dy), strict=True):
        close(a, b)
    assert ours.num_batches_tracked == 4, "eval mode must not count"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_teaching_functions_agree_with_torch(shape):
    x, dy = closed_form(shape), closed_form(shape, 3.0)
    _, theirs = pair(shape)
    y, dx, dgamma, dbeta = step(theirs, x, dy)
    gamma, beta = theirs.weight.detach(), theirs.bias.detach()
    forward = batch_norm(x, gamma, beta)
    close(forward.y, y.detach())
    backward = batch_norm_backward(dy, forward.x_hat, forward.var, gamma)
    for ours, expected in zip(backward, (dx, dgamma, dbeta), strict=True):
        close(ours, expected)
    assert torch.equal(batch_norm(x).y, batch_norm(x).x_hat), "no gamma, no beta: 1 and 0"


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_variance_is_unbiased_and_momentum_weighs_the_new_value(momentum):
    bn = BatchNorm(1, momentum=momentum).double()
    batches = [torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[0.0], [0.0], [3.0]])]
    for x in batches:
        bn(x.double())
    # means 3 and 1; variances with divisor m - 1 = 2: 7 and 3
    mean, var = (2.0, 5.0) if momentum is None else (0.9 * 0.3 + 0.1, 0.9 * (0.9 + 0.7) + 0.3)
    close(bn.running_mean, torch.tensor([mean], dtype=torch.float64))
    close(bn.running_var, torch.tensor([var], dtype=torch.float64))
    bn.reset_running_stats()
    assert (bn.running_mean, bn.running_var, bn.num_batches_tracked) == (0, 1, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_is_orthogonal_to_ones_and_to_x_hat(shape):
    over = (0,) if len(shape) == 2 else (0, 2, 3)
    x, dy = closed_form(shape), closed_form(shape, 3.0)
    for eps, orthogonal in ((0.0, True), (0.1, False)):
        _, x_hat, _, var = batch_norm(x, eps=eps)
        dx, _, _ = batch_norm_backward(dy, x_hat, var, eps=eps)
        close(dx.sum(over), torch.zeros(shape[1], dtype=torch.float64))
        inner = (dx * x_hat).sum(over).abs()
        assert (inner.max() < 1e-12) if orthogonal else (inner.max() > 1e-3)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.one_of(
        st.tuples(st.integers(3, 9), st.integers(1, 5)),
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 4), st.integers(2, 4)),
    ),
    scale=st.floats(0.1, 10),
    shift=st.floats(-10, 10),
)
def test_output_is_normalised_and_ignores_scale_and_shift(seed, shape, scale, shift):
    x = randn(*shape, seed=seed)
    over = (0,) if len(shape) == 2 else (0, 2, 3)
    y = batch_norm(x, eps=0.0).y
    zeros = torch.zeros(shape[1], dtype=torch.float64)
    close(y.mean(over), zeros, rtol=0, atol=1e-9)
    close(y.square().mean(over), zeros + 1, rtol=0, atol=1e-9)
    close(batch_norm(scale * x + shift, eps=0.0).y, y, rtol=0, atol=1e-7)
    m = x.numel() // shape[1]
    assert y.abs().max() <= (m - 1) ** 0.5 + 1e-9, "Samuelson's inequality"


@pytest.mark.parametrize("shape", [(6, 2), (2, 2, 2, 2)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_first_and_second_derivatives(shape, affine, eps):
    bn, _ = pair(shape, affine, eps=eps)
    parameters = tuple(p.detach().requires_grad_() for p in bn.parameters())
    names = [name for name, _ in bn.named_parameters()]

    def f(x, *values):
        return torch.func.functional_call(bn, dict(zip(names, values, strict=True)), x)

    inputs = (closed_form(shape).requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_second_derivatives_agree_with_torch(shape):
    def hessian_product(bn):
        x = closed_form(shape).requires_grad_()
        loss = bn(x).pow(3).sum() / 3
        inputs = [x, *bn.parameters()]
        gradient = torch.autograd.grad(loss, inputs, create_graph=True)
        along = sum((g * closed_form(g.shape, 2.0)).sum() for g in gradient)
        return torch.autograd.grad(along, inputs)

    for ours, theirs in zip(*map(hessian_product, pair(shape)), strict=True):
        close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_treating_the_statistics_as_constants_would_be_wrong():
    x, dy = closed_form((12, 5)), closed_form((12, 5), 3.0)
    forward = batch_norm(x)
    constant_statistics = dy / (forward.var + 1e-5).sqrt()
    dx, _, _ = batch_norm_backward(dy, forward.x_hat, forward.var)
    assert (dx - constant_statistics).abs().max() > 0.1


def test_bias_before_batch_norm_gets_no_gradient():
    layer, bn = nn.Linear(4, 3).double(), BatchNorm(3).double()
    (bn(layer(closed_form((8, 4)))) * closed_form((8, 3), 2.0)).sum().backward()
    assert layer.bias.grad.abs().max() < 1e-12 < 1e-3 < layer.weight.grad.abs().max()


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
def test_frozen_parameters_get_no_gradient(frozen):
    bn = BatchNorm(5).double()
    for name in ("weight", "bias") if frozen == "both" else (frozen,):
        bn.get_parameter(name).requires_grad_(False)
    x = closed_form((12, 5)).requires_grad_()
    bn(x).pow(2).sum().backward()
    assert x.grad is not None
    assert {n for n, p in bn.named_parameters() if p.grad is None} == (
        {"weight", "bias"} if frozen == "both" else {frozen}
    )


def test_memory_format_is_preserved():
    bn = BatchNorm(5).double()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = closed_form((4, 5, 3, 2)).contiguous(memory_format=memory_format).requires_grad_()
        y = bn(x)
        (dx,) = torch.autograd.grad(y, x, y.detach())
        assert y.is_contiguous(memory_format=memory_format)
        assert dx.is_contiguous(memory_format=memory_format)


def test_float32_survives_a_mean_far_from_zero():
    x = randn(512, 3)
    y = BatchNorm(3)((x + 1000).float())
    assert (y - batch_norm(x).y).abs().max() < 1e-3


def test_state_is_interchangeable_with_torch():
    ours, theirs = pair((12, 5))
    ours(closed_form((12, 5)))
    theirs.load_state_dict(ours.state_dict())
    copied = BatchNorm(5).double()
    copied.load_state_dict(theirs.state_dict())
    assert list(copied.state_dict()) == list(theirs.state_dict())
    assert "5, eps=1e-05, momentum=0.1, affine=True" in repr(copy.deepcopy(ours))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_raises_as_in_torch(shape):
    message = r"Expected more than 1 value per channel when training, got input size .*1, 3"
    for bn in (BatchNorm(3), TORCH[len(shape)](3)):
        with pytest.raises(ValueError, match=message):
            bn(torch.ones(shape))
        assert bn.eval()(torch.ones(shape)).shape == shape, "eval mode has no need of a batch"
    with pytest.raises(ValueError, match="more than 1 value"):
        batch_norm(torch.ones(shape))


def test_wrong_shapes_raise():
    for shape in [(3,), (2, 3, 4), (2, 3, 4, 5, 6)]:
        for f in (BatchNorm(3), BatchNorm(3).eval(), batch_norm):
            with pytest.raises(ValueError, match=r"\(N, C\) or \(N, C, H, W\)"):
                f(torch.ones(shape))
    for bn in (BatchNorm(3), BatchNorm(3).eval()):
        with pytest.raises(ValueError, match="Expected 3 channels"):
            bn(torch.ones(5, 4))


LAYERS = {
    "linear": (lambda bias: nn.Linear(4, 6, bias=bias), (8, 4)),
    "conv": (lambda bias: nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=bias), (5, 4, 7, 7)),
    "grouped conv": (lambda bias: nn.Conv2d(4, 6, 3, dilation=2, groups=2, bias=bias), (5, 4, 7, 7)),
    "circular conv": (
        lambda bias: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", bias=bias),
        (5, 4, 7, 7),
    ),
}


def trained(kind, bias):
    make, shape = LAYERS[kind]
    layer = make(bias).double()
    with torch.no_grad():
        layer.weight.copy_(closed_form(layer.weight.shape))
        if bias:
            layer.bias.copy_(closed_form(layer.bias.shape, 1.0))
    out = layer(closed_form(shape))
    bn, _ = pair(out.shape)
    for update in range(5):
        bn(layer(closed_form(shape, update)))
    return layer, bn.eval(), closed_form(shape, 7.0)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
def test_folded_layer_equals_layer_then_batch_norm_in_eval_mode(kind, bias):
    layer, bn, x = trained(kind, bias)
    before = copy.deepcopy(layer.state_dict())
    folded = fold(layer, bn)
    assert type(folded) is type(layer)
    assert folded.bias is not None
    close(folded(x), bn(layer(x)))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), "the layer itself must stay as it is"
    unscaled = copy.deepcopy(bn)
    unscaled.weight = unscaled.bias = None
    close(fold(layer, unscaled)(x), unscaled(layer(x)))


def test_dropping_the_bias_of_the_layer_in_the_fold_is_wrong():
    layer, bn, x = trained("conv", bias=True)
    expected = bn(layer(x))
    layer.bias = None
    assert (fold(layer, bn)(x) - expected).abs().max() > 0.1


def test_fold_refuses_what_it_cannot_fold():
    with pytest.raises(TypeError, match="ConvTranspose2d"):
        fold(nn.ConvTranspose2d(2, 3, 3), BatchNorm(3))
    with pytest.raises(ValueError, match="4 output channels but the BatchNorm has 3"):
        fold(nn.Linear(2, 4), BatchNorm(3))


def correlated(n=200, d=4):
    return randn(n, d) @ randn(d, d, seed=1) + randn(d, seed=2)


def test_zca_whitens_with_a_symmetric_matrix():
    x = correlated()
    x_white, w, mean = zca_whiten(x)
    identity = torch.eye(4, dtype=torch.float64)
    close(x_white.mean(0), torch.zeros(4, dtype=torch.float64))
    close(x_white.T @ x_white / len(x), identity)
    close(w, w.T)
    close(mean, x.mean(0))
    close(x_white, (x - mean) @ w)
    close(zca_whiten(x_white)[1], identity, rtol=0, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_zca_is_the_whitening_closest_to_the_original(seed):
    x = correlated()
    x_white, _, mean = zca_whiten(x)
    rotation, _ = torch.linalg.qr(randn(4, 4, seed=seed))
    other = x_white @ rotation  # every whitening is a rotation of this one
    distance = [(z - (x - mean)).square().sum() for z in (x_white, other)]
    assert distance[0] <= distance[1]


def test_batch_norm_is_whitening_without_the_correlations():
    x = correlated()
    axis_aligned = randn(200, 4) * torch.tensor([0.5, 1.0, 2.0, 3.0])
    axis_aligned = zca_whiten(axis_aligned)[0] * torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    close(batch_norm(axis_aligned, eps=0.0).y, zca_whiten(axis_aligned)[0])
    y = batch_norm(x, eps=0.0).y
    correlation = y.T @ y / len(y)
    close(correlation.diagonal(), torch.ones(4, dtype=torch.float64))
    close(correlation, torch.corrcoef(x.T))
    assert (correlation - torch.eye(4)).abs().max() > 0.3


def test_zca_refuses_a_singular_covariance_unless_eps_is_given():
    x = randn(3, 5)
    with pytest.raises(ValueError, match="singular"):
        zca_whiten(x)
    assert zca_whiten(x, eps=1e-3)[0].isfinite().all()
    with pytest.raises(ValueError, match="flatten"):
        zca_whiten(randn(3, 5, 2, 2))
