"""Chapter 3: covariate shift as moving distributions.  Do activations keep still with batch normalization?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bnlib.experiments.quantities import BySeed, largest, median_by_seed, ratio
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

if TYPE_CHECKING:
    import pandas as pd

CHAPTER = "03-moving-distributions"

ARMS: dict[str, dict[str, Any]] = {
    "standard": {"norm": "none", "where": "nowhere"},
    "bn": {"norm": "batch", "where": "everywhere"},
}

SMOKE = {
    "dataset": "digits",
    "model": {"name": "digit_cnn"},
    "batch_size": 64,
    "steps": 60,
    "eval_every": 20,
}
LAPTOP = {"dataset": "cifar10", "batch_size": 128, "eval_every": 100}
PAPER = {"dataset": "cifar10", "batch_size": 128, "steps": 15000, "eval_every": 500}


def _probes(layers: list[str], moments: int, histogram: int, shift: int) -> dict[str, dict[str, Any]]:
    """The three probes of activations, each every so many steps."""
    return {
        "activation_moments": {"every": moments, "layers": layers},
        "activation_histogram": {"every": histogram, "layers": layers},
        "activation_shift": {"every": shift, "layers": layers},
    }


def _runs(config: str, layers: list[str], laptop_steps: int) -> Callable[[str, int], list[Run]]:
    """A VGG of that configuration with and without BN at the paper's learning rate 0.1."""

    def runs(scale: str, seed: int) -> list[Run]:
        vgg = {"name": "vgg", "config": config}
        common = {
            "smoke": {**SMOKE, "probes": _probes(["conv1", "conv2"], 5, 20, 20)},
            "laptop": {
                **LAPTOP,
                "steps": laptop_steps,
                "model": {**vgg, "width": 0.25},
                "probes": _probes(layers, 10, 50, 25),
            },
            "paper": {**PAPER, "model": {**vgg, "width": 1.0}, "probes": _probes(layers, 50, 500, 100)},
        }[scale]
        return [
            Run(arm, seed, {**norm, **common, "init": "glorot_uniform", "lr": 0.1})
            for arm, norm in ARMS.items()
        ]

    return runs


EXPERIMENTS = [
    Experiment(
        name="distributions",
        title="Activations of VGG-A on CIFAR-10 at learning rate 0.1: early, middle and late layers",
        chapter=CHAPTER,
        question="Do the distributions of activations move less with batch normalization?",
        runs=_runs("A", ["conv2", "conv5", "conv8"], 1000),
    ),
    Experiment(
        name="distributions_deep",
        title="Activations of VGG-D on CIFAR-10 at learning rate 0.1: the talk's layers 3 and 9",
        chapter=CHAPTER,
        question="And in the deeper network?",
        runs=_runs("D", ["conv3", "conv9"], 800),
    ),
]


def shifts(record: Record, metric: str = "wasserstein") -> pd.DataFrame:
    """How far one step moves the activations of each layer, in their standard deviations: rows (arm, seed,
    step, layer, value).

    metric: `wasserstein`, `mean_shift` or `deviation_shift`; see `bnlib.probes.activation_shift`.
    """
    return record.frame(metric=metric)[["arm", "seed", "step", "layer", "value"]]


def typical_shift(record: Record, arm: str, metric: str = "wasserstein") -> BySeed:
    """The median of `shifts` over steps and layers, by seed."""
    frame = shifts(record, metric)
    return median_by_seed(frame[frame["arm"] == arm])


def shift_ratio(metric: str) -> Callable[[Record], BySeed]:
    """The typical shift with BN divided by that of the standard net."""
    return lambda record: ratio(
        typical_shift(record, "bn", metric), typical_shift(record, "standard", metric)
    )


def _moments_ratio(record: Record) -> BySeed:
    return largest(shift_ratio(metric)(record) for metric in ("mean_shift", "deviation_shift"))


_SHIFT = (
    "Wasserstein-1 distance that one training step moves a layer's activations on a fixed batch, in their "
    "standard deviations, median over steps and layers: BN divided by standard"
)

CLAIMS = [
    Claim(
        id="stability",
        statement="Activations with batch normalization are not visibly more stable than without.",
        source="santurkar2018",
        where="figure 1 (c), section 2",
        chapter=CHAPTER,
        experiment="distributions",
        quantity=_SHIFT,
        unit="times",
        measure=shift_ratio("wasserstein"),
        criterion=Criterion(">", 0.5),
        note="We call a factor of two visible: the claim fails if BN halves the movement.",
    ),
    Claim(
        id="stability-deep",
        statement="Layers 3 and 9 of a deeper network are not visibly more stable with batch normalization.",
        source="ilyas2018talk",
        where="slides «A Closer Look at Internal Covariate Shift» and «“Noisy” BatchNorm Activations»",
        chapter=CHAPTER,
        experiment="distributions_deep",
        quantity=_SHIFT,
        unit="times",
        measure=shift_ratio("wasserstein"),
        criterion=Criterion(">", 0.5),
        note="The slides name the layers but not the network; we take VGG-D, with 13 convolutions.",
    ),
    Claim(
        id="fixed-moments",
        statement="Batch normalization fixes the means and variances of layer inputs.",
        source="ioffe2015",
        where="sections 1 and 3",
        chapter=CHAPTER,
        experiment="distributions",
        quantity=(
            "change of a channel's mean, and of its standard deviation, in one training step, in standard "
            "deviations, median over steps and layers: BN divided by standard, the larger of the two"
        ),
        unit="times",
        measure=_moments_ratio,
        criterion=Criterion("<", 0.5),
        note=(
            "On the batch that it normalises, BN sets mean and variance to β and γ²; what is left is how "
            "fast training moves β and γ."
        ),
    ),
]
