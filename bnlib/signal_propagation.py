"""Gradients in one wide random network, and what the theory of infinite width says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from bnlib.records import Row
from bnlib.theory import mean_field, wide_networks
from bnlib.theory.mean_field import Activation

#: name -> activation, element by element
ACTIVATIONS: dict[str, Activation] = {
    "linear": lambda u: u,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "sigmoid": torch.sigmoid,
}


def run(
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: str = "cpu",
    tick: Callable[[int], None] = lambda steps: None,
) -> list[Row]:
    r"""A random network at initialisation, measured layer by layer; float64, on the CPU whatever `device`.

    Settings: `network`, "plain" or "residual"; `norm`, one of `wide_networks.NORMALIZATIONS`; `activation`,
    one of `ACTIVATIONS`; `depth` in layers or blocks, `width`, `batch_size`, `weight_variance` (times the
    width).  See `wide_networks` for both networks.

    Rows, at the layers h1, h2, ... of a plain network and at x0, x1, ... between the blocks of a residual
    one: `gradient`, the squared norm $\|\nabla L\|^2$ over the whole batch; `variance` over the batch.  Then,
    without a layer: for a plain network `rate`, by which the squared norm grows per layer going back (see
    `wide_networks.measured_rate`); for a residual one `growth`, first over last, and, with batch
    normalization, `exponent` (see `measured_exponent`).  What is predicted for infinite width has the prefix
    `predicted_`; of a network without normalization nothing is.  Raises ValueError for an unknown network or
    activation.
    """
    if settings["activation"] not in ACTIVATIONS:
        raise ValueError(
            f"Unknown activation {settings['activation']!r}; choose one of {', '.join(ACTIVATIONS)}."
        )
    if settings["network"] not in ("plain", "residual"):
        raise ValueError(f'network must be "plain" or "residual", not {settings["network"]!r}.')
    plain = settings["network"] == "plain"
    make = wide_networks.plain_network if plain else wide_networks.residual_network
    layers = make(
        settings["depth"],
        settings["width"],
        settings["batch_size"],
        ACTIVATIONS[settings["activation"]],
        settings["norm"],
        seed,
        settings["weight_variance"],
    )
    rows: list[Row] = []
    for k, (gradient, spread) in enumerate(
        zip(layers.gradient.tolist(), layers.variance.tolist(), strict=True)
    ):
        layer = f"h{k + 1}" if plain else f"x{k}"
        rows += [(0, layer, "gradient", gradient), (0, layer, "variance", spread)]
    if plain:
        measured = {"rate": wide_networks.measured_rate(layers.gradient).item()}
    else:
        measured = {"growth": (layers.gradient[0] / layers.gradient[-1]).item()}
        if settings["norm"] == "batch":
            measured["exponent"] = wide_networks.measured_exponent(layers).item()
    measured |= _predicted(settings)
    tick(1)
    return rows + [(0, "", metric, value) for metric, value in measured.items()]


class Prediction(NamedTuple):
    """What infinite width predicts: the `rate` per layer, and the `start` of residual networks."""

    norm: str  # "batch" or "layer"
    activation: str
    batch_size: float
    rate: float
    start: float


def predict(norm: str, activation: str, batch_size: float, weight_variance: float = 2.0) -> Prediction:
    r"""The factor $\lambda$ and the $k_0$ of `mean_field.residual_growth`, with one of the norms "batch" and
    "layer".

    With layer normalization the batch plays no role.  `batch_size` may be math.inf.  Raises ValueError as
    `mean_field.moments`, KeyError for an unknown activation.
    """
    phi = ACTIVATIONS[activation]
    if norm == "batch":
        rate = mean_field.growth_rate(phi, batch_size)
        start = mean_field.residual_start(phi, batch_size, weight_variance)
    else:
        rate = mean_field.layer_norm_growth_rate(phi)
        start = 1 / (weight_variance * mean_field.moments(phi).square)
    return Prediction(norm, activation, batch_size, rate, start)


def _predicted(settings: Mapping[str, Any]) -> dict[str, float]:
    if settings["norm"] not in ("batch", "layer"):
        return {}
    names = ("norm", "activation", "batch_size", "weight_variance")
    found = predict(*(settings[name] for name in names))
    if settings["network"] == "plain":
        return {"predicted_rate": found.rate}
    growth = mean_field.residual_growth(found.rate, settings["depth"], found.start)
    exponent = {"predicted_exponent": found.rate} if settings["norm"] == "batch" else {}
    return {"predicted_growth": growth} | exponent
