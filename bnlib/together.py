"""Several seeds at once: networks of equal settings, trained in lockstep.

A small network leaves a GPU idle most of the time.  Networks that differ in their seed alone do the same work
on other numbers, so their tensors can be stacked and each operation done once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from bnlib import training
from bnlib.records import Row
from bnlib.updates import PLAIN, How, Stacked

#: what may follow a layer: functions of their input and buffers that torch's vmap knows well
NORMS = {"none", "batch", "layer", "instance", "group", "rms"}
#: the settings of `training.fit` that a stack of networks understands beside the measured ones
_PLAIN = {"optimiser": "sgd", "decayed": "all", "hidden_lr": None, "train_only": "everything"}


def possible(settings: Mapping[str, Any]) -> bool:
    """Whether seeds of these settings can be trained together: images of one data set, plain gradient descent
    of all parameters, and norms that are functions of their input and buffers alone."""
    one_data_set = isinstance(settings.get("dataset"), str)
    plain = all(settings.get(name, usual) == usual for name, usual in _PLAIN.items())
    return one_data_set and plain and settings.get("norm") in NORMS


def run(
    settings: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    device: str = "cpu",
    tick: Callable[[int], None] = lambda steps: None,
    how: How = PLAIN,
) -> list[list[Row]]:
    """What `training.run` measures for each of `seeds`, trained together; rows in the order of the seeds.

    They agree with those of single runs up to rounding, at which training is as sensitive as it is: after
    many steps the two have drifted apart, as two GPUs have.  A network that diverges stops as it would alone.
    `tick(n)` is told of every n steps done, those of all networks.  A single seed is an ordinary run.  Raises
    ValueError for settings that are not `possible`.
    """
    if len(seeds) == 1:
        return [training.run(settings, seed=seeds[0], device=device, tick=tick, how=how)]
    if not possible(settings):
        raise ValueError("Seeds of these settings cannot be trained together: run them one by one.")
    prepared = [training.prepare(settings, seed=s, device=device, layout=how.layout) for s in seeds]
    models, dataset, rest = [model for model, _, _ in prepared], prepared[0][1], prepared[0][2]
    plugged = training.probes_of(rest)
    lr, loss = rest["lr"], training.LOSSES[rest.get("loss", "cross_entropy")]
    optimiser = partial(
        training.OPTIMISERS["sgd"],
        lr=lr,
        decay=rest.get("weight_decay", 0.0),
        momentum=rest.get("momentum", 0.0),
    )
    return training.loop(
        models,
        Stacked(models, dataset, loss, optimiser, how),
        seeds=seeds,
        lr=lr,
        rate_at=lambda step: lr,
        steps=rest["steps"],
        batch_size=rest["batch_size"],
        loss_every=rest.get("loss_every", 1),
        plugged=plugged,
        tick=tick,
    )
