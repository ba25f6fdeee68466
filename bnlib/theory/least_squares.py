r"""Least squares through one batch normalization unit: a Rayleigh quotient (Kohler et al. 2019, section 3).

Inputs x with $E\,x=0$ and targets y; $S=E\,xx^\top$ with eigenvalues from $\mu>0$ to L, and $u=-E\,yx$.
Without the layer the loss, less the constant $E\,y^2$, is
$f(\tilde w)=2u^\top\tilde w+\tilde w^\top S\tilde w$.  The layer divides $x^\top w$ by its standard deviation
$\|w\|_S=\sqrt{w^\top Sw}$ and multiplies by g, so that $\tilde w=gw/\|w\|_S$: w is a direction and g a
length.  With the best length, $g=-u^\top w/\|w\|_S$,

$$\min_g f=\rho(w)=-\frac{(u^\top w)^2}{w^\top Sw}\ \ge\ \rho^*=-u^\top S^{-1}u,$$

which is not convex, yet gradient descent converges to $\rho^*$ at the rate it has on the convex f.

Why, in three lines.  With $c=\|w\|_S^2/u^\top w$, the vector $r=w-cS^{-1}u$ is S-orthogonal to w.  The step
is $w_+=w-\frac1L(Sw-cu)$, so $w_+-cS^{-1}u=(I-S/L)\,r$, which is shorter by $1-\mu/L$.  Hence the sine of the
S-angle between w and $S^{-1}u$ falls by $1-\mu/L$ at least, and $\rho-\rho^*=|\rho^*|\sin^2$.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class GradientIdentity(NamedTuple):
    """Both sides of the identity between a gradient's size and the distance to the optimum, each (...)."""

    lhs: Tensor
    rhs: Tensor


@dataclass(frozen=True, eq=False)
class LeastSquares:
    r"""Least squares with $S=E\,xx^\top$ (d, d), symmetric positive definite, and $u=-E\,yx$ (d,), not zero.

    Weights have shape (..., d): any number of runs side by side; what is returned per run has shape (...).
    Population statistics, no centring and eps = 0.  Give float64.  Raises ValueError for other shapes, an S
    that is not symmetric positive definite, and u = 0, for which every direction is as good.
    """

    s: Tensor
    u: Tensor

    def __post_init__(self) -> None:
        """Refuse what the theorems do not speak of."""
        positive_definite(self.s, "S")
        has_direction(self.s, self.u)

    @cached_property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of S, (d,), ascending: the first is mu, the last is L."""
        return torch.linalg.eigvalsh(self.s)

    @property
    def mu(self) -> float:
        """The smallest eigenvalue of S."""
        return self.eigenvalues[0].item()

    @property
    def smoothness(self) -> float:
        """L, the largest eigenvalue of S: f / 2 is L-smooth."""
        return self.eigenvalues[-1].item()

    @cached_property
    def optimum(self) -> Tensor:
        r"""$\tilde w^*=-S^{-1}u$, (d,)."""
        return -torch.linalg.solve(self.s, self.u)

    @cached_property
    def rho_star(self) -> Tensor:
        r"""$\rho^*=-u^\top S^{-1}u=f(\tilde w^*)$, a scalar."""
        return self.u @ self.optimum

    def norm(self, w: Tensor) -> Tensor:
        r"""$\|w\|_S=\sqrt{w^\top Sw}$, (...): what the layer divides by.  Raises ValueError for w = 0."""
        squared = ((w @ self.s) * w).sum(-1)
        if bool((squared == 0).any()):
            raise ValueError(
                "The weights are zero: they have no direction, and the layer cannot divide by 0."
            )
        return squared.sqrt()

    def loss(self, w: Tensor) -> Tensor:
        r"""$f(\tilde w)=2u^\top\tilde w+\tilde w^\top S\tilde w$, (...): without the layer; no $E\,y^2$."""
        return 2 * w @ self.u + ((w @ self.s) * w).sum(-1)

    def weights(self, w: Tensor, g: Tensor) -> Tensor:
        r"""$\tilde w=gw/\|w\|_S$, (..., d): the weights that direction w and length g (...) stand for."""
        return (g / self.norm(w))[..., None] * w

    def best_length(self, w: Tensor) -> Tensor:
        r"""$g=-u^\top w/\|w\|_S$, (...): the length that is best with the direction w."""
        return -(w @ self.u) / self.norm(w)

    def rho(self, w: Tensor) -> Tensor:
        r"""$\rho(w)=-(u^\top w)^2/w^\top Sw$, (...): the loss with the best length."""
        return -(self.best_length(w) ** 2)

    def gap(self, w: Tensor) -> Tensor:
        r"""$\rho(w)-\rho^*=|\rho^*|\sin^2$ of the S-angle between w and $S^{-1}u$, (...).

        Computed from what is left of w off that line, and so to full relative accuracy however small it is,
        where the difference $\rho(w)-\rho^*$ would round.
        """
        along = (w @ self.u)[..., None] / self.rho_star * self.optimum  # the S-projection on the line
        return -self.rho_star * (self.norm_or_zero(w - along) / self.norm(w)) ** 2

    def norm_or_zero(self, w: Tensor) -> Tensor:
        """`norm`, of a vector that may be zero."""
        return ((w @ self.s) * w).sum(-1).clamp_min(0).sqrt()

    def gradient(self, w: Tensor) -> Tensor:
        r"""$\nabla\rho(w)=-\frac2{\|w\|_S^2}\big[(u^\top w)u+\rho(w)Sw\big]$, (..., d), orthogonal to w."""
        inner, rho = (w @ self.u)[..., None], self.rho(w)[..., None]
        return -2 / self.norm(w)[..., None] ** 2 * (inner * self.u + rho * (w @ self.s))

    def gradient_identity(self, w: Tensor) -> GradientIdentity:
        r"""$\|w\|_S^2\,\|\nabla\rho(w)\|_{S^{-1}}^2/4|\rho(w)|=\rho(w)-\rho^*$: only optima have gradient 0.

        So $\rho$ has no other critical points, save where $u^\top w=0$.  Raises ValueError there ($\rho=0$).
        """
        self._has_slope(w)
        gradient = self.gradient(w)
        solved = torch.linalg.solve(self.s, gradient[..., None])[..., 0]
        squared = (gradient * solved).sum(-1)
        return GradientIdentity(self.norm(w) ** 2 * squared / (4 * self.rho(w).abs()), self.gap(w))

    def step_size(self, w: Tensor) -> Tensor:
        r"""$\eta=\|w\|_S^2/2L|\rho(w)|$, (...).  Raises ValueError where $u^\top w=0$, as the step does."""
        self._has_slope(w)
        return self.norm(w) ** 2 / (2 * self.smoothness * self.rho(w).abs())

    def step(self, w: Tensor) -> Tensor:
        r"""One step of gradient descent on $\rho$, (..., d): $w-\eta\nabla\rho=w-\frac1L(Sw-cu)$."""
        return w - self.step_size(w)[..., None] * self.gradient(w)

    def bound(self, w: Tensor, steps: int) -> Tensor:
        r"""$(1-\mu/L)^{2t}(\rho(w_0)-\rho^*)$ for t = 0..steps, (steps + 1, ...), which `gap` stays below.

        It holds for `step`, from any $w_0$ = `w` with $u^\top w\ne0$.  Source: Kohler et al. 2019, section 3.
        """
        powers = torch.arange(steps + 1, dtype=self.s.dtype).reshape(-1, *[1] * (w.ndim - 1))
        return (1 - self.mu / self.smoothness) ** (2 * powers) * self.gap(w)

    @property
    def asymptotic_rate(self) -> float:
        r"""The factor by which a late step multiplies $\rho-\rho^*$: exact, where the bound is not.

        In coordinates $S^{1/2}w$, near the optimum, a step multiplies what is off the line by
        $\Pi(I-S/L)\Pi$, with $\Pi$ the orthogonal projector off $S^{-1/2}u$.  The rate is the square of that
        matrix's largest eigenvalue: between the squares for the smallest and the second smallest eigenvalue
        of S, so at most $(1-\mu/L)^2$, and less unless u is orthogonal to the former's eigenvector.
        """
        values, vectors = torch.linalg.eigh(self.s)
        line = (vectors.T @ self.u) / values.sqrt()
        line = line / line.norm()
        off = torch.eye(len(line), dtype=line.dtype) - torch.outer(line, line)
        return torch.linalg.eigvalsh(off * (1 - values / self.smoothness) @ off)[-1].item() ** 2

    def descend(self, w: Tensor, steps: int) -> Tensor:
        """The path of `step` from `w`, (steps + 1, ..., d)."""
        path = [w]
        for _ in range(steps):
            path.append(self.step(path[-1]))
        return torch.stack(path)

    def descend_without(self, w: Tensor, steps: int, lr: float | None = None) -> Tensor:
        r"""Gradient descent without the layer, on f / 2: $\tilde w_+=\tilde w-\text{lr}\,(S\tilde w+u)$.

        With lr = 1 / L, the default, $f-f^*=\|\tilde w-\tilde w^*\|_S^2$ falls by $(1-\mu/L)^2$ a step at
        least: the very bound of `step`, as the paper says itself.  So Wikipedia ("Batch
        normalization"), for which the rate with the layer "is faster than the regular gradient descent with
        only sub-linear convergence", is wrong for positive definite S; what is remarkable is that $\rho$ is
        not convex.  The path, (steps + 1, ..., d); it diverges for lr > 2 / L.
        """
        lr = 1 / self.smoothness if lr is None else lr
        path = [w]
        for _ in range(steps):
            path.append(path[-1] - lr * (path[-1] @ self.s + self.u))
        return torch.stack(path)

    def _has_slope(self, w: Tensor) -> None:
        if bool((w @ self.u == 0).any()):
            raise ValueError("The weights are orthogonal to u: rho is 0 there, a maximum; start elsewhere.")


class Trained(NamedTuple):
    """Direction and length after training both with fixed learning rates: `w` (..., d), `g` (...)."""

    w: Tensor
    g: Tensor


def train_both(
    problem: LeastSquares,
    w: Tensor,
    g: Tensor,
    lr: float | Tensor,
    lr_length: float = 1.0,
    steps: int = 1,
) -> Trained:
    r"""Gradient descent on f / 2 in direction and length at once, with fixed learning rates.

    $$w_+=w-\text{lr}\,\frac g{\|w\|_S}\Big(u-\frac{u^\top w}{\|w\|_S^2}Sw\Big),\qquad
    g_+=g-\text{lr}_g\Big(g+\frac{u^\top w}{\|w\|_S}\Big)$$

    The gradient is orthogonal to w, so $\|w\|$ only grows, and with it shrinks the step's effect on the
    direction: it converges for every lr > 0 as long as $0<\text{lr}_g\le1$, where gradient descent without
    the layer needs lr < 2 / L.  A huge lr is merely slow, because its first steps make w huge.

    `w` (..., d), `g` (...), `lr` a number or (...), one for each run; raises ValueError for w = 0 and for
    learning rates outside those ranges.  Source: Cai, Li and Shen 2019 (arXiv:1810.00122), whose loss is f /
    2.
    """
    lr = torch.as_tensor(lr, dtype=w.dtype)
    if not bool((lr > 0).all()) or not 0 < lr_length <= 1:
        raise ValueError("The weights' learning rate must be positive and the length's between 0 and 1.")
    for _ in range(steps):
        size, inner, product = problem.norm(w), w @ problem.u, w @ problem.s
        off = problem.u - (inner / size**2)[..., None] * product
        w, g = w - (lr * g / size)[..., None] * off, g - lr_length * (g + inner / size)
    return Trained(w, g)


def positive_definite(matrix: Tensor, name: str) -> None:
    """Raise ValueError unless the matrix is square, symmetric (to rounding) and positive definite."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be a square matrix, not of shape {tuple(matrix.shape)}.")
    if not torch.allclose(matrix, matrix.T, rtol=1e-12, atol=0) or torch.linalg.cholesky_ex(matrix).info:
        raise ValueError(f"{name} must be symmetric and positive definite.")


def has_direction(matrix: Tensor, u: Tensor) -> None:
    """Raise ValueError unless u has one value for each row of the matrix, and not all are zero."""
    if u.shape != matrix.shape[:1]:
        raise ValueError(f"u must have shape {tuple(matrix.shape[:1])}, not {tuple(u.shape)}.")
    if not bool(u.any()):
        raise ValueError("u is zero: the inputs say nothing about the target, so no direction is best.")
