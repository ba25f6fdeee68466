"""Executors: where the launches of a recording are done, in this process, in several, or on a dask cluster.

Launches are independent, and doing one twice gives the same rows.  So a worker that is lost (killed, out of
memory, its machine gone) costs no more than what it had in hand: another one does that again.  Workers return
rows; only the process that records writes.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from types import ModuleType
from typing import Any, Protocol

import torch

from bnlib import launches, machine, records, speed
from bnlib.data import DataError
from bnlib.launches import Conditions, Launch, Outcome, Tick
from bnlib.records import RecordError
from bnlib.specs import Run
from bnlib.updates import How

EXECUTORS = ("processes", "dask", "in-turn")
ATTEMPTS = 3  # so many workers may be lost over a launch
REPORT_EVERY = 0.25  # seconds between a worker's words on its progress
CONNECT = 10.0  # seconds in which a scheduler must answer
PATIENCE = 60.0  # seconds that a cluster may be without a worker


class Executor(Protocol):
    """Where launches are done.

    name: one of `EXECUTORS`.  device: "cpu" or "cuda".  workers: how many launches go at a time.
    """

    name: str
    device: str
    workers: int

    def choose(self, runs: Sequence[Run]) -> How:
        """How to train `runs` fast here; see `bnlib.speed.choose`."""

    def execute(
        self, sent: Sequence[Launch], conditions: Conditions, advance: Tick
    ) -> Iterator[list[Outcome]]:
        """Do all launches, in any order; `advance` is told of steps.

        Raises RecordError if a launch cannot be done.  Closing the iterator stops what is under way.
        """


@contextlib.contextmanager
def opened(
    name: str | None, *, device: str | None, workers: int | None, scheduler: str | None
) -> Iterator[Executor]:
    """The executor of that name; if None, processes on a CPU with more than one worker, and else in turn.

    device: None is a GPU if there is one (on a cluster: if all its workers have one).  workers: processes;
    None is one per core, or one for a GPU.  scheduler: the address of dask's, or the path of its JSON file.
    Raises RecordError for what does not go together or is not there.
    """
    if name not in (None, *EXECUTORS):
        raise RecordError(f"there is no executor {name!r}: choose one of {', '.join(EXECUTORS)}")
    if name != "dask" and scheduler is not None:
        raise RecordError("a scheduler is for clusters only: add --executor dask, or leave out --scheduler")
    if name in ("dask", "in-turn") and workers not in (None, 1):
        raise RecordError(
            "the number of workers is for processes only: leave out --workers, or take --executor processes"
        )
    if name == "dask":
        with _quiet_distributed() as distributed, _connected(distributed, scheduler) as client:
            yield _Dask(distributed, client, device)
        return
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RecordError(f"device {device} was asked for, but PyTorch sees no GPU: use --device cpu")
    count = workers or (1 if device.startswith("cuda") else os.cpu_count() or 1)
    if name == "processes" or (name is None and count > 1 and device == "cpu"):
        yield _Processes(device, count)
    else:
        yield _InTurn(device)


# -- in this process -------------------------------------------------------------------------------------


class _InTurn:
    name, workers = "in-turn", 1

    def __init__(self, device: str) -> None:
        self.device = device

    def choose(self, runs: Sequence[Run]) -> How:
        return speed.choose(runs, self.device, 1)

    def execute(
        self, sent: Sequence[Launch], conditions: Conditions, advance: Tick
    ) -> Iterator[list[Outcome]]:
        threads = torch.get_num_threads()
        torch.set_num_threads(conditions.how.threads)  # the same bits as in a worker
        try:
            for launch in sent:
                yield launches.perform(launch, conditions, advance)
        finally:
            torch.set_num_threads(threads)


# -- in processes of this machine ------------------------------------------------------------------------


@dataclass
class _Worker:
    """A process, this side's end of its pipe, and the steps it has told of in its launch."""

    process: multiprocessing.process.BaseProcess
    pipe: connection.Connection
    launch: Launch | None = None
    steps: int = 0

    def start(self, launch: Launch) -> None:
        self.launch, self.steps = launch, 0
        # One that was lost while it waited is noticed where it should answer.
        with contextlib.suppress(OSError):
            self.pipe.send(launch)

    def answer(self) -> int | list[Outcome] | Exception | None:
        """Steps done, or what came out, or what went wrong; None if the process is lost."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Processes:
    """One pipe per process: a lost one can neither hold a lock of the others nor leave half an answer to
    them, and it is known what it had in hand.  (concurrent.futures gives up the whole pool instead.)"""

    name = "processes"

    def __init__(self, device: str, workers: int) -> None:
        self.device, self.workers = device, workers

    def choose(self, runs: Sequence[Run]) -> How:
        return speed.choose(runs, self.device, self.workers)

    def execute(
        self, sent: Sequence[Launch], conditions: Conditions, advance: Tick
    ) -> Iterator[list[Outcome]]:
        count = min(max(1, self.workers // conditions.how.threads), len(sent))
        waiting, losses = deque(sent), Counter[str]()
        idle: list[_Worker] = []
        busy: dict[connection.Connection, _Worker] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < count:
                    worker = idle.pop() if idle else _hire(conditions)
                    worker.start(waiting.popleft())
                    busy[worker.pipe] = worker
                for pipe in connection.wait(list(busy)):
                    worker = busy[pipe]
                    answer, launch = worker.answer(), worker.launch
                    if isinstance(answer, Exception):
                        raise answer
                    done = answer if isinstance(answer, int) else launch.steps if answer is not None else 0
                    advance(done - worker.steps)
                    worker.steps = done
                    if isinstance(answer, int):
                        continue
                    del busy[pipe]
                    if answer is not None:
                        idle.append(worker)
                        yield [replace(outcome, workers=count) for outcome in answer]
                        continue
                    worker.stop()
                    losses[str(launch)] += 1
                    if losses[str(launch)] == ATTEMPTS:
                        raise _lost(str(launch), ATTEMPTS)
                    waiting.appendleft(launch)
        finally:
            for worker in [*idle, *busy.values()]:
                worker.stop()


def _lost(what: str, times: int) -> RecordError:
    return RecordError(
        f"{what} has lost its worker {times} times (killed, or out of memory): see that it has the memory "
        "that it needs, then continue with --resume"
    )


def _hire(conditions: Conditions) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, conditions), daemon=True)
    # Ctrl-C reaches every process of a terminal; a worker is stopped by this one, and without a traceback.
    with _interrupts_held_back():
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Processes started here keep SIGINT blocked; for this one it is only put off."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: connection.Connection, conditions: Conditions) -> None:
    """A worker process: do what comes through the pipe until nothing more comes."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(conditions.how.threads)
    while True:
        try:
            launch = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(launches.perform(launch, conditions, _reporter(pipe.send)))
        except (RecordError, DataError) as error:
            pipe.send(error)
        except Exception:  # a bug: the parent shows it
            pipe.send(RuntimeError(f"{launch} failed in a worker process:\n\n{traceback.format_exc()}"))


def _leave_with_parent() -> None:
    # A killed parent cannot stop its workers; without this they would train to the end for nobody.
    multiprocessing.parent_process().join()
    os._exit(1)


def _reporter(report: Callable[[int], Any]) -> Tick:
    """A tick that reports the sum of the steps so far, and not too often."""
    done, last = 0, time.monotonic()

    def tick(steps: int) -> None:
        nonlocal done, last
        done += steps
        if time.monotonic() - last > REPORT_EVERY:
            report(done)
            last = time.monotonic()

    return tick


# -- on a dask cluster -----------------------------------------------------------------------------------


class _Dask:
    name = "dask"

    def __init__(self, distributed: ModuleType, client: Any, device: str | None) -> None:
        self.distributed, self.client = distributed, client
        self.workers = len(client.nthreads())
        answers = client.run(_sees_gpu, on_error="return")
        for answer in answers.values():
            if isinstance(answer, ImportError):
                raise _incomplete(answer)
        without = [address for address, answer in answers.items() if answer is not True]
        if device == "cuda" and without:
            raise RecordError(f"device cuda was asked for, but the worker {without[0]} sees no GPU: stop it")
        self.device = device or ("cpu" if without else "cuda")

    def choose(self, runs: Sequence[Run]) -> How:
        # Measured by a worker: what is fast here need not be so there.
        chosen = self.client.submit(_choose, runs, self.device, pure=False)
        while (how := self._result(chosen, "the choice of how to train")) is None:
            pass
        return how

    def execute(
        self, sent: Sequence[Launch], conditions: Conditions, advance: Tick
    ) -> Iterator[list[Outcome]]:
        topic = f"bnlib-{uuid.uuid4().hex}"
        steps: dict[str, int] = {}  # by key, of launches under way; filled in by the client's own thread
        self.client.subscribe_topic(topic, lambda event: steps.update([event[1]]))
        pending = {
            self.client.submit(
                _do, launch, conditions, topic, key=f"{topic}-{index}", pure=False, priority=-index
            ): launch
            for index, launch in enumerate(sent)
        }
        devices = self.client.run(launches.device_of, conditions, on_error="ignore")  # by worker
        finished = shown = 0
        try:
            while pending:
                done = self._wait(list(pending))
                present = self._present()
                for future in done:
                    launch = pending[future]
                    answer = self._result(future, str(launch))
                    if answer is None:
                        continue
                    del pending[future]
                    outcomes, address = answer
                    finished += launch.steps
                    device = devices[address] = outcomes[0].device
                    alike = [devices.get(worker) == device for worker in present | {address}]
                    yield [replace(outcome, workers=sum(alike)) for outcome in outcomes]
                now = finished + sum(steps.get(future.key, 0) for future in pending)
                advance(now - shown)
                shown = now
        finally:
            if self.client.status == "running":
                with contextlib.suppress(OSError):
                    self.client.cancel(list(pending), force=True)

    def _wait(self, futures: list[Any]) -> set[Any]:
        """Those of `futures` that are done, after a second at the latest."""
        try:
            return self.distributed.wait(futures, timeout=1, return_when="FIRST_COMPLETED").done
        except self.distributed.TimeoutError:
            return set()
        except self.distributed.CancelledError:
            raise self._gone() from None

    def _present(self) -> set[str]:
        """The addresses of all workers.  Raises RecordError if there has been none for too long."""
        deadline = time.monotonic() + PATIENCE
        while self.client.status == "running":
            try:
                if present := set(self.client.nthreads()):
                    return present
            except OSError:
                break
            if time.monotonic() > deadline:
                raise _without_workers(self.client)
            time.sleep(0.5)
        raise self._gone()

    def _result(self, future: Any, what: str) -> Any:
        """What came out; None if it was lost with its worker, so that another one must do it again."""
        try:
            return future.result(timeout=PATIENCE)
        except self.distributed.TimeoutError:
            self._present()
            return None
        except self.distributed.CancelledError:
            raise self._gone() from None
        except self.distributed.KilledWorker as error:
            raise _lost(what, error.allowed_failures + 1) from None
        except ImportError as error:
            raise _incomplete(error) from None

    def _gone(self) -> RecordError:
        return RecordError(
            "the connection to the dask scheduler was lost: finished runs are kept; see that it runs, then "
            "continue with --resume"
        )


def _incomplete(error: ImportError) -> RecordError:
    return RecordError(
        f"a worker of the cluster cannot import {error.name}: install bnlib[cluster] on its machine, of the "
        "same version as here"
    )


def _without_workers(client: Any) -> RecordError:
    return RecordError(
        f"the dask scheduler at {client.scheduler.address} has no workers: start some "
        "(`dask worker ADDRESS --nworkers 4 --nthreads 1`), then run this again with --resume"
    )


@contextlib.contextmanager
def _connected(distributed: ModuleType, scheduler: str | None) -> Iterator[Any]:
    """A client of the scheduler, once that has a worker."""
    import dask

    where = scheduler or dask.config.get("scheduler-address", None)
    if not where:
        raise RecordError("where is the dask scheduler? Name it: --scheduler tcp://HOST:8786")
    place = {"scheduler_file": where} if where.endswith(".json") else {"address": where}
    if "scheduler_file" in place and not os.path.exists(where):  # dask would wait for it for ever
        raise RecordError(f"there is no {where}: start `dask scheduler --scheduler-file {where}`")
    try:
        client = distributed.Client(**place, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RecordError(
            f"no dask scheduler answers at {where} ({_first_line(error)}): start one (`dask scheduler`) or "
            "correct the address"
        ) from None
    try:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except distributed.TimeoutError:
            raise _without_workers(client) from None
        with client.as_current():
            yield client
    finally:
        with contextlib.suppress(OSError, distributed.TimeoutError):
            client.close(timeout=5)


@contextlib.contextmanager
def _quiet_distributed() -> Iterator[ModuleType]:
    """dask.distributed with its loggers silent: what matters of what they say is said by errors here."""
    distributed = importlib.import_module("distributed")
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        yield distributed
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(". ")


# What follows is done by a worker of the cluster.


def _sees_gpu() -> bool:
    return torch.cuda.is_available()


def _choose(runs: Sequence[Run], device: str) -> How:
    # A cluster has as many threads as it has workers.
    return replace(speed.choose(runs, device, 1), threads=1)


def _do(launch: Launch, conditions: Conditions, topic: str) -> tuple[list[Outcome], str]:
    """Do a launch, and say which worker did it."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def report(steps: int) -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise _Unwanted
        worker.log_event(topic, (key, steps))

    try:
        _compare(worker.state.nthreads, conditions)
        torch.set_num_threads(conditions.how.threads)
        return launches.perform(launch, conditions, _reporter(report)), worker.address
    except (RecordError, DataError) as error:
        raise type(error)(f"on the worker {worker.address}, {error}") from None


class _Unwanted(Exception):
    """Nobody waits for this launch any more: its recording was stopped."""


def _compare(threads: int, conditions: Conditions) -> None:
    """Raises RecordError if this worker would compute something else than the others."""
    if threads != 1:
        raise RecordError(
            f"{threads} runs would share one process: start workers with --nthreads 1, and --nworkers for "
            "several on a machine"
        )
    versions = machine.versions()
    for name, wanted in conditions.versions.items():
        if versions.get(name) != wanted:
            raise RecordError(
                f"{name} is {versions.get(name)}, but {wanted} where the recording was started: install the "
                "same versions everywhere and start the workers anew"
            )
    if records.source_digest() != conditions.source_sha256:
        raise RecordError(
            "the code of bnlib is not that of the process that records: install the same code everywhere and "
            "start the workers anew"
        )
    if conditions.device.startswith("cuda") and not _sees_gpu():
        raise RecordError("PyTorch sees no GPU: stop this worker, or record with --device cpu")
