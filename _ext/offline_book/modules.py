"""The code of anywidgets as files of the book.

In a notebook, a widget brings its code along as the text of an ES module. A page that ran text as code would
need a policy that allows it to, and browsers refuse ES modules to pages that are opened from disk. So the
build writes each module once, as a classic script which defines it under the name of its hash, and the page's
widget state keeps only this name.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError

FOLDER = "widgets"  # under _static
HASH_DIGITS = 16

DEFAULT = re.compile(r"^export default ", re.MULTILINE)
NAMED = re.compile(r"export\s*\{\s*(\w+) as default,?\s*\};?\s*$")
IMPORTED = re.compile(r"""(?:\bfrom\s*|\bimport\s*\(?\s*)["'](https?://[^"']+)["']""")
ON_DEMAND = re.compile(r"""\bimport\(\s*["']([^"']+)["']\s*\)""")
REMAINS = re.compile(r"^(?:import|export)\b", re.MULTILINE)


def module_imports(source: str) -> list[str]:
    """The absolute addresses that a JavaScript module imports, statically or dynamically."""
    return list(dict.fromkeys(IMPORTED.findall(source)))


def classic(source: str) -> str:
    """The body of a function that returns what the module ``source`` exports as its default.

    It may import vega-embed, on demand: the page has it. Raises ExtensionError for any other import, and for
    a module that exports anything else.
    """
    for address in module_imports(source):
        if "/vega-embed@" not in address:
            raise ExtensionError(f"A widget imports {address}, which the static book cannot serve.")
    body = ON_DEMAND.sub("Promise.resolve({ default: window.vegaEmbed })", source)
    body, found = DEFAULT.subn("const exported = ", body)
    if not found:
        body, found = NAMED.subn(r"const exported = \1;", body)
    if found != 1 or REMAINS.search(body):
        raise ExtensionError("A widget's module must export one default and import nothing but vega-embed.")
    return f"{body}\nreturn exported;"


def module_name(source: str) -> str:
    """The name under which the page finds a module."""
    return hashlib.sha256(source.encode()).hexdigest()[:HASH_DIGITS]


def write_module(source: str, static: Path) -> str:
    """Write the module into the folder of static files; returns the script's path in it."""
    name = module_name(source)
    path = static / FOLDER / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    script = f'window.bookWidgets.modules.set("{name}", () => {{\n"use strict";\n{classic(source)}\n}});\n'
    path.write_text(script, encoding="utf-8")
    return f"{FOLDER}/{name}.js"


def detach(state: dict[str, Any], static: Path) -> list[str]:
    """Put names in the place of the modules in a widget state (model id -> entry).

    Writes the modules; returns the paths of their scripts, each once.
    """
    scripts = {}
    for entry in state.values():
        if source := entry["state"].get("_esm"):
            scripts[write_module(source, static)] = None
            entry["state"]["_esm"] = module_name(source)
    return list(scripts)
