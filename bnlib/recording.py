"""Run declared experiments and record what comes out.

A recording is a list of launches that an executor does in any order, here or elsewhere; what comes back is
kept run by run.  It can be killed at any moment and resumed.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from tqdm.auto import tqdm

from bnlib import data, executors, launches, machine, records, speed
from bnlib.executors import Executor
from bnlib.experiments import find
from bnlib.launches import Conditions
from bnlib.records import Record, RecordError
from bnlib.specs import Experiment, Run, canonical
from bnlib.updates import How


def record(
    name: str,
    scale: str,
    *,
    seeds: int | None = None,
    resume: bool = False,
    device: str | None = None,
    workers: int | None = None,
    executor: str | None = None,
    scheduler: str | None = None,
    how: str = "auto",
    progress: bool = True,
) -> Record:
    """Run experiment `name` at `scale` and write its record.

    seeds: how many (the declared number if None).  resume: keep the finished runs of an interrupted recording
    and of an existing record whose settings are still the declared ones; each keeps the description of the
    sitting it was made in.  device: "cpu" or "cuda" (a GPU if there is one).  workers: processes on a CPU
    (one per core; with 1 the runs are done in this one).  executor, scheduler: where the runs are done; see
    `bnlib.executors.opened`.  how: "auto" is how the kept runs were trained, or else what is fastest
    (`bnlib.speed.choose`); "plain" or "KEY=VALUE,..." is for `bnlib.speed.parse`.

    Raises RecordError if another process is recording the same, if the data are not those of the kept runs,
    if a run cannot be done, or if the call would throw away work: finished runs of an interrupted recording,
    or a record of more seeds.
    """
    experiment = find(name)
    with (
        records.recording_lock(name, scale),
        executors.opened(executor, device=device, workers=workers, scheduler=scheduler) as place,
    ):
        runs = _prepare(experiment, scale, seeds, resume)
        finished = {run.digest: kept for run in runs if (kept := records.load_run(name, scale, run))}
        missing = [run for run in runs if run.digest not in finished]
        clock, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="milliseconds")
        conditions = _conditions(place, how, missing, [kept["sitting"] for kept in finished.values()])
        sitting = {
            "started": started,
            "executor": place.name,
            "data": conditions.data,
            "versions": conditions.versions,
            "source_sha256": conditions.source_sha256,
            "command": _command(experiment, scale, runs, how),
        }
        # Grouped before the finished ones are left out: the seeds trained together are always the same.
        sent = [
            launch
            for launch in launches.grouped(runs, conditions.how.together)
            if any(run.digest not in finished for run in launch.runs)
        ]
        total = sum(launch.steps for launch in sent)
        with (
            tqdm(
                total=total, unit="step", desc=f"{name} ({scale})", disable=not progress or not total
            ) as bar,
            closing(place.execute(sent, conditions, bar.update)) as outcomes,
        ):
            for outcome in (one for several in outcomes for one in several):
                run = outcome.run
                if run.digest in finished:
                    continue  # done once more with the other seeds of its launch
                now = sitting | {
                    "device": outcome.device,
                    "how": asdict(outcome.how),
                    "workers": outcome.workers,
                    "seconds": round(time.monotonic() - clock, 1),
                }
                records.save_run(name, scale, run, outcome.rows, outcome.seconds, now)
                finished[run.digest] = {"rows": outcome.rows, "seconds": outcome.seconds, "sitting": now}
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
    held = max(old.seeds if old else 0, records.unfinished_seeds(name, scale) if resume else 0)
    wanted = seeds or max(experiment.seeds[scale], held if resume else 0)
    if old is not None and old.seeds > wanted:
        raise RecordError(
            f"{name} is recorded at {scale} scale with {old.seeds} seeds; {wanted} would replace them: "
            f"ask for at least {old.seeds}, or remove {records.root() / name / f'{scale}.json'} first"
        )
    if left and (not resume or held > wanted):
        raise RecordError(
            f"an interrupted recording of {name} at {scale} scale has left {left} finished runs"
            + (": continue it with --resume" if not resume else f" of {held} seeds: ask for at least {held}")
            + f", or remove {records.partial_folder(name, scale)} to start afresh"
        )
    runs = experiment.all_runs(scale, wanted)
    if resume and old is not None:
        for run in runs:
            kept = records.rows_of(old, run)
            if kept and records.load_run(name, scale, run) is None:
                records.save_run(name, scale, run, kept["rows"], kept["seconds"], kept["sitting"])
    return runs


def _conditions(place: Executor, how: str, missing: list[Run], sittings: list[dict[str, Any]]) -> Conditions:
    """What the missing runs are trained under, which is what the kept runs of `sittings` were.

    Each data set is loaded here once, so that a missing one is one clear error before any work starts.
    """
    fingerprints = {name: data.fingerprint(name) for name in launches.datasets(missing)}
    for name, kept in {item for sitting in sittings for item in sitting.get("data", {}).items()}:
        if name in fingerprints:
            launches.check_data(name, kept)
    return Conditions(
        device=place.device,
        how=_how(place, how, missing, sittings),
        data=fingerprints,
        versions=machine.versions(),
        source_sha256=records.source_digest(),
    )


def _how(place: Executor, asked: str, missing: list[Run], sittings: list[dict[str, Any]]) -> How:
    if asked != "auto":
        try:
            return speed.usable(speed.parse(asked), place.device)
        except ValueError as error:
            raise RecordError(f"--how {asked}: {error}") from None
    if sittings:
        latest = max(sittings, key=lambda sitting: sitting["started"])
        try:
            return speed.usable(How(**latest.get("how", {})), place.device)  # older ones say none: plain
        except (TypeError, ValueError):
            pass  # another device now, or another bnlib: choose anew
    return place.choose(missing) if missing else How()


def _seat(finished: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The sittings of the finished runs in order of time; each run's own becomes its index among them.

    Every run describes its sitting as it was when the run was finished: the same but for the `seconds` and,
    on a cluster, the `workers`, of which the largest count.
    """
    sittings: dict[bytes, dict[str, Any]] = {}
    grows = ("seconds", "workers")
    keys = {digest: canonical(item["sitting"] | dict.fromkeys(grows)) for digest, item in finished.items()}
    for digest, key in keys.items():
        found = finished[digest]["sitting"]
        known = sittings.get(key, found)
        sittings[key] = found | {name: max(known[name], found[name]) for name in grows}
    order = sorted(sittings, key=lambda key: sittings[key]["started"])
    for digest, key in keys.items():
        finished[digest]["sitting"] = order.index(key)
    return [sittings[key] for key in order]


def _command(experiment: Experiment, scale: str, runs: list[Run], how: str) -> str:
    """What makes all of `runs` from nothing."""
    seeds = len({run.seed for run in runs})
    return (
        f"bnlib run {experiment.name} --scale {scale}"
        + (f" --seeds {seeds}" if seeds != experiment.seeds[scale] else "")
        + (f" --how {how}" if how != "auto" else "")
    )
