"""What replaying costs: `python benchmarks/replay.py [--write] [--quick | --here]`.

Records read and verified, claims judged, every recorded figure of every chapter built; how long imports take;
all of this again in an empty environment of the wheel and what the display side needs, without torch; every
notebook executed and compared by nbval on two cores.

`--here` stops after the figures, and `--quick` builds one per chapter: both need only the extra `display`.
The rest needs `test` and a package index.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import recorded_figures
import report

from bnlib import claims, notebook, records
from bnlib.__main__ import main as bnlib_command

ROOT = Path(__file__).resolve().parents[1]
COMPUTE = ("torch", "torchvision", "sklearn", "tqdm", "filelock")
SHOWN = ("records", "claims", "charts", "widgets", "notebook")  # modules whose import is timed
ROUNDS = 5


def seconds(work: Callable[[], Any], rounds: int = 1) -> float:
    """The median time of `rounds` calls."""

    def once() -> float:
        clock = time.perf_counter()
        work()
        return time.perf_counter() - clock

    return median(once() for _ in range(rounds))


def succeed(command: list[str | Path], **options: Any) -> str:
    """What a command prints; where it fails, the end of what it said ends the benchmark."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}")
    return done.stdout


# --- in this process ---


def measure_records(goals: report.Goals, rounds: int) -> None:
    """Reading, verifying, judging."""
    names = records.recorded()
    times = [seconds(partial(records.load, *name), rounds) for name in names]
    size = sum(path.stat().st_size for path in records.root().rglob("*") if path.is_file())
    goals.remark(f"records ({len(names)})", f"{report.number(size / 1e6)} MB")
    goals.most("reading a record, median", 50, 1000 * median(times), "ms")
    goals.most("reading a record, the slowest", 500, 1000 * max(times), "ms")
    goals.most("reading all records", 3, sum(times), "s")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        verifying = seconds(lambda: _verified(said))
    goals.most("`bnlib verify`, all records", 5, verifying, "s")
    rows: list[dict] = []
    goals.most("judging all claims", 10, seconds(lambda: rows.extend(claims.scoreboard())), "s")
    missing = [row["id"] for row in rows if row["verdict"] == "not recorded"]
    goals.most(f"claims without a record, of {len(rows)}", 0, len(missing))


def _verified(said: io.StringIO) -> None:
    if bnlib_command(["verify"]):
        raise SystemExit(f"bnlib verify failed:\n{said.getvalue()}")


def measure_figures(goals: report.Goals, only_first: bool) -> list[list[str]]:
    """Every recorded figure, chapter by chapter, from records that are read anew."""
    notebook.setup()
    rows, times, count = [], [], 0
    for chapter in recorded_figures.FIGURES:
        recorded_figures.load.cache_clear()
        clock, built = time.perf_counter(), 0
        for spec in recorded_figures.specs(chapter):
            built += bool(spec)
            if only_first:
                break
        times.append(time.perf_counter() - clock)
        count += built
        rows.append([chapter, str(built), report.number(times[-1])])
    goals.most("a chapter's recorded figures, median", 2, median(times), "s")
    goals.most("a chapter's recorded figures, the slowest", 5, max(times), "s")
    goals.remark("recorded figures, all chapters", f"{count} figures, {report.number(sum(times))} s")
    return rows


def measure_here(goals: report.Goals, quick: bool) -> list[list[str]]:
    """All that a reader without torch can do; also what the empty environment is asked to do."""
    measure_records(goals, 1 if quick else ROUNDS)
    rows = measure_figures(goals, quick)
    goals.most("modules of the compute side imported so far", 0, len(set(COMPUTE) & set(sys.modules)))
    return rows


# --- in other processes ---


def measure_imports(goals: report.Goals) -> None:
    """Wall clock of a fresh interpreter, less that of one that imports nothing."""

    def started(code: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT), ROUNDS)

    bare = started("pass")
    for module in SHOWN:
        goals.most(f"`import bnlib.{module}`", 2, started(f"import bnlib.{module}") - bare, "s")
    compute = started("import bnlib.recording") - bare
    goals.remark("`import bnlib.recording`, which brings torch", f"{report.number(compute)} s")


def measure_installation(goals: report.Goals) -> None:
    """The wheel into an empty environment, and all of the above in there."""
    with tempfile.TemporaryDirectory() as scratch:
        build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
        name = succeed([sys.executable, "-c", build, scratch], cwd=ROOT).split()[-1]
        wheel, place = Path(scratch, name), Path(scratch, "environment")
        goals.most("the wheel, records included", 20, wheel.stat().st_size / 1e6, "MB")
        succeed([sys.executable, "-m", "venv", "--without-pip", place])
        python = place / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", f"{wheel}[display]"]
        goals.remark(
            "`pip install` of it for the display side", f"{report.number(seconds(lambda: succeed(pip)))} s"
        )
        size = sum(path.lstat().st_size for path in place.rglob("*") if not path.is_dir())
        goals.most("that environment", 600, size / 1e6, "MB")
        absent = f"import importlib.util as u; print(*(n for n in {COMPUTE} if u.find_spec(n)))"
        found = succeed([python, "-c", absent], cwd=scratch).split()
        goals.most("packages of the compute side in it", 0, len(found))
        clock = seconds(lambda: succeed([python, Path(__file__).resolve(), "--here"], cwd=scratch))
        goals.remark("records, claims and figures replayed in it", f"{report.number(clock)} s")


def measure_notebooks(goals: report.Goals) -> None:
    """Every chapter executed and compared with its committed outputs: two processes on two cores."""

    if hasattr(os, "sched_setaffinity"):  # what this process may use, so may those that it starts
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    pytest = [sys.executable, "-m", "pytest", "-q", "-n", "2", "chapters"]
    elapsed = seconds(lambda: succeed(pytest, cwd=ROOT))
    goals.most("nbval, all notebooks, two processes on two cores", 300, elapsed, "s")


def main() -> None:
    """Measure, print, and with --write put it into the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    parser.add_argument("--quick", action="store_true", help="one figure per chapter: does it work?")
    parser.add_argument("--here", action="store_true", help="without the environment and the notebooks")
    options = parser.parse_args()
    if options.write and (options.quick or options.here):
        parser.error("--write wants all measurements: leave --quick and --here away")
    load = os.getloadavg()[0]
    goals = report.Goals()
    rows = measure_here(goals, options.quick)
    if not (options.quick or options.here):
        measure_imports(goals)
        measure_installation(goals)
        measure_notebooks(goals)
    text = "\n\n".join(
        [
            report.machine("pyarrow", "pandas", "altair", load=load),
            goals.table(),
            report.table(["chapter", "recorded figures", "s"], rows),
        ]
    )
    print(text)
    if options.write:
        report.write("replay", text)


if __name__ == "__main__":
    main()
