r"""One hidden layer with Gaussian inputs: where its critical points lie (Kohler et al. 2019, section 5).

The network is $F=\sum_i\theta_i\tanh(x^\top w_i)$ with fixed output weights, labels are $y=\pm1$.  tanh is
odd, so the label enters the input: with $z=-yx\sim N(u,\Sigma)$ the loss is
$f(W)=E\,l(\sum_i\theta_i\tanh(s_i))$, $s_i=z^\top w_i$.  Stein's lemma gives

$$\nabla_{w_i}f=a_iu+\sum_jb_{ij}\Sigma w_j,\qquad a_i=E\,l'(F)\theta_i\tanh'(s_i),\quad
b_{ij}=E\frac{\partial}{\partial s_j}\big[l'(F)\theta_i\tanh'(s_i)\big].$$

Where all of them vanish, $bW=-a\,(\Sigma^{-1}u)^\top$: the rows of bW lie on the line of $\Sigma^{-1}u$ and,
if b is not singular, so do those of W, the units.  It takes an odd activation, no bias, Gaussian z,
expectations and not means over a sample, and that all units are critical at once: beside units frozen
elsewhere, a unit's own critical points are off the line.  And b may be nearly singular; then critical to 1e-8
says little about W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bnlib.theory.halfspaces import SQUARE, ScalarLoss, gauss_hermite
from bnlib.theory.least_squares import has_direction, positive_definite

NEGLIGIBLE = 1e-20  # a node with less weight than this adds less than rounding, over all such nodes
ROUNDING = 1e-14  # relative: two losses that differ by less are equal


class Moments(NamedTuple):
    """The coefficients of Stein's form of the gradient: `a` (k,) and `b` (k, k), symmetric."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, eq=False)
class OneHiddenLayer:
    r"""$f(W)=E\,l(\theta^\top\tanh(Wz))$, $z\sim N(u,\Sigma)$: `u` (d,), `sigma` (d, d), `theta` (k,).

    Weights have shape (k, d), one row per unit.  Expectations are Gauss-Hermite quadrature on a product grid
    of `nodes`$^d$ points, so d must be small; `gradient` and `hessian` are exact derivatives of the `value`
    so computed, and `stein_gap` says how good the grid is.  Everything is float64.  Raises ValueError for
    other shapes, a Sigma that is not symmetric positive definite, and u = 0.
    """

    u: Tensor
    sigma: Tensor
    theta: Tensor
    loss: ScalarLoss = SQUARE
    nodes: int = 48

    def __post_init__(self) -> None:
        """Refuse what is not a Gaussian's mean and covariance, or no row of output weights."""
        positive_definite(self.sigma, "Sigma")
        has_direction(self.sigma, self.u)
        if self.theta.ndim != 1 or len(self.theta) == 0:
            raise ValueError(f"theta must be one output weight per unit, not {tuple(self.theta.shape)}.")

    @cached_property
    def grid(self) -> tuple[Tensor, Tensor]:
        """The nodes z, (n, d), and their weights, (n,); those of negligible weight are left out."""
        points, weights = gauss_hermite(self.nodes)
        d = len(self.u)
        t = torch.cartesian_prod(*[points] * d).reshape(-1, d)
        p = torch.cartesian_prod(*[weights] * d).reshape(-1, d).prod(1)
        kept = p > NEGLIGIBLE
        return self.u + t[kept] @ torch.linalg.cholesky(self.sigma).T, p[kept]

    @cached_property
    def line(self) -> Tensor:
        r"""The unit vector along $\Sigma^{-1}u$, (d,), the same line as $S^{-1}u$."""
        direction = torch.linalg.solve(self.sigma, self.u)
        return direction / direction.norm()

    def value(self, w: Tensor) -> Tensor:
        """f(W), a scalar."""
        z, p = self.grid
        return p @ self.loss.value(torch.tanh(z @ w.T) @ self.theta)

    def gradient(self, w: Tensor) -> Tensor:
        r"""$\nabla_{w_i}f=E\,l'(F)\theta_i\tanh'(s_i)z$, (k, d), directly, without Stein's lemma."""
        (z, p), (first, _, _) = self.grid, self._derivatives(w)
        return (p[:, None] * first).T @ z

    def hessian(self, w: Tensor) -> Tensor:
        r"""The Hessian in W, (k d, k d): blocks $E\,\partial_{s_j}[l'(F)\theta_i\tanh'(s_i)]\,zz^\top$."""
        (z, p), (_, slopes, bending) = self.grid, self._derivatives(w)
        k, d = w.shape
        blocks = w.new_zeros(k, d, k, d)
        for i in range(k):
            for j in range(k):
                mixed = slopes[0] * slopes[1][:, i] * slopes[1][:, j]
                if i == j:
                    mixed = mixed + bending[:, i]
                blocks[i, :, j] = z.T @ ((p * mixed)[:, None] * z)
        return blocks.reshape(k * d, k * d)

    def moments(self, w: Tensor) -> Moments:
        """Stein's a and b at W."""
        (_, p), (first, (second, slopes), bending) = self.grid, self._derivatives(w)
        b = slopes.T @ ((p * second)[:, None] * slopes) + torch.diag(p @ bending)
        return Moments(p @ first, b)

    def stein_gradient(self, w: Tensor) -> Tensor:
        r"""$a_iu+\sum_jb_{ij}\Sigma w_j$, (k, d): the gradient by Stein's lemma."""
        a, b = self.moments(w)
        return torch.outer(a, self.u) + b @ w @ self.sigma

    def stein_gap(self, w: Tensor) -> float:
        r"""The norm of `gradient` - `stein_gradient`: 0 but for the quadrature's error."""
        return (self.gradient(w) - self.stein_gradient(w)).norm().item()

    def conditioning(self, w: Tensor) -> float:
        """The smallest absolute eigenvalue of b: how far from singular the system for W is."""
        return torch.linalg.eigvalsh(self.moments(w).b).abs().min().item()

    def alignment(self, w: Tensor) -> Tensor:
        r"""$1-|\cos|$ of the angle between each row of `w`, (k, d), and the line, (k,).

        From the sine, so that it does not round where it is small.  Raises ValueError for a row that is 0.
        """
        size = w.norm(dim=1)
        if bool((size == 0).any()):
            raise ValueError("A unit's weights are zero: they have no direction.")
        along = w @ self.line
        sine = (w - torch.outer(along, self.line)).norm(dim=1) / size
        return sine**2 / (1 + along.abs() / size)

    def effective_alignment(self, w: Tensor) -> Tensor:
        """`alignment` of the rows of bW, (k,): they are on the line even where b is nearly singular."""
        return self.alignment(self.moments(w).b @ w)

    def critical_point(
        self, w: Tensor, units: Sequence[int] | None = None, steps: int = 100, tolerance: float = 1e-13
    ) -> Tensor:
        r"""A critical point, (k, d), in the weights of `units` (None: of all, jointly), starting from `w`.

        A damped Newton step is $-(|H|+\lambda I)^{-1}\nabla f$, with $|H|$ the Hessian with its eigenvalues
        made positive: downhill, also where f is not convex.  $\lambda$ is cut to a tenth after a step that
        lowers f, or f not but the gradient, as rounding may have it; other steps are undone and $\lambda$
        multiplied by ten.  It finds minima.  Where b is nearly singular it is slow: raises RuntimeError if
        $\|\nabla f\|$ is above `tolerance` after `steps`.
        """
        moving = torch.arange(len(w))[list(range(len(w)) if units is None else units)]
        entries = torch.arange(w.numel()).reshape(w.shape)[moving].flatten()
        value, gradient, damping = self.value(w), self.gradient(w)[moving], 1e-2
        for _ in range(steps):
            if gradient.norm() <= tolerance:
                return w
            curvatures, axes = torch.linalg.eigh(self.hessian(w)[entries][:, entries])
            move = axes @ ((axes.T @ gradient.flatten()) / (curvatures.abs() + damping))
            there = w.clone()
            there[moving] -= move.reshape(gradient.shape)
            f, g = self.value(there), self.gradient(there)[moving]
            if f < value or (f <= value * (1 + ROUNDING) and g.norm() < gradient.norm()):
                w, value, gradient, damping = there, f, g, damping / 10
            else:
                damping *= 10
        raise RuntimeError(f"No critical point after {steps} steps: the gradient is {gradient.norm():.1e}.")

    def _derivatives(self, w: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        r"""At every node: $l'\theta_i\tanh'_i$; ($l''$, $\theta_i\tanh'_i$); $l'\theta_i\tanh''_i$."""
        z, _ = self.grid
        t = torch.tanh(z @ w.T)
        output = t @ self.theta
        slopes = (1 - t**2) * self.theta
        first = self.loss.first(output)[:, None]
        return first * slopes, (self.loss.second(output), slopes), -2 * first * t * slopes
