"""The lab's benchmark: it drives the lab and compares losses; what it prints follows from what it measured.

The peers are left out: they would have to be fetched.
"""

from typing import Any

import pytest
from browser import chromium

import lab


def test_the_lab_and_its_engine_are_measured():
    results = lab.Results()
    with chromium() as browser, lab.served() as (address, asked):
        lab.measure_lab(browser, address, asked, lab.THREE._replace(seconds=1.5), results)
        pages = lab.prepare_peers(browser.new_context(), address, lab.ENGINES, results)
        for peer, its_pages in pages.items():
            lab.measure_peer(peer, its_pages, results, seconds=0.1)
        rates = [rate for rates in results.rates.values() for rate in rates]
    (said,) = results.three[lab.THREE.title]
    assert len(said["rates"]) == 3 and min(*said["rates"], *rates) > 0
    assert 0 < said["sinceClick"] < said["sinceLoad"]
    assert len(rates) == 4 and results.refused == {}
    assert all(results.slowest(peer.title) > 0 for peer in lab.ENGINES)
    assert set(results.apart.values()) == {0}  # WebAssembly and plain JavaScript give the same bits
    assert lab.elsewhere(results.requests) == []


def made_up(speed: float) -> Any:
    results = lab.Results()
    own = {*lab.QUERIES, *(peer.title for peer in lab.ENGINES)}
    for title in (*own, *(peer.title for peer in (*lab.STOCK, *lab.HOME_MADE))):
        for norm in lab.BOTH:
            results.rates[title, norm] = [speed] if title in own else [1.0, 2.0, 40.0]
            results.first[title, norm] = [100.0]
            results.apart[title, norm] = 1e-6
    for peer in (*lab.STOCK, *lab.HOME_MADE):
        results.at_once[peer.title] = [[9.0, 2.0, 3.0], [9.0, 4.0, 9.0], [9.0, 1.0, 9.0]]
    times = {"sinceClick": 100, "sinceLoad": 200, "gapStart": 20, "gap": 20}
    said = {"rates": [speed] * len(lab.THREE.norms), **times}
    results.three = {lab.title: [said] for lab in (lab.THREE, lab.NOISY)}
    return results


@pytest.mark.parametrize("speed, met", [(1000.0, True), (10.0, False)])
def test_goals_are_judged_by_what_was_measured(speed: float, met: bool):
    results = made_up(speed)
    peers = [*lab.ENGINES, *lab.STOCK, *lab.HOME_MADE]
    text = lab.tables(results, peers, "A machine.")
    assert ("**no**" in text) != met
    assert text.count("| yes |") == (11 if met else 5)
    assert "| TensorFlow.js cpu | 2.0 | 2.0 | 100 ms |" in text
    results.refused["TensorFlow.js wasm"] = "No kernel."
    assert "cannot train: No kernel." in lab.tables(results, peers, "A machine.")
