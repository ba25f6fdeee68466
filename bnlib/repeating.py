"""Do recorded runs again: does the code of today, on this machine, make the numbers of the record?"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from bnlib import data, executors, launches, machine, records, speed
from bnlib.experiments import find
from bnlib.launches import Conditions, Launch, Outcome
from bnlib.records import Record, RecordError, Row
from bnlib.specs import Run
from bnlib.updates import How

Part = tuple[Record, list[Run]]  # runs of a record

#: The difference that may be rounding, as a share of a metric's size in its layer.
ROUNDING = 1e-4
#: What settles how results are rounded, beside the device.
LIBRARIES = ("torch", "torchvision", "numpy")


@dataclass(frozen=True)
class Difference:
    """How two sets of rows of one run differ.

    numbers: of the record.  unequal: how many of them are other ones now, be it in the last bit.  apart: the
    first step at which one differs by more than `ROUNDING`, or was measured in one of them only; None if
    there is no such step.  where: the metric, and its layer, that differs most at that step, or, if none is
    apart, anywhere.  largest: its difference as a share of the metric's size, the largest absolute value that
    the record has of it in that layer; infinite if it was measured in one of them only.
    """

    numbers: int
    unequal: int
    apart: int | None
    where: str
    largest: float


@dataclass(frozen=True)
class Repeat:
    """One run done again.  alike: whether the device and the libraries are those that recorded it, so that
    the numbers should be the same."""

    name: str
    scale: str
    run: str
    steps: int
    alike: bool
    difference: Difference

    @property
    def good(self) -> bool:
        """False if the same kind of machine has made other numbers, beyond rounding."""
        return self.difference.apart is None or not self.alike

    def __str__(self) -> str:
        found = self.difference
        said = f"{self.name}/{self.scale}, {self.run}: {found.numbers:,} numbers, "
        if not found.unequal:
            return said + "the same bits"
        if found.apart is None:
            return (
                said + f"{found.unequal:,} rounded otherwise, by {found.largest:.0e} at most ({found.where})"
            )
        said += f"apart from step {found.apart} of {self.steps} on ({found.where}"
        said += f", by {found.largest:.0e})" if math.isfinite(found.largest) else ", in one of them only)"
        return said if self.alike else said + ": another kind of machine, whose rounding training amplifies"


def repeat(
    names: Iterable[str],
    scale: str | None = None,
    *,
    runs: int = 1,
    pick: int = 0,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Iterator[Repeat]:
    """Do `runs` runs of each record named again, computed as they were then, and compare, as they come.

    scale: of the records (each one's best if None).  pick: which runs; the same number chooses the same ones,
    another one others.  workers, device: as in `bnlib.recording.record`.  Nothing is written.

    Raises RecordError if there is no such record, if it is not what is declared, if the data are others than
    it was made with, or if a run cannot be done here.
    """
    chosen = [_chosen(records.load(name, scale), runs, pick) for name in dict.fromkeys(names)]
    fingerprints = _fingerprints(chosen)
    with executors.opened(None, device=device, workers=workers, scheduler=None) as place:
        work = _by_how(chosen, place.device)
        sent = {how: _launches(parts, how) for how, parts in work.items()}
        total = sum(launch.steps for several in sent.values() for launch in several)
        with tqdm(total=total, unit="step", desc="again", disable=not progress) as bar:
            for how, parts in work.items():
                conditions = Conditions(
                    device=place.device,
                    how=how,
                    data=fingerprints,
                    versions=machine.versions(),
                    source_sha256=records.source_digest(),
                )
                with closing(place.execute(sent[how], conditions, bar.update)) as outcomes:
                    for outcome in (one for several in outcomes for one in several):
                        for record, several in parts:
                            if outcome.run.digest in {run.digest for run in several}:
                                yield _repeat(record, outcome, conditions.versions)


def compare(recorded: Sequence[Row], again: Sequence[Row]) -> Difference:
    """How the rows (step, layer, metric, value) of a run differ from those of its record, in any order."""
    before, after = (
        {(step, layer, metric): value for step, layer, metric, value in rows} for rows in (recorded, again)
    )
    sizes: dict[tuple[str, str], float] = {}
    for (_, layer, metric), value in before.items():
        if math.isfinite(value):
            sizes[layer, metric] = max(abs(value), sizes.get((layer, metric), 0.0))
    differences = {}
    for key in [*before, *(key for key in after if key not in before)]:
        a, b = before.get(key), after.get(key)
        if a != b and not (a is not None and b is not None and math.isnan(a) and math.isnan(b)):
            differences[key] = _share(a, b, sizes.get(key[1:], 0.0))
    apart = min((step for (step, *_), share in differences.items() if share > ROUNDING), default=None)
    there = {key: share for key, share in differences.items() if apart is None or key[0] == apart}
    key = max(there, key=there.__getitem__, default=None)
    return Difference(
        numbers=len(before),
        unequal=len(differences),
        apart=apart,
        where="" if key is None else f"{key[2]} of {key[1]}" if key[1] else key[2],
        largest=0.0 if key is None else there[key],
    )


def _share(a: float | None, b: float | None, size: float) -> float:
    """The difference of two unequal numbers in units of `size`; infinite if one is missing or not finite."""
    if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / size if size else math.inf


def _chosen(record: Record, count: int, pick: int) -> Part:
    """So many runs of a record, drawn at random, in the order of the declaration."""
    experiment = find(record.name)
    if problems := records.compare(record, experiment):
        raise RecordError(f"{record.name}/{record.scale}: {problems[0]}")
    declared = experiment.all_runs(record.scale, record.seeds)
    drawn = random.Random(pick).sample(range(len(declared)), min(count, len(declared)))
    return record, [declared[k] for k in sorted(drawn)]


def _sitting(record: Record, run: Run) -> Mapping[str, Any]:
    return record.sittings[next(kept["sitting"] for kept in record.runs if kept["digest"] == run.digest)]


def _how(record: Record, run: Run, device: str) -> How:
    try:
        return speed.usable(How(**_sitting(record, run).get("how", {})), device)
    except (TypeError, ValueError) as error:
        told = f"{record.name}/{record.scale} was computed in a way that this machine does not know"
        raise RecordError(f"{told}: {str(error).removesuffix('.')}") from None


def _fingerprints(chosen: Iterable[Part]) -> dict[str, str]:
    """Of each data set that the runs need; each is loaded once."""
    found: dict[str, str] = {}
    for record, several in chosen:
        for run in several:
            kept = _sitting(record, run).get("data", {})
            for name in launches.datasets([run]):
                found.setdefault(name, data.fingerprint(name))
                if kept.get(name, found[name]) != found[name]:
                    raise RecordError(
                        f"the data set {name} in {data.default_root()} is not the one that "
                        f"{record.name}/{record.scale} was recorded with: put that one there"
                    )
    return found


def _by_how(chosen: Iterable[Part], device: str) -> dict[How, list[Part]]:
    """The same, apart by the way in which the runs were computed."""
    work: dict[How, dict[str, Part]] = {}
    for record, several in chosen:
        for run in several:
            parts = work.setdefault(_how(record, run, device), {})
            parts.setdefault(record.name, (record, []))[1].append(run)
    return {how: list(parts.values()) for how, parts in work.items()}


def _launches(parts: Sequence[Part], how: How) -> list[Launch]:
    """What has to be done for these runs, each once, even if two experiments declare it; with
    `how.together`, the seeds that were trained together then."""
    left = {run.digest for _, several in parts for run in several}
    found = []
    for record, _ in parts:
        for launch in launches.grouped(find(record.name).all_runs(record.scale, record.seeds), how.together):
            members = {run.digest for run in launch.runs}
            if left & members:
                found.append(launch)
                left -= members
    return found


def _repeat(record: Record, outcome: Outcome, versions: Mapping[str, str]) -> Repeat:
    run, sitting = outcome.run, _sitting(record, outcome.run)
    alike = outcome.device["name"] == sitting["device"]["name"] and all(
        versions[name] == sitting["versions"].get(name) for name in LIBRARIES
    )
    difference = compare(records.rows_of(record, run)["rows"], outcome.rows)
    return Repeat(record.name, record.scale, run.id, launches.steps(run), alike, difference)
