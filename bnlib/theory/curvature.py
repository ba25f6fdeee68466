r"""Theorem 4.2 of Santurkar et al. (2018): the curvature along the gradient, through one BN layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bnlib import norms
from bnlib.theory.gradients import Loss
from bnlib.theory.one_layer import gradient_through, normalise, rows


class Theorem42(NamedTuple):
    r"""Both sides of Theorem 4.2 and its terms; every field has one value per channel.

    `lhs` is $v^\top(\nabla_y^2\hat L)v$ by automatic differentiation, `rhs` the theorem's first form,
    `second` its second form, and `exact` the expression that equals `lhs` for every eps.
    """

    lhs: Tensor
    rhs: Tensor
    second: Tensor
    exact: Tensor
    factor: Tensor  # gamma^2 / s^2
    curvature: Tensor  # v^T H v
    output_curvature: Tensor  # g^T H g
    bending: Tensor  # gamma <g, y_hat> ||v||^2 / (m s^2): what the layer's own curvature subtracts
    inner: Tensor  # <g, y_hat>
    step: Tensor  # ||v||^2

    @property
    def preserves_norms(self) -> Tensor:
        r"""The condition of the second form, $v^\top Hv\le g^\top Hg$, as booleans."""
        return self.curvature <= self.output_curvature

    @property
    def error(self) -> Tensor:
        """|lhs - exact| in units of |first term| + |second term| of the first form; 0 if all terms are 0."""
        scale = self.factor * self.curvature.abs() + self.bending.abs()
        return torch.where(scale == 0, self.lhs.abs(), (self.lhs - self.exact).abs() / scale)


def theorem_4_2(
    y: Tensor,
    loss: Loss,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 0.0,
    channels: Sequence[int] | None = None,
) -> Theorem42:
    r"""Both forms of Theorem 4.2 for $\hat L(y)=\text{loss}(\gamma\hat y+\beta)$.

    With $v=\nabla_{y_j}\hat L$, $g=\nabla_{z_j}\hat L$ and $H=H_{jj}$ the m x m Hessian of the loss in $z_j$,

    $$v^\top(\nabla_{y_j}^2\hat L)v\ \le\ \frac{\gamma^2}{\sigma^2}v^\top Hv
    -\frac{\gamma}{m\sigma^2}\langle g,\hat y\rangle\|v\|^2\qquad\text{(first form)},$$
    $$v^\top(\nabla_{y_j}^2\hat L)v\ \le\ \frac{\gamma^2}{\sigma^2}\Big(g^\top Hg
    -\frac1{m\gamma}\langle g,\hat y\rangle\|v\|^2\Big)\qquad\text{(second form)}.$$

    The first is an equality at eps = 0.  So the second holds exactly where $v^\top Hv\le g^\top Hg$, which
    the paper assumes ("preserves the relative norms").  Nor is $\langle g,\hat y\rangle\ge0$ a fact: it is
    the sign of $\partial L/\partial\gamma$.  H is not diagonal if another batch norm follows.  For eps > 0
    the first form is off by terms of order eps, of either sign; `exact` is the quadratic form of
    `one_layer.hessian_through`.

    `y` is (N, C) or (N, C, H, W); `loss` maps a tensor of that shape, all channels, to a scalar and must be
    twice differentiable (almost everywhere: ReLU will do); `gamma`, `beta` (C,), None meaning 1 and 0;
    `channels` are the ones to compute (None: all), each with four Hessian-vector products.  For a layer of a
    network, `loss = lambda z: criterion(model[end:](z), target)`, inside `probes.no_trace`.  Train mode; give
    float64.  Raises ValueError for other shapes and, if eps = 0, for a constant channel.
    """
    y_hat, _, s, _ = normalise(y.detach(), eps)
    gamma = torch.ones_like(s) if gamma is None else gamma.detach()
    beta = None if beta is None else beta.detach()
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        z = norms.batch_norm(y, gamma, beta, eps).y
        (v,) = torch.autograd.grad(loss(z), y, create_graph=True)
        z = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(z), z, create_graph=True)
    measured = [
        _channel(c, y, v, z, g, y_hat, s, gamma, eps)
        for c in (range(len(s)) if channels is None else channels)
    ]
    return Theorem42(*(torch.stack(field) for field in zip(*measured, strict=True)))


def _channel(
    c: int, y: Tensor, v: Tensor, z: Tensor, g: Tensor, y_hat: Tensor, s: Tensor, gamma: Tensor, eps: float
) -> Theorem42:
    """The terms of channel `c`, each a scalar; v and g still have their graphs."""
    m = y_hat.shape[1]
    v_j, g_j = _only(c, v), _only(c, g)
    inner, step = rows(g_j)[c] @ y_hat[c], v_j.square().sum()
    through = gradient_through(y.detach(), v_j, gamma, eps)  # (gamma / s) P v; at eps = 0 Pv = v
    factor, curvature = (gamma[c] / s[c]) ** 2, _quadratic_form(g, z, v_j)
    output_curvature, bending = _quadratic_form(g, z, g_j), gamma[c] * inner * step / (m * s[c] ** 2)
    # v has mean zero, so <g_c, v> = <g, v>; <y_hat, v> is zero at eps = 0.
    along, mixed = y_hat[c] @ rows(v_j)[c], rows(g_j)[c] @ rows(v_j)[c]
    beyond = gamma[c] / (m * s[c] ** 2) * (3 / m * inner * along**2 - 2 * mixed * along)
    return Theorem42(
        lhs=_quadratic_form(v, y, v_j),
        rhs=factor * curvature - bending,
        second=factor * output_curvature - bending,
        exact=_quadratic_form(g, z, through) - bending + beyond,
        factor=factor,
        curvature=curvature,
        output_curvature=output_curvature,
        bending=bending,
        inner=inner,
        step=step,
    )


def _only(c: int, values: Tensor) -> Tensor:
    """Channel c of `values`, zero elsewhere."""
    alone = torch.zeros_like(values)
    alone[:, c] = values.detach()[:, c]
    return alone


def _quadratic_form(gradient: Tensor, at: Tensor, direction: Tensor) -> Tensor:
    """direction^T (Hessian) direction, for the `gradient` at the point `at`, with its graph."""
    if not gradient.requires_grad:  # a linear loss: its gradient does not depend on the point
        return direction.new_zeros(())
    (product,) = torch.autograd.grad(gradient, at, direction, retain_graph=True, materialize_grads=True)
    return (product * direction).sum()
