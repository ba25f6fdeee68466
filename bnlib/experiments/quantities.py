"""What several chapters measure on a record: one value per seed, arms compared seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

BySeed = dict[int, float]
Combine = Callable[[float, float], float]


def paired(left: BySeed, right: BySeed, combine: Combine = lambda a, b: a - b) -> BySeed:
    """Arms compared seed by seed."""
    return {seed: combine(left[seed], right[seed]) for seed in left if seed in right}


def ratio(left: BySeed, right: BySeed) -> BySeed:
    """left / right, seed by seed; a seed whose divisor is 0 is left out."""
    return paired(left, {seed: value for seed, value in right.items() if value}, lambda a, b: a / b)


def smallest(measured: Iterable[BySeed]) -> BySeed:
    """Each seed's smallest value; seeds that lack one of the values are left out."""
    tables = list(measured)
    return {seed: min(t[seed] for t in tables) for seed in tables[0] if all(seed in t for t in tables)}


def largest(measured: Iterable[BySeed]) -> BySeed:
    """Each seed's largest value; seeds that lack one of the values are left out."""
    return {seed: -value for seed, value in smallest({s: -v for s, v in t.items()} for t in measured).items()}


def in_points(values: BySeed) -> BySeed:
    """Shares as percentages."""
    return {seed: 100 * value for seed, value in values.items()}


def median_by_seed(frame: pd.DataFrame) -> BySeed:
    """The median of `value` over everything but the seed."""
    return {int(seed): float(value) for seed, value in frame.groupby("seed")["value"].median().items()}
