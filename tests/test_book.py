"""The built book: the build itself, then every page in a real browser."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from browser import Watch, chromium, served
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[1]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(entry["file"] for part in TOC["parts"] for entry in part["chapters"])]
CHAPTERS = [page for page in PAGES if page.startswith("chapters/")]
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]

WIDE, PHONE = 1280, 390
LOOKS = [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light"), (PHONE, "dark")]
# The lab has tests of its own: no control of it moves a Vega figure.
EXPLORERS = ".book-widget:has(.book-anywidget):not(:has(.bnlab))"
CONTROLS = "input[type=range], input[type=checkbox], input[type=radio]:checked, select, button.book-button"


@dataclass
class Build:
    html: Path
    code: int
    log: str
    seconds: float

    def soup(self, page: str) -> BeautifulSoup:
        return BeautifulSoup((self.html / f"{page}.html").read_text(encoding="utf-8"), "html.parser")


def build_book(folder: Path, **variables: str) -> Build:
    """Build from scratch into ``folder``, warnings as errors, as a maintainer would."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")} | variables
    jupyter_book = str(Path(sys.executable).with_name("jupyter-book"))
    command = [jupyter_book, "build", str(ROOT), "--path-output", str(folder)]
    begin = time.monotonic()
    made = subprocess.run(
        [*command, "-W", "--keep-going"], env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - begin
    return Build(folder / "_build" / "html", made.returncode, made.stdout + made.stderr, seconds)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Build:
    return build_book(tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="module")
def fork(tmp_path_factory) -> Build:
    return build_book(tmp_path_factory.mktemp("fork"), GITHUB_REPOSITORY="Reader/my-fork")


# --- the build -----------------------------------------------------------------------------------------


def test_the_book_builds_without_warnings_in_half_a_minute(book):
    assert book.code == 0, book.log[-4000:]
    assert "WARNING" not in book.log
    assert book.seconds < 30


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_launch_buttons(book, page):
    links = {a.get_text(strip=True): a["href"] for a in book.soup(page).select(".dropdown-launch-buttons a")}
    slug = REPOSITORY.split("github.com/")[1]
    assert f"/gh/{slug}/main?urlpath=lab/tree/chapters" in links["Binder"]
    if page in CHAPTERS:
        assert links["Binder"].endswith(f"{page}.ipynb")
        assert links["Colab"].endswith(f"/github/{slug}/blob/gh-pages/_sources/{page}.ipynb")


@pytest.mark.parametrize("page", CHAPTERS)
def test_chapters_can_be_run_live_and_downloaded(book, page):
    soup = book.soup(page)
    assert soup.select("[onclick='initThebeSBT()']")
    download = soup.select_one(".btn-download-source-button")
    assert download["href"].endswith(f"_sources/{page}.ipynb")
    assert not soup.select(".tag_colab")


@pytest.mark.parametrize("page", CHAPTERS)
def test_the_download_installs_the_package_from_this_repository(book, page):
    notebook = json.loads((book.html / "_sources" / f"{page}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if "colab" in c["metadata"].get("tags", [])]
    assert len(cells) == 1
    assert f'repository = "{REPOSITORY}"' in cells[0]


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_says_where_its_numbers_come_from(book, page):
    assert "Where the numbers come from" in book.soup(page).select_one("details.provenance summary").text


def test_a_fork_points_to_itself(fork):
    assert fork.code == 0, fork.log[-4000:]
    for page in PAGES:
        text = (fork.html / f"{page}.html").read_text(encoding="utf-8")
        assert REPOSITORY not in text
        assert "mybinder.org/v2/gh/Reader/my-fork/" in text
        assert f'href="https://reader.github.io/my-fork/{page}.html"' in text
    for page in CHAPTERS:
        notebook = (fork.html / "_sources" / f"{page}.ipynb").read_text(encoding="utf-8")
        assert 'repository = \\"https://github.com/Reader/my-fork\\"' in notebook


def test_the_scoreboard_lists_every_claim(book):
    from bnlib.experiments import CLAIMS

    rows = book.soup("scoreboard").select("table.scoreboard tbody tr")
    assert len(rows) == len(CLAIMS)
    for row in rows:
        assert row.select_one(".verdict").text.split(" ", 1)[1] in (
            "holds",
            "fails",
            "inconclusive",
            "not recorded",
        )
        assert row.select_one("a[href^='references.html#']"), "a claim must cite its source"
        assert row.select_one("a[href^='chapters/']"), "a claim must link to its chapter"


# --- every page in a browser ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(book) -> Iterator[str]:
    assert book.code == 0, book.log[-4000:]
    with served(book.html) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@contextmanager
def opened(browser: Any, address: str, home: str, width: int = WIDE, scheme: str = "light") -> Iterator[Any]:
    """A page in a fresh context (no cache, no stored theme), settled: maths, charts and widgets are there."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.watch = Watch(page, home)
    page.goto(address, wait_until="load")
    page.wait_for_function(
        """() => {
          const { charts, widgets } = document.documentElement.dataset;
          const hasWidgets = document.querySelector('script[type$="widget-view+json"]');
          const hasCharts = document.querySelector('[id^="altair-viz"], .book-anywidget:not(:has(.bnlab))');
          return (!hasWidgets || widgets === "ready") && (!hasCharts || charts === "ready");
        }"""
    )
    page.evaluate("() => window.MathJax?.startup?.promise")
    yield page
    context.close()


@pytest.fixture(scope="module", params=product(PAGES, LOOKS), ids=lambda p: f"{p[0]}-{p[1][0]}-{p[1][1]}")
def look(request, browser, site) -> Iterator[Any]:
    """One page at one width in one theme, with everything that can be unfolded unfolded."""
    name, (width, scheme) = request.param
    with opened(browser, f"{site}{name}.html", site, width, scheme) as page:
        page.scheme = scheme
        page.evaluate(
            """() => {
              document.querySelectorAll("details").forEach((e) => (e.open = true));
              document.querySelectorAll(".toggle-hidden").forEach((e) => e.classList.remove("toggle-hidden"));
            }"""
        )
        page.wait_for_timeout(300)  # figures that were hidden measure themselves and fade in
        yield page


def test_a_page_asks_no_other_host_for_anything(look):
    assert look.watch.requests_elsewhere == []


def test_a_page_has_nothing_to_complain_about(look):
    assert look.watch.problems == []


def test_a_page_follows_the_systems_theme(look):
    assert look.evaluate("document.documentElement.dataset.theme") == look.scheme


def test_a_page_does_not_scroll_sideways(look):
    assert look.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def test_all_maths_is_typeset(look):
    found = look.evaluate(
        """() => ({
          left: [...document.querySelectorAll("span.math, div.math")]
            .filter((e) => !e.querySelector("mjx-container")).map((e) => e.textContent),
          errors: [...document.querySelectorAll("mjx-merror, [data-mjx-error]")].map((e) => e.textContent),
          raw: [...document.querySelectorAll("article p, article li, .book-label, .book-text")]
            .map((e) => e.textContent).filter((text) => /\\\\\\(|\\\\\\[|\\$\\$/.test(text)),
        })"""
    )
    assert found == {"left": [], "errors": [], "raw": []}


def test_every_figure_is_drawn_in_the_pages_ink(look):
    figures = look.evaluate(
        """() => [...document.querySelectorAll(
          '[id^="altair-viz"], .book-anywidget:not(:has(.bnlab))')].map((e) => ({
          svg: e.querySelectorAll("svg.marks").length,
          label: (e.matches("[role=graphics-document]") ? e : e.querySelector("[role=graphics-document]"))
            ?.getAttribute("aria-label") ?? "",
          ink: getComputedStyle(e).color,
          page: getComputedStyle(document.querySelector(".bd-content")).color,
          ground: getComputedStyle(e.closest(".text_html") ?? e).backgroundColor,
        }))"""
    )
    for figure in figures:
        assert figure["svg"] == 1
        assert len(figure["label"]) > 10, "a figure needs alt text"
        assert figure["ink"] == figure["page"]
        assert figure["ground"] == "rgba(0, 0, 0, 0)", "dark mode must not put a white card behind a chart"


def test_a_page_passes_axe(look):
    if look.scheme == "dark" and look.viewport_size["width"] == PHONE:
        return  # its colours are those of the wide dark page, its layout that of the light phone page
    report = Axe().run(look, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [v for v in report if v["impact"] in ("serious", "critical")]
    assert not serious, "\n".join(
        f"{v['id']}: {v['help']}\n  " + "\n  ".join(n["html"][:200] for n in v["nodes"][:5]) for v in serious
    )


# --- the controls --------------------------------------------------------------------------------------


def picture(widget: Any) -> str:
    return widget.evaluate("(w) => [...w.querySelectorAll('svg.marks')].map((s) => s.outerHTML).join()")


def press(page: Any, control: Any) -> None:
    """Move a control by keyboard: one step to the right, or to the left if it stands at the end."""
    kind = control.evaluate("(c) => c.type ?? c.localName")
    control.focus()
    if kind == "range":
        at_end = control.evaluate("(c) => c.valueAsNumber >= Number(c.max)")
        page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
    elif kind == "radio":
        page.keyboard.press("ArrowRight")
    elif kind == "select-one":
        at_end = control.evaluate("(c) => c.selectedIndex === c.options.length - 1")
        page.keyboard.press("ArrowUp" if at_end else "ArrowDown")
    else:
        page.keyboard.press("Space")


def moves(page: Any, widget: Any, control: Any) -> bool:
    before = picture(widget)
    press(page, control)
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        page.wait_for_timeout(50)
        if picture(widget) != before:
            return True
    return False


def to_the_end(page: Any, widget: Any, but: Any) -> None:
    """Some controls only show once another is moved: gamma, say, before the stage at which it multiplies."""
    for other in widget.query_selector_all("input[type=range]"):
        if not other.evaluate("(o, but) => o === but", but):
            other.focus()
            page.keyboard.press("End")
    page.wait_for_timeout(200)


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_control_moves_its_figure_by_keyboard(browser, site, name):
    with opened(browser, f"{site}{name}.html", site) as page:
        stuck = []
        for widget in page.query_selector_all(EXPLORERS):
            for control in widget.query_selector_all(CONTROLS):
                if moves(page, widget, control):
                    continue
                to_the_end(page, widget, control)
                if not moves(page, widget, control):
                    stuck.append(control.evaluate("(c) => c.closest('.book-row').innerText"))
        assert stuck == []
        assert page.watch.problems == []
        assert page.watch.requests_elsewhere == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_number_on_a_slider_is_the_number_in_its_figure(browser, site, name):
    with opened(browser, f"{site}{name}.html", site) as page:
        for widget in page.query_selector_all(EXPLORERS):
            for control in widget.query_selector_all("input[type=range]"):
                press(page, control)
                page.wait_for_timeout(100)
                if (value := control.get_attribute("data-value")) is None:
                    continue  # a choice among labels: its position is no number of the figure
                signals = widget.evaluate(
                    """(w) => [...w.querySelectorAll(".book-anywidget")].flatMap((host) =>
                         Object.values(host.vegaView.getState({ signals: () => true }).signals))"""
                )
                assert any(isinstance(s, int | float) and abs(s - float(value)) < 1e-9 for s in signals), (
                    value
                )


@pytest.mark.parametrize("name", CHAPTERS)
def test_controls_are_named_and_large_enough_for_fingers(browser, site, name):
    with opened(browser, f"{site}{name}.html", site, PHONE) as page:
        controls = page.evaluate(
            """(selector) => [...document.querySelectorAll(".book-widget")].flatMap((w) =>
                 [...w.querySelectorAll(selector)].map((c) => ({
                   name: c.labels?.[0]?.textContent || c.getAttribute("aria-label") || c.textContent,
                   spoken: c.type !== "range" || Boolean(c.getAttribute("aria-valuetext")),
                   height: (["checkbox", "radio"].includes(c.type) ? c.closest(".book-row, label") : c)
                     .getBoundingClientRect().height,
                 })))""",
            CONTROLS,
        )
        for control in controls:
            assert control["name"].strip()
            assert control["spoken"], control
            assert control["height"] >= 44, control


# --- the book as a whole -------------------------------------------------------------------------------


def test_search_works_without_a_network(browser, site):
    with opened(browser, f"{site}search.html?q=normalization", site) as page:
        page.wait_for_selector("#search-results li")
        assert page.watch.requests_elsewhere == []
        assert page.watch.problems == []
    with opened(browser, f"{site}search.html?q=zxqvzxqv", site) as page:
        page.get_by_text("did not match any documents").wait_for()


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_book_can_be_read_from_disk(browser, book, name):
    """Readers open the folder that `jupyter-book build .` names: there, browsers refuse ES modules."""
    home = book.html.as_uri()
    with opened(browser, f"{home}/{name}.html", home) as page:
        assert page.watch.problems == []
        assert page.watch.requests_elsewhere == []
        assert page.query_selector_all("mjx-container")


def test_the_theme_can_be_switched_by_hand(browser, site):
    with opened(browser, f"{site}{CHAPTERS[0]}.html", site) as page:
        figure = page.query_selector("svg.marks text")
        ink = "(e) => getComputedStyle(e).fill"
        before = figure.evaluate(ink) if figure else None
        page.click(".theme-switch-button")
        page.wait_for_function("document.documentElement.dataset.mode !== 'auto'")
        while page.evaluate("document.documentElement.dataset.theme") != "dark":
            page.click(".theme-switch-button")
        assert figure is None or figure.evaluate(ink) != before


def test_live_code_asks_for_nothing_until_it_is_pressed(browser, site):
    with opened(browser, f"{site}{CHAPTERS[0]}.html", site) as page:
        assert page.watch.requests_elsewhere == []
        asked = []
        page.route(re.compile(r"^https://"), lambda route: (asked.append(route.request.url), route.abort()))
        page.evaluate("initThebeSBT()")
        page.wait_for_timeout(500)
        assert any("thebe" in url for url in asked)
