r"""The distribution of activations: what each layer passes on to its nonlinearity, after its norm, if any.

All three probes look at one fixed batch of training images (`data.probe_batch`, the same at every step and in
every arm, not part of the training stream), so that what moves is the network and not the data.  Training
mode: BN uses the statistics of that batch.  `layers` are names as in `models.layers`; None means all.
Several layers cost one pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bnlib import data, models
from bnlib.probes.state import State
from bnlib.probes.tracing import no_trace, noise_states, restore_noise

#: the probabilities whose quantiles `activation_histogram` records: the edges of bins of equal mass
LEVELS = [round(0.005 + 0.99 * k / 40, 5) for k in range(41)]


def activations(model: nn.Sequential, x: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """What each of `layers` passes on to its nonlinearity, in one pass that stops after the last of them.

    Shapes (N, C) or (N, C, H, W).  The model's mode is used as it is.  Raises ValueError for an unknown name.
    """
    ends = {block.layer: block.end for block in models.blocks(model)}
    wanted = list(ends) if layers is None else list(layers)
    if unknown := [name for name in wanted if name not in ends]:
        raise ValueError(f"There is no layer {unknown[0]!r}; choose from {', '.join(ends)}.")
    kept, at = {}, {ends[name]: name for name in wanted}
    for position, module in enumerate(model[: max(at)], start=1):
        x = module(x)
        if position in at:
            kept[at[position]] = x
    return {name: kept[name] for name in wanted}


@torch.no_grad()
def activation_moments(
    state: State, layers: Sequence[str] | None = None, size: int = 128, channels: int = 4
) -> Iterator[tuple[str, str, float]]:
    r"""Mean and variance of activations, in the activations' own unit.

    For channel c of a layer, over the `size` images (and pixels): $\mu_c$ and the biased $\sigma_c^2$.  Rows:
    `mean`, the average of $\mu_c$ over all channels; `variance`, the average of $\sigma_c^2$; and `mean[c]`,
    `variance[c]` for the first `channels` channels.  Source: Ioffe and Szegedy 2015, figure 1 (b, c);
    Santurkar et al. 2018, figures 1 and 2.
    """
    x, _ = data.probe_batch(state.dataset, size)
    with no_trace(state.model) as model:
        for layer, a in activations(model, x, layers).items():
            variance, mean = _moments(a)
            yield from _finite(layer, {"mean": mean.mean(), "variance": variance.mean()})
            for c in range(min(channels, len(mean))):
                yield from _finite(layer, {f"mean[{c}]": mean[c], f"variance[{c}]": variance[c]})


@torch.no_grad()
def activation_histogram(
    state: State, layers: Sequence[str] | None = None, size: int = 128, values: int = 2**16
) -> Iterator[tuple[str, str, float]]:
    """The histogram of a layer's activations, all channels together, with bins of equal mass.

    Rows `quantile=p` for the probabilities in `LEVELS`: between two neighbours lies the same share of the
    values, so the bins are narrow where the values are dense and fit any scale.  Computed from at most about
    `values` of them, evenly spaced.
    """
    x, _ = data.probe_batch(state.dataset, size)
    with no_trace(state.model) as model:
        for layer, a in activations(model, x, layers).items():
            rows = _by_channel(a)
            sample = _thin(rows, values // len(rows)).flatten().double()
            if not torch.isfinite(sample).all():
                continue
            levels = torch.tensor(LEVELS, dtype=torch.float64, device=sample.device)
            for level, quantile in zip(LEVELS, torch.quantile(sample, levels).tolist(), strict=True):
                yield layer, f"quantile={level}", quantile


def activation_shift(
    state: State, layers: Sequence[str] | None = None, size: int = 128, values: int = 4096
) -> Iterator[tuple[str, str, float]]:
    r"""How far one training step moves the distribution of each layer's activations.

    The step is plain SGD, $W-\eta\nabla L(W;x,y)$ on the state's batch, for all parameters.  For channel c
    with values a before and a' after it, on the probe batch, Wasserstein-1 in one dimension is the mean
    distance of the sorted values, $W_1=\frac1n\sum_k|a_{(k)}-a'_{(k)}|$.  Rows, averaged over channels, in
    units of the channels' average standard deviation before the step:

    `wasserstein` $W_1$, from at most about `values` of a channel's values; `mean_shift`
    $|\mu'_c-\mu_c|$; `deviation_shift` $|\sigma'_c-\sigma_c|$; and, in the activations' own unit,
    `deviation`, the unit itself.  Noise, if the model has any, is drawn for one pass after the other, as in
    training.
    """
    x, _ = data.probe_batch(state.dataset, size)
    with no_trace(state.model) as model:
        noise = noise_states(model)
        here = state.here
        here.leave(model)  # the pass for the gradient moves running statistics, as in training
        restore_noise(model, noise)
        with torch.no_grad():
            before = activations(model, x, layers)
            for name, gradient in here.gradient.items():
                model.get_parameter(name).sub_(state.lr * gradient)
            after = activations(model, x, layers)
        for layer in before:
            yield from _finite(layer, _distances(before[layer], after[layer], values))


def _distances(before: Tensor, after: Tensor, values: int) -> dict[str, Tensor]:
    old, new = (_thin(_by_channel(a), values).double().sort(1).values for a in (before, after))
    (old_variance, old_mean), (new_variance, new_mean) = _moments(before), _moments(after)
    spread = old_variance.sqrt().mean()
    return {
        "wasserstein": (old - new).abs().mean() / spread,
        "mean_shift": (new_mean - old_mean).abs().mean() / spread,
        "deviation_shift": (new_variance.sqrt() - old_variance.sqrt()).abs().mean() / spread,
        "deviation": spread,
    }


def _moments(a: Tensor) -> tuple[Tensor, Tensor]:
    """Biased variance and mean of each channel."""
    variance, mean = torch.var_mean(_by_channel(a), 1, correction=0)
    return variance.double(), mean.double()


def _by_channel(a: Tensor) -> Tensor:
    """(N, C) or (N, C, H, W) -> (C, N) or (C, N H W)."""
    return a.movedim(1, 0).flatten(1)


def _thin(rows: Tensor, count: int) -> Tensor:
    """At most about `count` columns, evenly spaced."""
    return rows[:, :: max(1, rows.shape[1] // max(1, count))]


def _finite(layer: str, measured: dict[str, Tensor]) -> Iterator[tuple[str, str, float]]:
    for metric, value in measured.items():
        if math.isfinite(number := float(value)):
            yield layer, metric, number
