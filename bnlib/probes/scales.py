r"""What the l_p norms of a layer's activations are in units of their standard deviation.

An l_p norm divides by $C_p$ where batch norm divides by $\sigma$.  If $C_p/\sigma$ were one constant, the
two would be the same layer with another gamma.  For many Gaussian values with mean 0 it is:
$C_1=0.798\,\sigma$, $C_2=\sigma$, $C_4=1.316\,\sigma$; but $C_\infty$ grows with their number m, about as
$\sigma\sqrt{2\log m}$.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bnlib import models
from bnlib.lp_norms import LpNorm
from bnlib.probes.state import State
from bnlib.probes.tracing import no_trace


def lp_scales(
    state: State,
    layers: Sequence[str] | None = None,
    sizes: Sequence[int] = (8, 32, 128),
    orders: Sequence[float | str] = (1, 2, 4, math.inf),
) -> Iterator[tuple[str, str, float]]:
    r"""The scale $C_p$ of what each layer's norm receives (the layer's own output), in units of $\sigma$.

    The network runs once on the whole batch of the state; y are a layer's outputs for the first `size`
    images, m = size (or size times pixels) values per channel.  With the biased $\sigma^2$ of these values,

    $$C_p=\Big(\frac1m\sum_i|y_i|^p\Big)^{1/p},\qquad C_\infty=\max_i|y_i|.$$

    Rows, averaged over the channels that vary: `lp_scale[p]@size` $C_p/\sigma$, of y as it is, as in the
    paper; `lp_scale_centred[p]@size`, the same of $y-\mu$; `lp_variance[p]@size` $\sigma^2/C_p^2$ with the
    first $C_p$, the variance of the paper's normalised activations at gamma = 1.  For p = 2 that is
    $\sigma^2/(\sigma^2+\mu^2)$, which is 1 only where $\mu=0$.

    `layers` are names as in `models.layers`, None meaning all; `orders` are at least 1, infinity may be
    written "inf"; sizes larger than the batch are left out.  Training mode.  Raises ValueError for an unknown
    layer, an order below 1 or a size below 1.  Source: Santurkar et al. 2018, section 3.3.
    """
    if min(sizes, default=1) < 1:
        raise ValueError(f"A size is a number of images, at least 1, not {min(sizes)}.")
    with torch.no_grad(), no_trace(state.model) as model:
        received = outputs(model, state.x, layers)
    for layer, whole in received.items():
        for size in sizes:
            if size > len(whole):
                continue
            y = whole[:size]
            if not (counted := varying(y)).any():
                continue
            y = y[:, counted].double()
            for order in map(float, orders):
                for metric, values in _scales(y, order).items():
                    if math.isfinite(value := values.mean().item()):
                        yield layer, f"{metric}[{order:g}]@{size}", value


def outputs(model: nn.Sequential, x: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """What each of `layers` itself puts out, before its norm, in one pass that stops after the last of them.

    Shapes (N, C) or (N, C, H, W).  The model's mode is used as it is.  Raises ValueError for an unknown name.
    """
    places = {block.layer: block.start for block in models.blocks(model)}
    wanted = list(places) if layers is None else list(layers)
    if unknown := [name for name in wanted if name not in places]:
        raise ValueError(f"There is no layer {unknown[0]!r}; choose from {', '.join(places)}.")
    kept, at = {}, {places[name]: name for name in wanted}
    for position, module in enumerate(model[: max(at, default=-1) + 1]):
        x = module(x)
        if position in at:
            kept[at[position]] = x
    return {name: kept[name] for name in wanted}


def varying(y: Tensor) -> Tensor:
    """Which channels of (N, C) or (N, C, H, W) vary over the batch, as booleans (C,).

    The mean of a constant is rounded, so its variance is seldom exactly 0: what differs by less than half the
    digits of the channel's largest value counts as constant.  False also where a value is not finite.
    """
    rows = y.detach().movedim(1, 0).flatten(1)
    return rows.amax(1) - rows.amin(1) > math.sqrt(torch.finfo(y.dtype).eps) * rows.abs().amax(1)


def _scales(y: Tensor, order: float) -> dict[str, Tensor]:
    """Each quantity of `lp_scales`, one value per channel."""
    norm = LpNorm(y.shape[1], order)
    over = [d for d in range(y.ndim) if d != 1]
    variance, mean = torch.var_mean(y, over, correction=0, keepdim=True)
    scale, centred = norm.scale(y), norm.scale(y - mean)
    variance = variance.flatten()
    return {
        "lp_scale": scale / variance.sqrt(),
        "lp_scale_centred": centred / variance.sqrt(),
        "lp_variance": variance / scale.square(),
    }
