"""Recorded results: one Parquet table and one provenance file per experiment and scale.

    ROOT/NAME/SCALE.parquet    run, arm, seed, step, layer, metric, value: the same runs give the same bytes
    ROOT/NAME/SCALE.json       provenance: every run's settings and the sitting it was made in, checksums
    ROOT/NAME/SCALE.partial/   finished runs of a recording that goes on or was interrupted

A sitting is one call of `bnlib.recording.record`: when it `started`, its `device`, `versions`, `workers` and
`command`, the hash of the code (`source_sha256`), and its `seconds`, from its start until the last of its
runs was finished (what an interruption cut off is not counted).  Since several machines can share a
recording, it also says by which `executor` runs were spread, `how` they were trained (see
`bnlib.updates.How`) and on which `data` (fingerprint by name); without these it was one machine, trained
plainly.  A record that was resumed or extended, or made on machines of several kinds, has several `sittings`,
in order of time; each run names its own by its index (`sitting`).

ROOT is `$BNLIB_RECORDS` if it is set, and else the folder `recorded` inside the package, so that an installed
bnlib carries the results that the book shows.  No pickle, no torch.  Files appear whole or not at all.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bnlib.specs import SCALES, Experiment, Run, canonical, setting

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "bnlib-record"
VERSION = 2
# Everything whose code can change a result; its hash is part of the provenance.
COMPUTE_SOURCES = (
    *("data", "images", "cifar_batches", "norms", "lp_norms", "alternative_norms", "noise", "models"),
    *("theory", "probes", "training", "updates", "together", "identities", "invariances", "directions"),
    *("signal_propagation", "surfaces"),
)
Row = tuple[int, str, str, float]  # step, layer, metric, value

_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("run", _TEXT),
        ("arm", _TEXT),
        ("seed", pa.int32()),
        ("step", pa.int32()),
        ("layer", _TEXT),
        ("metric", _TEXT),
        ("value", pa.float64()),
    ]
)


class RecordError(RuntimeError):
    """A record that is missing, damaged, foreign, too new or old, or in use; the message says what to do."""


# What the system says when there is no room: none on the disk, none in the quota, none for a file so large.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _unwritable(path: Path, error: OSError) -> RecordError:
    cure = "free some space" if error.errno in _NO_ROOM else "set BNLIB_RECORDS to a folder of yours"
    return RecordError(
        f"{path} cannot be written ({error.strerror or error}): {cure}, then continue with --resume"
    )


def _unreadable(path: Path, error: OSError) -> RecordError:
    return RecordError(f"{path} cannot be read ({error.strerror or error}): make it readable or record again")


def root() -> Path:
    """The folder in which records are looked up and written."""
    chosen = os.environ.get("BNLIB_RECORDS")
    return Path(chosen) if chosen else Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Record:
    """One experiment at one scale as it was recorded."""

    name: str
    scale: str
    table: pa.Table
    provenance: dict[str, Any]
    _frames: dict[str | None, pd.DataFrame] = field(default_factory=dict, compare=False, repr=False)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Each run's id, arm, seed, settings, digest, seconds, sitting and, if it diverged, when."""
        return self.provenance["runs"]

    @property
    def sittings(self) -> list[dict[str, Any]]:
        """When, on what and with which code the runs were made, in order of time; see the module's text."""
        return self.provenance["sittings"]

    @property
    def seeds(self) -> int:
        return len({run["seed"] for run in self.runs})

    def frame(self, *settings: str, metric: str | None = None) -> pd.DataFrame:
        """The table as pandas, one row per value; each name in `settings` becomes a column from the run's
        settings."""
        if metric not in self._frames:  # many claims read the same rows, and reading them is slow
            self._frames[metric] = self._read(metric)
        frame = self._frames[metric].copy()
        for name in settings:
            values = {run["id"]: setting(run["settings"], name) for run in self.runs}
            frame[name] = frame["run"].map(values)
        return frame

    def _read(self, metric: str | None) -> pd.DataFrame:
        table = self.table
        if metric is not None:
            table = table.filter(pc.equal(table["metric"], metric))
            if table.num_rows == 0:
                raise RecordError(f"the record {self.name}/{self.scale} holds no metric {metric!r}")
        frame = table.to_pandas(use_threads=False)
        for column in ("run", "arm", "layer", "metric"):
            frame[column] = frame[column].astype(str)
        return frame


# -- sealed JSON: a file that says what it is and carries its own checksum -------------------------------


def _seal(kind: str, body: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(canonical(body)).hexdigest()
    sealed = {"format": kind, "version": VERSION, "sha256": digest, **body}
    return json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def _unseal(kind: str, path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError):  # no JSON, or none that anyone would write
        raise RecordError(f"{path} is damaged (not readable as JSON): restore it or record again") from None
    if not isinstance(body, dict) or body.pop("format", None) != kind:
        raise RecordError(f"{path} is not a {kind} file: move it away or record again")
    version = body.pop("version", None)
    if type(version) is not int:
        raise RecordError(f"{path} is damaged (it has no version): restore it or record again")
    if version > VERSION:
        raise RecordError(
            f"{path} was written by a newer bnlib (format {version}, this one reads {VERSION}): upgrade bnlib"
        )
    if version < VERSION:
        raise RecordError(
            f"{path} was written by an older bnlib (format {version}, this one reads {VERSION}): record again"
        )
    try:
        intact = body.pop("sha256", None) == hashlib.sha256(canonical(body)).hexdigest()
    except ValueError:  # NaN, which Python reads and which no checksum covers
        intact = False
    if not intact:
        raise RecordError(f"{path} is damaged (its checksum does not match): restore it or record again")
    return body


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` is either the old file or the whole new one, whenever the process
    dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise _unwritable(path, error) from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Without this a power cut may undo a renaming, and the partial folder would be gone already."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- reading ---------------------------------------------------------------------------------------------


def recorded() -> list[tuple[str, str]]:
    """Every (experiment, scale) that has a record, in order of name and scale."""
    found = [(path.parent.name, path.stem) for path in root().glob("*/*.json") if path.stem in SCALES]
    return sorted(found, key=lambda item: (item[0], SCALES.index(item[1])))


def best_scale(name: str) -> str | None:
    """The largest scale at which an experiment is recorded."""
    scales = [scale for found, scale in recorded() if found == name]
    return scales[-1] if scales else None


def load(name: str, scale: str | None = None) -> Record:
    """Load a record (the largest recorded scale if none is named) and check all of it.

    Raises RecordError if it is missing, truncated, changed, of another kind, or of another format version.
    """
    chosen = scale or best_scale(name)
    if chosen is None or not (root() / name / f"{chosen}.json").exists():
        where = f"at {scale} scale " if scale else ""
        raise RecordError(
            f"{name} is not recorded {where}yet: run `bnlib run {name} --scale {scale or 'smoke'}`"
        )
    provenance = _unseal(FORMAT, root() / name / f"{chosen}.json")
    if (whose := (provenance.get("experiment"), provenance.get("scale"))) != (name, chosen):
        raise RecordError(
            f"{root() / name / f'{chosen}.json'} belongs to {whose[0]} at {whose[1]} scale: it was copied to "
            "the wrong place"
        )
    path = root() / name / f"{chosen}.parquet"
    if not path.exists():
        raise RecordError(f"{path} is missing beside its provenance file: restore it or record again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    if hashlib.sha256(content).hexdigest() != provenance.get("table_sha256"):
        raise RecordError(
            f"{path} is damaged or foreign (its checksum is not the recorded one): restore it or record again"
        )
    # Small files: threads would not pay, and pyarrow may crash at exit once its pools have run.
    table = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(use_threads=False)
    if not table.schema.equals(SCHEMA):
        raise RecordError(f"{path} does not have the columns of a record: restore it or record again")
    return Record(name, chosen, table, provenance)


# -- writing: one run at a time, then the whole record ---------------------------------------------------


def partial_folder(name: str, scale: str) -> Path:
    """Where the finished runs of a recording wait until it is whole."""
    return root() / name / f"{scale}.partial"


def unfinished(name: str, scale: str) -> int:
    """How many finished runs an interrupted recording has left."""
    return len(list(partial_folder(name, scale).glob("*.json")))


def unfinished_seeds(name: str, scale: str) -> int:
    """How many seeds the finished runs of an interrupted recording go up to."""
    seeds = [0]
    for path in partial_folder(name, scale).glob("*.json"):
        with suppress(RecordError):  # a damaged one is made again
            seeds.append(1 + _unseal(f"{FORMAT}-run", path).get("seed", -1))
    return max(seeds)


def save_run(
    name: str, scale: str, run: Run, rows: Iterable[Row], seconds: float, sitting: dict[str, Any]
) -> None:
    """Keep one finished run, with the description of its sitting, until the record is whole."""
    body = {
        "id": run.id,
        "seed": run.seed,
        "digest": run.digest,
        "seconds": seconds,
        "sitting": sitting,
        "rows": [list(row) for row in rows],
    }
    write_atomically(partial_folder(name, scale) / f"{run.digest}.json", _seal(f"{FORMAT}-run", body))


def load_run(name: str, scale: str, run: Run) -> dict[str, Any] | None:
    """A finished run of an interrupted recording: its rows, seconds and sitting (the description itself).

    None if there is none, or if it cannot be used (damaged, another run's, another format version) and must
    run again.
    """
    path = partial_folder(name, scale) / f"{run.digest}.json"
    if not path.exists():
        return None
    try:
        kept = _unseal(f"{FORMAT}-run", path)
        if kept.get("digest") == run.digest:
            return kept
    except RecordError:
        if not os.access(path, os.R_OK):
            raise
    try:
        path.unlink()
    except OSError as error:
        raise _unwritable(path, error) from None
    return None


def rows_of(record: Record, run: Run) -> dict[str, Any] | None:
    """A run's part of a finished record, in the form of `load_run`; None if the record does not hold it."""
    kept = next((item for item in record.runs if item["digest"] == run.digest), None)
    if kept is None:
        return None
    part = record.table.filter(pc.equal(record.table["run"], run.id))
    columns = [part[column].to_pylist() for column in ("step", "layer", "metric", "value")]
    return {
        "id": run.id,
        "digest": run.digest,
        "seconds": kept["seconds"],
        "sitting": record.sittings[kept["sitting"]],
        "rows": list(zip(*columns, strict=True)),
    }


def save(
    name: str, scale: str, runs: list[Run], finished: dict[str, dict[str, Any]], provenance: dict[str, Any]
) -> Record:
    """Write the record of `runs`, and remove the partial folder.

    finished: by digest, each run's `rows` and what else the record shall say of it (`seconds`, and `sitting`
    as an index).  provenance: what the record shall say of all of them (`sittings`, `run_seconds`).

    The table goes first and the provenance, which holds its checksum, last: a kill in between is seen by
    `load` and mended by resuming, because the finished runs are still there.
    """
    columns: dict[str, list[Any]] = {field.name: [] for field in SCHEMA}
    described = []
    for run in runs:
        about = dict(finished[run.digest])
        rows = about.pop("rows")
        for column, values in zip(("step", "layer", "metric", "value"), zip(*rows, strict=True), strict=True):
            columns[column].extend(values)
        for column, value in (("run", run.id), ("arm", run.arm), ("seed", run.seed)):
            columns[column].extend([value] * len(rows))
        # `diverged_at`, or `diverged_at[NAME]` where a run trains several networks.
        diverged = [step for step, _, metric, _ in rows if metric.split("[")[0] == "diverged_at"]
        described.append(
            {
                "id": run.id,
                "arm": run.arm,
                "seed": run.seed,
                "task": run.task,
                "settings": dict(run.settings),
                "digest": run.digest,
                "diverged_at": min(diverged, default=None),
                **about,
            }
        )
    table = pa.table(columns, schema=SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    content = sink.getvalue().to_pybytes()
    body = {
        **provenance,
        "experiment": name,
        "scale": scale,
        "runs": described,
        "rows": table.num_rows,
        "table_sha256": hashlib.sha256(content).hexdigest(),
    }
    folder = root() / name
    write_atomically(folder / f"{scale}.parquet", content)
    write_atomically(folder / f"{scale}.json", _seal(FORMAT, body))
    shutil.rmtree(partial_folder(name, scale), ignore_errors=True)
    return load(name, scale)


@contextmanager
def recording_lock(name: str, scale: str) -> Iterator[None]:
    """Keep a second process from recording the same experiment at the same scale; freed by the system after a
    kill."""
    from filelock import FileLock, Timeout

    path = root() / name / f"{scale}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file that merely exists, filelock's way where the system has no locks, would outlive a kill.
        lock = FileLock(path, fallback_to_soft=False)
        lock.acquire(timeout=0)
    except Timeout:
        raise RecordError(
            f"another process is recording {name} at {scale} scale: wait for it or stop it"
        ) from None
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise _unwritable(path, error) from None
        raise RecordError(
            f"the file system of {path.parent} knows no locks: set BNLIB_RECORDS to a folder on another one"
        ) from None
    try:
        # What a killed process was writing; under the lock nobody else writes files of these names.
        for litter in path.parent.glob(f".{scale}.*"):
            with suppress(OSError):
                litter.unlink()
        yield
    finally:
        lock.release()


# -- checking --------------------------------------------------------------------------------------------


@cache
def source_digest() -> str:
    """SHA-256 over the code, without comments and docstrings, of the modules that settle a result.

    As it was when this process first asked: the code that runs does not change with its files.
    """
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in (
        p for name in COMPUTE_SOURCES for p in [here / f"{name}.py", *sorted(here.glob(f"{name}/*.py"))]
    ):
        if not path.exists():
            continue  # a package, not a module
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node) is not None
            ):
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def compare(record: Record, experiment: Experiment) -> list[str]:
    """What keeps a record from being the declared experiment's: one sentence each, none if all is well."""
    declared = {
        run.id: run for run in experiment.all_runs(record.scale, max(run["seed"] for run in record.runs) + 1)
    }
    problems = []
    for kept in record.runs:
        run = declared.pop(kept["id"], None)
        if run is None:
            problems.append(f"holds the run {kept['id']!r}, which is no longer declared")
        elif run.digest != kept["digest"]:
            names = sorted(set(run.settings) | set(kept["settings"]))
            changed = [n for n in names if run.settings.get(n) != kept["settings"].get(n)] or ["task or arm"]
            problems.append(f"run {kept['id']!r} was recorded with other settings ({', '.join(changed)})")
    problems += [f"lacks the declared run {run_id!r}" for run_id in declared]
    return problems
