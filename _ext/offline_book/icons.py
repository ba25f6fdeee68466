"""The theme's icons as drawings in the page.

The theme ships all of Font Awesome as a script of 1.5 MB, which replaces each ``<i class="fas fa-rocket">``
by a drawing once it has run. The book does so while it is built, with the drawings of the same file.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from pathlib import Path

from sphinx.errors import ExtensionError

STYLES = {"fas": "solid", "fa-solid": "solid", "far": "regular", "fa-regular": "regular"}
STYLES |= {"fab": "brands", "fa-brands": "brands"}

# In the script each style's icons end with a call that registers them.
REGISTERED = re.compile(r'\("fa-(solid|regular|brands)",\w+\)')
ICON = re.compile(r'"?([a-z0-9-]+)"?:\[(\d+),(\d+),\[([^\]]*)\],"[0-9a-f]+","([^"]+)"\]')
TAG = re.compile(r'<(i|span) class="([^"]*\bfa[bsr]?\b[^"]*)"([^>]*)>\s*</\1>')
TITLE = re.compile(r'\s*title="([^"]*)"')

Drawing = tuple[str, str, str]  # width, height, path


@cache
def drawings(script: Path) -> dict[tuple[str, str], Drawing]:
    """(style, name) -> drawing, of every icon in Font Awesome's script; an alias is a name."""
    text = script.read_text(encoding="utf-8")
    found = {}
    begin = 0
    for end in REGISTERED.finditer(text):
        for name, width, height, aliases, path in ICON.findall(text, begin, end.start()):
            for each in (name, *re.findall(r'"([a-z0-9-]+)"', aliases)):
                found[end[1], each] = (width, height, path)
        begin = end.end()
    return found


def drawn(page: str, script: Path) -> str:
    """The page with its icons drawn. Raises ExtensionError for an icon that Font Awesome does not have."""

    def draw(tag: re.Match[str]) -> str:
        classes = tag[2].split()
        style = next((STYLES[name] for name in classes if name in STYLES), "")
        names = [
            name.removeprefix("fa-") for name in classes if name.startswith("fa-") and name not in STYLES
        ]
        drawing = next((found for name in names if (found := drawings(script).get((style, name)))), None)
        if drawing is None:
            raise ExtensionError(f'Font Awesome has no icon for class="{tag[2]}".')
        width, height, path = drawing
        title = TITLE.search(tag[3])
        kept = " ".join(["svg-inline--fa", *(name for name in classes if name not in STYLES)])
        return (
            f'<svg class="{kept}" viewBox="0 0 {width} {height}" aria-hidden="true"{TITLE.sub("", tag[3])}>'
            + (f"<title>{escape(title[1], quote=False)}</title>" if title else "")
            + f'<path fill="currentColor" d="{path}"/></svg>'
        )

    return TAG.sub(draw, page)
