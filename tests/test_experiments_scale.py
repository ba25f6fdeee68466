"""Chapter 12: what its claims measure, on records made by hand."""

from __future__ import annotations

import math

import pytest

from bnlib import records
from bnlib.experiments import CLAIMS, EXPERIMENTS, scale
from bnlib.specs import SCALES, Run

SEEDS = range(5)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    return tmp_path


def _record(experiment, rows_of, at="laptop") -> records.Record:
    """A record of the declared runs with the rows that `rows_of(run)` gives."""
    runs = EXPERIMENTS[experiment].all_runs(at)
    finished = {run.digest: {"rows": rows_of(run), "seconds": 0.0} for run in runs}
    return records.save("toy", at, runs, finished, {})


def _judged(record, claim, value):
    assert CLAIMS[claim].measure(record) == pytest.approx(dict.fromkeys(SEEDS, value)), claim


NAMES = ["effective_rate", "any_rate", "spectrum", "edge"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", SCALES)
def test_arms_are_paired(name, at):
    """A standard run has a twin with batch norm that differs in the normalization only."""
    runs = EXPERIMENTS[name].runs(at, 0)
    rest = {
        arm: [
            {k: v for k, v in run.settings.items() if k not in scale.ARMS["bn"]}
            for run in runs
            if run.arm == arm
        ]
        for arm in scale.ARMS
    }
    assert all(settings in rest["bn"] for settings in rest["standard"])
    if name != "effective_rate":
        assert len(rest["bn"]) == len(rest["standard"])
    for run in runs:
        assert scale.ARMS[run.arm].items() <= run.settings.items()


def test_what_is_measured_on_lengths_and_angles(folder):
    def rows(run: Run):
        decay, as_rates = run.settings["weight_decay"], run.settings["decayed"] == "as_rates"
        longer = run.settings["hidden_gain"] > 1
        predicted = math.sqrt(2 * 0.1 * decay)
        found = [(0, "", "train_loss", 9.0), (600, "", "train_loss", 2.0), (1000, "", "train_loss", 1.0)]
        if as_rates:
            found = [(step, layer, metric, 1.1 * value) for step, layer, metric, value in found]
        if longer:
            found = [(step, layer, metric, value + 0.5) for step, layer, metric, value in found]
        found += [(0, "", "test_accuracy", 0.1), (900, "", "test_accuracy", 0.51 if as_rates else 0.5)]
        for layer, length in (("conv1", 1.0), ("conv2", 2.0), ("conv3", 3.0)):
            # The last interval of conv3 shrinks: 5 of 6 grow.
            lengths = [length, length + 1, length + (0.5 if layer == "conv3" else 2)]
            found += [(s, layer, "weight_norm", w) for s, w in zip((0, 500, 1000), lengths, strict=True)]
            found += [(s, layer, "radial", 1e-3 * length) for s in (0, 500, 1000)]
            # A mean of squares of (1.2 predicted)^2, but for one layer that has nothing to do with it.
            late = [math.sqrt(0.44), math.sqrt(2.44)] if layer != "conv2" else [50.0, 50.0]
            found += [(0, layer, "angle", 7.0)]
            if decay < 0.1:
                late = [1.0, 1.0]
            found += [(s, layer, "angle", predicted * a) for s, a in zip((500, 1000), late, strict=True)]
        if decay and not as_rates:
            found += [(s, "", "equilibrium_angle", predicted) for s in (0, 500, 1000)]
        return found

    record = _record("effective_rate", rows)
    _judged(record, "radial-gradient", 3e-3)
    _judged(record, "weights-grow", 5 / 6)
    _judged(record, "initial-scale-irrelevant", 0.5)
    _judged(record, "equilibrium-angle", 0.2)
    _judged(record, "decay-is-rate", 0.1)
    _judged(record, "decay-regularises-not", 1.0)
    assert scale.predicted_angle(record, 0.01) == pytest.approx(math.sqrt(0.002))
    assert set(scale.turned(record, "standard", "angle", 0.01)["layer"]) == {"conv1", "conv2", "conv3"}


def test_any_rate_takes_the_worst(folder):
    def rows(run: Run):
        bn, rate = run.arm == "bn", run.settings["hidden_lr"]
        left = 0.2 if rate == 1000.0 else 0.05
        found = [(0, "", "train_loss", 2.0), (5, "", "train_loss", 9.0), (995, "", "train_loss", 2 * left)]
        return found if bn or rate < 10 else [*found, (7, "", "diverged_at", 7.0)]

    record = _record("any_rate", rows)
    _judged(record, "any-rate", 0.2)
    kept = scale.kept_loss(record, "standard")
    assert kept[1.0][0] == pytest.approx(0.05)
    assert kept[100.0] == dict.fromkeys(SEEDS, math.inf)


def test_what_is_measured_on_spectra(folder):
    def rows(run: Run):
        factor = 1.0 if run.arm == "bn" else 2.0
        found = []
        for step in (0, 150, 300, 450):
            far = 100.0 if step in (0, 450) else 1.0  # the start does not count, the median forgets the end
            values = {"eigenvalue[1]": 8 * factor * far, "eigenvalue[10]": 4.0 * far, "sharpness": 8 * far}
            values |= {"gradient_share[10]": 0.25 * factor * far, "relative_sharpness": 3 / factor * far}
            found += [(step, "", metric, value) for metric, value in values.items()]
        return found

    record = _record("spectrum", rows)
    _judged(record, "outliers", 0.5)
    _judged(record, "gradient-in-outliers", 0.5)
    _judged(record, "sharpness", 1.0)
    _judged(record, "sharpness-relative", 2.0)


def test_how_far_from_the_edge(folder):
    def rows(run: Run):
        lr = run.settings["lr"]
        late = {0.05: 0.2, 0.1: 1.1, 0.2: 0.9, 0.4: 1.3}[lr]
        steps = ((0, 5.0), (990, 7.0), (1056, late), (1500, late), (2000, late + 1))
        found = [(step, "", "edge", value) for step, value in steps]
        return found + [(step, "", "sharpness@0.5", 2 / lr * (1 + (v - 1) / 2)) for step, v in steps]

    record = _record("edge", rows)
    _judged(record, "edge-standard", 0.3)
    _judged(record, "edge-bn", 0.3)
    _judged(record, "edge-bn-between", 0.5)
    table = scale.edges(record, "bn", between=True)
    assert table[(table["lr"] == 0.2) & (table["step"] == 1500)]["value"].tolist() == pytest.approx(
        [0.95] * 5
    )


def test_a_diverged_run_is_far_from_the_edge(folder):
    def rows(run: Run):
        found = [(0, "", "edge", 1.0), (2000, "", "edge", 1.0)]
        lost = run.arm == "standard" and run.settings["lr"] == 0.4
        return [*found, (3, "", "diverged_at", 3.0)] if lost else found

    record = _record("edge", rows)
    assert CLAIMS["edge-standard"].measure(record) == dict.fromkeys(SEEDS, math.inf)
    assert CLAIMS["edge-bn"].measure(record) == dict.fromkeys(SEEDS, 0.0)
