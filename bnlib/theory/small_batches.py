r"""What normalising with few values does to them: exact facts about the $\hat y$ of one channel, eps = 0.

Whatever the m values are, $\hat y=(y-\mu)/\sigma$ has mean 0 and variance 1.  For small m that leaves little
room: $|\hat y|\le\sqrt{m-1}$, and for m = 2 only $\hat y=\pm1$.  If the values are independent Gaussians,
$\hat y$ is uniform on a sphere, which settles the distribution of each $\hat y_i$ and of $\sigma$.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bnlib import norms


def samuelson_bound(m: int) -> float:
    r"""$\max|\hat y_i|=\sqrt{m-1}$ over all batches of m values.  Raises ValueError for m < 2.

    From $\hat y_1=-\sum_{i>1}\hat y_i$, Cauchy and Schwarz give $\hat y_1^2\le(m-1)(m-\hat y_1^2)$.  It is
    reached if all other values are equal: `farthest`.  Source: Samuelson 1968.
    """
    _check(m, 2, "normalise")
    return math.sqrt(m - 1)


def farthest(m: int) -> Tensor:
    """The batch (m,), float64, whose first value, normalised, reaches `samuelson_bound`; raises as there."""
    _check(m, 2, "normalise")
    y = torch.zeros(m, dtype=torch.float64)
    y[0] = 1
    return y


class GaussianBatch(NamedTuple):
    r"""Expectations over batches of m independent N(0, 1) values; infinite where there is none.

    $m\sigma^2\sim\chi^2_{m-1}$ with the biased variance $\sigma^2$, and $\hat y$ is independent of $\mu$ and
    $\sigma$.  Beside each stands what a large batch has.
    """

    kurtosis: float  # E y_hat^4 = 3 (m - 1) / (m + 1), not 3
    variance: float  # E sigma^2 = (m - 1) / m, not 1
    variance_deviation: float  # the standard deviation of sigma^2, sqrt(2 (m - 1)) / m, not 0
    mean_deviation: float  # the standard deviation of mu, 1 / sqrt(m), not 0
    inverse_deviation: float  # E 1/sigma = sqrt(m/2) Gamma((m - 2)/2) / Gamma((m - 1)/2), not 1; m > 2
    inverse_variance: float  # E 1/sigma^2 = m / (m - 3), not 1; m > 3


def gaussian_batch(m: int) -> GaussianBatch:
    r"""What batch norm's statistics of m Gaussian values are on average; see `GaussianBatch`.

    $E[1/\sigma]$ is by how much the layer multiplies $y-\mu$, on average, where a large batch would leave it
    as it is.  $E[1/\sigma^2]$, times the share (m - 2) / m of a random gradient that its two projections
    leave, is (m - 2) / (m - 3): the factor by which squared gradients grow per layer of a linear network.
    Raises ValueError for m < 2.
    """
    _check(m, 2, "normalise")
    inverse = math.inf
    if m > 2:
        inverse = math.sqrt(m / 2) * math.exp(math.lgamma((m - 2) / 2) - math.lgamma((m - 1) / 2))
    return GaussianBatch(
        kurtosis=3 * (m - 1) / (m + 1),
        variance=(m - 1) / m,
        variance_deviation=math.sqrt(2 * (m - 1)) / m,
        mean_deviation=1 / math.sqrt(m),
        inverse_deviation=inverse,
        inverse_variance=m / (m - 3) if m > 3 else math.inf,
    )


def normalised_density(y_hat: Tensor, m: int) -> Tensor:
    r"""The density of one normalised value of a Gaussian batch of m, at the points `y_hat`, shaped like them.

    $\hat y/\sqrt{m-1}$ is one coordinate of a uniform point on the unit sphere in $R^{m-1}$, so with
    $t=\hat y/\sqrt{m-1}$

    $$p(\hat y)=\frac{\Gamma(\frac{m-1}2)}{\sqrt{\pi(m-1)}\,\Gamma(\frac{m-2}2)}\,(1-t^2)^{(m-4)/2},
    \qquad|t|<1,$$

    and 0 outside.  For m = 3 it is highest at the ends, for m = 4 uniform on $\pm\sqrt3$, for large m
    Gaussian; m = 2 has no density, only $\pm1$.  Raises ValueError for m < 3.
    """
    _check(m, 3, "have a density of")
    inside = 1 - y_hat.square() / (m - 1)
    log_factor = math.lgamma((m - 1) / 2) - math.lgamma((m - 2) / 2) - math.log(math.pi * (m - 1)) / 2
    density = math.exp(log_factor) * inside.clamp_min(0) ** ((m - 4) / 2)
    return torch.where(inside > 0, density, torch.zeros_like(density))


def normalised_batches(m: int, count: int, seed: int = 0) -> norms.BatchNormForward:
    """Batch norm, in training mode with eps = 0, of `count` batches of m N(0, 1) values.

    Each batch is a channel: `x_hat` is (m, count), `mean` and `var` (count,), float64.  torch's random state
    is not touched.  Raises ValueError for m < 2.
    """
    _check(m, 2, "normalise")
    random = torch.Generator().manual_seed(seed)
    return norms.batch_norm(torch.randn(m, count, generator=random, dtype=torch.float64), eps=0.0)


def _check(m: int, least: int, what: str) -> None:
    if m < least:
        raise ValueError(f"To {what} a batch it must hold at least {least} values, not {m}.")
