r"""Batch normalization from scratch: forward, backward, running statistics, folding; and ZCA whitening.

Every function takes activations of shape (N, C) or (N, C, H, W). A channel is normalised over all its
$m = N$ (or $m = N H W$) values. `batch_norm` and `batch_norm_backward` are the formulas, written to be read;
`BatchNorm` is the module that the experiments train with: the same formulas in fewer passes over memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class BatchNormForward(NamedTuple):
    """What `batch_norm` computes: `y` and `x_hat` shaped like x, `mean` and `var` of shape (C,)."""

    y: Tensor
    x_hat: Tensor
    mean: Tensor
    var: Tensor


def batch_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, eps: float = 1e-5
) -> BatchNormForward:
    r"""Normalise each channel of `x` with the statistics of this batch (train mode).

    $$\mu=\frac1m\sum_i x_i,\quad \sigma^2=\frac1m\sum_i(x_i-\mu)^2,\quad
    \hat x=\frac{x-\mu}{\sqrt{\sigma^2+\epsilon}},\quad y=\gamma\hat x+\beta$$

    The variance is the biased one. `gamma` and `beta` have shape (C,); None means 1 and 0. `eps` may be 0,
    then no channel may be constant. Raises ValueError if `x` is not (N, C) or (N, C, H, W), or if a channel
    has only one value. Source: Ioffe and Szegedy 2015, Algorithm 1.
    """
    _check(x)
    over = _batch_dims(x)

    mean = x.mean(over)
    centred = x - _per_channel(mean, x)
    var = centred.square().mean(over)  # biased: divided by m, not by m - 1
    x_hat = centred / _per_channel(var + eps, x).sqrt()

    y = x_hat
    if gamma is not None:
        y = y * _per_channel(gamma, x)  # gamma and beta give back the freedom to choose scale ...
    if beta is not None:
        y = y + _per_channel(beta, x)  # ... and mean, now as two plain parameters per channel
    return BatchNormForward(y, x_hat, mean, var)


def batch_norm_backward(
    dy: Tensor, x_hat: Tensor, var: Tensor, gamma: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Gradients (dx, dgamma, dbeta) of a loss whose gradient with respect to the output y is `dy`.

    $$d\gamma=\sum_i dy_i\,\hat x_i,\quad d\beta=\sum_i dy_i,\quad
    dx=\frac{\gamma}{\sqrt{\sigma^2+\epsilon}}\Big(dy-\frac{d\beta}{m}-\hat x\,\frac{d\gamma}{m}\Big)$$

    The two subtractions are there because the batch's mean and variance depend on x too. They remove from the
    gradient its component along the vector of ones and along x_hat, so per channel sum(dx) = 0, and, if
    eps = 0, sum(dx * x_hat) = 0. `x_hat` and `var` come from `batch_norm` with the same `gamma` and `eps`.
    Shapes and errors as there. Source: Ioffe and Szegedy 2015, section 3, simplified.
    """
    _check(dy)
    over = _batch_dims(dy)
    m = dy.numel() // dy.shape[1]

    dbeta = dy.sum(over)
    dgamma = (dy * x_hat).sum(over)

    dx = dy - _per_channel(dbeta / m, dy)  # what came through the mean: shifting all x changes nothing
    dx = dx - x_hat * _per_channel(dgamma / m, dy)  # through the variance: scaling all x changes nothing
    dx = dx / _per_channel(var + eps, dy).sqrt()
    if gamma is not None:
        dx = dx * _per_channel(gamma, dy)
    return dx, dgamma, dbeta


class BatchNorm(nn.Module):
    r"""Batch normalization of (N, C) or (N, C, H, W) activations; parameters and buffers as in torch.

    In train mode: `batch_norm` with this batch's statistics, then the running statistics move by
    `running = (1 - momentum) * running + momentum * batch` (the new value's weight is `momentum`; Keras means
    the opposite), with the *unbiased* variance, m / (m - 1) times the one that normalises. `momentum=None`:
    the plain average over all batches so far. In eval mode: the fixed affine map
    $y=\gamma\,(x-\text{running\_mean})/\sqrt{\text{running\_var}+\epsilon}+\beta$.

    `affine=False` leaves out gamma (`weight`) and beta (`bias`). Second derivatives are exact, for Hessian
    probes. Raises ValueError for other shapes, for a wrong number of channels, and in train mode for one
    value per channel. Source: Ioffe and Szegedy 2015; conventions of torch.nn.BatchNorm2d.
    """

    def __init__(
        self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True
    ) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum, self.affine = channels, eps, momentum, affine
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        _check(x, self.channels, train=self.training)
        if not self.training:
            scale, shift = self.eval_affine()
            return torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x))
        if torch.is_autocast_enabled(x.device.type):  # x is bfloat16, in which a mean has two digits
            x = x.to(self.running_mean.dtype)
        # BN does not see a constant added to x. So the mean may be subtracted here as if it were a constant:
        # _Normalise differentiates with respect to `centred` and includes how the mean depends on it.
        mean = x.detach().mean(_batch_dims(x))
        centred = x - _per_channel(mean, x)
        y, var = _Normalise.apply(centred, self.weight, self.bias, self.eps)
        self._track(mean, var, m=x.numel() // self.channels)
        return y

    def eval_affine(self) -> tuple[Tensor, Tensor]:
        """The scale and shift, each of shape (C,), that eval mode applies: y = scale * x + shift."""
        scale = (self.running_var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.running_mean * scale
        return scale, shift if self.bias is None else shift + self.bias

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, m: int) -> None:
        self.num_batches_tracked += 1
        new = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.to(mean.dtype)
        # Not lerp_, which vmap would do network by network.
        self.running_mean.copy_(self.running_mean.lerp(mean, new))
        self.running_var.copy_(self.running_var.lerp(var * (m / (m - 1)), new))

    def reset_running_stats(self) -> None:
        """Back to running_mean 0, running_var 1, no batch seen."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


class DetachedBatchNorm(BatchNorm):
    r"""Batch norm forward, but not backward: the batch's statistics are constants for the gradient.

    In train mode the output is `BatchNorm`'s, and the gradient with respect to the input is

    $$dx=\frac{\gamma}{\sqrt{\sigma^2+\epsilon}}\,dy,$$

    without the two subtractions of `batch_norm_backward`: it does not know that a step also moves the mean
    and the variance.  So it is the gradient of another function than the one that is computed.  Eval mode,
    parameters, buffers, shapes and errors as in `BatchNorm`.  Ioffe and Szegedy 2015, section 2, warn of it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        _check(x, self.channels, train=True)
        if torch.is_autocast_enabled(x.device.type):  # as in BatchNorm
            x = x.to(self.running_mean.dtype)
        var, mean = torch.var_mean(x.detach(), _batch_dims(x), correction=0)
        self._track(mean, var, m=x.numel() // self.channels)
        scale = (var + self.eps).rsqrt()
        y = (x - _per_channel(mean, x)) * _per_channel(scale, x)
        if self.weight is None:
            return y
        return torch.addcmul(_per_channel(self.bias, x), y, _per_channel(self.weight, x))


class _Normalise(torch.autograd.Function):
    """`batch_norm` and `batch_norm_backward` for centred input, in few passes over memory.

    Only the centred input is kept for the backward pass. The factors per channel are multiplied first, so the
    big tensors are touched by squares, a reduction and an affine pass forward; by a product, two reductions
    and two affine passes backward.
    """

    @staticmethod
    def forward(
        centred: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        y = centred.square()
        var = y.mean(_batch_dims(y))
        scale = (var + eps).rsqrt_()
        if gamma is not None:
            scale *= gamma
        scale = _per_channel(scale, y)
        if beta is None:
            torch.mul(centred, scale, out=y)  # written over the squares: new memory costs more than a pass
        else:
            torch.addcmul(_per_channel(beta, y), centred, scale, out=y)
        return y, var

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        centred, gamma, _, ctx.eps = inputs
        _, var = output
        ctx.mark_non_differentiable(var)
        ctx.save_for_backward(centred, gamma, var)

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor, _dvar: Tensor) -> tuple[Tensor | None, ...]:
        centred, gamma, var = ctx.saved_tensors
        if torch.is_grad_enabled():
            # create_graph=True: someone will differentiate this gradient. The saved variance has no graph
            # back to the input, so compute it again, with the formulas as they stand in the book.
            now = batch_norm(centred, eps=ctx.eps)
            dx, dgamma, dbeta = batch_norm_backward(dy, now.x_hat, now.var, gamma, ctx.eps)
        else:
            over, m = _batch_dims(dy), dy.numel() // dy.shape[1]
            inverse = (var + ctx.eps).rsqrt_()
            scale = inverse if gamma is None else inverse * gamma
            product = centred * dy
            dbeta = dy.sum(over)
            dgamma = product.sum(over).mul_(inverse)
            # dx = scale * (dy - dbeta / m - centred * inverse * dgamma / m), written over `product`
            per_value = scale * (-1 / m)
            shift, slope = per_value * dbeta, per_value * inverse * dgamma
            dx = torch.addcmul(_per_channel(shift, dy), dy, _per_channel(scale, dy), out=product)
            dx.addcmul_(centred, _per_channel(slope, dy))
        needs = ctx.needs_input_grad
        return dx, dgamma if needs[1] else None, dbeta if needs[2] else None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], centred: Tensor, gamma: Tensor | None, *rest: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """Several networks at once: their channels side by side, since every channel is normalised alone."""
        networks, (beta, eps) = info.batch_size, rest

        def in_a_row(v: Tensor | None, dim: int | None, at: int) -> Tensor | None:
            if v is None:
                return None
            stacked = v.unsqueeze(at) if dim is None else v.movedim(dim, at)
            shape = list(stacked.shape)
            shape[at] = networks
            return stacked.expand(shape).flatten(at, at + 1)

        y, var = _Normalise.apply(
            in_a_row(centred, in_dims[0], 1),
            in_a_row(gamma, in_dims[1], 0),
            in_a_row(beta, in_dims[2], 0),
            eps,
        )
        return (y.unflatten(1, (networks, -1)), var.unflatten(0, (networks, -1))), (1, 0)


def fold(layer: nn.Linear | nn.Conv2d, bn: BatchNorm) -> nn.Linear | nn.Conv2d:
    r"""A new layer that equals `bn(layer(x))` in eval mode: BN costs nothing once training is over.

    With $a=\gamma/\sqrt{\text{running\_var}+\epsilon}$ per output channel, $W'=aW$ and
    $b'=a\,(b-\text{running\_mean})+\beta$. The layer's own bias b counts (None means 0). Exact also with zero
    padding, because BN comes after the layer; `layer` and `bn` stay as they are. Raises TypeError for other
    layers, ValueError if the channels do not match.
    """
    if isinstance(layer, nn.Linear):
        folded = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, **_like(layer.weight))
    elif isinstance(layer, nn.Conv2d):
        settings = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        same = {name: getattr(layer, name) for name in (*settings, "padding_mode")}
        folded = nn.utils.skip_init(nn.Conv2d, **same, **_like(layer.weight))
    else:
        raise TypeError(
            f"fold needs a Linear or Conv2d layer before the BatchNorm, not {type(layer).__name__}."
        )
    if len(layer.weight) != bn.channels:
        raise ValueError(
            f"The layer has {len(layer.weight)} output channels but the BatchNorm has {bn.channels}; "
            "fold a BatchNorm into the layer just before it."
        )
    with torch.no_grad():
        scale, shift = bn.eval_affine()
        folded.weight.copy_(layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        folded.bias.copy_(shift if layer.bias is None else scale * layer.bias + shift)
    return folded.train(layer.training)


@torch.no_grad()
def re_estimate(model: nn.Module, x: Tensor, batch_size: int | None = None) -> nn.Module:
    r"""Replace the running statistics of every `BatchNorm` in `model` by those of the inputs `x`; in place.

    With K batches of `batch_size` (None: all of x at once) and $\mu_k$, $\sigma_k^2$ the mean and the biased
    variance of batch k, of m values, where the layer stands in the network,

    $$\text{running\_mean}=\frac1K\sum_k\mu_k,\qquad
    \text{running\_var}=\frac1K\sum_k\frac m{m-1}\sigma_k^2 .$$

    The model is in training mode meanwhile, so that every layer sees what the layers before it make with
    the statistics of the same batch.  A rest smaller than a batch is left out.  Labels are not needed, and
    weights, gamma, beta, modes and `momentum` stay as they are.  Returns the model.  Raises ValueError if it
    has no BatchNorm, or for fewer inputs than one batch.  Sources: Li et al. 2017 for new data; Ioffe and
    Szegedy 2015, algorithm 2, for the training data.
    """
    normalised = [module for module in model.modules() if isinstance(module, BatchNorm)]
    size = len(x) if batch_size is None else batch_size
    if not normalised:
        raise ValueError("This model has no BatchNorm, and so no running statistics to estimate.")
    if not 1 <= size <= len(x):
        raise ValueError(
            f"{len(x)} inputs do not fill a batch of {size}; give more, or a smaller batch_size."
        )
    modes = [(module, module.training) for module in model.modules()]
    momenta = [module.momentum for module in normalised]
    try:
        for module in normalised:
            module.reset_running_stats()
            module.momentum = None  # the plain average over the batches
        model.train()
        for batch in x[: len(x) - len(x) % size].split(size):
            model(batch)
    finally:
        for module, momentum in zip(normalised, momenta, strict=True):
            module.momentum = momentum
        for module, mode in modes:
            module.training = mode
    return model


def zca_whiten(x: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    r"""Whiten `x` of shape (N, D) and stay as close to it as possible; returns (x_white, W, mean).

    $$\Sigma=\frac1N\sum_n(x_n-\mu)(x_n-\mu)^\top=U\Lambda U^\top,\quad
    W=U(\Lambda+\epsilon I)^{-1/2}U^\top,\quad x_\text{white}=(x-\mu)W$$

    With eps = 0 the covariance of x_white (biased, divided by N) is the identity, and among all linear maps
    that do this the symmetric W changes x least. Batch normalization is the cheap diagonal version: the
    variances become 1, the correlations stay. Raises ValueError if `x` is not (N, D), or if the covariance is
    singular (always so if N <= D) and eps does not make up for it. Source: Kessy, Lewin and Strimmer 2018.
    """
    if x.ndim != 2:
        raise ValueError(f"zca_whiten needs an (N, D) matrix, got shape {tuple(x.shape)}; flatten it first.")
    mean = x.mean(0)
    centred = x - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(x))
    lowest, highest = variances[0] + eps, variances[-1] + eps
    if not lowest > x.shape[1] * torch.finfo(x.dtype).eps * highest:
        raise ValueError(
            "The covariance is singular, so it cannot be whitened; give more samples or eps > 0."
        )
    w = axes * (variances + eps).rsqrt() @ axes.T
    return centred @ w, w, mean


def _batch_dims(x: Tensor) -> tuple[int, ...]:
    return (0,) if x.ndim == 2 else (0, 2, 3)


def _per_channel(v: Tensor, x: Tensor) -> Tensor:
    """`v` of shape (C,), shaped to broadcast along the channels of `x`."""
    return v if x.ndim == 2 else v.view(-1, 1, 1)


def _like(weight: Tensor) -> dict:
    return {"device": weight.device, "dtype": weight.dtype}


def _check(x: Tensor, channels: int | None = None, train: bool = True) -> None:
    if x.ndim not in (2, 4):
        raise ValueError(f"Expected an (N, C) or (N, C, H, W) input, got input size {list(x.shape)}")
    if channels is not None and x.shape[1] != channels:
        raise ValueError(f"Expected {channels} channels in dimension 1, got input size {list(x.shape)}")
    if train and x.numel() <= x.shape[1]:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {list(x.shape)}"
        )
