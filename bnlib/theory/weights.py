r"""From activations to weights: Theorem 4.4 and Lemma 4.5 of Santurkar et al. (2018), and Wikipedia's use.

The layer is linear, $y_j=Xw_j$ with inputs X of shape (m, d); a convolution is one too, of its patches.  If
$u=\nabla_{y_j}L$ is the gradient at the activations, the one at the weights is $X^\top u$.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bnlib import norms
from bnlib.theory.gradients import Loss, Theorem41, gradient_of, theorem_4_1
from bnlib.theory.one_layer import normalise


class Theorem44(NamedTuple):
    r"""Both sides of Theorem 4.4, each of shape (C,).

    `lhs` is $\hat g_j=\lambda^2\|\nabla_{y_j}\hat L\|^2$ and `vanilla` $g_j=\lambda^2\|\nabla_{z_j}L\|^2$;
    `rhs` is the corrected right side, `printed` the right side to the letter, and `squared_once` the one in
    which the printed $g_j^2$ is read as $g_j$.
    """

    lhs: Tensor
    rhs: Tensor
    printed: Tensor
    squared_once: Tensor
    vanilla: Tensor


def theorem_4_4(
    y: Tensor, g_z: Tensor, gamma: Tensor | None = None, radius: float = 1.0, eps: float = 0.0
) -> Theorem44:
    r"""The worst gradient of the weights over all inputs with spectral norm at most $\lambda$ = `radius`.

    For fixed u, $\max_{\|X\|_2\le\lambda}\|X^\top u\|^2=\lambda^2\|u\|^2$ (see `worst_input`; the Frobenius
    norm gives the same).  So Theorem 4.1, times $\lambda^2$, is the corrected theorem:

    $$\hat g_j\ \le\ \frac{\gamma^2}{\sigma_j^2}\Big(g_j-\lambda^2m\mu_g^2
    -\tfrac{\lambda^2}m\langle\nabla_{z_j}L,\hat y_j\rangle^2\Big),\qquad g_j=\lambda^2\|\nabla_{z_j}L\|^2,
    \ \mu_g=\operatorname{mean}(\nabla_{z_j}L),$$

    an equality at eps = 0.  Printed: $\frac{\gamma^2}{\sigma_j^2}(g_j^2-m\mu_{g_j}^2
    -\lambda^2\langle\nabla_{y_j}L,\hat y_j\rangle^2)$, although $g_j$ is a square already: under L -> cL its
    first term scales as $c^4$, all else as $c^2$.  Reading $g_j$ for $g_j^2$ mends the scale, but $\lambda^2$
    and $1/m$ are still missing: for $\lambda\le1$ and m > 1 it is false whenever
    $\langle g,\hat y\rangle\ne0$.

    The maximum holds the gradients at the activations, $\sigma_j$ and $\hat y_j$ fixed while X varies; in a
    network X determines them.  Theorem C.1 (the smoothness analogue, with $-\lambda^4\kappa$) takes the same
    liberty.  Shapes, eps and errors as in `theorem_4_1`.  Source: Santurkar et al. 2018, "Minimax bound on
    weight-space Lipschitzness".
    """
    return _at_radius(theorem_4_1(y, g_z, gamma, eps), radius**2)


def _at_radius(terms: Theorem41, radius2: float | Tensor) -> Theorem44:
    worst, inner2 = radius2 * terms.output_norm, terms.inner**2
    removed = terms.mean_term + radius2 * inner2  # m mu_g^2 = <1, g>^2 / m
    return Theorem44(
        lhs=radius2 * terms.lhs,
        rhs=radius2 * terms.rhs,
        printed=terms.factor * (worst**2 - removed),
        squared_once=terms.factor * (worst - removed),
        vanilla=worst,
    )


def worst_input(u: Tensor, features: int, radius: float = 1.0) -> Tensor:
    r"""$X=\lambda ue_1^\top/\|u\|$ of shape (m, features): $\|X\|_2=\lambda$ and $\|X^\top u\|=\lambda\|u\|$.

    No X of that norm does more, by the definition of the norm.  Raises ValueError for u = 0.
    """
    length = u.norm()
    if length == 0:
        raise ValueError("The activation gradient is zero: every input gives the weights gradient zero.")
    x = u.new_zeros(len(u), features)
    x[:, 0] = radius * u / length
    return x


class WeightGradients(NamedTuple):
    r"""Squared norms of the gradient of each unit's weights, and bounds on them; every field has shape (C,).

    `lhs` is $\|\nabla_{w_j}\hat L\|^2$ for the given X, `vanilla` $\|\nabla_{w_j}L\|^2$ without the layer;
    `rhs` is Theorem 4.4's corrected right side at $\lambda=\|X\|_2$, `printed` and `squared_once` as there.
    """

    lhs: Tensor
    rhs: Tensor
    printed: Tensor
    squared_once: Tensor
    vanilla: Tensor
    radius: Tensor  # ||X||_2, a scalar


def weight_gradients(
    x: Tensor,
    weight: Tensor,
    loss: Loss,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 0.0,
) -> WeightGradients:
    r"""Wikipedia's "bound on the loss with respect to the network weights", for actual inputs and weights.

    Wikipedia ("Batch normalization", on smoothness) goes on from Theorem 4.1 "to a bound on the loss with
    respect to the network weights" and means Theorem 4.4's inequality.  That one is about a maximum over
    inputs, with the gradient at the activations held fixed, not about the weights' gradient in a given
    network.  For given inputs this much is true, with the gradient at the layer's output on the right:

    $$\|\nabla_{w_j}\hat L\|^2=\|X^\top\nabla_{y_j}\hat L\|^2
    \le\|X\|_2^2\,\|\nabla_{y_j}\hat L\|^2\le\text{rhs}\big|_{\lambda=\|X\|_2}.$$

    It bounds a gradient; it does not compare two networks.  $\|X^\top Pg\|$ can exceed $\|X^\top g\|$,
    because the two parts of $X^\top g$, from what P keeps and what it removes, may cancel: even with
    `one_layer.matched_affine`, where $\|Pg\|\le\|g\|$ always, `lhs <= vanilla` can fail.

    `x` is (m, d), `weight` (C, d) as in torch, `loss` maps activations (m, C) to a scalar; `gamma`, `beta`
    (C,), None meaning 1 and 0.  Raises as `theorem_4_1`.
    """
    y = (x @ weight.T).detach()
    normalise(y, eps)

    def normalised(activations: Tensor) -> Tensor:
        return loss(norms.batch_norm(activations, gamma, beta, eps).y)

    g_z = gradient_of(loss, norms.batch_norm(y, gamma, beta, eps).y.detach())
    with_layer = gradient_of(lambda w: normalised(x @ w.T), weight).square().sum(1)
    without = gradient_of(lambda w: loss(x @ w.T), weight).square().sum(1)
    radius = torch.linalg.matrix_norm(x, 2)
    bound = _at_radius(theorem_4_1(y, g_z, gamma, eps), radius**2)
    return WeightGradients(with_layer, bound.rhs, bound.printed, bound.squared_once, without, radius)


class Lemma45(NamedTuple):
    r"""Both sides of Lemma 4.5, scalars; `nearest` is the normalised network's optimum, shaped like $W^*$."""

    lhs: Tensor  # ||W_0 - nearest||^2
    rhs: Tensor
    vanilla: Tensor  # ||W_0 - W*||^2
    inner: Tensor  # <W_0, W*>: the lemma asks for > 0
    multiple: Tensor  # k
    nearest: Tensor  # k W*


def lemma_4_5(start: Tensor, optimum: Tensor) -> Lemma45:
    r"""From $W_0$ = `start`, the optima of a normalised network are nearer than the `optimum` $W^*$ without.

    $$\|W_0-\hat W^*\|^2=\|W_0-W^*\|^2-\frac{(\|W^*\|^2-\langle W^*,W_0\rangle)^2}{\|W^*\|^2},\qquad
    \hat W^*=kW^*,\ k=\frac{\langle W_0,W^*\rangle}{\|W^*\|^2}$$

    This is the distance to a ray instead of to a point on it, an identity if $\langle W_0,W^*\rangle>0$.  If
    not, `nearest` is 0 (k = 0, not an optimum), `lhs` is $\|W_0\|^2 \ge$ `rhs`, and the lemma is silent.
    Its silent hypothesis: every positive multiple of $W^*$ is an optimum of the normalised network.  That
    needs the right $\gamma$ and $\beta$ (Observation 4.3) and holds for an optimum with loss zero.  The lemma
    says nothing about speed.

    Any shape, the same for both; raises ValueError if the shapes differ or the optimum is zero.
    Source: Santurkar et al. 2018.
    """
    if start.shape != optimum.shape:
        raise ValueError(
            f"Start {tuple(start.shape)} and optimum {tuple(optimum.shape)} must have the same shape."
        )
    size = optimum.square().sum()
    if size == 0:
        raise ValueError("The optimum is zero: it has no direction, so there is no ray to measure to.")
    inner, vanilla = (start * optimum).sum(), (start - optimum).square().sum()
    multiple = (inner / size).clamp_min(0)
    nearest = multiple * optimum
    return Lemma45(
        lhs=(start - nearest).square().sum(),
        rhs=vanilla - (size - inner) ** 2 / size,
        vanilla=vanilla,
        inner=inner,
        multiple=multiple,
        nearest=nearest,
    )
