"""What goes wrong on other people's machines, done on purpose: what was done, and what was seen.

    python benchmarks/faults.py [--write] [--quick] [--seed N]

Recordings are killed, doubled, robbed of their disk, their folders and their data; records and data sets are
damaged.  Whatever happens, it must be said in one sentence without a traceback and with a non-zero exit
status, nothing that was finished may be lost, and going on must end in the very bytes of an undisturbed
recording.  For Linux; what needs a file system of its own mounts one in a namespace of its own, if it may.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import report

from bnlib import data, experiments, images, records
from bnlib.__main__ import main as bnlib
from bnlib.specs import Experiment, Run

# Digits, three networks per seed: start-up, runs and writing each take part of its seconds.
KILLED, SEEDS = "replication", "2"
QUICK_ONE = "least_squares"  # eight short runs per seed
PATIENCE = 120  # seconds
LONGEST = 300  # seconds


# --- what was seen ------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """One row: what was done, what must hold, how often it was done, and what else than that was seen."""

    what: str
    must: str
    times: int = 0
    wrong: list[str] = field(default_factory=list)

    def seen(self, *problems: str) -> None:
        """It was done once; `problems` are what did not hold, empty texts are none."""
        self.times += 1
        if found := [problem for problem in problems if problem]:
            self.wrong.append("; ".join(found))


@dataclass
class Campaign:
    """All rows, a folder to work in, and how much is done."""

    folder: Path
    quick: bool
    chance: random.Random
    faults: list[Fault] = field(default_factory=list)
    recorded: dict[tuple[str, ...], Path] = field(default_factory=dict)
    used: int = 0

    def fault(self, what: str, must: str) -> Fault:
        """A new row."""
        self.faults.append(Fault(what, must))
        return self.faults[-1]

    def fresh(self) -> Path:
        """An empty folder."""
        self.used += 1
        folder = self.folder / str(self.used)
        folder.mkdir()
        return folder

    def some(self, full: int, quick: int) -> int:
        """How many times something is done."""
        return quick if self.quick else full


# --- calling bnlib ------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What a call of bnlib came to; `status` is None if it raised."""

    status: int | None
    said: str

    def refused(self, *words: str) -> str:
        """What is wrong with it as a refusal that says these words; empty if nothing is."""
        lines = [line for line in self.said.splitlines() if line.startswith("bnlib: ")]
        if self.status == 1 and len(lines) == 1 and "Traceback" not in self.said:
            missing = [word for word in words if word not in lines[0]]
            return f"no word of {missing[0]!r}: {lines[0]}" if missing else ""
        return f"status {self.status}: {self.said[-300:]!r}"

    def went_well(self) -> str:
        """What is wrong with it as a success; empty if nothing is."""
        return "" if self.status == 0 else f"status {self.status}: {self.said[-300:]!r}"


@contextlib.contextmanager
def environment(**variables: Path | str) -> Iterator[None]:
    """These variables, and nothing that this process remembers of data sets."""
    data._loaded.clear()
    images._fingerprints.clear()
    with mock.patch.dict(os.environ, {name: str(value) for name, value in variables.items()}):
        yield


def call(*words: str, **variables: Path | str) -> Answer:
    """`bnlib WORDS` in this process, as if it were a new one."""
    said = io.StringIO()
    with environment(**variables), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            return Answer(bnlib(list(words)), said.getvalue())
        except Exception as error:
            return Answer(None, f"Traceback: {type(error).__name__}: {error}")


def recording(name: str, *more: str) -> list[str]:
    """The words that record an experiment at smoke scale."""
    return ["run", name, "--scale", "smoke", *more]


def started(*words: str, log: Path, **variables: Path | str) -> subprocess.Popen:
    """`bnlib WORDS` as a process of its own, the leader of a session of its own."""
    known = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.Popen(
        [sys.executable, "-m", "bnlib", *words],
        env=known,
        stdout=subprocess.DEVNULL,
        stderr=log.open("wb"),
        start_new_session=True,
    )


def ended(process: subprocess.Popen, log: Path) -> Answer:
    """What a process came to, once it has."""
    status = process.wait(timeout=PATIENCE)
    return Answer(status, log.read_text(errors="replace"))


def table(folder: Path, name: str) -> bytes:
    """The bytes of a record's table; none if there is no record."""
    path = folder / name / "smoke.parquet"
    return path.read_bytes() if path.exists() else b""


def identical(folder: Path, name: str, whole: Path) -> str:
    """What tells the recording in `folder` from the undisturbed one in `whole`; empty if nothing does."""
    if table(folder, name) != table(whole, name):
        return "the table differs"
    with environment(BNLIB_RECORDS=folder):
        runs = records.load(name, "smoke").runs
    with environment(BNLIB_RECORDS=whole):
        expected = records.load(name, "smoke").runs
    if [run["digest"] for run in runs] != [run["digest"] for run in expected]:
        return "other runs"
    left = {path.name for path in (folder / name).iterdir()} - {"smoke.parquet", "smoke.json", "smoke.lock"}
    return f"left lying: {', '.join(sorted(left))}" if left else ""


def undisturbed(campaign: Campaign, name: str, *more: str, **variables: Path | str) -> Path:
    """A folder with an undisturbed recording, in turn; made once."""
    if (name, *more) not in campaign.recorded:
        folder = campaign.fresh()
        answer = call(*recording(name, "--workers", "1", *more), BNLIB_RECORDS=folder, **variables)
        if answer.status != 0:
            raise SystemExit(f"An undisturbed recording must work first: {answer.said}")
        campaign.recorded[name, *more] = folder
    return campaign.recorded[name, *more]


# --- killed -------------------------------------------------------------------------------------------------


def alive(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def survivors(session: int) -> str:
    """Processes that outlive their killed parent by more than a few seconds."""
    deadline = time.monotonic() + 15
    while (left := alive(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return f"{len(left)} processes left" if left else ""


@dataclass(frozen=True)
class Moment:
    """When to kill: `delay` seconds after `finished` runs lie in the partial folder."""

    phase: str
    finished: int
    delay: float


def moments(campaign: Campaign, count: int, runs: int) -> list[Moment]:
    """A third in start-up, a third between two runs, a third while the record is written."""
    chance, drawn = campaign.chance, []
    for number in range(count):
        phase = ("runs", "writing", "start-up")[number % 3]
        finished = {"start-up": 0, "runs": chance.randrange(runs), "writing": runs}[phase]
        longest = {"start-up": 4.0, "runs": 0.5, "writing": 0.03}[phase]
        drawn.append(Moment(phase, finished, chance.uniform(0, longest)))
    return drawn


def kill_at(moment: Moment, process: subprocess.Popen, partial: Path) -> None:
    """Kill -9 the parent alone."""
    deadline = time.monotonic() + PATIENCE
    # The partial folder is gone once the record is written.
    while process.poll() is None and time.monotonic() < deadline:
        if moment.finished == 0 or len(list(partial.glob("*.json"))) >= moment.finished:
            break
        time.sleep(0.001)
    time.sleep(moment.delay)
    process.kill()
    process.wait()


def kills(campaign: Campaign, title: str, count: int, *options: str) -> None:
    """Kill a recording at random moments; after each, go on with --resume."""
    whole = undisturbed(campaign, KILLED, "--seeds", SEEDS)
    with environment(BNLIB_RECORDS=whole):
        runs = len(records.load(KILLED, "smoke").runs)
    fault = campaign.fault(
        f"kill -9 while recording {title}, at random moments of start-up, runs and writing; then --resume",
        "the bytes of an undisturbed recording, nothing left lying, no process left",
    )
    chosen = [(moment, campaign.fresh()) for moment in moments(campaign, count, runs)]

    def kill(moment: Moment, folder: Path) -> str:
        words = recording(KILLED, "--seeds", SEEDS, *options)
        process = started(*words, log=folder / "log", BNLIB_RECORDS=folder)
        kill_at(moment, process, folder / KILLED / "smoke.partial")
        return survivors(process.pid)

    with ThreadPoolExecutor(campaign.some(3, 2)) as side_by_side:
        left = list(side_by_side.map(lambda pair: kill(*pair), chosen))
    hits = sum(not (folder / KILLED / "smoke.json").exists() for _, folder in chosen)
    fault.what += f" ({hits} before the record was whole)"
    for (moment, folder), problem in zip(chosen, left, strict=True):
        (folder / "log").unlink()
        answer = call(
            *recording(KILLED, "--seeds", SEEDS, "--resume", "--workers", "1"), BNLIB_RECORDS=folder
        )
        found = [problem, answer.went_well() or identical(folder, KILLED, whole)]
        fault.seen(*(f"{moment}: {text}" for text in found if text))


def lost_workers(campaign: Campaign) -> None:
    """Kill -9 a worker process, as the system does when memory runs out; the parent goes on."""
    whole = undisturbed(campaign, KILLED, "--seeds", SEEDS)
    fault = campaign.fault(
        "kill -9 of a worker process while it trains", "the recording goes on to the same bytes"
    )
    for _ in range(campaign.some(3, 0)):
        folder = campaign.fresh()
        words = recording(KILLED, "--seeds", SEEDS, "--workers", "2")
        process = started(*words, log=folder / "log", BNLIB_RECORDS=folder)
        partial, deadline = folder / KILLED / "smoke.partial", time.monotonic() + PATIENCE
        while process.poll() is None and not list(partial.glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(campaign.chance.uniform(0, 0.3))
        # Python's own helper, which tidies up after them, is no worker.
        workers = [
            child
            for child in alive(process.pid)
            if child != process.pid and b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(campaign.chance.choice(workers), signal.SIGKILL)
        answer = ended(process, folder / "log")
        (folder / "log").unlink()
        fault.seen(answer.went_well() or identical(folder, KILLED, whole), survivors(process.pid))


def at_once(campaign: Campaign) -> None:
    """Two recordings at the same time."""
    whole = undisturbed(campaign, KILLED, "--seeds", SEEDS)
    other = undisturbed(campaign, QUICK_ONE, "--seeds", "1")
    same = campaign.fault(
        "two processes record the same experiment at once", "one records, the other says so and exits with 1"
    )
    different = campaign.fault("two processes record two experiments at once", "both are recorded")
    for fault, names in [(same, [KILLED, KILLED]), (different, [KILLED, QUICK_ONE])] * campaign.some(2, 0):
        folder = campaign.fresh()
        logs = [folder / f"log{number}" for number in range(2)]
        processes = [
            started(
                *recording(name, "--seeds", SEEDS if name == KILLED else "1", "--workers", "1"),
                log=log,
                BNLIB_RECORDS=folder,
            )
            for name, log in zip(names, logs, strict=True)
        ]
        answers = [ended(process, log) for process, log in zip(processes, logs, strict=True)]
        answers.sort(key=lambda answer: answer.status)
        found = [identical(folder, KILLED, whole), answers[0].went_well()]
        if fault is different:
            found += [identical(folder, QUICK_ONE, other), answers[1].went_well()]
        # The second may have come when the first was through; then it has recorded anew.
        elif answers[1].status != 0:
            found.append(answers[1].refused("another process is recording"))
        fault.seen(*found)


# --- no room, no permission ---------------------------------------------------------------------------------


def no_room(
    campaign: Campaign, fault: Fault, whole: Path, limited: Callable[[], Answer], folder: Path
) -> None:
    """Record where there is no room, then where there is."""
    answer = limited()
    if answer.status == 0:
        return  # it was enough
    refused = answer.refused("free some")
    again = call(*recording(QUICK_ONE, "--seeds", "1", "--resume", "--workers", "1"), BNLIB_RECORDS=folder)
    fault.seen(refused, again.went_well() or identical(folder, QUICK_ONE, whole))


def file_limits(campaign: Campaign) -> None:
    """A limit on the size of files, which works wherever this runs."""
    whole = undisturbed(campaign, QUICK_ONE, "--seeds", "1")
    fault = campaign.fault(
        "no file may grow beyond a random size (RLIMIT_FSIZE)",
        "one sentence, exit 1; with room, --resume gives the same bytes",
    )
    largest = max(path.stat().st_size for path in whole.rglob("*"))
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(campaign.some(10, 1)):
        folder, size = campaign.fresh(), campaign.chance.randrange(largest)

        def limited(folder: Path = folder, size: int = size) -> Answer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            try:
                words = recording(QUICK_ONE, "--seeds", "1", "--workers", "1")
                return call(*words, BNLIB_RECORDS=folder)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))

        no_room(campaign, fault, whole, limited, folder)


def mount(options: str, where: Path) -> None:
    """A file system in memory."""
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], check=True)


def remount(options: str, where: Path) -> None:
    """The same with other options."""
    subprocess.run(["mount", "-o", f"remount,{options}", where], check=True)


def full_disks(campaign: Campaign) -> None:
    """Inside a namespace: small disks of their own, which are full at random moments."""
    whole = undisturbed(campaign, QUICK_ONE, "--seeds", "1")
    must = "one sentence, exit 1; with room, --resume gives the same bytes"
    disk, page = campaign.folder / "disk", 4096

    def fill(fault: Fault, small: str, large: str) -> None:
        mount(small, disk)

        def limited() -> Answer:
            words = recording(QUICK_ONE, "--seeds", "1", "--workers", "1")
            answer = call(*words, BNLIB_RECORDS=disk)
            remount(large, disk)
            return answer

        no_room(campaign, fault, whole, limited, disk)
        subprocess.run(["umount", disk], check=True)

    fault = campaign.fault("the disk is full at a random moment (a tmpfs of random size)", must)
    for _ in range(campaign.some(12, 1)):
        pages = campaign.chance.randrange(1, 30 if not campaign.quick else 8)
        fill(fault, f"size={pages * page}", "size=16m")
    fault = campaign.fault("no more files may be made (a tmpfs of few inodes)", must)
    for number in range(3, campaign.some(9, 3)):
        fill(fault, f"size=16m,nr_inodes={number}", "nr_inodes=1000")


def read_only(campaign: Campaign, folder: Path, forbid: Callable[[bool], None], how: str) -> None:
    """A folder of records and one of data that nobody may write to."""
    whole = undisturbed(campaign, QUICK_ONE, "--seeds", "1")
    recorded, empty = folder / "records", folder / "data"
    shutil.copytree(whole, recorded)
    empty.mkdir()
    forbid(True)
    try:
        writing = campaign.fault(f"the folder of records is read-only ({how})", "one sentence, exit 1")
        for words in (recording(QUICK_ONE, "--seeds", "2", "--resume"), recording(TOY.name)):
            answer = call(*words, "--workers", "1", BNLIB_RECORDS=recorded)
            writing.seen(answer.refused("BNLIB_RECORDS"))
        reading = campaign.fault(f"the same is read ({how})", "verify and claims work")
        for words in (["verify"], ["claims"]):
            reading.seen(call(*words, BNLIB_RECORDS=recorded).went_well())
        missing = campaign.fault(f"the folder of data is read-only and empty ({how})", "one sentence, exit 1")
        records_elsewhere = campaign.fresh()
        words = ["run", KILLED, "--scale", "laptop", "--workers", "1"]
        answer = call(*words, BNLIB_RECORDS=records_elsewhere, BNLIB_DATA=empty)
        missing.seen(answer.refused("Read-only" if "mount" in how else "Permission", "BNLIB_DATA"))
    finally:
        forbid(False)
    writing.seen(identical(recorded, QUICK_ONE, whole))


def inside_namespace(campaign: Campaign) -> None:
    """What needs mounts; called by this script in a namespace of its own."""
    full_disks(campaign)
    place = campaign.folder / "read-only"
    mount("size=16m", place)
    read_only(campaign, place, lambda no: remount("ro" if no else "rw", place), "a mount of its own")
    subprocess.run(["umount", place], check=True)


def disks(campaign: Campaign, seed: int) -> None:
    """Full and read-only file systems, as far as this user can have some."""
    if may_mount():
        command = ["unshare", "--map-root-user", "--mount", sys.executable, __file__, "--inside"]
        command += ["--seed", str(seed), *(["--quick"] if campaign.quick else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        campaign.faults += [Fault(**row) for row in json.loads(done.stdout.splitlines()[-1])]
        return
    campaign.fault("the disk is full at a random moment", "not tried: this user may not mount one")
    if os.geteuid() == 0:
        campaign.fault("folders are read-only", "not tried: root may write everywhere")
        return
    place = campaign.fresh()

    def forbid(no: bool) -> None:
        for path in [place, *place.rglob("*")]:
            if path.is_dir():
                path.chmod(0o555 if no else 0o755)

    read_only(campaign, place, forbid, "permissions")


def may_mount() -> bool:
    """Whether this user may mount in a namespace of their own."""
    trial = "mount -t tmpfs tmpfs /mnt && umount /mnt"
    try:
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", trial]
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


# --- damaged records ----------------------------------------------------------------------------------------


def flipped(content: bytes, chance: random.Random) -> bytes:
    """The content with one bit changed."""
    bit = chance.randrange(8 * len(content))
    return content[: bit // 8] + bytes([content[bit // 8] ^ (1 << bit % 8)]) + content[bit // 8 + 1 :]


def damaged_records(campaign: Campaign) -> None:
    """Every file of a record in every bad state: refused in a sentence, or the very same."""
    whole = undisturbed(campaign, QUICK_ONE, "--seeds", "1")
    larger = undisturbed(campaign, QUICK_ONE, "--seeds", "2")
    good = {path.name: path.read_bytes() for path in (whole / QUICK_ONE).glob("smoke.[jp]*")}
    foreign = {path.name: path.read_bytes() for path in (larger / QUICK_ONE).glob("smoke.[jp]*")}
    folder = campaign.fresh()
    with environment(BNLIB_RECORDS=whole):
        expected = records.load(QUICK_ONE, "smoke")

    def load(files: dict[str, bytes]) -> str:
        shutil.rmtree(folder / QUICK_ONE, ignore_errors=True)
        (folder / QUICK_ONE).mkdir()
        for name, content in files.items():
            (folder / QUICK_ONE / name).write_bytes(content)
        try:
            with environment(BNLIB_RECORDS=folder):
                found = records.load(QUICK_ONE, "smoke")
        except records.RecordError as error:
            return f"{len(str(error).splitlines())} lines" if "\n" in str(error) else "refused"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        same = found.provenance == expected.provenance and found.table.equals(expected.table)
        return "the same" if same else "another content"

    def version(change: int) -> bytes:
        return json.dumps(json.loads(good["smoke.json"]) | {"version": records.VERSION + change}).encode()

    def each(what: str, bad: list[dict[str, bytes]], *allowed: str) -> None:
        fault = campaign.fault(what, " or ".join(allowed))
        for files in bad:
            fault.seen("" if (found := load({**good, **files})) in allowed else found)

    cuts = campaign.some(20, 5)
    each(
        "a file of a record is cut off, at every twentieth of its length",
        [{n: content[: k * len(content) // cuts]} for n, content in good.items() for k in range(cuts)],
        "refused",
    )
    each(
        "one bit of a file is another",
        [
            {name: flipped(content, campaign.chance)}
            for name, content in good.items()
            for _ in range(campaign.some(300, 40))
        ],
        "refused",
        "the same",  # white space, or a letter's other way of writing
    )
    each(
        "a file is empty, noise, of another kind, of another record, of an older or newer format",
        [
            *(
                {name: content}
                for name in good
                for content in (b"", b"\0" * 4096, b"PK\x03\x04", b"[]", b"{}")
            ),
            *({name: foreign[name]} for name in good),
            {"smoke.json": good["smoke.parquet"], "smoke.parquet": good["smoke.json"]},
            {"smoke.json": version(1)},
            {"smoke.json": version(-1)},
        ],
        "refused",
    )
    fault = campaign.fault(
        "a damaged record is verified, judged and recorded again",
        "verify and claims exit with 1; run gives the same bytes",
    )
    for name, content in good.items():
        load({**good, name: flipped(content[:-9], campaign.chance)})
        verified = call("verify", BNLIB_RECORDS=folder)
        judged = call("claims", BNLIB_RECORDS=folder)
        again = call(*recording(QUICK_ONE, "--seeds", "1", "--workers", "1"), BNLIB_RECORDS=folder)
        fault.seen(
            "" if verified.status == 1 and "Traceback" not in verified.said else verified.said,
            judged.refused(),
            again.went_well() or identical(folder, QUICK_ONE, whole),
        )


def damaged_runs(campaign: Campaign) -> None:
    """The finished runs of an interrupted recording, in every bad state."""
    whole = undisturbed(campaign, QUICK_ONE, "--seeds", "1")
    fault = campaign.fault(
        "finished runs of an interrupted recording are cut off, empty, noise, another run's, of another "
        "format; then --resume",
        "the bytes of an undisturbed recording",
    )
    chance = campaign.chance
    for _ in range(campaign.some(6, 1)):
        folder = campaign.fresh()
        interrupted(folder, QUICK_ONE, after=6)
        first, second, *others = sorted((folder / QUICK_ONE / "smoke.partial").glob("*.json"))
        one, two = first.read_bytes(), second.read_bytes()
        first.write_bytes(two)
        second.write_bytes(one)
        damage: list[Callable[[bytes], bytes]] = [
            lambda content: content[: chance.randrange(len(content))],
            lambda content: flipped(content, chance),
            lambda content: chance.choice([b"", b"\0" * 100, b"[" * 100_000, b"{}", b"null"]),
            lambda content: json.dumps(json.loads(content) | {"version": chance.choice([1, 99])}).encode(),
        ]
        for path, spoil in zip(others, damage, strict=False):
            path.write_bytes(spoil(path.read_bytes()))
        words = recording(QUICK_ONE, "--seeds", "1", "--resume", "--workers", "1")
        answer = call(*words, BNLIB_RECORDS=folder)
        fault.seen(answer.went_well() or identical(folder, QUICK_ONE, whole))


def interrupted(folder: Path, name: str, after: int, *more: str, **variables: Path | str) -> None:
    """A recording that ends after so many runs, as with Ctrl-C."""
    keep, left = records.save_run, [after]

    def until(*arguments: object) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        keep(*arguments)

    with mock.patch.object(records, "save_run", until):
        answer = call(*recording(name, "--workers", "1", *more), BNLIB_RECORDS=folder, **variables)
    if answer.status != 130:
        raise SystemExit(f"The recording should have been interrupted: {answer.said}")


# --- data ---------------------------------------------------------------------------------------------------


def toy_runs(scale: str, seed: int) -> list[Run]:
    """Two small networks on whatever passes for MNIST."""
    settings = {
        "dataset": "mnist",
        "model": {"name": "mlp", "depth": 1, "width": 8},
        "init": "glorot_uniform",
        "batch_size": 20,
        "steps": 10,
        "probes": {},
    }
    return [
        Run(arm, seed, {**settings, "norm": norm, "where": "everywhere", "lr": 0.1})
        for arm, norm in (("standard", "none"), ("bn", "batch"))
    ]


TOY = Experiment("toy_mnist", "Small networks on MNIST", "none", "Does it train?", toy_runs, {"smoke": 2})


def write_mnist(folder: Path, seed: int = 0) -> Path:
    """A hundred images of noise that pass for MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    arrays = {
        "x_train": noise.integers(0, 256, (80, 28, 28), dtype=np.uint8),
        "y_train": (np.arange(80) % 10).astype(np.uint8),
        "x_test": noise.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "y_test": (np.arange(20) % 10).astype(np.uint8),
    }
    np.savez_compressed(folder / "mnist.npz", **arrays)
    return folder


def changed_data(campaign: Campaign) -> None:
    """Images that are exchanged while a recording uses them, or between two sittings."""
    name = TOY.name
    same = write_mnist(campaign.fresh())
    whole = undisturbed(campaign, name, BNLIB_DATA=same)

    resumed = campaign.fault(
        "the data change between a kill and --resume",
        "one sentence, exit 1, no mixed record; with the old data, the same bytes",
    )
    for number in range(campaign.some(3, 1)):
        folder, place = campaign.fresh(), write_mnist(campaign.fresh())
        interrupted(folder, name, 1 + number, BNLIB_DATA=place)
        write_mnist(place, seed=1)
        words = recording(name, "--resume", "--workers", "1")
        answer = call(*words, BNLIB_RECORDS=folder, BNLIB_DATA=place)
        mixed = "a mixed record" if table(folder, name) else ""
        write_mnist(place)
        again = call(*words, BNLIB_RECORDS=folder, BNLIB_DATA=place)
        fine = again.went_well() or identical(folder, name, whole)
        resumed.seen(answer.refused("not the one that this recording began with"), mixed, fine)

    started_late = campaign.fault(
        "the data change between the start and the moment when the workers read them",
        "one sentence, exit 1, no record; with the old data, --resume gives the same bytes",
    )
    for _ in range(campaign.some(2, 1)):
        folder, place = campaign.fresh(), write_mnist(campaign.fresh())
        read = images.load

        def then_change(*arguments: object, read: Callable = read, place: Path = place) -> images.Arrays:
            found = read(*arguments)
            write_mnist(place, seed=1)
            return found

        with mock.patch.object(images, "load", then_change):  # in this process, not in the workers
            words = recording(name, "--executor", "processes", "--workers", "1", "--how", "plain")
            answer = call(*words, BNLIB_RECORDS=folder, BNLIB_DATA=place)
        mixed = "a mixed record" if table(folder, name) else ""
        write_mnist(place)
        words = recording(name, "--workers", "1", "--resume")
        again = call(*words, BNLIB_RECORDS=folder, BNLIB_DATA=place)
        fine = again.went_well() or identical(folder, name, whole)
        started_late.seen(answer.refused("not the one that this recording began with"), mixed, fine)


def damaged_data(campaign: Campaign) -> None:
    """A data file in every bad state, and none at all without a network."""
    place = write_mnist(campaign.fresh())
    path = place / "mnist.npz"
    good = path.read_bytes()
    with environment(BNLIB_DATA=place):
        expected = images.fingerprint("mnist")
    fault = campaign.fault(
        "a data file is cut off, or one bit of it is another", "refused, or the same images"
    )
    cuts = campaign.some(20, 5)
    bad = [good[: k * len(good) // cuts] for k in range(cuts)]
    bad += [flipped(good, campaign.chance) for _ in range(campaign.some(300, 40))]
    for content in bad:
        path.write_bytes(content)
        try:
            with environment(BNLIB_DATA=place):
                fault.seen("" if images.fingerprint("mnist") == expected else "other images")
        except images.DataError as error:
            fault.seen("" if "\n" not in str(error) else str(error))
        except Exception as error:
            fault.seen(f"{type(error).__name__}: {error}")
    recorded = campaign.fault("such data are to be trained on", "one sentence, exit 1, nothing written")
    path.write_bytes(good[: len(good) // 2])
    for workers in ("1", "2"):
        folder = campaign.fresh()
        words = recording(TOY.name, "--workers", workers)
        recorded.seen(call(*words, BNLIB_RECORDS=folder, BNLIB_DATA=place).refused("mnist.npz is damaged"))
    offline = campaign.fault("there are no data and no network", "one sentence, exit 1")
    with mock.patch.object(socket, "getaddrinfo", side_effect=socket.gaierror(-3, "no name server answers")):
        folder, nothing = campaign.fresh(), campaign.fresh()
        answer = call(*recording(TOY.name, "--workers", "1"), BNLIB_RECORDS=folder, BNLIB_DATA=nothing)
        left = [each.name for each in nothing.rglob("*") if each.suffix != ".lock"]
        offline.seen(
            answer.refused("could not be downloaded", "BNLIB_DATA"), f"left lying: {left}" if left else ""
        )


# --- memory -------------------------------------------------------------------------------------------------


def out_of_memory(campaign: Campaign) -> None:
    """A GPU's memory that does not suffice for several seeds at a time, simulated by an injected error."""
    import torch

    from bnlib import together

    train, name = together.run, TOY.name
    place = write_mnist(campaign.fresh())

    def at_most(seeds_that_fit: int) -> Callable:
        def run(settings: dict, *, seeds: list[int], **rest: object) -> list:
            if len(seeds) > seeds_that_fit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (injected).")
            return train(settings, seeds=seeds, **rest)

        return run

    fault = campaign.fault(
        "a launch of eight seeds runs out of memory (an injected error), once and twice",
        "it is split in halves, and the values are those of an undisturbed recording up to rounding",
    )
    options = ["--seeds", "8", "--workers", "1", "--how", "together=8"]
    whole = campaign.fresh()
    problem = call(*recording(name, *options), BNLIB_RECORDS=whole, BNLIB_DATA=place).went_well()
    for fits in (4, 2, 1) if not campaign.quick else (2,):
        folder = campaign.fresh()
        with mock.patch.object(together, "run", at_most(fits)):
            answer = call(*recording(name, *options), BNLIB_RECORDS=folder, BNLIB_DATA=place)
        fault.seen(problem, answer.went_well() or apart(folder, whole, name))
    alone = campaign.fault(
        "a single run does not fit (an injected error)", "one sentence, exit 1; with memory, --resume goes on"
    )
    from bnlib import launches

    def never(settings: dict, **rest: object) -> list:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (injected).")

    folder = campaign.fresh()
    words = recording(name, "--workers", "1")
    with mock.patch.dict(launches.TASKS, {"train": never}):
        answer = call(*words, BNLIB_RECORDS=folder, BNLIB_DATA=place)
    again = call(*words, "--resume", BNLIB_RECORDS=folder, BNLIB_DATA=place)
    alone.seen(answer.refused(), again.went_well())


def apart(folder: Path, whole: Path, name: str) -> str:
    """How far the values of two recordings are apart, where that is more than rounding."""
    frames = []
    for place in (folder, whole):
        with environment(BNLIB_RECORDS=place):
            frames.append(records.load(name, "smoke").frame())
    one, two = frames
    same = ["run", "step", "layer", "metric"]
    if not one[same].equals(two[same]):
        return "other rows"
    close = np.isclose(one["value"], two["value"], rtol=1e-3, atol=1e-4, equal_nan=True)
    return "" if close.all() else f"{(~close).sum()} values differ"


# --- the whole ----------------------------------------------------------------------------------------------


def run(campaign: Campaign, seed: int) -> None:
    """All parts, with a word on each to the terminal."""
    parts: list[Callable[[], None]] = [
        lambda: kills(campaign, "in turn", campaign.some(20, 1), "--workers", "1"),
        lambda: kills(campaign, "with two processes", campaign.some(20, 1), "--workers", "2"),
        lambda: lost_workers(campaign),
        lambda: at_once(campaign),
        lambda: file_limits(campaign),
        lambda: disks(campaign, seed),
        lambda: damaged_records(campaign),
        lambda: damaged_runs(campaign),
        lambda: changed_data(campaign),
        lambda: damaged_data(campaign),
        lambda: out_of_memory(campaign),
    ]
    for part in parts:
        before, clock = len(campaign.faults), time.monotonic()
        part()
        for fault in campaign.faults[before:]:
            print(f"{fault.times:>5} x {fault.what}", file=sys.stderr)
            for problem in fault.wrong:
                print(f"        WRONG: {problem}", file=sys.stderr)
        print(f"        {time.monotonic() - clock:.0f} s", file=sys.stderr)


def summary(campaign: Campaign, seed: int, seconds: float) -> str:
    """The table, as Markdown."""
    rows, tried = [], [fault for fault in campaign.faults if fault.times or "not tried" in fault.must]
    for fault in tried:
        seen = f"**{len(fault.wrong)} times not**: {fault.wrong[0]}" if fault.wrong else "always"
        cells = (fault.what, str(fault.times), fault.must, seen if fault.times else "–")
        rows.append([cell.replace("|", "/").replace("\n", " ") for cell in cells])
    times, wrong = sum(fault.times for fault in tried), sum(len(fault.wrong) for fault in tried)
    goals = report.Goals()
    goals.least("faults that end as they must", times, times - wrong)
    if not campaign.quick:
        goals.most("the whole campaign", LONGEST, seconds, "s")
    head = ["what was done", "times", "what must hold", "did it"]
    lines = report.table(head, rows).replace("| ---: | ---: | ---: |", "| ---: | --- | --- |")  # words
    machine = report.machine("torch", "pyarrow", "filelock")
    return f"{machine} Random moments, sizes and bits: `--seed {seed}`.\n\n{lines}\n\n{goals.table()}"


def main() -> int:
    """Do it all and print; the exit status is 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a little of everything")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments, sizes and bits (0)")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    experiments.EXPERIMENTS[TOY.name] = TOY
    clock = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        campaign = Campaign(Path(folder), chosen.quick, random.Random(chosen.seed))
        if chosen.inside:
            inside_namespace(campaign)
            print(json.dumps([vars(fault) for fault in campaign.faults]))
            return 0
        run(campaign, chosen.seed)
    text = summary(campaign, chosen.seed, time.monotonic() - clock)
    print(text)
    if chosen.write:
        report.write("faults", text)
    return 1 if any(fault.wrong for fault in campaign.faults) else 0


if __name__ == "__main__":
    sys.exit(main())
