r"""A network with a batch norm beside the same network without it: who has the larger gradient?

Theorem 4.1 of Santurkar et al. (2018) is an equality within one network.  The paper reads it as a comparison
of two.  Here are two kinds of pairs, for every layer of a network that a batch norm follows: the same weights
with the layer's own gamma and beta, and Observation 4.3's gamma and beta, with which both networks compute
the same.  All in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from bnlib import models
from bnlib.probes.one_layer import LayerGradients, batch_norm_gradients
from bnlib.probes.scales import varying
from bnlib.probes.state import State
from bnlib.probes.tracing import noise_states, restore_noise
from bnlib.theory import Comparison, observation_4_3, same_weights, theorem_4_1
from bnlib.theory.gradients import Loss

ROUNDING = 1e-9  # relative: what is larger by less is not larger


@dataclass(frozen=True)
class NormalisedLayer:
    """A layer that a batch norm follows, in a float64 copy of the network, and the rest of that network.

    C counts the channels that vary over the batch, `channels` are their numbers.  A channel that is constant
    has no direction to normalise: the `loss` passes it on as the layer put it out.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    x: Tensor  # the layer's input
    channels: Tensor  # (C,)
    y: Tensor  # (N, C) or (N, C, H, W): the layer's output, what the batch norm receives
    g_y: Tensor  # the network's own gradient at y, shaped like it
    g_z: Tensor  # the same at the batch norm's output z
    gamma: Tensor | None  # (C,), None meaning 1
    beta: Tensor | None  # (C,), None meaning 0
    eps: float
    loss: Loss  # of activations shaped like y in the place of z: what comes after the batch norm

    def weight_norms(self, gradient: Tensor) -> Tensor:
        r"""$\|\nabla_{w_j}L\|^2$ of each unit's or filter's weights, (C,), for the `gradient` at y.

        Pulled back through the layer, $X^\top\nabla_{y_j}L$, with its actual input X.
        """
        with torch.enable_grad():
            y = self.layer(self.x)
        everywhere = torch.zeros_like(y).index_copy(1, self.channels, gradient)
        (of_weights,) = torch.autograd.grad(y, self.layer.weight, everywhere)
        return of_weights.flatten(1).square().sum(1)[self.channels]


def normalised_layers(
    state: State, layers: Sequence[str] | None = None, size: int | None = None
) -> Iterator[NormalisedLayer]:
    """Every layer that a batch norm follows (or those of `layers`) on the first `size` images of the batch.

    Works on a copy, in float64 and in training mode; the state's model is left alone.  Noise, if the model
    has any, is the same in all passes.  A layer of which every channel is constant is left out.  Raises
    ValueError for an unknown name.
    """
    model = copy.deepcopy(state.model).double().train()
    x, target = state.x[:size].double(), state.y[:size]
    if target.is_floating_point():
        target = target.double()
    noise = noise_states(model)
    measured = batch_norm_gradients(model, x, target, state.loss, layers)
    blocks = {block.layer: block for block in models.blocks(model)}

    def described(name: str, seen: LayerGradients) -> NormalisedLayer:
        block = blocks[name]
        wrapped = model[block.end - 1]
        norm, *after = wrapped if isinstance(wrapped, nn.Sequential) else [wrapped]
        rest = nn.Sequential(*after, *model[block.end :])
        channels = varying(seen.y).nonzero().flatten()

        def loss(z: Tensor) -> Tensor:
            restore_noise(model, noise)
            return state.loss(rest(seen.y.index_copy(1, channels, z)), target)

        restore_noise(model, noise)
        with torch.no_grad():
            layer_input = model[: block.start](x)
        return NormalisedLayer(
            name=name,
            layer=model[block.start],
            x=layer_input,
            channels=channels,
            y=seen.y[:, channels],
            g_y=seen.g_y[:, channels],
            g_z=seen.g_z[:, channels],
            gamma=None if seen.gamma is None else seen.gamma[channels],
            beta=None if norm.bias is None else norm.bias.detach()[channels],
            eps=seen.eps,
            loss=loss,
        )

    for name, seen in measured.items():
        if varying(seen.y).any():
            yield described(name, seen)


def one_layer_pairs(
    state: State, layers: Sequence[str] | None = None, size: int | None = None
) -> Iterator[tuple[str, str, float]]:
    r"""Theorem 4.1 within one network, and as a comparison of two, in every layer that a batch norm follows.

    $\hat L$ is the loss of the network with the layer, L of the one without, on the first `size` images of
    the state's batch (None: all).  eps = 0 in the layer, unless said.  Rows, over the channels of a layer:

    - within the network: `pairs_error`, the largest |left - right| of Theorem 4.1, corrected, in units of
      $\frac{\gamma^2}{\sigma^2}\|g\|^2$; `pairs_below`, the share with left <= right at the layer's own eps
      (up to 1e-12 in that unit).
    - the same weights, gamma and beta of the layer: `pairs_same_violated`, the share in which the right side
      with the vanilla gradient, $\nabla_yL$ for $\nabla_z\hat L$, is smaller than the left;
      `pairs_same_larger`, the share with $\|\nabla_{y_j}\hat L\|^2>\|\nabla_{y_j}L\|^2$; `pairs_same_ratio`,
      the median of left / right of that.
    - Observation 4.3, $\gamma=\sigma$ and $\beta=\mu$: `pairs_matched_larger`, `pairs_matched_ratio`.
    - the gradients of each unit's weights in place of its activations': `pairs_same_weights_larger`,
      `pairs_same_weights_ratio` and, for Observation 4.3, `pairs_weights_larger`, `pairs_weights_ratio`.

    Larger means by more than 1e-9 of the right side.  Channels that no gradient reaches in either network do
    not count, nor do constant ones, which eps = 0 does not allow.  Observation 4.3's z and y are equal up to
    rounding, so an activation that lies exactly at a kink of ReLU may count on its other side.

    `layers` are names as in `models.layers`, None meaning all.  A float64 copy of the model, in training
    mode; six passes forward and backward through the rest of the network per layer.  Raises ValueError for an
    unknown layer.  Source: Santurkar et al. 2018, theorem 4.1 and observation 4.3; see `bnlib.theory`.
    """
    for layer in normalised_layers(state, layers, size):
        for metric, value in _measured(layer).items():
            if math.isfinite(value):
                yield layer.name, f"pairs_{metric}", value


def _measured(layer: NormalisedLayer) -> dict[str, float]:
    same = same_weights(layer.y, layer.loss, layer.gamma, layer.beta)
    matched = observation_4_3(layer.y, layer.loss)
    ideal = theorem_4_1(layer.y, same.output_gradient, layer.gamma, 0.0, same.gradient)
    real = theorem_4_1(layer.y, layer.g_z, layer.gamma, layer.eps, layer.g_y)
    found: dict[str, float] = {}
    if (reached := ideal.output_norm > 0).any():
        found["error"] = ideal.error[reached].max().item()
    if (reached := real.output_norm > 0).any():
        slack = 1e-12 * real.factor * real.output_norm
        found["below"] = _share((real.lhs <= real.rhs + slack)[reached])
    if (reached := _reached(same.lhs, same.vanilla)).any():
        found["same_violated"] = _share(_larger(same.lhs, same.rhs)[reached])
    found |= _compared("same", same.lhs, same.vanilla) | _compared("matched", matched.lhs, matched.vanilla)
    found |= _compared("same_weights", *_of_weights(layer, same))
    return found | _compared("weights", *_of_weights(layer, matched))


def _of_weights(layer: NormalisedLayer, pair: Comparison) -> tuple[Tensor, Tensor]:
    return layer.weight_norms(pair.gradient), layer.weight_norms(pair.vanilla_gradient)


def _compared(name: str, with_layer: Tensor, without: Tensor) -> dict[str, float]:
    reached = _reached(with_layer, without)
    if not reached.any():
        return {}
    with_layer, without = with_layer[reached], without[reached]
    return {
        f"{name}_larger": _share(_larger(with_layer, without)),
        f"{name}_ratio": median((with_layer / without).tolist()),
    }


def _reached(with_layer: Tensor, without: Tensor) -> Tensor:
    """The channels that a gradient reaches in one of the networks, both being finite."""
    return ((with_layer > 0) | (without > 0)) & (with_layer + without).isfinite()


def _larger(left: Tensor, right: Tensor) -> Tensor:
    return left > right + ROUNDING * right.abs()


def _share(counted: Tensor) -> float:
    return counted.double().mean().item()
