"""The command line: `bnlib list | run | verify | repeat | claims | execute`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from bnlib import __version__, claims, experiments, records
from bnlib.specs import SCALES

MANY_SEEDS = 10_000  # more are a slip of the keyboard, and would fill the memory before anything is said


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 0 if all went well, 1 if it did not, 2 for a wrong call."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print(f"bnlib: stopped{options.kept}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `bnlib list | head`
        sys.stderr.close()
        return 0
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("bnlib"):
            raise
        extra = "[cluster]" if error.name in ("dask", "distributed") else options.extra
        print(f'bnlib: this needs {error.name}: pip install "bnlib{extra}"', file=sys.stderr)
        return 1
    except Exception as error:
        if not _is_expected(error):
            raise
        print(f"bnlib: {error.args[0] if isinstance(error, LookupError) else error}", file=sys.stderr)
        return 1


def _is_expected(error: Exception) -> bool:
    """Errors whose message is a sentence for the reader; everything else is a bug and shows its traceback."""
    expected: tuple[type[Exception], ...] = (records.RecordError, LookupError, FileNotFoundError)
    # Looked up by module, so that a command that needs no torch does not import it to fail politely.
    for module, names in {
        "bnlib.images": ["DataError"],
        "bnlib.notebook": ["ExecutionError", "NotebookError"],
    }.items():
        if module in sys.modules:
            expected += tuple(getattr(sys.modules[module], name) for name in names)
    return isinstance(error, expected) and not isinstance(error, KeyError | IndexError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bnlib",
        description="Record the experiments of the book, judge its claims, execute its chapters.",
    )
    parser.add_argument("--version", action="version", version=f"bnlib {__version__}")
    parser.set_defaults(extra="")  # what of bnlib a command needs beside the base
    parser.set_defaults(kept="")  # what an interrupted command leaves to go on with
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    lister = commands.add_parser("list", help="the declared experiments and what is recorded of them")
    lister.set_defaults(command=_list)

    runner = commands.add_parser("run", help="run an experiment and record it")
    runner.add_argument("name", metavar="NAME", help="an experiment (see `bnlib list`), or `all`")
    runner.add_argument("--scale", choices=SCALES, default="smoke", help="how large (default: smoke)")
    runner.add_argument("--seeds", type=_seeds, metavar="N", help="seeds 0 .. N-1 (default: as declared)")
    runner.add_argument("--resume", action="store_true", help="keep the runs that are finished already")
    runner.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    runner.add_argument(
        "--workers", type=_positive, metavar="N", help="processes on a CPU (default: one per core)"
    )
    runner.add_argument(
        "--executor",
        choices=("processes", "dask", "in-turn"),
        help="where the runs are done (default: processes on a CPU, in turn on a GPU)",
    )
    runner.add_argument(
        "--scheduler", metavar="ADDRESS", help="dask's, as tcp://HOST:8786 or the path of its scheduler file"
    )
    runner.add_argument(
        "--how",
        default="auto",
        metavar="auto|plain|KEY=VALUE,...",
        help="how to train (default: as the kept runs, or the fastest by a short measurement)",
    )
    kept = "; finished runs are kept, continue with --resume"
    runner.set_defaults(command=_run, extra="[compute]", kept=kept)

    verifier = commands.add_parser(
        "verify", help="check every record against its checksums and its declaration"
    )
    verifier.set_defaults(command=_verify)

    repeater = commands.add_parser("repeat", help="do some recorded runs again and compare every number")
    repeater.add_argument("names", nargs="*", metavar="NAME", help="an experiment (default: all recorded)")
    repeater.add_argument("--scale", choices=SCALES, help="of the records (default: each one's best)")
    repeater.add_argument(
        "--runs", type=_positive, default=1, metavar="N", help="of each record, drawn at random (default: 1)"
    )
    repeater.add_argument(
        "--pick", type=int, default=0, metavar="N", help="another number draws others (default: 0)"
    )
    repeater.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    repeater.add_argument(
        "--workers", type=_positive, metavar="N", help="processes on a CPU (default: one per core)"
    )
    repeater.set_defaults(command=_repeat, extra="[compute]", kept="; nothing was written")

    judge = commands.add_parser("claims", help="the scoreboard: every claim and its verdict")
    judge.add_argument("--json", action="store_true", help="as JSON")
    judge.set_defaults(command=_claims)

    executor = commands.add_parser(
        "execute", help="execute chapters with papermill, in the order of the book"
    )
    executor.add_argument(
        "chapters", nargs="*", metavar="CHAPTER", help="for example 01-mechanics (default: all)"
    )
    executor.add_argument(
        "--scale", choices=("recorded", *SCALES), default="recorded", help="default: replay the records"
    )
    executor.add_argument(
        "--check", action="store_true", help="change nothing; fail if the outputs would differ"
    )
    executor.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to write (default: in place if recorded)"
    )
    executor.set_defaults(command=_execute, extra="[chapters]")
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def _seeds(text: str) -> int:
    value = _positive(text)
    if value > MANY_SEEDS:
        raise argparse.ArgumentTypeError(f"{text} seeds are more than {MANY_SEEDS}")
    return value


def _list(options: argparse.Namespace) -> int:
    known = records.recorded()
    for experiment in experiments.EXPERIMENTS.values():
        scales = [scale for name, scale in known if name == experiment.name]
        print(f"{experiment.name:<13} {experiment.title}")
        print(f"{'':<13} {experiment.question}")
        runs = ", ".join(f"{scale} {len(experiment.all_runs(scale))}" for scale in SCALES)
        print(f"{'':<13} chapter {experiment.chapter}; runs: {runs}")
        print(f"{'':<13} recorded: {', '.join(scales) or 'nothing yet'}")
    return 0


def _run(options: argparse.Namespace) -> int:
    names = list(experiments.EXPERIMENTS) if options.name == "all" else [experiments.find(options.name).name]
    from bnlib import recording  # torch: only when there is something to run

    for name in names:
        clock = time.monotonic()
        record = recording.record(
            name,
            options.scale,
            seeds=options.seeds,
            resume=options.resume,
            device=options.device,
            workers=options.workers,
            executor=options.executor,
            scheduler=options.scheduler,
            how=options.how,
        )
        diverged = sum(run["diverged_at"] is not None for run in record.runs)
        print(
            f"{name}: {len(record.runs)} runs of {record.seeds} seeds recorded at {record.scale} scale in "
            f"{time.monotonic() - clock:.0f} s ({diverged} diverged): "
            f"{records.root() / name / record.scale}.parquet"
        )
    return 0


def _verify(options: argparse.Namespace) -> int:
    found = records.recorded()
    if not found:
        print(f"no records in {records.root()}")
        return 0
    failures = 0
    for name, scale in found:
        good = ""
        try:
            record = records.load(name, scale)
            problems = records.compare(record, experiments.find(name))
            good = f"good ({len(record.runs)} runs, {record.seeds} seeds{_code_news(record)})"
        except (records.RecordError, LookupError) as error:
            problems = [str(error.args[0])]
        failures += bool(problems)
        print(f"{name}/{scale}: {'; '.join(problems) or good}")
    return 1 if failures else 0


def _code_news(record: records.Record) -> str:
    """Is the code another one than recorded these runs? No failure: most changes of the code change no
    result. But whoever verifies should know."""
    now = records.source_digest()
    older = sum(record.sittings[run["sitting"]]["source_sha256"] != now for run in record.runs)
    some = f" {older} of {len(record.runs)} runs" if older < len(record.runs) else ""
    return f", the code has changed since{some}" if older else ""


def _repeat(options: argparse.Namespace) -> int:
    known = [name for name, scale in records.recorded() if options.scale in (None, scale)]
    names = [experiments.find(name).name for name in options.names] or known
    if not names:
        print(f"no records in {records.root()}")
        return 0
    from bnlib import repeating  # torch: only when there is something to do

    done = []
    for repeat in repeating.repeat(
        names,
        options.scale,
        runs=options.runs,
        pick=options.pick,
        workers=options.workers,
        device=options.device,
    ):
        repeating.tqdm.write(str(repeat))
        done.append(repeat)
    same = sum(not repeat.difference.unequal for repeat in done)
    rounded = sum(repeat.difference.apart is None for repeat in done) - same
    apart = len(done) - same - rounded
    print(f"{len(done)} runs again: {same} the same bits, {rounded} rounded otherwise, {apart} apart")
    return 0 if all(repeat.good for repeat in done) else 1


def _claims(options: argparse.Namespace) -> int:
    rows = claims.scoreboard()
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(f"{row['verdict'].upper():<13} {row['id']:<19} {row['statement']}")
        if row["value"] is not None:
            value, low, high = (f"{row[name]:.{max(4, row['digits'])}g}" for name in ("value", "low", "high"))
            interval = f"{value} [{low}, {high}] {row['unit']}".strip()
            seeds = f"{row['n_seeds']} seeds, {row['scale']} scale"
            print(f"{'':<13} {'':<19} {interval}; criterion {row['criterion']}; {seeds}")
    return 0


def _execute(options: argparse.Namespace) -> int:
    from bnlib import notebook

    root = Path.cwd()
    paths = notebook.chapters(root)
    if options.chapters:
        by_name = {path.stem: path for path in paths}
        unknown = [name for name in options.chapters if Path(name).stem not in by_name]
        if unknown:
            raise LookupError(f"there is no chapter {unknown[0]!r}: choose from {', '.join(by_name)}")
        paths = [by_name[Path(name).stem] for name in options.chapters]
    written = notebook.execute(paths, scale=options.scale, check=options.check, output=options.output)
    for path in written:
        print(f"wrote {path}")
    if options.check:
        print(f"{len(paths)} chapters: a fresh execution gives the committed bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
