"""Files, command lines and links that nobody would write: refused in a sentence, or meaning what they say.

Derandomised: the same examples every time. To look further: `FUZZ=20000 pytest -n 0 tests/test_fuzz.py`.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import shutil
import struct
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_data import IDX, cifar10_batch, idx, small
from test_lab_engine import node

from bnlib import cifar_batches, experiments, images, notebook, recording, records
from bnlib.__main__ import main
from bnlib.specs import SCALES, Claim, Criterion, Run, canonical

ROOT = Path(__file__).parents[1]
MORE = int(os.environ.get("FUZZ", "0"))


def fuzzed(examples: int):
    """So many examples, always the same ones; with $FUZZ, so many random ones."""
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=MORE or examples,
        derandomize=not MORE,
        database=None,
        deadline=None,
        suppress_health_check=quiet,
    )


# What parsers stumble over: ends, signs, sizes that are too large, brackets and numbers without end.
ODD = [b"\0", b"\xff" * 4, b"\x80\0\0\0", b"\xff" * 8, b"[" * 20_000, b"9" * 5000, b"NaN", b"1e999", b"null"]


@st.composite
def edits(draw) -> list[tuple]:
    """Changes of a file: (what, where as a share of its length, with what)."""
    what = st.sampled_from(["flip", "write", "insert", "delete", "cut", "repeat"])
    share = st.floats(0, 1, exclude_max=True) | st.floats(0, 0.05)
    new = st.sampled_from(ODD) | st.binary(min_size=1, max_size=8)
    return draw(st.lists(st.tuples(what, share, new), min_size=1, max_size=4))


def edited(content: bytes, changes: list[tuple]) -> bytes:
    for what, share, new in changes:
        at = int(share * len(content))
        if what == "flip" and content:
            content = content[:at] + bytes([content[at] ^ (1 << new[0] % 8)]) + content[at + 1 :]
        elif what == "write":
            content = content[:at] + new + content[at + len(new) :]
        elif what == "insert":
            content = content[:at] + new + content[at:]
        elif what == "delete":
            content = content[:at] + content[at + len(new) :]
        elif what == "cut":
            content = content[:at]
        elif what == "repeat":
            content = content[:at] + content[at : at + 40] * (1 + new[0]) + content[at:]
    return content


def instead(content: bytes) -> list[tuple]:
    """The edits that leave nothing but `content`."""
    return [("cut", 0.0, b""), ("insert", 0.0, content)]


def one_sentence(error: Exception) -> None:
    message = str(error)
    assert message and "\n" not in message and len(message) < 700


# --- records ------------------------------------------------------------------------------------------------

SAMPLE = ROOT / "bnlib/recorded/mechanics"
FILES = {name: (SAMPLE / name).read_bytes() for name in ("laptop.json", "laptop.parquet")}


@pytest.fixture
def sample(tmp_path, monkeypatch) -> Path:
    """A folder of records with one real record in it."""
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    (tmp_path / "mechanics").mkdir()
    return tmp_path / "mechanics"


def sealed(body: dict) -> bytes:
    """A provenance file with the right checksum, whatever it says."""
    return records._seal(records.FORMAT, body)


BODY = {
    key: value
    for key, value in json.loads(FILES["laptop.json"]).items()
    if key not in ("format", "version", "sha256")
}


@fuzzed(250)
@given(name=st.sampled_from(list(FILES)), changes=edits())
@example("laptop.json", instead(b"[" * 20_000))
@example("laptop.json", instead(b"9" * 5000))
@example(
    "laptop.json",
    [("cut", 0.0, b"\0"), ("insert", 0.0, b'{"format": "bnlib-record", "version": 2, "a": NaN}')],
)
@example(
    "laptop.json", [("cut", 0.0, b"\0"), ("insert", 0.0, b'{"format": "bnlib-record", "version": true}')]
)
@example("laptop.json", instead(sealed({})))
@example("laptop.json", instead(sealed({**BODY, "table_sha256": None})))
def test_a_record_is_refused_or_the_very_same(sample, name, changes):
    for file, content in FILES.items():
        (sample / file).write_bytes(edited(content, changes) if file == name else content)
    try:
        found = records.load("mechanics", "laptop")
    except records.RecordError as error:
        one_sentence(error)
        return
    assert canonical(found.provenance) == canonical(BODY)
    assert (
        edited(FILES["laptop.parquet"], changes if name == "laptop.parquet" else [])
        == FILES["laptop.parquet"]
    )


RUN = Run("bn", 0, {"lr": 0.1})
ROWS = [(0, "", "loss", 2.5), (1, "conv1", "mean", 1 / 3)]


@fuzzed(150)
@given(changes=edits())
@example(instead(b"[" * 20_000))
@example(instead(b"9" * 5000))
def test_a_finished_run_is_run_again_or_the_very_same(sample, changes):
    path = records.partial_folder("mechanics", "smoke") / f"{RUN.digest}.json"
    records.save_run("mechanics", "smoke", RUN, ROWS, 1.5, {"seconds": 2.5})
    good = records.load_run("mechanics", "smoke", RUN)
    path.write_bytes(edited(path.read_bytes(), changes))
    assert records.load_run("mechanics", "smoke", RUN) in (None, good)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@fuzzed(100)
@given(value=JSON, seed=st.integers(0, 9), arm=st.text(max_size=5))
def test_what_is_declared_is_told_apart_by_its_digest(value, seed, arm):
    run, again = (
        Run(arm, seed, json.loads(text)) for text in (canonical({"a": value}), canonical({"a": value}))
    )
    assert json.loads(canonical(value)) == value and run.digest == again.digest
    assert run.digest != Run(arm, seed, {"a": [value]}).digest != Run(arm, seed + 1, {"a": [value]}).digest


@fuzzed(100)
@given(
    values=st.dictionaries(st.integers(0, 20), st.floats(-1e300, 1e300), max_size=8),
    relation=st.sampled_from("<>"),
    threshold=st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_verdict_is_what_all_seeds_say(values, relation, threshold):
    criterion = Criterion(relation, threshold)
    words = ("id", "statement", "source", "where", "chapter", "experiment", "quantity", "unit")
    claim = Claim(*words, measure=lambda record: values, criterion=criterion)
    row = claim.judge(SimpleNamespace(scale="smoke"))
    good = [value > threshold if relation == ">" else value < threshold for value in values.values()]
    expected = "inconclusive" if len(good) < 5 else "holds" if all(good) else "fails"
    assert row["verdict"] == (expected if expected != "fails" or not any(good) else "inconclusive")
    assert not values or min(values.values()) == row["low"] <= row["value"] <= row["high"]


# --- data ---------------------------------------------------------------------------------------------------

MNIST = small((28, 28), n_train=3, n_test=2)


@functools.cache
def archive(compressed: bool) -> bytes:
    file = BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **MNIST)
    return file.getvalue()


def refused_or_valid(name: str, root: Path) -> None:
    images._fingerprints.clear()
    try:
        found = images.load(name, root, download=False)
    except images.DataError as error:
        one_sentence(error)
        assert str(error).endswith(".")
    else:
        images._check(name, found, root)


@fuzzed(200)
@given(compressed=st.booleans(), changes=edits())
@example(False, [("write", 0.005, b"\xff" * 4)])  # zipfile's message holds the whole file
def test_an_archive_of_images_is_refused_or_valid(tmp_path, compressed, changes):
    (tmp_path / "mnist.npz").write_bytes(edited(archive(compressed), changes))
    refused_or_valid("mnist", tmp_path)


SHAPES = ["(3,28,28)", "(3,28,28", "(10**9,)", "(-1,)", "(4611686018427387904,4)", "(1e3,)", "()"]
KINDS = ["|u1", "|O", "|V8", "<f8", "|S0", "<U99999999", "|u1,", ",", "[]", "M8[ns]", "\\x00", "("]


@st.composite
def npy(draw) -> bytes:
    """An array in NumPy's format whose header says something else."""
    shape = st.sampled_from(SHAPES)
    shape |= st.lists(st.integers(-2, 2**62), max_size=4).map(lambda sizes: str(tuple(sizes)))
    order = draw(st.sampled_from(["False", "7", "[]"]))
    end = draw(st.sampled_from(["", ")", "'", "\\", "[" * 300]))
    kind = draw(st.sampled_from(KINDS))
    header = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {draw(shape)}, }}{end}\n"
    version = draw(st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\4\0"]))
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header.encode() + bytes(draw(st.integers(0, 3 * 784)))


@fuzzed(200)
@given(array=npy())
def test_an_archive_with_strange_headers_is_refused_or_valid(tmp_path, array):
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w") as file:
        for part in MNIST:
            file.writestr(f"{part}.npy", array)
    refused_or_valid("mnist", tmp_path)


@fuzzed(200)
@given(
    part=st.sampled_from(list(IDX)),
    compressed=st.booleans(),
    sizes=st.none() | st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 3), min_size=1, max_size=3),
    changes=edits() | st.just([]),
)
@example("x_train", False, [0, 2**32 - 1, 2**32 - 1], [])
def test_a_file_of_mnist_is_refused_or_valid(tmp_path, part, compressed, sizes, changes):
    folder = tmp_path / "MNIST" / "raw"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, file in IDX.items():
        content = idx(MNIST[name])
        if name == part and sizes is not None:
            content = struct.pack(f">{1 + len(sizes)}I", 0x0800 + len(sizes), *sizes) + content[16:]
        if compressed:
            content = gzip.compress(content, mtime=0)
        if name == part:
            content = edited(content, changes)
        (folder / (file + ".gz" * compressed)).write_bytes(content)
    refused_or_valid("mnist", tmp_path)


BATCH = cifar10_batch(small((32, 32, 3), n_train=2)["x_train"], np.array([3, 9], np.uint8))


# pickletools knows an older kind of string with Python's escapes, and says which of them are none.
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@fuzzed(400)
@given(changes=edits(), short=st.booleans())
@example([("repeat", 0.145, b"\xff" * 4)], False)  # so may pickletools'
def test_a_batch_of_cifar10_is_refused_or_valid(changes, short):
    # Half of the time in what stands around the pixels, which are nearly all of it.
    parts = (BATCH[:300], BATCH[300:]) if short else (BATCH, b"")
    try:
        rows, labels = cifar_batches.read(edited(parts[0], changes) + parts[1])
    except ValueError as error:
        one_sentence(error)
    else:
        assert rows.shape == (len(labels), 3072)
        assert rows.dtype == labels.dtype == np.uint8
        assert labels.max(initial=0) < 10


# --- the command line ---------------------------------------------------------------------------------------

WORD = st.text(max_size=12) | st.sampled_from(
    [
        "",
        "-",
        "--",
        "..",
        "../..",
        "all",
        "\0",
        "mechanics",
        "01-mechanics",
        "9" * 5000,
        "1e3",
        "inf",
    ]
)
NAME = WORD | st.sampled_from(list(experiments.EXPERIMENTS))
NUMBER = st.integers().map(str) | WORD
OPTIONS = {
    "run": {
        "--scale": st.sampled_from(SCALES) | WORD,
        "--seeds": NUMBER | st.sampled_from(["1", "2", "1000000000000"]),
        "--device": st.sampled_from(["cpu", "cuda"]) | WORD,
        "--workers": NUMBER,
        "--executor": st.sampled_from(["processes", "in-turn"]) | WORD,
        "--how": st.sampled_from(["auto", "plain", "threads=1", "threads=", "=", "threads=0", "a=b=c"])
        | WORD,
        "--resume": None,
    },
    "list": {},
    "verify": {},
    "claims": {"--json": None},
    "execute": {"--scale": st.sampled_from(SCALES) | WORD, "--check": None},
    "fly": {},
}


@st.composite
def command_lines(draw) -> list[str]:
    command = draw(st.sampled_from(list(OPTIONS)))
    words = [command, *draw(st.lists(NAME, max_size=2))]
    for option, value in OPTIONS[command].items():
        if draw(st.booleans()):
            words += [option] if value is None else [option, draw(value)]
    return draw(st.permutations(words)) if draw(st.integers(0, 3)) == 0 else words


@fuzzed(200)
@given(words=command_lines() | st.lists(WORD, max_size=5))
@example(["run", "mechanics", "--seeds", "1000000000000"])
def test_no_command_line_shows_a_traceback(tmp_path, monkeypatch, capsys, words):
    """What would train or execute is left out; all that is decided before is not."""
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    runs = [{"diverged_at": None}]
    made = SimpleNamespace(runs=runs, seeds=1, scale="smoke", sittings=[], provenance={})
    monkeypatch.setattr(recording, "record", lambda *args, **options: made)
    monkeypatch.setattr(notebook, "execute", lambda *args, **options: [])
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
        assert status in ((0, 2) if {"-h", "--help", "--version"} & set(words) else (2,))
    assert status in (0, 1, 2)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert status == 0 or error


# --- the lab's link -----------------------------------------------------------------------------------------


class Lab:
    """What the lab makes of fragments and states, in one process of node."""

    def __init__(self) -> None:
        source = ROOT / "lab" / "src"
        command = [node(), str(ROOT / "tests/lab/fragments.mjs"), str(source / "ui"), str(source)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.limits = json.loads(self.process.stdout.readline())

    def ask(self, **question) -> dict | None:
        self.process.stdin.write(json.dumps(question).encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "thrown" not in answer, answer["thrown"]
        return answer["found"]

    def assert_valid(self, state: dict) -> None:
        limits = self.limits
        assert set(state) == {"preset", "data", "networks", *limits["ranges"]}
        assert state["preset"] in [*limits["presets"], "own"] and state["data"] in limits["data"]
        assert 1 <= len(state["networks"]) <= limits["most"]
        numbers = [(state[key], each) for key, each in limits["ranges"].items()]
        for network in state["networks"]:
            assert set(network) == {"norm", "where", *limits["networkRanges"]}
            assert network["norm"] in limits["norms"] and network["where"] in limits["places"]
            numbers += [(network[key], each) for key, each in limits["networkRanges"].items()]
        for value, (low, high, _, whole, _) in numbers:
            assert low <= value <= high and (not whole or value == int(value))


@pytest.fixture(scope="module")
def lab():
    made = Lab()
    yield made
    made.process.stdin.close()
    made.process.stdout.close()
    assert made.process.wait(timeout=10) == 0


KEYS = [
    "lab",
    "preset",
    "data",
    "net",
    "channels",
    "batch",
    "gain",
    "noise",
    "seed",
    "steps",
    "every",
    "speed",
]
KEYS += ["__proto__", "constructor", "toString", "networks", ""]
VALUES = st.sampled_from(
    [
        "1",
        "own",
        "rates",
        "digits",
        "mnist",
        "0x10",
        "-0",
        "1e400",
        "NaN",
        "-Infinity",
        "%",
        "%zz",
        "%00",
        "９",
    ]
)
VALUES |= st.floats().map(str) | st.integers().map(str) | st.text(max_size=8)
NETS = st.tuples(
    st.sampled_from(["none", "batch", "linf", "__proto__", ""]),
    st.sampled_from(["every", "first", "last", "toString", ""]),
    VALUES,
    VALUES,
).map(",".join)
PAIRS = st.tuples(st.sampled_from(KEYS), VALUES).map("=".join) | NETS.map("net={}".format)
LINKS = st.lists(PAIRS, max_size=12).map(lambda pairs: "&".join(["#lab=1", *pairs]))


@fuzzed(600)
@given(fragment=LINKS | LINKS.map(lambda link: link + "&net=batch,every,0.1,4") | st.text(max_size=30))
@example("#lab=1&constructor=1&net=batch,every,0.1,4")
@example("#lab=1&preset=constructor&net=batch,every,0.1,4")
@example(f"#lab=1&data=mnist&channels=99&batch=999{'&net=batch,every,9999,99' * 4}")  # the largest of all
def test_a_link_gives_a_state_in_which_everything_is_possible(lab, fragment):
    found = lab.ask(fragment=fragment)
    if found is None:
        assert not fragment.removeprefix("#").startswith("lab=")
        return
    lab.assert_valid(found["state"])
    assert all(isinstance(notice, str) and notice for notice in found["notices"])
    again = lab.ask(state=found["state"])
    assert again == {"state": found["state"], "notices": []}


def states(limits: dict) -> st.SearchStrategy:
    def value(low, high, standard, whole, what):
        return st.integers(low, high) if whole else st.floats(low, high)

    def object_of(ranges, **fixed):
        return st.fixed_dictionaries({**fixed, **{key: value(*each) for key, each in ranges.items()}})

    network = object_of(
        limits["networkRanges"],
        norm=st.sampled_from(limits["norms"]),
        where=st.sampled_from(limits["places"]),
    )
    return object_of(
        limits["ranges"],
        preset=st.sampled_from([*limits["presets"], "own"]),
        data=st.sampled_from(limits["data"]),
        networks=st.lists(network, min_size=1, max_size=limits["most"]),
    )


@fuzzed(250)
@given(data=st.data())
def test_a_state_and_its_link_say_the_same(lab, data):
    state = data.draw(states(lab.limits))
    assert lab.ask(state=state) == {"state": state, "notices": []}
