"""Chapter 14: what its claims measure, on records made by hand."""

from __future__ import annotations

import math

import pytest

from bnlib import records
from bnlib.experiments import CLAIMS, EXPERIMENTS, alternatives
from bnlib.specs import SCALES, Run

SEEDS = range(5)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    return tmp_path


def _record(rows_of, arms, rates=(0.1, 0.3), depths=(None,), seeds=SEEDS) -> records.Record:
    """`rows_of(arm, seed, lr, depth)` gives a run's rows; 60 steps."""
    runs = [
        Run(arm, seed, {"lr": lr, "depth": depth, "steps": 60}, ("lr", "depth"))
        for seed in seeds
        for arm in arms
        for lr in rates
        for depth in depths
    ]
    finished = {
        run.digest: {
            "rows": rows_of(run.arm, run.seed, run.settings["lr"], run.settings["depth"]),
            "seconds": 0.0,
        }
        for run in runs
    }
    return records.save("toy", "smoke", runs, finished, {})


def _run(loss: float, accuracy: float, metric: str = "test_accuracy"):
    early = [(0, "", metric, 0.99), (0, "", "train_loss", 99.0), (40, "", "train_loss", 99.0)]
    return [*early, (50, "", "train_loss", loss), (55, "", "train_loss", loss), (60, "", metric, accuracy)]


@pytest.mark.parametrize("scale", SCALES)
def test_the_arms_differ_in_the_norm_only(scale):
    for name, keys in (("alternatives", ("lr",)), ("alternatives_depth", ("lr", "depth"))):
        groups: dict[tuple, list[dict]] = {}
        for run in EXPERIMENTS[name].runs(scale, 0):
            if run.settings["model"]["name"] != "residual_mlp":
                rest = {k: v for k, v in run.settings.items() if k != "norm"}
                key = tuple(rest.get(k, rest["model"].get(k)) for k in keys)
                groups.setdefault(key, []).append(rest)
        for rests in groups.values():
            assert len(rests) >= 7
            assert all(rest == rests[0] for rest in rests)


def test_the_best_rate_is_chosen_on_the_training_loss(folder):
    """0.3 has the smaller median loss and the smaller accuracy: it is chosen all the same."""

    def rows(arm, seed, lr, depth):
        if lr == 0.1:
            return _run(2.0, 0.9)
        return [(3, "", "diverged_at", 3.0)] if seed == 4 else _run(1.0 + 0.1 * seed, 0.5 + 0.01 * seed)

    record = _record(rows, ["bn"])
    chosen = alternatives.at_best_rate(record).set_index("seed")
    assert set(chosen["lr"]) == {0.3}
    assert chosen["accuracy"].tolist() == pytest.approx([0.5, 0.51, 0.52, 0.53, 0.1])
    assert chosen["loss"][4] == math.inf
    assert alternatives.best(record, "bn", "loss") == pytest.approx({s: 1 + 0.1 * s for s in range(4)})


def test_a_rate_at_which_most_seeds_diverge_is_not_chosen(folder):
    def rows(arm, seed, lr, depth):
        return [(0, "", "diverged_at", 0.0)] if lr == 0.3 and seed > 1 else _run(2.0 - lr, 0.5)

    assert set(alternatives.at_best_rate(_record(rows, ["bn"]))["lr"]) == {0.1}
    lost = _record(lambda *_: [(0, "", "diverged_at", 0.0)], ["bn"])
    assert alternatives.best(lost, "bn") == dict.fromkeys(SEEDS, 0.1)
    assert alternatives.best(lost, "bn", "loss") == {}


def test_what_is_measured_on_networks(folder):
    accuracy = {"bn": 0.6, "group": 0.58, "layer": 0.5, "instance": 0.4, "rms": 0.52, "batch_renorm": 0.61}
    loss = {"standard": 2.0, "weight": 1.7, "bn": 1.0}
    record = _record(
        lambda arm, *_: _run(loss.get(arm, 1.0), accuracy.get(arm, 0.3), "test_accuracy_running"),
        alternatives.NORMS,
    )
    expected = {
        "group-close": -2.0,
        "group-over-layer": 8.0,
        "group-over-instance": 18.0,
        "rms-layer": 2.0,
        "renorm-close": 1.0,
        "weight-speed": 0.3,
    }
    for claim, value in expected.items():
        assert CLAIMS[claim].measure(record) == pytest.approx(dict.fromkeys(SEEDS, value)), claim


def test_batch_norm_that_gains_nothing_leaves_no_share_of_its_gain(folder):
    record = _record(lambda arm, *_: _run({"bn": 3.0}.get(arm, 2.0), 0.5), alternatives.NORMS)
    assert alternatives.speed_up(record) == {}


def test_what_is_measured_at_depth(folder):
    deep = {"bn": 0.2, "layer": 0.7, "bn_residual": 0.9, "skipinit": 0.88, "fixup": 0.93}

    def rows(arm, seed, lr, depth):
        if depth == 50 and arm == "residual":
            return [(1, "", "diverged_at", 1.0)]
        return _run(1.0, deep.get(arm, 0.3) if depth == 50 else 0.95)

    record = _record(rows, alternatives.DEEP, depths=(5, 50))
    expected = {
        "layer-deep": 50.0,
        "skipinit-deep": -2.0,
        "fixup-deep": 3.0,
        "norm-needed": 93.0,
        "residual-alone": 10.0,
    }
    for claim, value in expected.items():
        assert CLAIMS[claim].measure(record) == pytest.approx(dict.fromkeys(SEEDS, value)), claim
    assert alternatives.best(record, "residual", depth=5) == dict.fromkeys(SEEDS, 0.95)


def test_what_is_measured_of_invariances(folder):
    """As printed but for two cells; what matters on vectors at eps = 0 does not depend on the rest."""

    def rows(arm, seed, lr, depth):
        if arm in ("group", "batch_renorm"):
            found = {"neighbours": 1e-15, "mode": 0.2 if arm == "batch_renorm" else 0.0, "order": 9.0}
            return [(0, kind, f"{name}@0", value) for name, value in found.items() for kind in ("vectors",)]
        place = ("bn", "weight", "layer").index(arm)
        found = []
        for change, cells in alternatives.TABLE_1.items():
            wrong = (arm, change) in {("bn", "data_shift"), ("layer", "neuron_scale")}
            value = 1e-16 if cells[place] != wrong else 0.5
            found += [(0, "vectors", f"{change}@0", value), (0, "vectors", f"{change}@1e-05", 0.5)]
            found += [(0, "images", f"{change}@0", 0.5)]
        return found

    record = _record(rows, ["bn", "weight", "layer", "group", "batch_renorm"], rates=(0.1,))
    assert CLAIMS["invariance-table"].measure(record) == dict.fromkeys(SEEDS, 2.0)
    assert CLAIMS["group-independent"].measure(record) == dict.fromkeys(SEEDS, 1e-15)
    assert CLAIMS["renorm-same"].measure(record) == dict.fromkeys(SEEDS, 0.2)
    table = alternatives.changes(record, 1e-5)
    assert set(table["value"]) == {0.5}
    assert set(table["kind"]) == {"vectors"}
