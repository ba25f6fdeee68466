"""How large the gradient is in each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bnlib import models
from bnlib.probes.state import State


def weight_gradients(state: State, at: Sequence[int] | None = None) -> Iterator[tuple[str, str, float]]:
    r"""The squared norms of every layer's weights and of their gradient on the state's batch.

    `squared_gradient` $\|\nabla_WL\|_F^2$ and `squared_weights` $\|W\|_F^2$, of convolutions and linear
    layers; BN in training mode.  `at` names the steps that count, if not all do: with every = 1 the very
    first steps can be watched and the rest left out.
    """
    if at is not None and state.step not in at:
        return
    gradients = state.here.gradient
    for name, layer in models.layers(state.model):
        for metric, tensor in (
            ("squared_gradient", gradients[f"{name}.weight"]),
            ("squared_weights", layer.weight.detach()),
        ):
            if math.isfinite(value := tensor.double().square().sum().item()):
                yield name, metric, value
