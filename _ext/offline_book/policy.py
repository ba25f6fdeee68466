"""The Content-Security-Policy of every page, as its first element that could be subject to one.

Scripts are the book's own files, or inline with a hash that is computed here, when the page is written; none
is made from text. Nothing may be asked of another host. GitHub Pages sends no headers of one's own, so the
policy is a ``meta`` element. In pages opened from disk, Firefox does not count files as ``'self'``: hence
``file:``, which a page from a server cannot reach in any case.
"""

from __future__ import annotations

import base64
import hashlib
import re

from sphinx.errors import ExtensionError

OWN = "'self' file:"
SCRIPT = re.compile(r"<script\b([^>]*)>(.*?)</script>", re.DOTALL)
TYPE = re.compile(r'\btype="([^"]*)"')
CHARSET = re.compile(r"<meta charset=[^>]*>")
HANDLER = re.compile(r'<[a-z][^>]*?\s(on[a-z]+)="([^"]*)"')
RUN = {"", "text/javascript", "application/javascript", "module", "importmap"}

# What the theme's buttons do in handlers that stand in the page; static/page.js does it instead.
ACTIONS = {"window.print()": "print", "toggleFullScreen()": "full-screen"}


def without_handlers(page: str) -> str:
    """The page with the theme's inline handlers as data. Raises ExtensionError for one that is unknown."""
    for code, action in ACTIONS.items():
        page = page.replace(f'onclick="{code}"', f'data-book-action="{action}"')
    markup = SCRIPT.sub("", page)
    if found := HANDLER.search(markup):
        raise ExtensionError(f'The page would block {found[1]}="{found[2]}": give it a listener instead.')
    return page


def inline_hashes(page: str) -> list[str]:
    """The hash, as the policy names it, of each inline script that a browser would run."""
    found = {}
    for attributes, text in SCRIPT.findall(page):
        kind = TYPE.search(attributes)
        if not re.search(r"\bsrc=", attributes) and (kind[1] if kind else "") in RUN:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            found[f"'sha256-{digest}'"] = None
    return list(found)


def policy(page: str, trains: bool) -> str:
    """The policy of a page; ``trains``: the page has the lab, whose workers compile WebAssembly."""
    scripts = [OWN, *inline_hashes(page), *(["'wasm-unsafe-eval'"] if trains else [])]
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(scripts),
        # MathJax and Vega write styles into what they draw.
        "style-src": f"{OWN} 'unsafe-inline'",
        "img-src": f"{OWN} data:",
        "font-src": OWN,
        "connect-src": "'self'",
        "worker-src": "blob:" if trains else "'none'",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": OWN,
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def protected(page: str, trains: bool) -> str:
    """The page with its policy. Raises ExtensionError for a page without a charset, after which it stands."""
    page = without_handlers(page)
    if not (charset := CHARSET.search(page)):
        raise ExtensionError("A page has no <meta charset>: its policy would have no place.")
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy(page, trains)}" />'
    return f"{page[: charset.end()]}\n    {meta}{page[charset.end() :]}"
