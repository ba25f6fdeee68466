r"""Theorem 4.1 of Santurkar et al. (2018): the gradient through one batch normalization layer.

Printed: $\|\nabla_{y_j}\hat L\|^2\le\frac{\gamma^2}{\sigma_j^2}\big(\|\nabla_{y_j}L\|^2
-\frac1m\langle1,\nabla_{y_j}L\rangle^2-\frac1{\sqrt m}\langle\nabla_{y_j}L,\hat y_j\rangle^2\big)$.
Two things have to be put right.  The last coefficient is $1/m$, because $\|\hat y\|=\sqrt m$.  And the
gradient on the right is the one at the layer's output z: a network without the layer has the same one only if
its activations equal z.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from bnlib import norms
from bnlib.theory.one_layer import matched_affine, normalise, rows, same_shape

Loss = Callable[[Tensor], Tensor]


class Theorem41(NamedTuple):
    r"""Both sides of Theorem 4.1 and its terms; every field has shape (C,), one value per channel.

    `lhs` is $\|\nabla_y\hat L\|^2$ by automatic differentiation, `formula` the same number from
    $\|\frac{\gamma}{s}Pg\|^2$.  `rhs` is `factor * (output_norm - mean_term - scale_term)`, `printed` the
    right side as printed, with $1/\sqrt m$, and `exact` the right side that equals `lhs` for every eps.
    """

    lhs: Tensor
    formula: Tensor
    rhs: Tensor
    printed: Tensor
    exact: Tensor
    factor: Tensor  # gamma^2 / s^2
    output_norm: Tensor  # ||g||^2
    mean_term: Tensor  # <1, g>^2 / m
    scale_term: Tensor  # <g, y_hat>^2 / m
    inner: Tensor  # <g, y_hat>
    delta: Tensor  # eps / s^2

    @property
    def error(self) -> Tensor:
        r"""|lhs - exact| in units of $\frac{\gamma^2}{s^2}\|g\|^2$, the largest term; 0 if all are 0."""
        largest = self.factor * self.output_norm
        return torch.where(largest == 0, self.lhs.abs(), (self.lhs - self.exact).abs() / largest)


def theorem_4_1(
    y: Tensor, g_z: Tensor, gamma: Tensor | None = None, eps: float = 0.0, g_y: Tensor | None = None
) -> Theorem41:
    r"""Both sides of Theorem 4.1, corrected, with $g=\nabla_z\hat L$ the gradient at the layer's output.

    $$\|\nabla_y\hat L\|^2=\frac{\gamma^2}{s^2}\Big(\|g\|^2-\tfrac1m\langle1,g\rangle^2
    -\tfrac{1+\delta}m\langle g,\hat y\rangle^2\Big)\le\frac{\gamma^2}{s^2}\Big(\|g\|^2
    -\tfrac1m\langle1,g\rangle^2-\tfrac1m\langle g,\hat y\rangle^2\Big),\quad\delta=\epsilon/s^2.$$

    With eps = 0 an equality, with eps > 0 an inequality.  With the printed $1/\sqrt m$ it is false whenever
    $\langle g,\hat y\rangle\ne0$ and m > 1.  What is subtracted are the layer's own gradients:
    $\langle1,g\rangle=\partial L/\partial\beta$ and $\langle g,\hat y\rangle=\partial L/\partial\gamma$.

    `y` and `g_z` have shape (N, C) or (N, C, H, W), `gamma` (C,), None meaning 1; train mode.  Give float64.
    `g_y`, shaped like y, is $\nabla_y\hat L$ if a network's own backward pass has it; then `lhs` is its
    squared norm.  Raises ValueError for other shapes and, if eps = 0, for a constant channel.
    """
    same_shape(y, g_z)
    y, g_z = y.detach(), g_z.detach()
    # P is symmetric and P^2 = P, so ||Pg||^2 = <g, Pg>; for eps > 0 ||y_hat||^2 = m (1 - delta) adds delta.
    y_hat, _, s, delta = normalise(y, eps)
    gamma = torch.ones_like(s) if gamma is None else gamma.detach()
    g = rows(g_z)
    m = g.shape[1]
    factor, norm, inner = (gamma / s) ** 2, g.square().sum(1), (g * y_hat).sum(1)
    mean_term, scale_term = g.sum(1) ** 2 / m, inner**2 / m
    if g_y is None:
        g_y = gradient_of(lambda at: (norms.batch_norm(at, gamma, eps=eps).y * g_z).sum(), y)
    projected = g - g.mean(1, keepdim=True) - y_hat * inner[:, None] / m
    return Theorem41(
        lhs=rows(g_y).square().sum(1),
        formula=factor * projected.square().sum(1),
        rhs=factor * (norm - mean_term - scale_term),
        printed=factor * (norm - mean_term - sqrt(m) * scale_term),
        exact=factor * (norm - mean_term - (1 + delta) * scale_term),
        factor=factor,
        output_norm=norm,
        mean_term=mean_term,
        scale_term=scale_term,
        inner=inner,
        delta=delta,
    )


class Comparison(NamedTuple):
    r"""A network with the layer beside one without; sums over the batch have shape (C,), gradients that of y.

    `lhs` is $\|\nabla_y\hat L\|^2$ and `vanilla` $\|\nabla_yL\|^2$; `rhs` is the corrected right side of
    Theorem 4.1 with the *vanilla* gradient in it, as the paper reads it.  So `lhs <= rhs` asks whether the
    theorem holds between the two networks, `lhs <= vanilla` whether the gradient is smaller.
    """

    lhs: Tensor
    rhs: Tensor
    vanilla: Tensor
    gamma: Tensor
    beta: Tensor
    gradient: Tensor  # of the network with the layer, at y
    output_gradient: Tensor  # of the same, at z
    vanilla_gradient: Tensor  # of the network without, at y


def same_weights(
    y: Tensor, loss: Loss, gamma: Tensor | None = None, beta: Tensor | None = None, eps: float = 0.0
) -> Comparison:
    r"""The naive comparison: the same weights everywhere, and one network lacks the layer.

    `loss` maps activations shaped like `y` (all channels) to a scalar: what comes after the layer.  With it
    $\hat L(y)=\text{loss}(\gamma\hat y+\beta)$ and $L(y)=\text{loss}(y)$.  The two see different activations,
    so Theorem 4.1 says nothing about the pair, and between them it often fails.  `gamma`, `beta` (C,), None
    meaning 1 and 0.  Raises as `theorem_4_1`.
    """
    y = y.detach()
    _, _, s, _ = normalise(y, eps)
    gamma = torch.ones_like(s) if gamma is None else gamma.detach()
    beta = torch.zeros_like(s) if beta is None else beta.detach()
    z = norms.batch_norm(y, gamma, beta, eps).y
    at_z, at_y = gradient_of(loss, z), gradient_of(loss, y)
    through = gradient_of(lambda at: loss(norms.batch_norm(at, gamma, beta, eps).y), y)
    vanilla = theorem_4_1(y, at_y, gamma, eps)
    lhs = rows(through).square().sum(1)
    return Comparison(lhs, vanilla.rhs, vanilla.output_norm, gamma, beta, through, at_z, at_y)


def observation_4_3(y: Tensor, loss: Loss, eps: float = 0.0) -> Comparison:
    r"""The fair comparison: $\gamma=s$ and $\beta=\mu$, so that z = y and both networks compute the same.

    Then the theorem's factor is 1, the gradients at z and y are one and the same g, and

    $$\|\nabla_yL\|^2-\|\nabla_y\hat L\|^2=\tfrac1m\langle1,g\rangle^2+\tfrac{1+\delta}m\langle g,\hat
    y\rangle^2\ge0:$$

    the layer can only take away, and takes away exactly two components.  Arguments and errors as in
    `same_weights`.  Source: Santurkar et al. 2018, Observation 4.3.
    """
    return same_weights(y, loss, *matched_affine(y.detach(), eps), eps=eps)


def gradient_of(loss: Loss, at: Tensor) -> Tensor:
    """The gradient of `loss` at the point `at`, detached."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(at), at)
    return gradient
