"""Chapter 8: is it special to batch normalization?  Normalization by l_p norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from bnlib.experiments import landscape
from bnlib.experiments.quantities import BySeed, in_points, largest, median_by_seed, paired, ratio, smallest
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

CHAPTER = "08-lp-normalization"

#: the paper's, whose scale is taken before the mean is subtracted
UNCENTRED = ["l1", "l2", "linf"]
#: the same with the scale of y - mu; the centred l_2 is batch normalization
CENTRED = ["l1_centred", "linf_centred"]
ARMS: dict[str, dict[str, Any]] = {
    "standard": {"norm": "none", "where": "nowhere"},
    "bn": {"norm": "batch", "where": "everywhere"},
    **{name: {"norm": name, "where": "everywhere"} for name in UNCENTRED + CENTRED},
}
FACTORS = [0.5, 1.0, 2.0, 4.0]
LENGTHS = [0.01, 0.03, 0.1]
SIZES = [8, 32, 128]


def _probes(often: int, seldom: int, layers: list[str], sizes: list[int]) -> dict[str, Any]:
    return {
        "activation_moments": {"every": often, "layers": layers},
        "activation_histogram": {"every": seldom, "layers": layers},
        "activation_shift": {"every": seldom, "layers": layers},
        "training_mode_accuracy": {"every": 2 * often},
        "lp_scales": {"every": seldom, "layers": layers, "sizes": sizes},
        "landscape": {"every": 2 * often, "factors": FACTORS},
        "relative_landscape": {"every": 2 * often, "lengths": LENGTHS},
    }


def _vgg(scale: str, seed: int) -> list[Run]:
    layers = ["conv2", "conv5", "conv8"]
    images = {"dataset": "cifar10", "batch_size": 128}
    common = {
        "smoke": {
            "dataset": "digits",
            "model": {"name": "digit_cnn"},
            "batch_size": 64,
            "steps": 40,
            "eval_every": 20,
            "probes": _probes(10, 20, ["conv1", "conv2"], [8, 32, 64]),
        },
        "laptop": {
            **images,
            "model": {"name": "vgg", "config": "A", "width": 0.125},
            "steps": 600,
            "eval_every": 300,
            "probes": _probes(20, 100, layers, SIZES),
        },
        "paper": {
            **images,
            "model": {"name": "vgg", "config": "A", "width": 1.0},
            "steps": 15000,
            "eval_every": 500,
            "probes": _probes(250, 1500, layers, SIZES),
        },
    }[scale]
    return [
        Run(arm, seed, {**norm, **common, "init": "glorot_uniform", "lr": 0.1}) for arm, norm in ARMS.items()
    ]


def _linear(scale: str, seed: int) -> list[Run]:
    steps, every = {"smoke": (40, 10), "laptop": (2000, 100), "paper": (10000, 500)}[scale]
    common = {
        "dataset": {"n": 1000, "width": 10},
        "model": {"name": "deep_linear", "depth": 6 if scale == "smoke" else 25, "width": 10},
        "batch_size": 1000,
        "init": "glorot_uniform",
        "dtype": "float64",
        "loss": "squared_sum",
        "lr": 1e-6,
        "steps": steps,
        "loss_every": max(1, steps // 200),
        "probes": {
            "landscape": {"every": every, "factors": landscape.LINEAR_FACTORS},
            "relative_landscape": {"every": every, "lengths": LENGTHS},
        },
    }
    return [Run(arm, seed, {**norm, **common}) for arm, norm in ARMS.items()]


EXPERIMENTS = [
    Experiment(
        name="lp_norms",
        title="A narrow VGG-A on CIFAR-10 with l_1, l_2, l_inf normalization, as printed and centred",
        chapter=CHAPTER,
        question="Do normalizations that leave the variance free train as well as batch normalization?",
        runs=_vgg,
    ),
    Experiment(
        name="lp_norms_linear",
        title="A deep linear network of 25 layers with l_1, l_2, l_inf normalization, as printed and centred",
        chapter=CHAPTER,
        question="And in the simplest deep network there is?",
        runs=_linear,
    ),
]


# -- measured quantities ---------------------------------------------------------------------------------


def late_accuracy(record: Record, arm: str, metric: str = "train_accuracy") -> BySeed:
    """Accuracy (0..1) in training mode averaged over the last quarter of training, by seed; metric:
    `train_accuracy` or `test_accuracy_batch`.  A network that diverged counts as guessing."""
    frame = record.frame(metric=metric)
    found = {}
    for run in record.runs:
        if run["arm"] == arm:
            late = frame[(frame["run"] == run["id"]) & (frame["step"] > 0.75 * run["settings"]["steps"])]
            found[run["seed"]] = 0.1 if run["diverged_at"] is not None else float(late["value"].mean())
    return found


def final_loss(record: Record, arm: str) -> BySeed:
    """The training loss, averaged over the last tenth of training, by seed; infinite if it diverged."""
    frame = record.frame(metric="train_loss")
    found = {}
    for run in record.runs:
        if run["arm"] == arm:
            late = frame[(frame["run"] == run["id"]) & (frame["step"] >= 0.9 * run["settings"]["steps"])]
            found[run["seed"]] = math.inf if run["diverged_at"] is not None else float(late["value"].mean())
    return found


def shift(record: Record, arm: str) -> BySeed:
    """How far a training step moves the activations' distributions: Wasserstein-1 in their standard
    deviations, median over layers and probed steps after the start, by seed."""
    frame = record.frame(metric="wasserstein")
    return median_by_seed(frame[(frame["arm"] == arm) & (frame["step"] > 0)])


def scale(record: Record, arm: str, metric: str) -> BySeed:
    """A row of `probes.lp_scales` such as `lp_scale_centred[inf]@32`, median over layers and steps."""
    frame = record.frame(metric=metric)
    return median_by_seed(frame[frame["arm"] == arm])


def over_arms(
    of: Callable[[Record, str], BySeed],
    against: str,
    combine: Callable[[BySeed, BySeed], BySeed] = paired,
    worst: Callable[..., BySeed] = smallest,
) -> Callable[[Record], BySeed]:
    """The paper's three l_p arms, each combined with the arm `against`; the worst of the three."""
    return lambda record: worst(combine(of(record, arm), of(record, against)) for arm in UNCENTRED)


def _points(of: Callable[[Record], BySeed]) -> Callable[[Record], BySeed]:
    return lambda record: in_points(of(record))


def _grows(order: str) -> Callable[[Record], BySeed]:
    """Centred C_p / sigma in the standard net: the largest number of images divided by the smallest."""

    def measure(record: Record) -> BySeed:
        sizes = sorted(record.runs[0]["settings"]["probes"]["lp_scales"]["sizes"])
        few, many = (
            scale(record, "standard", f"lp_scale_centred[{order}]@{n}") for n in (sizes[0], sizes[-1])
        )
        return ratio(many, few)

    return measure


def _variance(record: Record) -> BySeed:
    sizes = record.runs[0]["settings"]["probes"]["lp_scales"]["sizes"]
    return scale(record, "l2", f"lp_variance[2]@{max(sizes)}")


def _log_gain(record: Record) -> BySeed:
    """log10 of the final loss with BN over that with l_1."""
    return {
        seed: math.log10(value)
        for seed, value in ratio(final_loss(record, "bn"), final_loss(record, "l1")).items()
        if 0 < value < math.inf
    }


def _smoother(quantity: str) -> Callable[[Record], BySeed]:
    return over_arms(
        lambda record, arm: landscape.typical(record, arm, quantity), "standard", ratio, worst=largest
    )


_ACCURACY = "accuracy on training images in training mode, mean over the last quarter of the run"
_LANDSCAPE = (
    "along the gradient, 1/2 to 4 times the learning rate, median over the probed steps: l_p divided by "
    "standard, the p (1, 2 or inf) where it is largest"
)

CLAIMS = [
    Claim(
        id="lp-comparable",
        statement="Normalization by the l_1, l_2 or l_inf norm trains about as well as batch normalization.",
        source="santurkar2018",
        where="section 3.3, appendix",
        chapter=CHAPTER,
        experiment="lp_norms",
        quantity=f"{_ACCURACY}: l_p minus BN, the p (1, 2 or inf) where it is smallest",
        unit="points",
        measure=_points(over_arms(late_accuracy, "bn")),
        criterion=Criterion(">", -5.0),
    ),
    Claim(
        id="lp-better",
        statement="Normalization by the l_1, l_2 or l_inf norm trains better than no normalization.",
        source="santurkar2018",
        where="section 3.3, appendix",
        chapter=CHAPTER,
        experiment="lp_norms",
        quantity=f"{_ACCURACY}: l_p minus standard, the p (1, 2 or inf) where it is smallest",
        unit="points",
        measure=_points(over_arms(late_accuracy, "standard")),
        criterion=Criterion(">", 0.0),
    ),
    Claim(
        id="lp-shift",
        statement="Normalization by l_p norms moves the activations' distributions more than none.",
        source="santurkar2018",
        where="section 3.3",
        chapter=CHAPTER,
        experiment="lp_norms",
        quantity=(
            "Wasserstein-1 distance that one training step moves a layer's activations, in their standard "
            "deviations, median over layers and steps: l_p divided by standard, the p where it is smallest"
        ),
        unit="times",
        measure=over_arms(shift, "standard", ratio),
        criterion=Criterion(">", 1.0),
    ),
    Claim(
        id="lp-loss-variation",
        statement="Normalization by l_p norms makes the loss vary less along the gradient.",
        source="santurkar2018",
        where="section 3.3, appendix",
        chapter=CHAPTER,
        experiment="lp_norms",
        quantity=f"range of the loss {_LANDSCAPE}",
        unit="times",
        measure=_smoother("loss"),
        criterion=Criterion("<", 1.0),
    ),
    Claim(
        id="lp-beta",
        statement="Normalization by l_p norms makes the loss smoother along the gradient.",
        source="santurkar2018",
        where="section 3.3, appendix",
        chapter=CHAPTER,
        experiment="lp_norms",
        quantity=f"effective beta-smoothness {_LANDSCAPE}",
        unit="times",
        measure=_smoother("effective_beta"),
        criterion=Criterion("<", 1.0),
    ),
    Claim(
        id="l1-linear",
        statement="In a deep linear network l_1 normalization does better than batch normalization.",
        source="santurkar2018",
        where="section 3.3, appendix",
        chapter=CHAPTER,
        experiment="lp_norms_linear",
        quantity="final loss, mean over the last tenth of the run: log10 of BN's over l_1's",
        unit="powers of ten",
        measure=_log_gain,
        criterion=Criterion(">", 0.0),
    ),
    Claim(
        id="l2-is-bn",
        statement="Normalization by the l_2 norm as the paper defines it is batch normalization.",
        source="santurkar2018",
        where="section 3.3; the scale is taken before the mean is subtracted",
        chapter=CHAPTER,
        experiment="lp_norms",
        quantity="variance of the output for gamma = 1, median over layers and steps, in the l_2 net",
        unit="",
        measure=_variance,
        criterion=Criterion(">", 0.99),
        note="The paper does not claim it; readers do. It would be 1 if the means were 0.",
    ),
    Claim(
        id="linf-batch",
        statement="The l_inf scale depends on the size of the batch.",
        source="santurkar2018",
        where="not reported there",
        chapter=CHAPTER,
        experiment="lp_norms",
        quantity=(
            "largest deviation over standard deviation of a channel, standard net, median over layers and "
            "steps: the whole batch divided by its first 8 images"
        ),
        unit="times",
        measure=_grows("inf"),
        criterion=Criterion(">", 1.1),
    ),
    Claim(
        id="l1-batch",
        statement="The l_1 scale does not depend on the size of the batch.",
        source="santurkar2018",
        where="not reported there",
        chapter=CHAPTER,
        experiment="lp_norms",
        quantity=(
            "mean absolute deviation over standard deviation of a channel, standard net, median over layers "
            "and steps: the whole batch divided by its first 8 images, distance from 1"
        ),
        unit="",
        measure=lambda record: {seed: abs(value - 1) for seed, value in _grows("1")(record).items()},
        criterion=Criterion("<", 0.05),
    ),
]
