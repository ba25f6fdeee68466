"""A real browser for the tests: Debian's Chromium under Playwright, a folder on a loopback port, and a page
of running Vega views."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import altair as alt
import pytest
from serving import WITHOUT_CARD, serving

from bnlib.widgets import Explorer

CHROMIUM = shutil.which("chromium")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which ``folder`` is served while the context lasts."""
    with serving(partial(_Quiet, directory=str(folder))) as address:
        yield address


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright browser. Skips the test, with the reason, where Chromium is missing."""
    if CHROMIUM is None:
        pytest.skip("chromium is missing: install Debian's chromium to run the browser tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WITHOUT_CARD)
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


@cache
def vega() -> str:
    """Vega, Vega-Lite and vega-embed in Altair's versions: a script that sets ``vegaEmbed``."""
    import vl_convert

    version = ".".join(alt.VEGALITE_VERSION.split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)


def spec_of(figure: Any) -> dict:
    """The Vega-Lite spec of an Altair chart in the book's theme, or of the one explorer in a box.

    A dict is a spec already.
    """
    if isinstance(figure, dict):
        return figure
    if isinstance(figure, alt.TopLevelMixin):
        with alt.theme.enable("bnlib"):
            return figure.to_dict()
    (explorer,) = [child for child in figure.children if isinstance(child, Explorer)]
    return explorer.spec


@contextmanager
def drawn(figures: Mapping[str, Any], width: int = 800) -> Iterator[Any]:
    """A page, ``width`` pixels wide, with ``figures`` (see `spec_of`) drawn without any network.

    Each stands in a ``div`` that has its name as ``id``, its Vega view as ``view`` and its spec as ``spec``.
    Nothing may be said in the console, neither while they are drawn nor as long as the context lasts.
    """
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.add_script_tag(content=vega())
        for name, figure in figures.items():
            page.evaluate(
                """async ([name, spec]) => {
                    const host = document.createElement("div");
                    host.id = name;
                    host.spec = spec;
                    host.style.width = "100%";
                    document.body.append(host);
                    host.view = (await vegaEmbed(host, spec, {renderer: "svg", actions: false})).view;
                }""",
                [name, spec_of(figure)],
            )
            assert problems == [], name
        yield page
        assert problems == []


def data_sets(page: Any, name: str, /, **params: Any) -> list[list[dict]]:
    """The data sets of the view ``name`` of a ``drawn`` page, after its ``params`` were set.

    Rows keep their numbers, strings, booleans, nulls and lists of strings (words on several lines), and lose
    what else is nested in them, and packed series: flattened, each of their rows still carries the whole.
    """
    # As text: Playwright takes an object apart by itself, which is slow for thousands of rows.
    text = page.evaluate(
        """async ([name, params]) => {
            const view = document.getElementById(name).view;
            for (const [param, value] of Object.entries(params)) view.signal(param, value);
            await view.runAsync();
            const plain = ([, value]) => value === null
                || (typeof value === "string" && value.length < 1000)
                || !["string", "object"].includes(typeof value)
                || (Array.isArray(value) && value.length < 1000 && value.every((v) => typeof v === "string"));
            const copy = (row) => Object.fromEntries(Object.entries(row).filter(plain));
            const names = Object.keys(view.getState({data: () => true}).data);
            const sets = names.filter((set) => set !== "root").map((set) => (view.data(set) ?? []).map(copy));
            // What JSON has no word for: Python reads these three as numbers.
            return JSON.stringify(sets, (_, value) => value === undefined ? null
                : typeof value === "number" && !Number.isFinite(value) ? `<${value}>` : value);
        }""",
        [name, params],
    )
    return json.loads(re.sub('"<(NaN|-?Infinity)>"', r"\1", text))


def told(data: list[list[dict]]) -> list:
    """What a chart's readout says: the texts that are not blank, in a chart's data sets."""
    return [row["told"] for rows in data for row in rows if str(row.get("told", "")).strip()]


def rows_with(data: list[list[dict]], *fields: str) -> list[dict]:
    """The largest data set whose rows have all of ``fields``, the first of those equally large."""
    return max((rows for rows in data if rows and all(field in rows[0] for field in fields)), key=len)


def assert_fits(page: Any, name: str, width: int) -> None:
    """The figure of that name, drawn again in a window of `width`, fills its place and keeps its words
    inside."""
    page.set_viewport_size({"width": width, "height": 900})
    host, drawn, inside = page.evaluate(
        """async id => {
            const host = document.getElementById(id);
            await vegaEmbed(host, host.spec, {renderer: "svg", actions: false});
            const svg = host.querySelector("svg");
            const {bottom, right} = svg.getBoundingClientRect();
            const texts = [...svg.querySelectorAll("text")].filter((e) => e.textContent.trim());
            const boxes = texts.map((e) => e.getBoundingClientRect());
            const fits = boxes.every((box) => box.bottom <= bottom + 1 && box.right <= right + 1);
            return [host.clientWidth, svg.getBoundingClientRect().width, fits];
        }""",
        name,
    )
    assert 0.7 * host <= drawn <= host + 1
    assert inside
