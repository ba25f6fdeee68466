"""Launches: which runs are trained together, and doing them where they are sent.

A launch is one run, or several seeds of the same settings (`bnlib.together`).  It is the unit that executors
spread over processes and machines (`bnlib.executors`), and it comes out the same wherever it is done.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bnlib import (
    data,
    directions,
    identities,
    invariances,
    machine,
    signal_propagation,
    speed,
    surfaces,
    together,
    training,
)
from bnlib.records import RecordError, Row
from bnlib.specs import Run, canonical
from bnlib.theory.wide_networks import run_rank_collapse
from bnlib.updates import How

# What a run's `task` names: a function of (settings, seed, device, tick) that returns rows.  "train" also
# takes `how`.
TASKS: dict[str, Callable[..., list[Row]]] = {
    "train": training.run,
    "identities": identities.run,
    "surfaces": surfaces.run,
    "directions": directions.run,
    "invariances": invariances.run,
    "random_network": signal_propagation.run,
    "rank_collapse": run_rank_collapse,
}

Tick = Callable[[int], None]  # is told of steps done, and of steps lost as a negative number


@dataclass(frozen=True)
class Launch:
    """Runs that are done in one go: a single one, or several seeds of the same settings."""

    runs: tuple[Run, ...]

    @property
    def steps(self) -> int:
        """Training steps of all its runs."""
        return sum(steps(run) for run in self.runs)

    def __str__(self) -> str:
        more = f" and {len(self.runs) - 1} more seeds" if len(self.runs) > 1 else ""
        return f"the run {self.runs[0].id!r}{more}"


@dataclass(frozen=True)
class Conditions:
    """What all launches of a recording have in common, wherever they are done.

    device: "cpu" or "cuda".  how: how runs are trained.  data: the fingerprint of each data set by name
    (`bnlib.data.fingerprint`).  versions, source_sha256: as in the provenance.
    """

    device: str
    how: How
    data: Mapping[str, str]
    versions: Mapping[str, str]
    source_sha256: str


@dataclass(frozen=True)
class Outcome:
    """A finished run: its rows, its share of the launch's seconds, the device that made it, how it really did
    (without what it could not do), and how many workers of that kind the recording has."""

    run: Run
    rows: list[Row]
    seconds: float
    device: dict[str, Any]
    how: How
    workers: int = 1


def steps(run: Run) -> int:
    """How many steps of the progress bar a run is."""
    return run.settings.get("steps", 1)


def grouped(runs: Iterable[Run], size: int) -> list[Launch]:
    """All runs as launches of up to `size` seeds, in the order of their first runs.

    Seeds are trained together where only the seed tells the runs apart, and where `together.possible` of
    their settings.  The same runs always give the same launches.
    """
    launches: list[list[Run]] = []
    open_launches: dict[bytes, list[Run]] = {}
    for run in runs:
        shared = size > 1 and run.task == "train" and together.possible(run.settings)
        key = canonical([run.arm, dict(run.settings)]) if shared else b""
        if shared and len(open_launches.get(key, [])) in range(1, size):
            open_launches[key].append(run)
            continue
        launches.append([run])
        if shared:
            open_launches[key] = launches[-1]
    return [Launch(tuple(members)) for members in launches]


def datasets(runs: Iterable[Run]) -> list[str]:
    """The names of the data sets that `runs` are trained on; others are made up from a seed."""
    chosen = (run.settings.get("dataset") for run in runs)
    return sorted({name for name in chosen if isinstance(name, str)})


def perform(launch: Launch, conditions: Conditions, tick: Tick) -> list[Outcome]:
    """Do the runs of a launch, in this process.

    If the memory does not suffice for several seeds at a time, they are done in two halves, and so on down to
    one.  Raises RecordError if it does not suffice for one, or if the data are not those of `conditions`;
    DataError if there are none.
    """
    for name in datasets(launch.runs):
        check_data(name, conditions.data[name])
    machine.keep_freed_memory()
    return _perform(launch.runs, conditions, tick)


def check_data(name: str, expected: str) -> None:
    """Raises RecordError if the data set of that name is not the one whose fingerprint is `expected`."""
    if data.fingerprint(name) != expected:
        raise RecordError(
            f"the data set {name} in {data.default_root()} is not the one that this recording began with: "
            "put that one back and continue with --resume, or record afresh"
        )


def _perform(runs: tuple[Run, ...], conditions: Conditions, tick: Tick) -> list[Outcome]:
    done = 0

    def count(steps: int) -> None:
        nonlocal done
        done += steps
        tick(steps)

    clock = time.monotonic()
    try:
        results = _rows(runs, conditions.device, conditions.how, count)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        results = None
    # Not in the handler: as long as the error is around, its traceback holds the tensors.
    if results is None:
        tick(-done)
        gc.collect()
        if conditions.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if len(runs) == 1:
            raise RecordError(
                f"the memory of the {conditions.device} does not suffice for the run {runs[0].id!r}: free "
                "some, take fewer workers or a larger machine, and continue with --resume"
            )
        half = (len(runs) + 1) // 2
        return [
            outcome for part in (runs[:half], runs[half:]) for outcome in _perform(part, conditions, tick)
        ]
    seconds = round((time.monotonic() - clock) / len(runs), 3)
    made = device_of(conditions), speed.as_done(conditions.how)
    return [Outcome(run, rows, seconds, *made) for run, rows in zip(runs, results, strict=True)]


def _rows(runs: tuple[Run, ...], device: str, how: How, tick: Tick) -> list[list[Row]]:
    first = runs[0]
    if len(runs) > 1:
        seeds = [run.seed for run in runs]
        return together.run(first.settings, seeds=seeds, device=device, tick=tick, how=how)
    more = {"how": how} if first.task == "train" else {}
    return [TASKS[first.task](first.settings, seed=first.seed, device=device, tick=tick, **more)]


def _is_out_of_memory(error: Exception) -> bool:
    """Is it PyTorch's or Python's word for memory that does not suffice, of a GPU or of the machine?"""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error).lower() for words in ("out of memory", "can't allocate memory"))


def device_of(conditions: Conditions) -> dict[str, Any]:
    """This machine's device, as the provenance describes it."""
    device = machine.describe(conditions.device)
    return device | {"threads_per_run": conditions.how.threads} if device["type"] == "cpu" else device
