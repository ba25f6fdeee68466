"""A real browser for the tests: Debian's Chromium under Playwright, and a folder on a loopback port."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
# No sandbox in containers; no traffic of the browser's own.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which ``folder`` is served while the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright browser. Skips the test, with the reason, where Chromium is missing."""
    if CHROMIUM is None:
        pytest.skip("chromium is missing: install Debian's chromium to run the browser tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Watch:
    """What a page asks for and complains about. ``home`` is where requests may go."""

    def __init__(self, page: Any, home: str) -> None:
        self.requests_elsewhere: list[str] = []
        self.problems: list[str] = []
        page.on("request", lambda request: self._request(request.url, home))
        page.on("console", lambda message: self._console(message))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("requestfailed", lambda request: self.problems.append(f"failed: {request.url}"))
        page.on("response", lambda answer: self._response(answer))

    def _request(self, url: str, home: str) -> None:
        if not url.startswith((home, "blob:", "data:")):
            self.requests_elsewhere.append(url)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def _response(self, answer: Any) -> None:
        if answer.status >= 400:
            self.problems.append(f"{answer.status}: {answer.url}")
