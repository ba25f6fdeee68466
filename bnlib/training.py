"""The one training loop: plain SGD on an index stream, with probes plugged in.

All arms of a seed see the same batches and, layer by layer, the same initial weights, so that what differs
between them is the normalization alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bnlib import data, models, probes
from bnlib.records import Row

FLUSH = 25  # steps between looks at the losses: a look waits for the device


@dataclass(frozen=True)
class State:
    """What a probe sees: the network after `step` updates and the batch that update `step` is about to
    use."""

    step: int
    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    lr: float
    dataset: data.Dataset


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
    loss_every: int = 1,
    plugged: Iterable[Probe] = (),
    tick: Callable[[int], None] = lambda steps: None,
) -> list[Row]:
    """Train with SGD on the mean cross-entropy and return what was measured.

    Equation: W <- W - lr (grad L(W; batch) + weight_decay W), heavy-ball momentum if asked for, no schedule,
    no augmentation, as in Santurkar et al. (2018), appendix A.  BN in training mode.

    Rows: `train_loss` (nats, mean over each `loss_every` steps, at the first of them, each loss before its
    update), whatever the probes measure (also once at the end, at step `steps`), and, if a loss is not
    finite, `diverged_at` with the step: training stops there and what came before is kept.  `tick(n)` is told
    of every n steps done.
    """
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
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
            state = State(step, model, x, y, lr, dataset)
            rows += [(step, *measured) for probe in due for measured in probe.measure(state)]
        if step == steps:
            break
        loss = F.cross_entropy(model(x), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses[step] = loss.detach()
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

    Settings: `dataset`, `model` (arguments of `bnlib.models.build`, with its `name`), `norm`, `where`,
    `init`, `gain`, `gamma` (see `models.initialise`), `eval_every`, `dtype` and the keyword arguments of
    `fit`.
    """
    rest = dict(settings)
    dataset = data.load(
        rest.pop("dataset"), device=device, dtype=getattr(torch, rest.pop("dtype", "float32"))
    )
    architecture = {**rest.pop("model"), "norm": rest.pop("norm"), "where": rest.pop("where")}
    model = models.build(**architecture, **_input_arguments(architecture["name"], dataset))
    models.initialise(
        model, rest.pop("init"), gain=rest.pop("gain", 1.0), seed=seed, gamma=rest.pop("gamma", 1.0)
    )
    model = model.to(device=device, dtype=dataset.x_train.dtype, memory_format=torch.channels_last)
    evaluation = Probe(probes.evaluation, rest.pop("eval_every"))
    return fit(model, dataset, seed=seed, plugged=[evaluation], tick=tick, **rest)


def _input_arguments(model: str, dataset: data.Dataset) -> dict[str, int]:
    """What a model must know of the images and the classes."""
    channels, height, width = dataset.x_train.shape[1:]
    sizes = {
        "vgg": {"in_channels": channels},
        "digit_cnn": {"in_channels": channels, "size": height},
        "mlp": {"in_features": channels * height * width},
    }
    return {**sizes[model], "classes": dataset.classes}
