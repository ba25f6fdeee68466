"""Chapter 6: error surfaces.  Slices between the start and the solutions of several optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bnlib.experiments.quantities import BySeed, median_by_seed, paired, ratio, smallest
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

if TYPE_CHECKING:
    import pandas as pd

CHAPTER = "06-error-surfaces"

ARMS: dict[str, dict[str, Any]] = {
    "standard": {"norm": "none", "where": "nowhere"},
    "bn": {"norm": "batch", "where": "everywhere"},
}
OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1},
    "momentum": {"lr": 0.01, "momentum": 0.9},
    "adam": {"lr": 0.001, "momentum": 0.9, "optimiser": "adam"},
}
#: multiples of the Glorot initialisation; at 1 all optimisers, at the others SGD alone
GAINS = [0.25, 0.5, 1.0, 2.0, 4.0]
#: relative lengths, in units of the filters' norms, of the walks around a solution
LENGTHS = [round(0.1 * k, 1) for k in range(-10, 11)]
NO_SLICES = {"plane": [], "lengths": [], "directions": 0, "random_plane": []}


def _positions(low: float, high: float, count: int) -> list[float]:
    return [round(low + (high - low) * k / (count - 1), 4) for k in range(count)]


def _surfaces(scale: str, seed: int) -> list[Run]:
    images = {"dataset": "cifar10", "batch_size": 128, "size": 512}
    common, steps, grid, directions = {
        "smoke": (
            {"dataset": "digits", "model": {"name": "digit_cnn"}, "batch_size": 64, "size": 256},
            40,
            5,
            2,
        ),
        "laptop": ({**images, "model": {"name": "vgg", "config": "A", "width": 0.125}}, 400, 21, 10),
        "paper": ({**images, "model": {"name": "vgg", "config": "A", "width": 1.0}}, 15000, 41, 10),
    }[scale]
    line = _positions(-0.25, 1.5, 8 if scale == "smoke" else 36)
    slices = {
        "plane": _positions(-0.5, 1.5, grid),
        "lengths": LENGTHS[::5] if scale == "smoke" else LENGTHS,
        "directions": directions,
        "random_plane": _positions(-1.0, 1.0, grid),
    }
    runs = []
    for arm, norm in ARMS.items():
        for gain in GAINS[::2] if scale == "smoke" else GAINS:
            optimisers = OPTIMISERS if gain == 1.0 else {"sgd": OPTIMISERS["sgd"]}
            settings = {
                **norm,
                **common,
                "init": "glorot_uniform",
                "gain": gain,
                "optimisers": optimisers,
                "steps": steps * len(optimisers),
                "line": line,
                **(slices if gain == 1.0 else NO_SLICES),
            }
            runs.append(Run(arm, seed, settings, ("gain",), task="surfaces"))
    return runs


EXPERIMENTS = [
    Experiment(
        name="surfaces",
        title="Slices through the loss of a narrow VGG-A on CIFAR-10, between starts and solutions",
        chapter=CHAPTER,
        question="What does the surface look like on the way, between solutions, and around one?",
        runs=_surfaces,
    )
]


# -- measured quantities ---------------------------------------------------------------------------------


def lines(record: Record, gain: float = 1.0) -> pd.DataFrame:
    """Losses on straight lines: rows (arm, seed, mode, one, other, position, value).

    mode: "training" or "evaluation", that of BN; one, other: "start" or an optimiser's name, at positions 0
    and 1.
    """
    frame = record.frame("gain")
    parts = frame["metric"].str.extract(r"^(evaluation_)?line\[(.+)-(.+)\]@(.+)$")
    kept = parts[1].notna() & (frame["gain"] == gain)
    frame, parts = frame[kept], parts[kept]
    return frame[["arm", "seed"]].assign(
        mode=parts[0].notna().map({True: "evaluation", False: "training"}),
        one=parts[1],
        other=parts[2],
        position=parts[3].astype(float),
        value=frame["value"],
    )


def walks(record: Record) -> pd.DataFrame:
    """Losses around the first solution: rows (arm, seed, direction, length, value); direction is "gradient"
    (downhill for positive lengths) or "random 0", "random 1", ..."""
    frame = record.frame()
    parts = frame["metric"].str.extract(r"^(random|gradient)\[(\d+|-)\]@(.+)$")
    kept = parts[0].notna()
    frame, parts = frame[kept], parts[kept]
    return frame[["arm", "seed"]].assign(
        direction=parts[0].str.cat(parts[1].where(parts[1] != "-", ""), sep=" ").str.strip(),
        length=parts[2].astype(float),
        value=frame["value"],
    )


def plane(record: Record, name: str = "plane") -> pd.DataFrame:
    """Losses on a plane ("plane" or "random_plane"): rows (arm, seed, s, t, value)."""
    frame = record.frame()
    parts = frame["metric"].str.extract(rf"^{name}@(.+),(.+)$")
    kept = parts[0].notna()
    frame, parts = frame[kept], parts[kept]
    return frame[["arm", "seed"]].assign(
        s=parts[0].astype(float), t=parts[1].astype(float), value=frame["value"]
    )


def ends(record: Record, metric: str = "end_loss", optimiser: str = "sgd") -> pd.DataFrame:
    """A value at the end of training: rows (arm, gain, seed, layer, value); see `bnlib.surfaces.run`."""
    frame = record.frame("gain", metric=f"{metric}[{optimiser}]")
    return frame[["arm", "gain", "seed", "layer", "value"]]


def minima(values: list[float], prominence: float = 0.01) -> int:
    """How many valleys a profile has: local minima, ends counted, separated by rises of more than
    `prominence` times the profile's range on both sides."""
    height = prominence * (max(values) - min(values))
    count, lowest, highest, falling = 0, values[0], values[0], True
    for value in values:
        if falling:
            lowest = min(lowest, value)
            if value > lowest + height:
                count, falling, highest = count + 1, False, value
        else:
            highest = max(highest, value)
            if value < highest - height:
                falling, lowest = True, value
    return count + falling


def barrier(profile: pd.DataFrame) -> float:
    """How far the loss on a line rises above its higher end, between positions 0 and 1 (0: not at all)."""
    inside = profile[(profile["position"] >= 0) & (profile["position"] <= 1)]
    finish = inside[inside["position"].isin([0.0, 1.0])]["value"].max()
    return float(inside["value"].max() - finish)


def single_valleys(record: Record, arm: str) -> BySeed:
    """The share of lines with one valley only: from the start through each solution, and random ones."""
    through = lines(record)
    through = through[(through["mode"] == "training") & (through["one"] == "start")]
    around = walks(record)
    around = around[around["direction"] != "gradient"]
    profiles = [(through, ["seed", "other"], "position"), (around, ["seed", "direction"], "length")]
    found: dict[int, list[bool]] = {}
    for frame, keys, order in profiles:
        for (seed, _), profile in frame[frame["arm"] == arm].groupby(keys):
            found.setdefault(int(seed), []).append(minima(profile.sort_values(order)["value"].tolist()) == 1)
    return {seed: sum(single) / len(single) for seed, single in found.items()}


def barriers(record: Record, arm: str) -> BySeed:
    """The smallest barrier (nats) on a line between two optimisers' solutions, BN in training mode."""
    frame = lines(record)
    frame = frame[(frame["arm"] == arm) & (frame["mode"] == "training") & (frame["one"] != "start")]
    found: dict[int, float] = {}
    for (seed, _, _), profile in frame.groupby(["seed", "one", "other"]):
        found[int(seed)] = min(found.get(int(seed), math.inf), barrier(profile))
    return found


def spread_over_gains(record: Record, arm: str) -> BySeed:
    """Largest minus smallest final loss (nats, training images, SGD) over the scales of initialisation.  A
    network that has diverged counts as guessing among ten classes."""
    final = {(run["seed"], run["settings"]["gain"]): math.log(10) for run in record.runs if run["arm"] == arm}
    frame = ends(record)
    for row in frame[frame["arm"] == arm].itertuples():
        final[row.seed, row.gain] = row.value
    return {
        seed: max(v for (s, _), v in final.items() if s == seed)
        - min(v for (s, _), v in final.items() if s == seed)
        for seed in {s for s, _ in final}
    }


def rise(record: Record, arm: str, direction: str = "gradient") -> pd.DataFrame:
    """How far the loss (nats) rises from the solution, at the longest walk, the larger of both ways: rows
    (seed, direction, value) for the "gradient" or the "random" directions."""
    frame = walks(record)
    frame = frame[(frame["arm"] == arm) & frame["direction"].str.startswith(direction)]
    longest = frame["length"].abs().max()
    far = frame[frame["length"].abs() == longest].groupby(["seed", "direction"])["value"].max()
    here = frame[frame["length"] == 0].groupby(["seed", "direction"])["value"].first()
    return (far - here).rename("value").reset_index()


def _hidden(record: Record) -> BySeed:
    """Rise along the gradient over the largest rise along a random direction, the smaller of both arms."""

    def arm_ratio(arm: str) -> BySeed:
        steep = {int(row.seed): float(row.value) for row in rise(record, arm).itertuples()}
        drawn = rise(record, arm, "random").groupby("seed")["value"].max()
        return ratio(steep, {int(seed): float(value) for seed, value in drawn.items()})

    return smallest(arm_ratio(arm) for arm in ARMS)


def _spread(metric: str) -> Callable[[Record], BySeed]:
    def measure(record: Record) -> BySeed:
        frame = record.frame("gain", metric=metric)
        # The first layer sees the images, the same in both arms.
        frame = frame[(frame["gain"] == 1.0) & ~frame["layer"].isin(["conv1", "linear1"])]
        return ratio(
            median_by_seed(frame[frame["arm"] == "standard"]), median_by_seed(frame[frame["arm"] == "bn"])
        )

    return measure


_VALLEYS = (
    "share of lines with a single valley: from the start through each optimiser's solution (-0.25 to 1.5), "
    "and ten random filter-normalised ones around SGD's (-1 to 1)"
)

CLAIMS = [
    Claim(
        id="unimodal-bn",
        statement="With batch normalization a line through the error surface has one sharp valley.",
        source="bektursun_blog",
        where="«Error Surface», after Im, Tao and Branson",
        chapter=CHAPTER,
        experiment="surfaces",
        quantity=_VALLEYS,
        unit="",
        measure=lambda record: single_valleys(record, "bn"),
        criterion=Criterion(">", 0.9),
        note="The blog speaks of jumps in performance; we count valleys of the training loss.",
    ),
    Claim(
        id="bumpy-standard",
        statement="Without batch normalization lines through the error surface are bumpy.",
        source="bektursun_blog",
        where="«Error Surface», after Im, Tao and Branson",
        chapter=CHAPTER,
        experiment="surfaces",
        quantity=_VALLEYS,
        unit="",
        measure=lambda record: single_valleys(record, "standard"),
        criterion=Criterion("<", 0.9),
    ),
    Claim(
        id="initial-scale",
        statement="With batch normalization training depends less on the scale of the initial weights.",
        source="bektursun_blog",
        where="«Error Surface», after Im, Tao and Branson",
        chapter=CHAPTER,
        experiment="surfaces",
        quantity=(
            "largest minus smallest final training loss over initial weights of 1/4 to 4 times the Glorot "
            "scale, SGD: standard minus BN"
        ),
        unit="nats",
        measure=lambda record: paired(spread_over_gains(record, "standard"), spread_over_gains(record, "bn")),
        criterion=Criterion(">", 0.1),
    ),
    Claim(
        id="different-basins",
        statement="Different optimisers, started at the same point, end in different valleys.",
        source="im2016",
        where="experiments with several optimisers",
        chapter=CHAPTER,
        experiment="surfaces",
        quantity=(
            "how far the loss rises on the straight line between two optimisers' solutions, the pair and the "
            "arm where it is smallest"
        ),
        unit="nats",
        measure=lambda record: smallest(barriers(record, arm) for arm in ARMS),
        criterion=Criterion(">", 0.1),
    ),
    Claim(
        id="hidden-direction",
        statement="Random slices through the surface miss its steep directions.",
        source="li2018",
        where="not claimed there; a check of what filter-normalised slices show",
        chapter=CHAPTER,
        experiment="surfaces",
        quantity=(
            "rise of the loss along the gradient divided by the largest along ten random filter-normalised "
            "directions of the same length, the arm where it is smaller"
        ),
        unit="times",
        measure=_hidden,
        criterion=Criterion(">", 1.0),
    ),
    Claim(
        id="rounder-start",
        statement="At the start, batch normalization makes the inputs of the layers less lopsided.",
        source="hinton2012",
        where="lecture 6b: shifting and scaling the inputs; here for hidden layers",
        chapter=CHAPTER,
        experiment="surfaces",
        quantity=(
            "largest over mean eigenvalue of the second moments of a layer's inputs, median over the layers "
            "behind the first, at the start: standard divided by BN"
        ),
        unit="times",
        measure=_spread("input_spread"),
        criterion=Criterion(">", 1.0),
    ),
    Claim(
        id="rounder-end",
        statement="After training, batch normalization makes the inputs of the layers less lopsided.",
        source="hinton2012",
        where="lecture 6b: shifting and scaling the inputs; here for hidden layers",
        chapter=CHAPTER,
        experiment="surfaces",
        quantity=(
            "largest over mean eigenvalue of the second moments of a layer's inputs, median over the layers "
            "behind the first, after training with SGD: standard divided by BN"
        ),
        unit="times",
        measure=_spread("input_spread[sgd]"),
        criterion=Criterion(">", 1.0),
    ),
]
