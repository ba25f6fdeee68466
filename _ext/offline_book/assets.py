"""MathJax and Vega, served by the book itself.

A page makes no request to another host. The third-party JavaScript comes out of installed wheels at build
time (nothing of it is committed) and is copied into ``_static/vendor``. Everything is a classic script, and
the import map holds ``data:`` addresses, so that the pages also work when opened from disk: browsers refuse
to load ES modules from ``file://``.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import altair
import vl_convert
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.util import logging

from . import lab

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
RUNTIME = ("model.js", "controls.js", "widgets.js")

# The wheel holds 24 MB: every input, output and font. The book needs TeX to CHTML, the extensions that TeX
# loads on demand, and English speech for readers who switch it on in MathJax's menu.
MATHJAX = (
    "tex-chtml.js",
    "input/tex/extensions",
    "output/chtml/fonts/woff-v2",
    "a11y",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
)

# The module that stands in for vega-embed wherever notebook code imports it from a CDN.
VEGA_EMBED_SHIM = "data:text/javascript,export%20default%20window.vegaEmbed"


def module_imports(source: str) -> list[str]:
    """The absolute addresses that a JavaScript module imports, statically or dynamically."""
    pattern = r"""(?:\bfrom\s*|\bimport\s*\(?\s*)["'](https?://[^"']+)["']"""
    return list(dict.fromkeys(re.findall(pattern, source)))


def import_map(states: list[dict[str, Any]]) -> dict[str, str]:
    """Map each address that the widgets on a page import to what the book serves instead.

    ``states`` are saved widget states (model id -> entry). Raises ExtensionError for an address for which
    the book has nothing to serve.
    """
    mapped: dict[str, str] = {}
    for state in states:
        for entry in state.values():
            for url in module_imports(entry["state"].get("_esm", "")):
                if "/vega-embed@" not in url:
                    raise ExtensionError(f"A widget imports {url}, which the static book cannot serve.")
                mapped[url] = VEGA_EMBED_SHIM
    return mapped


def altair_versions(body: str) -> dict[str, str]:
    """What Altair's HTML output asks for, in the form of its own VEGA_DEBUG variable.

    Altair's output loads Vega from a CDN unless ``window.VEGA_DEBUG`` says that exactly these versions are
    already there. They are read from the page because a notebook may have been run with another Altair.
    """
    found = re.findall(r'maybeLoadScript\("(vega(?:-lite|-embed)?)", *"([^"]+)"\)', body)
    return {f"{library.replace('-', '')}_version": version for library, version in found}


def _wheel_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ExtensionError(f'{package} is missing: pip install -e ".[book]" brings it.')
    return Path(spec.origin).parent


def _copy_mathjax(destination: Path) -> None:
    source = _wheel_folder("sphinx-mathjax-offline") / "static" / "mathjax"
    for part in MATHJAX:
        if (source / part).is_dir():
            shutil.copytree(source / part, destination / part, dirs_exist_ok=True)
        else:
            (destination / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / part, destination / part)


def write_vega(path: Path) -> None:
    """Write the Vega bundle as a classic script that leaves ``window.bundledVegaEmbed``."""
    version = ".".join(altair.VEGALITE_VERSION.split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.bundledVegaEmbed = vegaEmbed;", vl_version=version)
    path.write_text(f"(function () {{\n{bundle}\n}})();\n", encoding="utf-8")


def _write_assets(app: Sphinx) -> None:
    if app.builder.format != "html":
        return
    app.config.html_static_path.append(str(STATIC))
    vendor = Path(app.outdir) / "_static" / "vendor"
    # The bundle takes two seconds to make: an incremental build keeps it while its makers stay the same.
    stamp = vendor / "made-from.json"
    made_from = json.dumps([altair.__version__, vl_convert.__version__, MATHJAX])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == made_from:
        return
    shutil.rmtree(vendor, ignore_errors=True)
    vendor.mkdir(parents=True)
    _copy_mathjax(vendor / "mathjax")
    write_vega(vendor / "vega.js")
    stamp.write_text(made_from, encoding="utf-8")


def _configure(app: Sphinx, config: Config) -> None:
    config.mathjax_path = "vendor/mathjax/tex-chtml.js"
    # In place of require.js and the HTML manager, which myst-nb would load from CDNs.
    config.nb_ipywidgets_js = {name: {"defer": "defer"} for name in RUNTIME}


def _widget_states(scripts: list[Any]) -> list[dict[str, Any]]:
    bodies = (s.attributes.get("body") for s in scripts if s.attributes.get("type") == lab.STATE_TYPE)
    return [json.loads(body)["state"] for body in bodies]


def _complete_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    scripts = context.get("script_files")
    if app.builder.format != "html" or scripts is None:
        return
    # Sphinx marks the bibliography as an ARIA list whose children are no list items: no list is better.
    body = context.get("body", "").replace(' role="list" class="citation-list"', ' class="citation-list"')
    context["body"] = body
    states = _widget_states(scripts)
    imports = import_map(states)
    versions = altair_versions(body)
    if imports:
        app.add_js_file(None, body=json.dumps({"imports": imports}), type="importmap", priority=10)
    if versions:
        app.add_js_file(None, body=f"window.VEGA_DEBUG = {json.dumps(versions)};", priority=10)
    if imports or versions:
        app.add_js_file("charts.js", priority=20)
    lab.add_to_page(app, page, RUNTIME, states)
    drop_repeated_scripts(scripts)


def drop_repeated_scripts(scripts: list[Any]) -> None:
    """Keep one copy of each inline script.

    Sphinx registers an inline script once under the name None and once under '', so sphinx-thebe's
    ``const THEBE_JS_URL`` would be declared twice: an error in the console of every page.
    """
    seen: set[str] = set()
    kept = []
    for script in scripts:
        body = script.attributes.get("body")
        if body is None or body not in seen:
            kept.append(script)
        if body is not None:
            seen.add(body)
    scripts[:] = kept


def setup(app: Sphinx) -> None:
    """Connect to the build: assets first, pages after myst-nb."""
    app.connect("config-inited", _configure)
    app.connect("builder-inited", _write_assets)
    # After myst-nb (500), which by then has put the widget state among the page's scripts.
    app.connect("html-page-context", _complete_page, priority=600)
    app.add_css_file("book.css")
