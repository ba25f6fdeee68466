"""The lab in the static book: ``{lab}`` puts it on a page, and the images come as scripts of the book.

::

    ```{lab} rates
    ```

The argument is the experiment to begin with. The state of the page's lab stands in the page's address, so
that a link reproduces it. The digits are always there, MNIST where the builder has it; neither is committed.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from bnlib import lab_images, widgets
from bnlib.images import DataError
from bnlib.widgets import Lab

from .charts import as_json
from .modules import module_name

logger = logging.getLogger(__name__)

STATE_TYPE = "application/vnd.jupyter.widget-state+json"
VIEW_TYPE = "application/vnd.jupyter.widget-view+json"
WIDGET = f"{Lab.__module__}.{Lab.__name__}"
MODEL = "lab"
VERSION = {"version_major": 2, "version_minor": 0}
FALLBACK = "The lab trains networks in your browser: it needs JavaScript."


def source() -> str:
    """The lab's module."""
    return (Path(widgets.__file__).parent / "lab" / "lab.js").read_text(encoding="utf-8")


def widget_state(preset: str) -> dict[str, Any]:
    """A widget state, as a notebook would save it, of a lab that begins with ``preset``.

    In the place of its module stands the name, as in all states of the book.
    """
    lab = Lab(preset, link=True)
    kept = lab.get_state(["_anywidget_id", "state", "link"]) | {"_esm": module_name(source())}
    return {**VERSION, "state": {MODEL: {"model_name": "AnyModel", "state": kept}}}


def is_placed(app: Sphinx, page: str) -> bool:
    """Whether a page's text has the directive."""
    return bool(app.env.metadata.get(page, {}).get("lab"))


def holds_a_lab(states: list[dict[str, Any]]) -> bool:
    """Whether a widget state (model id -> entry) among ``states`` has a lab."""
    return any(entry["state"].get("_anywidget_id") == WIDGET for state in states for entry in state.values())


class LabDirective(SphinxDirective):
    """The lab, at this place of the page; one per page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        try:
            state = widget_state(self.arguments[0])
        except ValueError as error:
            raise ExtensionError(f"{self.get_location()}: {error}") from None
        text = as_json(state)
        view = json.dumps({**VERSION, "model_id": MODEL})
        content = (
            f'<div class="book-lab"><noscript><p>{html.escape(FALLBACK)}</p></noscript>'
            f'<script type="{STATE_TYPE}">{text}</script><script type="{VIEW_TYPE}">{view}</script></div>'
        )
        self.env.metadata[self.env.docname]["lab"] = True
        self.env.note_dependency(str(Path(widgets.__file__).parent / "lab" / "lab.js"))
        return [nodes.raw("", content, format="html")]


def write_images(folder: Path) -> list[str]:
    """Write each data set that this machine has as a script into ``folder``; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in lab_images.SIZES:
        try:
            about, packet = lab_images.pack(name)
        except DataError:
            (folder / f"{name}.js").unlink(missing_ok=True)
            continue
        content = json.dumps({"about": about, "packed": base64.b64encode(packet).decode()})
        script = f"window.bnlibLabData.deliver({json.dumps(name)}, {content});\n"
        (folder / f"{name}.js").write_text(script, encoding="utf-8")
        written.append(name)
    return written


def _write_images(app: Sphinx) -> None:
    if app.builder.format != "html":
        return
    app.lab_images = write_images(Path(app.outdir) / "_static" / "lab")
    for name in set(lab_images.SIZES).difference(app.lab_images):
        logger.info("The lab goes without %s, which this machine does not have.", name)


def add_to_page(app: Sphinx, page: str, states: list[dict[str, Any]]) -> None:
    """The images, where the page has a lab."""
    if is_placed(app, page) or holds_a_lab(states):
        app.add_js_file("lab-images.js", priority=20, **{"data-names": json.dumps(app.lab_images)})


def setup(app: Sphinx) -> None:
    """Add the directive, and the images to the build."""
    app.connect("builder-inited", _write_images)
    app.add_directive("lab", LabDirective)
