r"""Theorem 4.1 of Santurkar et al. (2018), term by term, in every batch normalization layer of a network.

The network's own backward pass gives both gradients: $g=\nabla_zL$ at the layer's output and $\nabla_yL$ at
its input.  Train mode: BN uses the statistics of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bnlib import models
from bnlib.norms import BatchNorm
from bnlib.probes.state import State
from bnlib.probes.tracing import no_trace
from bnlib.theory import Theorem41, theorem_4_1


class LayerGradients(NamedTuple):
    """What one batch norm saw: input `y`, output `z`, the loss's gradients at both, all of one shape; `gamma`
    of shape (C,), None meaning 1."""

    y: Tensor
    z: Tensor
    g_y: Tensor
    g_z: Tensor
    gamma: Tensor | None
    eps: float


def batch_norm_gradients(
    model: nn.Sequential,
    x: Tensor,
    target: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    layers: Sequence[str] | None = None,
) -> dict[str, LayerGradients]:
    """One pass forward and backward; the gradients at every batch norm, by the name of the layer before it.

    `layers` are names as in `models.layers`; None means all.  A layer that no batch norm follows is left out;
    where noise follows the batch norm, z is before the noise.  The model's mode is used as it is, and in
    train mode its running statistics move: call it inside `no_trace`.  Raises ValueError for an unknown name.
    """
    blocks = {block.layer: model[block.end - 1] for block in models.blocks(model)}
    if unknown := [name for name in layers or () if name not in blocks]:
        raise ValueError(f"There is no layer {unknown[0]!r}; choose from {', '.join(blocks)}.")
    found = {
        name: part
        for name in (blocks if layers is None else layers)
        for part in blocks[name].modules()
        if isinstance(part, BatchNorm)
    }
    if not found:
        return {}
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[norm] = (inputs[0], output)

    hooks = [norm.register_forward_hook(keep) for norm in found.values()]
    try:
        value = loss(model(x), target)
    finally:
        for hook in hooks:
            hook.remove()
    ends = [seen[norm] for norm in found.values()]
    gradients = torch.autograd.grad(value, [tensor for pair in ends for tensor in pair])
    measured = zip(found.items(), ends, gradients[::2], gradients[1::2], strict=True)
    return {
        name: LayerGradients(
            y.detach(), z.detach(), g_y, g_z, None if norm.weight is None else norm.weight.detach(), norm.eps
        )
        for (name, norm), (y, z), g_y, g_z in measured
    }


def batch_norm_terms(
    state: State, layers: Sequence[str] | None = None, channels: int = 4
) -> Iterator[tuple[str, str, float]]:
    r"""Theorem 4.1 on the state's batch, in every layer that a batch norm follows (or in those of `layers`).

    $$\|\nabla_yL\|^2=\frac{\gamma^2}{s^2}\Big(\|g\|^2-\tfrac1m\langle1,g\rangle^2
    -\tfrac{1+\delta}m\langle g,\hat y\rangle^2\Big),\quad s^2=\sigma^2+\epsilon,\ \delta=\epsilon/s^2$$

    Rows, sums over the layer's channels: `thm41_lhs` $\|\nabla_yL\|^2$; `thm41_output`
    $\frac{\gamma^2}{s^2}\|g\|^2$ and the two terms taken from it, `thm41_mean` and `thm41_scale`;
    `thm41_printed`, the right side as printed, with $1/\sqrt m$; `thm41_gradient` $\|g\|^2$.  The same for
    each of the first `channels` channels as `thm41_lhs[c]` and so on, with `thm41_factor[c]` $\gamma^2/s^2$
    and `thm41_inner[c]` $\langle g,\hat y\rangle$.  Over the channels through which a gradient flows:
    `thm41_factor`, the mean factor; `thm41_aligned`, the share with $\langle g,\hat y\rangle\ge0$;
    `thm41_printed_violated`, the share where the printed right side is smaller than the left; `thm41_error`,
    the largest |left - right| in units of $\frac{\gamma^2}{s^2}\|g\|^2$.

    The left side is the norm of the network's own gradient at y, the right side is formed in float64 from its
    y and g.  So `thm41_error` is the rounding of the training's own precision: some 1e-7 in float32, 1e-15 in
    float64.
    """
    with no_trace(state.model) as model:
        measured = batch_norm_gradients(model, state.x, state.y, state.loss, layers)
        for layer, seen in measured.items():
            gamma = None if seen.gamma is None else seen.gamma.double()
            y, g_z, g_y = (tensor.double() for tensor in (seen.y, seen.g_z, seen.g_y))
            terms = theorem_4_1(y, g_z, gamma, seen.eps, g_y)
            for metric, value in _rows(terms, channels).items():
                if math.isfinite(value):
                    yield layer, f"thm41_{metric}", value


def _rows(terms: Theorem41, channels: int) -> dict[str, float]:
    summed = {
        "lhs": terms.lhs,
        "output": terms.factor * terms.output_norm,
        "mean": terms.factor * terms.mean_term,
        "scale": terms.factor * (1 + terms.delta) * terms.scale_term,
        "printed": terms.printed,
        "gradient": terms.output_norm,
    }
    each = summed | {"factor": terms.factor, "inner": terms.inner}
    found = {metric: values.sum().item() for metric, values in summed.items()}
    for metric, values in each.items():
        found |= {f"{metric}[{c}]": value for c, value in enumerate(values[:channels].tolist())}
    live = summed["output"] > 0
    if live.any():
        found["factor"] = terms.factor[live].mean().item()
        found["aligned"] = (terms.inner >= 0)[live].double().mean().item()
        found["printed_violated"] = (terms.lhs > terms.printed)[live].double().mean().item()
        found["error"] = terms.error.max().item()
    return found
