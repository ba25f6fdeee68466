"""What is handed out: the wheel, the sdist, and an environment that replays records without torch."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import offline
import pytest
import recorded_figures
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from project import PROJECT, ROOT, direct, project_files

BUILD = """
import sys
from hatchling.build import build_sdist, build_wheel
build_wheel(sys.argv[1])
if sys.argv[2:]:
    build_sdist(sys.argv[1])
"""


def build(source: Path, folder: Path, *also: str) -> None:
    """Build the wheel of `source`, and its sdist too if `also` says so, into `folder`."""
    command = [sys.executable, "-c", BUILD, str(folder), *also]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, folder, "sdist")
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (archive,) = built.glob("*.whl")
    return archive


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (archive,) = built.glob("*.tar.gz")
    return archive


def committed(folder: Path) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in project_files() if path.is_relative_to(folder)}


def test_the_wheel_is_the_package_with_its_records_and_nothing_else(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.startswith("bnlib/")} == committed(ROOT / "bnlib")
    assert {"bnlib/explorer.js", "bnlib/recorded/training/laptop.parquet"} <= names
    assert {name.split("/")[0] for name in names} == {"bnlib", f"bnlib-{PROJECT['version']}.dist-info"}


def test_the_sdist_is_the_repository_and_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    names = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert names == committed(ROOT) | {"PKG-INFO"}
    build(source, tmp_path)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_an_index_would_take_both(wheel: Path, sdist: Path):
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# --- an environment without torch ---------------------------------------------------------------------------


def needed(asking: Distribution, extra: str) -> Iterator[Distribution]:
    """The installed distributions that another one with `extra` asks for, and what these ask for in turn."""
    waiting, seen = [(asking, extra)], set()
    while waiting:
        asking, extra = waiting.pop()
        for requirement in map(Requirement, asking.requires or ()):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            found = distribution(requirement.name)
            for inner in ("", *requirement.extras):
                if (requirement.name, inner) not in seen:
                    seen.add((requirement.name, inner))
                    waiting.append((found, inner))
                    yield found


@pytest.fixture(scope="module")
def display(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs of an environment of its own: the wheel, and what it declares to need for
    the extra `display`. pip installs the wheel; the rest is what is installed here, by links: no network.
    """
    place = tmp_path_factory.mktemp("display")
    venv.create(place, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "--quiet"]
    offline = ["--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, *offline, str(wheel)], check=True, capture_output=True, text=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (own,) = distributions(path=[str(packages)])
    for found in needed(own, "display"):
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).is_symlink():
                (packages / top).symlink_to(Path(found.locate_file(top)).resolve())
    return place / "bin"


def run_in(programs: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of that environment, with nothing of this one's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "BNLIB"))}
    command = [str(programs / name), *arguments]
    return subprocess.run(command, cwd=programs, env=kept, capture_output=True, text=True)


def test_records_claims_and_figures_of_every_chapter_are_replayed_without_torch(display: Path):
    code = "import importlib.util as u, sys; print(*(name for name in sys.argv[1:] if u.find_spec(name)))"
    absent = {"torch", "torchvision", "sklearn", "tqdm", "filelock", "papermill", "sphinx"}
    assert run_in(display, "python", "-c", code, *absent).stdout == "\n"
    done = run_in(display, "python", str(ROOT / "benchmarks" / "replay.py"), "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()]
    assert ["| claims without a record", "at most 0", "0"] in [
        [row[0].split(", of")[0], *row[1:3]] for row in rows if len(row) == 4
    ]
    for chapter in (ROOT / "chapters").glob("*.ipynb"):
        assert f"| {chapter.stem} | 1 |" in done.stdout, "a chapter without a recorded figure"


def test_experiments_are_listed_and_what_needs_torch_says_so_in_one_sentence(display: Path):
    listed = run_in(display, "bnlib", "list")
    assert listed.returncode == 0 and "recorded: laptop" in listed.stdout, listed.stderr
    done = run_in(display, "bnlib", "run", "mechanics")
    assert done.returncode == 1
    assert re.fullmatch(r'bnlib: this needs (torch|tqdm): pip install "bnlib\[compute\]"\n', done.stderr)


def test_the_environment_is_what_the_extra_declares(display: Path):
    (packages,) = display.parent.glob("lib/python*/site-packages")
    names = {canonicalize_name(path.name.split("-")[0]) for path in packages.glob("*.dist-info")}
    assert direct("display").keys() | {"bnlib"} <= names
    assert not names & (direct("compute").keys() - direct("display").keys())


def test_every_figure_that_a_chapter_draws_from_records_is_replayed():
    replayed = Path(recorded_figures.__file__).read_text(encoding="utf-8")
    drawn = set()
    for chapter in (ROOT / "chapters").glob("*.ipynb"):
        cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
        code = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
        (name,) = re.findall(r"from bnlib\.explorables import (\w+) as explorables", code)
        module = importlib.import_module(f"bnlib.explorables.{name}")
        for called in set(re.findall(r"\bexplorables\.(\w+)\(", code)):
            if re.search("VBox|Chart", str(inspect.signature(getattr(module, called)).return_annotation)):
                drawn.add(f"{name}.{called}")
    assert {figure for figure in drawn if f"{figure}(" not in replayed} == recorded_figures.LIVE


# --- the offline edition; that it can be read stands in test_book.py ----------------------------------------


def test_without_a_book_there_is_no_offline_edition(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "argv", ["offline.py", "--html", str(tmp_path), "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no built book: leave --html away"):
        offline.main()
    assert list(tmp_path.iterdir()) == []


def test_the_same_book_gives_the_same_bytes(tmp_path: Path):
    pages = {"index.html": "Read me", "chapters/01.html": "One", "_static/book.css": ""}
    made = []
    for name, order in (("one", list(pages)), ("two", list(reversed(pages)))):
        for page in order:
            path = tmp_path / name / page
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages[page])
        os.utime(tmp_path / name / "index.html", (len(made), len(made)))
        made.append(offline.pack(tmp_path / name, tmp_path / f"{name}-packed").read_bytes())
    assert made[0] == made[1]
    names = zipfile.ZipFile(tmp_path / "one-packed" / f"{offline.NAME}.zip").namelist()
    assert names == sorted(f"{offline.NAME}/{name}" for name in {*pages, "README.txt", "LICENSE.txt"})
