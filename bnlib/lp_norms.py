r"""Normalization by l_p norms: what if another scale than the standard deviation is divided by?

Santurkar et al. (2018), section 3.3: normalizations that do not control the variance, to ask whether batch
norm is special.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LpNorm(nn.Module):
    r"""Subtract the batch's mean, divide by the average l_p norm; (N, C) or (N, C, H, W), per channel.

    $$z=\gamma\,\frac{y-\mu}{\sqrt{C_p^2+\epsilon}}+\beta,\qquad
    C_p=\Big(\frac1m\sum_i|y_i|^p\Big)^{1/p},\quad C_\infty=\max_i|y_i|$$

    over the channel's m = N (or N H W) values, $p\ge1$.  As in the paper, it is the norm of y *before* the
    mean is subtracted.  So p = 2 is not batch norm unless the mean is 0: for gamma = 1 the output's variance
    is $\sigma^2/(\sigma^2+\mu^2)$.  With `centred=True`, not in the paper, it is the norm of y - mu, and
    p = 2 is batch norm.

    `eps` is added to the square of the scale, in the unit of y squared, for every p: for p = 2 it stands
    where batch norm has it.  A channel that is zero throughout gives beta.

    In training mode the running statistics move as batch norm's do: `running_mean`, and `running_square`,
    the average of $C_p^2$, each new value with the weight `momentum`.  In evaluation mode they take the place
    of mu and $C_p^2$.  Unlike batch norm's `running_var`, the square is not multiplied by m / (m - 1), which
    is right for the centred p = 2 only.  For p = inf the scale grows with m, for Gaussian values about as
    $\sigma\sqrt{2\log m}$: in evaluation mode it is that of the training batches' size.

    Uncentred, the scale depends on the mean, so a bias before the norm is not without effect.  Autograd
    differentiates through mean and scale.  Raises ValueError for p < 1, for other shapes, for a wrong number
    of channels, and in training mode for one value per channel.  Source: Santurkar et al. 2018, section 3.3.
    """

    def __init__(
        self, channels: int, p: float, centred: bool = False, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        if not p >= 1:
            raise ValueError(f"p must be at least 1 (math.inf for the maximum), not {p}.")
        self.channels, self.p, self.centred, self.eps, self.momentum = channels, p, centred, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_square", torch.ones(channels))

    def forward(self, y: Tensor) -> Tensor:
        if y.ndim not in (2, 4) or y.shape[1] != self.channels:
            raise ValueError(
                f"Expected (N, {self.channels}) or (N, {self.channels}, H, W), got {list(y.shape)}."
            )
        if not self.training:
            return self._scaled(y, self.running_mean, self.running_square)
        if y.numel() <= self.channels:
            raise ValueError(f"Training needs more than 1 value per channel, got {list(y.shape)}.")
        mean = y.mean(_over(y))
        square = self.scale(y - _shaped(mean, y) if self.centred else y).square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_square.lerp_(square, self.momentum)
        return self._scaled(y, mean, square)

    def scale(self, y: Tensor) -> Tensor:
        """C_p of each channel, shape (C,)."""
        m = y.numel() // y.shape[1]
        return torch.linalg.vector_norm(y, self.p, _over(y)) * m ** (-1 / self.p)

    def _scaled(self, y: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        slope = self.weight * (square + self.eps).rsqrt()
        return (y - _shaped(mean, y)) * _shaped(slope, y) + _shaped(self.bias, y)

    def reset_running_stats(self) -> None:
        """Back to running_mean 0, running_square 1."""
        self.running_mean.zero_()
        self.running_square.fill_(1)

    def extra_repr(self) -> str:
        p = "inf" if math.isinf(self.p) else f"{self.p:g}"
        return f"{self.channels}, p={p}, centred={self.centred}, eps={self.eps}, momentum={self.momentum}"


def _over(y: Tensor) -> tuple[int, ...]:
    return (0,) if y.ndim == 2 else (0, 2, 3)


def _shaped(v: Tensor, y: Tensor) -> Tensor:
    """`v` of shape (C,), shaped to broadcast along the channels of `y`."""
    return v if y.ndim == 2 else v.view(-1, 1, 1)
