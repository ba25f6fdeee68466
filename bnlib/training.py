"""The one training loop: plain SGD on an index stream, with probes plugged in.

All arms of a seed see the same batches and, layer by layer, the same initial weights, so that what differs
between them is the normalization alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bnlib import data, models, probes
from bnlib.probes.state import State
from bnlib.records import Row

#: name -> loss of (output, target), a scalar
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cross_entropy": F.cross_entropy,  # mean over the batch, nats
    "squared_sum": lambda output, y: (output - y).square().sum(),
    "squared_mean": lambda output, y: (output - y).square().sum() / len(y),
}

#: name -> makes the optimiser of (parameters, learning rate, weight decay, momentum)
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters, lr, decay, momentum: torch.optim.SGD(
        parameters, lr, momentum=momentum, weight_decay=decay
    ),
    "adam": lambda parameters, lr, decay, momentum: torch.optim.Adam(
        parameters, lr, betas=(momentum, 0.999), weight_decay=decay
    ),
}

FLUSH = 25  # steps between looks at the losses: a look waits for the device


Measured = Iterable[tuple[str, str, float]]  # layer, metric, value


@dataclass(frozen=True)
class Probe:
    """A measurement taken every `every` steps, before the update; it leaves no trace in the network."""

    measure: Callable[[State], Measured]
    every: int


def fit(
    model: nn.Module,
    dataset: data.Dataset,
    *,
    lr: float,
    steps: int,
    batch_size: int,
    seed: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    optimiser: str = "sgd",
    loss: str = "cross_entropy",
    loss_every: int = 1,
    plugged: Iterable[Probe] = (),
    tick: Callable[[int], None] = lambda steps: None,
) -> list[Row]:
    """Train on the loss of that name in `LOSSES` and return what was measured.

    Equation: W <- W - lr (grad L(W; batch) + weight_decay W), heavy-ball momentum if asked for, no schedule,
    no augmentation, as in Santurkar et al. (2018), appendix A.  BN in training mode.  With a batch as large
    as the data it is gradient descent.  `optimiser="adam"` is Adam (Kingma and Ba 2015) with beta_1 =
    momentum, beta_2 = 0.999.

    Rows: `train_loss` (nats for the cross-entropy, mean over each `loss_every` steps, at the first of them,
    each loss before its update), whatever the probes measure (also once at the end, at step `steps`), and, if
    a loss is not finite, `diverged_at` with the step: training stops there and what came before is kept.
    `tick(n)` is told of every n steps done.
    """
    if loss not in LOSSES:
        raise ValueError(f"Unknown loss {loss!r}; choose one of {', '.join(LOSSES)}.")
    if optimiser not in OPTIMISERS:
        raise ValueError(f"Unknown optimiser {optimiser!r}; choose one of {', '.join(OPTIMISERS)}.")
    objective = LOSSES[loss]
    stepper = OPTIMISERS[optimiser](model.parameters(), lr, weight_decay, momentum)
    device = dataset.x_train.device
    stream = data.batches(len(dataset.x_train), batch_size, seed, device=device)
    plugged = tuple(plugged)
    losses = torch.full((steps,), math.nan, device=device)
    rows: list[Row] = []
    model.train()

    def diverged(until: int) -> int | None:
        bad = (~torch.isfinite(losses[:until])).nonzero()
        return int(bad[0]) if len(bad) else None

    stop = None
    for step in range(steps + 1):
        due = [probe for probe in plugged if step % probe.every == 0 or step == steps]
        if due or step % FLUSH == 0 or step == steps:
            stop = diverged(step)
            if stop is not None:
                break
        indices = next(stream)
        x, y = dataset.x_train[indices], dataset.y_train[indices]
        if due:
            state = State(step, model, x, y, lr, dataset, objective)
            rows += [(step, *measured) for probe in due for measured in probe.measure(state)]
        if step == steps:
            break
        value = objective(model(x), y)
        stepper.zero_grad(set_to_none=True)
        value.backward()
        stepper.step()
        losses[step] = value.detach()
        tick(1)

    finite = losses[: steps if stop is None else stop].double().cpu()
    for first in range(0, len(finite), loss_every):
        rows.append((first, "", "train_loss", finite[first : first + loss_every].mean().item()))
    if stop is not None:
        rows.append((stop, "", "diverged_at", float(stop)))
        tick(steps - step)
    return rows


def run(
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: str = "cpu",
    tick: Callable[[int], None] = lambda steps: None,
) -> list[Row]:
    """Build what `settings` declares, train it, and return the rows.

    Settings: `dataset` (a name for `data.load`, or the arguments of `data.linear_map`), `model` (arguments of
    `bnlib.models.build`, with its `name`), `norm`, `where`, `init`, `gain`, `gamma`, `noise` (see
    `models.initialise`), `eval_every`, `probes` (name in `bnlib.probes.PROBES` -> `every` and the probe's
    arguments), `dtype` and the keyword arguments of `fit`.
    """
    model, dataset, rest = prepare(settings, seed=seed, device=device)
    plugged = []
    if every := rest.pop("eval_every", None):
        plugged.append(Probe(probes.evaluation, every))
    for name, arguments in rest.pop("probes", {}).items():
        if name not in probes.PROBES:
            raise ValueError(f"Unknown probe {name!r}; choose one of {', '.join(probes.PROBES)}.")
        arguments = dict(arguments)
        every = arguments.pop("every")
        plugged.append(Probe(partial(probes.PROBES[name], **arguments), every))
    return fit(model, dataset, seed=seed, plugged=plugged, tick=tick, **rest)


def prepare(
    settings: Mapping[str, Any], *, seed: int, device: str = "cpu"
) -> tuple[nn.Module, data.Dataset, dict[str, Any]]:
    """The network at its start, the data set, and those of the settings that neither has used."""
    rest = dict(settings)
    dtype = getattr(torch, rest.pop("dtype", "float32"))
    dataset = _dataset(rest.pop("dataset"), seed, device, dtype)
    architecture = {**rest.pop("model"), "norm": rest.pop("norm"), "where": rest.pop("where")}
    model = models.build(**architecture, **_input_arguments(architecture["name"], dataset))
    names = ("gain", "gamma", "noise")
    models.initialise(model, rest.pop("init"), seed=seed, **{n: rest.pop(n) for n in names if n in rest})
    return model.to(device=device, dtype=dtype, memory_format=torch.channels_last), dataset, rest


def _dataset(chosen: str | Mapping[str, int], seed: int, device: str, dtype: torch.dtype) -> data.Dataset:
    if isinstance(chosen, str):
        return data.load(chosen, device=device, dtype=dtype)
    return data.linear_map(**chosen, seed=seed, device=device, dtype=dtype)


def _input_arguments(model: str, dataset: data.Dataset) -> dict[str, int]:
    """What a model must know of the images and the classes."""
    if model == "deep_linear":
        return {}
    channels, height, width = dataset.x_train.shape[1:]
    sizes = {
        "vgg": {"in_channels": channels},
        "digit_cnn": {"in_channels": channels, "size": height},
        "mlp": {"in_features": channels * height * width},
    }
    return {**sizes[model], "classes": dataset.classes}
