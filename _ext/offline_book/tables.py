"""Docutils tables out of rows of nodes, with classes for the style sheet."""

from __future__ import annotations

from docutils import nodes

Cell = list[nodes.Node]


def _row(cells: list[Cell]) -> nodes.row:
    row = nodes.row()
    for content in cells:
        inline = all(isinstance(node, nodes.Inline | nodes.Text) for node in content)
        row += nodes.entry("", *([nodes.paragraph("", "", *content)] if inline else content))
    return row


def table(headings: list[str], rows: list[list[Cell]], name: str) -> nodes.table:
    """A table whose class is ``name``. A cell is a list of inline nodes (one paragraph) or of blocks."""
    group = nodes.tgroup(cols=len(headings))
    group += [nodes.colspec(colwidth=1) for _ in headings]
    group += nodes.thead("", _row([[nodes.Text(heading)] for heading in headings]))
    group += nodes.tbody("", *(_row(cells) for cells in rows))
    return nodes.table("", group, classes=[name, "stacked"])
