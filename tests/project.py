"""The project as its files and its pyproject.toml describe it."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


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
