"""Recorded runs done again: the same bits, rounding, or something else; and nothing is written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bnlib import data, experiments, machine, recording, records, repeating, training
from bnlib.__main__ import main
from bnlib.records import RecordError
from bnlib.repeating import ROUNDING, compare
from bnlib.specs import Experiment, Run

ROWS = [(0, "", "loss", 2.0), (0, "conv1", "mean", -0.5), (1, "", "loss", 1.0), (2, "", "loss", math.nan)]


def _runs(scale: str, seed: int) -> list[Run]:
    settings = {
        "dataset": "digits",
        "model": {"name": "mlp", "depth": 2, "width": 12},
        "norm": "batch",
        "where": "everywhere",
        "init": "glorot_uniform",
        "steps": 6,
        "batch_size": 16,
        "eval_every": 3,
    }
    return [Run("bn", seed, {**settings, "lr": lr}, ("lr",)) for lr in (0.1, 0.3)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    toy = Experiment("toy", "A toy", "00-toy", "Again?", _runs, {"smoke": 3, "laptop": 5, "paper": 5})
    monkeypatch.setitem(experiments.EXPERIMENTS, "toy", toy)
    return tmp_path


def _record(**options) -> records.Record:
    return recording.record("toy", "smoke", workers=1, device="cpu", progress=False, **options)


def _repeat(**options) -> list[repeating.Repeat]:
    return list(repeating.repeat(["toy"], device="cpu", **{"workers": 1, "progress": False, **options}))


def _off(step: int, layer: str, metric: str, by: float) -> list[records.Row]:
    return [(s, l, m, v + by if (s, l, m) == (step, layer, metric) else v) for s, l, m, v in ROWS]


# -- comparing -------------------------------------------------------------------------------------------


def test_the_same_numbers_in_any_order_are_the_same():
    found = compare(ROWS, ROWS[::-1])
    assert (found.numbers, found.unequal, found.apart, found.where, found.largest) == (4, 0, None, "", 0.0)


def test_a_small_difference_is_rounding_and_is_measured_in_units_of_the_metric():
    found = compare(ROWS, _off(1, "", "loss", 1e-5))
    assert (found.unequal, found.apart, found.where) == (1, None, "loss")
    assert found.largest == pytest.approx(1e-5 / 2)  # the largest loss of the record is 2
    assert compare(ROWS, _off(0, "conv1", "mean", 1e-6)).where == "mean of conv1"


def test_a_large_difference_names_the_first_step_at_which_it_stands():
    found = compare(ROWS, [*_off(1, "", "loss", 0.5)[:3], (2, "", "loss", 7.0)])
    assert (found.unequal, found.apart, found.where, found.largest) == (2, 1, "loss", 0.25)
    # Just below and just above what may be rounding.
    assert compare(ROWS, _off(1, "", "loss", 2 * 0.99 * ROUNDING)).apart is None
    assert compare(ROWS, _off(1, "", "loss", 2 * 1.01 * ROUNDING)).apart == 1


@pytest.mark.parametrize(
    ("recorded", "again"),
    [(ROWS, ROWS[:3]), (ROWS[:3], ROWS), (ROWS, [*ROWS[:3], (2, "", "loss", 1.0)])],
)
def test_what_was_measured_once_only_or_is_no_number_is_infinitely_far(recorded, again):
    found = compare(recorded, again)
    assert (found.unequal, found.apart, found.largest) == (1, 2, math.inf)


def test_something_where_all_was_nothing_is_no_rounding():
    assert compare([(0, "", "dead", 0.0)], [(0, "", "dead", 1e-12)]).largest == math.inf


# -- doing it again --------------------------------------------------------------------------------------


def test_a_run_done_again_has_the_same_bits_and_nothing_is_written(folder):
    _record()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = _repeat(runs=100)
    assert [repeat.run for repeat in found] == [run.id for run in _runs("smoke", 0)] + [
        run.id for seed in (1, 2) for run in _runs("smoke", seed)
    ]
    for repeat in found:
        assert repeat.difference.unequal == 0 and repeat.good and repeat.alike
        assert str(repeat).endswith("12 numbers, the same bits")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_processes_do_it_too():
    _record()
    assert [repeat.difference.unequal for repeat in _repeat(runs=2, workers=2)] == [0, 0]


def test_the_pick_chooses_and_chooses_the_same_again():
    _record()
    drawn = [[repeat.run for repeat in _repeat(runs=2, pick=pick)] for pick in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len({tuple(runs) for runs in drawn}) > 1
    assert all(len(runs) == 2 for runs in drawn)


def test_what_two_experiments_declare_is_done_once(monkeypatch):
    _record()
    twin = Experiment("twin", "A twin", "00-toy", "Again?", _runs, {"smoke": 3})
    monkeypatch.setitem(experiments.EXPERIMENTS, "twin", twin)
    recording.record("twin", "smoke", workers=1, device="cpu", progress=False)
    done = []
    real = repeating.executors.launches.perform
    monkeypatch.setattr(
        repeating.executors.launches,
        "perform",
        lambda launch, *rest: done.append(launch) or real(launch, *rest),
    )
    options = {"workers": 1, "device": "cpu", "progress": False, "runs": 2}
    found = list(repeating.repeat(["toy", "twin"], **options))
    assert sorted((repeat.name, repeat.difference.unequal) for repeat in found) == [
        ("toy", 0),
        ("toy", 0),
        ("twin", 0),
        ("twin", 0),
    ]
    assert len(done) == 2


def test_seeds_that_were_trained_together_are_again(monkeypatch):
    _record(how="together=3")
    (sitting,) = records.load("toy").sittings
    assert sitting["how"]["together"] == 3
    asked = []
    real = repeating.launches.grouped
    monkeypatch.setattr(
        repeating.launches, "grouped", lambda runs, size: asked.append(size) or real(runs, size)
    )
    assert [repeat.difference.unequal for repeat in _repeat(runs=1)] == [0]
    assert asked == [3]


def test_another_training_is_found_and_fails(monkeypatch, capsys):
    _record()

    def slower(model, lr, *rest):
        return [{"params": list(model.parameters())}], lambda step: 0.99 * lr

    monkeypatch.setattr(training, "_groups", slower)
    assert main(["repeat", "toy", "--workers", "1", "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "apart from step 1 of 6 on (train_loss, by " in said
    assert "1 runs again: 0 the same bits, 0 rounded otherwise, 1 apart" in said


@pytest.mark.parametrize("where", ["processor", "torch"])
def test_another_kind_of_machine_may_round_otherwise(monkeypatch, where, capsys):
    _record()
    if where == "processor":
        monkeypatch.setattr(machine, "processor", lambda: "an abacus")
    else:
        versions = machine.versions() | {"torch": "0.1"}
        monkeypatch.setattr(machine, "versions", lambda: versions)
    monkeypatch.setattr(
        repeating, "compare", lambda recorded, again: repeating.Difference(12, 7, 3, "train_loss", 0.2)
    )
    assert main(["repeat", "toy", "--workers", "1", "--device", "cpu"]) == 0
    assert "apart from step 3 of 6 on" in (said := capsys.readouterr().out)
    assert "another kind of machine, whose rounding training amplifies" in said


# -- what cannot be done ---------------------------------------------------------------------------------


def test_a_record_of_something_else_is_refused(monkeypatch):
    _record()
    other = Experiment("toy", "A toy", "00-toy", "Again?", lambda *_: _runs(*_)[:1], {"smoke": 3})
    monkeypatch.setitem(experiments.EXPERIMENTS, "toy", other)
    with pytest.raises(RecordError, match="toy/smoke: "):
        _repeat()


def test_other_data_are_refused(monkeypatch):
    _record()
    monkeypatch.setattr(data, "fingerprint", lambda name: "another")
    with pytest.raises(RecordError, match=r"the data set digits in .* is not the one that toy/smoke"):
        _repeat()


@pytest.mark.parametrize("how", [{"layout": "sideways"}, {"precision": "tf32"}, {"haste": True}])
def test_a_way_of_computing_that_is_unknown_here_is_named(how):
    record = _record()
    record.provenance["sittings"][0]["how"] = how
    with pytest.raises(RecordError, match="toy/smoke was computed in a way that this machine does not know"):
        repeating._how(record, _runs("smoke", 0)[0], "cpu")


def test_no_records_and_wrong_names(capsys):
    assert main(["repeat"]) == 0
    assert "no records in" in capsys.readouterr().out
    assert main(["repeat", "toi"]) == 1
    assert "toy" in capsys.readouterr().err
    assert main(["repeat", "toy"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["repeat", "toy", "--runs", "0"])


def test_stopping_it_promises_no_resuming(monkeypatch, capsys):
    _record()

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(repeating, "compare", stopped)
    assert main(["repeat", "toy", "--workers", "1", "--device", "cpu"]) == 130
    assert capsys.readouterr().err.endswith("bnlib: stopped; nothing was written\n")
