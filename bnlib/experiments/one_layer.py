"""Chapter 9: what one batch normalization layer does, proved.  The theorems on real networks, in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bnlib.experiments.quantities import BySeed, median_by_seed, ratio
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

CHAPTER = "09-one-layer-proved"

BN: dict[str, Any] = {"norm": "batch", "where": "everywhere"}


def _probes(terms: int, pairs: int, curvature: int, layers: list[str], size: int) -> dict[str, Any]:
    return {
        "batch_norm_terms": {"every": terms, "channels": 4},
        "one_layer_pairs": {"every": pairs},
        "curvature_terms": {"every": curvature, "layers": layers, "channels": 2, "size": size},
    }


def _vgg(scale: str, seed: int) -> list[Run]:
    images = {"dataset": "cifar10", "batch_size": 128}
    layers = ["conv2", "conv5", "conv8"]
    common = {
        "smoke": {
            "dataset": "digits",
            "model": {"name": "digit_cnn"},
            "batch_size": 64,
            "steps": 60,
            "probes": _probes(5, 20, 30, ["conv1", "conv2"], 16),
        },
        "laptop": {
            **images,
            "model": {"name": "vgg", "config": "A", "width": 0.25},
            "steps": 600,
            "probes": _probes(20, 100, 200, layers, 32),
        },
        "paper": {
            **images,
            "model": {"name": "vgg", "config": "A", "width": 1.0},
            "steps": 15000,
            "probes": _probes(250, 1500, 3000, layers, 32),
        },
    }[scale]
    return [Run("bn", seed, {**BN, **common, "init": "glorot_uniform", "lr": 0.1})]


EXPERIMENTS = [
    Experiment(
        name="one_layer",
        title="Theorems 4.1, 4.2 and 4.4 in every BN layer of VGG-A on CIFAR-10, during training",
        chapter=CHAPTER,
        question="Do the theorems hold in a real network, and what do their terms say there?",
        runs=_vgg,
    )
]


# -- measured quantities ---------------------------------------------------------------------------------


def largest_of(metric: str) -> Callable[[Record], BySeed]:
    """The largest value over layers and probed steps, by seed."""

    def measure(record: Record) -> BySeed:
        frame = record.frame(metric=metric)
        return {int(seed): float(value) for seed, value in frame.groupby("seed")["value"].max().items()}

    return measure


def mean_of(metric: str) -> Callable[[Record], BySeed]:
    """The mean over layers and probed steps, by seed: of a share, the share of all (layer, step) cases, every
    layer with the same weight."""

    def measure(record: Record) -> BySeed:
        frame = record.frame(metric=metric)
        return {int(seed): float(value) for seed, value in frame.groupby("seed")["value"].mean().items()}

    return measure


def removed(record: Record) -> BySeed:
    """The share of the gradient's squared norm that the two subtracted terms remove, median over layers and
    probed steps, by seed."""
    table = _table(record, ["thm41_mean", "thm41_scale", "thm41_output"])
    table["value"] = (table["thm41_mean"] + table["thm41_scale"]) / table["thm41_output"]
    return median_by_seed(table.reset_index())


def small_factors(record: Record) -> BySeed:
    """The share of (layer, step) in which gamma^2 / sigma^2, averaged over channels, is below 1, by seed."""
    frame = record.frame(metric="thm41_factor").assign(value=lambda f: (f["value"] < 1).astype(float))
    return {int(seed): float(value) for seed, value in frame.groupby("seed")["value"].mean().items()}


def _table(record: Record, metrics: list[str]) -> Any:
    frame = record.frame()
    frame = frame[frame["metric"].isin(metrics)]
    return frame.pivot_table(index=["seed", "step", "layer"], columns="metric", values="value")


def _nearer(record: Record) -> BySeed:
    """The way from the start to SGD's solution, relative to the start, median over layers: BN / standard."""

    def way(arm: str) -> BySeed:
        frame = record.frame("gain")
        frame = frame[(frame["arm"] == arm) & (frame["gain"] == 1.0)]
        names = ["moved[sgd]", "start_norm[sgd]"]
        table = frame[frame["metric"].isin(names)].pivot_table(
            index=["seed", "layer"], columns="metric", values="value"
        )
        table["value"] = table[names[0]] / table[names[1]]
        return median_by_seed(table.reset_index())

    return ratio(way("bn"), way("standard"))


def _lemma_error(record: Record) -> BySeed:
    """Lemma 4.5 in every layer, standard net, from start to SGD's solution: |left - right| over
    ||W_0 - W*||^2."""
    found: dict[int, float] = {}
    names = ["end_norm[sgd]", "moved[sgd]", "ray[sgd]", "multiple[sgd]"]
    frame = record.frame("gain")
    frame = frame[(frame["arm"] == "standard") & (frame["gain"] == 1.0) & frame["metric"].isin(names)]
    table = frame.pivot_table(index=["seed", "layer"], columns="metric", values="value")
    for (seed, _), row in table.iterrows():
        end, moved, ray, multiple = (row[name] for name in names)
        if multiple <= 0:
            continue
        right = moved**2 - (end**2 - multiple * end**2) ** 2 / end**2
        found[int(seed)] = max(found.get(int(seed), 0.0), abs(ray**2 - right) / moved**2)
    return found


_CASES = "mean over layers and probed steps of the share of channels"
_HOLDS_ALWAYS = Criterion("<", 0.001)

CLAIMS = [
    Claim(
        id="theorem-41-printed",
        statement="Theorem 4.1 holds as it is printed, with 1/√m.",
        source="santurkar2018",
        where="theorem 4.1",
        chapter=CHAPTER,
        experiment="one_layer",
        quantity=f"{_CASES} in which the left side is larger than the printed right side",
        unit="",
        measure=mean_of("thm41_printed_violated"),
        criterion=_HOLDS_ALWAYS,
    ),
    Claim(
        id="theorem-41",
        statement="Theorem 4.1 with 1/m holds, as an equality at eps = 0.",
        source="santurkar2018",
        where="theorem 4.1, corrected",
        chapter=CHAPTER,
        experiment="one_layer",
        quantity=(
            "largest |left - right| over all layers, channels and probed steps, in units of the largest "
            "term, float64"
        ),
        unit="",
        measure=largest_of("pairs_error"),
        criterion=Criterion("<", 1e-9),
    ),
    Claim(
        id="theorem-41-eps",
        statement="Theorem 4.1 with 1/m holds as an inequality for eps > 0.",
        source="santurkar2018",
        where="theorem 4.1, corrected",
        chapter=CHAPTER,
        experiment="one_layer",
        quantity=f"{_CASES} in which the left side is larger than the right, eps = 1e-5",
        unit="",
        measure=lambda record: {s: 1 - share for s, share in mean_of("pairs_below")(record).items()},
        criterion=_HOLDS_ALWAYS,
    ),
    Claim(
        id="theorem-41-same-weights",
        statement="Theorem 4.1 bounds the gradient by that of a network without the layer, same weights.",
        source="wikipedia_bn",
        where="«Smoothness»: «consider two identical networks»",
        chapter=CHAPTER,
        experiment="one_layer",
        quantity=f"{_CASES} in which the bound with the other network's gradient is violated",
        unit="",
        measure=mean_of("pairs_same_violated"),
        criterion=_HOLDS_ALWAYS,
    ),
    Claim(
        id="observation-43",
        statement="If both networks compute the same, the layer never makes the gradient larger.",
        source="santurkar2018",
        where="observation 4.3 with theorem 4.1",
        chapter=CHAPTER,
        experiment="one_layer",
        quantity=f"{_CASES} in which the gradient at the activations is larger with the layer",
        unit="",
        measure=mean_of("pairs_matched_larger"),
        criterion=_HOLDS_ALWAYS,
    ),
    Claim(
        id="weight-gradient",
        statement="If both networks compute the same, the layer never makes the weights' gradient larger.",
        source="wikipedia_bn",
        where="«Smoothness»: the bound «with respect to the network weights»",
        chapter=CHAPTER,
        experiment="one_layer",
        quantity="mean over layers and probed steps of the share of filters whose gradient is larger with it",
        unit="",
        measure=mean_of("pairs_weights_larger"),
        criterion=_HOLDS_ALWAYS,
        note="The theorem behind it is about the worst input, not about the inputs that a network has.",
    ),
    Claim(
        id="removed",
        statement="The two terms that Theorem 4.1 subtracts remove a sizeable part of the gradient.",
        source="wikipedia_bn",
        where="«Smoothness»: correlation of gradient and activation is «a common phenomena»",
        chapter=CHAPTER,
        experiment="one_layer",
        quantity="share of the squared norm of the gradient that they remove, median over layers and steps",
        unit="",
        measure=removed,
        criterion=Criterion(">", 0.1),
    ),
    Claim(
        id="factor",
        statement="The factor γ²/σ² makes the gradient smaller, because the variance is often large.",
        source="wikipedia_bn",
        where="«Smoothness»: «the variance is often large»",
        chapter=CHAPTER,
        experiment="one_layer",
        quantity="share of (layer, step) in which γ²/σ², averaged over the channels, is below 1",
        unit="",
        measure=small_factors,
        criterion=Criterion(">", 0.9),
        note="It is a change of units: with other units for the weights it has any value.",
    ),
    Claim(
        id="aligned",
        statement="The gradient at the output and the normalised activation have no negative product.",
        source="santurkar2018",
        where="theorem 4.2, remark",
        chapter=CHAPTER,
        experiment="one_layer",
        quantity=f"{_CASES} with ⟨g, ŷ⟩ ≥ 0",
        unit="",
        measure=mean_of("thm41_aligned"),
        criterion=Criterion(">", 0.9),
    ),
    Claim(
        id="theorem-42",
        statement="Theorem 4.2, first form, holds as an equality at eps = 0.",
        source="santurkar2018",
        where="theorem 4.2, first form",
        chapter=CHAPTER,
        experiment="one_layer",
        quantity="largest |left - right| over layers, channels and steps, in units of its terms, float64",
        unit="",
        measure=largest_of("thm42_error"),
        criterion=Criterion("<", 1e-6),
    ),
    Claim(
        id="theorem-42-second",
        statement="Theorem 4.2, second form, holds in a network that trains.",
        source="santurkar2018",
        where="theorem 4.2, second form",
        chapter=CHAPTER,
        experiment="one_layer",
        quantity=f"{_CASES} (two in each of three layers) in which it is violated",
        unit="",
        measure=mean_of("thm42_second_violated"),
        criterion=_HOLDS_ALWAYS,
        note="The paper assumes for it that the Hessian «preserves the relative norms».",
    ),
    Claim(
        id="lemma-45",
        statement="Lemma 4.5 holds, as an identity: the distance to a ray instead of to a point.",
        source="santurkar2018",
        where="lemma 4.5",
        chapter=CHAPTER,
        experiment="surfaces",
        quantity="largest |left - right| over the layers of a standard net, in units of ‖W₀ - W*‖²",
        unit="",
        measure=_lemma_error,
        criterion=Criterion("<", 1e-6),
    ),
    Claim(
        id="nearer-optimum",
        statement="A network with batch normalization finds its solution nearer to where it started.",
        source="wikipedia_bn",
        where="«Smoothness»: «a better initialization»",
        chapter=CHAPTER,
        experiment="surfaces",
        quantity="‖W_T - W₀‖/‖W₀‖ of a layer, 400 steps of SGD, median over the layers: BN / standard",
        unit="times",
        measure=_nearer,
        criterion=Criterion("<", 1.0),
        note="The lemma compares optima that nobody has found; this compares where training has got to.",
    ),
]
