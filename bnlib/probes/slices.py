r"""Slices through the loss landscape: the loss on a line or a plane in the space of all parameters.

$$L(W+s\,d),\qquad L(W+s\,d+t\,e)$$

The loss is that of the state's batch; BN is in training mode, it takes the moments of the batch anew at every
point.  Noise, if the model has any, is the same at all points.  No trace is left.  Directions: from one
network to another (Im, Tao and Branson 2016), or random with the filters' norms (Li et al. 2018).

Unlike `probes.landscape`, a random slice says little of the way that training takes: it shows one or two
directions among hundreds of thousands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from bnlib import models
from bnlib.probes.landscape import Vector, moved
from bnlib.probes.state import State
from bnlib.probes.tracing import no_trace


def line(state: State, direction: Vector, positions: Sequence[float]) -> Tensor:
    """The loss at W + s d for every s in `positions`: shape (positions,), float64, in the loss's unit.

    A loss beyond the largest number is infinite or NaN.
    """
    return torch.tensor([_loss(state, (s, direction)) for s in positions], dtype=torch.float64)


def plane(
    state: State, first: Vector, second: Vector, rows: Sequence[float], columns: Sequence[float]
) -> Tensor:
    """The loss at W + s `first` + t `second`: shape (rows, columns), s from `rows`, t from `columns`.

    One forward pass for each point; otherwise as `line`.
    """
    losses = [_loss(state, (s, first), (t, second)) for s, t in product(rows, columns)]
    return torch.tensor(losses, dtype=torch.float64).view(len(rows), len(columns))


def direction_to(model: nn.Module, end: Mapping[str, Tensor]) -> Vector:
    """From the model's parameters to those of `end`, so that on its `line` 0 is the model and 1 is `end`.

    `end` is a copy of another model's `state_dict()`, or its parameters by name.  All parameters take part:
    weights, biases, gamma, beta; running statistics do not.  Raises ValueError if `end` lacks a parameter or
    has another shape.  Source: Im, Tao and Branson 2016, section 3.
    """
    direction = {}
    for name, parameter in model.named_parameters():
        if name not in end or end[name].shape != parameter.shape:
            raise ValueError(f"`end` must hold {name} of shape {tuple(parameter.shape)}, as the model does.")
        direction[name] = end[name].detach() - parameter.detach()
    return direction


def filter_normalised(model: nn.Module, seed: int) -> Vector:
    r"""A random direction whose filters have the norms of the model's own: $d_{lj}\|W_{lj}\|/\|d_{lj}\|$.

    $W_{lj}$ is filter j of convolution l, or all weights into one unit of a linear layer; d is Gaussian.
    Biases, gamma and beta stay.  So the slice is the same if filters that batch norm follows are rescaled,
    each by its own factor, up to the norm's eps.  d depends on the seed and on the layer's position and
    shape: the arms of an experiment get the same one.  Source: Li, Xu, Taylor, Studer and Goldstein 2018,
    section 4.
    """
    direction = {}
    for position, (name, layer) in enumerate(models.layers(model)):
        weight = layer.weight.detach()
        # A key of its own: a direction must not repeat the stream that drew the weights.
        stream = np.random.SeedSequence((seed, position), spawn_key=(2,)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(stream[0]))
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
        scale = _filter_norms(weight.double()) / _filter_norms(drawn)
        direction[f"{name}.weight"] = (drawn * scale).to(weight.dtype)
    return direction


def random_slice(
    state: State, positions: Sequence[float], seed: int = 0, dimensions: int = 1
) -> Iterator[tuple[str, str, float]]:
    """A filter-normalised slice around the state, for recording.

    Rows: `slice@s` on the line of `seed`; with `dimensions=2`, `slice@s,t` on the plane of `seed` and
    `seed + 1`, both over `positions`.  A loss that is not finite is left out.
    """
    directions = [filter_normalised(state.model, seed + k) for k in range(dimensions)]
    for point in product(positions, repeat=dimensions):
        loss = _loss(state, *zip(point, directions, strict=True))
        if math.isfinite(loss):
            yield "", f"slice@{','.join(f'{t:g}' for t in point)}", loss


@torch.no_grad()
def _loss(state: State, *moves: tuple[float, Vector]) -> float:
    with no_trace(state.model) as model, moved(model, *moves):
        return state.loss(model(state.x), state.y).item()


def _filter_norms(weight: Tensor) -> Tensor:
    """One norm for each output channel or unit, shaped to broadcast."""
    return weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))
