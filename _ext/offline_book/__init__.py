"""The book's Sphinx extension: pages that need no network, widgets that need no kernel.

Each module is one room and has its own ``setup(app)``:

=============  ====================================================================================
repository     the address of the repository, one setting; a fork's build points to the fork
assets         MathJax and Vega out of installed wheels, the widget runtime; each page gets what it needs
charts         Altair's figures as data, which the page draws when a reader comes near them
modules        the code of widgets as files
pages          the last hand on each page: icons as drawings, and what it does not need taken away
icons          the theme's icons, as drawings
policy         the Content-Security-Policy of each page
launch         Binder and Colab buttons; the download that installs the right package
listings       ``{listing}``: the real source of a function
provenance     where a chapter's numbers come from, at its foot; ``{recording-times}``
scoreboard     ``{scoreboard}``: every claim with its measured value and its verdict
citations      what makes hundreds of them quick
lab            ``{lab}``: networks that train in the browser, and their images
=============  ====================================================================================
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sphinx.application import Sphinx

import bnlib

from . import assets, citations, lab, launch, listings, pages, provenance, repository, scoreboard


def code() -> str:
    """The hash of all code that pages are made by: where it changes, Sphinx reads every page again."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(bnlib.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def setup(app: Sphinx) -> dict[str, object]:
    """Sphinx's entry point."""
    app.add_config_value("offline_book_code", code(), "env", str)
    for room in (repository, assets, citations, lab, launch, listings, pages, provenance, scoreboard):
        room.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
