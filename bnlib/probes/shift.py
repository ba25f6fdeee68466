r"""Internal covariate shift as a change of gradients: Definition 2.1 of Santurkar et al. (2018).

$$G_i=\nabla_{W_i}L(W_1^{(t)},\dots,W_k^{(t)};x,y),\qquad
G'_i=\nabla_{W_i}L(W_1^{(t+1)},\dots,W_{i-1}^{(t+1)},W_i^{(t)},\dots,W_k^{(t)};x,y)$$

The same batch for both; only the layers before i have moved.  BN uses the batch's statistics in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bnlib import models
from bnlib.probes.state import State
from bnlib.probes.tracing import no_trace, noise_states, restore_noise


def covariate_shift(state: State, layers: Sequence[str] | None = None) -> Iterator[tuple[str, str, float]]:
    r"""Definition 2.1 for the step that training is about to take: plain SGD, $-\eta\nabla L$, at the state's
    learning rate, for all parameters of the earlier layers (weights, biases, gamma, beta).

    Rows for each of `layers` (None: all): `shift_l2` $\|G_i-G'_i\|_2$; `shift_cosine` $\cos(G_i,G'_i)$;
    `gradient_norm` $\|G_i\|_2$; `relative_step` $\eta\|G_i\|/\|W_i\|$, how far the layer itself is about to
    move.  The first layer has no earlier ones: shift 0, cosine 1.  Gradients are those of the weights, not of
    bias, gamma or beta.  Raises ValueError for an unknown layer.
    """
    with no_trace(state.model) as model:
        gradients, noise = _gradients(state)
        step = {name: -state.lr * gradient for name, gradient in gradients.items()}
        for layer, moved in _gradients_after(state, step, layers, noise):
            before, weight = gradients[f"{layer}.weight"], model.get_parameter(f"{layer}.weight")
            yield from _comparison(layer, before, moved)
            norm, length = (tensor.detach().double().norm().item() for tensor in (before, weight))
            if math.isfinite(norm):
                yield layer, "gradient_norm", norm
            if length > 0 and math.isfinite(relative := state.lr * norm / length):
                yield layer, "relative_step", relative


def matched_covariate_shift(
    state: State, lengths: Sequence[float], layers: Sequence[str] | None = None
) -> Iterator[tuple[str, str, float]]:
    r"""Definition 2.1 for a step of equal relative length e in every earlier layer:
    $W_j-e\,\|W_j\|\,G_j/\|G_j\|$, for each e in `lengths`; biases, gamma and beta stay.

    It asks how much a network reacts to moves of the same size, whatever size the learning rate gives them.
    Rows for each of `layers` (None: all): `shift_l2@e`, `shift_cosine@e`.  Raises ValueError for an unknown
    layer.
    """
    with no_trace(state.model) as model:
        gradients, noise = _gradients(state)
        weights = {f"{name}.weight": layer.weight.detach() for name, layer in models.layers(model)}
        unit = {
            name: -weight.norm() * gradients[name] / gradients[name].norm().clamp_min(1e-30)
            for name, weight in weights.items()
        }
        for length in lengths:
            step = {name: length * direction for name, direction in unit.items()}
            for layer, moved in _gradients_after(state, step, layers, noise):
                yield from _comparison(layer, gradients[f"{layer}.weight"], moved, f"@{length:g}")


Noise = list[tuple[torch.Generator, Tensor]]


def _gradients(state: State) -> tuple[dict[str, Tensor], Noise]:
    """The gradient of every parameter on the state's batch, and the noise that was drawn for it."""
    noise = noise_states(state.model)
    here = state.here
    here.leave(state.model)  # running statistics move, as in training
    return here.gradient, noise


def _gradients_after(
    state: State, step: dict[str, Tensor], layers: Sequence[str] | None, noise: Noise
) -> Iterator[tuple[str, Tensor]]:
    """(layer, G') for each layer, when everything before it has moved by `step`.

    One pass through the moved network gives every layer the input that its moved predecessors compute.  From
    there on only the unmoved rest of the network is run, and only the gradient of the layer's own weight is
    formed: less than half of a training step per layer, on average.
    """
    model = state.model
    blocks = [b for b in models.blocks(model) if layers is None or b.layer in layers]
    known = [name for name, _ in models.layers(model)]
    if unknown := [name for name in layers or () if name not in known]:
        raise ValueError(f"There is no layer {unknown[0]!r}; choose from {', '.join(known)}.")
    inputs = _inputs_after(model, state.x, step, {block.start for block in blocks}, noise)
    for block in blocks:
        restore_noise(model, noise)  # the rest draws what it drew for G: the streams are per module
        weight = model.get_parameter(f"{block.layer}.weight")
        output = model[block.start :](inputs[block.start])
        (gradient,) = torch.autograd.grad(state.loss(output, state.y), weight)
        yield block.layer, gradient


@torch.no_grad()
def _inputs_after(
    model: nn.Sequential, x: Tensor, step: dict[str, Tensor], starts: set[int], noise: Noise
) -> dict[int, Tensor]:
    """What arrives at each position in `starts` when all parameters have moved; they are put back at once."""
    parameters = {name: model.get_parameter(name) for name in step}
    values = {name: parameter.clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter += step[name]
    restore_noise(model, noise)
    inputs = {}
    for position, module in enumerate(model):
        if position in starts:
            inputs[position] = x
        if position == max(starts):
            break
        x = module(x)
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
    return inputs


def _comparison(
    layer: str, before: Tensor, after: Tensor, suffix: str = ""
) -> Iterator[tuple[str, str, float]]:
    one, other = before.double().flatten(), after.double().flatten()
    distance, product = (one - other).norm().item(), (one.norm() * other.norm()).item()
    if math.isfinite(distance):
        yield layer, f"shift_l2{suffix}", distance
    if math.isfinite(product) and product > 0:
        # Rounding may give 1 + 1e-16.
        yield layer, f"shift_cosine{suffix}", min(1.0, max(-1.0, (one @ other).item() / product))
