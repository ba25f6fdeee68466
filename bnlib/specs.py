"""What is declared: runs, experiments, claims.  Plain data, standard library only.

Both sides of the house read these declarations: the compute side runs them, the display side judges and shows
what came out.  Nothing here trains or draws.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlib.records import Record

SCALES = ("smoke", "laptop", "paper")
ENOUGH_SEEDS = 5


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no white space: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def setting(settings: Mapping[str, Any], name: str) -> Any:
    """A run's setting by name, also one of its model's (`depth`, `width`); None if it has none of that
    name."""
    return settings.get(name, settings.get("model", {}).get(name))


@dataclass(frozen=True)
class Run:
    """One training run (or one other measurement): an arm, a seed and everything that settles the result.

    `settings` are the keyword arguments of the task named by `task` (see `bnlib.launches.TASKS`);
    `factors` names the settings that tell the runs of one arm apart, so that `id` can be read.
    """

    arm: str
    seed: int
    settings: Mapping[str, Any]
    factors: tuple[str, ...] = ()
    task: str = "train"

    @property
    def id(self) -> str:
        """For example `bn lr=0.1 seed=0`; unique within an experiment."""
        middle = "".join(f" {name}={setting(self.settings, name)}" for name in self.factors)
        return f"{self.arm}{middle} seed={self.seed}"

    @property
    def digest(self) -> str:
        """SHA-256 of everything that settles the result."""
        spec = {"task": self.task, "arm": self.arm, "seed": self.seed, "settings": dict(self.settings)}
        return hashlib.sha256(canonical(spec)).hexdigest()


@dataclass(frozen=True)
class Experiment:
    """A question and the runs that answer it, at each scale.

    `runs(scale, seed)` lists one seed's runs: all arms of a seed share initialisation and batches.
    """

    name: str
    title: str
    chapter: str
    question: str
    runs: Callable[[str, int], list[Run]]
    seeds: Mapping[str, int] = field(default_factory=lambda: {"smoke": 2, "laptop": 5, "paper": 5})

    def all_runs(self, scale: str, seeds: int | None = None) -> list[Run]:
        """The runs of seeds 0 .. seeds-1 (the declared number if None), in a fixed order."""
        if scale not in SCALES:
            raise ValueError(f"there is no scale {scale!r}: choose {', '.join(SCALES)}")
        count = self.seeds[scale] if seeds is None else seeds
        if count < 1:
            raise ValueError(f"an experiment needs at least one seed, not {count}")
        runs = [run for seed in range(count) for run in self.runs(scale, seed)]
        if len({run.id for run in runs}) != len(runs):
            raise ValueError(f"experiment {self.name!r} declares two runs with the same id")
        return runs


@dataclass(frozen=True)
class Criterion:
    """What the measured quantity must satisfy, fixed before anyone looks."""

    relation: str  # ">" or "<"
    threshold: float

    def satisfied(self, value: float) -> bool:
        if self.relation not in (">", "<"):
            raise ValueError(f"a criterion compares with > or <, not {self.relation!r}")
        return value > self.threshold if self.relation == ">" else value < self.threshold

    def digits(self, *values: float) -> int:
        """How many significant digits, three or more, keep each rounded value on its side of the threshold:
        1.0016 must not stand as 1 beside "> 1"."""

        def side(number: float) -> tuple[bool, bool]:
            return number < self.threshold, number > self.threshold

        enough = (n for n in range(3, 10) if all(side(float(f"{v:.{n}g}")) == side(v) for v in values))
        return next(enough, 10)

    def __str__(self) -> str:
        return f"{self.relation} {self.threshold:g}"


@dataclass(frozen=True)
class Claim:
    """A statement of the literature made measurable.

    `measure(record)` returns one value per seed, in which arms are compared pairwise (same initialisation,
    same batches).  A seed whose value cannot be formed is left out and counts against the number of seeds.
    """

    id: str
    statement: str
    source: str  # bib key
    where: str  # figure, section or theorem of the source
    chapter: str
    experiment: str
    quantity: str
    unit: str
    measure: Callable[[Record], dict[int, float]]
    criterion: Criterion
    note: str = ""

    def verdict(self, values: list[float]) -> str:
        """*holds* if every seed satisfies the criterion, *fails* if none does, else *inconclusive*.

        Fewer than five seeds are always inconclusive: with five, a fair coin gives all heads 1 time in 32.
        """
        if len(values) < ENOUGH_SEEDS:
            return "inconclusive"
        yes = sum(self.criterion.satisfied(value) for value in values)
        return "holds" if yes == len(values) else "fails" if yes == 0 else "inconclusive"

    def judge(self, record: Record) -> dict[str, Any]:
        """The claim's row of the scoreboard: median and range over the seeds, and the verdict."""
        values = [value for _, value in sorted(self.measure(record).items())]
        return {
            "id": self.id,
            "statement": self.statement,
            "source": self.source,
            "where": self.where,
            "chapter": self.chapter,
            "experiment": self.experiment,
            "scale": record.scale,
            "n_seeds": len(values),
            "quantity": self.quantity,
            "unit": self.unit,
            "value": median(values) if values else None,
            "low": min(values) if values else None,
            "high": max(values) if values else None,
            "digits": self.criterion.digits(*values),
            "criterion": str(self.criterion),
            "verdict": self.verdict(values),
            "note": self.note,
        }
