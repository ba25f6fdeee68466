r"""Alternatives to batch normalization: over samples' own values, with running statistics, of the weights.

Batch normalization takes a channel's statistics over the batch.  `LayerNorm`, `InstanceNorm`, `GroupNorm`
and `RMSNorm` take them over values of one sample, so that no sample depends on another and training and
evaluation mode are the same.  `BatchRenorm` corrects the batch's statistics by running ones.
`weight_normalised` leaves the activations alone and splits every weight vector into length and direction.

All layers take activations of shape (N, C) or (N, C, H, W).  Each has one gamma (`weight`) and one beta
(`bias`) per channel, as batch norm has, so that networks with different norms differ in nothing else.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bnlib.norms import batch_norm


def sample_norm(x: Tensor, groups: int, centred: bool = True, eps: float = 1e-5) -> Tensor:
    r"""Normalise every sample with its own statistics, one mean and variance for each group of channels.

    The C channels are split into `groups` of C / groups neighbours.  Over the m values of a sample in a
    group, m = C / groups for (N, C) and C H W / groups for (N, C, H, W):

    $$\mu=\frac1m\sum_k x_k,\quad\sigma^2=\frac1m\sum_k(x_k-\mu)^2,\quad
    \hat x_k=\frac{x_k-\mu}{\sqrt{\sigma^2+\epsilon}}$$

    With `centred=False` the mean is taken to be 0.  Raises ValueError if `groups` does not divide the
    channels, for other shapes, and if a group has only one value to centre.
    """
    _check(x, x.shape[1], groups, centred)
    values = x.unflatten(1, (groups, -1))  # (N, groups, channels of a group, [H, W])
    over = tuple(range(2, values.ndim))  # what batch norm takes over N, H and W
    if centred:
        values = values - values.mean(over, keepdim=True)
    x_hat = values / (values.square().mean(over, keepdim=True) + eps).sqrt()
    return x_hat.flatten(1, 2)


class SampleNorm(nn.Module):
    r"""$y=\gamma_c\,\hat x+\beta_c$ with $\hat x$ from `sample_norm`: what four of the alternatives share.

    gamma and beta belong to the channel, not to the group.  Training and evaluation mode are the same; no
    buffers.  Raises ValueError as `sample_norm` does, and for a wrong number of channels.
    """

    def __init__(self, channels: int, groups: int, centred: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels, self.groups, self.centred, self.eps = channels, groups, centred, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        _check(x, self.channels, self.groups, self.centred)
        if self.centred:  # torch's own kernel computes the same twice as fast
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        x_hat = sample_norm(x, self.groups, self.centred, self.eps)
        return torch.addcmul(_per_channel(self.bias, x), x_hat, _per_channel(self.weight, x))

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}, centred={self.centred}, eps={self.eps}"


class LayerNorm(SampleNorm):
    """`SampleNorm` with one group: all C, H and W of a sample together.

    On (N, C) it is torch.nn.LayerNorm(C).  On images gamma and beta stay per channel (torch.nn.LayerNorm([C,
    H, W]) has one for each value), and other code means by the name the statistics over C alone, at each
    pixel.  Source: Ba, Kiros and Hinton 2016; for images Wu and He 2018, figure 2.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, groups=1, eps=eps)


class InstanceNorm(SampleNorm):
    """`SampleNorm` with a group for each channel: over H and W of one sample and channel.

    Of (N, C) nothing would be left, x - x = 0: raises ValueError.  Source: Ulyanov, Vedaldi and Lempitsky
    2016.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, groups=channels, eps=eps)


class GroupNorm(SampleNorm):
    """`SampleNorm` between the two: over H, W and the channels of a group.

    By default as many groups as divide the channels, at most 8.  The source has 32 groups of at least two
    channels; a network of a quarter of the width keeps the two channels.  Source: Wu and He 2018.
    """

    def __init__(self, channels: int, groups: int | None = None, eps: float = 1e-5) -> None:
        super().__init__(channels, math.gcd(channels, 8) if groups is None else groups, eps=eps)


class RMSNorm(SampleNorm):
    r"""`LayerNorm` without the mean: $y_k=\gamma_c\,x_k/\sqrt{\frac1m\sum_j x_j^2+\epsilon}+\beta_c$.

    Here with the same eps as the others; torch.nn.RMSNorm has by default the machine's, and no beta.
    Source: Zhang and Sennrich 2019.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, groups=1, centred=False, eps=eps)


class BatchRenorm(nn.Module):
    r"""Batch renormalization: batch norm, corrected so that training computes what evaluation will.

    Training mode, per channel, with the batch's $\mu_B$ and $\sigma_B=\sqrt{\text{Var}_B+\epsilon}$ (biased)
    and running $\mu$, $\sigma$:

    $$r=\operatorname{clip}_{[1/r_{\max},\,r_{\max}]}\frac{\sigma_B}{\sigma},\quad
    d=\operatorname{clip}_{[-d_{\max},\,d_{\max}]}\frac{\mu_B-\mu}{\sigma},\quad
    y=\gamma\Big(\frac{x-\mu_B}{\sigma_B}\,r+d\Big)+\beta$$

    r and d are constants for the gradient.  Unclipped, the bracket is $(x-\mu)/\sigma$, which is evaluation
    mode.  With $r_{\max}=1$, $d_{\max}=0$ it is batch norm.  Then $\mu$ and $\sigma$ (the deviation, not the
    variance) move towards the batch's with the weight `momentum`, or, while fewer than 1 / momentum batches
    have been seen, by the plain average, which leaves no trace of the initial 0 and 1.

    The limits grow with the number of batches seen, linearly: until `start` 1 and 0, then r_max up to 3 at
    `r_full`, d_max up to 5 at `d_full`; `limits=(r_max, d_max)` fixes them.  The source has 5000, 40000 and
    25000 batches; the defaults are a hundredth of that, for our shorter runs.  Evaluation mode:
    $\gamma(x-\mu)/\sigma+\beta$.  Raises ValueError for other shapes, for a wrong number of channels, and in
    training mode for one value per channel.  Source: Ioffe 2017, Algorithm 1 and section 4.
    """

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float = 0.01,
        start: int = 50,
        r_full: int = 400,
        d_full: int = 250,
        limits: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.start, self.r_full, self.d_full, self.fixed = start, r_full, d_full, limits
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_deviation", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        _check(x, self.channels)
        if not self.training:
            scale = self.weight / self.running_deviation
            return torch.addcmul(
                _per_channel(self.bias - self.running_mean * scale, x), x, _per_channel(scale, x)
            )
        x_hat, mean, var = batch_norm(x, eps=self.eps)[1:]
        with torch.no_grad():  # r and d are constants for the gradient
            deviation = (var + self.eps).sqrt()
            r_max, d_max = self.limits()
            r = (deviation / self.running_deviation).clamp(1 / r_max, r_max)
            d = ((mean - self.running_mean) / self.running_deviation).clamp(-d_max, d_max)
            self._track(mean, deviation)
        scale, shift = self.weight * r, self.weight * d + self.bias
        return torch.addcmul(_per_channel(shift, x), x_hat, _per_channel(scale, x))

    def limits(self) -> tuple[float, float]:
        """r_max and d_max for the next batch."""
        if self.fixed is not None:
            return self.fixed
        seen = int(self.num_batches_tracked)

        def grown(full: int) -> float:
            return min(1.0, max(0.0, (seen - self.start) / (full - self.start)))

        return 1 + 2 * grown(self.r_full), 5 * grown(self.d_full)

    def _track(self, mean: Tensor, deviation: Tensor) -> None:
        self.num_batches_tracked += 1
        new = max(self.momentum, 1 / int(self.num_batches_tracked))
        self.running_mean.lerp_(mean, new)
        self.running_deviation.lerp_(deviation, new)

    def reset_running_stats(self) -> None:
        """Back to running_mean 0, running_deviation 1, no batch seen."""
        self.running_mean.zero_()
        self.running_deviation.fill_(1)
        self.num_batches_tracked.zero_()

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}, limits={self.limits()}"


class WeightNorm(nn.Module):
    r"""A weight as length and direction: $w_j=g_j\,v_j/\lVert v_j\rVert$ for each output channel j.

    A parametrisation for torch.nn.utils.parametrize: what is trained is g, of shape (outputs,), and v, of the
    weight's shape.  A weight that is assigned gives $v=w$ and $g_j=\lVert w_j\rVert$: the layer then computes
    what it did before.  Source: Salimans and Kingma 2016, equation 2.
    """

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return (g / v.flatten(1).norm(dim=1)).view(-1, *[1] * (v.ndim - 1)) * v

    def right_inverse(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return w.flatten(1).norm(dim=1), w


def weight_normalised(layer: nn.Module) -> nn.Module:
    """The linear or convolutional layer itself, its `weight` now computed from g and v as in `WeightNorm`.

    Its parameters are `parametrizations.weight.original0` (g) and `original1` (v), and the bias, if it has
    one.  `layer.weight` can still be read, and assigned without gradient.
    """
    return parametrize.register_parametrization(layer, "weight", WeightNorm())


def _per_channel(v: Tensor, x: Tensor) -> Tensor:
    """`v` of shape (C,), shaped to broadcast along the channels of `x`."""
    return v if x.ndim == 2 else v.view(-1, 1, 1)


def _check(x: Tensor, channels: int, groups: int = 1, centred: bool = False) -> None:
    if x.ndim not in (2, 4) or x.shape[1] != channels:
        raise ValueError(f"Expected (N, {channels}) or (N, {channels}, H, W), got {list(x.shape)}.")
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels cannot be split into {groups} equal groups.")
    if centred and x[0].numel() == groups:
        raise ValueError(
            f"A sample of shape {list(x.shape[1:])} in {groups} groups has one value in each, and nothing is "
            "left when its mean is subtracted: use fewer groups, or batch norm."
        )
