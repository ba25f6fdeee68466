"""Chapter 15: batch normalization taken apart.  Its start alone, its forward pass alone, and all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnlib.experiments.alternatives import best, outcomes
from bnlib.experiments.quantities import BySeed, in_points, paired, ratio
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

if TYPE_CHECKING:
    from collections.abc import Callable

CHAPTER = "15-why-it-works"

TRAINED = 0.8  # test accuracy from which a network counts as trained, as in chapter 2
START = 512  # images on which a network is normalised once, before it is trained

#: arm -> what it has of batch normalization
ARMS: dict[str, dict[str, Any]] = {
    "standard": {"norm": "none"},
    "start": {"norm": "none", "normalise_start": START},  # every layer's moments are right, at step 0
    "forward": {"norm": "detached_batch"},  # they are right at every step; the gradient does not know why
    "bn": {"norm": "batch"},  # and the gradient knows
}


def _runs(seed: int, common: dict[str, Any], rates: tuple[float, ...], factors: tuple[str, ...]) -> list[Run]:
    steps = common["steps"]
    common = {
        "where": "everywhere",
        "init": "glorot_uniform",
        "loss_every": max(1, steps // 40),
        "eval_every": steps,
        **common,
    }
    return [
        Run(arm, seed, {**common, **parts, "lr": lr}, factors) for arm, parts in ARMS.items() for lr in rates
    ]


def _vgg(scale: str, seed: int) -> list[Run]:
    """The paper's network, as in chapter 2, for a few hundred steps."""
    vgg = {"name": "vgg", "config": "A"}
    common: dict[str, Any] = {
        "smoke": {"dataset": "digits", "model": {"name": "digit_cnn"}, "batch_size": 64, "steps": 20},
        "laptop": {"dataset": "cifar10", "model": {**vgg, "width": 0.25}, "batch_size": 64, "steps": 400},
        "paper": {"dataset": "cifar10", "model": {**vgg, "width": 1.0}, "batch_size": 128, "steps": 15000},
    }[scale]
    return _runs(seed, common, (0.1,) if scale == "smoke" else (0.03, 0.1, 0.5), ("lr",))


def _deep(scale: str, seed: int) -> list[Run]:
    """A fully connected network that is too deep to be trained without care."""
    sizes: dict[str, Any] = {
        "smoke": {"dataset": "digits", "depths": (8,), "width": 32, "batch_size": 64, "steps": 20},
        "laptop": {"dataset": "mnist", "depths": (4, 12), "width": 100, "batch_size": 128, "steps": 200},
        "paper": {"dataset": "mnist", "depths": (4, 12), "width": 100, "batch_size": 128, "steps": 2000},
    }[scale]
    depths, width = sizes.pop("depths"), sizes.pop("width")
    rates = (0.1, 1.0) if scale == "smoke" else (0.01, 0.03, 0.1, 0.3, 1.0)
    return [
        run
        for depth in depths
        for run in _runs(
            seed, {**sizes, "model": {"name": "mlp", "depth": depth, "width": width}}, rates, ("depth", "lr")
        )
    ]


EXPERIMENTS = [
    Experiment(
        name="ingredients",
        title="Batch normalization taken apart, VGG-A on CIFAR-10",
        chapter=CHAPTER,
        question="How far does a network get with parts of batch normalization?",
        runs=_vgg,
    ),
    Experiment(
        name="ingredients_deep",
        title="Batch normalization taken apart, fully connected networks on MNIST",
        chapter=CHAPTER,
        question="Which part of it trains deep networks, and which allows high learning rates?",
        runs=_deep,
    ),
]


# -- measured quantities ---------------------------------------------------------------------------------


def share_of_gain(record: Record, arm: str) -> BySeed:
    """What `arm` gains over the standard network in test accuracy, as a share of what batch norm gains, each
    at its best rate (and the greatest depth), by seed; a seed in which batch norm gains nothing is left
    out."""
    standard, bn = best(record, "standard"), best(record, "bn")
    possible = {seed: gain for seed, gain in paired(bn, standard).items() if gain > 0}
    return ratio(paired(best(record, arm), standard), possible)


def largest_trained_rate(record: Record, arm: str) -> BySeed:
    """The largest rate of the grid at which the deepest network of `arm` reaches `TRAINED` on the test
    images, by seed; half the smallest one if it does at none."""
    table = outcomes(record)
    table = table[(table["arm"] == arm) & (table["depth"] == table["depth"].max())]
    found = dict.fromkeys(table["seed"].unique().tolist(), table["lr"].min() / 2)
    reached = table[table["accuracy"] >= TRAINED].groupby("seed")["lr"].max()
    return {int(seed): float(reached.get(seed, least)) for seed, least in found.items()}


def _lead(arm: str, other: str) -> Callable[[Record], BySeed]:
    return lambda record: in_points(paired(best(record, arm), best(record, other)))


def _rates(arm: str, other: str) -> Callable[[Record], BySeed]:
    return lambda record: ratio(largest_trained_rate(record, arm), largest_trained_rate(record, other))


_PILOT = "Declared after a pilot on the digits with three seeds had been looked at, before any of these runs."

CLAIMS = [
    Claim(
        id="once-suffices",
        statement="A good start is all that is needed: what batch normalization gives, it gives at step 0.",
        source="mishkin2016",
        where="title, read as a claim on batch normalization",
        chapter=CHAPTER,
        experiment="ingredients",
        quantity=(
            "test accuracy gained by normalising a VGG once, before training, as a share of what batch norm "
            "gains, each at the rate of three with the smallest training loss"
        ),
        unit="",
        measure=lambda record: share_of_gain(record, "start"),
        criterion=Criterion(">", 0.9),
        note=_PILOT,
    ),
    Claim(
        id="once-deep",
        statement="A deep network that does not train without batch normalization does, normalised once.",
        source="mishkin2016",
        where="abstract",
        chapter=CHAPTER,
        experiment="ingredients_deep",
        quantity=(
            "test accuracy of the deepest network normalised once minus that of the standard one, "
            "each at the rate of five with the smallest training loss"
        ),
        unit="points",
        measure=_lead("start", "standard"),
        criterion=Criterion(">", 10),
        note=_PILOT,
    ),
    Claim(
        id="moments-suffice",
        statement="Fixing the means and variances of the layers' inputs is what speeds up training.",
        source="ioffe2015",
        where="sections 1 and 2, read as the reason why it works",
        chapter=CHAPTER,
        experiment="ingredients",
        quantity=(
            "accuracy of batch norm minus that of its forward pass alone, whose moments are the same but "
            "constants for the gradient, each at the rate of three with the smallest training loss"
        ),
        unit="points",
        measure=_lead("bn", "forward"),
        criterion=Criterion("<", 5),
        note=f"The paper itself warns of ignoring the statistics in the gradient (section 2). {_PILOT}",
    ),
    Claim(
        id="always-over-once",
        statement="Moments that are right at every step help more than moments that were right at the start.",
        source="ioffe2015",
        where="section 2, read as the reason why it works",
        chapter=CHAPTER,
        experiment="ingredients",
        quantity=(
            "accuracy of batch norm's forward pass alone minus that of a network normalised once, "
            "each at the rate of three with the smallest training loss"
        ),
        unit="points",
        measure=_lead("forward", "start"),
        criterion=Criterion(">", 0),
        note=_PILOT,
    ),
    Claim(
        id="rates-not-from-start",
        statement="High learning rates need batch normalization during training, not at the start alone.",
        source="bjorck2018",
        where="section 3, made quantitative",
        chapter=CHAPTER,
        experiment="ingredients_deep",
        quantity=(
            f"largest rate at which the deepest network reaches {TRAINED:.0%} on the test images, batch norm "
            "divided by normalised once"
        ),
        unit="times",
        measure=_rates("bn", "start"),
        criterion=Criterion(">", 2.9),
        note=_PILOT,
    ),
    Claim(
        id="rates-from-gradient",
        statement="High learning rates need the gradient of the batch's statistics, not fixed moments alone.",
        source="ioffe2015",
        where="sections 2 and 3.3",
        chapter=CHAPTER,
        experiment="ingredients_deep",
        quantity=(
            f"largest rate at which the deepest network reaches {TRAINED:.0%} on the test images (half the "
            "smallest of the grid if at none), batch norm divided by its forward pass alone"
        ),
        unit="times",
        measure=_rates("bn", "forward"),
        criterion=Criterion(">", 2.9),
        note=_PILOT,
    ),
]
