"""Where the numbers come from: the footer of every chapter, and the table ``{recording-times}``.

A chapter replays records. Its footer says which, at what scale, with how many seeds, on what device, with
which versions, when, and which command records them again.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from bnlib import records
from bnlib.experiments import EXPERIMENTS
from bnlib.specs import Experiment

from .tables import table

CHAPTERS = "chapters"
CHECKSUM_DIGITS = 12


def duration(seconds: float) -> str:
    """A time that people can read: ``48 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def device_name(device: dict[str, Any]) -> str:
    """The processor or GPU, with the number of cores where it matters."""
    cores = f", {device['cores']} cores" if "cores" in device else ""
    return f"{device['name']}{cores}"


def distinct(texts: Iterable[str]) -> str:
    """What the sittings of a record have in common is said once, the rest in order of time."""
    return "; ".join(dict.fromkeys(texts))


def devices(provenance: dict[str, Any]) -> str:
    """The devices of all sittings."""
    return distinct(device_name(sitting["device"]) for sitting in provenance["sittings"])


def run_time(provenance: dict[str, Any]) -> str:
    """How long the runs took. Not the clock's time: a recording may have been resumed."""
    at_a_time = sorted({sitting["workers"] for sitting in provenance["sittings"]})
    pace = f"{' or '.join(map(str, at_a_time))} at a time" if at_a_time != [1] else "one after the other"
    return f"{duration(provenance['run_seconds'])} of runs, {pace}"


def sittings_in_words(provenance: dict[str, Any]) -> str:
    """One sentence on a record that was resumed or extended; nothing on one made in a single sitting."""
    sittings, runs = provenance["sittings"], provenance["runs"]
    if len(sittings) == 1:
        return ""
    shares = [str(sum(run["sitting"] == index for run in runs)) for index in range(len(sittings))]
    code = "the same code" if len({sitting["source_sha256"] for sitting in sittings}) == 1 else "changed code"
    listed = f"{', '.join(shares[:-1])} and {shares[-1]}"
    return f"Recorded in {len(sittings)} sittings of {listed} runs, with {code}."


def facts(provenance: dict[str, Any]) -> dict[str, str]:
    """What the footer tells of one record, in the order in which it is shown."""
    runs = provenance["runs"]
    seeds = len({run["seed"] for run in runs})
    sittings = provenance["sittings"]
    days = [datetime.fromisoformat(sitting["started"]) for sitting in sittings]
    when = distinct(f"{day.day} {day:%B %Y}" for day in days)
    versions = [sitting["versions"].items() for sitting in sittings]
    told = {
        "Scale": provenance["scale"],
        "Runs": f"{len(runs)} ({seeds} {'seed' if seeds == 1 else 'seeds'})",
        "Device": devices(provenance),
        "Versions": distinct(", ".join(f"{name} {number}" for name, number in items) for items in versions),
        "Recorded": f"{when}; {run_time(provenance)}",
        "Sittings": sittings_in_words(provenance),
        "Record again": sittings[-1]["command"],
        "Checksum": provenance["table_sha256"][:CHECKSUM_DIGITS],
    }
    return {term: text for term, text in told.items() if text}


def note_records(env: BuildEnvironment, experiments: list[str]) -> None:
    """Read the page again when a record of one of these changes, or when one comes that is not there yet."""
    about = env.metadata[env.docname]
    about["experiments"] = sorted({*about.get("experiments", ()), *experiments})
    about["records"] = _files(about["experiments"])
    for path in about["records"]:
        env.note_dependency(path)


def _files(experiments: list[str]) -> list[str]:
    paths = (records.root() / name / f"{scale}.json" for name in experiments for scale in records.SCALES)
    return [str(path) for path in paths if path.exists()]


def _with_new_records(app: Sphinx, env: BuildEnvironment, *_: set[str]) -> list[str]:
    """Pages that have read other records than there are now.  (A file that is missing could be a dependency,
    too, but Sphinx would read the page at every build.)"""
    known = [(page, about) for page, about in env.metadata.items() if "experiments" in about]
    return [page for page, about in known if _files(about["experiments"]) != about["records"]]


def _definitions(provenance: dict[str, Any]) -> nodes.definition_list:
    items = nodes.definition_list(classes=["provenance-facts"])
    for term, text in facts(provenance).items():
        verbatim = term in ("Record again", "Checksum")
        content = nodes.literal(text=text) if verbatim else nodes.Text(text)
        definition = nodes.definition("", nodes.paragraph("", "", content))
        items += nodes.definition_list_item("", nodes.term(text=term), definition)
    return items


def _about(experiment: Experiment) -> list[nodes.Node]:
    heading = nodes.paragraph("", "", nodes.strong(text=experiment.title), classes=["provenance-title"])
    scale = records.best_scale(experiment.name)
    if scale is None:
        command = f"bnlib run {experiment.name} --scale smoke"
        missing = nodes.paragraph(
            "", "", nodes.Text("Not recorded. To record it: "), nodes.literal(text=command)
        )
        return [heading, missing]
    return [heading, _definitions(records.load(experiment.name, scale).provenance)]


def footer(experiments: list[Experiment]) -> list[nodes.Node]:
    """The collapsed box at the foot of a chapter."""
    start = '<details class="provenance"><summary>Where the numbers come from</summary>'
    body: list[nodes.Node] = [node for experiment in experiments for node in _about(experiment)]
    if not experiments:
        text = "This chapter replays no record: its numbers are computed when the notebook runs."
        body = [nodes.paragraph(text=text)]
    return [nodes.raw("", start, format="html"), *body, nodes.raw("", "</details>", format="html")]


def _append_footer(app: Sphinx, doctree: nodes.document) -> None:
    page = PurePosixPath(app.env.docname)
    if page.parent.as_posix() != CHAPTERS:
        return
    experiments = [e for e in EXPERIMENTS.values() if e.chapter == page.stem]
    note_records(app.env, [e.name for e in experiments])
    # Into the page's outermost section, so that it stands in the text's column.
    sections = [node for node in doctree.children if isinstance(node, nodes.section)]
    (sections[-1] if sections else doctree).extend(footer(experiments))


class RecordingTimes(SphinxDirective):
    """A table: how long each record took, on which device."""

    def run(self) -> list[nodes.Node]:
        note_records(self.env, list(EXPERIMENTS))
        rows = []
        for name, scale in records.recorded():
            made = records.load(name, scale).provenance
            rows.append(
                [
                    [nodes.literal(text=made["sittings"][-1]["command"])],
                    [nodes.Text(str(len(made["runs"])))],
                    [nodes.Text(run_time(made))],
                    [nodes.Text(devices(made))],
                ]
            )
        if not rows:
            return [nodes.paragraph(text="Nothing is recorded yet.")]
        return [table(["Command", "Runs", "Time", "Device"], rows, "recording-times")]


def setup(app: Sphinx) -> None:
    """Add the footer and the directive."""
    app.connect("doctree-read", _append_footer)
    app.connect("env-get-outdated", _with_new_records)
    app.add_directive("recording-times", RecordingTimes)
