"""Records: whole or not at all, the same runs give the same bytes, and damage is refused by name."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bnlib import executors, experiments, launches, recording, records
from bnlib.__main__ import main
from bnlib.records import RecordError
from bnlib.specs import Experiment, Run, canonical


def _runs(scale: str, seed: int) -> list[Run]:
    return [Run(arm, seed, {"lr": 0.1, "model": {"depth": 3}}, ("lr",)) for arm in ("standard", "bn")]


TOY = Experiment("toy", "A toy", "00-toy", "Does it work?", _runs, {"smoke": 2, "laptop": 5, "paper": 5})


def _rows(seed: int) -> list[records.Row]:
    return [(0, "", "loss", 2.5), (1, "conv1", "mean", seed / 3)]


def _save(scale: str = "smoke", seeds: int = 2, seconds: float = 1.5) -> records.Record:
    runs = TOY.all_runs(scale, seeds)
    finished = {run.digest: {"rows": _rows(run.seed), "seconds": seconds, "sitting": 0} for run in runs}
    sittings = [{"command": "made in a test", "seconds": seconds}]
    return records.save("toy", scale, runs, finished, {"sittings": sittings, "run_seconds": seconds})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    return tmp_path


def test_what_is_saved_is_loaded():
    _save()
    record = records.load("toy")
    assert (record.name, record.scale, record.seeds) == ("toy", "smoke", 2)
    assert record.table.num_rows == 8
    frame = record.frame("lr", "depth", metric="mean")
    assert frame["value"].tolist() == [0.0, 0.0, 1 / 3, 1 / 3]
    assert frame["arm"].tolist() == ["standard", "bn"] * 2
    assert set(frame["lr"]) == {0.1} and set(frame["depth"]) == {3}
    with pytest.raises(RecordError, match="no metric 'accuracy'"):
        record.frame(metric="accuracy")


def test_equal_runs_give_equal_bytes_whatever_the_clock_says(folder):
    _save(seconds=1.0)
    first = (folder / "toy/smoke.parquet").read_bytes()
    _save(seconds=2.0)
    assert (folder / "toy/smoke.parquet").read_bytes() == first


def test_the_largest_recorded_scale_is_the_best():
    _save("smoke")
    assert records.best_scale("toy") == "smoke"
    _save("laptop", seeds=5)
    assert records.best_scale("toy") == "laptop"
    assert records.load("toy").scale == "laptop"
    assert records.load("toy", "smoke").scale == "smoke"
    assert records.recorded() == [("toy", "smoke"), ("toy", "laptop")]


def test_a_missing_record_says_how_to_make_it():
    with pytest.raises(RecordError, match="bnlib run toy --scale smoke"):
        records.load("toy")
    with pytest.raises(RecordError, match="not recorded at paper scale"):
        records.load("toy", "paper")


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("file", ["smoke.json", "smoke.parquet"])
@pytest.mark.parametrize("damage", [_truncate, _flip, lambda content: b"", lambda content: b"\x00" * 64])
def test_damage_is_refused_by_name(folder, file, damage):
    _save()
    path = folder / "toy" / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RecordError) as caught:
        records.load("toy", "smoke")
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_single_bit_of_the_provenance_counts(folder):
    _save()
    path = folder / "toy/smoke.json"
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        try:
            assert records.load("toy", "smoke").provenance == json.loads(good)
        except (RecordError, AssertionError) as error:
            assert isinstance(error, RecordError), f"bit {position} changed what was loaded"


def test_a_table_from_another_record_is_foreign(folder):
    _save("smoke")
    _save("laptop", seeds=5)
    (folder / "toy/smoke.parquet").write_bytes((folder / "toy/laptop.parquet").read_bytes())
    with pytest.raises(RecordError, match=r"smoke\.parquet is damaged or foreign"):
        records.load("toy", "smoke")


def test_a_record_copied_to_another_name_is_refused(folder):
    _save("smoke")
    (folder / "other").mkdir()
    for file in ("smoke.json", "smoke.parquet"):
        (folder / "other" / file).write_bytes((folder / "toy" / file).read_bytes())
    with pytest.raises(RecordError, match="belongs to toy at smoke scale"):
        records.load("other")


def test_a_file_of_another_kind_is_refused(folder):
    _save()
    (folder / "toy/smoke.json").write_text('{"format": "something else"}')
    with pytest.raises(RecordError, match=r"smoke\.json is not a bnlib-record file"):
        records.load("toy", "smoke")


def test_a_newer_format_asks_for_an_upgrade(folder):
    _save()
    path = folder / "toy/smoke.json"
    body = json.loads(path.read_text())
    body["version"] = records.VERSION + 1
    path.write_text(json.dumps(body))
    with pytest.raises(RecordError, match=r"smoke\.json was written by a newer bnlib .* upgrade bnlib"):
        records.load("toy", "smoke")


def test_an_older_format_asks_to_record_again(folder):
    _save()
    path = folder / "toy/smoke.json"
    body = json.loads(path.read_text())
    body["version"] = 1
    path.write_text(json.dumps(body))
    with pytest.raises(RecordError, match=r"smoke\.json was written by an older bnlib .* record again"):
        records.load("toy", "smoke")


def test_a_missing_table_is_named(folder):
    _save()
    (folder / "toy/smoke.parquet").unlink()
    with pytest.raises(RecordError, match=r"smoke\.parquet is missing"):
        records.load("toy", "smoke")


def test_a_damaged_finished_run_is_run_again(folder):
    run = TOY.all_runs("smoke")[0]
    records.save_run("toy", "smoke", run, [(0, "", "loss", 1.0)], 0.5, {"seconds": 0.5})
    assert records.load_run("toy", "smoke", run)["rows"] == [[0, "", "loss", 1.0]]
    path = folder / "toy/smoke.partial" / f"{run.digest}.json"
    path.write_bytes(_truncate(path.read_bytes()))
    assert records.load_run("toy", "smoke", run) is None
    assert not path.exists()


def test_a_finished_run_under_another_runs_name_is_not_taken(folder):
    first, second = TOY.all_runs("smoke")[:2]
    records.save_run("toy", "smoke", first, [(0, "", "loss", 1.0)], 0.5, {"seconds": 0.5})
    partial = folder / "toy/smoke.partial"
    (partial / f"{first.digest}.json").rename(partial / f"{second.digest}.json")
    assert records.load_run("toy", "smoke", second) is None
    assert not list(partial.iterdir())


def test_what_a_killed_process_was_writing_is_swept_away(folder):
    _save()
    litter = folder / "toy/.smoke.parquet.x3f9"
    litter.write_text("half a tab")
    with records.recording_lock("toy", "smoke"):
        assert not litter.exists()
    assert records.load("toy")


@pytest.mark.parametrize("call", ["mkstemp", "mkdir"])
def test_no_room_even_for_a_name_says_so(monkeypatch, call):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((records.tempfile, call) if call == "mkstemp" else (Path, call)), full)
    with pytest.raises(RecordError, match=r"\(No space left on device\): free some space, then continue"):
        records.write_atomically(records.root() / "toy/smoke.json", b"")


def test_a_folder_that_cannot_be_written_is_one_sentence(folder, monkeypatch):
    blocker = folder / "a-file"
    blocker.write_text("not a folder")
    monkeypatch.setenv("BNLIB_RECORDS", str(blocker / "records"))
    with pytest.raises(RecordError, match="set BNLIB_RECORDS to a folder of yours"):
        _save()
    with (
        pytest.raises(RecordError, match="set BNLIB_RECORDS to a folder of yours"),
        records.recording_lock("toy", "smoke"),
    ):
        pass


def test_a_full_disk_leaves_the_old_record(folder, monkeypatch):
    _save(seconds=1.0)
    before = (folder / "toy/smoke.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match="No space left on device"):
        _save(seconds=2.0)
    assert (folder / "toy/smoke.json").read_bytes() == before
    assert records.load("toy").sittings[0]["seconds"] == 1.0
    assert not [path for path in (folder / "toy").iterdir() if path.name.startswith(".")]


def test_two_recordings_of_the_same_exclude_each_other():
    with (
        records.recording_lock("toy", "smoke"),
        pytest.raises(RecordError, match="another process is recording toy at smoke scale"),
        records.recording_lock("toy", "smoke"),
    ):
        pass
    with records.recording_lock("toy", "smoke"), records.recording_lock("toy", "laptop"):
        pass


def test_a_changed_declaration_is_told_apart():
    record = _save()
    assert records.compare(record, TOY) == []
    slower = Experiment("toy", "", "", "", lambda scale, seed: [
        Run(run.arm, run.seed, {**run.settings, "steps": 7}, run.factors) for run in _runs(scale, seed)
    ])  # fmt: skip
    assert "other settings (steps)" in records.compare(record, slower)[0]
    fewer = Experiment("toy", "", "", "", lambda scale, seed: _runs(scale, seed)[:1])
    assert "no longer declared" in records.compare(record, fewer)[0]
    more = Experiment(
        "toy", "", "", "", lambda scale, seed: [*_runs(scale, seed), Run("noisy_bn", seed, {"lr": 0.1})]
    )
    assert "lacks the declared run" in records.compare(record, more)[0]


def test_the_digest_does_not_depend_on_the_order_of_settings():
    one = Run("bn", 0, {"a": 1, "b": {"c": 2, "d": 3}})
    two = Run("bn", 0, {"b": {"d": 3, "c": 2}, "a": 1})
    assert one.digest == two.digest
    assert one.digest != Run("bn", 1, one.settings).digest
    assert canonical({"b": 1, "a": 2}) == b'{"a":2,"b":1}'


class Studio:
    """Records TOY in this process, with code of any name, and may be interrupted after some runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch, self.left = monkeypatch, None
        monkeypatch.setattr(recording, "find", lambda name: TOY)
        monkeypatch.setattr(executors._Processes, "execute", self._execute)
        monkeypatch.setattr(launches, "TASKS", {"train": self._train})

    @staticmethod
    def _execute(processes, sent, conditions, advance):
        """Says as many workers as there would be, but does all in this process."""
        for outcomes in executors._InTurn.execute(processes, sent, conditions, advance):
            yield [replace(outcome, workers=min(processes.workers, len(sent))) for outcome in outcomes]

    def _train(self, settings, *, seed, device, tick, how) -> list[records.Row]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = self.left and self.left - 1
        return _rows(seed)

    def record(self, code: str, *, stop_after: int | None = None, **options) -> records.Record:
        self.left = stop_after
        self.patch.setattr(records, "source_digest", lambda: code)
        return recording.record("toy", "smoke", device="cpu", progress=False, **options)


@pytest.fixture
def studio(monkeypatch) -> Studio:
    return Studio(monkeypatch)


def _codes(record: records.Record) -> list[str]:
    """The code that each run of the record says it was made with."""
    return [record.sittings[run["sitting"]]["source_sha256"] for run in record.runs]


def test_one_sitting_says_all_of_every_run(studio):
    record = studio.record("A", workers=3)
    (sitting,) = record.sittings
    expected = {"started", "seconds", "device", "versions", "source_sha256", "workers", "command"}
    expected |= {"executor", "how", "data"}
    assert set(sitting) == expected
    assert not expected & set(record.provenance)
    assert (sitting["workers"], sitting["command"]) == (3, "bnlib run toy --scale smoke")
    assert [run["sitting"] for run in record.runs] == [0] * 4
    assert record.provenance["run_seconds"] == pytest.approx(sum(r["seconds"] for r in record.runs), abs=0.1)


def test_a_resumed_recording_is_true_of_every_run(studio, folder):
    with pytest.raises(KeyboardInterrupt):
        studio.record("A", stop_after=1, workers=4)
    with pytest.raises(KeyboardInterrupt):
        studio.record("B", stop_after=2, resume=True, workers=4)
    record = studio.record("C", resume=True, workers=4)
    assert _codes(record) == ["A", "B", "B", "C"]
    assert [sitting["source_sha256"] for sitting in record.sittings] == ["A", "B", "C"]
    assert [sitting["workers"] for sitting in record.sittings] == [4, 3, 1]
    assert records.load("toy").sittings == record.sittings
    resumed = (folder / "toy/smoke.parquet").read_bytes()
    _save()
    assert (folder / "toy/smoke.parquet").read_bytes() == resumed


def test_an_interrupted_sitting_lasts_until_its_last_finished_run(studio, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(recording.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(KeyboardInterrupt):
        studio.record("A", stop_after=2)
    kept = [records.load_run("toy", "smoke", run) for run in TOY.all_runs("smoke")[:2]]
    first, second = (item["sitting"]["seconds"] for item in kept)
    assert 0 < first < second
    record = studio.record("B", resume=True)
    assert record.sittings[0]["seconds"] == second


def test_runs_of_an_existing_record_keep_their_sitting(studio):
    old = studio.record("A", seeds=1)
    assert old.sittings[0]["command"] == "bnlib run toy --scale smoke --seeds 1"
    record = studio.record("B", seeds=3, resume=True)
    assert _codes(record) == ["A", "A", "B", "B", "B", "B"]
    assert record.sittings[0] == old.sittings[0]
    assert record.sittings[1]["command"] == "bnlib run toy --scale smoke --seeds 3"
    with pytest.raises(KeyboardInterrupt):
        studio.record("C", seeds=4, resume=True, stop_after=1)
    assert _codes(studio.record("D", seeds=4, resume=True)) == ["A", "A", *"BBBB", "C", "D"]


def test_a_sitting_that_made_no_run_leaves_no_trace(studio):
    first = studio.record("A")
    assert studio.record("B", resume=True).provenance == first.provenance
    assert _codes(studio.record("C")) == ["C"] * 4
    assert len(records.load("toy").sittings) == 1


def test_a_sitting_is_described_once(studio, folder):
    """1350 runs must not carry 1350 descriptions."""
    studio.record("the code's name")
    assert (folder / "toy/smoke.json").read_text().count("the code's name") == 1


def test_verify_counts_the_runs_of_other_code(studio, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "find", lambda name: TOY)
    with pytest.raises(KeyboardInterrupt):
        studio.record("A", stop_after=3)
    studio.record("B", resume=True)
    for code, news in (
        ("B", ", the code has changed since 3 of 4 runs)"),
        ("A", ", the code has changed since 1 of 4 runs)"),
        ("C", ", the code has changed since)"),
    ):
        monkeypatch.setattr(records, "source_digest", lambda code=code: code)
        assert main(["verify"]) == 0
        assert capsys.readouterr().out == f"toy/smoke: good (4 runs, 2 seeds{news}\n"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))

    def refused(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(RecordError, match="knows no locks"), records.recording_lock("training", "smoke"):
        pass
