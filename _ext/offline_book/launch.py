"""Launch buttons that work, on Markdown pages too, and notebooks that install the right package.

The theme offers Binder and Colab on notebooks. Two things are added here:

- Colab opens the *published* copy of a notebook (``_sources/`` on the branch gh-pages), into whose first
  cell the build has written the repository's address: a fork's Colab button installs the fork.
- Markdown pages get a Binder button, which opens JupyterLab at the chapters.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from .repository import Repository, current

PUBLISHED_BRANCH = "gh-pages"
COLAB_TAG = "colab"
COLAB_HOST = "https://colab.research.google.com"
ASSIGNMENT = re.compile(r'^repository = "[^"]*"', re.MULTILINE)


def stamped(notebook: str, repository_url: str) -> str:
    """The notebook's JSON text with the repository's address in its cell tagged ``colab``.

    Stamping again, with the same or another address, gives the same as stamping once. Raises ValueError if
    the tagged cell is missing or does not set ``repository = "..."``.
    """
    content = json.loads(notebook)
    cells = [c for c in content["cells"] if COLAB_TAG in c["metadata"].get("tags", [])]
    if not cells:
        raise ValueError(f'no cell is tagged "{COLAB_TAG}"')
    for cell in cells:
        as_list = isinstance(cell["source"], list)
        source = "".join(cell["source"]) if as_list else cell["source"]
        source, count = ASSIGNMENT.subn(f'repository = "{repository_url}"', source)
        if count != 1:
            raise ValueError(f'the cell tagged "{COLAB_TAG}" must set repository = "" once')
        cell["source"] = source.splitlines(keepends=True) if as_list else source
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def colab_url(repository: Repository, page: str) -> str:
    """Colab with the published copy of a notebook."""
    return f"{COLAB_HOST}/github/{repository.slug}/blob/{PUBLISHED_BRANCH}/_sources/{page}.ipynb"


def binder_url(host: str, repository: Repository, path: str) -> str:
    """JupyterLab on Binder, at a file or folder of the repository."""
    return f"{host.rstrip('/')}/v2/gh/{repository.slug}/{repository.branch}?urlpath=lab/tree/{path}"


def _stamp_published_notebooks(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    url = current(app.config).url
    for page in sorted(app.env.found_docs):
        path = Path(app.outdir) / "_sources" / f"{page}.ipynb"
        if not path.exists():
            continue
        try:
            text = stamped(path.read_text(encoding="utf-8"), url)
        except ValueError as problem:
            raise ExtensionError(f"{page}.ipynb cannot be opened in Colab: {problem}.") from None
        path.write_text(text, encoding="utf-8")


def _complete_buttons(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    if "header_buttons" not in context or doctree is None:
        return
    repository = current(app.config)
    groups = {button.get("label"): button for button in context["header_buttons"]}
    if "launch-buttons" in groups:
        for button in groups["launch-buttons"]["buttons"]:
            if button["text"] == "Colab":
                button["url"] = colab_url(repository, page)
        return
    host = app.config.html_theme_options.get("launch_buttons", {}).get("binderhub_url")
    if host:
        binder = {
            "type": "link",
            "text": "Binder",
            "tooltip": "Open the chapters on Binder",
            "icon": "_static/images/logo_binder.svg",
            "url": binder_url(host, repository, "chapters"),
        }
        group = {
            "type": "group",
            "tooltip": "Launch interactive content",
            "icon": "fas fa-rocket",
            "buttons": [binder],
            "label": "launch-buttons",
        }
        context["header_buttons"].insert(0, group)


def setup(app: Sphinx) -> None:
    """Connect to the build."""
    # After the theme (501) has added its own buttons.
    app.connect("html-page-context", _complete_buttons, priority=600)
    app.connect("build-finished", _stamp_published_notebooks)
