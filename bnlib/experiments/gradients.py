"""Chapter 5: covariate shift as changing gradients.  Definition 2.1, and what equal learning rates hide."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

from bnlib.experiments.quantities import BySeed, median_by_seed, paired, ratio, smallest
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

if TYPE_CHECKING:
    import pandas as pd

CHAPTER = "05-changing-gradients"

ARMS: dict[str, dict[str, Any]] = {
    "standard": {"norm": "none", "where": "nowhere"},
    "bn": {"norm": "batch", "where": "everywhere"},
    "bn_after_4": {"norm": "batch", "where": [4]},
}

# -- VGG on CIFAR-10: the paper's two learning rates; the replication blog's setting is 0.01 -------------

VGG = {"name": "vgg", "config": "A"}
HIGH, LOW = 0.1, 0.01


def _probes(shift: int, matched: int, lengths: list[float], **layers: list[str]) -> dict[str, Any]:
    return {
        "covariate_shift": {"every": shift, **layers},
        "matched_covariate_shift": {"every": matched, "lengths": lengths, **layers},
    }


def _vgg(scale: str, seed: int) -> list[Run]:
    lengths = [1e-4, 1e-3, 1e-2, 1e-1]
    common = {
        "smoke": {
            "dataset": "digits",
            "model": {"name": "mlp", "depth": 6, "width": 32},
            "batch_size": 64,
            "steps": 60,
            "probes": _probes(20, 30, lengths),
        },
        "laptop": {
            "dataset": "cifar10",
            "model": {**VGG, "width": 0.25},
            "batch_size": 128,
            "steps": 600,
            "probes": _probes(50, 200, lengths),
        },
        "paper": {
            "dataset": "cifar10",
            "model": {**VGG, "width": 1.0},
            "batch_size": 128,
            "steps": 15000,
            "probes": _probes(250, 2500, lengths),
        },
    }[scale]
    arms = [*product(("standard", "bn"), (HIGH, LOW)), ("bn_after_4", LOW)]
    return [
        Run(arm, seed, {**ARMS[arm], **common, "init": "glorot_uniform", "lr": lr}, ("lr",))
        for arm, lr in arms
    ]


# -- the deep linear network: 25 layers, full-batch gradient descent -------------------------------------

LINEAR_LAYERS = [f"linear{i}" for i in (2, 5, 9, 13, 17, 21, 25)]
#: learning rate -> steps at laptop scale
LINEAR_STEPS = {1e-6: 2000, 1e-7: 600}


def _linear(scale: str, seed: int) -> list[Run]:
    lengths = [1e-5, 1e-4, 1e-3, 1e-2]
    depth = 6 if scale == "smoke" else 25
    layers = ["linear2", "linear4", "linear6"] if scale == "smoke" else LINEAR_LAYERS
    common = {
        "dataset": {"n": 1000, "width": 10},
        "model": {"name": "deep_linear", "depth": depth, "width": 10},
        "batch_size": 1000,
        "init": "glorot_uniform",
        "dtype": "float64",
    }
    runs = []
    for arm, loss, lr in product(("standard", "bn"), ("squared_sum", "squared_mean"), LINEAR_STEPS):
        steps = {"smoke": 40, "laptop": LINEAR_STEPS[lr], "paper": 10000}[scale]
        every = 10 if scale == "smoke" else steps // 60
        probes = _probes(every, steps // 2, lengths, layers=layers)
        settings = {**ARMS[arm], **common, "lr": lr, "loss": loss, "steps": steps, "probes": probes}
        runs.append(Run(arm, seed, settings, ("loss", "lr")))
    return runs


EXPERIMENTS = [
    Experiment(
        name="gradient_shift",
        title="Definition 2.1 in VGG-A on CIFAR-10, at equal learning rate and at equal relative step",
        chapter=CHAPTER,
        question="Does a layer's gradient change less with batch normalization when the layers before move?",
        runs=_vgg,
    ),
    Experiment(
        name="gradient_shift_linear",
        title="Definition 2.1 in a deep linear network of 25 layers, full-batch gradient descent",
        chapter=CHAPTER,
        question="And in the simplest deep network there is?",
        runs=_linear,
    ),
]


# -- measured quantities ---------------------------------------------------------------------------------


def shifts(record: Record, metric: str = "shift_cosine") -> pd.DataFrame:
    """Definition 2.1 at equal learning rate: rows (arm, lr, loss, seed, step, layer, value), without the
    first layer, whose shift is zero by definition.

    metric: `shift_cosine`, `shift_l2`, `gradient_norm`, `relative_step`; see `bnlib.probes.covariate_shift`.
    """
    frame = record.frame("lr", "loss", metric=metric)
    frame["loss"] = frame["loss"].fillna("cross_entropy")
    kept = ~frame["layer"].isin(["conv1", "linear1"])
    return frame[kept][["arm", "lr", "loss", "seed", "step", "layer", "value"]]


def matched_shifts(record: Record) -> pd.DataFrame:
    """cos(G, G') after steps of equal relative length: rows (arm, lr, loss, seed, step, layer, length,
    value), without the first layer."""
    frame = record.frame("lr", "loss")
    frame = frame[frame["metric"].str.startswith("shift_cosine@")].copy()
    frame["loss"] = frame["loss"].fillna("cross_entropy")
    frame["length"] = frame["metric"].str.removeprefix("shift_cosine@").astype(float)
    kept = ~frame["layer"].isin(["conv1", "linear1"])
    return frame[kept][["arm", "lr", "loss", "seed", "step", "layer", "length", "value"]]


def typical(
    record: Record, arm: str, lr: float, loss: str = "cross_entropy", metric: str = "shift_cosine"
) -> BySeed:
    """The median of `shifts` over steps and layers, by seed."""
    frame = shifts(record, metric)
    return median_by_seed(frame[(frame["arm"] == arm) & (frame["lr"] == lr) & (frame["loss"] == loss)])


def cells_where_bn_is_higher(record: Record, start_only: bool = False) -> BySeed:
    """The share of cells (rate, loss, step, layer, relative length) in which the BN net has the larger
    covariate shift, that is the smaller cosine, by seed.

    The mean loss is left out: dividing the loss by a constant changes no cosine at equal relative length,
    it only makes training slower.
    """
    frame = matched_shifts(record)
    frame = frame[frame["loss"] != "squared_mean"]
    if start_only:
        # At step 0 no update has been made: the runs of different rates are the same network.
        frame = frame[(frame["step"] == 0) & (frame["lr"] == frame["lr"].max())]
    cells = frame.pivot_table(
        index=["seed", "lr", "step", "layer", "length"], columns="arm", values="value"
    ).dropna(subset=["bn", "standard"])
    higher = cells["bn"] < cells["standard"]
    return {int(seed): float(share) for seed, share in higher.groupby("seed").mean().items()}


def _cosine_gap(loss: str, *rates: float) -> Callable[[Record], BySeed]:
    """Standard minus BN, at the rate where it is smaller."""
    return lambda record: smallest(
        paired(typical(record, "standard", lr, loss), typical(record, "bn", lr, loss)) for lr in rates
    )


def _standard_cosine(record: Record) -> BySeed:
    return smallest(typical(record, "standard", lr, "squared_sum") for lr in LINEAR_STEPS)


def _one_layer_share(record: Record) -> BySeed:
    """The share of probed steps at which the shift of the fifth layer is larger with BN after the fourth."""
    frame = shifts(record, "shift_l2")
    layers = set(frame["layer"])
    fifth = "conv5" if "conv5" in layers else "linear5"
    frame = frame[(frame["lr"] == LOW) & (frame["layer"] == fifth)]
    table = frame.pivot_table(index=["seed", "step"], columns="arm", values="value")
    higher = table["bn_after_4"] > table["standard"]
    return {int(seed): float(share) for seed, share in higher.groupby("seed").mean().items()}


def _step_ratio(loss: str, *rates: float) -> Callable[[Record], BySeed]:
    return lambda record: smallest(
        ratio(
            typical(record, "bn", lr, loss, "relative_step"),
            typical(record, "standard", lr, loss, "relative_step"),
        )
        for lr in rates
    )


_COSINE = "cos(G, G') by definition 2.1, median over steps and layers: standard minus BN"

CLAIMS = [
    Claim(
        id="gradient-shift",
        statement="Batch normalization does not reduce covariate shift, measured as change of gradients.",
        source="santurkar2018",
        where="figure 3, section 2.2",
        chapter=CHAPTER,
        experiment="gradient_shift",
        quantity=f"{_COSINE}, at the learning rate (0.1 or 0.01) where it is smaller",
        unit="",
        measure=_cosine_gap("cross_entropy", HIGH, LOW),
        criterion=Criterion(">", -0.05),
        note="A smaller cosine is more shift. BN would reduce it if its cosine were higher by 0.05.",
    ),
    Claim(
        id="correlation-vgg",
        statement="A standard VGG has a higher correlation of gradients than one with batch normalization.",
        source="wikipedia_bn",
        where="«Internal covariate shift» in «Understanding batch normalization»",
        chapter=CHAPTER,
        experiment="gradient_shift",
        quantity=f"{_COSINE}, at the learning rate (0.1 or 0.01) where it is smaller",
        unit="",
        measure=_cosine_gap("cross_entropy", HIGH, LOW),
        criterion=Criterion(">", 0.0),
        note="The article's correlation is the cosine of the two gradients.",
    ),
    Claim(
        id="correlation-linear",
        statement="A standard deep linear network has a higher correlation of gradients than one with BN.",
        source="wikipedia_bn",
        where="«Internal covariate shift» in «Understanding batch normalization»",
        chapter=CHAPTER,
        experiment="gradient_shift_linear",
        quantity=f"{_COSINE}, sum loss, at the learning rate (1e-6 or 1e-7) where it is smaller",
        unit="",
        measure=_cosine_gap("squared_sum", *LINEAR_STEPS),
        criterion=Criterion(">", 0.0),
    ),
    Claim(
        id="linear-small-rate",
        statement="In a deep linear network at rate 1e-7 batch normalization causes covariate shift.",
        source="santurkar2018",
        where="figure 3, appendix A.1",
        chapter=CHAPTER,
        experiment="gradient_shift_linear",
        quantity=f"{_COSINE}, sum loss, learning rate 1e-7",
        unit="",
        measure=_cosine_gap("squared_sum", 1e-7),
        criterion=Criterion(">", 0.05),
    ),
    Claim(
        id="linear-standard-steady",
        statement="Without batch normalization a deep linear network has almost no covariate shift.",
        source="santurkar2018",
        where="figure 3, section 2.2",
        chapter=CHAPTER,
        experiment="gradient_shift_linear",
        quantity=(
            "cos(G, G') of the standard net, median over steps and layers, sum loss, at the learning rate "
            "(1e-6 or 1e-7) where it is smaller"
        ),
        unit="",
        measure=_standard_cosine,
        criterion=Criterion(">", 0.9),
    ),
    Claim(
        id="one-layer-shift",
        statement="With one batch normalization layer, covariate shift is almost always higher.",
        source="mameli2020",
        where="«The ICS Conundrum» and published code: the fifth convolution",
        chapter=CHAPTER,
        experiment="gradient_shift",
        quantity="share of steps at which the l2 shift of the fifth layer is larger with BN after the fourth",
        unit="",
        measure=_one_layer_share,
        criterion=Criterion(">", 0.9),
        note=(
            "By definition 2.1. The post's own comparison also moves the fifth layer itself and uses another "
            "random classifier, with dropout."
        ),
    ),
    Claim(
        id="larger-steps",
        statement="At equal learning rate the network with batch normalization moves further in each step.",
        source="santurkar2018",
        where="not reported there; a control of figure 3",
        chapter=CHAPTER,
        experiment="gradient_shift",
        quantity=(
            "relative step of a layer, η‖G‖/‖W‖, median over steps and layers: BN divided by standard, "
            "at the learning rate (0.1 or 0.01) where it is smaller"
        ),
        unit="times",
        measure=_step_ratio("cross_entropy", HIGH, LOW),
        criterion=Criterion(">", 1.0),
    ),
    Claim(
        id="larger-steps-linear",
        statement="At rate 1e-7 a deep linear network with batch normalization moves further in each step.",
        source="santurkar2018",
        where="not reported there; a control of figure 3",
        chapter=CHAPTER,
        experiment="gradient_shift_linear",
        quantity="relative step of a layer, η‖G‖/‖W‖, median over steps and layers: BN divided by standard",
        unit="times",
        measure=_step_ratio("squared_sum", 1e-7),
        criterion=Criterion(">", 1.0),
    ),
    Claim(
        id="matched-vgg",
        statement="Steps of equal relative length shift the gradients of a VGG more if it has BN.",
        source="santurkar2018",
        where="not reported there; a control of figure 3",
        chapter=CHAPTER,
        experiment="gradient_shift",
        quantity="share of cells (rate, step, layer, relative length) in which BN has the smaller cosine",
        unit="",
        measure=cells_where_bn_is_higher,
        criterion=Criterion(">", 0.5),
    ),
    Claim(
        id="matched-linear",
        statement="Steps of equal relative length shift a deep linear network's gradients more if it has BN.",
        source="santurkar2018",
        where="not reported there; a control of figure 3",
        chapter=CHAPTER,
        experiment="gradient_shift_linear",
        quantity="share of cells (rate, step, layer, relative length) in which BN has the smaller cosine",
        unit="",
        measure=cells_where_bn_is_higher,
        criterion=Criterion(">", 0.5),
        note="Sum loss, both learning rates.",
    ),
    Claim(
        id="matched-linear-start",
        statement="At initialisation, steps of equal length shift a deep linear network more with BN.",
        source="santurkar2018",
        where="not reported there; a control of figure 3",
        chapter=CHAPTER,
        experiment="gradient_shift_linear",
        quantity="share of cells (layer, relative length) at step 0 in which BN has the smaller cosine",
        unit="",
        measure=lambda record: cells_where_bn_is_higher(record, start_only=True),
        criterion=Criterion(">", 0.5),
    ),
]
