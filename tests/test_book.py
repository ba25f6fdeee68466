"""The built book: the build itself, then every page in a real browser."""

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import offline
import pages
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
# In these every page is loaded; on a phone it turns dark under the reader's eyes. One look is from disk:
# readers open the folder that `jupyter-book build .` names, where browsers refuse ES modules.
LOOKS = [(WIDE, "light", "served"), (WIDE, "dark", "disk"), (PHONE, "light", "served")]
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


def test_the_book_builds_without_warnings_in_a_minute(book, fork):
    assert book.code == 0, book.log[-4000:]
    assert "WARNING" not in book.log
    # The first build in a new environment also compiles what it imports, and another test runs beside each.
    # Half a minute is the goal of benchmarks/pages.py.
    assert min(book.seconds, fork.seconds) < 60


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_launch_buttons(book, page):
    links = {a.get_text(strip=True): a["href"] for a in book.soup(page).select(".dropdown-launch-buttons a")}
    slug = REPOSITORY.split("github.com/")[1]
    assert f"/gh/{slug}/main?urlpath=lab/tree/chapters" in links["Binder"]
    if page in CHAPTERS:
        assert links["Binder"].endswith(f"{page}.ipynb")
        assert links["Colab"].endswith(f"/github/{slug}/blob/gh-pages/_sources/{page}.ipynb")


@pytest.mark.parametrize("page", CHAPTERS)
def test_chapters_can_be_downloaded(book, page):
    soup = book.soup(page)
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


SETTLED = """() => {
  const { charts, maths, widgets } = document.documentElement.dataset;
  const has = (selector) => document.querySelector(selector);
  return (!has('script[type$="widget-view+json"]') || widgets === "ready")
    && (!has("script[src*='/charts.js']") || charts === "ready")
    && (!has("script[src*='/maths.js']") || maths === "ready");
}"""


@contextmanager
def opened(browser: Any, address: str, home: str, width: int = WIDE, scheme: str = "light") -> Iterator[Any]:
    """A page in a fresh context (no cache, no stored theme), settled: maths, charts and widgets are there."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.watch = Watch(page, home)
    page.goto(address, wait_until="load")
    page.evaluate("() => window.bookCharts?.drawAll()")  # those, too, that nobody has come near
    page.wait_for_function(SETTLED)
    yield page
    context.close()


@pytest.fixture(scope="module", params=product(PAGES, LOOKS), ids=lambda p: "-".join([p[0], *map(str, p[1])]))
def look(request, browser, book, site) -> Iterator[Any]:
    """One page at one width in one theme, with everything that can be unfolded unfolded."""
    name, (width, scheme, place) = request.param
    home = site if place == "served" else f"{book.html.as_uri()}/"
    with opened(browser, f"{home}{name}.html", home, width, scheme) as page:
        page.name, page.scheme = name, scheme
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
          '.book-chart, .book-anywidget:not(:has(.bnlab))')].map((e) => ({
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


def test_on_a_phone_a_page_turns_dark_with_the_system(look):
    if look.viewport_size["width"] != PHONE:
        return  # the wide page is also loaded dark
    look.emulate_media(color_scheme="dark")
    look.scheme = "dark"
    look.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")
    test_every_figure_is_drawn_in_the_pages_ink(look)
    test_all_maths_is_typeset(look)
    test_a_page_does_not_scroll_sideways(look)
    test_a_page_asks_no_other_host_for_anything(look)
    test_a_page_has_nothing_to_complain_about(look)
    look.emulate_media(color_scheme="light")
    look.scheme = "light"
    look.wait_for_function("() => document.documentElement.dataset.theme === 'light'")


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


def tells_its_number(widget: Any, control: Any) -> bool:
    """Is the number on a slider that of its figure? The position of a choice among labels is no number."""
    if (value := control.get_attribute("data-value")) is None:
        return True
    signals = widget.evaluate(
        """(w) => [...w.querySelectorAll(".book-anywidget")].flatMap((host) =>
             Object.values(host.vegaView.getState({ signals: () => true }).signals))"""
    )
    return any(isinstance(s, int | float) and abs(s - float(value)) < 1e-9 for s in signals)


def test_controls_are_named_and_large_enough_for_fingers(look):
    if (look.viewport_size["width"], look.scheme) != (PHONE, "light"):
        return  # names do not depend on the look, nor sizes on the theme; on a phone there are fingers
    controls = look.evaluate(
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


def test_every_control_moves_its_figure_by_keyboard_and_tells_its_number(look):
    if (look.viewport_size["width"], look.scheme) != (WIDE, "light"):
        return  # what a control does depends neither on the width nor on the theme
    stuck, untold = [], []
    for widget in look.query_selector_all(EXPLORERS):
        for control in widget.query_selector_all(CONTROLS):
            words = control.evaluate("(c) => (c.closest('.book-row') ?? c).innerText")
            if not moves(look, widget, control):
                to_the_end(look, widget, control)
                if not moves(look, widget, control):
                    stuck.append(words)
            if not tells_its_number(widget, control):
                untold.append(words)
    assert stuck == []
    assert untold == []
    assert look.watch.problems == []
    assert look.watch.requests_elsewhere == []


# --- accessibility -------------------------------------------------------------------------------------


COLOURS = ["color-contrast", "link-in-text-block"]

# Leaves what can have a colour of its own.  Of what is drawn axe cannot tell the contrast: glyphs of MathJax
# are no text to it, text in SVG has no ground.  Of thousands of tokens of code, one of each kind is enough.
ONE_OF_A_KIND = """() => {
  const seen = new Set();
  const clear = (e) => ["transparent", "rgba(0, 0, 0, 0)"].includes(getComputedStyle(e).backgroundColor);
  const others = [...document.querySelectorAll(".highlight span:not(:has(*))")].filter((token) => {
    let ground = token;
    while (clear(ground) && ground.parentElement) ground = ground.parentElement;
    const { color, fontSize, fontWeight } = getComputedStyle(token);
    const under = getComputedStyle(ground).backgroundColor;
    const kind = [token.className, color, fontSize, fontWeight, under].join();
    return seen.has(kind) || !seen.add(kind);
  });
  others.forEach((token) => token.remove());
  document.querySelectorAll("mjx-container, svg").forEach((drawn) => drawn.replaceChildren());
}"""


def violations(look: Any, **options: Any) -> list[dict]:
    # Of what axe would load for rules that are off it is spared the style sheets.
    options |= {"resultTypes": ["violations"], "preload": {"assets": ["media"]}}
    return Axe().run(look, options=options).response["violations"]


def pale(look: Any) -> list[dict]:
    look.evaluate(ONE_OF_A_KIND)
    return violations(look, runOnly={"type": "rule", "values": COLOURS})


def test_pale_text_and_a_pale_token_are_found(browser, site):
    with opened(browser, f"{site}reproduce.html", site) as page:
        assert page.evaluate(
            """() => {
              const tokens = [...document.querySelectorAll(".highlight span:not(:has(*))")];
              const last = tokens.findLast((token) => token.textContent.trim());
              for (const e of [last, document.querySelector("article p")]) e.style.color = "#ccc";
              return tokens.length;
            }"""
        )
        (found,) = pale(page)
        assert (found["id"], len(found["nodes"])) == ("color-contrast", 2)


def test_a_page_passes_axe(look):
    """Colours depend on the theme, all else on the width.  The last test of a look: it takes the page apart.

    The front page stands for what the width changes in the colours of every page.
    """
    found = []
    if look.scheme == "light":
        found += violations(look, rules={rule: {"enabled": False} for rule in COLOURS})
    if look.viewport_size["width"] == WIDE or look.name == TOC["root"]:
        found += pale(look)
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, "\n".join(
        f"{v['id']}: {v['help']}\n  " + "\n  ".join(n["html"][:200] for n in v["nodes"][:5]) for v in serious
    )


# --- the book as a whole -------------------------------------------------------------------------------


def test_search_works_without_a_network(browser, site):
    with opened(browser, f"{site}search.html?q=normalization", site) as page:
        page.wait_for_selector("#search-results li")
        assert page.watch.requests_elsewhere == []
        assert page.watch.problems == []
    with opened(browser, f"{site}search.html?q=zxqvzxqv", site) as page:
        page.get_by_text("did not match any documents").wait_for()


def test_the_theme_can_be_switched_by_hand(browser, site):
    with opened(browser, f"{site}{CHAPTERS[0]}.html", site) as page:
        figure = page.query_selector("svg.marks text")
        ink = "(e) => getComputedStyle(e).fill"
        before = figure.evaluate(ink) if figure else None
        page.click(".theme-switch-button")
        page.wait_for_function("() => document.documentElement.dataset.mode !== 'auto'")
        while page.evaluate("document.documentElement.dataset.theme") != "dark":
            page.click(".theme-switch-button")
        assert figure is None or figure.evaluate(ink) != before


# Every entry that MathJax's menu still has, chosen once; says where formulas are no longer shown afterwards.
MENU_ENTRIES = """async () => {
  const entries = (menu) => menu.items.flatMap((item) => (item.submenu ? entries(item.submenu) : [item]));
  const shown = () => document.querySelectorAll("article .math mjx-math").length;
  const { menu } = MathJax.startup.document.menu;
  const [all, gone, ids] = [shown(), [], []];
  for (const item of entries(menu)) {
    // Without an id: a rule. These two open windows, and "Reset" closes the menu, which is not open.
    if (!item.id || item.disabled || ["Scale", "ZoomNow", "Reset"].includes(item.id)) continue;
    menu.mathItem = [...MathJax.startup.document.math][0];
    item.executeAction();
    await MathJax.startup.promise;
    ids.push(item.id);
    if (shown() !== all) gone.push(item.id);
  }
  return { all, gone, ids };
}"""


def test_the_menu_of_a_formula_offers_only_what_the_book_has(browser, site):
    context = browser.new_context()
    # What a reader of an earlier edition may have chosen.
    stored = {"explorer": True, "collapsible": True, "renderer": "SVG"}
    context.add_init_script(f"localStorage.setItem('MathJax-Menu-Settings', '{json.dumps(stored)}')")
    page = context.new_page()
    watch = Watch(page, site)
    page.goto(f"{site}{CHAPTERS[0]}.html", wait_until="load")
    page.wait_for_function("() => document.documentElement.dataset.maths === 'ready'")
    # A screen reader gets MathML, hidden beside each formula.
    spoken = page.locator("article .math mjx-assistive-mml math").count()
    found = page.evaluate(MENU_ENTRIES)
    assert found["all"] == spoken > 50
    assert found["gone"] == []
    assert {"AssistiveMml", "MathMLcode"} <= set(found["ids"])
    assert not {"Activate", "Speech", "Collapsible", "SVG"} & set(found["ids"])
    assert watch.problems == []
    assert watch.requests_elsewhere == []
    context.close()


# --- the policy ----------------------------------------------------------------------------------------
# A browser tells the console of everything that a policy blocks: whatever else is done to a page here, and in
# the tests of the lab and of the runtime, `problems` would show it.


@pytest.mark.parametrize("page", [*PAGES, "search", "genindex"])
def test_a_page_has_a_strict_policy_before_its_first_script(book, page):
    text = (book.html / f"{page}.html").read_text(encoding="utf-8")
    assert text.index("Content-Security-Policy") < text.index("<script")
    assert not book.soup(page).select("link[rel=next], link[rel=prefetch]")  # which Firefox would fetch
    content = book.soup(page).select_one("meta[http-equiv=Content-Security-Policy]")["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in content.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["object-src"] == "'none'"
    assert not re.search(r"'unsafe-(inline|eval|hashes)'|https?:|\*|blob:|data:", rules["script-src"])
    trains = bool(book.soup(page).select("script[src*='lab-images.js']"))
    assert ("'wasm-unsafe-eval'" in rules["script-src"]) == trains
    assert rules["worker-src"] == ("blob:" if trains else "'none'")


# What each attempt sets if it is let through.
ATTEMPTS = {
    "an inline script": """() => {
      const script = document.createElement("script");
      script.textContent = "window.gotThrough = true";
      document.head.append(script);
    }""",
    "a foreign script": """() => new Promise((done) => {
      const script = document.createElement("script");
      script.onload = () => done((window.gotThrough = true));
      script.onerror = done;
      script.src = "https://example.org/script.js";
      document.head.append(script);
    })""",
    "a script out of text": """() => new Promise((done) => {
      const script = document.createElement("script");
      script.onerror = done;
      script.onload = done;
      script.src = URL.createObjectURL(new Blob(["window.gotThrough = true"]));
      document.head.append(script);
    })""",
    "a handler in markup": """() => {
      document.querySelector("article").insertAdjacentHTML("beforeend", "<b onclick='gotThrough = 1'></b>");
      document.querySelector("article > b").click();
    }""",
    "a request": """() => fetch("https://example.org/").then(() => (window.gotThrough = true), () => {})""",
    "text as code": """() => {
      // Playwright's own evaluation may make code of text: the page's timers may not.
      setTimeout(() => { try { (0, eval)("window.gotThrough = true"); } catch {} });
      return new Promise((done) => setTimeout(done, 50));
    }""",
}


@pytest.mark.parametrize("name", [CHAPTERS[0], "lab"])
def test_a_page_blocks_what_is_put_into_it(browser, site, name):
    with opened(browser, f"{site}{name}.html", site) as page:
        page.route(re.compile(r"^https://"), lambda route: route.fulfill(body="window.gotThrough = true"))
        assert page.watch.problems == []
        for attempt, code in ATTEMPTS.items():
            page.evaluate("window.blocked = 0")
            page.evaluate("document.onsecuritypolicyviolation = () => window.blocked++")
            page.evaluate(code)
            page.wait_for_function("() => window.blocked > 0 || window.gotThrough")
            assert not page.evaluate("window.gotThrough"), attempt


def test_the_themes_buttons_work_under_the_policy(browser, site):
    with opened(browser, f"{site}{CHAPTERS[0]}.html", site) as page:
        page.evaluate("window.print = () => (window.printed = true)")
        page.locator(".dropdown-download-buttons > button").click()
        page.locator("[data-book-action=print]").click()
        page.wait_for_function("() => window.printed")
        page.locator("[data-book-action=full-screen]").click()
        page.wait_for_function("() => document.fullscreenElement")
        page.evaluate("document.exitFullscreen()")
        code = page.locator("div.highlight:visible").first
        code.hover()
        code.locator("button.copybtn").click()
        code.locator("button.copybtn.success").wait_for()
        page.locator(".search-button__button").first.click()
        page.locator("dialog[open] input[name=q]").fill("variance")
        page.locator("dialog[open] input[name=q]").press("Enter")
        page.wait_for_selector("#search-results li")
        assert page.watch.problems == []


def test_the_lab_trains_under_the_policy(browser, site):
    with opened(browser, f"{site}lab.html", site) as page:
        page.get_by_role("button", name="Run").click()
        page.wait_for_function(
            "() => /^Step [1-9]/.test(document.querySelector('.bnlab-status').textContent)"
        )
        assert "WebAssembly" not in page.locator(".bnlab-status").inner_text()
        assert page.watch.problems == []
        assert page.watch.requests_elsewhere == []


# --- what a page weighs, and how soon it answers --------------------------------------------------------


def test_the_first_page_is_light_and_has_no_vega_and_no_mathjax(browser, site):
    sizes = []
    context = browser.new_context()
    page = context.new_page()
    page.on("response", lambda answer: sizes.append((answer.url, len(answer.body()))))
    page.goto(f"{site}{TOC['root']}.html", wait_until="networkidle")
    assert sum(size for _, size in sizes) < 2.5e6, sizes
    assert not [url for url, _ in sizes if "/vendor/vega" in url or "/vendor/mathjax" in url]
    context.close()


def test_figures_are_drawn_when_the_reader_comes_near_and_nothing_moves(browser, site):
    context = browser.new_context(viewport={"width": WIDE, "height": 900})
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{site}{CHAPTERS[0]}.html", wait_until="networkidle")
    page.wait_for_function(SETTLED)
    last = page.locator(".book-chart, .book-anywidget").last
    assert last.locator("svg.marks").count() == 0, "the last figure is far below"
    room = last.bounding_box()["height"]
    last.scroll_into_view_if_needed()
    last.locator("svg.marks").wait_for()
    assert any("/vendor/vega.js" in url for url in asked)
    assert abs(last.bounding_box()["height"] - room) < 150, "the room that was kept is about the figure's"
    context.close()


# --- the offline edition -------------------------------------------------------------------------------


def test_the_offline_edition_is_the_whole_book_wherever_it_is_unpacked(browser, book, tmp_path):
    archive = offline.pack(book.html, tmp_path)
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "elsewhere")
    (folder,) = (tmp_path / "elsewhere").iterdir()
    assert "python -m http.server" in (folder / "README.txt").read_text(encoding="utf-8")
    assert f"url={TOC['root']}.html" in (folder / "index.html").read_text(encoding="utf-8")
    with served(folder) as home:
        for name in (TOC["root"], CHAPTERS[0], "lab"):
            with opened(browser, f"{home}{name}.html", home) as page:
                assert page.watch.problems == []
                assert page.watch.requests_elsewhere == []


def test_the_benchmark_measures_pages_and_sliders(book, browser, monkeypatch):
    monkeypatch.setattr(pages, "MOVES", 2)
    monkeypatch.setattr(pages, "QUIET", 100)
    assert book.code == 0, book.log[-4000:]
    names = [TOC["root"], CHAPTERS[3]]
    readings, times = pages.measure(browser, book.html, names, 1)
    first, chapter = (readings[name][0] for name in names)
    assert first.requests > 10 and 0.3 < first.megabytes < chapter.megabytes
    assert all(0.01 < reading.seconds < 60 for reading in (first, chapter))
    assert times[names[0]] == [] and times[names[1]]
    kept = pages.goals({"cold": 20.0, "nothing changed": 2.0}, readings, times).table()
    assert "| weight of the first page | at most 2.5 MB |" in kept and "build, nothing changed" in kept
    for text in (pages.page_table(readings), pages.slider_table(times)):
        assert f"| `{names[1]}` |" in text
