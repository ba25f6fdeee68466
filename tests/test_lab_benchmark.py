"""The lab's benchmark: it drives the lab and compares losses; what it prints follows from what it measured.

The peers are left out: they would have to be fetched.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from browser import chromium

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "lab" / "run.py"


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["lab_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def test_the_lab_and_its_engine_are_measured(run: ModuleType):
    results = run.Results()
    with chromium() as browser, run.served() as (address, asked):
        run.measure_lab(browser, address, asked, run.THREE._replace(seconds=3), results)
        pages = run.prepare_peers(browser.new_context(), address, run.ENGINES, results)
        rates = [page.evaluate("measure(0.1)") for page in pages.values()]
    (said,) = results.three[run.THREE.title]
    assert len(said["rates"]) == 3 and min(*said["rates"], *rates) > 0
    assert 0 < said["sinceClick"] < said["sinceLoad"]
    assert len(rates) == 4 and results.refused == {}
    assert set(results.apart.values()) == {0}  # WebAssembly and plain JavaScript give the same bits
    assert run.elsewhere(results.requests) == []


def made_up(run: ModuleType, speed: float) -> Any:
    results = run.Results()
    own = {*run.QUERIES, *(peer.title for peer in run.ENGINES)}
    for title in (*own, *(peer.title for peer in (*run.STOCK, *run.HOME_MADE))):
        for norm in run.BOTH:
            results.rates[title, norm] = [speed] if title in own else [1.0, 2.0, 40.0]
            results.first[title, norm] = [100.0]
            results.apart[title, norm] = 1e-6
    times = {"sinceClick": 100, "sinceLoad": 200, "gapStart": 20, "gap": 20}
    said = {"rates": [speed] * len(run.THREE.norms), **times}
    results.three = {lab.title: [said] for lab in (run.THREE, run.NOISY)}
    return results


@pytest.mark.parametrize("speed, met", [(1000.0, True), (10.0, False)])
def test_goals_are_judged_by_what_was_measured(run: ModuleType, speed: float, met: bool):
    results = made_up(run, speed)
    peers = [*run.ENGINES, *run.STOCK, *run.HOME_MADE]
    text = run.report(results, peers, "A machine.")
    assert ("**no**" in text) != met
    assert text.count("| yes |") == (11 if met else 5)
    assert "| TensorFlow.js cpu | 2.0 | 2.0 | 100 ms |" in text
    results.refused["TensorFlow.js wasm"] = "No kernel."
    assert "cannot train: No kernel." in run.report(results, peers, "A machine.")
