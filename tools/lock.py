"""Move the lock: `python tools/lock.py` resolves the newest versions that pyproject.toml allows.

It writes two files together, so that they cannot disagree:

- requirements.lock: every package's exact version, for `pip install -c requirements.lock -e ".[book]"`;
- environment.yml: the same versions of what the chapters need, under conda-forge's names, for Binder.

pip does the resolving (`--dry-run`: nothing is installed). Run it in an environment of the oldest supported
Python that has the `test` extra: what exists for that Python exists for the newer ones, and the published
book is built with it. Then run the tests and, where a chapter's output changed, `bnlib execute`. conda-forge
may lag some days behind: where it lacks a version, narrow the range in pyproject.toml and start over.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
ENVIRONMENT = ROOT / "environment.yml"

# The extras that people install; the others are contained in them.
LOCKED_EXTRAS = ("test", "lab")

# Binder's Python: between the oldest and the newest that the project supports.
BINDER_PYTHON = "3.12"

# Same name in conda-forge for all but these. The CPU build keeps Binder's image small.
CONDA_NAMES = {"torch": "pytorch-cpu"}

# torch pins these itself, and a machine without a GPU need not have them.
FOLLOW_TORCH = ("cuda-", "nvidia-", "triton")


def requirements(project: dict, extra: str | None = None) -> list[Requirement]:
    """Direct requirements of the package with `extra`, references to other extras of the package resolved."""
    lines = list(project["dependencies"]) + list(project["optional-dependencies"][extra] if extra else [])
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, lines):
        if requirement.name == project["name"]:
            for inner in requirement.extras:
                found |= {r.name: r for r in requirements(project, inner)}
        else:
            found[requirement.name] = requirement
    return list(found.values())


def resolve(extras: Iterable[str]) -> dict[str, Version]:
    """Newest versions, by canonical name, that pyproject.toml allows: pip's answer, nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*pip, "--report", str(report), "-e", f"{ROOT}[{','.join(extras)}]"], check=True)
        installs = json.loads(report.read_text())["install"]
    versions = {canonicalize_name(i["metadata"]["name"]): Version(i["metadata"]["version"]) for i in installs}
    return {name: version for name, version in versions.items() if not name.startswith(FOLLOW_TORCH)}


def lock_text(versions: dict[str, Version], own_name: str) -> str:
    """requirements.lock. A local label such as +cpu is dropped: the same version exists with other labels."""
    head = "# Written by tools/lock.py: the versions that the published book is built with.\n"
    return head + "".join(f"{n}=={v.public}\n" for n, v in sorted(versions.items()) if n != own_name)


def environment_text(versions: dict[str, Version], direct: list[Requirement]) -> str:
    """environment.yml: direct requirements at the locked major.minor; conda adds what they need."""
    names = sorted(canonicalize_name(requirement.name) for requirement in direct)
    pins = [f"{CONDA_NAMES.get(n, n)}={versions[n].major}.{versions[n].minor}" for n in names]
    return "\n".join(
        [
            "# Written by tools/lock.py: what the chapters need, at the versions of requirements.lock.",
            "# Binder installs this and then runs postBuild, which adds the package itself.",
            "name: bnlib",
            "channels:",
            "  - conda-forge",
            "  - nodefaults",
            "dependencies:",
            f"  - python={BINDER_PYTHON}",
            "  - pip",
            *(f"  - {pin}" for pin in pins),
            "",
        ]
    )


def main() -> None:
    """Write requirements.lock and environment.yml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    supported = SpecifierSet(project["requires-python"])
    older = f"{sys.version_info.major}.{sys.version_info.minor - 1}"
    if running not in supported or older in supported:
        sys.exit(
            f"Python {running} is not the oldest one that bnlib supports (requires-python {supported}); "
            "run tools/lock.py with that one, so that the lock fits all of them."
        )
    versions = resolve(LOCKED_EXTRAS)
    LOCK.write_text(lock_text(versions, project["name"]))
    ENVIRONMENT.write_text(environment_text(versions, requirements(project, "lab")))
    print(f"{LOCK.name}: {len(versions) - 1} packages; {ENVIRONMENT.name}: the chapters' share of them.")


if __name__ == "__main__":
    main()
