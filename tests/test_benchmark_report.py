"""What benchmarks print follows from what they measured, and finds its place in their README."""

from pathlib import Path

import pytest
import report


def goals(**found: float) -> str:
    rows = report.Goals()
    for what, value in found.items():
        rows.least(what, 2, value, "steps/s")
    rows.remark("beside them", "5 and 7")
    rows.unknown("on a GPU", "at least 10", "no GPU")
    return rows.table()


def test_goals_are_judged_by_what_was_measured():
    rows = report.Goals()
    rows.least("rate", 2, 1.99)
    rows.most("weight", 2.5, 2, "MB")
    assert "| rate | at least 2 | 1.99 | **no** |" in rows.table()
    assert "| weight | at most 2.5 MB | 2 | yes |" in rows.table()


def test_a_table_finds_its_place_and_its_goals_join_the_others(tmp_path: Path):
    readme = tmp_path / "README.md"
    marks = [f"<!-- {name} -->\n<!-- end {name} -->\n" for name in ("goals", "pages", "faults")]
    readme.write_text("# Benchmarks\n\n" + "\n".join(marks))
    report.write("pages", f"Measured.\n\n{goals(slider=3)}", readme)
    report.write("faults", goals(kills=1), readme)
    report.write("pages", f"Measured again.\n\n{goals(slider=1)}", readme)
    before, after = readme.read_text().split("<!-- end goals -->")
    assert [line.split("|")[1].strip() for line in before.splitlines() if line.startswith("|")][2:] == [
        *("slider", "on a GPU", "kills", "on a GPU")
    ]
    assert "Measured again." in after and "Measured.\n" not in after and after.count("beside them") == 2


def test_a_readme_without_a_place_is_left_alone(tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text("# Benchmarks\n")
    with pytest.raises(SystemExit, match="no place for this table"):
        report.write("pages", "text", readme)
    assert readme.read_text() == "# Benchmarks\n"
