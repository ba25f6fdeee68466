"""Chapter 4: noisy batch normalization.  What if covariate shift is made worse on purpose?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from bnlib.experiments.quantities import BySeed, in_points, median_by_seed, paired, ratio
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

CHAPTER = "04-noisy-bn"

ARMS: dict[str, dict[str, Any]] = {
    "standard": {"norm": "none", "where": "nowhere"},
    "bn": {"norm": "batch", "where": "everywhere"},
    "noisy_bn": {"norm": "noisy_batch", "where": "everywhere"},
    "noisy_standard": {"norm": "noise", "where": "everywhere"},
    "stationary_bn": {"norm": "stationary_noise_batch", "where": "everywhere"},
}
#: multiples of the paper's noise; 1 is the paper's
STRENGTHS = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0]

SMOKE = {
    "dataset": "digits",
    "model": {"name": "digit_cnn"},
    "batch_size": 64,
    "steps": 40,
    "eval_every": 20,
}
LAPTOP = {"dataset": "cifar10", "batch_size": 128, "eval_every": 100}
PAPER = {"dataset": "cifar10", "batch_size": 128, "steps": 15000, "eval_every": 500}
VGG = {"name": "vgg", "config": "A"}


def _probes(layers: list[str], moments: int, shift: int, size: int = 512) -> dict[str, dict[str, Any]]:
    """Activations of these layers, and accuracy in training mode as often as the movement."""
    return {
        "activation_moments": {"every": moments, "layers": layers},
        "activation_shift": {"every": shift, "layers": layers},
        "training_mode_accuracy": {"every": shift, "size": size},
    }


def _noise(scale: str, seed: int) -> list[Run]:
    layers = ["conv2", "conv5", "conv8"]
    common = {
        "smoke": {**SMOKE, "probes": _probes(["conv1", "conv2"], 5, 20, 256)},
        "laptop": {
            **LAPTOP,
            "steps": 1000,
            "model": {**VGG, "width": 0.25},
            "probes": _probes(layers, 10, 50),
        },
        "paper": {**PAPER, "model": {**VGG, "width": 1.0}, "probes": _probes(layers, 50, 500, 2048)},
    }[scale]
    return [
        Run(arm, seed, {**norm, **common, "init": "glorot_uniform", "lr": 0.1}) for arm, norm in ARMS.items()
    ]


def _strength(scale: str, seed: int) -> list[Run]:
    strengths = [0.0, 1.0, 4.0] if scale == "smoke" else STRENGTHS
    common = {
        "smoke": {**SMOKE, "probes": {"training_mode_accuracy": {"every": 20, "size": 256}}},
        "laptop": {
            **LAPTOP,
            "steps": 600,
            "model": {**VGG, "width": 0.125},
            "probes": {"training_mode_accuracy": {"every": 50, "size": 512}},
        },
        "paper": {
            **PAPER,
            "model": {**VGG, "width": 1.0},
            "probes": {"training_mode_accuracy": {"every": 500, "size": 2048}},
        },
    }[scale]
    return [
        Run(
            arm,
            seed,
            {**ARMS[arm], **common, "init": "glorot_uniform", "lr": 0.1, "noise": noise},
            ("noise",),
        )
        for arm, noise in product(("noisy_bn", "noisy_standard"), strengths)
    ]


EXPERIMENTS = [
    Experiment(
        name="noise",
        title="VGG-A on CIFAR-10 with noise after each batch normalization, or in its place",
        chapter=CHAPTER,
        question="Does batch normalization still help when noise makes its activations unstable?",
        runs=_noise,
    ),
    Experiment(
        name="noise_strength",
        title="How much noise: a narrow VGG-A on CIFAR-10",
        chapter=CHAPTER,
        question="How much noise can a network stand, with and without batch normalization?",
        runs=_strength,
    ),
]


def late_accuracy(
    record: Record, arm: str, metric: str = "train_accuracy", noise: float | None = None
) -> BySeed:
    """Accuracy (0..1) averaged over the evaluations of the last quarter of training, by seed.

    metric: `train_accuracy` (training images, training mode, noise on), `test_accuracy_noisy` and
    `test_accuracy_batch` (test images, training mode, noise on and off), `test_accuracy` (all test images,
    BN in evaluation mode, noise off).  noise: the runs of that strength, if the record has several.  A
    network that diverged counts as guessing among ten classes.
    """
    frame = record.frame(metric=metric)
    result = {}
    for run in record.runs:
        if run["arm"] != arm or (noise is not None and run["settings"].get("noise") != noise):
            continue
        late = frame[(frame["run"] == run["id"]) & (frame["step"] > 0.75 * run["settings"]["steps"])]
        result[run["seed"]] = 0.1 if run["diverged_at"] is not None else float(late["value"].mean())
    return result


def _accuracy_gap(arm: str, other: str, metric: str = "train_accuracy") -> Callable[[Record], BySeed]:
    return lambda record: in_points(
        paired(late_accuracy(record, arm, metric), late_accuracy(record, other, metric))
    )


def _movement(record: Record, arm: str) -> BySeed:
    frame = record.frame(metric="wasserstein")
    return median_by_seed(frame[frame["arm"] == arm])


_LATE = "accuracy on training images in training mode, mean over the last quarter of the run"
_TEST = "test accuracy with the noise off and BN in evaluation mode, mean over the last quarter of the run"
_PILOT = (
    "Declared after a pilot of one other seed: with noise, test accuracy was far below training accuracy."
)

CLAIMS = [
    Claim(
        id="noise-moves",
        statement="Noisy batch normalization makes activations less stable than those of a standard net.",
        source="santurkar2018",
        where="figure 2 (right), section 2.1",
        chapter=CHAPTER,
        experiment="noise",
        quantity=(
            "Wasserstein-1 distance that activations move from one step to the next, in their standard "
            "deviations, median over steps and layers: noisy BN divided by standard"
        ),
        unit="times",
        measure=lambda record: ratio(_movement(record, "noisy_bn"), _movement(record, "standard")),
        criterion=Criterion(">", 1.0),
    ),
    Claim(
        id="noisy-as-good",
        statement="Noisy batch normalization trains about as well as batch normalization.",
        source="santurkar2018",
        where="figure 2 (left), section 2.1",
        chapter=CHAPTER,
        experiment="noise",
        quantity=f"{_LATE}: BN minus noisy BN",
        unit="points",
        measure=_accuracy_gap("bn", "noisy_bn"),
        criterion=Criterion("<", 5.0),
        note="We read «about as well» as within 5 points. " + _PILOT,
    ),
    Claim(
        id="noisy-beats-standard",
        statement="Noisy batch normalization trains better than a standard net.",
        source="santurkar2018",
        where="figure 2 (left), section 2.1",
        chapter=CHAPTER,
        experiment="noise",
        quantity=f"{_LATE}: noisy BN minus standard",
        unit="points",
        measure=_accuracy_gap("noisy_bn", "standard"),
        criterion=Criterion(">", 0.0),
        note=_PILOT,
    ),
    Claim(
        id="noisy-test-accuracy",
        statement="With noise the accuracy is similar to that of batch normalization.",
        source="wikipedia_bn",
        where="«Understanding batch normalization»",
        chapter=CHAPTER,
        experiment="noise",
        quantity=f"{_TEST}: BN minus noisy BN",
        unit="points",
        measure=_accuracy_gap("bn", "noisy_bn", "test_accuracy"),
        criterion=Criterion("<", 5.0),
        note="The article does not say which accuracy. " + _PILOT,
    ),
    Claim(
        id="noise-stops-standard",
        statement="The same noise stops a standard net from training at all.",
        source="santurkar2018",
        where="appendix A.2.1",
        chapter=CHAPTER,
        experiment="noise",
        quantity=f"{_LATE}: standard net with noise",
        unit="percent",
        measure=lambda record: in_points(late_accuracy(record, "noisy_standard")),
        criterion=Criterion("<", 15.0),
        note="Guessing gives 10 percent.",
    ),
    Claim(
        id="stationary-noise",
        statement="With noise added after batch normalization a network still beats a standard one.",
        source="bektursun_blog",
        where="«Internal Covariate Shift»",
        chapter=CHAPTER,
        experiment="noise",
        quantity=f"{_LATE}: BN with stationary noise minus standard",
        unit="points",
        measure=_accuracy_gap("stationary_bn", "standard"),
        criterion=Criterion(">", 0.0),
        note="The post's noise comes from one fixed law: it does not make the distributions move.",
    ),
]
