"""Chapter 12: scale invariance and the spectrum.  Lengths that do not count, and the loss's curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from bnlib.experiments.quantities import BySeed, largest, paired, ratio
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

if TYPE_CHECKING:
    import pandas as pd

CHAPTER = "12-scale-and-spectrum"

ARMS: dict[str, dict[str, Any]] = {
    "standard": {"norm": "none", "where": "nowhere"},
    "bn": {"norm": "batch", "where": "everywhere"},
}

#: weight decay of the hidden weights; times the learning rate 0.1: 0, 0.001, 0.005, 0.01
DECAYS = [0.0, 0.01, 0.05, 0.1]
#: of these the one that is also run as a growing learning rate
AS_RATES = 0.05
#: how many times longer the hidden weights of one arm start
GAIN = 10.0
#: learning rates of the hidden weights, all others having 0.1
RATES = [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
#: learning rates of full-batch gradient descent; with the smallest the sharpness has a long way to go
EDGE_RATES = [0.05, 0.1, 0.2, 0.4]
#: where between two iterates the sharpness is also taken
BETWEEN = [0.5]


def _effective(scale: str, seed: int) -> list[Run]:
    images = {"dataset": "cifar10", "batch_size": 64, "model": {"name": "vgg", "config": "A", "width": 0.125}}
    common = {
        "smoke": {
            "dataset": "digits",
            "batch_size": 64,
            "model": {"name": "digit_cnn"},
            "steps": 60,
            "eval_every": 20,
            "probes": {"turning": {"every": 10}},
        },
        "laptop": {**images, "steps": 1000, "eval_every": 250, "probes": {"turning": {"every": 20}}},
        "paper": {
            **images,
            "model": {"name": "vgg", "config": "A", "width": 1.0},
            "batch_size": 128,
            "steps": 15000,
            "eval_every": 500,
            "probes": {"turning": {"every": 100}},
        },
    }[scale]
    common = {**common, "init": "glorot_uniform", "lr": 0.1}
    factors = ("weight_decay", "decayed", "hidden_gain")
    plain = {"decayed": "hidden", "hidden_gain": 1.0}
    chosen = [("bn", {**plain, "weight_decay": decay}) for decay in DECAYS]
    chosen += [("bn", {**plain, "weight_decay": AS_RATES, "decayed": "as_rates"})]
    chosen += [("bn", {**plain, "weight_decay": 0.0, "hidden_gain": GAIN})]
    # Without batch norm such decay is no matter of rates: it pulls what the network computes towards zero.
    chosen += [("standard", {**plain, "weight_decay": decay}) for decay in DECAYS[:2]]
    return [Run(arm, seed, {**ARMS[arm], **common, **how}, factors) for arm, how in chosen]


def _any_rate(scale: str, seed: int) -> list[Run]:
    steps, every = {"smoke": (40, 10), "laptop": (1000, 20), "paper": (10000, 200)}[scale]
    common = {
        "dataset": "digits",
        "model": {"name": "mlp", "depth": 3, "width": 16 if scale == "smoke" else 32},
        "batch_size": 1437,
        "init": "glorot_uniform",
        "lr": 0.1,
        "steps": steps,
        "loss_every": max(1, steps // 200),
        "probes": {"turning": {"every": every}},
    }
    rates = RATES[::2] if scale == "smoke" else RATES
    return [
        Run(arm, seed, {**norm, **common, "hidden_lr": rate}, ("hidden_lr",))
        for arm, norm in ARMS.items()
        for rate in rates
    ]


def _spectrum(scale: str, seed: int) -> list[Run]:
    images = {"dataset": "cifar10", "batch_size": 64, "model": {"name": "vgg", "config": "A", "width": 0.125}}

    def probes(every: int, steps: int, size: int) -> dict[str, Any]:
        each = {"every": every, "steps": steps, "draws": 1, "size": size}
        return {"hessian_spectrum": each, "relative_spectrum": each}

    common = {
        "smoke": {
            "dataset": "digits",
            "batch_size": 64,
            "model": {"name": "digit_cnn", "width": 2},
            "steps": 40,
            "probes": probes(20, 30, 64),
        },
        "laptop": {**images, "steps": 600, "probes": probes(150, 30, 128)},
        "paper": {
            **images,
            "model": {"name": "vgg", "config": "A", "width": 1.0},
            "batch_size": 128,
            "steps": 15000,
            "probes": probes(1500, 80, 1024),
        },
    }[scale]
    return [
        Run(arm, seed, {**norm, **common, "init": "glorot_uniform", "lr": 0.1}) for arm, norm in ARMS.items()
    ]


def _edge(scale: str, seed: int) -> list[Run]:
    dataset, images, steps, moments, width = {
        "smoke": ("digits", 256, 40, 5, 8),
        "laptop": ("mnist", 1000, 2000, 30, 32),
        "paper": ("cifar10", 5000, 10000, 30, 200),
    }[scale]
    common = {
        "dataset": dataset,
        "images": images,
        "model": {"name": "mlp", "depth": 2, "width": width},
        "batch_size": images,
        "init": "glorot_uniform",
        "gain": 0.5,
        "loss": "squared_classes",
        "steps": steps,
        "probes": {
            "hessian_spectrum": {
                "every": steps // moments,
                "steps": 12,
                "draws": 1,
                "top": 2,
                "between": BETWEEN,
            }
        },
    }
    rates = EDGE_RATES[1:] if scale == "smoke" else EDGE_RATES
    return [
        Run(arm, seed, {**norm, **common, "lr": lr}, ("lr",)) for arm, norm in ARMS.items() for lr in rates
    ]


EXPERIMENTS = [
    Experiment(
        name="effective_rate",
        title="The weights of a narrow VGG-A on CIFAR-10: how long they are and how fast they turn",
        chapter=CHAPTER,
        question="If the weights' lengths do not count, what do weight decay and the initial scale do?",
        runs=_effective,
    ),
    Experiment(
        name="any_rate",
        title="Gradient descent on the digits with very small and very large learning rates",
        chapter=CHAPTER,
        question="Does a network with batch norm train at any learning rate of its hidden weights?",
        runs=_any_rate,
    ),
    Experiment(
        name="spectrum",
        title="The spectrum of the Hessian of a narrow VGG-A on CIFAR-10, during training",
        chapter=CHAPTER,
        question="What does batch norm change in the curvature of the loss in all directions?",
        runs=_spectrum,
    ),
    Experiment(
        name="edge",
        title="Sharpness on the way of full-batch gradient descent, at several learning rates",
        chapter=CHAPTER,
        question="Does the sharpness settle at 2 / learning rate, with batch norm too?",
        runs=_edge,
    ),
]


# -- measured quantities ---------------------------------------------------------------------------------


def turned(
    record: Record, arm: str, metric: str, decay: float, decayed: str = "hidden", gain: float = 1.0
) -> pd.DataFrame:
    """One quantity of `probes.turning` (or another row) in one arm of `effective_rate`: rows (seed, step,
    layer, value)."""
    frame = record.frame("weight_decay", "decayed", "hidden_gain", metric=metric)
    chosen = (
        (frame["arm"] == arm)
        & (frame["weight_decay"] == decay)
        & (frame["decayed"] == decayed)
        & (frame["hidden_gain"] == gain)
    )
    return frame[chosen][["seed", "step", "layer", "value"]]


def _late(frame: pd.DataFrame) -> pd.DataFrame:
    """The second half of the steps."""
    return frame[frame["step"] >= frame["step"].max() / 2]


def _mean_by_seed(frame: pd.DataFrame) -> BySeed:
    return {int(seed): float(value) for seed, value in frame.groupby("seed")["value"].mean().items()}


def settled_angle(record: Record, decay: float, arm: str = "bn") -> BySeed:
    """The root mean square over the second half of training of the angle by which a step turns a layer's
    weights (radians), median over the hidden layers, by seed."""
    frame = _late(turned(record, arm, "angle", decay))
    squares = frame.assign(value=frame["value"] ** 2).groupby(["seed", "layer"])["value"].mean()
    return {int(seed): math.sqrt(value) for seed, value in squares.groupby("seed").median().items()}


def predicted_angle(record: Record, decay: float, arm: str = "bn") -> float:
    """The equilibrium angle sqrt(2 lr decay), radians, as recorded."""
    return float(turned(record, arm, "equilibrium_angle", decay)["value"].iloc[0])


def _angle_error(record: Record) -> BySeed:
    """The largest relative distance of `settled_angle` from the prediction, over the weight decays."""
    return largest(
        {
            seed: abs(angle / predicted_angle(record, decay) - 1)
            for seed, angle in settled_angle(record, decay).items()
        }
        for decay in DECAYS[1:]
    )


def _radial(record: Record) -> BySeed:
    """The largest |cos| between a hidden layer's weights and their gradient, BN without decay, by seed."""
    frame = turned(record, "bn", "radial", 0.0)
    return {int(seed): float(value) for seed, value in frame.groupby("seed")["value"].max().items()}


def growing(record: Record) -> BySeed:
    """The share of (layer, interval between probed steps) in which a layer's norm grew, BN without decay."""
    frame = turned(record, "bn", "weight_norm", 0.0).sort_values("step")
    change = frame.groupby(["seed", "layer"])["value"].diff().dropna()
    share = (change > 0).groupby(frame["seed"]).mean()
    return {int(seed): float(value) for seed, value in share.items()}


def late_loss(record: Record, decay: float, decayed: str = "hidden", gain: float = 1.0) -> BySeed:
    """The mean training loss (nats) over the second half of the steps, BN, by seed."""
    return _mean_by_seed(_late(turned(record, "bn", "train_loss", decay, decayed, gain)))


def late_accuracy(record: Record, decay: float, decayed: str = "hidden") -> BySeed:
    """The mean test accuracy (%) over the evaluations of the second half, BN, by seed."""
    frame = _late(turned(record, "bn", "test_accuracy", decay, decayed))
    return {seed: 100 * value for seed, value in _mean_by_seed(frame).items()}


def _apart(measure: Callable[..., BySeed], as_ratio: bool) -> Callable[[Record], BySeed]:
    """How far the growing learning rate is from weight decay, by seed."""

    def apart(record: Record) -> BySeed:
        one, other = measure(record, AS_RATES, "as_rates"), measure(record, AS_RATES)
        return paired(one, other, lambda a, b: abs(a / b - 1) if as_ratio else abs(a - b))

    return apart


def kept_loss(record: Record, arm: str) -> dict[float, BySeed]:
    """Per learning rate of the hidden weights: final over first training loss, by seed; infinite for a run
    that diverged."""
    frame = record.frame("hidden_lr")
    frame = frame[frame["arm"] == arm]
    found: dict[float, BySeed] = {}
    for (rate, seed), run in frame.groupby(["hidden_lr", "seed"]):
        losses = run[run["metric"] == "train_loss"].sort_values("step")["value"]
        lost = (run["metric"] == "diverged_at").any()
        found.setdefault(float(rate), {})[int(seed)] = (
            math.inf if lost else float(losses.iloc[-1] / losses.iloc[0])
        )
    return found


def spectral(record: Record, arm: str, metric: str, relative: bool = False) -> pd.DataFrame:
    """A row of `probes.hessian_spectrum`: rows (seed, step, value)."""
    frame = record.frame(metric=f"{'relative_' if relative else ''}{metric}")
    return frame[frame["arm"] == arm][["seed", "step", "value"]]


def standing_out(record: Record, arm: str, relative: bool = False) -> BySeed:
    """How far the largest eigenvalue stands out, lambda_1 / lambda_10, median over the probed steps after the
    start, by seed."""
    one, ten = (
        spectral(record, arm, f"eigenvalue[{k}]", relative).set_index(["seed", "step"])["value"]
        for k in (1, 10)
    )
    return _after_start((one / ten).reset_index())


def _after_start(frame: pd.DataFrame) -> BySeed:
    frame = frame[frame["step"] > 0]
    return {int(seed): median(values) for seed, values in frame.groupby("seed")["value"]}


def _bn_over_standard(metric: str, relative: bool = False) -> Callable[[Record], BySeed]:
    return lambda record: ratio(
        _after_start(spectral(record, "bn", metric, relative)),
        _after_start(spectral(record, "standard", metric, relative)),
    )


def edges(record: Record, arm: str, between: bool = False) -> pd.DataFrame:
    """Sharpness in units of 2 / learning rate, at the iterates or halfway to the next: rows (lr, seed, step,
    value)."""
    metric = f"sharpness@{BETWEEN[0]:g}" if between else "edge"
    frame = record.frame("lr", metric=metric)
    frame = frame[frame["arm"] == arm]
    value = frame["value"] * frame["lr"] / 2 if between else frame["value"]
    return frame[["lr", "seed", "step"]].assign(value=value)


def from_the_edge(arm: str, between: bool = False) -> Callable[[Record], BySeed]:
    """|median sharpness in units of 2 / learning rate, minus 1| in the second half, of the learning rate
    where it is largest, without the smallest; a run that diverged counts as infinitely far."""

    def measure(record: Record) -> BySeed:
        frame, ends = edges(record, arm, between), record.frame("lr")
        lost = ends[(ends["metric"] == "diverged_at") & (ends["arm"] == arm)]
        diverged = set(zip(lost["lr"], lost["seed"], strict=True))
        found: dict[int, float] = {}
        for (rate, seed), run in frame[frame["lr"] > min(EDGE_RATES)].groupby(["lr", "seed"]):
            far = math.inf if (rate, seed) in diverged else abs(float(_late(run)["value"].median()) - 1)
            found[int(seed)] = max(found.get(int(seed), 0.0), far)
        return found

    return measure


_SMALLER = Criterion("<", 1.0)
_AFTER = "median over the probed steps after the start"
_NEAR = "median over the second half of the steps, the learning rate of 0.1, 0.2, 0.4 where it is farthest"
_CHOSEN = (
    "The set-up was chosen after some runs of another seed, until the effect could be seen at all; at 0.05 "
    "the sharpness was still on its way when they ended, so that rate is shown and not judged."
)

CLAIMS = [
    Claim(
        id="radial-gradient",
        statement="Behind a weight follows batch norm, so its gradient is orthogonal to the weight.",
        source="vanlaarhoven2017",
        where="what scale invariance implies",
        chapter=CHAPTER,
        experiment="effective_rate",
        quantity=(
            "largest |cosine| between a hidden layer's weights and their gradient, over layers and probed "
            "steps, eps = 1e-5, no weight decay"
        ),
        unit="",
        measure=_radial,
        criterion=Criterion("<", 0.01),
    ),
    Claim(
        id="weights-grow",
        statement="With batch norm and without weight decay the weights' norm can only grow.",
        source="arora2019",
        where="the lemma on the growth of the norm",
        chapter=CHAPTER,
        experiment="effective_rate",
        quantity="share of (hidden layer, interval between probed steps) in which the layer's norm grew",
        unit="",
        measure=growing,
        criterion=Criterion(">", 0.999),
    ),
    Claim(
        id="initial-scale-irrelevant",
        statement="With batch norm the scale of the initial weights does not matter for training.",
        source="wikipedia_bn",
        where="«more robust to different initialization schemes»",
        chapter=CHAPTER,
        experiment="effective_rate",
        quantity=(
            "mean training loss over the second half of the steps: hidden weights ten times longer at the "
            "start, minus as they are"
        ),
        unit="nats",
        measure=lambda record: paired(late_loss(record, 0.0, gain=GAIN), late_loss(record, 0.0)),
        criterion=Criterion("<", 0.1),
        note="The output at the start is the same; what changes is the effective learning rate.",
    ),
    Claim(
        id="equilibrium-angle",
        statement="With weight decay every step turns the weights by √(2ηλ), whatever the network.",
        source="vanlaarhoven2017",
        where="the equilibrium of the weights' norm",
        chapter=CHAPTER,
        experiment="effective_rate",
        quantity=(
            "|angle / √(2ηλ) - 1| of a layer's weights, root mean square over the second half of the steps, "
            "median over the hidden layers, the weight decay where it is largest"
        ),
        unit="",
        measure=_angle_error,
        criterion=Criterion("<", 0.1),
        note="Weight decay of the hidden weights alone; ηλ = 0.001, 0.005 and 0.01.",
    ),
    Claim(
        id="decay-is-rate",
        statement="Weight decay can be replaced by an exponentially growing learning rate.",
        source="li2020",
        where="main theorem, for descent without momentum",
        chapter=CHAPTER,
        experiment="effective_rate",
        quantity="|mean training loss of the growing rate / of weight decay - 1|, second half of the steps",
        unit="",
        measure=_apart(late_loss, as_ratio=True),
        criterion=Criterion("<", 0.05),
        note="In float32, where both ways part by rounding after some steps; in float64 they are the same.",
    ),
    Claim(
        id="decay-regularises-not",
        statement="Weight decay of normalised weights does not regularise: only the learning rate changes.",
        source="vanlaarhoven2017",
        where="the paper's main point",
        chapter=CHAPTER,
        experiment="effective_rate",
        quantity=(
            "|mean test accuracy of the growing rate without decay, minus that of weight decay|, evaluations "
            "of the second half"
        ),
        unit="points",
        measure=_apart(late_accuracy, as_ratio=False),
        criterion=Criterion("<", 2.0),
    ),
    Claim(
        id="any-rate",
        statement="With batch norm gradient descent succeeds at any learning rate of the normalised weights.",
        source="arora2019",
        where="the theorems for gradient descent: that rate is free",
        chapter=CHAPTER,
        experiment="any_rate",
        quantity="final over first training loss, at the worst rate from 0.01 to 1000",
        unit="",
        measure=lambda record: largest(kept_loss(record, "bn").values()),
        criterion=Criterion("<", 0.1),
        note="The readout, gamma and beta have 0.1. The set-up was chosen after one run of another seed.",
    ),
    Claim(
        id="outliers",
        statement="Without batch norm a few eigenvalues stand far out of the bulk; with it they do not.",
        source="ghorbani2019",
        where="experiments with batch norm and without",
        chapter=CHAPTER,
        experiment="spectrum",
        quantity=f"λ₁/λ₁₀ of the Hessian, {_AFTER}: BN divided by standard",
        unit="times",
        measure=lambda record: ratio(standing_out(record, "bn"), standing_out(record, "standard")),
        criterion=_SMALLER,
    ),
    Claim(
        id="gradient-in-outliers",
        statement="Without batch norm the gradient lies in the directions of the outliers, with it less.",
        source="ghorbani2019",
        where="experiments with batch norm and without",
        chapter=CHAPTER,
        experiment="spectrum",
        quantity=f"share of ‖g‖² in the span of the ten leading eigenvectors, {_AFTER}: BN over standard",
        unit="times",
        measure=_bn_over_standard("gradient_share[10]"),
        criterion=_SMALLER,
    ),
    Claim(
        id="sharpness",
        statement="Batch norm makes the Hessian's largest eigenvalue smaller.",
        source="santurkar2018",
        where="section 3: a smoother landscape; there along the gradient",
        chapter=CHAPTER,
        experiment="spectrum",
        quantity=f"largest eigenvalue of the Hessian, {_AFTER}: BN divided by standard",
        unit="times",
        measure=_bn_over_standard("sharpness"),
        criterion=_SMALLER,
    ),
    Claim(
        id="sharpness-relative",
        statement="Batch norm makes the Hessian's largest eigenvalue smaller, at equal relative length.",
        source="santurkar2018",
        where="not reported there; a control",
        chapter=CHAPTER,
        experiment="spectrum",
        quantity=f"largest eigenvalue in units of the layers' norms, {_AFTER}: BN divided by standard",
        unit="times",
        measure=_bn_over_standard("sharpness", relative=True),
        criterion=_SMALLER,
    ),
    Claim(
        id="edge-standard",
        statement="Gradient descent drives the sharpness up to 2/η, where it hovers; standard network.",
        source="cohen2021",
        where="the main experiments",
        chapter=CHAPTER,
        experiment="edge",
        quantity=f"|sharpness in units of 2/η, minus 1|, {_NEAR}",
        unit="",
        measure=from_the_edge("standard"),
        criterion=Criterion("<", 0.2),
        note=_CHOSEN,
    ),
    Claim(
        id="edge-bn",
        statement="Gradient descent drives the sharpness up to 2/η, where it hovers; with batch norm too.",
        source="cohen2021",
        where="appendix on batch normalization",
        chapter=CHAPTER,
        experiment="edge",
        quantity=f"|sharpness in units of 2/η, minus 1|, {_NEAR}",
        unit="",
        measure=from_the_edge("bn"),
        criterion=Criterion("<", 0.2),
        note=_CHOSEN,
    ),
    Claim(
        id="edge-bn-between",
        statement="With batch norm it is the sharpness between iterates that settles at 2/η.",
        source="cohen2021",
        where="appendix on batch normalization",
        chapter=CHAPTER,
        experiment="edge",
        quantity=(
            f"|sharpness halfway to the next iterate in units of 2/η, minus 1|, divided by the same at the "
            f"iterates, {_NEAR}"
        ),
        unit="times",
        measure=lambda record: ratio(from_the_edge("bn", between=True)(record), from_the_edge("bn")(record)),
        criterion=_SMALLER,
    ),
]
