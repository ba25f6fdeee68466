r"""The algebra of one batch normalization layer: first and second derivative as matrices.

A channel has $m$ values $y$ (over the batch, and the pixels of a convolution).  With eps = 0,
$\hat y=(y-\mu)/\sigma$ has $\langle 1,\hat y\rangle=0$ and $\|\hat y\|^2=m$, the layer's output is
$z=\gamma\hat y+\beta$, and everything follows from

$$\frac{\partial z}{\partial y}=\frac{\gamma}{\sigma}P,\qquad
P=I-\tfrac1m11^\top-\tfrac1m\hat y\hat y^\top .$$

For eps > 0 put $s^2=\sigma^2+\epsilon$ for $\sigma^2$ everywhere, also in $\hat y$; then
$\|\hat y\|^2=m(1-\delta)$ with $\delta=\epsilon/s^2$, and $P$ is no longer a projector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bnlib import norms


class Normalised(NamedTuple):
    r"""A layer's input, normalised: `y_hat` (C, m); `mean`, `deviation` ($s$) and `delta`, each (C,)."""

    y_hat: Tensor
    mean: Tensor
    deviation: Tensor
    delta: Tensor


def rows(values: Tensor) -> Tensor:
    """(N, C) or (N, C, H, W) as (C, m): one row per channel, m = N or N H W."""
    return values.movedim(1, 0).flatten(1)


def normalise(y: Tensor, eps: float = 0.0) -> Normalised:
    r"""$\hat y=(y-\mu)/s$ with $s^2=\sigma^2+\epsilon$ and the biased variance, channel by channel.

    `y` has shape (N, C) or (N, C, H, W); train mode.  Raises ValueError for other shapes, for one value per
    channel, and, if eps = 0, for a constant channel, which has no direction to normalise.
    """
    forward = norms.batch_norm(y, eps=eps)
    squared = forward.var + eps
    if bool((squared == 0).any()):
        raise ValueError("A channel is constant over the batch: with eps = 0 it cannot be normalised.")
    return Normalised(rows(forward.x_hat), forward.mean, squared.sqrt(), eps / squared)


def projector(y: Tensor, eps: float = 0.0) -> Tensor:
    r"""$P=I-\frac1m11^\top-\frac1m\hat y\hat y^\top$, of shape (m, m), for one channel `y` of shape (m,).

    With eps = 0: $P^2=P=P^\top$ of rank m - 2, $P1=P\hat y=0$.  With eps > 0 only $P1=0$ is left, and
    $P\hat y=\delta\hat y$.  Raises as `normalise`.
    """
    (y_hat,) = normalise(y[:, None], eps).y_hat
    m = len(y)
    return torch.eye(m, dtype=y.dtype, device=y.device) - (1 + torch.outer(y_hat, y_hat)) / m


def gradient_through(y: Tensor, g_z: Tensor, gamma: Tensor | None = None, eps: float = 0.0) -> Tensor:
    r"""$\nabla_y\hat L=\frac{\gamma}{s}P\,g$ for the gradient `g_z` at the layer's output; shaped like `y`.

    `y` and `g_z` have shape (N, C) or (N, C, H, W), `gamma` (C,), None meaning 1.  Any eps >= 0.  The formula
    is `norms.batch_norm_backward`, which never forms P.  Raises as `normalise`, and if the shapes differ.
    """
    same_shape(y, g_z)
    normalise(y, eps)  # refuses what cannot be normalised
    forward = norms.batch_norm(y, eps=eps)
    return norms.batch_norm_backward(g_z, forward.x_hat, forward.var, gamma, eps)[0]


def hessian_through(
    y: Tensor, g_z: Tensor, h_z: Tensor, gamma: float | Tensor = 1.0, eps: float = 0.0
) -> Tensor:
    r"""The whole Hessian in the input of one channel, (m, m), from gradient (m,) and Hessian (m, m) at z.

    $$\nabla^2_y\hat L=\frac{\gamma^2}{s^2}\Big[PHP-\frac1{m\gamma}\Big(g_c\hat y^\top+\hat yg_c^\top
    -\frac3m\langle g,\hat y\rangle\hat y\hat y^\top+\langle g,\hat y\rangle(I-\tfrac1m11^\top)\Big)\Big],$$

    $g_c=g-\operatorname{mean}(g)$.  It holds for every eps >= 0, with P and $\hat y$ as in `projector`; what
    eps = 0 adds is only that P projects.  Raises as `normalise`.
    """
    (y_hat,), _, (s,), _ = normalise(y[:, None], eps)
    m, p = len(y), projector(y, eps)
    centred, inner = g_z - g_z.mean(), g_z @ y_hat
    mixed = torch.outer(centred, y_hat)
    centring = torch.eye(m, dtype=y.dtype, device=y.device) - 1 / m
    bending = mixed + mixed.T - 3 / m * inner * torch.outer(y_hat, y_hat) + inner * centring
    return gamma**2 / s**2 * (p @ h_z @ p) - gamma / (m * s**2) * bending


def matched_affine(y: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""Observation 4.3: the $\gamma=s$ and $\beta=\mu$, each (C,), with which the layer returns its input.

    They depend on the batch, so they match for one batch, or for the full batch, not for training on
    minibatches.  Raises as `normalise`.  Source: Santurkar et al. 2018.
    """
    _, mean, deviation, _ = normalise(y, eps)
    return deviation, mean


def same_shape(y: Tensor, g_z: Tensor) -> None:
    """Raise ValueError unless the gradient is shaped like the activations."""
    if y.shape != g_z.shape:
        raise ValueError(
            f"The gradient must have the shape {tuple(y.shape)} of the activations, not {tuple(g_z.shape)}."
        )
