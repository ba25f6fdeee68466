r"""Exploding gradients: mean-field theory of wide random networks with batch normalization.

The model: $h^l=W^lx^{l-1}$ with independent normal weights and $x^l=\phi(\operatorname{BN}(h^l))$, in train
mode with eps = 0, gamma = 1, beta = 0; a batch of B samples; the width goes to infinity.  Going back one
layer multiplies the expected *squared* norm of the gradient by a constant $\lambda(B,\phi)$, which
`growth_rate` computes.  The norm itself grows by $\sqrt\lambda$ per layer.

Let u be one normalised channel: uniform on the sphere of radius $\sqrt B$ in the B - 1 dimensions orthogonal
to the vector of ones.  With $G=I-\frac1B11^\top$, three facts give everything:

1. Over the batch, h less its mean is isotropic, orthogonal to the ones.  So $\operatorname{BN}(h)=u$ whatever
   the weights' variance, and the squared deviation that BN divides by is a multiple of $\chi^2_{B-1}$, whose
   inverse has the mean 1 / (B - 3).
2. Along the sphere the derivative of $G\phi(u)$ has the squared Frobenius norm
   $\operatorname{tr}(DGDG)-\frac1Bu^\top DGDu$, $D=\operatorname{diag}\phi'(u)$, and
   $E\|G\phi(u)\|^2=(B-1)\lambda_F$ with $\lambda_F=E\,\phi(u_1)^2-E\,\phi(u_1)\phi(u_2)$.  So
   $$\lambda=\frac B{B-3}\,\frac{E\|\nabla G\phi(u)\|^2}{E\|G\phi(u)\|^2}.$$
3. Poincaré's inequality on this sphere: a function f with mean zero has
   $E\|\nabla f\|^2\ge\frac{B-2}B\,E\|f\|^2$, with equality only if f is linear.

Hence $\lambda(B,\phi)\ge\frac{B-2}{B-3}>1$ for *every* activation and batch size, with equality if and only
if $\phi$ is affine where u lives: in this model gradients always explode.  For B to infinity it becomes
$E\,\phi'(Z)^2\ge\operatorname{Var}\phi(Z)$, Z standard normal, and only the affine $\phi$ have $\lambda=1$.

Source: Yang, Pennington, Rao, Sohl-Dickstein and Schoenholz 2019, in another form; the derivation is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

FARTHEST = 10.0  # standard deviations; what lies beyond weighs exp(-50)


class Moments(NamedTuple):
    r"""Expectations over two coordinates $u_1,u_2$ of a normalised channel (see the module)."""

    square: float  # E phi(u1)^2
    product: float  # E phi(u1) phi(u2)
    slope_square: float  # E phi'(u1)^2
    slope_product: float  # E phi'(u1) phi'(u2)
    radial_square: float  # E (u1 phi'(u1))^2
    radial_product: float  # E u1 phi'(u1) u2 phi'(u2)

    @property
    def variance(self) -> float:
        r"""$\lambda_F=E\,\phi(u_1)^2-E\,\phi(u_1)\phi(u_2)$; for B = inf the variance of $\phi(Z)$."""
        return self.square - self.product


def moments(activation: Activation, batch: float = math.inf, nodes: int = 48) -> Moments:
    r"""The expectations that the rates need, by quadrature.

    The two coordinates are $u_1=R\cos\theta$ and $u_2=R\cos(\theta-\omega)$ with $\cos\omega=-\frac1{B-1}$,
    $\theta$ uniform on the circle, and $R^2=(B-1)\big(1-e^{-\rho^2/(B-3)}\big)$ with $\rho$ of density
    $\rho e^{-\rho^2/2}$: the exact joint law, for B to infinity two independent standard normals.
    Gauss-Legendre in $\rho$ (twice `nodes`) and, between the lines $u_1=0$ and $u_2=0$, in $\theta$ (`nodes`
    each).  So a kink at 0 costs no accuracy: only rounding is left for ReLU, tanh, GELU, ELU.  One elsewhere
    does: for hardtanh the rate is off by 4e-3, and with 200 nodes, a tenth of a second, by 2e-4.

    `activation` acts element by element on float64.  Its slope comes from automatic differentiation, so it
    must be continuous: a jump has a slope that this does not see.  `batch` is at least 4, or math.inf.

    Raises ValueError for a smaller batch, whose $\lambda$ is infinite, for an activation that changes the
    shape, and for one that is constant.
    """
    _check(batch)
    points, weights = np.polynomial.legendre.leggauss(2 * nodes)
    rho = torch.from_numpy(FARTHEST / 2 * (points + 1))
    along_radius = torch.from_numpy(FARTHEST / 2 * weights) * rho * (-rho.square() / 2).exp()
    if math.isinf(batch):
        radius, omega = rho, math.pi / 2
    else:
        radius = (-(batch - 1) * torch.expm1(-rho.square() / (batch - 3))).sqrt()
        omega = math.acos(-1 / (batch - 1))
    theta, along_angle = _sectors(omega, nodes)
    weight = along_radius[:, None] * along_angle

    u_1, u_2 = radius[:, None] * theta.cos(), radius[:, None] * (theta - omega).cos()
    (phi_1, slope_1), (phi_2, slope_2) = _with_slope(activation, u_1), _with_slope(activation, u_2)
    radial_1, radial_2 = u_1 * slope_1, u_2 * slope_2
    pairs = ((phi_1, phi_2), (slope_1, slope_2), (radial_1, radial_2))
    expectations = [float((weight * a * b).sum()) for a, other in pairs for b in (a, other)]
    found = Moments(*expectations)
    if found.variance <= 1e-13 * found.square:
        raise ValueError("The activation is constant: nothing is left for batch normalization to normalise.")
    return found


def growth_rate(activation: Activation, batch: float = math.inf, nodes: int = 48) -> float:
    r"""$\lambda$: the squared norm of the gradient at $h^l$ over that at $h^{l+1}$, with batch normalization.

    $$\lambda=\frac B{\lambda_F(B-3)(B-1)}\,E\big[\operatorname{tr}(DGDG)-\tfrac1Bu^\top DGDu\big]
    =\frac{(B-1)E\phi_1'^2+E\phi_1'\phi_2'-E(u_1\phi_1')^2+E\,u_1\phi_1'u_2\phi_2'}{(B-3)\,\lambda_F}
    \ \longrightarrow\ \frac{E\,\phi'(Z)^2}{\operatorname{Var}\phi(Z)}$$

    with $\phi_i=\phi(u_i)$ and the notation of the module; at least (B - 2) / (B - 3).  It is also the ratio
    for the squared Frobenius norms of the weights' gradients.  Arguments and errors as in `moments`.
    Source: Yang et al. 2019.
    """
    m = moments(activation, batch, nodes)
    if math.isinf(batch):
        return m.slope_square / m.variance
    derivative = (batch - 1) * m.slope_square + m.slope_product - m.radial_square + m.radial_product
    return derivative / ((batch - 3) * m.variance)


def linear_growth_rate(batch: float = math.inf) -> float:
    r"""$\lambda=\frac{B-2}{B-3}$ without an activation: the least of all.  Raises as `moments`."""
    _check(batch)
    return 1 + 1 / (batch - 3)


def relu_growth_rate(batch: float = math.inf) -> float:
    r"""$\lambda$ for ReLU in closed form, with $c=-\frac1{B-1}$ and the arc-cosine kernel $J_1$:

    $$\lambda=\frac1{B-3}\Big(\frac{B-1+J_1'(c)}{1-J_1(c)}-1\Big)\longrightarrow\frac\pi{\pi-1}=1.4669,\quad
    J_1(c)=\tfrac1\pi\big(\sqrt{1-c^2}+(\pi-\arccos c)\,c\big),\ J_1'(c)=1-\tfrac1\pi\arccos c .$$

    The squared norm: the norm grows by $\sqrt{\pi/(\pi-1)}=1.2112$ per layer.  Raises as `moments`.
    Source: Yang et al. 2019; Cho and Saul 2009 for the kernel.
    """
    _check(batch)
    if math.isinf(batch):
        return math.pi / (math.pi - 1)
    c = -1 / (batch - 1)
    slope = 1 - math.acos(c) / math.pi
    kernel = math.sqrt(1 - c * c) / math.pi + slope * c
    return ((batch - 1 + slope) / (1 - kernel) - 1) / (batch - 3)


def layer_norm_growth_rate(activation: Activation, nodes: int = 48) -> float:
    r"""$\frac{E\,\phi'(Z)^2}{E\,\phi(Z)^2}$: the same network with layer normalization, for any batch size.

    Over infinitely many units the mean that layer normalization subtracts is zero, so it divides by the root
    of the second moment, where batch normalization for B to infinity divides by the standard deviation.  That
    gives the same for tanh, exactly 1 for ReLU, and less than 1 for the sigmoid, whose gradients vanish.  For
    ReLU the explosion comes from subtracting the mean over the batch.  Arguments and errors as in `moments`.
    """
    m = moments(activation, math.inf, nodes)
    return m.slope_square / m.square


def residual_growth(rate: float, blocks: int, start: float) -> float:
    r"""The squared gradient at the input over that at the output of `blocks` residual blocks.

    Block k adds $W_2\,\phi(\operatorname{BN}(W_1x))$ to x.  The blocks add equal amounts to the variance of x
    over the batch, so that before block k = 0, 1, ... it is `start` + k of these amounts, and BN divides the
    gradient's new part by it:

    $$\prod_{k=0}^{K-1}\Big(1+\frac\lambda{k+k_0}\Big)
    =\frac{\Gamma(K+k_0+\lambda)\,\Gamma(k_0)}{\Gamma(K+k_0)\,\Gamma(k_0+\lambda)}\ \sim\ K^\lambda:$$

    polynomial in the depth, with the exponent $\lambda$ = `rate`, where the plain network has $\lambda^K$.
    `start` is $k_0$, from `residual_start`.  With layer normalization the same holds for its own rate and the
    second moment in place of the variance, $k_0=1/(vE\phi^2)$: for ReLU the factor is K + 1.  Raises
    ValueError unless `start` is positive and `blocks` at least 0.  Source: derived here; the mechanism is
    that of De and Smith 2020.
    """
    if start <= 0 or blocks < 0:
        raise ValueError(f"Give a positive start and blocks >= 0, not start={start} and blocks={blocks}.")
    gamma = math.lgamma
    return math.exp(gamma(blocks + start + rate) - gamma(blocks + start) + gamma(start) - gamma(start + rate))


def residual_start(activation: Activation, batch: float = math.inf, weight_variance: float = 2.0) -> float:
    r"""$k_0=\frac1{v\lambda_F}$: the variance of standard normal inputs in units of what one block adds.

    v = `weight_variance` is the width times the variance of $W_2$'s entries (2: He).  For ReLU, B = inf and
    v = 2 a block adds $1-\frac1\pi=0.68$.  Other arguments and errors as in `moments`.
    """
    return 1 / (weight_variance * moments(activation, batch).variance)


def _check(batch: float) -> None:
    """Raise ValueError for batches without a finite rate."""
    if not batch >= 4:
        raise ValueError(f"With a batch of {batch} the expectation is infinite: give at least 4 samples.")


def _sectors(omega: float, nodes: int) -> tuple[Tensor, Tensor]:
    """Angles on the whole circle and their weights, which sum to 1: Gauss-Legendre between the sign changes
    of cos(theta) and cos(theta - omega)."""
    points, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(nodes))
    ends = [-math.pi / 2, omega - math.pi / 2, math.pi / 2, omega + math.pi / 2, 3 * math.pi / 2]
    theta = [(a + b) / 2 + (b - a) / 2 * points for a, b in pairwise(ends)]
    weight = [(b - a) / 2 * weights / (2 * math.pi) for a, b in pairwise(ends)]
    return torch.cat(theta), torch.cat(weight)


def _with_slope(activation: Activation, u: Tensor) -> tuple[Tensor, Tensor]:
    """phi(u) and phi'(u), shaped like u."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        phi = activation(u)
        if phi.shape != u.shape:
            raise ValueError("The activation must act element by element and keep its input's shape.")
        if not phi.requires_grad:  # it does not depend on u
            return phi, torch.zeros_like(u)
        (slope,) = torch.autograd.grad(phi.sum(), u)
    return phi.detach(), slope
