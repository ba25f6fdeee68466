"""Run declared experiments and record what comes out.

On a CPU each run has one thread and the runs are spread over processes, so that a record does not depend on
the number of cores; on a GPU the runs go one after the other.  A recording can be killed at any moment and
resumed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from typing import Any

import torch
from tqdm.auto import tqdm

from bnlib import (
    data,
    directions,
    identities,
    invariances,
    machine,
    records,
    signal_propagation,
    surfaces,
    training,
)
from bnlib.experiments import find
from bnlib.records import Record, RecordError, Row
from bnlib.specs import Experiment, Run, canonical
from bnlib.theory.wide_networks import run_rank_collapse

# What a run's `task` names: a function of (settings, seed, device, tick) that returns rows.
TASKS: dict[str, Callable[..., list[Row]]] = {
    "train": training.run,
    "identities": identities.run,
    "surfaces": surfaces.run,
    "directions": directions.run,
    "invariances": invariances.run,
    "random_network": signal_propagation.run,
    "rank_collapse": run_rank_collapse,
}


def record(
    name: str,
    scale: str,
    *,
    seeds: int | None = None,
    resume: bool = False,
    device: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Record:
    """Run experiment `name` at `scale` and write its record.

    seeds: how many (the declared number if None).  resume: keep the finished runs of an interrupted recording
    and of an existing record whose settings are still the declared ones; each keeps the description of the
    sitting it was made in.  device: "cpu" or "cuda" (a GPU if there is one).  workers: processes on a CPU
    (one per core; with 1 the runs are done in this one).  Raises RecordError if another process is recording
    the same, or if the call would throw away work: finished runs of an interrupted recording, or a record of
    more seeds.
    """
    experiment = find(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RecordError(f"device {device} was asked for, but PyTorch sees no GPU: use --device cpu")
    with records.recording_lock(name, scale):
        runs = _prepare(experiment, scale, seeds, resume)
        finished = {run.digest: kept for run in runs if (kept := records.load_run(name, scale, run))}
        missing = [run for run in runs if run.digest not in finished]
        clock = time.monotonic()
        sitting = {
            "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "device": machine.describe(device),
            "versions": machine.versions(),
            "source_sha256": records.source_digest(),
            "workers": _processes(missing, workers) if device == "cpu" else 1,
            "command": _command(experiment, scale, runs),
        }
        _fetch_data(missing)
        total = sum(run.settings.get("steps", 1) for run in missing)
        with tqdm(
            total=total, unit="step", desc=f"{name} ({scale})", disable=not progress or not total
        ) as bar:
            execute = _side_by_side if sitting["workers"] > 1 else _in_turn
            for run, rows, seconds in execute(missing, device, workers, bar):
                now = sitting | {"seconds": round(time.monotonic() - clock, 1)}
                records.save_run(name, scale, run, rows, seconds, now)
                finished[run.digest] = {"rows": rows, "seconds": seconds, "sitting": now}
                bar.set_postfix_str(f"{len(finished)}/{len(runs)} runs", refresh=False)
        sittings = _seat(finished)
        run_seconds = round(sum(item["seconds"] for item in finished.values()), 1)
        return records.save(name, scale, runs, finished, {"sittings": sittings, "run_seconds": run_seconds})


def obtain(name: str, scale: str = "recorded") -> Record:
    """What a chapter works on: the best record ("recorded"), or a recording made now at the scale named.

    A recording that was interrupted is continued; a finished one is made again.
    """
    if scale == "recorded":
        return records.load(name)
    # Smoke runs take seconds: to start processes for them would take longer.
    workers = 1 if scale == "smoke" else None
    return record(name, scale, resume=records.unfinished(name, scale) > 0, workers=workers)


def _prepare(experiment: Experiment, scale: str, seeds: int | None, resume: bool) -> list[Run]:
    """The runs to record; with `resume`, the runs that a former record holds already are set aside as
    finished."""
    name, left = experiment.name, records.unfinished(experiment.name, scale)
    try:
        old = records.load(name, scale)
    except RecordError:
        old = None
    wanted = experiment.seeds[scale] if seeds is None else seeds
    if resume and old is not None:
        wanted = max(wanted, old.seeds) if seeds is None else wanted
    if old is not None and old.seeds > wanted:
        raise RecordError(
            f"{name} is recorded at {scale} scale with {old.seeds} seeds; {wanted} would replace them: "
            f"ask for at least {old.seeds}, or remove {records.root() / name / f'{scale}.json'} first"
        )
    if left and not resume:
        raise RecordError(
            f"an interrupted recording of {name} at {scale} scale has left {left} finished runs: "
            f"continue it with --resume, or remove {records.partial_folder(name, scale)} to start afresh"
        )
    runs = experiment.all_runs(scale, wanted)
    if resume and old is not None:
        for run in runs:
            kept = records.rows_of(old, run)
            if kept and records.load_run(name, scale, run) is None:
                records.save_run(name, scale, run, kept["rows"], kept["seconds"], kept["sitting"])
    return runs


def _seat(finished: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The sittings of the finished runs in order of time; each run's own becomes its index among them.

    Every run describes its sitting as it was when the run was finished: the same but for the `seconds`, of
    which the largest count.
    """
    sittings: dict[bytes, dict[str, Any]] = {}
    keys = {digest: canonical(item["sitting"] | {"seconds": None}) for digest, item in finished.items()}
    for digest, key in keys.items():
        found = finished[digest]["sitting"]
        sittings[key] = max(sittings.get(key, found), found, key=lambda sitting: sitting["seconds"])
    order = sorted(sittings, key=lambda key: sittings[key]["started"])
    for digest, key in keys.items():
        finished[digest]["sitting"] = order.index(key)
    return [sittings[key] for key in order]


def _command(experiment: Experiment, scale: str, runs: list[Run]) -> str:
    """What makes all of `runs` from nothing."""
    seeds = len({run.seed for run in runs})
    return f"bnlib run {experiment.name} --scale {scale}" + (
        f" --seeds {seeds}" if seeds != experiment.seeds[scale] else ""
    )


def _fetch_data(runs: list[Run]) -> None:
    """Load each data set once here, so that a missing one is one clear error before any work starts."""
    chosen = [run.settings.get("dataset") for run in runs]
    for name in sorted({name for name in chosen if isinstance(name, str)}):
        data.load(name)


def _timed(run: Run, device: str, tick: Callable[[int], None]) -> tuple[list[Row], float]:
    clock = time.monotonic()
    rows = TASKS[run.task](run.settings, seed=run.seed, device=device, tick=tick)
    return rows, round(time.monotonic() - clock, 3)


def _in_turn(runs: list[Run], device: str, workers: int | None, bar: tqdm):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bits as in `_side_by_side`
    try:
        for run in runs:
            yield run, *_timed(run, device, bar.update)
    finally:
        torch.set_num_threads(threads)


_steps_done: Any = None  # in a worker process: the counter shared with the parent


def _start_worker(counter: Any) -> None:
    global _steps_done
    _steps_done = counter
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        # A killed parent cannot stop its workers; without this they would wait for work forever.
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _work(run: Run) -> tuple[list[Row], float]:
    def tick(steps: int) -> None:
        with _steps_done.get_lock():
            _steps_done.value += steps

    return _timed(run, "cpu", tick)


def _processes(runs: list[Run], workers: int | None) -> int:
    """How many runs go at a time on a CPU."""
    return min(workers or os.cpu_count() or 1, len(runs))


def _side_by_side(runs: list[Run], device: str, workers: int | None, bar: tqdm):
    """One process per core, one thread per process: the fastest way for small networks, and the same bits
    everywhere."""
    if not runs:
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(
        _processes(runs, workers), context, initializer=_start_worker, initargs=(counter,)
    )
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(0.3):
            if counter.value > bar.n:
                bar.update(counter.value - bar.n)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        waiting = {pool.submit(_work, run): run for run in runs}
        for future in as_completed(waiting):
            yield waiting[future], *future.result()
        pool.shutdown()  # a worker that is still starting must not find the counter gone
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        stop.set()
        follower.join()
        bar.update(counter.value - bar.n)
