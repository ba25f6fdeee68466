"""Chapter 10: gradients through many batch norms.  Random networks, trainability at depth, and curvature."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bnlib.experiments.quantities import BySeed, largest, paired, ratio, smallest
from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

if TYPE_CHECKING:
    import pandas as pd

CHAPTER = "10-exploding-gradients"

ACTIVATIONS = ("relu", "linear", "tanh", "gelu", "sigmoid")
HE = 2.0  # the weights' variance times the fan-in
LIMIT = math.pi / (math.pi - 1)  # lambda for ReLU and large batches


# -- random networks at initialisation -------------------------------------------------------------------


def _signal(scale: str, seed: int) -> list[Run]:
    """A layer norm's samples all end up parallel, so that a batch counts as one: more layers, less noise."""
    sizes = {
        "smoke": {"depth": (12, 16), "blocks": 10, "width": (96, 64), "batches": (8, 32)},
        "laptop": {"depth": (30, 50), "blocks": 48, "width": (1024, 512), "batches": (8, 32, 128, 512)},
        "paper": {"depth": (30, 100), "blocks": 96, "width": (2048, 1024), "batches": (8, 32, 128, 512)},
    }[scale]
    depth, longer = sizes["depth"]
    plain = [("bn", "batch", depth, activation) for activation in ACTIVATIONS]
    plain += [("layer", "layer", longer, "relu"), ("layer", "layer", longer, "tanh")]
    plain += [("standard", "none", longer, "relu")]
    residual = [("bn_residual", "batch"), ("layer_residual", "layer"), ("residual", "none")]
    nets = [(arm, "plain", norm, layers, sizes["width"][0], phi, HE) for arm, norm, layers, phi in plain]
    nets += [
        (arm, "residual", norm, sizes["blocks"], sizes["width"][1], "relu", HE) for arm, norm in residual
    ]
    factors = ("activation", "batch_size", "weight_variance")
    runs = []
    for batch in sizes["batches"]:
        others = [("bn", "plain", "batch", depth, sizes["width"][0], "relu", v) for v in (HE / 100, HE * 100)]
        for arm, network, norm, layers, width, phi, variance in nets + (others if batch == 32 else []):
            settings = {
                "network": network,
                "norm": norm,
                "activation": phi,
                "depth": layers,
                "width": width,
                "batch_size": batch,
                "weight_variance": variance,
            }
            runs.append(Run(arm, seed, settings, factors, task="random_network"))
    return runs


# -- training ----------------------------------------------------------------------------------------------

#: arm -> model, norm
NETS: dict[str, tuple[str, str]] = {
    "standard": ("mlp", "none"),
    "bn": ("mlp", "batch"),
    "layer": ("mlp", "layer"),
    "bn_residual": ("residual_mlp", "batch"),
    "residual": ("residual_mlp", "none"),
}
RATES = (0.001, 0.01, 0.1)


def _net(arm: str, depth: int, width: int) -> dict[str, Any]:
    model, norm = NETS[arm]
    return {"model": {"name": model, "depth": depth, "width": width}, "norm": norm, "where": "everywhere"}


def _trainability(scale: str, seed: int) -> list[Run]:
    """Every arm at every depth, with blocks counted as layers: a residual block has two linear layers."""
    sizes = {
        "smoke": {"dataset": "digits", "depths": (2, 12), "width": 32, "steps": 20, "size": 128},
        "laptop": {"dataset": "mnist", "depths": (2, 5, 10, 20, 50), "width": 128, "steps": 300, "size": 512},
        "paper": {
            "dataset": "cifar10",
            "depths": (2, 5, 10, 20, 50, 100, 200),
            "width": 512,
            "steps": 20000,
            "size": 512,
        },
    }[scale]
    steps = sizes["steps"]
    common = {
        "dataset": sizes["dataset"],
        "init": "he_normal",
        "batch_size": 128,
        "steps": steps,
        "loss_every": 5,
        "probes": {
            "weight_gradients": {"every": 1, "at": [0, 1, 10]},
            "training_mode_accuracy": {"every": steps, "size": sizes["size"]},
        },
    }
    return [
        Run(arm, seed, {**_net(arm, depth, sizes["width"]), **common, "lr": lr}, ("depth", "lr"))
        for arm in NETS
        for depth in sizes["depths"]
        for lr in RATES
    ]


def _curvature(scale: str, seed: int) -> list[Run]:
    """No training: the Hessian on one batch of training images, at the initial weights."""
    sizes = {
        "smoke": {"dataset": "digits", "depths": (2, 8), "width": 16, "lanczos": 8},
        "laptop": {"dataset": "mnist", "depths": (2, 5, 10, 20), "width": 64, "lanczos": 20},
        "paper": {"dataset": "cifar10", "depths": (2, 5, 10, 20, 40), "width": 512, "lanczos": 40},
    }[scale]
    common = {
        "dataset": sizes["dataset"],
        "batch_size": 128,
        "steps": 0,
        "lr": 0.1,
        "dtype": "float64",
        "probes": {"hessian_spectrum": {"every": 1, "steps": sizes["lanczos"], "draws": 1, "top": 3}},
    }
    return [
        Run(arm, seed, {**_net(arm, depth, sizes["width"]), **common, "init": init}, ("depth", "init"))
        for arm in ("standard", "bn", "bn_residual")
        for depth in sizes["depths"]
        for init in ("he_normal", "glorot_normal")
    ]


EXPERIMENTS = [
    Experiment(
        name="signal",
        title="Gradients by layer in wide random networks, at initialisation",
        chapter=CHAPTER,
        question="How fast do gradients grow from layer to layer, and what decides it?",
        runs=_signal,
    ),
    Experiment(
        name="depth_trainability",
        title="Fully connected networks of 2 to 50 layers on MNIST, with and without skip connections",
        chapter=CHAPTER,
        question="How deep can a network with batch normalization be and still be trained?",
        runs=_trainability,
    ),
    Experiment(
        name="depth_curvature",
        title="The largest eigenvalue of the Hessian at initialisation, for 2 to 20 layers, on MNIST",
        chapter=CHAPTER,
        question="Does batch normalization make the loss smoother at every depth?",
        runs=_curvature,
    ),
]


# -- measured quantities ---------------------------------------------------------------------------------

SIGNAL = ("activation", "batch_size", "weight_variance")


def signals(record: Record, metric: str) -> pd.DataFrame:
    """One metric of the random networks: rows (arm, activation, batch_size, weight_variance, seed, layer,
    value).  Networks with other weights than He's are there too."""
    frame = record.frame(*SIGNAL, metric=metric)
    return frame[["arm", *SIGNAL, "seed", "layer", "value"]]


def by_layer(record: Record) -> pd.DataFrame:
    """The squared gradients of `signals`, He's weights only, with `back`: how many layers or blocks before
    the last one."""
    frame = signals(record, "gradient")
    frame = frame[frame["weight_variance"] == HE].drop(columns="weight_variance")
    place = frame["layer"].str[1:].astype(int)
    net = [frame[name] for name in ("arm", "activation", "batch_size", "seed")]
    return frame.assign(back=place.groupby(net).transform("max") - place)


def rates(
    record: Record, arm: str, activation: str, metric: str = "rate", variance: float = HE
) -> dict[int, BySeed]:
    """By batch size and seed: `rate`, by which the squared gradient grows per layer going back, or another
    row of `bnlib.signal_propagation.run` that has no layer."""
    frame = signals(record, metric)
    kept = (
        (frame["arm"] == arm) & (frame["activation"] == activation) & (frame["weight_variance"] == variance)
    )
    return {
        int(batch): {int(s): float(v) for s, v in zip(rows["seed"], rows["value"], strict=True)}
        for batch, rows in frame[kept].groupby("batch_size")
    }


def deviation(record: Record, activation: str) -> BySeed:
    """|measured / predicted - 1| of the rate with batch norm, the largest over the batch sizes, by seed."""
    measured = rates(record, "bn", activation)
    predicted = rates(record, "bn", activation, "predicted_rate")
    return largest(
        paired(measured[batch], predicted[batch], lambda a, b: abs(a / b - 1)) for batch in measured
    )


def _of_the_norm(record: Record) -> BySeed:
    """How far the growth of the norm itself is from pi / (pi - 1), with the largest batch."""
    found = rates(record, "bn", "relu")
    return {seed: abs(math.sqrt(rate) / LIMIT - 1) for seed, rate in found[max(found)].items()}


def _falls_with_the_batch(record: Record) -> BySeed:
    """The rate at one batch size over that at the next: the smallest, among 8, 32 and 128."""
    found = rates(record, "bn", "relu")
    steps = [(a, b) for a, b in ((8, 32), (32, 128)) if b in found]
    return smallest(ratio(found[a], found[b]) for a, b in steps)


def _least(record: Record) -> BySeed:
    """The smallest rate with batch norm, over the nonlinear activations and the batch sizes."""
    nonlinear = [activation for activation in ACTIVATIONS if activation != "linear"]
    return smallest(by_seed for phi in nonlinear for by_seed in rates(record, "bn", phi).values())


def _other_variances(record: Record) -> BySeed:
    """|rate / rate with He's variance - 1|, the larger of weights ten times smaller and ten times larger."""
    he = rates(record, "bn", "relu")[32]
    others = [rates(record, "bn", "relu", variance=v)[32] for v in (HE / 100, HE * 100)]
    return largest(paired(other, he, lambda a, b: abs(a / b - 1)) for other in others)


def _layer_norm(record: Record) -> BySeed:
    """How far from 1 the rate with layer norm is: geometric mean over batch sizes, which do not matter."""
    found = list(rates(record, "layer", "relu").values())
    logs = {seed: [math.log(by_seed[seed]) for by_seed in found] for seed in found[0]}
    return {seed: abs(math.exp(sum(each) / len(each)) - 1) for seed, each in logs.items()}


def _exponent(record: Record) -> BySeed:
    """How far the exponent of a residual network is from pi / (pi - 1), at a batch of 128 (the largest, if
    there is none)."""
    found = rates(record, "bn_residual", "relu", "exponent")
    return {seed: abs(value - LIMIT) for seed, value in found.get(128, found[max(found)]).items()}


def gradients(record: Record) -> pd.DataFrame:
    """Squared gradients of the weights in the first steps: rows (arm, depth, lr, seed, step, layer, value),
    of the hidden layers that map a hidden layer to the next: no first layer, no stem, no classifier."""
    frame = record.frame("depth", "lr", metric="squared_gradient")
    inner = ~frame["layer"].isin(["linear1", "stem", "classifier"])
    return frame.loc[inner, ["arm", "depth", "lr", "seed", "step", "layer", "value"]]


def ranges(record: Record) -> pd.DataFrame:
    """The dynamic range of those gradients, largest over smallest layer: rows (arm, depth, lr, seed, step,
    value); infinite if a layer's is zero.  Networks with a single such layer are left out."""
    frame = gradients(record)
    grouped = frame.groupby(["arm", "depth", "lr", "seed", "step"])["value"]
    table = grouped.agg(["min", "max", "size"]).reset_index()
    table = table[table["size"] > 1]
    found = (table["max"] / table["min"]).where(table["min"] > 0, math.inf)
    return table.assign(value=found)[["arm", "depth", "lr", "seed", "step", "value"]]


def dynamic_range(record: Record, arm: str, lr: float, step: int = 0) -> BySeed:
    """The range in the deepest networks, by seed."""
    frame = ranges(record)
    kept = (frame["arm"] == arm) & (frame["depth"] == _deepest(record)) & (frame["lr"] == lr)
    return _by_seed(frame[kept & (frame["step"] == step)])


def trained(record: Record) -> pd.DataFrame:
    """Where training has got to: rows (arm, depth, lr, seed, accuracy), the share of a fixed batch of
    training images that is classified correctly at the end, BN in training mode; 0.1, as good as guessing,
    for a run that diverged."""
    import pandas as pd

    steps = record.runs[0]["settings"]["steps"]
    frame = record.frame("depth", "lr", metric="train_accuracy")
    last = frame[frame["step"] == steps].set_index("run")["value"]
    rows = []
    for run in record.runs:
        settings = run["settings"]
        accuracy = float(last.get(run["id"], 0.1))
        rows.append((run["arm"], settings["model"]["depth"], settings["lr"], run["seed"], accuracy))
    return pd.DataFrame(rows, columns=["arm", "depth", "lr", "seed", "accuracy"])


def best_accuracy(record: Record, arm: str, depth: int | None = None) -> BySeed:
    """The highest such accuracy over the learning rates, by seed; of the deepest networks if no depth is
    given."""
    frame = trained(record)
    kept = (frame["arm"] == arm) & (frame["depth"] == (depth or _deepest(record)))
    found = frame[kept].groupby("seed")["accuracy"].max()
    return {int(seed): float(value) for seed, value in found.items()}


def sharpness(record: Record) -> pd.DataFrame:
    """The Hessian's largest eigenvalue: rows (arm, depth, init, seed, value)."""
    frame = record.frame("depth", "init", metric="sharpness")
    return frame[["arm", "depth", "init", "seed", "value"]]


def sharper(record: Record, depth: int, init: str = "he_normal") -> BySeed:
    """Batch norm's largest eigenvalue over the standard network's, at one depth."""
    frame = sharpness(record)
    frame = frame[(frame["depth"] == depth) & (frame["init"] == init)]
    return ratio(_by_seed(frame[frame["arm"] == "bn"]), _by_seed(frame[frame["arm"] == "standard"]))


def _depths(record: Record) -> list[int]:
    return sorted({run["settings"]["model"]["depth"] for run in record.runs})


def _deepest(record: Record) -> int:
    """The deepest networks of at most 50 layers, with which the claims are judged at every scale."""
    return max(depth for depth in _depths(record) if depth <= 50)


def _by_seed(frame: pd.DataFrame) -> BySeed:
    return {int(seed): float(value) for seed, value in zip(frame["seed"], frame["value"], strict=True)}


def _largest_ratio(record: Record, depths: Iterable[int]) -> BySeed:
    return largest(sharper(record, depth) for depth in depths)


CLAIMS = [
    Claim(
        id="wikipedia-norm",
        statement="The gradient's norm grows like λᴸ, with λ near π/(π-1) for ReLU and large batches.",
        source="wikipedia_bn",
        where="«Vanishing/exploding gradients»",
        chapter=CHAPTER,
        experiment="signal",
        quantity="|factor per layer of the norm, over π/(π-1), less 1|, largest batch",
        unit="",
        measure=_of_the_norm,
        criterion=Criterion("<", 0.05),
        note="The number is right for the squared norm, see the next claim.",
    ),
    Claim(
        id="squared-norm",
        statement="With ReLU the gradient's squared norm grows by λ(B) per layer.",
        source="yang2019",
        where="the constant for ReLU; here the closed form for every batch size B",
        chapter=CHAPTER,
        experiment="signal",
        quantity="|factor per layer of the squared norm, over λ(B), less 1|, largest over the batch sizes",
        unit="",
        measure=lambda record: deviation(record, "relu"),
        criterion=Criterion("<", 0.05),
        note="λ is for infinite width; these networks have 1024 units.",
    ),
    Claim(
        id="any-activation",
        statement="For any activation φ the factor is λ(B, φ), an integral over two coordinates.",
        source="yang2019",
        where="the mean-field limit, in the form derived in this chapter",
        chapter=CHAPTER,
        experiment="signal",
        quantity="|factor over λ(B, φ), less 1|, largest over linear, tanh, GELU, sigmoid and batch sizes",
        unit="",
        measure=lambda record: largest(deviation(record, phi) for phi in ACTIVATIONS if phi != "relu"),
        criterion=Criterion("<", 0.05),
    ),
    Claim(
        id="always-explodes",
        statement="Gradients explode at initialisation whatever the nonlinearity.",
        source="yang2019",
        where="abstract",
        chapter=CHAPTER,
        experiment="signal",
        quantity="factor per layer, squared norm, smallest over ReLU, tanh, GELU, sigmoid and batch sizes",
        unit="times",
        measure=_least,
        criterion=Criterion(">", 1.0),
    ),
    Claim(
        id="batch-size-helps",
        statement="The larger the batch, the smaller λ.",
        source="wikipedia_bn",
        where="«Vanishing/exploding gradients»",
        chapter=CHAPTER,
        experiment="signal",
        quantity="factor per layer at one batch size over that at the next, smallest over 8, 32, 128; ReLU",
        unit="times",
        measure=_falls_with_the_batch,
        criterion=Criterion(">", 1.0),
    ),
    Claim(
        id="weight-variance",
        statement="No choice of the weights' variance removes the explosion.",
        source="yang2019",
        where="abstract",
        chapter=CHAPTER,
        experiment="signal",
        quantity="|factor per layer, over that with He's variance, less 1|, weights × 0.1 and × 10; ReLU",
        unit="",
        measure=_other_variances,
        criterion=Criterion("<", 1e-6),
    ),
    Claim(
        id="layer-norm-rate",
        statement="With layer normalization and ReLU gradients do not explode: the factor is 1.",
        source="yang2019",
        where="its mean-field argument, done for layer normalization in this chapter",
        chapter=CHAPTER,
        experiment="signal",
        quantity="|factor per layer of the squared norm, less 1|, geometric mean over the batch sizes",
        unit="",
        measure=_layer_norm,
        criterion=Criterion("<", 0.02),
    ),
    Claim(
        id="residual-polynomial",
        statement="With skip connections the growth is a power of the depth, with the exponent λ.",
        source="yang2019",
        where="residual networks; the recursion as derived in this chapter",
        chapter=CHAPTER,
        experiment="signal",
        quantity="|exponent, less π/(π-1)|, ReLU, batches of 128",
        unit="",
        measure=_exponent,
        criterion=Criterion("<", 0.1),
    ),
    Claim(
        id="no-explosion",
        statement="With batch normalization gradients neither vanish nor explode.",
        source="wikipedia_bn",
        where="«Internal covariate shift»: a higher rate «without vanishing or exploding gradients»",
        chapter=CHAPTER,
        experiment="depth_trainability",
        quantity="largest over smallest squared gradient of a layer, 50 layers, at the start: BN / standard",
        unit="times",
        measure=lambda record: ratio(
            dynamic_range(record, "bn", RATES[0]), dynamic_range(record, "standard", RATES[0])
        ),
        criterion=Criterion("<", 1.0),
        note="Both with He's initialisation, which is made so that gradients neither vanish nor explode.",
    ),
    Claim(
        id="deep-untrainable",
        statement="Deep networks with batch normalization and no skip connections cannot be trained.",
        source="yang2019",
        where="abstract; Wikipedia: «practically»",
        chapter=CHAPTER,
        experiment="depth_trainability",
        quantity="accuracy on training images, BN, 50 layers, best of three learning rates, 300 steps",
        unit="",
        measure=lambda record: best_accuracy(record, "bn"),
        criterion=Criterion("<", 0.2),
        note="Guessing gives 0.1.",
    ),
    Claim(
        id="skips-train",
        statement="Skip connections relieve it: deep residual networks with batch normalization train.",
        source="wikipedia_bn",
        where="«Vanishing/exploding gradients»",
        chapter=CHAPTER,
        experiment="depth_trainability",
        quantity="accuracy on training images, BN, 50 residual blocks, best of three learning rates",
        unit="",
        measure=lambda record: best_accuracy(record, "bn_residual"),
        criterion=Criterion(">", 0.9),
    ),
    Claim(
        id="one-step",
        statement="After a single step the gradients' dynamic range is dramatically smaller.",
        source="yang2019",
        where="abstract",
        chapter=CHAPTER,
        experiment="depth_trainability",
        quantity="largest over smallest squared gradient of a layer, BN, 50 layers: after one step / before",
        unit="times",
        measure=lambda record: ratio(
            dynamic_range(record, "bn", RATES[-1], 1), dynamic_range(record, "bn", RATES[-1])
        ),
        criterion=Criterion("<", 0.1),
        note="At the learning rate 0.1; a small enough step changes nothing.",
    ),
    Claim(
        id="smooth-shallow",
        statement="Batch normalization makes the loss of a network of up to ten layers smoother.",
        source="santurkar2018",
        where="the paper's central claim, without its walk along the gradient",
        chapter=CHAPTER,
        experiment="depth_curvature",
        quantity="largest eigenvalue of the Hessian at the start, He: BN / standard, at its largest",
        unit="times",
        measure=lambda record: _largest_ratio(record, [d for d in _depths(record) if d <= 10]),
        criterion=Criterion("<", 1.0),
        note="The largest ratio of 2, 5 and 10 layers.",
    ),
    Claim(
        id="rough-deep",
        statement="The loss of a deep random network with batch normalization is far from smooth.",
        source="wikipedia_bn",
        where="«Vanishing/exploding gradients»",
        chapter=CHAPTER,
        experiment="depth_curvature",
        quantity="largest eigenvalue of the Hessian at the start, He: BN / standard, 20 layers",
        unit="times",
        measure=lambda record: sharper(record, max(d for d in _depths(record) if d <= 20)),
        criterion=Criterion(">", 1.0),
    ),
]
