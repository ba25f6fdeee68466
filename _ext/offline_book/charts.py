"""Altair's figures as data: the page's own runtime draws them.

Altair's HTML output is a script that fetches Vega from a CDN and draws at once. What the page gets instead is
the specification alone, which ``static/charts.js`` draws when the reader comes near it.
"""

from __future__ import annotations

import json
import re

from sphinx.errors import ExtensionError

CHART_TYPE = "application/vnd.vega-lite+json"
MARK = 'id="altair-viz-'
OUTPUT = re.compile(
    r"(?:<style>\s*#altair-viz-(?:(?!</style>).)*</style>\s*)?"
    r'<div id="altair-viz-[0-9a-f]+"></div>\s*<script type="text/javascript">(.*?)</script>',
    re.DOTALL,
)
ARGUMENTS = re.compile(r"\}\)\((?=\{)")  # of the function that draws: the specification, then options


def as_json(content: object) -> str:
    """JSON that can stand inside a script element, which "</" would end."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")


def _specification(script: str) -> dict:
    begins = [found.end() for found in ARGUMENTS.finditer(script)]
    if not begins:
        raise ExtensionError("Altair's HTML output has an unknown form: the page cannot draw its chart.")
    return json.JSONDecoder().raw_decode(script, begins[0])[0]


def as_data(body: str) -> str:
    """``body`` with each of Altair's outputs replaced by its specification.

    Raises ExtensionError for an output of an unknown form.
    """
    if MARK not in body:
        return body
    body = OUTPUT.sub(
        lambda found: (
            f'<div class="book-chart"><script type="{CHART_TYPE}">'
            f"{as_json(_specification(found[1]))}</script></div>"
        ),
        body,
    )
    if MARK in body:
        raise ExtensionError("Altair's HTML output has an unknown form: the page cannot draw its chart.")
    return body
