"""MathJax and Vega, served by the book itself.

A page makes no request to another host. The third-party JavaScript comes out of installed wheels at build
time (nothing of it is committed) and is copied into ``_static/vendor``. Everything is a classic script, so
that the pages also work when opened from disk: browsers refuse to load ES modules from ``file://``. A page
brings what it needs: MathJax where there is mathematics, Vega and the widgets where there are figures.
"""

from __future__ import annotations

import importlib.util
import json
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

from . import charts, lab, modules

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
CHARTS = ("expressions.js", "charts.js")
# In this order; the widgets' own modules come after the first.
RUNTIME = ("model.js", "controls.js", "widgets.js")

MATHJAX_FOLDER = "vendor/mathjax"
# The wheel holds 24 MB: every input, output and font. The book needs TeX to CHTML and the extensions that TeX
# loads on demand; static/maths.js takes out of MathJax's menu what would need more. A screen reader gets
# MathML, which stands hidden beside each formula.
MATHJAX = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts/woff-v2")


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
    config.mathjax_path = f"{MATHJAX_FOLDER}/tex-chtml.js"
    # In place of require.js and the HTML manager, which myst-nb would load from CDNs.
    config.nb_ipywidgets_js = {}


def add_runtime(app: Sphinx, scripts: list[str]) -> None:
    """Let the page run its widgets, whose modules are ``scripts``, before MathJax (500) begins its work."""
    first, *rest = RUNTIME
    for priority, name in enumerate((first, *scripts, *rest), start=400):
        app.add_js_file(name, priority=priority, defer="defer")


def has_maths(body: str, states: list[dict[str, Any]]) -> bool:
    """Whether there is TeX on a page: in its text, or in what its widgets are called."""
    described = (entry["state"].get("description", "") for state in states for entry in state.values())
    return 'class="math' in body or any("\\(" in str(text) for text in described)


def has_charts(body: str, states: list[dict[str, Any]]) -> bool:
    """Whether Vega has something to draw on a page: in its text or in a widget."""
    return charts.CHART_TYPE in body or any(
        "spec" in entry["state"] for state in states for entry in state.values()
    )


def _is_mathjax(script: Any) -> bool:
    return MATHJAX_FOLDER in str(script.filename) or "window.MathJax" in script.attributes.get("body", "")


def _complete_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    scripts = context.get("script_files")
    if app.builder.format != "html" or scripts is None:
        return
    # Sphinx marks the bibliography as an ARIA list whose children are no list items: no list is better.
    body = context.get("body", "").replace(' role="list" class="citation-list"', ' class="citation-list"')
    context["body"] = body = charts.as_data(body)
    static = Path(app.outdir) / "_static"
    states = []
    found = []
    for script in scripts:
        if script.attributes.get("type") == lab.STATE_TYPE:
            saved = json.loads(script.attributes["body"])
            found += modules.detach(saved["state"], static)
            script.attributes["body"] = charts.as_json(saved)
            states.append(saved["state"])
    if lab.is_placed(app, page):
        found.append(modules.write_module(lab.source(), static))
    app.add_js_file("page.js", priority=200, defer="defer")
    if has_charts(body, states):
        for priority, name in enumerate(CHARTS, start=390):
            app.add_js_file(name, priority=priority, defer="defer")
    if found or states:
        add_runtime(app, list(dict.fromkeys(found)))
    lab.add_to_page(app, page, states)
    if has_maths(body, states):
        app.add_js_file("maths.js", priority=300, defer="defer")
        keep = scripts
    else:
        keep = [script for script in scripts if not _is_mathjax(script)]
    scripts[:] = without_repeated(keep)


def without_repeated(scripts: list[Any]) -> list[Any]:
    """The scripts with one copy of each inline one.

    Sphinx registers an inline script once under the name None and once under '', and an extension's ``const``
    would be declared twice: an error in the console of every page.
    """
    seen: set[str] = set()
    kept = []
    for script in scripts:
        body = script.attributes.get("body")
        if body is None or body not in seen:
            kept.append(script)
        if body is not None:
            seen.add(body)
    return kept


def setup(app: Sphinx) -> None:
    """Connect to the build: assets first, pages after myst-nb."""
    app.connect("config-inited", _configure)
    app.connect("builder-inited", _write_assets)
    # After myst-nb (500), which by then has put the widget state among the page's scripts.
    app.connect("html-page-context", _complete_page, priority=600)
    app.add_css_file("book.css")
