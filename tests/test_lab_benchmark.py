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
    (said,) = results.three
    assert len(said["rates"]) == 3 and min(*said["rates"], *rates) > 0
    assert 0 < said["sinceClick"] < said["sinceLoad"]
    assert len(rates) == 4 and results.refused == {}
    assert set(results.apart.values()) == {0}  # WebAssembly and plain JavaScript give the same bits
    assert run.elsewhere(results.requests) == []


def made_up(run: ModuleType, speed: float) -> Any:
    results = run.Results()
    for peer in (*run.QUERIES, *(peer.title for peer in (*run.ENGINES, *run.STOCK, *run.HOME_MADE))):
        for norm in run.BOTH:
            results.rates[peer, norm] = [1.0, 2.0, 40.0] if "TensorFlow" in peer else [speed]
            results.first[peer, norm] = [100.0]
            results.apart[peer, norm] = 1e-6
    said = {"rates": [speed] * 3, "sinceClick": 100, "sinceLoad": 200, "gapStart": 20, "gap": 20}
    results.three = [said]
    return results


@pytest.mark.parametrize("speed, met", [(1000.0, True), (10.0, False)])
def test_goals_are_judged_by_what_was_measured(run: ModuleType, speed: float, met: bool):
    results = made_up(run, speed)
    results.rates["the same with threads, on an isolated page", "none"] = [2.0]
    results.rates["the same with threads, on an isolated page", "batch"] = [2.0]
    peers = [*run.ENGINES, *run.STOCK, *run.HOME_MADE]
    text = run.report(results, peers, "A machine.")
    assert ("**no**" in text) != met
    assert text.count("| yes |") == (11 if met else 5)
    assert "| TensorFlow.js cpu | 2.0 | 2.0 | 100 ms |" in text
    results.refused["TensorFlow.js wasm"] = "No kernel."
    assert "cannot train: No kernel." in run.report(results, peers, "A machine.")
