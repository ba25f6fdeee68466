r"""Random networks as deep and wide as one likes, measured: gradients and ranks at initialisation.

What `mean_field` predicts for infinite width.  Activations have shape (batch, width); weights are normal.
Everything is float64, with eps = 0 and the batch's own statistics (train mode), without gamma and beta.
torch's global random state is neither read nor changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlib import norms
from bnlib.theory.mean_field import Activation

NORMALIZATIONS = ("batch", "layer", "none")


class Layers(NamedTuple):
    r"""Layer by layer, from the input on; fields of shape (depth,).

    `gradient` is $\|\partial L/\partial h^l\|^2$, the squared norm; `variance` the variance of $h^l$ over the
    batch (biased), averaged over the units.
    """

    gradient: Tensor
    variance: Tensor


def plain_network(
    depth: int,
    width: int,
    batch: int,
    activation: Activation = torch.relu,
    norm: str = "batch",
    seed: int = 0,
    weight_variance: float = 2.0,
) -> Layers:
    r"""$h^l=W^lx^{l-1}$, $x^l=\phi(\operatorname{norm}(h^l))$ for l = 1..depth, measured at each $h^l$.

    The inputs $x^0$, of shape (batch, width), are standard normal, and so is R in the loss, a random linear
    readout $\langle R,x^L\rangle$.  The entries of W have the variance `weight_variance` / width (2: He),
    which "batch" and "layer" cancel.  `norm` is one of `NORMALIZATIONS`.  Raises ValueError for another one,
    and for "batch" with one sample.
    """
    random = torch.Generator().manual_seed(seed)
    x, places = _normal(random, batch, width), []
    with torch.enable_grad():
        for _ in range(depth):
            h = (x @ _weights(random, width, weight_variance)).requires_grad_()
            places.append(h)
            x = activation(_normalised(h, norm))
        return _measured(x, places, random)


def residual_network(
    blocks: int,
    width: int,
    batch: int,
    activation: Activation = torch.relu,
    norm: str = "batch",
    seed: int = 0,
    weight_variance: float = 2.0,
) -> Layers:
    r"""$x^{k+1}=x^k+W_2^k\,\phi(\operatorname{norm}(W_1^kx^k))$, measured at $x^0,\dots,x^K$, K = `blocks`.

    Pre-activation blocks and, as in such networks, a last normalization before the readout,
    $L=\langle R,\operatorname{norm}(x^K)\rangle$.  The fields have shape (blocks + 1,).  `weight_variance` is
    that of both weights, times the width; "batch" and "layer" cancel that of $W_1$.  Inputs, R and errors as
    in `plain_network`.  Source: He et al. 2016 for the blocks, De and Smith 2020 for the question.
    """
    random = torch.Generator().manual_seed(seed)
    x, places = _normal(random, batch, width).requires_grad_(), []
    with torch.enable_grad():
        for _ in range(blocks):
            places.append(x)
            inner = activation(_normalised(x @ _weights(random, width, weight_variance), norm))
            x = x + inner @ _weights(random, width, weight_variance)
        return _measured(_normalised(x, norm), [*places, x], random)


def measured_rate(gradient: Tensor, dropped: int = 3) -> Tensor:
    r"""The factor by which the squared norm grows per layer going back: the geometric mean of the ratios.

    $$\Big(\|\nabla_{h^a}L\|^2\big/\|\nabla_{h^b}L\|^2\Big)^{1/(b-a)},\qquad a=1+\text{dropped},\
    b=\text{depth}-\text{dropped}$$

    The first and last layers are dropped: input and readout are not yet what the layers make of them.  The
    mean is geometric; an arithmetic mean of ratios is too high.  `gradient` from `plain_network`, or several,
    stacked: (..., depth); the result has the shape (...).  Raises ValueError if fewer than two are left.
    """
    depth = gradient.shape[-1]
    kept = gradient[..., dropped : depth - dropped]
    if kept.shape[-1] < 2:
        raise ValueError(f"{depth} layers leave no ratio when {dropped} are dropped at each end.")
    return (kept[..., 0] / kept[..., -1]) ** (1 / (kept.shape[-1] - 1))


def measured_exponent(layers: Layers, dropped: int = 3) -> Tensor:
    r"""The exponent p of $\|\nabla_{x^k}L\|^2\propto v_k^{-p}$, $v_k$ the variance, in a residual network.

    Minus the least-squares slope of $\log\|\nabla_{x^k}L\|^2$ over $\log v_k$, without the first `dropped`
    places, where one block is not yet a small step.  The variance grows by equal amounts per block, so p is
    also the power of the depth.  Raises ValueError if fewer than two places are left.
    """
    log_variance, log_gradient = layers.variance[dropped:].log(), layers.gradient[dropped:].log()
    if len(log_variance) < 2:
        raise ValueError(
            f"{len(layers.variance)} places leave no slope when the first {dropped} are dropped."
        )
    centred = log_variance - log_variance.mean()
    return -(centred @ log_gradient) / centred.square().sum()


def soft_rank(h: Tensor) -> Tensor:
    r"""$(\operatorname{tr}M)^2/\|M\|_F^2$ with $M=h^\top h$, for h of shape (batch, width).

    A lower bound of the rank that does not depend on the scale and, unlike the rank, changes continuously: r
    for r equal singular values, 1 for samples that differ by a factor only.  Source: Daneshmand et al. 2020.
    """
    m = h.T @ h if h.shape[1] <= h.shape[0] else h @ h.T  # the same eigenvalues, but for zeros
    return m.trace().square() / m.square().sum()


def rank_collapse(depth: int, width: int, batch: int, normalised: bool = True, seed: int = 0) -> Tensor:
    r"""The soft rank after each of `depth` random linear layers, shape (depth,).

    $h^l=\text{scale}(W^lh^{l-1})$ with normal weights of variance 1 / width and standard normal inputs of
    shape (batch, width).  If `normalised`, each channel is divided by the root of its mean square over the
    batch: batch normalization that does not centre.  The soft rank then stays near the root of the width.  If
    not, nothing is normalised, and it falls to 1, as for every long product of random matrices.
    Source: Daneshmand et al. 2020.
    """
    random = torch.Generator().manual_seed(seed)
    h, ranks = _normal(random, batch, width), []
    for _ in range(depth):
        h = h @ _weights(random, width, 1.0)
        # Without normalization one factor for the whole matrix, which no rank sees, keeps it in range.
        h = h / (h.square().mean(0).sqrt() if normalised else h.square().mean().sqrt())
        ranks.append(soft_rank(h))
    return torch.stack(ranks)


def run_rank_collapse(
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: str = "cpu",
    tick: Callable[[int], None] = lambda steps: None,
) -> list[tuple[int, str, str, float]]:
    """The soft rank by depth as rows (step, layer, metric, value), the step being the number of layers.

    Settings: `depth`, `width`, `batch`, `norm` ("batch_uncentred" or "none"), `every` (layers between rows;
    the first and the last are always there).  Always on the CPU.  Raises ValueError for another `norm`.
    """
    kinds = {"batch_uncentred": True, "none": False}
    if settings["norm"] not in kinds:
        raise ValueError(f"norm must be one of {', '.join(kinds)}, not {settings['norm']!r}.")
    depth, every = settings["depth"], settings["every"]
    normalised = kinds[settings["norm"]]
    ranks = rank_collapse(depth, settings["width"], settings["batch"], normalised, seed).tolist()
    tick(1)
    shown = sorted({1, *range(every, depth + 1, every), depth})
    return [(layer, "", "soft_rank", ranks[layer - 1]) for layer in shown]


def _normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64)


def _weights(random: torch.Generator, width: int, variance: float) -> Tensor:
    return _normal(random, width, width) * (variance / width) ** 0.5


def _normalised(h: Tensor, norm: str) -> Tensor:
    if norm == "batch":
        return norms.batch_norm(h, eps=0.0).y
    if norm == "layer":  # the same, over the units of each sample instead of the samples of each unit
        return norms.batch_norm(h.T, eps=0.0).y.T
    if norm == "none":
        return h
    raise ValueError(f"norm must be one of {', '.join(NORMALIZATIONS)}, not {norm!r}.")


def _measured(output: Tensor, places: list[Tensor], random: torch.Generator) -> Layers:
    """Squared gradients at `places` of a random readout of `output`, and the variances there."""
    gradients = torch.autograd.grad((_normal(random, *output.shape) * output).sum(), places)
    return Layers(
        torch.stack([gradient.square().sum() for gradient in gradients]),
        torch.stack([h.detach().var(0, correction=0).mean() for h in places]),
    )
