"""Chapter 7: walking along the gradient.  Loss, predictiveness and effective beta, raw and relative."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from bnlib.experiments.quantities import BySeed, ratio
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

if TYPE_CHECKING:
    import pandas as pd

CHAPTER = "07-along-the-gradient"

ARMS: dict[str, dict[str, Any]] = {
    "standard": {"norm": "none", "where": "nowhere"},
    "bn": {"norm": "batch", "where": "everywhere"},
}

#: step sizes in units of the learning rate: the paper's range for VGG, and for the deep linear network
FACTORS = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
LINEAR_FACTORS = [0.01, 0.1, 1.0, 3.0, 10.0, 30.0]
#: lengths of a step relative to the weights
LENGTHS = [0.001, 0.003, 0.01, 0.03, 0.1]
#: step sizes at the activations, in units of the learning rate: their gradient goes as 1 / batch size
ACTIVATION_FACTORS = [1.0, 10.0, 100.0, 1000.0]
MISTAKE_FACTORS = [0.5, 1.0, 2.0, 4.0]


def _probes(every: int, seldom: int, layers: list[str]) -> dict[str, Any]:
    return {
        "landscape": {"every": every, "factors": FACTORS},
        "relative_landscape": {"every": every, "lengths": LENGTHS},
        "activation_beta": {"every": seldom, "factors": ACTIVATION_FACTORS, "layers": layers},
        "landscape_mistakes": {"every": seldom, "factors": MISTAKE_FACTORS},
    }


def _vgg(scale: str, seed: int) -> list[Run]:
    layers = ["conv2", "conv5", "conv8"]
    images = {"dataset": "cifar10", "batch_size": 128}
    common = {
        "smoke": {
            "dataset": "digits",
            "model": {"name": "digit_cnn"},
            "batch_size": 64,
            "steps": 60,
            "probes": _probes(20, 30, ["conv1", "conv2"]),
        },
        "laptop": {
            **images,
            "model": {"name": "vgg", "config": "A", "width": 0.25},
            "steps": 800,
            "probes": _probes(25, 200, layers),
        },
        "paper": {
            **images,
            "model": {"name": "vgg", "config": "A", "width": 1.0},
            "steps": 15000,
            "probes": _probes(150, 1500, layers),
        },
    }[scale]
    return [
        Run(arm, seed, {**norm, **common, "init": "glorot_uniform", "lr": 0.1}) for arm, norm in ARMS.items()
    ]


def _linear(scale: str, seed: int) -> list[Run]:
    steps, every = {"smoke": (40, 8), "laptop": (2000, 40), "paper": (10000, 200)}[scale]
    common = {
        "dataset": {"n": 1000, "width": 10},
        "model": {"name": "deep_linear", "depth": 6 if scale == "smoke" else 25, "width": 10},
        "batch_size": 1000,
        "init": "glorot_uniform",
        "dtype": "float64",
        "loss": "squared_sum",
        "lr": 1e-6,
        "steps": steps,
        "probes": {
            "landscape": {"every": every, "factors": LINEAR_FACTORS},
            "relative_landscape": {"every": every, "lengths": LENGTHS},
        },
    }
    return [Run(arm, seed, {**norm, **common}) for arm, norm in ARMS.items()]


EXPERIMENTS = [
    Experiment(
        name="landscape",
        title="VGG-A on CIFAR-10: the loss along the gradient, at many steps of training",
        chapter=CHAPTER,
        question="Does the loss change more smoothly along the gradient with batch normalization?",
        runs=_vgg,
    ),
    Experiment(
        name="landscape_linear",
        title="A deep linear network of 25 layers: the loss along the gradient, at many steps of training",
        chapter=CHAPTER,
        question="And in the simplest deep network there is?",
        runs=_linear,
    ),
]


# -- measured quantities ---------------------------------------------------------------------------------


def ranges(record: Record, quantity: str, relative: bool = False) -> pd.DataFrame:
    """One of the paper's three quantities over training: rows (arm, seed, step, low, high).

    quantity: `loss`, `predictiveness`, or `effective_beta` (low and high are then the same).  Where a walk
    left the numbers, `high` is infinite.  relative: in the coordinates of `probes.relative_landscape`.
    """
    prefix = "relative_" if relative else ""
    frame = record.frame()
    names = {f"{prefix}{quantity}_low": "low", f"{prefix}{quantity}_high": "high"}
    if quantity == "effective_beta":
        names = {f"{prefix}effective_beta": "high"}
    kept = frame[frame["metric"].isin([*names, f"{prefix}finite"])]
    table = kept.pivot_table(index=["arm", "seed", "step"], columns="metric", values="value").rename(
        columns=names
    )
    if quantity == "effective_beta":
        table["low"] = table["high"]
    table.loc[table[f"{prefix}finite"] < 1, "high"] = math.inf
    return table[["low", "high"]].reset_index()


def profiles(record: Record, metric: str = "loss", relative: bool = False) -> pd.DataFrame:
    """Along the gradient at each probed step: rows (arm, seed, step, at, value); `at` is the step size in
    units of the learning rate, or the relative length.  metric: `loss` or `predictiveness`."""
    frame = record.frame()
    prefix = f"{'relative_' if relative else ''}{metric}@"
    ours = frame["metric"].str.startswith(prefix) & ~frame["metric"].str.endswith("]")  # not the mistakes'
    frame = frame[ours]
    return frame[["arm", "seed", "step"]].assign(
        at=frame["metric"].str.removeprefix(prefix).astype(float), value=frame["value"]
    )


def typical(record: Record, arm: str, quantity: str, relative: bool = False) -> BySeed:
    """The median over the probed steps, by seed, of: the range `loss` high minus low; the upper end of
    `predictiveness`; `effective_beta`."""
    table = ranges(record, quantity, relative)
    table = table[table["arm"] == arm]
    value = table["high"] - table["low"] if quantity == "loss" else table["high"]
    return {int(seed): median(values) for seed, values in value.groupby(table["seed"])}


def bn_over_standard(quantity: str, relative: bool = False) -> Callable[[Record], BySeed]:
    """`typical` with BN divided by `typical` without."""
    return lambda record: ratio(
        typical(record, "bn", quantity, relative), typical(record, "standard", quantity, relative)
    )


def activation_betas(record: Record, arm: str) -> BySeed:
    """Effective beta in the space of activations, median over layers and probed steps, by seed."""
    frame = record.frame(metric="activation_effective_beta")
    frame = frame[frame["arm"] == arm]
    return {int(seed): float(value) for seed, value in frame.groupby("seed")["value"].median().items()}


def _sum_over_size(record: Record) -> BySeed:
    """Standard net: the "predictiveness" of summed gradients over the norm of one gradient at its smallest
    step, median over steps."""
    frame = record.frame()
    frame = frame[frame["arm"] == "standard"]
    smallest = f"{min(MISTAKE_FACTORS):g}"
    names = [f"predictiveness@{smallest}[summed_gradients]", "gradient_norm[summed_gradients]"]
    table = frame[frame["metric"].isin(names)].pivot_table(
        index=["seed", "step"], columns="metric", values="value"
    )
    share = table[names[0]] / table[names[1]]
    return {int(seed): float(value) for seed, value in share.groupby("seed").median().items()}


_QUANTITIES = {
    "loss": ("varies less", "range of the loss (largest minus smallest)", "loss-variation"),
    "predictiveness": (
        "keeps its gradient better",
        "gradient predictiveness (largest norm of the gradients' difference)",
        "predictiveness",
    ),
    "effective_beta": ("is smoother", "effective beta-smoothness", "effective-beta"),
}
_SETTINGS = {
    # suffix: experiment, relative, where, along which walk
    "": ("landscape", False, "figure 4, VGG", "along the gradient, 1/2 to 4 times the learning rate"),
    "-relative": (
        "landscape",
        True,
        "not reported there; a control of figure 4",
        "in relative coordinates, steps of 0.001 to 0.1 of the weights",
    ),
    "-linear": (
        "landscape_linear",
        False,
        "appendix, deep linear network",
        "along the gradient, 1/100 to 30 times the learning rate",
    ),
    "-linear-relative": (
        "landscape_linear",
        True,
        "not reported there; a control of the deep linear network",
        "in relative coordinates, steps of 0.001 to 0.1 of the weights",
    ),
}
_NETWORKS = {"landscape": "a VGG", "landscape_linear": "a deep linear network"}

CLAIMS = [
    Claim(
        id=f"{name}{suffix}",
        statement=(
            f"With batch normalization the loss of {_NETWORKS[experiment]} {verb} along the gradient"
            f"{', at equal relative step' if relative else ''}."
        ),
        source="santurkar2018",
        where=where,
        chapter=CHAPTER,
        experiment=experiment,
        quantity=f"{what} {walk}, median over the probed steps of training: BN divided by standard",
        unit="times",
        measure=bn_over_standard(quantity, relative),
        criterion=Criterion("<", 1.0),
    )
    for suffix, (experiment, relative, where, walk) in _SETTINGS.items()
    for quantity, (verb, what, name) in _QUANTITIES.items()
] + [
    Claim(
        id="activation-beta",
        statement="With batch normalization the loss is smoother as a function of a layer's activations.",
        source="bektursun_blog",
        where="last experiment: effective beta at the activations; here with the loss's gradient",
        chapter=CHAPTER,
        experiment="landscape",
        quantity=(
            "effective beta in the space of activations, moments taken anew at the moved point, median over "
            "three layers and the probed steps: BN divided by standard"
        ),
        unit="times",
        measure=lambda record: ratio(activation_betas(record, "bn"), activation_betas(record, "standard")),
        criterion=Criterion("<", 1.0),
    ),
    Claim(
        id="summed-gradients",
        statement="The norm of the sum of two gradients measures how predictive a gradient is.",
        source="mameli2020",
        where="published code: «gradient predictiveness»",
        chapter=CHAPTER,
        experiment="landscape",
        quantity=(
            "norm of the sum of the gradients at the start and at the end of a step of half the learning "
            "rate, divided by twice the norm of the first, standard net, median over the probed steps"
        ),
        unit="times",
        measure=lambda record: {seed: value / 2 for seed, value in _sum_over_size(record).items()},
        criterion=Criterion("<", 0.8),
        note="At 1 the sum says nothing but the size of the gradient.",
    ),
]
