"""What a reader of the book waits for: the build, the weight of every page, the time until it answers, and
the time from a slider to its figure.

    python benchmarks/pages.py [--site FOLDER] [--write] [--quick]

The book is built into a scratch folder, cold, warm and with one page touched, unless ``--site`` names a built
one. It is then served from this machine, uncompressed, and read with an empty cache in a headless Chromium
without a graphics card. The tables come with what their words mean.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import report
import yaml
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from report import number
from serving import WITHOUT_CARD, serving

ROOT = Path(__file__).resolve().parents[1]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(entry["file"] for part in TOC["parts"] for entry in part["chapters"])]
QUICK = [TOC["root"], TOC["parts"][0]["chapters"][0]["file"]]
TOUCHED = "reproduce.md"

WINDOW = {"width": 1280, "height": 900}
QUIET = 600  # milliseconds without a request, a long task or an unfinished figure: the page has come to rest
ROUNDS = 2
MOVES = 12  # places to which each slider is dragged

FIRST_PAGE, INTERACTIVE, REDRAW, COLD, SHIFT = 2.5, 1.0, 16.0, 30.0, 0.1

EXPLAINED = """\
A page is read with an empty cache, from this machine and uncompressed; its weight is all that is sent until
it has come to rest. It *answers* once it has loaded, its controls and the figures near the window work, and
the last task that kept the browser for more than 50 ms is over; formulas further down may still be typeset,
in pieces shorter than that. *Shift* is the cumulative layout shift while nobody scrolls. A slider is dragged
with the mouse, and timed from the browser's `input` event to the end of the frame that changes its figure."""

# Notes, from the first moment of a page, when something happened for the last time.
NOTES = """
(() => {
  const notes = (window.bookNotes = { busy: 0, drawn: 0, typeset: 0, shift: 0, worst: 0 });
  const watch = (type, note) => new PerformanceObserver((list) => list.getEntries().forEach(note))
    .observe({ type, buffered: true });
  watch("longtask", (task) => {
    notes.busy = Math.max(notes.busy, task.startTime + task.duration);
    notes.worst = Math.max(notes.worst, task.duration);
  });
  watch("layout-shift", (shift) => { if (!shift.hadRecentInput) notes.shift += shift.value; });
  const note = (name, ...attributes) => new MutationObserver(() => (notes[name] = performance.now()))
    .observe(document, { subtree: true, attributeFilter: attributes });
  note("drawn", "data-widgets", "data-charts");
  note("typeset", "data-maths");
})();
"""
AT_REST = """(quiet) => {
  const { charts, maths, widgets } = document.documentElement.dataset;
  const mounted = !document.querySelector('script[type$="widget-view+json"]') || widgets === "ready";
  const { busy, drawn, typeset } = window.bookNotes;
  return document.readyState === "complete" && mounted && charts !== "drawing" && maths !== "working"
    && performance.now() - Math.max(busy, drawn, typeset) > quiet;
}"""
ANSWERS = """() => {
  const { domContentLoadedEventEnd } = performance.getEntriesByType("navigation")[0];
  return Math.max(domContentLoadedEventEnd, window.bookNotes.drawn, window.bookNotes.busy);
}"""
# From each input event of a control to the end of the frame that follows it; null where no figure changed in
# this frame.
TIMED = """(control) => {
  const figures = control.closest(".book-widget").querySelectorAll(".book-anywidget");
  let changed = false;
  const times = (control.times = []);
  const seen = new MutationObserver(() => (changed = true));
  const all = { subtree: true, childList: true, attributes: true, characterData: true };
  for (const figure of figures) seen.observe(figure, all);
  control.addEventListener("input", () => {
    const begin = performance.now();
    changed = false;
    requestAnimationFrame(() => {
      const painted = new MessageChannel();
      painted.port1.onmessage = () => times.push(changed ? performance.now() - begin : null);
      painted.port2.postMessage(null);
    });
  }, { capture: true });
}"""


class Reading(NamedTuple):
    """One page, read with an empty cache."""

    requests: int
    megabytes: float
    seconds: float  # from the navigation until it answers
    longest: float  # milliseconds of the longest task
    typeset: float  # seconds from the navigation until the last formula stands
    shift: float  # cumulative layout shift


class Handler(SimpleHTTPRequestHandler):
    """The book's files; notes how many bytes of each went out."""

    def __init__(self, *args: Any, sent: list[int], **options: Any) -> None:
        self.sent = sent
        super().__init__(*args, **options)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        self.sent.append(os.fstat(source.fileno()).st_size)
        super().copyfile(source, outputfile)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """The address of the book, and the sizes of what has been sent."""
    sent: list[int] = []
    with serving(partial(Handler, directory=str(folder), sent=sent)) as address:
        yield address, sent


def build(source: Path, folder: Path) -> float:
    """Build the book; returns the seconds."""
    jupyter_book = str(Path(sys.executable).with_name("jupyter-book"))
    begin = time.monotonic()
    made = subprocess.run(
        [jupyter_book, "build", str(source), "--path-output", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise SystemExit(f"The book does not build:\n{(made.stdout + made.stderr)[-2000:]}")
    return time.monotonic() - begin


def build_times(scratch: Path) -> dict[str, float]:
    """Seconds of a build from scratch, of one without changes, and after one page was touched."""
    source = scratch / "source"
    ignored = shutil.ignore_patterns(".git", "_build", "node_modules", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, source, ignore=ignored)
    times = {"cold": build(source, scratch), "nothing changed": build(source, scratch)}
    (source / TOUCHED).write_text((source / TOUCHED).read_text() + "\nTouched.\n")
    times["one page changed"] = build(source, scratch)
    return times


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """A page that has come to rest, in a context of its own: no cache."""
    context: BrowserContext = browser.new_context(viewport=WINDOW)
    context.add_init_script(NOTES)
    page = context.new_page()
    page.goto(address, wait_until="networkidle")
    page.wait_for_function(AT_REST, arg=QUIET)
    yield page
    context.close()


def read(browser: Browser, address: str, sent: list[int]) -> Reading:
    """Read one page."""
    sent.clear()
    with opened(browser, address) as page:
        notes = page.evaluate("window.bookNotes")
        answers = page.evaluate(ANSWERS) / 1000
        typeset = notes["typeset"] / 1000
        return Reading(len(sent), sum(sent) / 1e6, answers, notes["worst"], typeset, notes["shift"])


def drag(page: Page, control: Any) -> list[float]:
    """Drag a slider through its range; returns the milliseconds from each event to the frame it changed."""
    control.scroll_into_view_if_needed()
    page.wait_for_timeout(200)  # a figure that has come near begins to be drawn, and may move the slider
    page.wait_for_function("() => document.documentElement.dataset.charts === 'ready'")
    control.evaluate(TIMED)
    box = control.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    for i in range(MOVES + 1):
        page.mouse.move(box["x"] + box["width"] * (0.1 + 0.8 * i / MOVES), middle)
        page.wait_for_timeout(40)  # each event has a frame of its own
    page.mouse.up()
    return [each for each in control.evaluate("(control) => control.times") if each is not None]


def redraws(browser: Browser, address: str) -> list[list[float]]:
    """The times of every slider of a page that drives a figure."""
    with opened(browser, address) as page:
        sliders = page.query_selector_all(
            ".book-widget:has(.book-anywidget):not(:has(.bnlab)) input[type=range]"
        )
        return [times for slider in sliders if (times := drag(page, slider))]


def joined(lists: list[list[float]]) -> list[float]:
    """One list out of many."""
    return [each for some in lists for each in some]


def middle(rounds: list[Reading]) -> Reading:
    """The medians over the rounds."""
    return Reading(*(median(values) for values in zip(*rounds, strict=True)))


def page_table(readings: dict[str, list[Reading]]) -> str:
    """One row for each page; medians over the rounds."""
    rows = []
    for name, rounds in readings.items():
        each = middle(rounds)
        rows.append(
            [
                f"`{name}`",
                str(int(each.requests)),
                f"{each.megabytes:.2f}",
                f"{each.seconds:.2f}",
                number(each.longest),
                f"{each.typeset:.2f}" if each.typeset else "–",
                f"{each.shift:.3f}",
            ]
        )
    head = ["page", "requests", "MB", "answers after, s", "longest task, ms", "typeset after, s", "shift"]
    return report.table(head, rows)


def slider_table(times: dict[str, list[list[float]]]) -> str:
    """One row for each page with sliders."""
    rows = [
        [f"`{name}`", str(len(sliders)), number(median(joined(sliders))), number(max(map(max, sliders)))]
        for name, sliders in times.items()
        if sliders
    ]
    return report.table(["page", "sliders", "median, ms", "slowest frame, ms"], rows)


def goals(
    builds: dict[str, float], readings: dict[str, list[Reading]], times: dict[str, list[list[float]]]
) -> report.Goals:
    """What was promised, beside what was measured."""
    kept = report.Goals()
    pages = {name: middle(rounds) for name, rounds in readings.items()}
    kept.most("weight of the first page", FIRST_PAGE, pages[PAGES[0]].megabytes, "MB")
    slowest = max(pages, key=lambda name: pages[name].seconds)
    kept.most(f"until a page answers, slowest (`{slowest}`)", INTERACTIVE, pages[slowest].seconds, "s")
    kept.most(
        "until a page answers, median page", INTERACTIVE, median(m.seconds for m in pages.values()), "s"
    )
    kept.most("layout shift, worst page", SHIFT, max(m.shift for m in pages.values()))
    every = [joined(sliders) for sliders in times.values() if sliders]
    kept.most("slider to redraw, median of all", REDRAW, median(joined(every)), "ms")
    sliders = [median(slider) for sliders in times.values() for slider in sliders]
    kept.most("slider to redraw, median of the slowest slider", REDRAW, max(sliders), "ms")
    if builds:
        kept.most("build from scratch", COLD, builds["cold"], "s")
        for name in list(builds)[1:]:
            kept.remark(f"build, {name}", f"{builds[name]:.1f} s")
    return kept


def measure(browser: Browser, site: Path, pages: list[str], rounds: int) -> tuple[dict, dict]:
    """Read every page ``rounds`` times, then drag every slider."""
    readings: dict[str, list[Reading]] = {}
    with served(site) as (address, sent):
        for _ in range(rounds):
            for name in pages:
                readings.setdefault(name, []).append(read(browser, f"{address}{name}.html", sent))
        times = {name: redraws(browser, f"{address}{name}.html") for name in pages}
    return readings, times


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, help="measure this built book instead of building one")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    parser.add_argument("--quick", action="store_true", help="two pages, once: does it work?")
    options = parser.parse_args()
    if options.write and options.quick:
        parser.error("--quick measures too little to be written down.")
    if shutil.which("chromium") is None:
        raise SystemExit("chromium is missing: install Debian's chromium to measure the pages.")
    load = os.getloadavg()[0]
    with TemporaryDirectory() as scratch:
        builds = {} if options.site else build_times(Path(scratch))
        site = options.site or Path(scratch) / "_build" / "html"
        pages, rounds = (QUICK, 1) if options.quick else (PAGES, ROUNDS)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=WITHOUT_CARD)
            readings, times = measure(browser, site, pages, rounds)
            browser.close()
    parts = [
        EXPLAINED,
        goals(builds, readings, times).table(),
        page_table(readings),
        slider_table(times),
        report.machine("jupyter-book", "sphinx-book-theme", "playwright", load=load),
    ]
    text = "\n\n".join(parts)
    print(text)
    if options.write:
        report.write("pages", text)


if __name__ == "__main__":
    main()
