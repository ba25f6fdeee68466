"""What every benchmark prints: tables of Markdown, goals with what was measured, the machine and the date."""

from __future__ import annotations

import datetime
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

from bnlib.machine import processor

README = Path(__file__).resolve().parent / "README.md"
HEAD = ["what", "goal", "measured", "met"]  # of a table of goals
BUSY = 0.5  # a load before the first measurement that is worth a word


def table(head: list[str], rows: list[list[str]]) -> str:
    """The first column to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def number(value: float | None) -> str:
    """Two to three digits, which is what timings are good for; whole numbers as they are."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.2f}" if abs(value) < 2 else f"{value:.1f}" if abs(value) < 20 else f"{value:.0f}"


class Goals:
    """What is promised, beside what was measured."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    def least(self, what: str, bound: float, found: float, unit: str = "") -> None:
        """A measured number that must not be smaller than its bound."""
        self._add(what, f"at least {bound:g} {unit}", found, found >= bound)

    def most(self, what: str, bound: float, found: float, unit: str = "") -> None:
        """A measured number that must not be larger than its bound."""
        self._add(what, f"at most {bound:g} {unit}", found, found <= bound)

    def unknown(self, what: str, goal: str, why: str) -> None:
        """A goal that could not be measured here."""
        self.rows.append([what, goal, why, "not measured"])

    def remark(self, what: str, found: str) -> None:
        """A number beside the goals that has none of its own."""
        self.rows.append([what, "", found, ""])

    def table(self) -> str:
        """One row for each goal."""
        return table(HEAD, self.rows)

    def _add(self, what: str, goal: str, found: float, met: bool) -> None:
        self.rows.append([what, goal.strip(), number(found), "yes" if met else "**no**"])


def machine(*packages: str, load: float | None = None) -> str:
    """On what, with what and when, in one line; `load` is that before the first measurement."""
    parts = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    text = (
        f"{datetime.date.today().isoformat()}. {processor()}, {os.cpu_count()} cores; {', '.join(parts)}, "
        f"bnlib {version('bnlib')}."
    )
    if load is not None and load > BUSY:
        text += f" Other programs were at work (load {load:.1f}): this machine can do better."
    return text


def write(section: str, text: str, readme: Path = README) -> None:
    """Put `text` between the section's marks in the README, which must be there.

    The section `goals` of the README, where it has one, repeats every goal of the other sections.
    """
    old = readme.read_text(encoding="utf-8")
    new = _replaced(old, section, text)
    if "<!-- goals -->" in new:
        new = _replaced(new, "goals", table(HEAD, _goals(_replaced(new, "goals", ""))))
    readme.write_text(new, encoding="utf-8")


def _replaced(readme: str, section: str, text: str) -> str:
    begin, end = f"<!-- {section} -->", f"<!-- end {section} -->"
    if not re.search(f"{begin}.*{end}", readme, flags=re.DOTALL):
        raise SystemExit(f"The README has no place for this table: it lacks the line {begin} or {end}.")
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n{end}", readme, flags=re.DOTALL)


def _goals(readme: str) -> list[list[str]]:
    """The rows of all tables of goals, without remarks."""
    rows, inside = [], False
    for line in readme.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        inside = cells == HEAD or (inside and bool(cells))
        if inside and cells != HEAD and cells[1] and not cells[0].startswith("---"):
            rows.append(cells)
    return rows
