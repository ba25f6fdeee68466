"""The last hand on every page, once it is written: what only its whole text shows.

Icons become drawings, scripts that the page does not need go, and the policy is computed from what is left.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from . import icons, lab, policy

NOT_PAGES = ("_static", "_sources")
FINISHED = 'http-equiv="Content-Security-Policy"'
REDIRECT = 'http-equiv="Refresh"'

FONT_AWESOME = "_static/scripts/fontawesome.js"
FONT_AWESOME_SOURCE = "static/scripts/fontawesome.js"
# The theme brings them to every page, for a search that begins while one types; the book's has its own page.
SEARCH = ("_static/searchtools.js", "_static/language_data.js", "searchindex.js")
SEARCH_PAGE = "search.html"

# Inline scripts of the theme call what it defines.
AT_ONCE = "documentation_options.js"
LOADED = re.compile(r"<script(?![^>]*\b(?:defer|async)\b)(?=[^>]*\bsrc=)")
# Live code in the page would need a policy that lets any host's scripts in and makes code of text: no thebe.
THEBE = re.compile(
    r"<script>(?:const THEBE_JS_URL|kernelName) ?=.*?</script>\s*"
    r'|<script type="text/x-thebe-config">.*?</script>\s*'
    r'|<script\b[^>]*\bsrc="[^"]*sphinx-thebe\.js[^>]*></script>\s*|<link\b[^>]*sphinx-thebe\.css[^>]*/>\s*',
    re.DOTALL,
)

# Firefox fetches the page it names in advance, a whole chapter that nobody has asked for; the policy forbids
# that, and the console would say so on every page.
NEXT = re.compile(r'<link rel="next"[^>]*/>\s*')

LAB = re.compile(r'<script\b[^>]*\bsrc="[^"]*lab-images\.js')
STATE = re.compile(rf'<script type="{re.escape(lab.STATE_TYPE)}">.*?</script>\s*', re.DOTALL)


def without_script(page: str, source: str) -> str:
    """The page without the script element that loads the file ``source``."""
    return re.sub(rf'<script\b[^>]*\bsrc="[^"]*{re.escape(source)}(?:\?[^"]*)?"[^>]*></script>\s*', "", page)


def deferred(page: str) -> str:
    """The page with its scripts deferred: each would hold up the text and the loading of the next."""
    head, body_tag, body = page.partition("<body")
    lines = head.split("\n")
    lines = [line if AT_ONCE in line else LOADED.sub('<script defer="defer"', line) for line in lines]
    return "\n".join(lines) + body_tag + body


def state_last(page: str) -> str:
    """The page with its widget state at its end: a browser shows the text before it has read that far."""
    head, body_tag, body = page.partition("<body")
    found = STATE.search(head)
    if found is None:
        return page
    head = head[: found.start()] + head[found.end() :]
    text, end, rest = (body_tag + body).rpartition("</body>")
    return f"{head}{text}{found[0].rstrip()}\n{end}{rest}"


def finished(page: str, name: str, font_awesome: Path) -> str:
    """The page as it is published; ``name`` is its file's."""
    if FONT_AWESOME not in page:
        raise ExtensionError(f"{name}: the theme's icons come from another file than {FONT_AWESOME}.")
    page = icons.drawn(without_script(page, FONT_AWESOME), font_awesome)
    if name != SEARCH_PAGE:
        for source in SEARCH:
            page = without_script(page, source)
    page = deferred(NEXT.sub("", THEBE.sub("", page)))
    return policy.protected(state_last(page), trains=LAB.search(page) is not None)


def theme_file(path: str) -> Path:
    """A file of the theme that the book's theme builds upon."""
    return Path(find_spec("pydata_sphinx_theme").origin).parent / "theme" / "pydata_sphinx_theme" / path


def _finish(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    root = Path(app.outdir)
    font_awesome = theme_file(FONT_AWESOME_SOURCE)
    for path in sorted(root.rglob("*.html")):
        if path.relative_to(root).parts[0] in NOT_PAGES:
            continue
        page = path.read_text(encoding="utf-8")
        # What this build has not written again is finished; index.html only sends readers on.
        if FINISHED in page or REDIRECT in page:
            continue
        path.write_text(finished(page, path.relative_to(root).as_posix(), font_awesome), encoding="utf-8")
    # Drawn into the pages, or for those who develop the theme.
    for path in {*root.glob(f"{FONT_AWESOME}*"), *(root / "_static").rglob("*.map")}:
        path.unlink()


def setup(app: Sphinx) -> None:
    """Connect to the build."""
    app.connect("build-finished", _finish)
