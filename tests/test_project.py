"""House rules: versions agree, the two sides of bnlib stay apart, the wheel is whole, no litter."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import bnlib
from bnlib import notebook

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def project_files() -> list[Path]:
    """Every file that is or would be committed: git's word for it, or all but build products outside git."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    else:
        ignored = {"__pycache__", ".git", ".hypothesis", ".pytest_cache", ".ruff_cache", ".venv", "_build"}
        paths = [path for path in ROOT.rglob("*") if not ignored & set(path.parts)]
    return sorted(path for path in paths if path.is_file())


def texts() -> Iterator[tuple[str, str]]:
    """Name and content of every project file that is text."""
    for path in project_files():
        try:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def places(pattern: str) -> list[str]:
    """Where a regular expression occurs in the project's files, as `file: match`."""
    found = ((name, match) for name, text in texts() for match in re.finditer(pattern, text))
    return [f"{name}: {match.group()}" for name, match in found]


# --- versions -----------------------------------------------------------------------------------------------


def direct(extra: str | None = None) -> dict[str, SpecifierSet]:
    """Ranges of pyproject.toml by name; references from one extra to another are followed."""
    ranges: dict[str, SpecifierSet] = {}
    for line in PROJECT["dependencies"] + (PROJECT["optional-dependencies"][extra] if extra else []):
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            for inner in requirement.extras:
                ranges |= direct(inner)
        else:
            ranges[canonicalize_name(requirement.name)] = requirement.specifier
    return ranges


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {name: Version(version) for name, version in pins}


def conda_pins() -> dict[str, str]:
    """Pins of environment.yml by the package's name for pip."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pins = dict(line.split("=") for line in dependencies if "=" in line)
    pins["torch"] = pins.pop("pytorch-cpu")
    return pins


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_lock_names_every_direct_dependency_within_its_range(extra: str):
    lock = locked()
    for name, specifier in direct(extra).items():
        assert name in lock, f"{name} is missing in requirements.lock: run tools/lock.py"
        assert lock[name] in specifier, f"{name} {lock[name]} is not within {specifier}: run tools/lock.py"


def test_lock_fits_machines_without_a_gpu():
    assert not [name for name in locked() if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert not [name for name, version in locked().items() if version.local]


def test_environment_has_the_locked_versions_of_what_the_chapters_need():
    pins, lock = conda_pins(), locked()
    python = pins.pop("python")
    assert python in SpecifierSet(PROJECT["requires-python"])
    assert set(pins) == set(direct("lab")), "environment.yml is the extra lab: run tools/lock.py"
    for name, pin in pins.items():
        assert pin == f"{lock[name].major}.{lock[name].minor}", f"{name}: run tools/lock.py"
        assert lock[name] in direct("lab")[name]


def test_test_extra_includes_the_book_and_the_book_the_chapters():
    assert direct("chapters").keys() <= direct("book").keys() <= direct("test").keys()
    assert direct().keys() == {"torch", "torchvision", "numpy", "pyarrow", "scikit-learn", "tqdm", "filelock"}


def test_version_is_said_once_and_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert bnlib.__version__ == PROJECT["version"] == citation["version"]


def test_citation_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))
    assert all("name" in author for author in citation["authors"])


# --- two sides that meet only in specs and records ----------------------------------------------------------

BOTH = {"specs", "records", "machine"}
DISPLAY = {"experiments", "claims", "charts", "explorables", "widgets", "lab_images", "notebook"}
COMPUTE = {
    *("data", "norms", "lp_norms", "alternative_norms", "noise", "models", "theory"),
    *("probes", "training", "identities", "invariances", "directions", "signal_propagation"),
    *("surfaces", "recording"),
}
ENTRANCE = {"__init__", "__main__"}
# The one crossing: recording runs the experiments that the display side declares.
CROSSINGS = {("recording", "experiments")}

MODULES = sorted((ROOT / "bnlib").rglob("*.py"))


def room(path: Path) -> str:
    """The module or subpackage of bnlib that a file belongs to."""
    return path.relative_to(ROOT / "bnlib").parts[0].removesuffix(".py")


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when a module is imported: no function bodies, nothing for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from at_import(node)


def imports(nodes: Iterator[ast.AST]) -> set[str]:
    """Dotted names of all imported modules; for `from bnlib import x`, bnlib.x."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "bnlib imports by full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(names: set[str]) -> set[str]:
    known = BOTH | DISPLAY | COMPUTE
    return {part for name in names if name.startswith("bnlib.") and (part := name.split(".")[1]) in known}


def test_every_module_has_its_side():
    sides = [BOTH, DISPLAY, COMPUTE, ENTRANCE]
    present = {room(path) for path in MODULES}
    assert sum(map(len, sides)) == len(set().union(*sides)), "a module stands on one side"
    assert present - set().union(*sides) == set(), "a new module: say in this file on which side it stands"
    assert set().union(*sides) - present == set(), "a module that is gone"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    everywhere, first = imports(ast.walk(tree)), imports(at_import(tree))
    here = room(path)
    if here in BOTH:
        assert rooms(imports(at_import(tree))) <= BOTH
    if here in BOTH | DISPLAY | ENTRANCE:
        assert not [name for name in first if name.split(".")[0] in ("torch", "torchvision")]
        assert not rooms(first) & COMPUTE
    if here in COMPUTE:
        crossed = {(here, other) for other in rooms(everywhere) & DISPLAY}
        assert crossed <= CROSSINGS


# --- what pip installs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (archive,) = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_wheel_holds_the_whole_package_with_records_and_scripts(wheel: Path):
    packed = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    ours = {str(path.relative_to(ROOT)) for path in project_files() if path.is_relative_to(ROOT / "bnlib")}
    assert {name for name in packed if name.startswith("bnlib/")} == ours
    assert "bnlib/explorer.js" in packed
    assert {name.split("/")[0] for name in packed} == {"bnlib", f"bnlib-{bnlib.__version__}.dist-info"}


def test_installed_display_side_imports_without_torch(wheel: Path):
    shown = [path for path in MODULES if room(path) in BOTH | DISPLAY | {"__main__"}]
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in shown
    ]
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print(sys.modules['bnlib'].__file__)\nprint([m for m in sys.modules if m.split('.')[0] == 'torch'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=wheel.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    where, torch = result.stdout.splitlines()
    assert Path(where).is_relative_to(wheel)
    assert torch == "[]"


# --- notebooks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_chapter_is_committed_executed_and_normalised(path: Path):
    text = path.read_text(encoding="utf-8")
    chapter = json.loads(text)
    code = [cell for cell in chapter["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run `bnlib execute`"
    for output in (output for cell in code for output in cell["outputs"]):
        assert output["output_type"] != "error" and output.get("name") != "stderr", output
    assert notebook.as_text(notebook.normalise(chapter)) == text, "run `bnlib execute`"


# --- nothing left lying about -------------------------------------------------------------------------------


def test_ruff_has_nothing_to_say():
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(ROOT)], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_no_registry_is_named():
    # Put together here, so that this file does not name them either.
    hosts = ("pypi", "pythonhosted", "anaconda", "download.pytorch", "npmjs")
    domains = [re.escape(f"{host}.{tail}") for host in hosts for tail in ("org", "com", "io")]
    assert places("|".join(domains)) == []


def test_no_path_of_a_machine():
    folders = "|".join(("tmp", "work", "root", "home", "Users"))
    assert places(rf"(?<![\w.~}}$*)/])/(?:{folders})/\w[\w./-]*") == []


def test_repository_and_book_addresses_stand_only_in_the_configuration():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    owner, name = config["repository"]["url"].removesuffix("/").split("/")[-2:]
    book = config["html"]["baseurl"].removesuffix("/").split("://")[-1]
    found = places("|".join(map(re.escape, (f"{owner}/{name}", book))))
    assert [place for place in found if not place.startswith("_config.yml:")] == []


def test_files_are_small():
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in project_files()}
    assert {name: size for name, size in sizes.items() if size > 5e6} == {}
    assert sum(sizes.values()) < 60e6


# --- README, workflows, scripts -----------------------------------------------------------------------------


def test_readme_gives_the_two_commands_and_names_what_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 'pip install -e ".[book]" && jupyter-book build .' in readme
    assert 'pip install -e ".[test]" && pytest' in readme
    table = [line for line in readme.splitlines() if line.startswith("| `")]
    named = [name for line in table for name in re.findall(r"`([^`]+)`", line.split("|")[1])]
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_ci_runs_the_readme_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert '\npip install -e ".[test]" && pytest\n' in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_is_minimal_and_belongs_to_any_fork(path: Path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow
    assert "github.com/" not in text
    for job in workflow["jobs"].values():
        used = [step["uses"] for step in job.get("steps", []) if "uses" in step]
        assert all(
            re.fullmatch(r"actions/(checkout|setup-python|upload-artifact)@v\d+", name) for name in used
        )
        assert job.get("uses", "./").startswith("./")
        assert "uses" in job or "timeout-minutes" in job


def test_book_is_published_from_the_lock_with_the_python_that_resolved_it():
    steps = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text())["jobs"]["book"]["steps"]
    runs = "\n".join(step.get("run", "") for step in steps)
    assert 'pip install -c requirements.lock -e ".[book]"' in runs
    assert "jupyter-book build -W -n --keep-going ." in runs
    (python,) = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
    assert python in SpecifierSet(PROJECT["requires-python"])
    assert f"3.{int(python.split('.')[1]) - 1}" not in SpecifierSet(PROJECT["requires-python"])


def shell_scripts() -> list[tuple[str, str]]:
    """Every shell script of the project: whole files, and the steps of the workflows."""
    scripts = [(name, (ROOT / name).read_text(encoding="utf-8")) for name in (".ci/run", "postBuild")]
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            steps = [step for step in job.get("steps", []) if "run" in step]
            scripts += [(f"{path.name}: {step['name']}", step["run"]) for step in steps]
    return scripts


@pytest.mark.parametrize("name, script", shell_scripts(), ids=[name for name, _ in shell_scripts()])
def test_shell_script_parses(name: str, script: str):
    result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_chapter_is_in_the_table_of_contents():
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    assert [path.name for path in CHAPTERS if f"chapters/{path.stem}" not in contents] == []
