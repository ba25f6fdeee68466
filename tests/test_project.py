"""House rules: versions agree, the two sides of bnlib stay apart, no litter."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from project import PROJECT, ROOT, direct, project_files

import bnlib
from bnlib import notebook

CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


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


def test_each_extra_brings_what_its_readers_need_and_no_more():
    compute = {"torch", "torchvision", "scikit-learn", "tqdm", "filelock"}
    assert direct().keys() == {"numpy", "pandas", "pyarrow"}
    assert direct("compute").keys() == direct().keys() | compute
    assert direct("display").keys() & compute == set()
    assert direct("book").keys() & compute == {"scikit-learn"}, "a book is built without torch"
    assert direct("compute").keys() | direct("display").keys() <= direct("chapters").keys()
    parts = ("book", "chapters", "cluster")
    assert set().union(*(direct(part) for part in parts)) <= direct("test").keys()


def test_version_is_said_once_and_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert bnlib.__version__ == PROJECT["version"] == citation["version"]


def test_citation_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))
    assert all("name" in author for author in citation["authors"])


# --- two sides that meet only in specs, records and images --------------------------------------------------

BOTH = {"specs", "records", "machine", "images", "cifar_batches"}
DISPLAY = {"experiments", "claims", "charts", "explorables", "widgets", "lab_images", "notebook"}
COMPUTE = {
    *("data", "norms", "lp_norms", "alternative_norms", "noise", "models", "theory"),
    *("probes", "training", "identities", "invariances", "directions", "signal_propagation"),
    *("surfaces", "together", "updates", "speed", "launches", "executors", "recording", "repeating"),
}
ENTRANCE = {"__init__", "__main__"}
# The one crossing: what the display side declares is run, and run again.
CROSSINGS = {("recording", "experiments"), ("repeating", "experiments")}

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


def imports(nodes: Iterator[ast.AST], relative: bool = False) -> set[str]:
    """Dotted names of all imported modules; for `from bnlib import x`, bnlib.x."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert relative or node.level == 0, "bnlib imports by full name"
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


def test_building_the_book_and_its_offline_edition_needs_no_torch():
    for path in [*(ROOT / "_ext").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        names = imports(ast.walk(ast.parse(path.read_text(encoding="utf-8"))), relative=True)
        assert not rooms(names) & COMPUTE, path
        assert not [name for name in names if name.split(".")[0] in ("torch", "torchvision")], path


# --- no pickle ----------------------------------------------------------------------------------------------

# To unpickle is to run what a file says.  multiprocessing and dask speak pickle between processes of one and
# the same recording, on the user's own machines; they read no file of anybody.
PICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNPICKLING = {"torch.load", "torch.save", "eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
PANDAS = {"read_pickle", "to_pickle"}


def sources() -> Iterator[tuple[str, str]]:
    """All Python of the project: modules, tests, scripts, and the code of the chapters."""
    for name, text in texts():
        if name.endswith(".py"):
            yield name, text
        elif name.endswith(".ipynb"):
            cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
            code = "\n".join("".join(cell["source"]) for cell in cells)
            yield name, re.sub(r"^(\s*)[%!].*", r"\1pass", code, flags=re.MULTILINE)  # IPython's own lines


def unpickled(source: str) -> list[str]:
    """What of a source could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found += [name for name in names if PICKLING & set(name.split("."))]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = ast.unparse(node.func)
            allowed = {ast.unparse(k.value) for k in node.keywords if k.arg == "allow_pickle"}
            reads = name in ("np.load", "numpy.load") and allowed != {"False"}
            if reads or allowed - {"False"} or name in UNPICKLING or name.split(".")[-1] in PANDAS:
                found.append(f"{name} in line {node.lineno}")
    return found


def test_no_code_of_the_project_unpickles():
    assert {name: found for name, source in sources() if (found := unpickled(source))} == {}
    for wrong in (
        "import pickle",
        "from joblib import load",
        "def f():\n    from torch.utils import dill",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "pd.read_pickle(path)",
        "eval(text)",
        "yaml.load(text, yaml.Loader)",
    ):
        assert unpickled(wrong), wrong
    assert not unpickled("np.load(path, allow_pickle=False); model.eval(); import pickletools")


def test_no_file_of_the_project_is_a_pickle():
    endings = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".bin", ".db"}
    assert [path for path in project_files() if path.suffix in endings] == []
    pickles = []
    for path in project_files():
        content = path.read_bytes()
        # Protocols 2 to 5 begin with their number; torch's files are archives that hold one.
        if re.match(rb"\x80[\x02-\x05]", content) or (content[:2] == b"PK" and b".pkl" in content):
            pickles.append(path)
    assert pickles == []


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


def test_locked_versions_are_audited_every_week_and_before_they_change():
    workflow = yaml.safe_load((ROOT / ".github/workflows/audit.yml").read_text(encoding="utf-8"))
    occasions = workflow[True]  # YAML reads the word `on` so
    assert "schedule" in occasions and "requirements.lock" in occasions["pull_request"]["paths"]
    (audit,) = [
        step["run"] for step in workflow["jobs"]["audit"]["steps"] if "pip-audit -" in step.get("run", "")
    ]
    assert "--requirement requirements.lock" in audit and "--no-deps" in audit and "--strict" in audit


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
