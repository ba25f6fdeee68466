"""Chapter 13: what its claims measure, on records made by hand."""

from __future__ import annotations

import pytest

from bnlib import records
from bnlib.experiments import CLAIMS, EXPERIMENTS, batches
from bnlib.specs import SCALES, Run

SEEDS = range(5)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Makes a record of the runs that seeds 0 to 4 declare, with the rows that `rows_of(run)` gives."""
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))

    def save(runs_of, rows_of) -> records.Record:
        runs = [run for seed in SEEDS for run in runs_of(seed)]
        finished = {run.digest: {"rows": rows_of(run), "seconds": 0.0} for run in runs}
        return records.save("toy", "smoke", runs, finished, {})

    return save


def _same(value: float) -> dict[int, float]:
    return pytest.approx(dict.fromkeys(SEEDS, value))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["batch_size", "batch_size_vgg"])
def test_every_batch_size_sees_the_same_images_at_a_rate_in_proportion(name, scale):
    runs = [run.settings for run in EXPERIMENTS[name].runs(scale, 0)]
    assert {s["steps"] * s["batch_size"] for s in runs} == {runs[0]["steps"] * runs[0]["batch_size"]}
    assert {round(s["lr"] / s["batch_size"], 12) for s in runs} == {0.1 / 32}
    assert {2, 32} <= {s["batch_size"] for s in runs}


@pytest.mark.parametrize("scale", SCALES)
def test_only_what_is_trained_differs(scale):
    runs = EXPERIMENTS["bn_only"].runs(scale, 0)
    assert [run.settings["train_only"] for run in runs] == batches.TRAINED
    rest = [{k: v for k, v in run.settings.items() if k != "train_only"} for run in runs]
    assert all(settings == rest[0] for settings in rest)


def _sizes_record(saved, accuracy, name="batch_size_vgg", extra=lambda run: []):
    def rows(run: Run):
        size, end = run.settings["batch_size"], run.settings["steps"]
        value = accuracy[run.arm][size]
        if value is None:
            return [(0, "", "test_accuracy", 0.9), (5, "", "diverged_at", 5.0)]
        ends = [(end, "", metric, value) for metric in ("test_accuracy", "test_accuracy_running")]
        return [(0, "", "test_accuracy", 0.5), *ends, *extra(run)]

    return saved(lambda seed: EXPERIMENTS[name].runs("smoke", seed), rows)


def test_what_is_measured_over_batch_sizes(saved):
    accuracy = {
        "bn": {2: 0.4, 8: 0.7, 32: 0.8},
        "group": {2: 0.72, 8: 0.7, 32: 0.7},
        "batch_renorm": {2: 0.6, 8: 0.7, 32: 0.8},
    }
    reestimated = {2: 0.7, 8: 0.7, 32: 0.8}

    def extra(run: Run):
        if run.arm != "bn":
            return []
        value = reestimated[run.settings["batch_size"]]
        return [(run.settings["steps"], "", "test_accuracy_reestimated", value)]

    record = _sizes_record(saved, accuracy, extra=extra)
    expected = {
        "small-batch-bn": 42.0,  # 40 points minus -2
        "small-batch-group": 2.0,
        "small-batch-renorm": 20.0,
        "small-batch-renorm-fair": -10.0,
        "small-batch-statistics": 0.75,
    }
    for claim, value in expected.items():
        assert CLAIMS[claim].measure(record) == _same(value), claim


def test_who_diverged_guesses_and_who_lost_nothing_has_no_share(saved):
    accuracy = {arm: {2: 0.79, 8: 0.8, 32: 0.8} for arm in ("bn", "group", "batch_renorm")}
    accuracy["group"] = {2: None, 8: None, 32: 0.8}

    def extra(run: Run):
        return [(run.settings["steps"], "", "test_accuracy_reestimated", 0.8)] if run.arm == "bn" else []

    record = _sizes_record(saved, accuracy, extra=extra)
    assert batches.by_size(record, "group")[8] == dict.fromkeys(SEEDS, 0.1)
    assert CLAIMS["small-batch-group"].measure(record) == _same(70.0)
    assert CLAIMS["small-batch-statistics"].measure(record) == {}


def test_the_modes_and_the_variances(saved):
    accuracy = {arm: dict.fromkeys((2, 8, 32), 0.5) for arm in batches.ARMS}
    apart = {2: 0.3, 8: 0.12, 32: 0.1}

    def extra(run: Run):
        size, end = run.settings["batch_size"], run.settings["steps"]
        rows = [(end, "", "mode_disagreement", apart[size] if run.arm == "bn" else 0.0)]
        if run.arm == "bn":
            layers = {"linear1": 1.6, "linear2": 1.76 if size == 8 else 9.0, "linear3": 4.0}
            rows += [(end, layer, "inverse_variance", value) for layer, value in layers.items()]
        return rows

    record = _sizes_record(saved, accuracy, "batch_size", extra)
    assert CLAIMS["mode-gap"].measure(record) == _same(2.0)
    assert CLAIMS["inverse-variance"].measure(record) == _same(0.1)


def test_what_other_statistics_give_back(saved):
    """Clean 0.8.  Of what brightness costs they give back all, of noise a half and a quarter, of blur none;
    colour costs too little to count."""
    found = {
        "brightness=1": (0.3, 0.8, 0.7),
        "noise=0.5": (0.6, 0.7, 0.7),
        "noise=1": (0.4, 0.5, 0.45),
        "blur=2": (0.7, 0.7, 0.6),
        "colour=1": (0.79, 0.8, 0.1),
    }

    def rows(run: Run):
        end = run.settings["steps"]
        clean = [(end, "", "accuracy[running]@clean=0", 0.8), (0, "", "accuracy[running]@clean=0", 0.1)]
        if run.arm == "group":
            return clean
        return clean + [
            (end, "", f"accuracy[{how}]@{case}", value)
            for case, values in found.items()
            for how, value in zip(("running", "n=512", "n=32"), values, strict=True)
        ]

    record = saved(lambda seed: EXPERIMENTS["domain_shift"].runs("smoke", seed), rows)
    assert CLAIMS["adaptation"].measure(record) == _same(0.375)  # of 1, 0.5, 0.25, 0
    assert CLAIMS["adaptation-noise-blur"].measure(record) == _same(0.25)
    assert CLAIMS["adaptation-few"].measure(record) == _same(0.8)  # of 0.8, 1, 0.5
    table = batches.recovered(record)
    assert set(table["kind"]) == {"brightness", "noise", "blur"}
    assert len(batches.shifted(record)) == 5 * (1 + 15 + 1)


def test_what_gamma_and_beta_can_do(saved):
    accuracy = dict(zip(batches.TRAINED, (0.3, 0.35, 0.45, 0.5, 0.8), strict=True))

    def rows(run: Run):
        end, what = run.settings["steps"], run.settings["train_only"]
        gammas = [0.005, -0.009, 0.5, 0.02] if what == "gamma_beta" else [0.0] * 4
        scales = [(end, "conv1", f"gamma[{c}]", value) for c, value in enumerate(gammas)]
        return [(end, "", "test_accuracy", accuracy[what]), (0, "conv1", "gamma[0]", 0.0), *scales]

    record = saved(lambda seed: EXPERIMENTS["bn_only"].runs("smoke", seed), rows)
    assert CLAIMS["gamma-beta-weights"].measure(record) == _same(10.0)
    assert CLAIMS["gamma-beta-readout"].measure(record) == _same(15.0)
    assert CLAIMS["gamma-zero"].measure(record) == _same(0.5)
    assert batches.scales(record, "gamma_beta")["channel"].tolist() == [0, 1, 2, 3] * 5


def test_ranks(saved):
    """With BN 0.8 and 0.6 roots of the width in the second half; without, 1 behind the last layer."""

    def rows(run: Run):
        width, depth = run.settings["width"], run.settings["depth"]
        if run.arm == "standard":
            return [(1, "", "soft_rank", 5.0), (depth, "", "soft_rank", 1.0 if width == 8 else 1.25)]
        kept = {8: 0.8, 16: 0.6}[width] * width**0.5
        late = [(depth - i, "", "soft_rank", kept + i) for i in (-1, 0, 1)]
        return [(1, "", "soft_rank", 99.0), *[(d - 1, layer, m, v) for d, layer, m, v in late]]

    record = saved(lambda seed: EXPERIMENTS["rank"].runs("smoke", seed), rows)
    assert CLAIMS["rank-kept"].measure(record) == _same(0.6)
    assert CLAIMS["rank-lost"].measure(record) == _same(1.125)
