"""Chapter 1: exact statements about one batch normalization layer, on real images."""

from __future__ import annotations

from bnlib.records import Record
from bnlib.specs import Claim, Criterion, Experiment, Run

CHAPTER = "01-mechanics"


def _runs(scale: str, seed: int) -> list[Run]:
    dataset = {"smoke": "digits", "laptop": "cifar10", "paper": "cifar10"}[scale]
    settings = {"dataset": dataset, "batch_size": 128, "channels": 8, "eps": 1e-5}
    return [Run("bn", seed, settings, task="identities")]


def _value(metric: str):
    def measure(record: Record) -> dict[int, float]:
        frame = record.frame(metric=metric)
        return dict(zip(frame["seed"], frame["value"], strict=True))

    return measure


EXPERIMENTS = [
    Experiment(
        name="mechanics",
        title="One batch normalization layer behind a random convolution",
        chapter=CHAPTER,
        question="Which statements about the transform are exact, and which only nearly so?",
        runs=_runs,
        seeds={"smoke": 5, "laptop": 5, "paper": 5},
    )
]

CLAIMS = [
    Claim(
        id="identity",
        statement="Setting γ = √Var[x] and β = E[x] recovers the original activations.",
        source="ioffe2015",
        where="section 3",
        chapter=CHAPTER,
        experiment="mechanics",
        quantity="largest deviation from the original activation, in standard deviations of its channel",
        unit="",
        measure=_value("identity_error_printed"),
        criterion=Criterion("<", 1e-10),
        note="Exact only for ε = 0. With γ = √(Var[x] + ε) the identity is exact for every ε.",
    ),
    Claim(
        id="fold",
        statement="At inference BN is a fixed linear map that the preceding layer can absorb.",
        source="ioffe2015",
        where="section 3.1, algorithm 2",
        chapter=CHAPTER,
        experiment="mechanics",
        quantity="largest difference between the folded convolution and convolution followed by BN",
        unit="",
        measure=_value("fold_error"),
        criterion=Criterion("<", 1e-10),
    ),
    Claim(
        id="coupling",
        statement="Batch normalization makes the items of a batch depend on each other.",
        source="wikipedia_bn",
        where="internal covariate shift",
        chapter=CHAPTER,
        experiment="mechanics",
        quantity="share of pairs of different images in a batch where one's input changes the other's output",
        unit="",
        measure=_value("coupled_share"),
        criterion=Criterion(">", 0.99),
    ),
    Claim(
        id="whitening",
        statement="Batch normalization whitens a layer's channels: it removes the correlations between them.",
        source="ilyas2018talk",
        where="opening slides, which label the step «whitening transformation»",
        chapter=CHAPTER,
        experiment="mechanics",
        quantity="mean absolute correlation between channels after BN, as a share of that before",
        unit="",
        measure=_value("correlation_left"),
        criterion=Criterion("<", 0.01),
        note="BN rescales each channel alone, so every correlation stays. Whitening (ZCA) removes them.",
    ),
]
