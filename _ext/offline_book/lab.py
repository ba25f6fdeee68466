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
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from bnlib import lab_images, widgets
from bnlib.widgets import Lab

logger = logging.getLogger(__name__)

STATE_TYPE = "application/vnd.jupyter.widget-state+json"
VIEW_TYPE = "application/vnd.jupyter.widget-view+json"
WIDGET = f"{Lab.__module__}.{Lab.__name__}"
MODEL = "lab"
VERSION = {"version_major": 2, "version_minor": 0}
FALLBACK = "The lab trains networks in your browser: it needs JavaScript."


def widget_state(preset: str) -> dict[str, Any]:
    """A widget state, as a notebook would save it, of a lab that begins with ``preset``."""
    lab = Lab(preset, link=True)
    kept = lab.get_state(["_esm", "_anywidget_id", "state", "link"])
    return {
        "version_major": 2,
        "version_minor": 0,
        "state": {MODEL: {"model_name": "AnyModel", "state": kept}},
    }


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
        # Inside a script element, "</" would end it.
        text = json.dumps(state).replace("</", "<\\/")
        view = json.dumps({**VERSION, "model_id": MODEL})
        content = (
            f"<noscript><p>{html.escape(FALLBACK)}</p></noscript>"
            f'<script type="{STATE_TYPE}">{text}</script><script type="{VIEW_TYPE}">{view}</script>'
        )
        self.env.metadata[self.env.docname]["lab"] = True
        self.env.note_dependency(str(Path(widgets.__file__).parent / "lab" / "lab.js"))
        return [nodes.raw("", content, format="html")]


def write_images(folder: Path) -> list[str]:
    """Write each data set that this machine has as a script into ``folder``; returns their names."""
    from bnlib.data import DataError

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


def _begin_images(app: Sphinx) -> None:
    """Another process packs the images, which takes seconds, while Sphinx reads the pages."""
    if app.builder.format == "html":
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        app.lab_images = pool.submit(write_images, Path(app.outdir) / "_static" / "lab")
        pool.shutdown(wait=False)


def _end_images(app: Sphinx, _: Exception | None) -> None:
    """Wait in any case: nothing is left running, and an error ends the build."""
    if app.builder.format == "html":
        for name in set(lab_images.SIZES).difference(app.lab_images.result()):
            logger.info("The lab goes without %s, which this machine does not have.", name)


def add_to_page(app: Sphinx, page: str, runtime: tuple[str, ...], states: list[dict[str, Any]]) -> None:
    """The scripts that a page with a lab needs; ``runtime`` where no notebook has brought it."""
    placed = app.env.metadata.get(page, {}).get("lab")
    if placed:
        for name in runtime:
            app.add_js_file(name, defer="defer")
    if placed or holds_a_lab(states):
        app.add_js_file("lab-images.js", priority=20, **{"data-names": json.dumps(app.lab_images.result())})


def setup(app: Sphinx) -> None:
    """Add the directive, and the images to the build."""
    app.connect("builder-inited", _begin_images)
    app.connect("build-finished", _end_images)
    app.add_directive("lab", LabDirective)
