"""Chapter 13: when the batch is the problem.  Batch size, other images, gamma and beta alone, and rank."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from itertools import pairwise, product
from statistics import median
from typing import TYPE_CHECKING, Any

from bnlib.experiments.quantities import BySeed, in_points, median_by_seed, paired, ratio, smallest
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run, setting

if TYPE_CHECKING:
    import pandas as pd

CHAPTER = "13-small-batches"

ARMS: dict[str, dict[str, Any]] = {
    "standard": {"norm": "none", "where": "nowhere"},
    "bn": {"norm": "batch", "where": "everywhere"},
    "group": {"norm": "group", "where": "everywhere"},
    "batch_renorm": {"norm": "batch_renorm", "where": "everywhere"},
}


def _train(arm: str, seed: int, factors: tuple[str, ...] = (), **settings: Any) -> Run:
    return Run(arm, seed, {**ARMS[arm], "init": "glorot_uniform", **settings}, factors)


# -- batch size: the same images in the same number, at a rate in proportion to the batch -----------------

RATE = 0.1  # at a batch of 32
LARGE = 32  # what the small batch of the convolutional network is compared with, as in Wu and He


def _sizes(
    arms: Iterable[str], seed: int, sizes: list[int], images: int, probe: dict[str, Any], **common: Any
) -> list[Run]:
    """Every network sees `images` images; lr = 0.1 batch / 32, so that the product of rate and steps is the
    same for all."""
    runs = []
    for arm, size in product(arms, sizes):
        steps = images // size
        settings = {
            **common,
            "batch_size": size,
            "lr": RATE * size / LARGE,
            "steps": steps,
            "loss_every": max(1, steps // 50),
            "eval_every": steps,
            "probes": {"two_modes": {**probe, "every": steps}},
        }
        runs.append(_train(arm, seed, ("batch_size",), **settings))
    return runs


def _fully_connected(scale: str, seed: int) -> list[Run]:
    model = {"name": "mlp", "depth": 3, "width": 128}
    if scale == "smoke":
        model = {"name": "mlp", "depth": 2, "width": 32}
        probe = {"size": 256, "many": 128}
        return _sizes(ARMS, seed, [2, 8, 32], 192, probe, dataset="digits", model=model)
    sizes, images = [2, 4, 8, 16, 32, 128], {"laptop": 25600, "paper": 614_400}[scale]
    return _sizes(ARMS, seed, sizes, images, {"size": 2048}, dataset="mnist", model=model)


def _convolutional(scale: str, seed: int) -> list[Run]:
    arms = ["bn", "group", "batch_renorm"]
    if scale == "smoke":
        model = {"name": "digit_cnn", "width": 8}
        probe = {"size": 256, "many": 128}
        return _sizes(arms, seed, [2, 8, 32], 192, probe, dataset="digits", model=model)
    sizes, images, width = {
        "laptop": ([2, 8, 32], 12800, 0.125),
        "paper": ([2, 4, 8, 16, 32], 1_024_000, 1.0),
    }[scale]
    model = {"name": "vgg", "config": "A", "width": width}
    return _sizes(arms, seed, sizes, images, {"size": 2048}, dataset="cifar10", model=model)


# -- other images than those of the training --------------------------------------------------------------

SHIFTS: dict[str, list[float]] = {
    "brightness": [0.5, 1.0, 2.0],
    "contrast": [0.5, 0.75, 0.9],
    "colour": [0.5, 1.0, 2.0],
    "noise": [0.25, 0.5, 1.0],
    "blur": [1.0, 2.0, 4.0],
}
MANY, FEW = 512, 32  # images whose statistics replace those of the training


def _domain_shift(scale: str, seed: int) -> list[Run]:
    vgg = {"name": "vgg", "config": "A"}
    probe = {"shifts": SHIFTS, "size": 1000, "samples": [8, FEW, MANY]}
    common = {
        "smoke": {
            "dataset": "digits",
            "model": {"name": "digit_cnn", "width": 8},
            "batch_size": 64,
            "steps": 60,
            "probe": {**probe, "size": 200, "samples": [8, FEW, 128]},
        },
        "laptop": {
            "dataset": "cifar10",
            "model": {**vgg, "width": 0.125},
            "batch_size": 128,
            "steps": 600,
            "probe": probe,
        },
        "paper": {
            "dataset": "cifar10",
            "model": {**vgg, "width": 1.0},
            "batch_size": 128,
            "steps": 15000,
            "probe": {**probe, "size": 5000},
        },
    }[scale]
    probe, steps = common.pop("probe"), common["steps"]
    common |= {"lr": RATE, "loss_every": 10, "probes": {"shifted_accuracy": {**probe, "every": steps}}}
    return [_train(arm, seed, **common) for arm in ("bn", "group")]


# -- what gamma and beta alone can do ---------------------------------------------------------------------

TRAINED = ["readout", "random_weights", "gamma_beta", "gamma_beta_readout", "everything"]
ZERO = 0.01  # below it a gamma counts as zero, as in the source


def _gamma_beta(scale: str, seed: int) -> list[Run]:
    vgg = {"name": "vgg", "config": "A"}
    common = {
        "smoke": {
            "dataset": "digits",
            "model": {"name": "digit_cnn", "width": 8},
            "batch_size": 64,
            "steps": 60,
            "eval_every": 20,
        },
        "laptop": {
            "dataset": "cifar10",
            "model": {**vgg, "width": 0.125},
            "batch_size": 128,
            "steps": 600,
            "eval_every": 200,
        },
        "paper": {
            "dataset": "cifar10",
            "model": {**vgg, "width": 1.0},
            "batch_size": 128,
            "steps": 62_500,
            "eval_every": 2500,
        },
    }[scale]
    # The source's rate, momentum and weight decay.
    common |= {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "loss_every": 10}
    common["probes"] = {"gammas": {"every": common["steps"]}}
    return [_train("bn", seed, ("train_only",), train_only=what, **common) for what in TRAINED]


# -- the rank of what random layers pass on ---------------------------------------------------------------


def _rank(scale: str, seed: int) -> list[Run]:
    depth, widths = {"smoke": (200, [8, 16]), "laptop": (1000, [8, 32, 128]), "paper": (5000, [8, 32, 128])}[
        scale
    ]
    norms = {"bn": "batch_uncentred", "standard": "none"}
    return [
        Run(
            arm,
            seed,
            {"norm": norm, "depth": depth, "width": width, "batch": 2 * width, "every": depth // 100},
            ("width",),
            task="rank_collapse",
        )
        for (arm, norm), width in product(norms.items(), widths)
    ]


EXPERIMENTS = [
    Experiment(
        name="batch_size",
        title="A fully connected network on MNIST with batches of 2 to 128 images",
        chapter=CHAPTER,
        question="What does a small batch do where each channel has one value per image?",
        runs=_fully_connected,
    ),
    Experiment(
        name="batch_size_vgg",
        title="VGG-A on CIFAR-10 with batches of 2 to 32 images",
        chapter=CHAPTER,
        question="And in a convolutional network, where every pixel counts?",
        runs=_convolutional,
    ),
    Experiment(
        name="domain_shift",
        title="VGG-A trained on CIFAR-10, tested on images of another camera",
        chapter=CHAPTER,
        question="How much is lost because the running statistics are those of other images?",
        runs=_domain_shift,
    ),
    Experiment(
        name="bn_only",
        title="VGG-A on CIFAR-10 with random weights: only gamma and beta are trained",
        chapter=CHAPTER,
        question="How much can a layer's scales and shifts do by themselves?",
        runs=_gamma_beta,
    ),
    Experiment(
        name="rank",
        title="The soft rank of the activations behind up to 1000 random linear layers",
        chapter=CHAPTER,
        question="Does the batch stay in more than one dimension?",
        runs=_rank,
    ),
]


# -- measured quantities ----------------------------------------------------------------------------------


def at_the_end(record: Record, metric: str, *factors: str) -> pd.DataFrame:
    """The value after the last step: rows (arm, *factors, seed, layer, value).  A network that diverged has
    none, or, if `metric` is an accuracy, that of guessing among ten classes."""
    frame = record.frame(*factors, metric=metric)
    steps = {run["id"]: run["settings"].get("steps", run["settings"].get("depth")) for run in record.runs}
    frame = frame[frame["step"] == frame["run"].map(steps)]
    rows = frame[["arm", *factors, "seed", "layer", "value"]].to_dict("records")
    if "accuracy" in metric:
        for run in record.runs:
            if run["diverged_at"] is not None:
                chosen = {name: setting(run["settings"], name) for name in factors}
                rows.append({"arm": run["arm"], **chosen, "seed": run["seed"], "layer": "", "value": 0.1})
    import pandas as pd

    return pd.DataFrame(rows).sort_values(["arm", *factors, "seed"], ignore_index=True)


def by_size(record: Record, arm: str, metric: str = "test_accuracy") -> dict[int, BySeed]:
    """The value after training, by batch size and seed."""
    frame = at_the_end(record, metric, "batch_size")
    frame = frame[frame["arm"] == arm]
    return {
        int(size): dict(zip(part["seed"].astype(int), part["value"].astype(float), strict=True))
        for size, part in frame.groupby("batch_size")
    }


def lost(record: Record, arm: str, metric: str = "test_accuracy") -> BySeed:
    """Accuracy at a batch of 32 minus that at the smallest batch, by seed."""
    table = by_size(record, arm, metric)
    return paired(table[LARGE], table[min(table)])


def _lost_more(record: Record) -> BySeed:
    return in_points(paired(lost(record, "bn"), lost(record, "group")))


def _group_change(record: Record) -> BySeed:
    return {seed: abs(value) for seed, value in in_points(lost(record, "group")).items()}


def _renorm_gain(record: Record) -> BySeed:
    renorm, bn = by_size(record, "batch_renorm"), by_size(record, "bn")
    return in_points(paired(renorm[min(renorm)], bn[min(bn)]))


def _renorm_fair(record: Record) -> BySeed:
    renorm = by_size(record, "batch_renorm", "test_accuracy_running")
    bn = by_size(record, "bn", "test_accuracy_reestimated")
    return in_points(paired(renorm[min(renorm)], bn[min(bn)]))


LEAST = 0.05  # accuracy that must have been lost for a share of it to be measured


def _given_back(record: Record) -> BySeed:
    """The share of what the smallest batch costs BN in evaluation mode that re-estimated statistics give
    back; a seed in which it costs less than `LEAST` is left out."""
    gone = lost(record, "bn", "test_accuracy_running")
    small = min(by_size(record, "bn"))
    reestimated = by_size(record, "bn", "test_accuracy_reestimated")[small]
    gained = paired(reestimated, by_size(record, "bn", "test_accuracy_running")[small])
    return ratio(gained, {seed: value for seed, value in gone.items() if value >= LEAST})


def _modes_part(record: Record) -> BySeed:
    """Disagreement of the modes at one batch size minus at the next larger one: the smallest difference."""
    table = by_size(record, "bn", "mode_disagreement")
    return in_points(smallest(paired(table[a], table[b]) for a, b in pairwise(sorted(table))))


INVERSE_AT = 8  # a batch size at which 1/variance has a mean and, of Gaussian values, a variance


def _inverse_variance(record: Record) -> BySeed:
    """|mean of the population's variance / the batch's, over m / (m - 3), minus 1|; median over layers."""
    frame = at_the_end(record, "inverse_variance", "batch_size")
    measured = median_by_seed(frame[(frame["arm"] == "bn") & (frame["batch_size"] == INVERSE_AT)])
    return {seed: abs(v * (INVERSE_AT - 3) / INVERSE_AT - 1) for seed, v in measured.items()}


_SHIFTED = re.compile(r"accuracy\[(?P<how>.+)\]@(?P<kind>\w+)=(?P<strength>.+)")


def shifted(record: Record) -> pd.DataFrame:
    """Accuracy after training on shifted images: rows (arm, seed, how, kind, strength, value); `clean` is a
    kind of its own, of strength 0."""
    frame = record.frame("steps")
    frame = frame[frame["step"] == frame["steps"]]
    parts = frame["metric"].str.extract(_SHIFTED)
    frame = frame[["arm", "seed", "value"]].join(parts).dropna().astype({"strength": float})
    return frame.reset_index(drop=True)


def recovered(record: Record, how: str | None = None, kinds: Iterable[str] = SHIFTS) -> pd.DataFrame:
    """What other statistics give back of the accuracy that a shift costs BN: rows (seed, kind, strength,
    lost, share), where at least `LEAST` is lost.

    share = (accuracy with `how` - running) / (clean - running); `how` None is the largest "n=N".
    """
    frame = shifted(record)
    frame = frame[frame["arm"] == "bn"]
    how = how or max(set(frame["how"]) - {"running", "batch"}, key=lambda name: int(name[2:]))
    table = frame.pivot_table(index=["seed", "kind", "strength"], columns="how", values="value").reset_index()
    clean = table[table["kind"] == "clean"].set_index("seed")["running"]
    table = table[table["kind"].isin(list(kinds))]
    table["lost"] = table["seed"].map(clean) - table["running"]
    table = table[table["lost"] >= LEAST]
    table["share"] = (table[how] - table["running"]) / table["lost"]
    return table[["seed", "kind", "strength", "lost", "share"]].reset_index(drop=True)


def _recovered(kinds: Iterable[str] = SHIFTS) -> Callable[[Record], BySeed]:
    def measure(record: Record) -> BySeed:
        return median_by_seed(recovered(record, kinds=kinds).rename(columns={"share": "value"}))

    return measure


def _few_enough(record: Record) -> BySeed:
    few, many = recovered(record, f"n={FEW}"), recovered(record)
    table = few.assign(value=few["share"] / many["share"])
    return median_by_seed(table[many["share"] > 0])


def trained(record: Record, what: str) -> BySeed:
    """Test accuracy after training `what` alone, by seed."""
    frame = at_the_end(record, "test_accuracy", "train_only")
    frame = frame[frame["train_only"] == what]
    return dict(zip(frame["seed"].astype(int), frame["value"].astype(float), strict=True))


def _more_than(what: str) -> Callable[[Record], BySeed]:
    return lambda record: in_points(paired(trained(record, "gamma_beta"), trained(record, what)))


def scales(record: Record, what: str, letter: str = "gamma") -> pd.DataFrame:
    """Every gamma (or beta) after training `what` alone: rows (seed, layer, channel, value)."""
    frame = record.frame("train_only", "steps")
    frame = frame[(frame["train_only"] == what) & (frame["step"] == frame["steps"])]
    channel = frame["metric"].str.extract(rf"^{letter}\[(\d+)\]$")[0]
    frame = frame.assign(channel=channel).dropna(subset="channel").astype({"channel": int})
    return frame[["seed", "layer", "channel", "value"]].reset_index(drop=True)


def _near_zero(record: Record) -> BySeed:
    frame = scales(record, "gamma_beta")
    shares = frame.assign(small=frame["value"].abs() < ZERO).groupby("seed")["small"].mean()
    return {int(seed): float(share) for seed, share in shares.items()}


def ranks(record: Record, arm: str) -> pd.DataFrame:
    """The soft rank by depth: rows (width, seed, depth, value)."""
    frame = record.frame("width", metric="soft_rank").rename(columns={"step": "depth"})
    frame = frame[frame["arm"] == arm].sort_values(["width", "seed", "depth"])
    return frame[["width", "seed", "depth", "value"]].reset_index(drop=True)


def _rank_kept(record: Record) -> BySeed:
    """Median soft rank over the second half of the layers, over the root of the width: the smallest."""
    frame = ranks(record, "bn")
    frame = frame[frame["depth"] > frame["depth"].max() / 2]
    return smallest(
        {s: v / math.sqrt(width) for s, v in median_by_seed(part).items()}
        for width, part in frame.groupby("width")
    )


def _rank_lost(record: Record) -> BySeed:
    """The soft rank behind the last layer, median over the widths."""
    frame = ranks(record, "standard")
    last = frame[frame["depth"] == frame["depth"].max()]
    return {int(seed): float(median(part["value"])) for seed, part in last.groupby("seed")}


_VGG_LOST = "VGG-A's test accuracy at a batch of 32 minus at 2"

CLAIMS = [
    Claim(
        id="small-batch-bn",
        statement="With small batches batch normalization becomes much worse, group normalization does not.",
        source="wu2018",
        where="abstract and figure 1",
        chapter=CHAPTER,
        experiment="batch_size_vgg",
        quantity=f"{_VGG_LOST}: BN's loss minus group norm's",
        unit="points",
        measure=_lost_more,
        criterion=Criterion(">", 5.0),
        note="The source reports a gap of 10.6 points for ResNet-50 on ImageNet with 2 images per GPU.",
    ),
    Claim(
        id="small-batch-group",
        statement="Group normalization's accuracy hardly depends on the batch size.",
        source="wu2018",
        where="abstract and figure 5",
        chapter=CHAPTER,
        experiment="batch_size_vgg",
        quantity=f"{_VGG_LOST}, group norm, without its sign",
        unit="points",
        measure=_group_change,
        criterion=Criterion("<", 5.0),
        note="All see the same images; a batch of 2 makes 16 times as many steps at a 16th of the rate.",
    ),
    Claim(
        id="small-batch-renorm",
        statement="Batch renormalization does better than batch normalization where batches are small.",
        source="ioffe2017",
        where="abstract and section 4.2",
        chapter=CHAPTER,
        experiment="batch_size_vgg",
        quantity="VGG-A's test accuracy at a batch of 2, batch renorm minus BN",
        unit="points",
        measure=_renorm_gain,
        criterion=Criterion(">", 0.0),
    ),
    Claim(
        id="small-batch-renorm-fair",
        statement="Batch renormalization's advantage is more than its longer running average.",
        source="ioffe2017",
        where="section 3: the batch's moments and the running ones",
        chapter=CHAPTER,
        experiment="batch_size_vgg",
        quantity="test accuracy at a batch of 2, batch renorm minus BN with re-estimated statistics",
        unit="points",
        measure=_renorm_fair,
        criterion=Criterion(">", 0.0),
        note="Renorm's running statistics weigh a new batch with 0.01, BN's with 0.1.",
    ),
    Claim(
        id="small-batch-statistics",
        statement="Re-estimated statistics give back most of what a small batch costs at test time.",
        source="wu2021",
        where="section on precise statistics",
        chapter=CHAPTER,
        experiment="batch_size_vgg",
        quantity="share of BN's loss from a batch of 32 to 2, evaluation mode, that they give back",
        unit="",
        measure=_given_back,
        criterion=Criterion(">", 0.5),
        note="Seeds that lose less than 5 points have no share.",
    ),
    Claim(
        id="mode-gap",
        statement="The smaller the batch, the more a network in training mode differs from evaluation mode.",
        source="ioffe2017",
        where="sections 1 and 3",
        chapter=CHAPTER,
        experiment="batch_size",
        quantity=(
            "share of test images that the modes put into different classes: at one batch size minus at the "
            "next larger, the smallest such difference"
        ),
        unit="points",
        measure=_modes_part,
        criterion=Criterion(">", 0.0),
    ),
    Claim(
        id="inverse-variance",
        statement="One over a batch's variance is m/(m - 3) times too large on average.",
        source="yang2019",
        where="the expectation in λ, for Gaussian activations",
        chapter=CHAPTER,
        experiment="batch_size",
        quantity="|mean of σ²/σ_B² over m/(m - 3), minus 1| in a trained network, m = 8, median over layers",
        unit="",
        measure=_inverse_variance,
        criterion=Criterion("<", 0.1),
        note="Exact for Gaussian values; a trained network's activations are not Gaussian.",
    ),
    Claim(
        id="adaptation",
        statement="Statistics of the new images, without labels, give back most of what a shift costs.",
        source="schneider2020",
        where="abstract",
        chapter=CHAPTER,
        experiment="domain_shift",
        quantity="share of the lost accuracy given back by 512 images, median over 15 shifts",
        unit="",
        measure=_recovered(),
        criterion=Criterion(">", 0.5),
        note="Shifts that cost less than 5 points have no share.",
    ),
    Claim(
        id="adaptation-noise-blur",
        statement="They do so too where the shift is no change of the pixels' units: noise and blur.",
        source="schneider2020",
        where="the corruptions of ImageNet-C",
        chapter=CHAPTER,
        experiment="domain_shift",
        quantity="the same, median over the strengths of noise and blur",
        unit="",
        measure=_recovered(("noise", "blur")),
        criterion=Criterion(">", 0.5),
    ),
    Claim(
        id="adaptation-few",
        statement="A few dozen of the new images are enough.",
        source="schneider2020",
        where="the figure over the number of images",
        chapter=CHAPTER,
        experiment="domain_shift",
        quantity="accuracy given back by 32 images / by 512, median over the shifts",
        unit="",
        measure=_few_enough,
        criterion=Criterion(">", 0.8),
    ),
    Claim(
        id="gamma-beta-weights",
        statement="Training γ and β alone does more than training as many random weights.",
        source="frankle2021",
        where="abstract and section 4",
        chapter=CHAPTER,
        experiment="bn_only",
        quantity="test accuracy with γ and β trained minus with two random weights per channel",
        unit="points",
        measure=_more_than("random_weights"),
        criterion=Criterion(">", 0.0),
    ),
    Claim(
        id="gamma-beta-readout",
        statement="γ and β in random layers do much more than a linear readout of random layers.",
        source="frankle2021",
        where="section 4",
        chapter=CHAPTER,
        experiment="bn_only",
        quantity="test accuracy with γ and β trained minus with the last layer trained",
        unit="points",
        measure=_more_than("readout"),
        criterion=Criterion(">", 5.0),
        note="In a VGG-A the last layer has nearly as many numbers as there are γ and β.",
    ),
    Claim(
        id="gamma-zero",
        statement="Trained alone, about a third of all γ become zero: they switch random features off.",
        source="frankle2021",
        where="section 5",
        chapter=CHAPTER,
        experiment="bn_only",
        quantity="share of |γ| < 0.01 after training γ and β alone",
        unit="",
        measure=_near_zero,
        criterion=Criterion(">", 0.25),
        note="The source trains ResNets for 160 epochs; ours at laptop scale sees 1.5.",
    ),
    Claim(
        id="rank-kept",
        statement="With batch normalization the rank stays of the order of √width at any depth.",
        source="daneshmand2020",
        where="abstract",
        chapter=CHAPTER,
        experiment="rank",
        quantity="soft rank/√width, second half of 1000 random linear layers, smallest over three widths",
        unit="",
        measure=_rank_kept,
        criterion=Criterion(">", 0.5),
        note="Batch normalization without centring, as in the theorem.",
    ),
    Claim(
        id="rank-lost",
        statement="Without batch normalization the rank of a deep network's activations collapses to one.",
        source="daneshmand2020",
        where="abstract",
        chapter=CHAPTER,
        experiment="rank",
        quantity="soft rank behind 1000 random linear layers, median over three widths",
        unit="",
        measure=_rank_lost,
        criterion=Criterion("<", 1.01),
    ),
]
