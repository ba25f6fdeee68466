"""``{scoreboard}``: every claim of the book with what was measured and the verdict that the code computed.

::

    ```{scoreboard}
    ```

An argument names one chapter (its file's stem) and shows that chapter's claims only. The verdict is a word
and a sign as well as a colour. ``{claim-map}`` is the short form for the front page: chapter by chapter, each
claim with its verdict and a link to its row.
"""

from __future__ import annotations

import math
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from bnlib.charts import spell
from bnlib.claims import scoreboard
from bnlib.experiments import EXPERIMENTS

from .provenance import CHAPTERS, note_records
from .tables import table

PAGE = "scoreboard"  # the page whose rows the claim map links to
SUPERSCRIPTS = str.maketrans("−0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SIGNS = {"holds": "✓", "fails": "✗", "inconclusive": "?", "not recorded": "–"}


def number(value: float, digits: int = 3) -> str:
    """A number as people write it: 0.0123, 14.2, 1500, 1.5×10⁻⁵."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "undefined"
    mantissa, _, exponent = spell(value, digits).partition("e")
    return f"{mantissa}×10{exponent.translate(SUPERSCRIPTS)}" if exponent else mantissa


def measured(row: dict[str, Any]) -> str:
    """The median over the seeds, with the unit."""
    if row["value"] is None:
        return "–"
    return f"{number(row['value'], row['digits'])} {row['unit']}".rstrip()


def basis(row: dict[str, Any]) -> str:
    """What stands behind the number: criterion, range over the seeds, seeds, scale."""
    parts = [f"criterion: {row['criterion']}"]
    if row["value"] is not None:
        low, high = (number(row[end], row["digits"]) for end in ("low", "high"))
        if low != high:
            parts.append(f"range {low} to {high}")
        parts.append(f"{row['n_seeds']} {'seed' if row['n_seeds'] == 1 else 'seeds'}")
    if row["scale"] is not None:
        parts.append(f"{row['scale']} scale")
    return "; ".join(parts)


def verdict(word: str) -> nodes.inline:
    """The verdict as a word with a sign; the style sheet adds the colour."""
    kind = word.replace(" ", "-")
    return nodes.inline("", f"{SIGNS[word]} {word}", classes=["verdict", f"verdict-{kind}"])


def _small(*content: nodes.Node) -> nodes.paragraph:
    return nodes.paragraph("", "", *content, classes=["small"])


def anchor(claim: dict[str, Any]) -> str:
    """The id of a claim's row on the scoreboard's page."""
    return f"claim-{claim['id']}"


def judged(app: Sphinx) -> list[dict[str, Any]]:
    """Every claim with its verdict: judged once in a build, for that takes seconds."""
    if not hasattr(app, "judged_claims"):
        app.judged_claims = scoreboard()
    return app.judged_claims


class Scoreboard(SphinxDirective):
    """One row per claim; without an argument each row links to its chapter."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        chapter = self.arguments[0] if self.arguments else None
        claims = [claim for claim in judged(self.env.app) if chapter in (None, claim["chapter"])]
        if chapter is not None and not claims:
            raise ExtensionError(f"{self.get_location()}: no claim belongs to the chapter {chapter}.")
        note_records(self.env, sorted(EXPERIMENTS))
        rows = [self._row(claim, chapter is None) for claim in claims]
        return [table(["Claim", "Measured", "Verdict"], rows, "scoreboard")]

    def _row(self, claim: dict[str, Any], with_chapter: bool) -> list[list[nodes.Node]]:
        source = f"{{cite:t}}`{claim['source']}`, {claim['where']}"
        claimed = [self._paragraph(claim["statement"]), self._paragraph(source, "small")]
        if with_chapter:
            claimed[0]["ids"].append(anchor(claim))
        result = [
            nodes.paragraph("", "", nodes.strong(text=measured(claim))),
            self._paragraph(claim["quantity"], "small"),
            _small(nodes.Text(basis(claim))),
        ]
        if claim["note"]:
            result.append(self._paragraph(claim["note"], "small"))
        judged = [nodes.paragraph("", "", verdict(claim["verdict"]))]
        if with_chapter:
            judged.append(_small(chapter_link(self.env.docname, claim["chapter"])))
        return [claimed, result, judged]

    def _paragraph(self, markdown: str, *classes: str) -> nodes.paragraph:
        content, messages = self.parse_inline(markdown)
        return nodes.paragraph("", "", *content, *messages, classes=list(classes))


class ClaimMap(SphinxDirective):
    """Every claim under its chapter: verdict, statement, and a link to what was measured."""

    def run(self) -> list[nodes.Node]:
        note_records(self.env, sorted(EXPERIMENTS))
        board = self.env.app.builder.get_relative_uri(self.env.docname, PAGE)
        by_chapter: dict[str, list[nodes.list_item]] = {}
        for claim in judged(self.env.app):
            link = nodes.reference("", claim["statement"], refuri=f"{board}#{anchor(claim)}", internal=True)
            item = nodes.paragraph("", "", verdict(claim["verdict"]), nodes.Text(" "), link)
            by_chapter.setdefault(claim["chapter"], []).append(nodes.list_item("", item))
        groups: list[nodes.Node] = []
        for chapter, items in by_chapter.items():
            heading = nodes.paragraph("", "", chapter_link(self.env.docname, chapter))
            groups += [heading, nodes.bullet_list("", *items)]
        return [nodes.container("", *groups, classes=["claim-map"])]


def chapter_link(docname: str, chapter: str) -> pending_xref:
    """A link from the page ``docname`` to a chapter, with the chapter's title as its text."""
    options = {"refdomain": "std", "reftype": "doc", "refexplicit": False}
    target = f"/{CHAPTERS}/{chapter}"
    return pending_xref(
        "", nodes.inline(text=chapter), refdoc=docname, refwarn=True, reftarget=target, **options
    )


def setup(app: Sphinx) -> None:
    """Add the directives."""
    app.add_directive("scoreboard", Scoreboard)
    app.add_directive("claim-map", ClaimMap)
