"""Citations: each needs a plugin of pybtex, which looks through all installed packages for it every time.

Registered by hand, it is found at once; with some five hundred citations that is seconds of a build.
"""

from __future__ import annotations

from pybtex.plugin import find_plugin, register_plugin
from sphinx.application import Sphinx

PLUGIN = ("pybtex.backends", "plaintext")


def setup(app: Sphinx) -> None:
    """Register the plugin; ``app`` needs nothing else."""
    register_plugin(*PLUGIN, find_plugin(*PLUGIN), force=True)
