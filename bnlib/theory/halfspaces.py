r"""Learning halfspaces with Gaussian inputs, and GDNP (Kohler et al. 2019, section 4).

A perceptron has the loss $f(\tilde w)=E\,\varphi(z^\top\tilde w)$ with $z=-yx$ and labels $y=\pm1$.  Let
$z\sim N(u,\Sigma)$, as when $x|y\sim N(ya,\Sigma)$, with u = -a, and $S=E\,zz^\top=\Sigma+uu^\top$.  Then
$s=z^\top\tilde w\sim N(u^\top\tilde w,\tilde w^\top\Sigma\tilde w)$, and Stein's lemma gives

$$\nabla f(\tilde w)=c_1u+c_2S\tilde w,\qquad c_1=E\varphi'(s)-E\varphi''(s)\,u^\top\tilde w,\quad
c_2=E\varphi''(s),$$

so every critical point lies on one line, that of $S^{-1}u$ or, the same, $\Sigma^{-1}u$, whatever the loss.
Length and direction come apart: the direction is a least-squares problem, the length has one dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from bnlib.theory.least_squares import GradientIdentity, LeastSquares, has_direction, positive_definite


class ScalarLoss(NamedTuple):
    r"""A loss $\varphi$ of the score $s=-y\,x^\top\tilde w$ and its first two derivatives; elementwise."""

    value: Callable[[Tensor], Tensor]
    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]


def _slope(s: Tensor) -> Tensor:
    return torch.sigmoid(s) * torch.sigmoid(-s)


def _softplus(s: Tensor) -> Tensor:
    return torch.logaddexp(s, torch.zeros_like(s))  # torch's own softplus is off by 2e-9 above 20


SOFTPLUS = ScalarLoss(_softplus, torch.sigmoid, _slope)  # logistic regression
SIGMOID = ScalarLoss(torch.sigmoid, _slope, lambda s: _slope(s) * (1 - 2 * torch.sigmoid(s)))
SQUARE = ScalarLoss(lambda s: (1 + s).square() / 2, lambda s: 1 + s, torch.ones_like)  # least squares


@lru_cache
def gauss_hermite(nodes: int) -> tuple[Tensor, Tensor]:
    r"""Nodes $t_k$ and weights of $E\,h(t)\approx\sum_k p_kh(t_k)$, $t\sim N(0,1)$, each (nodes,), float64.

    Exact for polynomials of degree below 2 * nodes.  The nodes are the eigenvalues of the Jacobi matrix of
    the Hermite polynomials (Golub and Welsch 1969).  Raises ValueError for fewer than one node.
    """
    if nodes < 1:
        raise ValueError(f"A quadrature needs at least one node, not {nodes}.")
    beside = torch.arange(1, nodes, dtype=torch.float64).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return points, vectors[0] ** 2


def equal_steps(deviation: float) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights as from `gauss_hermite`, to integrate h(s) with s of standard deviation `deviation`.

    The trapezoidal rule on $|t|\le9$ with the step 0.5, less if the deviation exceeds 1.  For an h without
    poles nearer to the real line than $\pi$, as the losses here, its error is about
    $e^{-4\pi^2}\approx10^{-17}$ at every deviation, for 36 nodes per unit of it.  Gauss-Hermite needs more in
    proportion to the square: with 200 nodes it is off by 1e-15 at 2, 1e-6 at 5 and 1e-4 at 10.
    """
    step = 0.5 / max(1.0, deviation)
    half = math.ceil(9 / step)
    points = step * torch.arange(-half, half + 1, dtype=torch.float64)
    return points, step / math.sqrt(2 * math.pi) * torch.exp(-(points**2) / 2)


@dataclass(frozen=True, eq=False)
class Gaussian:
    r"""Inputs $z\sim N(u,\Sigma)$: `u` (d,) and `sigma` (d, d); expectations are integrals over s.

    Raises ValueError for other shapes, a Sigma that is not symmetric positive definite, and u = 0.
    """

    u: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        """Refuse what is not a Gaussian's mean and covariance, and a problem without a direction."""
        positive_definite(self.sigma, "Sigma")
        has_direction(self.sigma, self.u)

    @cached_property
    def least_squares(self) -> LeastSquares:
        r"""The problem with $S=\Sigma+uu^\top$ and u: its norm, L, mu and rho are those of the theory."""
        return LeastSquares(self.sigma + torch.outer(self.u, self.u), self.u)

    def scores(self, w: Tensor) -> tuple[Tensor, Tensor]:
        r"""Values of $s=z^\top\tilde w$ and their weights, each (n,), for $\tilde w$ = `w`, (d,)."""
        deviation = (w @ self.sigma @ w).sqrt()
        points, weights = equal_steps(deviation.item())
        return w @ self.u + deviation * points, weights

    def gradient(self, w: Tensor, loss: ScalarLoss) -> Tensor:
        r"""$\nabla f(\tilde w)=c_1u+c_2S\tilde w=E\varphi'(s)\,u+E\varphi''(s)\,\Sigma\tilde w$, (d,)."""
        s, weights = self.scores(w)
        return (weights @ loss.first(s)) * self.u + (weights @ loss.second(s)) * (self.sigma @ w)


@dataclass(frozen=True, eq=False)
class Sample:
    r"""Inputs that are data: `z` (n, d) with rows $z_i=-y_ix_i$; expectations are means over the rows.

    They need not be Gaussian, and what the theory says of gradient, line and rate does not apply.  Centre the
    inputs x if they should be as the layer sees them.  Raises ValueError if $\frac1nz^\top z$ is singular.
    """

    z: Tensor

    @cached_property
    def least_squares(self) -> LeastSquares:
        """The problem with the sample's S and u."""
        s = self.z.T @ self.z / len(self.z)
        return LeastSquares((s + s.T) / 2, self.z.mean(0))  # the product rounds differently off the diagonal

    @property
    def u(self) -> Tensor:
        """The mean of z, (d,)."""
        return self.least_squares.u

    def scores(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of all rows and their equal weights, each (n,)."""
        s = self.z @ w
        return s, torch.full_like(s, 1 / len(s))

    def gradient(self, w: Tensor, loss: ScalarLoss) -> Tensor:
        r"""$\nabla f(\tilde w)=\frac1n\sum_i\varphi'(s_i)z_i$, (d,)."""
        return loss.first(self.z @ w) @ self.z / len(self.z)


@dataclass(frozen=True, eq=False)
class Halfspace:
    r"""$f(\tilde w)=E\,\varphi(z^\top\tilde w)$ and its parts in $\tilde w=gw/\|w\|_S$: w (d,), g a scalar.

    Methods raise ValueError for w = 0.  Give float64.
    """

    inputs: Gaussian | Sample
    loss: ScalarLoss = SOFTPLUS

    @property
    def geometry(self) -> LeastSquares:
        r"""S and u, and with them $\|\cdot\|_S$, L, mu and $\rho$."""
        return self.inputs.least_squares

    def weights(self, w: Tensor, g: Tensor) -> Tensor:
        r"""$\tilde w=gw/\|w\|_S$, (d,)."""
        return self.geometry.weights(w, g)

    def value(self, w: Tensor) -> Tensor:
        r"""$f(\tilde w)$ for $\tilde w$ = `w`, a scalar."""
        s, weights = self.inputs.scores(w)
        return weights @ self.loss.value(s)

    def gradient(self, w: Tensor) -> Tensor:
        r"""$\nabla f(\tilde w)$ for $\tilde w$ = `w`, (d,)."""
        return self.inputs.gradient(w, self.loss)

    def direction_gradient(self, w: Tensor, g: Tensor) -> Tensor:
        r"""$\nabla_wf=\frac g{\|w\|_S}\big(I-\frac{Sww^\top}{\|w\|_S^2}\big)\nabla f(\tilde w)$, (d,)."""
        gradient, size = self.gradient(self.weights(w, g)), self.geometry.norm(w)
        return g / size * (gradient - (w @ gradient) / size**2 * (self.geometry.s @ w))

    def length_gradient(self, w: Tensor, g: Tensor) -> Tensor:
        r"""$\partial f/\partial g=w^\top\nabla f(\tilde w)/\|w\|_S=E\,\varphi'(g\bar s)\bar s$, a scalar.

        $\bar s=z^\top w/\|w\|_S$ has $E\,\bar s^2=1$.
        """
        return w @ self.gradient(self.weights(w, g)) / self.geometry.norm(w)

    def criterion(self, w: Tensor, g: Tensor) -> Tensor:
        r"""$h(w,g)=c_1u^\top w=E\varphi'(s)(u^\top w)-E\varphi''(s)(u^\top w)(u^\top\tilde w)$, a scalar.

        GDNP stops where it is 0, and divides its step by it; at the optimum it is not 0.  With it the step in
        w is that of least squares, $w_+=w-\frac1L\big(Sw-\frac{\|w\|_S^2}{u^\top w}u\big)$, for every loss
        and every g.
        """
        first, second = self._slopes(w, g)
        along = w @ self.inputs.u
        return first * along - second * along * (g * along / self.geometry.norm(w))

    def wikipedia_criterion(self, w: Tensor, g: Tensor) -> Tensor:
        r"""$E\varphi'(s)(u^\top w)-E\varphi''(s)(u^\top w)^2$: h as Wikipedia prints it, a scalar.

        It lacks the factor $g/\|w\|_S$ in its last term, so that it depends on how long w happens to be, and
        with the step it gives the rate of `gdnp` is lost.
        """
        first, second = self._slopes(w, g)
        along = w @ self.inputs.u
        return first * along - second * along**2

    def gradient_identity(self, w: Tensor, g: Tensor) -> GradientIdentity:
        r"""Pythagoras: $\|\nabla f(\tilde w)\|_{S^{-1}}^2=c_1^2\,(\rho(w)-\rho^*)+(\partial f/\partial g)^2$.

        For Gaussian inputs, both sides, scalars.  The direction alone moves the first term and bisection
        makes the second small: with $c_1$ bounded by $\Phi$ and $\varphi''$ by $\zeta$, after T steps in
        direction and then $T_s$ halvings of a bracket with the best length in it, of width |b - a|,

        $$\|\nabla f\|_{S^{-1}}^2\le(1-\mu/L)^{2T}\Phi^2(\rho(w_0)-\rho^*)+\big(2^{-T_s-1}\zeta|b-a|\big)^2.$$

        It follows from $w^\top\nabla f/\|w\|_S=\partial f/\partial g$ and, for the rest of the gradient,
        $c_1(u-\frac{u^\top w}{\|w\|_S^2}Sw)$, whose squared $S^{-1}$-norm is $c_1^2(\rho-\rho^*)$.
        """
        gradient, (first, second) = self.gradient(self.weights(w, g)), self._slopes(w, g)
        c_1 = first - second * (self.inputs.u @ self.weights(w, g))
        return GradientIdentity(
            lhs=gradient @ torch.linalg.solve(self.geometry.s, gradient),
            rhs=c_1**2 * self.geometry.gap(w) + self.length_gradient(w, g) ** 2,
        )

    def _slopes(self, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        s, weights = self.inputs.scores(self.weights(w, g))
        return weights @ self.loss.first(s), weights @ self.loss.second(s)

    def best_length(self, w: Tensor, bracket: tuple[float, float], halvings: int) -> Tensor:
        r"""Bisection on $\partial f/\partial g$ for the length: the middle after `halvings` halvings.

        It looks right of a negative slope and left of the others, and so runs to an end of the bracket if the
        slope has one sign there; with `SIGMOID` it is negative at every g > 0 and no bracket helps.
        """
        low, high = bracket
        for _ in range(halvings):
            middle = (low + high) / 2
            if self.length_gradient(w, w.new_tensor(middle)) < 0:
                low = middle
            else:
                high = middle
        return w.new_tensor((low + high) / 2)


class Descent(NamedTuple):
    r"""The path of `gdnp`, start included: T + 1 rows if it took T steps in direction."""

    w: Tensor  # (T + 1, d)
    g: Tensor  # (T + 1,)
    gradient_norm: Tensor  # (T + 1,): ||grad f|| at the weights that w and g stand for
    stopped: bool  # by the criterion, before all the steps asked for


def gdnp(
    problem: Halfspace,
    w: Tensor,
    g: float,
    steps: int,
    halvings: int = 60,
    bracket: tuple[float, float] = (0.0, 100.0),
    tolerance: float = 0.0,
    criterion: Callable[[Halfspace, Tensor, Tensor], Tensor] = Halfspace.criterion,
) -> Descent:
    r"""Gradient descent in normalised parametrisation: `steps` times a step in direction, a best length.

    While $|h|>$ `tolerance`: $w\leftarrow w-s\nabla_wf(w,g)$ with $s=-\|w\|_S^3/(L\,g\,h(w,g))$; then g by
    `halvings` bisections of `bracket`.  With Gaussian inputs the path of w is that of
    `least_squares.LeastSquares.step`, whatever the loss and g, and with it the linear rate
    $\rho(w_t)-\rho^*\le(1-\mu/L)^{2t}(\rho(w_0)-\rho^*)$; `Halfspace.gradient_identity` turns that into a
    bound on the gradient, linear in steps and halvings, where too few of either leave a floor.  L and mu are
    those of S, not of Sigma.

    The theory assumes that a finite critical point exists.  With `SIGMOID` none does: as $\varphi'$ is even,
    for $E\bar s<0$ $\frac{d}{dg}E\varphi(g\bar s)=\int_0^\infty\varphi'(gs)\,s\,(p(s)-p(-s))\,ds<0$ at every
    g > 0.  So g runs to the end of any bracket; there h is of the order of 1 / g, and with a bracket wide
    enough for h to fall below the tolerance the direction stalls where it is.

    `w` is (d,), `g` not 0.  `criterion` is h; the other one is `Halfspace.wikipedia_criterion`.  Raises
    ValueError for g = 0, where w has no gradient, and for $u^\top w\ge0$, where no positive length is best.
    Source: Kohler et al. 2019, section 4; h is derived here, as the one that makes the rate true.
    """
    if g == 0:
        raise ValueError("The length g must not be 0: the direction has no gradient there.")
    if w @ problem.inputs.u >= 0:
        raise ValueError("u^T w must be negative, or no positive length is best: start from -w.")
    geometry, length = problem.geometry, w.new_tensor(g)
    path, stopped = [(w, length)], False
    for _ in range(steps):
        h = criterion(problem, w, length)
        if h.abs() <= tolerance:
            stopped = True
            break
        size = -(geometry.norm(w) ** 3) / (geometry.smoothness * length * h)
        w = w - size * problem.direction_gradient(w, length)
        length = problem.best_length(w, bracket, halvings)
        path.append((w, length))
    gradients = [problem.gradient(problem.weights(*point)).norm() for point in path]
    directions, lengths = (torch.stack(part) for part in zip(*path, strict=True))
    return Descent(directions, lengths, torch.stack(gradients), stopped)


def logistic_optimum(inputs: Gaussian) -> Tensor:
    r"""$\tilde w^*=-2\Sigma^{-1}u$, (d,): the one critical point with Gaussian inputs and `SOFTPLUS`.

    Its length is $g^*=\|\tilde w^*\|_S=2\sqrt{\delta^2(1+\delta^2)}$ with $\delta^2=u^\top\Sigma^{-1}u$.
    """
    return -2 * torch.linalg.solve(inputs.sigma, inputs.u)
