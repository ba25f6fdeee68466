"""Chapter 14: what else there is.  Other norms' invariances, their accuracy, and depth without batch norm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bnlib.experiments.quantities import BySeed, in_points, largest, paired
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

if TYPE_CHECKING:
    import pandas as pd

CHAPTER = "14-alternatives"

#: arm -> norm, for networks without skip connections
NORMS: dict[str, str] = {
    "standard": "none",
    "bn": "batch",
    "layer": "layer",
    "instance": "instance",
    "group": "group",
    "rms": "rms",
    "weight": "weight",
    "batch_renorm": "batch_renorm",
}
CHANCE = 0.1  # ten classes
EXACT = 1e-10  # a change of the output below this is rounding


# -- what each norm does not see -------------------------------------------------------------------------

#: change -> whether batch, weight and layer norm are invariant, as Ba, Kiros and Hinton list it
TABLE_1: dict[str, tuple[bool, bool, bool]] = {
    "layer_scale": (True, True, True),
    "layer_shift": (False, False, True),
    "neuron_scale": (True, True, False),
    "data_scale": (True, False, True),
    "data_shift": (True, False, False),
    "sample_scale": (False, False, True),
}


def _invariances(scale: str, seed: int) -> list[Run]:
    """The same at every scale: nothing is trained, and what is exact is so at any size."""
    arms = {**NORMS, "bn_eval": "batch_eval"}
    common = {"dataset": "digits", "batch_size": 16, "eps": [0.0, 1e-5]}
    return [Run(arm, seed, {**common, "norm": norm}, task="invariances") for arm, norm in arms.items()]


# -- a convolutional network -----------------------------------------------------------------------------


def _networks(scale: str, seed: int) -> list[Run]:
    """He's initialisation: without a norm, the signals have the right size at the start too.  A batch of 32,
    which Wu and He have on each GPU.  The rate 0.01 was added after a first look, in which every arm chose
    the smallest of the other three."""
    vgg = {"name": "vgg", "config": "A"}
    sizes: dict[str, Any] = {
        "smoke": {"dataset": "digits", "model": {"name": "digit_cnn"}, "steps": 20, "size": 256},
        "laptop": {"dataset": "cifar10", "model": {**vgg, "width": 0.25}, "steps": 300, "size": 2048},
        "paper": {"dataset": "cifar10", "model": {**vgg, "width": 1.0}, "steps": 15000, "size": 10000},
    }[scale]
    steps, rates = sizes["steps"], (0.03, 0.3) if scale == "smoke" else (0.01, 0.03, 0.1, 0.3)
    common = {
        "dataset": sizes["dataset"],
        "model": sizes["model"],
        "where": "everywhere",
        "init": "he_normal",
        "batch_size": 32,
        "steps": steps,
        "loss_every": max(1, steps // 60),
        "probes": {"two_modes": {"every": steps, "size": sizes["size"]}},
    }
    return [
        Run(arm, seed, {**common, "norm": norm, "lr": lr}, ("lr",))
        for arm, norm in NORMS.items()
        for lr in rates
    ]


# -- depth -----------------------------------------------------------------------------------------------

#: arm -> model's settings, norm, initialisation
DEEP: dict[str, tuple[dict[str, Any], str, str]] = {
    **{arm: ({"name": "mlp"}, norm, "he_normal") for arm, norm in NORMS.items() if arm != "instance"},
    "bn_residual": ({"name": "residual_mlp"}, "batch", "he_normal"),
    "residual": ({"name": "residual_mlp"}, "none", "he_normal"),
    "skipinit": ({"name": "residual_mlp", "skip_gain": 0.0}, "none", "he_normal"),
    "fixup": ({"name": "residual_mlp"}, "none", "fixup"),
}


def _depth(scale: str, seed: int) -> list[Run]:
    """Depth counts hidden layers or blocks; a residual block has two linear layers."""
    sizes: dict[str, Any] = {
        "smoke": {"dataset": "digits", "depths": (2, 8), "width": 32, "steps": 10, "batch_size": 64},
        "laptop": {"dataset": "mnist", "depths": (5, 20, 50), "width": 64, "steps": 200, "batch_size": 64},
        "paper": {
            "dataset": "cifar10",
            "depths": (5, 20, 50, 100),
            "width": 512,
            "steps": 20000,
            "batch_size": 128,
        },
    }[scale]
    width, depths = sizes.pop("width"), sizes.pop("depths")
    steps, rates = sizes["steps"], (0.01, 0.1) if scale == "smoke" else (0.01, 0.03, 0.1)
    common = {**sizes, "where": "everywhere", "loss_every": max(1, steps // 40), "eval_every": steps}
    return [
        Run(
            arm,
            seed,
            {
                **common,
                "model": {**model, "depth": depth, "width": width},
                "norm": norm,
                "init": init,
                "lr": lr,
            },
            ("depth", "lr"),
        )
        for arm, (model, norm, init) in DEEP.items()
        for depth in depths
        for lr in rates
    ]


EXPERIMENTS = [
    Experiment(
        name="invariances",
        title="What each normalization does not see, measured exactly",
        chapter=CHAPTER,
        question="Which changes of weights, inputs and batch does the output of a normalised layer not feel?",
        runs=_invariances,
    ),
    Experiment(
        name="alternatives",
        title="Eight normalizations in VGG-A on CIFAR-10, four learning rates each",
        chapter=CHAPTER,
        question="How far do the alternatives get, each at its best learning rate?",
        runs=_networks,
    ),
    Experiment(
        name="alternatives_depth",
        title="The alternatives in deep fully connected and residual networks on MNIST",
        chapter=CHAPTER,
        question="Which of them train networks of fifty layers?",
        runs=_depth,
    ),
]


# -- measured quantities ---------------------------------------------------------------------------------


def changes(record: Record, eps: float = 0.0) -> pd.DataFrame:
    """Columns arm, seed, kind ("vectors" or "images"), change, value: the relative change of the output."""
    frame = record.frame()
    parts = frame["metric"].str.split("@", n=1, expand=True)
    frame = frame.assign(change=parts[0], kind=frame["layer"])[parts[1] == f"{eps:g}"]
    return frame[["arm", "seed", "kind", "change", "value"]].reset_index(drop=True)


def change_of(record: Record, arm: str, names: list[str], eps: float = 0.0) -> BySeed:
    """The largest change of an arm's output over the changes named, on vectors and images, by seed."""
    frame = changes(record, eps)
    frame = frame[(frame["arm"] == arm) & frame["change"].isin(names)]
    return {int(seed): float(value) for seed, value in frame.groupby("seed")["value"].max().items()}


def disagreements(record: Record) -> BySeed:
    """Cells of `TABLE_1` that are not as it says, on vectors at eps = 0, by seed."""
    frame = changes(record)
    frame = frame[(frame["kind"] == "vectors") & frame["change"].isin(TABLE_1)]
    said = {
        (arm, change): invariant
        for change, cells in TABLE_1.items()
        for arm, invariant in zip(("bn", "weight", "layer"), cells, strict=True)
    }
    found: dict[int, float] = {}
    for seed, table in frame.groupby("seed"):
        seen = {(row.arm, row.change): row.value < EXACT for row in table.itertuples()}
        if set(said) <= set(seen):
            found[int(seed)] = float(sum(seen[cell] != invariant for cell, invariant in said.items()))
    return found


def outcomes(record: Record) -> pd.DataFrame:
    """One row per run: arm, seed, lr, depth, `loss` and `accuracy`.

    `loss` is the training loss, mean over the last sixth of the steps, infinite if the run diverged;
    `accuracy` on the test images at the end, in evaluation mode, chance if the run diverged.  depth is 0
    where the experiment has none.
    """
    frame = record.frame("lr", "depth", "steps")
    frame = frame.assign(depth=frame["depth"].astype(float).fillna(0))
    keys = ["arm", "seed", "lr", "depth"]
    late = frame[(frame["metric"] == "train_loss") & (frame["step"] >= frame["steps"] * 5 / 6)]
    ends = frame[frame["metric"].isin(["test_accuracy", "test_accuracy_running"])]
    table = frame[keys].drop_duplicates().set_index(keys)
    table["loss"] = late.groupby(keys)["value"].mean()
    table["accuracy"] = ends[ends["step"] == ends["steps"]].groupby(keys)["value"].mean()
    lost = frame[frame["metric"] == "diverged_at"].groupby(keys)["value"].min()
    table.loc[table.index.isin(lost.index), ["loss", "accuracy"]] = [math.inf, CHANCE]
    return table.fillna({"loss": math.inf, "accuracy": CHANCE}).reset_index().astype({"depth": int})


def at_best_rate(record: Record) -> pd.DataFrame:
    """The rows of `outcomes` at the rate that is best for its arm and depth: that whose training loss has the
    smallest median over the seeds, the smaller rate if equal.  Nobody looks at the test images for it."""
    table = outcomes(record)
    median = table.groupby(["arm", "depth", "lr"])["loss"].median().reset_index()
    best = median.sort_values(["loss", "lr"]).groupby(["arm", "depth"])["lr"].first()
    chosen = table.join(best.rename("best"), on=["arm", "depth"])
    return chosen[chosen["lr"] == chosen["best"]].drop(columns="best").reset_index(drop=True)


def best(record: Record, arm: str, quantity: str = "accuracy", depth: int | None = None) -> BySeed:
    """An arm's `quantity` at its best rate, by seed; `depth` None: the greatest."""
    table = at_best_rate(record)
    table = table[table["arm"] == arm]
    table = table[table["depth"] == (table["depth"].max() if depth is None else depth)]
    values = table.set_index("seed")[quantity]
    return {int(seed): float(value) for seed, value in values.items() if math.isfinite(value)}


def _lead(arm: str, other: str):
    """Accuracy of `arm` minus that of `other`, in points, each at its best rate and the greatest depth."""

    def measure(record: Record) -> BySeed:
        return in_points(paired(best(record, arm), best(record, other)))

    return measure


def speed_up(record: Record) -> BySeed:
    """How much of what batch norm gains over the standard net weight norm gains, in training loss."""
    loss = {arm: best(record, arm, "loss") for arm in ("standard", "weight", "bn")}
    gained = paired(loss["standard"], loss["weight"])
    possible = {seed: gain for seed, gain in paired(loss["standard"], loss["bn"]).items() if gain > 0}
    return paired(gained, possible, lambda a, b: a / b)


def _without_norm(record: Record) -> BySeed:
    return in_points(largest(best(record, arm) for arm in ("residual", "skipinit", "fixup")))


_BEST = "each at the rate of three with the smallest training loss"
_OF_FOUR = "each at the rate of four with the smallest training loss"
_ADDED = "The rate 0.01 was added after a first look, in which every arm chose the smallest of three."
_DEEPEST = "at the greatest depth"

CLAIMS = [
    Claim(
        id="invariance-table",
        statement="Batch, weight and layer norm have the eighteen properties of the table by Ba et al.",
        source="ba2016",
        where="table 1, as reported",
        chapter=CHAPTER,
        experiment="invariances",
        quantity="cells of the table that differ from what is measured on vectors, eps = 0, tolerance 1e-10",
        unit="cells",
        measure=disagreements,
        criterion=Criterion("<", 0.5),
    ),
    Claim(
        id="group-independent",
        statement="Group norm's computation is independent of the batch.",
        source="wu2018",
        where="abstract",
        chapter=CHAPTER,
        experiment="invariances",
        quantity="largest relative change of a sample's output with other neighbours, or in the other mode",
        unit="",
        measure=lambda record: change_of(record, "group", ["neighbours", "mode"]),
        criterion=Criterion("<", EXACT),
    ),
    Claim(
        id="renorm-same",
        statement="With batch renormalization, training and inference compute the same from a single sample.",
        source="ioffe2017",
        where="abstract, as reported",
        chapter=CHAPTER,
        experiment="invariances",
        quantity="the same, for batch renorm without limits on r and d",
        unit="",
        measure=lambda record: change_of(record, "batch_renorm", ["neighbours", "mode"]),
        criterion=Criterion("<", EXACT),
        note="Forward only: the gradient of a sample still contains the others.",
    ),
    Claim(
        id="group-close",
        statement="At typical batch sizes, group norm is comparably good with batch norm.",
        source="wu2018",
        where="abstract",
        chapter=CHAPTER,
        experiment="alternatives",
        quantity=f"test accuracy, group norm minus batch norm, {_OF_FOUR}",
        unit="points",
        measure=_lead("group", "bn"),
        criterion=Criterion(">", -3.0),
        note=_ADDED,
    ),
    Claim(
        id="group-over-layer",
        statement="Group norm outperforms layer norm.",
        source="wu2018",
        where="abstract",
        chapter=CHAPTER,
        experiment="alternatives",
        quantity=f"test accuracy, group norm minus layer norm, {_OF_FOUR}",
        unit="points",
        measure=_lead("group", "layer"),
        criterion=Criterion(">", 0.0),
        note=_ADDED,
    ),
    Claim(
        id="group-over-instance",
        statement="Group norm outperforms instance norm.",
        source="wu2018",
        where="abstract",
        chapter=CHAPTER,
        experiment="alternatives",
        quantity=f"test accuracy, group norm minus instance norm, {_OF_FOUR}",
        unit="points",
        measure=_lead("group", "instance"),
        criterion=Criterion(">", 0.0),
        note=_ADDED,
    ),
    Claim(
        id="rms-layer",
        statement="RMSNorm does as well as layer norm: the mean need not be subtracted.",
        source="zhang2019_rms",
        where="abstract, as reported",
        chapter=CHAPTER,
        experiment="alternatives",
        quantity=f"test accuracy, RMSNorm minus layer norm, {_OF_FOUR}",
        unit="points",
        measure=_lead("rms", "layer"),
        criterion=Criterion(">", -3.0),
        note=_ADDED,
    ),
    Claim(
        id="renorm-close",
        statement="At a moderate batch size, batch renormalization does as well as batch norm.",
        source="ioffe2017",
        where="experiments, as reported",
        chapter=CHAPTER,
        experiment="alternatives",
        quantity=f"test accuracy, batch renorm minus batch norm, {_OF_FOUR}",
        unit="points",
        measure=_lead("batch_renorm", "bn"),
        criterion=Criterion(">", -3.0),
        note=f"Our runs are short: the limits reach their full size only towards the end. {_ADDED}",
    ),
    Claim(
        id="weight-speed",
        statement="Weight normalization provides much of the speed-up of batch norm.",
        source="salimans2016",
        where="abstract, as reported",
        chapter=CHAPTER,
        experiment="alternatives",
        quantity=f"training loss, gain of weight norm over the standard net / gain of batch norm, {_OF_FOUR}",
        unit="",
        measure=speed_up,
        criterion=Criterion(">", 0.5),
        note=f"Without the source's data-dependent start; ours is He's, for all arms. {_ADDED}",
    ),
    Claim(
        id="layer-deep",
        statement="Layer norm, whose gradients do not explode, trains plain deep networks better.",
        source="yang2019",
        where="what λ = 1.47 for batch norm and 1 for layer norm suggest",
        chapter=CHAPTER,
        experiment="alternatives_depth",
        quantity=f"test accuracy, layer norm minus batch norm, {_DEEPEST}, {_BEST}",
        unit="points",
        measure=_lead("layer", "bn"),
        criterion=Criterion(">", 0.0),
        note="Our conclusion from the theory, not a sentence of the paper.",
    ),
    Claim(
        id="skipinit-deep",
        statement="With SkipInit, residual networks train at the depths that batch norm allows.",
        source="de2020",
        where="abstract, as reported",
        chapter=CHAPTER,
        experiment="alternatives_depth",
        quantity=f"test accuracy, SkipInit minus batch norm, residual, {_DEEPEST}, {_BEST}",
        unit="points",
        measure=_lead("skipinit", "bn_residual"),
        criterion=Criterion(">", -3.0),
    ),
    Claim(
        id="fixup-deep",
        statement="With Fixup, residual networks train as well as with normalization.",
        source="zhang2019_fixup",
        where="abstract, as reported",
        chapter=CHAPTER,
        experiment="alternatives_depth",
        quantity=f"test accuracy, Fixup minus batch norm, residual, {_DEEPEST}, {_BEST}",
        unit="points",
        measure=_lead("fixup", "bn_residual"),
        criterion=Criterion(">", -3.0),
        note="Its initialisation only, without the source's extra scalar biases and multipliers.",
    ),
    Claim(
        id="norm-needed",
        statement="Very deep residual networks cannot be trained without normalization.",
        source="zhang2019_fixup",
        where="introduction, as the belief that it challenges",
        chapter=CHAPTER,
        experiment="alternatives_depth",
        quantity=f"best test accuracy of three residual networks without normalization, {_DEEPEST}",
        unit="%",
        measure=_without_norm,
        criterion=Criterion("<", 50.0),
    ),
    Claim(
        id="residual-alone",
        statement="Skip connections alone, with neither normalization nor a careful start, do not train.",
        source="de2020",
        where="as reported",
        chapter=CHAPTER,
        experiment="alternatives_depth",
        quantity=f"test accuracy of the residual network with He's initialisation and no norm, {_DEEPEST}",
        unit="%",
        measure=lambda record: in_points(best(record, "residual")),
        criterion=Criterion("<", 50.0),
    ),
]
