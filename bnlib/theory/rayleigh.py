r"""The generalised Rayleigh quotient and the rate of Knyazev and Neymeyr (2003), used by Kohler et al.

$\rho(w)=w^\top Bw/w^\top Aw$ with A positive definite is largest, $\lambda_1$, at the first eigenvector of
$A^{-1}B$, whose eigenvalues are $\lambda_1>\lambda_2\ge\dots\ge\lambda_{\min}$.  Gradient ascent
preconditioned with a matrix T finds it; how fast depends on T.  Least squares with batch normalization is the
case A = S, $B=uu^\top$, T = I / L: then $\lambda_2=\lambda_{\min}=0$, and the step is
`least_squares.LeastSquares.step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bnlib.theory.least_squares import positive_definite


class KnyazevNeymeyr(NamedTuple):
    r"""Both sides of the theorem for one step, each (...)."""

    lhs: Tensor
    rhs: Tensor
    before: Tensor  # lambda_1 - rho(w)
    after: Tensor  # lambda_1 - rho(w_+)
    rate: float  # q


@dataclass(frozen=True, eq=False)
class RayleighQuotient:
    r"""$\rho(w)=w^\top Bw/w^\top Aw$ for A, symmetric positive definite, and B, symmetric; both (d, d).

    Vectors have shape (..., d), what is returned per vector (...).  Give float64.  Raises ValueError for
    other shapes, an A that is not symmetric positive definite, and a B that is not symmetric.
    """

    a: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        """Refuse what has no real eigenvalues, or only one."""
        positive_definite(self.a, "A")
        if len(self.a) < 2:
            raise ValueError("A must have at least two rows: with one there is a single direction.")
        if self.b.shape != self.a.shape or not torch.allclose(self.b, self.b.T, rtol=1e-12, atol=0):
            raise ValueError(f"B must be symmetric and of the shape {tuple(self.a.shape)} of A.")

    @cached_property
    def eigenpairs(self) -> tuple[Tensor, Tensor]:
        r"""The eigenvalues of $A^{-1}B$, (d,), descending, and its eigenvectors V, (d, d), $V^\top AV=I$."""
        factor = torch.linalg.cholesky(self.a)
        half = torch.linalg.solve_triangular(factor, self.b, upper=False)
        whole = torch.linalg.solve_triangular(factor, half.T, upper=False)
        values, vectors = torch.linalg.eigh((whole + whole.T) / 2)
        return values.flip(0), torch.linalg.solve_triangular(factor.T, vectors.flip(1), upper=True)

    @property
    def eigenvalues(self) -> Tensor:
        r"""The eigenvalues of $A^{-1}B$, (d,), descending."""
        return self.eigenpairs[0]

    def rho(self, w: Tensor) -> Tensor:
        r"""$\rho(w)$, (...)."""
        return ((w @ self.b) * w).sum(-1) / ((w @ self.a) * w).sum(-1)

    def gap(self, w: Tensor) -> Tensor:
        r"""$\lambda_1-\rho(w)$, (...), to good relative accuracy, where the difference would round.

        From coordinates $c=V^\top Aw$ in the eigenvectors: $\sum_i(\lambda_1-\lambda_i)c_i^2/\sum_ic_i^2$.
        """
        values, vectors = self.eigenpairs
        squares = (w @ self.a @ vectors) ** 2
        return squares @ (values[0] - values) / squares.sum(-1)

    def step(self, w: Tensor, t: Tensor) -> Tensor:
        r"""$w_+=w+T\,(Bw-\rho(w)Aw)/(\rho(w)-\lambda_{\min})$, (..., d), for T = `t`, (d, d).

        With $T=A^{-1}$ it is a step of the power method for $A^{-1}B-\lambda_{\min}I$, times a number.
        Raises ValueError where $\rho(w)=\lambda_{\min}$: there is no ascent direction.
        """
        rho, smallest = self.rho(w)[..., None], self.eigenvalues[-1]
        if bool((rho <= smallest).any()):
            raise ValueError("rho is at its smallest value: the step is not defined there; start elsewhere.")
        return w + (w @ self.b - rho * (w @ self.a)) / (rho - smallest) @ t.T

    @property
    def ideal_rate(self) -> float:
        r"""$q_0=1-\frac{\lambda_1-\lambda_2}{\lambda_1-\lambda_{\min}}$: the rate q with $T=A^{-1}$."""
        first, second, last = (self.eigenvalues[i].item() for i in (0, 1, -1))
        if first == last:
            raise ValueError("All eigenvalues are equal: every direction is optimal and no rate is defined.")
        return 1 - (first - second) / (first - last)

    def preconditioning(self, t: Tensor) -> float:
        r"""$\bar\gamma=\|I-TA\|_A$ = $\|I-A^{1/2}TA^{1/2}\|_2$: 0 for $T=A^{-1}$, $1-\mu/L$ for T = I / L.

        $\mu$ and L are the extreme eigenvalues of A; T = I / L is the plain, Euclidean gradient.
        """
        values, vectors = torch.linalg.eigh(self.a)
        root = vectors * values.sqrt() @ vectors.T
        identity = torch.eye(len(root), dtype=root.dtype)
        return torch.linalg.matrix_norm(identity - root @ t @ root, 2).item()

    def rate(self, t: Tensor) -> float:
        r"""$q=\bar\gamma+(1-\bar\gamma)q_0$ for T = `t`.  Raises ValueError unless $\bar\gamma<1$.

        $q_0$ alone is the rate of $T=A^{-1}$ only; quoting it for a plain gradient step promises too much.
        """
        quality = self.preconditioning(t)
        if quality >= 1:
            raise ValueError(
                f"||I - TA||_A is {quality:.3g}, not below 1: the theorem does not cover this T."
            )
        return quality + (1 - quality) * self.ideal_rate

    def theorem(self, w: Tensor, t: Tensor) -> KnyazevNeymeyr:
        r"""Both sides of the convergence theorem for one step from w with T = `t`.

        $$\frac{\lambda_1-\rho(w_+)}{\rho(w_+)-\lambda_2}\le q^2\frac{\lambda_1-\rho(w)}{\rho(w)-\lambda_2}$$

        It needs $\rho(w)>\lambda_2$; raises ValueError otherwise, and as `rate`.  The exponent is 2 for one
        step and 2t for t of them; some retellings mix the two.  Source: Knyazev and Neymeyr 2003, as used by
        Kohler et al. 2019.
        """
        between, rate = self.eigenvalues[0] - self.eigenvalues[1], self.rate(t)
        before, after = self.gap(w), self.gap(self.step(w, t))
        if bool((before >= between).any()):
            raise ValueError("rho(w) must exceed the second eigenvalue: before that the theorem is silent.")
        return KnyazevNeymeyr(
            after / (between - after), rate**2 * before / (between - before), before, after, rate
        )
