r"""The spectrum of a symmetric matrix that is known only by its products with vectors: Lanczos' method.

The Hessian H of a network with n parameters has n^2 entries, too many to store, but a product Hv costs only
as much as a few gradients.  From m products, starting with a vector v, Lanczos' method gives the m nodes and
weights of the Gauss quadrature for v's *spectral measure*,

$$\frac{v^\top f(H)\,v}{v^\top v}=\sum_i\frac{\langle v,q_i\rangle^2}{\|v\|^2}f(\lambda_i)
=\sum_{k=1}^m\omega_kf(\theta_k)\quad\text{for every polynomial f of degree}\le2m-1,$$

$\lambda_i$, $q_i$ being the eigenvalues and eigenvectors of H.  The average over random v is the spectrum's
own measure: *stochastic Lanczos quadrature*.  Sources: Golub and Meurant 1994; Ubaru, Chen and Saad 2017; for
networks Ghorbani, Krishnan and Xiao 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


class Tridiagonal(NamedTuple):
    r"""What m Lanczos steps leave: $HQ=QT+\beta_mq_{m+1}e_m^\top$ with T tridiagonal and $Q^\top Q=I$.

    `diagonal` (m,) and `off_diagonal` (m - 1,) of T, and `residual` $\beta_m$, in float64, in H's unit;
    `basis` $Q^\top$, (m, n), in the start's dtype: its first row is the start over its norm.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    basis: Tensor
    residual: float


def lanczos(product: Product, start: Tensor, steps: int) -> Tridiagonal:
    r"""At most `steps` Lanczos steps from `start` (n,), with `product` v -> Hv for the symmetric H.

    $$\beta_{k+1}q_{k+1}=Hq_k-\alpha_kq_k-\beta_kq_{k-1},\qquad\alpha_k=\langle q_k,Hq_k\rangle$$

    In exact arithmetic every $q_{k+1}$ is orthogonal to all earlier ones.  Rounding destroys that as soon as
    the first eigenvalue is found, which then comes again and again as a "ghost".  So each new vector is
    orthogonalised against all earlier ones, twice (once is not enough, twice is); that takes m n numbers of
    memory.  If the vectors span a subspace that H maps into itself, the steps end there (or go on in rounding
    errors, with weights that round to 0), and the quadrature is exact for every function.

    Raises ValueError for a start that is zero or not a vector and for fewer than one step, ArithmeticError
    if a product is not finite.
    """
    if start.ndim != 1 or not start.norm() > 0:
        raise ValueError("The start must be a vector that is not zero.")
    if steps < 1:
        raise ValueError(f"Give at least one step, not {steps}.")
    steps = min(steps, len(start))
    basis = start.new_empty(steps, len(start))
    basis[0] = start / start.norm()
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for k in range(steps):
        q = basis[k]
        w = product(q)
        diagonal.append((q.double() @ w.double()).item())
        for _ in range(2):
            w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
        residual = w.double().norm().item()
        if not math.isfinite(diagonal[-1]) or not math.isfinite(residual):
            raise ArithmeticError("A product with the matrix is not finite, so it has no spectrum.")
        size = max(map(abs, diagonal + off_diagonal))
        if k + 1 == steps or residual <= torch.finfo(start.dtype).eps * size:
            break
        off_diagonal.append(residual)
        basis[k + 1] = w / w.norm()
    return Tridiagonal(_float64(diagonal), _float64(off_diagonal), basis[: k + 1], residual)


class Ritz(NamedTuple):
    r"""The eigenvalues $\theta_k$ of T, ascending, and what they say of H; (m,), float64.

    `weights` $\omega_k$ sum to 1.  Some eigenvalue of H lies within `errors`, $\beta_m|s_{mk}|$, of each
    $\theta_k$.  `vectors` (m, m) has as columns $s_k$ the eigenvectors of T; $Qs_k$ is that of H, nearly.
    """

    values: Tensor
    weights: Tensor
    errors: Tensor
    vectors: Tensor


def ritz(t: Tridiagonal) -> Ritz:
    r"""Eigenvalues of T with the weights $\omega_k=s_{1k}^2$, the squared first components.

    The k-th largest $\theta$ is never larger than the k-th largest eigenvalue of H, nor the k-th smallest
    smaller.  Several steps are needed to find an eigenvalue, fewest for those far from all others.
    An eigenvalue of H that occurs several times is found once, with the weights added.
    """
    matrix = torch.diag(t.diagonal) + torch.diag(t.off_diagonal, 1) + torch.diag(t.off_diagonal, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return Ritz(values, vectors[0].square(), t.residual * vectors[-1].abs(), vectors)


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of an n x n matrix as seen from several random starts; `size` is n."""

    size: int
    draws: tuple[Ritz, ...]

    def moment(self, k: int) -> float:
        r"""$\operatorname{tr}H^k/n$, estimated by the mean of $v^\top H^kv/n$ over the draws.

        Exactly that mean for k <= 2m - 1.
        """
        each = [(found.weights * found.values**k).sum().item() for found in self.draws]
        return math.fsum(each) / len(each)

    @property
    def trace(self) -> float:
        """Hutchinson's estimate of tr H: n times the first moment."""
        return self.size * self.moment(1)

    def largest(self, count: int = 1) -> Tensor:
        """The `count` largest eigenvalues, descending, (count,), as far as all draws have as many values.

        Never too large (see `ritz`), so each is the best of all draws.
        """
        count = min(count, *(len(found.values) for found in self.draws))
        return torch.stack([found.values.flip(0)[:count] for found in self.draws]).amax(0)

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue; never too small."""
        return min(found.values[0].item() for found in self.draws)

    def density(self, grid: Tensor, width: float) -> Tensor:
        r"""The share of eigenvalues per unit, blurred: each becomes a Gaussian of standard deviation `width`.

        $$\varphi(t)=\frac1n\sum_iN(t;\lambda_i,\varsigma^2)
        \approx\frac1{\text{draws}}\sum_{\text{draws}}\sum_k\omega_kN(t;\theta_k,\varsigma^2)$$

        at the points t of `grid`; shaped like it, in 1 / H's unit, with integral 1.  With m steps, structure
        finer than about $(\lambda_{max}-\lambda_{min})/m$ inside the bulk is not resolved: choose `width`
        accordingly.  Raises ValueError unless `width` is positive.
        """
        if not width > 0:
            raise ValueError(f"The width must be positive, not {width}.")
        values = torch.cat([found.values for found in self.draws])
        weights = torch.cat([found.weights for found in self.draws]) / len(self.draws)
        z = (grid.to(values)[..., None] - values) / width
        return (torch.exp(-z.square() / 2) * weights).sum(-1) / (width * math.sqrt(2 * math.pi))


def rademacher(size: int, seed: int, draw: int = 0) -> Tensor:
    r"""A random vector of signs, $\pm1$ at even odds, (size,), float64; torch's random state is not touched.

    $E[vv^\top]=I$, so $E[v^\top Av]=\operatorname{tr}A$, and of a diagonal A every v gives the trace exactly.
    A stream of its own for every pair of `seed` and `draw`.
    """
    # A key of its own: the start must not repeat a stream that drew weights.
    stream = np.random.SeedSequence((seed, draw), spawn_key=(3,)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(stream[0]))
    return 2.0 * torch.randint(2, (size,), generator=generator, dtype=torch.float64) - 1


def spectrum(product: Product, size: int, steps: int, draws: int, seed: int = 0) -> Spectrum:
    """Stochastic Lanczos quadrature: `steps` Lanczos steps from each of `draws` random vectors of signs.

    `product` maps float64 vectors (size,) to such; costs steps * draws products.  Raises as `lanczos`, and
    ValueError for no draws.
    """
    if draws < 1:
        raise ValueError(f"Give at least one draw, not {draws}.")
    starts = (rademacher(size, seed, draw) for draw in range(draws))
    return Spectrum(size, tuple(ritz(lanczos(product, start, steps)) for start in starts))


def _float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
