"""Executors: wherever runs are done, in whatever company, and whoever is lost on the way, the record is the
same; what cannot be done is one clear sentence, and nothing is lost."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import distributed
import pytest
import torch

from bnlib import executors, images, launches, machine, recording, records
from bnlib.__main__ import main
from bnlib.records import RecordError
from bnlib.specs import Experiment, Run
from bnlib.updates import How

# Python 3.12 and later say so of every fork; these processes live for a second, in tests.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

NAME = "replication"  # three runs of sixty steps per seed


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    return tmp_path


def _record(**options) -> records.Record:
    return recording.record(NAME, "smoke", **{"seeds": 1, "progress": False, "device": "cpu"} | options)


def _table() -> bytes:
    return (records.root() / NAME / "smoke.parquet").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    """The table of two seeds, recorded in turn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BNLIB_RECORDS", str(tmp_path_factory.mktemp("undisturbed")))
        _record(seeds=2, executor="in-turn")
        return _table()


def _after_the_first_run(monkeypatch, act) -> list:
    """Let `act()` be called once the first run is saved; what it returns is put into the list."""
    save, acted = records.save_run, []

    def saving(*arguments):
        save(*arguments)
        if not acted:
            acted.append(None)
            acted[0] = act()

    monkeypatch.setattr(records, "save_run", saving)
    return acted


# --- processes ----------------------------------------------------------------------------------------------


@pytest.fixture
def forked(monkeypatch) -> None:
    """Let worker processes be forked: they start at once, and know what the test has changed."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(executors.multiprocessing, "get_context", lambda method: fork)


@pytest.mark.usefixtures("forked")
def test_a_killed_process_is_replaced(monkeypatch, undisturbed):
    def kill() -> int:
        child = max(multiprocessing.active_children(), key=lambda process: process.pid)
        os.kill(child.pid, signal.SIGKILL)
        return child.pid

    killed = _after_the_first_run(monkeypatch, kill)
    record = _record(seeds=2, executor="processes", workers=2)
    assert killed and _table() == undisturbed
    assert [sitting["workers"] for sitting in record.sittings] == [2]
    assert not multiprocessing.active_children()


def _toy(monkeypatch, task, seeds: int = 4, steps: int = 10) -> None:
    """The experiment `toy`: one run per seed, done by `task`."""
    settings = {"dataset": "digits", "steps": steps}
    toy = Experiment("toy", "", "", "", lambda scale, seed: [Run("bn", seed, settings)], {"smoke": seeds})
    monkeypatch.setattr(recording, "find", lambda name: toy)
    monkeypatch.setattr(launches, "TASKS", {"train": task})


def _rows(seed: int) -> list[records.Row]:
    return [(0, "", "loss", float(seed))]


@pytest.mark.usefixtures("forked")
def test_a_run_that_keeps_killing_its_worker_is_named(monkeypatch):
    def task(settings, *, seed, device, tick, how):
        if seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return _rows(seed)

    _toy(monkeypatch, task)
    with pytest.raises(RecordError, match=r"^the run 'bn seed=2' has lost its worker 3 times .*--resume$"):
        recording.record("toy", "smoke", executor="processes", workers=1, progress=False, device="cpu")
    assert records.unfinished("toy", "smoke") == 2
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (images.DataError("there is no data"), r"^there is no data$"),
        (KeyError("a bug"), r"^the run 'bn seed=0' failed in a worker process:(.|\n)*KeyError: 'a bug'"),
    ],
)
def test_what_goes_wrong_in_a_process_is_told(monkeypatch, error, shown):
    def task(settings, *, seed, device, tick, how):
        raise error

    _toy(monkeypatch, task)
    with pytest.raises(RuntimeError, match=shown):
        recording.record("toy", "smoke", executor="processes", workers=1, progress=False, device="cpu")


class Bar:
    """Takes the place of the progress bar, and remembers how far it was."""

    shown: list[int]

    def __init__(self, total, **options):
        self.total, Bar.shown = total, [0]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, steps: int) -> None:
        Bar.shown.append(Bar.shown[-1] + steps)

    def set_postfix_str(self, *arguments, **options) -> None:
        pass


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("executor", executors.EXECUTORS)
def test_the_progress_bar_comes_to_its_end(monkeypatch, request, folder, executor):
    def task(settings, *, seed, device, tick, how):
        for step in range(settings["steps"]):
            tick(1)
            if executor == "processes" and (seed, step) == (1, 5) and not (folder / "killed").exists():
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return _rows(seed)

    _toy(monkeypatch, task)
    monkeypatch.setattr(recording, "tqdm", Bar)
    monkeypatch.setattr(executors, "REPORT_EVERY", 0)
    where = {
        "processes": {"workers": 1},
        "dask": {"scheduler": executor == "dask" and request.getfixturevalue("crew").scheduler_address},
        "in-turn": {},
    }
    recording.record("toy", "smoke", executor=executor, device="cpu", **where[executor])
    assert Bar.shown[-1] == 40 == max(Bar.shown)
    went_back = any(later < earlier for earlier, later in pairwise(Bar.shown))
    assert went_back == (executor == "processes")  # what the killed worker had done does not count


# --- several seeds at a time --------------------------------------------------------------------------------


def _in_stacks(monkeypatch, most: int) -> list[list[int]]:
    """Let toy seeds be trained together, at most so many before the memory is full; a list of what is
    tried."""
    tried = []

    def stack(settings, *, seeds, device, tick, how):
        tried.append(list(seeds))
        tick(7)
        if len(seeds) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        tick(len(seeds) * settings["steps"] - 7)
        return [_rows(seed) for seed in seeds]

    def alone(settings, *, seed, **options):
        (rows,) = stack(settings, seeds=[seed], **options)
        return rows

    _toy(monkeypatch, alone, seeds=5)
    monkeypatch.setattr(launches.together, "possible", lambda settings: True)
    monkeypatch.setattr(launches.together, "run", stack)
    monkeypatch.setattr(recording, "tqdm", Bar)
    return tried


def _toy_table(**options) -> bytes:
    recording.record("toy", "smoke", executor="in-turn", device="cpu", **options)
    return (records.root() / "toy/smoke.parquet").read_bytes()


def test_a_full_memory_splits_the_batch_of_seeds(monkeypatch):
    tried = _in_stacks(monkeypatch, most=5)
    whole = _toy_table(how="together=5")
    assert tried == [[0, 1, 2, 3, 4]]
    tried = _in_stacks(monkeypatch, most=1)
    assert _toy_table(how="together=5") == whole
    assert tried == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1], [0], [1], [2], [3, 4], [3], [4]]
    assert Bar.shown[-1] == 50 == max(Bar.shown)


def test_trained_together_or_split_the_table_is_that_of_single_runs(monkeypatch, undisturbed):
    def full(settings, *, seeds, tick, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(launches.together, "run", full)
    _record(seeds=2, executor="in-turn", how="together=2")
    assert _table() == undisturbed


def test_a_run_that_no_memory_holds_is_named(monkeypatch):
    _in_stacks(monkeypatch, most=0)
    with pytest.raises(RecordError, match=r"^the memory of the cpu does not suffice for the run 'bn seed=0'"):
        _toy_table(how="together=2")


def test_other_errors_do_not_split(monkeypatch):
    _in_stacks(monkeypatch, most=5)
    monkeypatch.setattr(launches.together, "run", lambda settings, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _toy_table(how="together=5")


def test_seeds_are_grouped_by_settings_and_in_order():
    def run(arm: str, seed: int, **more) -> Run:
        return Run(arm, seed, {"dataset": "digits", "norm": "none", "lr": 1, **more})

    runs = [run(arm, seed) for seed in range(3) for arm in ("a", "b")]
    noisy = [Run("noisy", seed, {"dataset": {"n": 3, "width": 2}}) for seed in range(2)]
    others = [Run("sum", seed, {}, task="identities") for seed in range(2)]
    found = [
        [(run.arm, run.seed) for run in launch.runs]
        for launch in launches.grouped([*runs, *noisy, *others, run("a", 7, lr=2)], 2)
    ]
    pairs = [[("a", 0), ("a", 1)], [("b", 0), ("b", 1)], [("a", 2)], [("b", 2)]]
    singles = [[("noisy", 0)], [("noisy", 1)], [("sum", 0)], [("sum", 1)], [("a", 7)]]
    assert found == pairs + singles


# --- resuming -----------------------------------------------------------------------------------------------


def _interrupt(monkeypatch) -> None:
    """Let the recording be stopped as by Ctrl-C once the first run is saved."""

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _after_the_first_run(patch, stop)
        _toy_table(how="together=2,layout=contiguous")


def test_a_resumed_recording_is_done_as_it_began(monkeypatch):
    tried = _in_stacks(monkeypatch, most=5)
    whole = _toy_table(how="together=2,layout=contiguous")
    (records.root() / "toy/smoke.json").unlink()
    tried.clear()
    _interrupt(monkeypatch)
    assert records.unfinished("toy", "smoke") == 1
    assert _toy_table(resume=True) == whole
    # Whole launches: two seeds trained together need not have the same bits as one alone.
    assert tried == [[0, 1], [0, 1], [2, 3], [4]]
    ways = [sitting["how"] for sitting in records.load("toy").sittings]
    assert ways == [asdict(How(layout="contiguous", together=2))] * 2


def test_what_was_recorded_before_there_was_a_choice_goes_on_plainly(monkeypatch):
    _in_stacks(monkeypatch, most=5)
    monkeypatch.setattr(executors.speed, "choose", lambda *arguments: How(layout="contiguous"))
    first = recording.find("toy").all_runs("smoke")[0]
    old = {"started": "2026-01-01", "seconds": 1.0, "workers": 1, "source_sha256": "old"}
    records.save_run("toy", "smoke", first, _rows(0), 1.0, old)
    _toy_table(resume=True)
    assert records.load("toy").sittings[1]["how"] == asdict(How())
    _toy_table()
    assert records.load("toy").sittings[0]["how"] == asdict(How(layout="contiguous"))


def test_data_that_change_under_a_recording_are_noticed(monkeypatch):
    tried = _in_stacks(monkeypatch, most=5)
    _interrupt(monkeypatch)
    kept = sorted((records.root() / "toy/smoke.partial").iterdir())
    tried.clear()
    monkeypatch.setattr(launches.data, "fingerprint", lambda name: "another")
    with pytest.raises(RecordError, match=r"^the data set digits .* is not the one that this recording"):
        _toy_table(resume=True)
    assert not tried and sorted((records.root() / "toy/smoke.partial").iterdir()) == kept

    answers = iter(["as it was", "changed"])
    monkeypatch.setattr(launches.data, "fingerprint", lambda name: next(answers))
    (kept[0]).unlink()
    with pytest.raises(RecordError, match="is not the one that this recording began with"):
        _toy_table()
    assert not tried


def test_seeds_of_an_interrupted_recording_are_not_thrown_away(monkeypatch):
    _in_stacks(monkeypatch, most=5)
    sitting = {"started": "2026-01-01", "seconds": 1, "workers": 1}
    for run in recording.find("toy").all_runs("smoke", 7):
        records.save_run("toy", "smoke", run, _rows(run.seed), 1.0, sitting)
    with pytest.raises(RecordError, match=r"7 finished runs of 7 seeds: ask for at least 7, or remove"):
        _toy_table(seeds=6, resume=True)
    _toy_table(resume=True)
    assert records.load("toy").seeds == 7


# --- dask ---------------------------------------------------------------------------------------------------


def _cluster(workers: int, **options) -> distributed.LocalCluster:
    return distributed.LocalCluster(
        **{"n_workers": workers, "threads_per_worker": 1, "processes": False} | options,
        dashboard_address=":0",
        host="127.0.0.1",
        protocol="tcp://",
        silence_logs=logging.CRITICAL,
    )


@pytest.fixture(scope="module")
def crew():
    """A scheduler and two workers in this process, so that they know the tests' tasks."""
    with _cluster(2) as cluster:
        yield cluster


def _by_dask(cluster: distributed.LocalCluster, name: str = "toy", **options) -> records.Record:
    where = {"executor": "dask", "scheduler": cluster.scheduler_address}
    return recording.record(name, "smoke", **{"progress": False, "device": "cpu"} | where | options)


def test_a_cluster_that_loses_a_worker_makes_the_same_record(monkeypatch, capfd, undisturbed):
    with _cluster(2, processes=True) as cluster:

        def kill() -> str:
            busy = next(state.address for state in cluster.scheduler.workers.values() if state.processing)
            nanny = next(nanny for nanny in cluster.workers.values() if nanny.worker_address == busy)
            os.kill(nanny.process.pid, signal.SIGKILL)
            return busy

        killed = _after_the_first_run(monkeypatch, kill)
        run = ["run", NAME, "--scale", "smoke", "--executor", "dask"]
        assert main([*run, "--scheduler", cluster.scheduler_address]) == 0
        assert killed[0] not in cluster.scheduler.workers
    assert _table() == undisturbed
    (sitting,) = records.load(NAME).sittings
    assert (sitting["executor"], sitting["device"]["threads_per_run"]) == ("dask", 1)
    assert 1 <= sitting["workers"] <= 2
    printed = capfd.readouterr()
    assert printed.out.startswith(f"{NAME}: 6 runs of 2 seeds recorded at smoke scale")
    quiet = [line for line in re.split("[\r\n]", printed.err) if not line.startswith(f"{NAME} (smoke):")]
    assert not [line for line in quiet if line.strip()]


def _fine(settings, *, seed, device, tick, how):
    return _rows(seed)


@pytest.mark.parametrize(
    ("place", "name", "says"),
    [
        (records, "source_digest", r"the code of bnlib is not that of the process that records"),
        (machine, "versions", r"torch is \S+, but 1\.0 where the recording was started: install the same"),
        (
            launches.data,
            "fingerprint",
            r"the data set digits in \S+ is not the one that this recording",
        ),
    ],
)
def test_workers_that_would_compute_something_else_are_refused(monkeypatch, crew, place, name, says):
    _toy(monkeypatch, _fine)
    answers = iter([{"torch": "1.0"} if name == "versions" else "another"])
    right = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *arguments: next(answers, None) or right(*arguments))
    with pytest.raises(RecordError, match=rf"^on the worker tcp://\S+, {says}"):
        _by_dask(crew)
    assert not records.unfinished("toy", "smoke")


def _lacks_torch() -> bool:
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


def test_workers_without_what_is_needed_are_refused(monkeypatch, crew):
    _toy(monkeypatch, _fine)
    monkeypatch.setattr(executors, "_sees_gpu", _lacks_torch)
    with pytest.raises(
        RecordError, match=r"^a worker of the cluster cannot import torch: install bnlib\[cluster"
    ):
        _by_dask(crew)


def test_workers_with_several_threads_are_refused(monkeypatch):
    _toy(monkeypatch, _fine)
    with _cluster(1, threads_per_worker=2) as cluster, pytest.raises(RecordError, match="--nthreads 1"):
        _by_dask(cluster)


def test_the_way_of_training_is_chosen_by_a_worker(monkeypatch, crew, folder):
    _toy(monkeypatch, _fine)
    monkeypatch.setattr(executors.speed, "choose", lambda *arguments: How(layout="contiguous", threads=4))
    file = folder / "scheduler.json"
    file.write_text(json.dumps({"address": crew.scheduler_address}))
    record = _by_dask(crew, scheduler=str(file))
    assert [sitting["how"] for sitting in record.sittings] == [asdict(How(layout="contiguous"))]
    assert [sitting["workers"] for sitting in record.sittings] == [2]


def test_machines_of_two_kinds_are_two_sittings(monkeypatch, crew):
    _toy(monkeypatch, _fine, seeds=20)
    here = launches.device_of

    def device_of(conditions):
        try:
            return here(conditions) | {"name": distributed.get_worker().address}
        except ValueError:  # not in a task: `Client.run`
            return here(conditions)

    monkeypatch.setattr(launches, "device_of", device_of)
    record = _by_dask(crew)
    assert {sitting["device"]["name"] for sitting in record.sittings} == set(crew.scheduler.workers)
    assert [sitting["workers"] for sitting in record.sittings] == [1, 1]
    assert len({sitting["started"] for sitting in record.sittings}) == 1
    assert {run["sitting"] for run in record.runs} == {0, 1}


def test_stopping_a_recording_frees_the_workers(monkeypatch, crew):
    stopped = threading.Event()

    def task(settings, *, seed, device, tick, how):
        try:
            for _ in range(1000 if seed else 1):
                time.sleep(0.01)
                tick(1)
        finally:
            if seed:
                stopped.set()
        return _rows(seed)

    def stop() -> None:
        raise KeyboardInterrupt

    _toy(monkeypatch, task)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _after_the_first_run(patch, stop)
        _by_dask(crew)
    assert stopped.wait(5)
    assert records.unfinished("toy", "smoke") == 1
    monkeypatch.setattr(launches, "TASKS", {"train": _fine})
    assert _by_dask(crew, resume=True).seeds == 4


def test_a_lost_scheduler_is_said_and_the_rest_resumed(monkeypatch, crew):
    _toy(monkeypatch, _fine)
    with _cluster(1) as cluster, monkeypatch.context() as patch:
        _after_the_first_run(patch, cluster.close)
        with pytest.raises(RecordError, match=r"^the connection to the dask scheduler was lost:"):
            _by_dask(cluster)
    assert 1 <= records.unfinished("toy", "smoke") < 4
    assert _by_dask(crew, resume=True).seeds == 4


def test_a_scheduler_without_workers_is_said(monkeypatch):
    monkeypatch.setattr(executors, "PATIENCE", 0.2)
    _toy(monkeypatch, _fine)
    with (
        _cluster(0) as cluster,
        pytest.raises(RecordError, match="has no workers: start some"),
    ):
        _by_dask(cluster)


def test_workers_that_all_leave_are_missed(monkeypatch):
    monkeypatch.setattr(executors, "PATIENCE", 0.2)
    _toy(monkeypatch, _fine)
    with _cluster(1) as cluster:
        _after_the_first_run(monkeypatch, lambda: cluster.scale(0))
        with pytest.raises(RecordError, match="has no workers"):
            _by_dask(cluster)
    assert records.unfinished("toy", "smoke") >= 1


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "tcp://no-such-host.invalid:8786"])
def test_a_wrong_address_is_said(monkeypatch, address):
    monkeypatch.setattr(executors, "CONNECT", 0.2)
    with pytest.raises(RecordError, match=f"no dask scheduler answers at {address} .* correct the address"):
        recording.record("mechanics", "smoke", executor="dask", scheduler=address)


def test_a_missing_scheduler_file_is_not_waited_for():
    with pytest.raises(RecordError, match=r"there is no none\.json: start `dask scheduler"):
        recording.record("mechanics", "smoke", executor="dask", scheduler="none.json")


def test_a_launch_that_keeps_killing_workers_is_named():
    class Lost:
        def result(self, timeout: float) -> None:
            raise distributed.KilledWorker("key", None, 3)

    place = object.__new__(executors._Dask)
    place.distributed = distributed
    with pytest.raises(RecordError, match=r"^the run 'bn' has lost its worker 4 times"):
        place._result(Lost(), "the run 'bn'")
