"""Where the book's repository lives: ``repository.url`` in ``_config.yml``, and nowhere else.

GitHub Actions sets ``GITHUB_REPOSITORY`` (owner/name) to the repository that a workflow runs in. The build
follows it, so that the buttons and source links of a fork point to the fork.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError


@dataclass(frozen=True)
class Repository:
    """The address of the repository and the branch that the book is built from."""

    url: str
    branch: str

    @property
    def slug(self) -> str:
        """owner/name, as launch services want it."""
        return urlsplit(self.url).path.strip("/").removesuffix(".git")

    def source(self, path: str | PurePosixPath, first: int, last: int) -> str:
        """The address of some lines of a file."""
        return f"{self.url}/blob/{self.branch}/{path}#L{first}-L{last}"


def overridden(url: str, baseurl: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """The repository's and the book's address, of the fork if the build runs in one."""
    slug = environment.get("GITHUB_REPOSITORY", "").strip("/")
    if not slug or urlsplit(url).path.strip("/") == slug:
        return url, baseurl
    if slug.count("/") != 1:
        raise ConfigError(f"GITHUB_REPOSITORY must read owner/name, not {slug!r}.")
    owner, name = slug.split("/")
    server = environment.get("GITHUB_SERVER_URL", "").rstrip("/") or "https://" + urlsplit(url).netloc
    return f"{server}/{slug}", f"https://{owner.lower()}.github.io/{name}/"


def current(config: Config) -> Repository:
    """The repository that this build belongs to."""
    options = config.html_theme_options
    return Repository(options["repository_url"], options["repository_branch"])


def _follow_the_fork(app: Sphinx, config: Config) -> None:
    options = config.html_theme_options
    if not options.get("repository_url") or not options.get("repository_branch"):
        raise ConfigError("Set repository.url and repository.branch in _config.yml.")
    url = options["repository_url"].rstrip("/")
    options["repository_url"], config.html_baseurl = overridden(url, config.html_baseurl, os.environ)


def setup(app: Sphinx) -> None:
    """Connect to the configuration."""
    # Early: the theme reads these options when it starts.
    app.connect("config-inited", _follow_the_fork, priority=100)
