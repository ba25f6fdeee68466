"""The lab as readers meet it: the widget, its images and its page, in a real browser without a kernel."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import Watch, chromium, served
from test_lab_engine import node

from bnlib import charts, data, lab_images
from bnlib.widgets import NETWORK, PRESETS, SETTINGS, Lab

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "bnlib" / "lab" / "lab.js"
UI = ROOT / "lab" / "src" / "ui"
STATIC = ROOT / "_ext" / "offline_book" / "static"
sys.path.insert(0, str(ROOT / "_ext"))
from offline_book import lab as extension  # noqa: E402
from offline_book import modules, policy  # noqa: E402

RUNTIME = ("model.js", "controls.js", "widgets.js", "book.css")
RESTS = "Number(document.querySelector('.bnlab').dataset.rests ?? 0)"
PATIENCE = 60_000  # milliseconds for one run on a busy machine; a quiet one takes some five seconds


# --- pages --------------------------------------------------------------------------------------------------


def page_with(state: dict[str, Any], images: list[str]) -> str:
    """A page as the book makes it: saved state, its view, the widget runtime and the images' script, all
    under the policy of a page with a lab."""
    text = json.dumps(state).replace("</", "<\\/")
    view = json.dumps({"model_id": extension.MODEL})
    module = f"{modules.FOLDER}/{modules.module_name(extension.source())}.js"
    runtime = [RUNTIME[0], module, *(name for name in RUNTIME[1:] if name.endswith(".js"))]
    scripts = "".join(f'<script defer src="{name}"></script>' for name in runtime)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Lab</title>'
        '<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">'
        '<meta name="color-scheme" content="light dark"><link rel="stylesheet" href="book.css">'
        f"<script src=\"lab-images.js\" data-names='{json.dumps(images)}'></script>{scripts}"
        f'</head><body><main><h1>Lab</h1><script type="{extension.STATE_TYPE}">{text}</script>'
        f'<script type="{extension.VIEW_TYPE}">{view}</script></main></body></html>'
    )
    return policy.protected(page, trains=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, and a small MNIST of random dots."""
    folder, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("mnist")
    random = np.random.default_rng(0)
    parts = {
        f"{kind}_{part}": random.integers(0, 256 if kind == "x" else 10, shape).astype(np.uint8)
        for part, count in (("train", 300), ("test", 50))
        for kind, shape in (("x", (count, 28, 28)), ("y", count))
    }
    parts["x_train"][0, 0, :2] = 0, 255
    np.savez_compressed(source / "mnist.npz", **parts)
    for name in (*RUNTIME, "lab-images.js"):
        shutil.copy(STATIC / name, folder)
    modules.write_module(extension.source(), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BNLIB_DATA", str(source))
        names = extension.write_images(folder / "lab")
    assert names == ["digits", "mnist"]
    (folder / "index.html").write_text(page_with(extension.widget_state("rates"), names), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[str]:
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@contextmanager
def opened(browser: Any, address: str, home: str | None = None, **options: Any) -> Iterator[Any]:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.watch = Watch(page, home or address.split("#")[0])
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.wait_for_function("() => document.documentElement.dataset.widgets === 'ready'")
    page.locator(".bnlab[data-state=idle]").wait_for()
    unfold(page)
    yield page
    assert page.watch.problems == []
    assert page.watch.requests_elsewhere == []
    context.close()


def unfold(page: Any) -> None:
    """Open the settings."""
    page.locator("summary", has_text="Settings").click()


def link(*networks: str, **settings: Any) -> str:
    """The fragment of networks "norm,place,rate,depth"."""
    chosen = {"steps": 60, "every": 0} | settings
    return "#lab=1&" + "&".join([*(f"{k}={v}" for k, v in chosen.items()), *(f"net={n}" for n in networks)])


def run(page: Any) -> None:
    """Press Run and wait until all networks have come to rest and the page has said what happened."""
    before = page.evaluate(RESTS)
    page.get_by_role("button", name="Run", exact=True).click()
    at_rest(page, before)


def at_rest(page: Any, before: int = 0) -> None:
    page.wait_for_function(f"() => ({RESTS}) > {before}", timeout=PATIENCE)
    assert "Nothing" not in page.locator(".bnlab-story").inner_text(), notices(page)


def table(page: Any) -> list[dict[str, str]]:
    """The table of results as a reader sees it, a network after the other."""
    (_, *networks), *rows = page.locator(".bnlab table tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.firstChild?.textContent ?? ''))"
    )
    results = [{"Network": name} for name in networks]
    for name, *values in rows:
        for result, value in zip(results, values, strict=True):
            result[name] = value
    return results


def share(text: str) -> float:
    return float(text.removesuffix("%")) / 100


def notices(page: Any) -> str:
    return page.locator(".bnlab-notices").inner_text()


def state(page: Any) -> dict[str, Any]:
    """What the address says."""
    pairs = [part.split("=") for part in page.url.split("#")[1].split("&")]
    return {key: value for key, value in pairs if key != "net"} | {
        "networks": [value.split(",") for key, value in pairs if key == "net"]
    }


# --- what it teaches ----------------------------------------------------------------------------------------

# Preset -> for each network the lowest and the highest test accuracy after 300 steps of seed 1.
LEARNED = {
    "rates": [(0.1, 0.6), (0.9, 1), (0.95, 1), (0.95, 1)],
    "noise": [(0.8, 0.95), (0.95, 1), (0.9, 1), (0.2, 0.8)],
    "smoothness": [(0.9, 1), (0.95, 1)],
    "high_rate": [(0.9, 1), (0, 0.2), (0.95, 1), (0.9, 1)],
    "depth": [(0.93, 1), (0, 0.2), (0.95, 1), (0.95, 1)],
}


@pytest.mark.parametrize("preset", PRESETS)
def test_an_experiment_comes_out_as_stated(browser: Any, site: str, preset: str):
    with opened(browser, site) as page:
        page.get_by_label("Experiment").select_option(preset)
        run(page)
        rows = table(page)
        assert [row["Steps"] for row in rows] == ["300"] * len(rows)
        for row, (low, high) in zip(rows, LEARNED[preset], strict=True):
            assert low <= share(row["Test accuracy"]) <= high, row
            assert row["β, weights"] != "–" and row["β, activations"] != "–" and row["cos(G, G′)"] != "–"
        assert state(page)["preset"] == preset and notices(page) == ""
        told = page.locator(".bnlab-story").inner_text()
        for row in rows:
            assert f"{row['Network'][0]} {row['Test accuracy']}" in told
        assert ("no better than guessing" in told) == any(high < 0.25 for _, high in LEARNED[preset])


def test_batch_norm_learns_the_digits_within_seconds(browser: Any, site: str):
    with opened(browser, site + link("batch,every,0.1,4", steps=300, every=10)) as page:
        seconds = []
        while not seconds or (min(seconds) > 5 and len(seconds) < 3):  # a busy machine may have a bad moment
            page.get_by_role("button", name="Reset").click()
            page.evaluate("window.began = performance.now()")
            run(page)
            seconds.append(page.evaluate("(performance.now() - window.began) / 1000"))
            assert share(table(page)[0]["Test accuracy"]) > 0.95
        assert min(seconds) < 5


def test_the_page_stays_alive_while_networks_train(browser: Any, site: str):
    with opened(browser, site) as page:
        page.evaluate(
            """() => {
                window.gaps = [];
                let last = performance.now();
                const tick = () => {
                    const now = performance.now();
                    gaps.push(now - last);
                    last = now;
                    setTimeout(tick, 0);
                };
                tick();
            }"""
        )
        run(page)
        # Generous: this machine may be doing other things. Rarely more than 50 ms on a quiet one.
        assert page.evaluate("Math.max(...gaps)") < 500


# --- one state, one run -------------------------------------------------------------------------------------


def hashes(page: Any) -> list[str]:
    return [row["Parameters' hash"] for row in table(page)]


def test_the_same_settings_give_the_same_parameters(browser: Any, site: str):
    networks = ("batch,every,0.1,3", "noisy_batch,every,0.1,3", "batch,every,0.1,3")
    with opened(browser, site + link(*networks)) as page:
        run(page)
        first = hashes(page)
        assert all(re.fullmatch("[0-9a-f]{8}", one) for one in first)
        assert first[0] == first[2] != first[1]
        # Again, with measurements, slower, and with a pause on the way.
        page.get_by_role("button", name="Reset").click()
        page.get_by_label("Measure").select_option("10")
        page.get_by_label("Speed").press("ArrowLeft")
        page.get_by_role("button", name="Run").click()
        page.wait_for_function("() => /Step [1-9]/.test(document.querySelector('.bnlab-status').textContent)")
        page.get_by_role("button", name="Pause").click()
        at_rest(page, 1)
        assert 0 < int(table(page)[0]["Steps"]) < 60
        page.get_by_label("Speed").press("End")
        run(page)
        assert [row["Steps"] for row in table(page)] == ["60"] * 3
        assert hashes(page) == first
        page.get_by_label("Seed").fill("2")
        page.get_by_label("Seed").press("Enter")
        run(page)
        assert not set(hashes(page)) & set(first)


def test_a_run_under_way_takes_up_another_speed_and_another_end(browser: Any, site: str):
    networks = ("batch,every,0.1,2", "none,every,0.1,2")
    with opened(browser, site + link(*networks, steps=40)) as page:
        run(page)
        expected = hashes(page)
        page.get_by_role("button", name="Reset").click()
        page.get_by_label("Speed").press("Home")  # one step a second
        page.get_by_label("Steps").fill("20")
        page.get_by_label("Steps").press("Enter")
        page.get_by_role("button", name="Run").click()
        page.wait_for_function("() => /Step [1-9]/.test(document.querySelector('.bnlab-status').textContent)")
        page.get_by_label("Steps").fill("40")
        page.get_by_label("Steps").press("Enter")
        page.get_by_label("Speed").press("End")
        page.wait_for_function(
            "() => /Step 40 of 40/.test(document.querySelector('.bnlab-status').textContent)"
        )
        page.locator(".bnlab[data-state=idle]").wait_for()
        assert hashes(page) == expected


def test_a_step_is_a_step_of_the_run(browser: Any, site: str):
    with opened(browser, site + link("batch,every,0.1,2", steps=10)) as page:
        for before in range(10):
            page.get_by_role("button", name="Step").click()
            at_rest(page, before)
        stepped = table(page)[0]
        assert stepped["Steps"] == "10"
        page.get_by_role("button", name="Reset").click()
        run(page)
        assert table(page)[0]["Parameters' hash"] == stepped["Parameters' hash"]


def test_a_link_reproduces_the_settings(browser: Any, site: str):
    networks = ("l1,first,0.2,3", "layer,last,0.05,2")
    with opened(browser, site + link(*networks, seed=7, channels=3, batch=32, gain=1.5, noise=0.5)) as page:
        page.get_by_label("Steps").fill("50")
        page.get_by_label("Steps").press("Enter")
        run(page)
        rows, address = table(page), page.url
    with opened(browser, address, site) as page:
        found = state(page) if "#" in page.url else {}
        assert found["networks"] == [network.split(",") for network in networks]
        assert (found["seed"], found["steps"], found["gain"]) == ("7", "50", "1.5")
        run(page)
        assert table(page) == rows


# --- controls -----------------------------------------------------------------------------------------------


def test_everything_can_be_set_by_keyboard(browser: Any, site: str):
    with opened(browser, site) as page:
        # Everything that can be focussed is reached by Tab and has a name.
        controls = page.locator(".bnlab").locator("input, select, button:enabled, summary, canvas[tabindex]")
        count = controls.count()
        page.locator(".bnlab").get_by_label("Experiment").focus()
        seen = set()
        for _ in range(count + 5):
            name = page.evaluate(
                """() => {
                    const e = document.activeElement;
                    const controls = "input, select, button, summary, canvas[tabindex]";
                    if (!e.closest(".bnlab") || !e.matches(controls)) return null;
                    const index = [...document.querySelectorAll(".bnlab *")].indexOf(e);
                    return [index, e.labels?.[0]?.textContent || e.ariaLabel || e.textContent];
                }"""
            )
            if name:
                assert name[1].strip()
                seen.add(name[0])
            page.keyboard.press("Tab")
        hidden = page.locator(".bnlab details:not([open])").locator("button, canvas[tabindex]").count()
        assert len(seen) == count - hidden
        # Every one of them changes the state.
        for field in page.query_selector_all(".bnlab input, .bnlab select"):
            before = page.url
            label = field.evaluate("(e) => e.labels[0].textContent")
            kind = field.evaluate("(e) => e.type")
            field.focus()
            if kind == "number":
                page.keyboard.press("ArrowUp")
                page.keyboard.press("Enter")
            elif kind == "range":
                at_end = field.evaluate("(e) => e.valueAsNumber >= Number(e.max)")
                page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
            else:
                last = field.evaluate("(e) => e.selectedIndex === e.options.length - 1")
                page.keyboard.press("ArrowUp" if last else "ArrowDown")
            if label != "Layer shown below":  # which is no part of a run
                assert page.url != before, label
            assert field.evaluate("(e) => e === document.activeElement"), f"{label} lost the focus"
        assert notices(page) == ""


def test_buttons_work_by_keyboard(browser: Any, site: str):
    with opened(browser, site + link("batch,every,0.1,2", steps=20)) as page:
        page.get_by_role("button", name="Step").press("Enter")
        at_rest(page)
        assert table(page)[0]["Steps"] == "1"
        page.get_by_role("button", name="Run").press("Space")
        at_rest(page, 1)
        assert table(page)[0]["Steps"] == "20"
        page.get_by_role("button", name="Reset").press("Enter")
        assert "Step 0" in page.locator(".bnlab-status").inner_text()


def test_a_button_keeps_the_focus(browser: Any, site: str):
    with opened(browser, site + link("batch,every,0.1,2", steps=20)) as page:
        page.get_by_role("button", name="Step").focus()
        for before in range(3):
            page.keyboard.press("Enter")
            at_rest(page, before)
        assert table(page)[0]["Steps"] == "3"


def test_keys_pressed_in_the_lab_are_no_commands_to_the_page(browser: Any, site: str):
    with opened(browser, site) as page:
        page.evaluate(
            "() => { window.keys = []; document.addEventListener('keydown', (e) => keys.push(e.key)); }"
        )
        page.get_by_label("Images").press("m")
        page.get_by_label("Images").press("Control+s")
        assert "m" not in page.evaluate("keys") and "s" in page.evaluate("keys")


def test_absurd_settings_are_clamped_and_explained(browser: Any, site: str):
    absurd = link("batch,every,1e6,99", channels=0, batch=5000, seed=-1)
    with opened(browser, site + absurd) as page:
        told = notices(page)
        for what in ("learning rate", "depth", "number of channels", "batch size", "seed"):
            assert what in told
        assert "so it is 1000 here" in told and "so it is 256 here" in told
        page.get_by_label("Channels").fill("0")
        page.get_by_label("Channels").press("Enter")
        assert "channels can lie between 1 and 32, so it is 1 here" in notices(page)
        assert page.get_by_label("Channels").input_value() == "1"
        page.get_by_label("Batch size").fill("")
        page.get_by_label("Batch size").press("Enter")
        assert "must be a number from 8 to 256" in notices(page)


@pytest.mark.parametrize(
    "fragment",
    [
        "#lab=1",
        "#lab=2&net=batch,every,0.1,4",
        "#lab=1&net=batch",
        "#lab=1&net=batch,every,0.1,4&beauty=3",
        "#lab=1&net=%E0%A4%A",
        "#lab=1&seed=1&seed=2&net=batch,every,0.1,4",
    ],
)
def test_a_damaged_link_falls_back_to_the_default(browser: Any, site: str, fragment: str):
    with opened(browser, site + fragment) as page:
        assert "damaged" in notices(page)
        assert page.get_by_label("Experiment").input_value() == "rates"


def test_an_unknown_word_in_a_link_is_replaced_and_told(browser: Any, site: str):
    with opened(browser, site + link("magic,every,0.1,4", data="faces")) as page:
        assert "“magic” is unknown" in notices(page) and "“faces” is unknown" in notices(page)
        run(page)


def test_a_link_that_is_pasted_into_the_address_is_followed(browser: Any, site: str):
    with opened(browser, site) as page:
        page.evaluate(f"window.location.hash = {link('l2,first,0.2,3', seed=8)!r}")
        page.wait_for_function("() => document.querySelectorAll('.bnlab-network').length === 1")
        assert page.get_by_label("Experiment").input_value() == "own"
        assert page.get_by_label("Seed").input_value() == "8"
        page.evaluate("window.location.hash = '#lab=1&net=batch'")
        page.get_by_text("This link is damaged").wait_for()


def test_another_fragment_is_left_alone(browser: Any, site: str):
    with opened(browser, site + "#what-to-know") as page:
        assert notices(page) == "" and page.url.endswith("#what-to-know")
        assert page.locator(".bnlab-story").inner_text() == "Nothing has run yet."


# --- what comes out -----------------------------------------------------------------------------------------


def test_a_network_that_fails_stops_alone(browser: Any, site: str):
    with opened(browser, site + link("none,every,1000,4", "batch,every,0.1,4", gain=10)) as page:
        run(page)
        lost, fine = table(page)
        assert "stopped" in lost["Network"] and int(lost["Steps"]) < 60 and lost["Test accuracy"] == "–"
        assert fine["Steps"] == "60" and share(fine["Test accuracy"]) > 0.5
        assert "A stopped: The loss was no longer a finite number" in notices(page)
        assert "A has stopped" in page.locator(".bnlab-story").inner_text()


def test_the_csv_holds_the_tables_numbers_and_the_settings(browser: Any, site: str):
    with opened(browser, site + link("batch,every,0.1,4", "l2,first,0.2,3", every=10, seed=5)) as page:
        run(page)
        rows = table(page)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download CSV").press("Enter")
        assert download.value.suggested_filename == "lab-seed-5.csv"
        read = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))
    assert [row["network"] for row in read] == ["A", "B"]
    assert [row["norm"] for row in read] == ["batch", "l2"]
    assert [row["place"] for row in read] == ["every", "first"]
    for shown, exact in zip(rows, read, strict=True):
        assert exact["steps_done"] == shown["Steps"] and exact["hash"] == shown["Parameters' hash"]
        assert share(shown["Test accuracy"]) == pytest.approx(float(exact["accuracy"]), abs=6e-4)
        assert float(shown["β, weights"]) == pytest.approx(float(exact["beta"]), rel=6e-3)
        assert float(shown["Loss"]) == pytest.approx(float(exact["loss"]), rel=6e-3)
        assert (exact["seed"], exact["backend"]) == ("5", "wasm")


def test_every_chart_is_drawn_and_says_what_it_shows(browser: Any, site: str):
    with opened(browser, site + link("none,every,0.1,3", "batch,every,0.1,3", every=10)) as page:
        page.evaluate("document.querySelectorAll('.bnlab details').forEach((d) => (d.open = true))")
        run(page)
        labels = page.locator(".bnlab-chart svg").evaluate_all("(all) => all.map((e) => e.ariaLabel)")
        assert len(labels) == len(set(labels)) == 13
        for label in labels:
            assert "A Standard: " in label and "B Batch norm: " in label, label
            assert "–" not in label and "NaN" not in label
        drawn = page.locator(".bnlab-chart svg").evaluate_all(
            "(all) => all.map((e) => e.querySelectorAll('path.bnlab-line').length)"
        )
        assert min(drawn) >= 2
        assert "NaN" not in page.locator(".bnlab").inner_html()


# --- images -------------------------------------------------------------------------------------------------


def test_a_drawn_digit_is_classified_by_all_networks(browser: Any, site: str):
    with opened(browser, site + link("batch,every,0.1,3", "none,every,0.2,3", steps=300)) as page:
        run(page)
        page.get_by_text("One image, and your own digit").click()
        page.locator(".bnlab-insight").nth(1).wait_for()
        pad = page.locator(".bnlab-pad")
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        # A zero.
        turns = [2 * np.pi * i / 16 for i in range(17)]
        points = [(box["x"] + 96 + 45 * np.sin(t), box["y"] + 96 - 70 * np.cos(t)) for t in turns]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point)
        page.mouse.up()
        page.get_by_role("img", name="Your digit").wait_for()
        page.wait_for_function(
            """() => [...document.querySelectorAll(".bnlab-insight > p")]
                .every((p) => p.textContent.startsWith("Says 0"))"""
        )
        page.get_by_role("button", name="Next test image").press("Enter")
        page.get_by_role("img", name="Test image 1").wait_for()
        page.get_by_role("button", name="Next test image").press("Enter")
        page.get_by_role("img", name="Test image 2").wait_for()
        assert page.locator(".bnlab-bars li").count() == 20
        # After a change the next networks answer.
        page.get_by_label("Seed").fill("2")
        page.get_by_label("Seed").press("Enter")
        assert page.locator(".bnlab-insight").count() == 0
        page.get_by_role("button", name="Step").click()
        page.locator(".bnlab-insight").nth(1).wait_for()


def test_a_digit_can_be_drawn_by_keyboard(browser: Any, site: str):
    with opened(browser, site + link("batch,every,0.1,2", steps=300)) as page:
        run(page)
        page.get_by_text("One image, and your own digit").press("Enter")
        page.locator(".bnlab-pad").focus()
        for key in ["ArrowUp"] * 12 + ["Space"] + ["ArrowDown"] * 24 + ["Space"]:
            page.keyboard.press(key)
        page.get_by_role("img", name="Your digit").wait_for()
        page.wait_for_function(
            "() => document.querySelector('.bnlab-insight > p').textContent.startsWith('Says 1')"
        )
        page.keyboard.press("Delete")
        page.get_by_role("img", name="Test image").wait_for()


def test_mnist_is_loaded_only_when_it_is_chosen(browser: Any, site: str):
    with opened(browser, site + link("batch,every,0.1,2", steps=10)) as page:
        page.wait_for_load_state("networkidle")
        assert f"{site}lab/digits.js" in page.asked
        loaded = len(page.asked)
        run(page)
        assert [url for url in page.asked[loaded:] if not url.startswith("blob:")] == []
        page.get_by_label("Images").select_option("mnist")
        page.wait_for_load_state("networkidle")
        assert [url for url in page.asked[loaded:] if not url.startswith("blob:")] == [f"{site}lab/mnist.js"]
        run(page)
        assert page.asked[-1].startswith("blob:")
        assert table(page)[0]["Steps"] == "10"


def test_missing_images_are_told(browser: Any, site: str):
    with opened(browser, site + link("batch,every,0.1,2")) as page:
        page.evaluate("() => void (window.bnlibLabData.load = () => Promise.reject(new Error('gone')))")
        page.get_by_label("Images").select_option("mnist")
        page.get_by_role("button", name="Run").click()
        page.get_by_text("The images could not be loaded: gone.").wait_for()
        page.locator(".bnlab[data-state=idle]").wait_for()


def test_the_packet_holds_the_books_digits():
    about, packet = lab_images.pack("digits")
    dataset = data.load("digits")
    size, total = about["height"] * about["width"], about["train"] + about["test"]
    values = np.frombuffer(zlib.decompress(packet), np.uint8)
    pixels, labels = values[: size * total].reshape(total, size), values[size * total :]
    normalised = (pixels - about["mean"]) / about["deviation"]
    expected = np.concatenate([dataset.x_train.flatten(1).numpy(), dataset.x_test.flatten(1).numpy()])
    assert np.abs(normalised - expected).max() < 1e-5
    assert labels.tolist() == dataset.y_train.tolist() + dataset.y_test.tolist()


def test_a_set_that_the_lab_does_not_have_is_refused():
    train, test = lab_images.SIZES["mnist"]
    assert train >= 10_000 and test >= 2_000
    with pytest.raises(ValueError, match="choose one of digits, mnist"):
        lab_images.pack("faces")


# --- the widget ---------------------------------------------------------------------------------------------


def test_the_widget_has_the_labs_presets_and_settings():
    code = """
        import * as state from './state.js';
        import { ARMS } from './arms.js';
        const full = Object.fromEntries(Object.keys(state.PRESETS).map((name) => [name, state.preset(name)]));
        console.log(JSON.stringify({ full, arms: ARMS, norms: state.NORMS }));
    """
    command = [node(), "--input-type=module", "-e", code]
    found = json.loads(subprocess.run(command, cwd=UI, capture_output=True, text=True, check=True).stdout)
    assert tuple(found["full"]) == PRESETS
    for settings in found["full"].values():
        assert set(settings) == {"preset", *SETTINGS}
        assert all(set(network) == set(NETWORK) for network in settings["networks"])
    # One colour, dash and name per arm in the whole book.
    arms = {"none": "standard", "batch": "bn", "noisy_batch": "noisy_bn", "noise": "noisy_standard"}
    assert found["norms"] == list(found["arms"])
    for norm, drawn in found["arms"].items():
        arm = charts.ARMS[arms.get(norm, norm)]
        assert (drawn["label"], drawn["colour"], tuple(drawn["dash"])) == arm


def test_the_widget_keeps_settings_and_refuses_unknown_ones():
    lab = Lab("noise", seed=3, networks=[{"norm": "l1"}])
    assert lab.state == {"preset": "noise", "seed": 3, "networks": [{"norm": "l1"}]}
    assert repr(lab) == "Lab(preset='noise', seed=3, networks=[{'norm': 'l1'}])"
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", BUILT.read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="choose one of rates"):
        Lab("magic")
    with pytest.raises(ValueError, match="Unknown setting 'rate'"):
        Lab(rate=3)
    with pytest.raises(ValueError, match="no 'rate'"):
        Lab(networks=[{"rate": 3}])


def test_the_kernel_sends_images_once_and_explains_what_it_cannot_send():
    lab, sent = Lab(), []
    lab.send = lambda content, buffers=None: sent.append((content, buffers))
    lab._handle_custom_msg({"type": "data", "name": "digits"}, [])
    lab._handle_custom_msg({"type": "data", "name": "faces"}, [])
    lab._handle_custom_msg({"type": "hello"}, [])
    about, packet = lab_images.pack("digits")
    assert sent[0] == ({"type": "data", "name": "digits", "about": about}, [packet])
    assert "choose one of digits" in sent[1][0]["problem"] and len(sent) == 2
    assert not [value for value in lab.get_state().values() if isinstance(value, bytes)]


IN_A_NOTEBOOK = """async ([source, about, packet]) => {
    const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    const { default: lab } = await import(address);
    const values = { state: { preset: "smoothness", steps: 30 }, link: false };
    const listeners = {};
    window.model = {
        get: (key) => values[key],
        set: (key, value) => (values[key] = value),
        save_changes: () => (window.saved = values.state),
        on: (event, listener) => (listeners[event] = listener),
        off: (event) => delete listeners[event],
        send: ({ name }) => setTimeout(() => {
            const bytes = Uint8Array.from(atob(packet), (c) => c.charCodeAt(0));
            listeners["msg:custom"]({ type: "data", name, about }, [new DataView(bytes.buffer)]);
        }),
    };
    window.assign = (state) => { values.state = state; listeners["change:state"](); };
    window.listening = () => Object.keys(listeners);
    window.remove = lab.render({ model: window.model, el: document.querySelector("main") });
}"""


def test_in_a_notebook_the_kernel_brings_the_images(browser: Any, folder: Path, site: str):
    about, packet = lab_images.pack("digits")
    (folder / "bare.html").write_text(
        '<!doctype html><title>Notebook</title><link rel="icon" href="data:,"><main></main>'
    )
    page = browser.new_page()
    watch = Watch(page, site)
    page.goto(f"{site}bare.html")
    source = BUILT.read_text(encoding="utf-8")
    page.evaluate(IN_A_NOTEBOOK, [source, about, base64.b64encode(packet).decode()])
    assert page.get_by_role("button", name="Copy link").count() == 0
    unfold(page)
    run(page)
    assert [row["Steps"] for row in table(page)] == ["30", "30"]
    page.get_by_label("Seed").fill("9")
    page.get_by_label("Seed").press("Enter")
    assert page.evaluate("window.saved.seed") == 9 and page.evaluate("window.saved.preset") == "own"
    assert "#" not in page.url
    page.evaluate("window.assign({ preset: 'noise', seed: 4 })")
    assert page.get_by_label("Seed").input_value() == "4" and page.locator(".bnlab-network").count() == 4
    page.evaluate("window.remove()")
    assert page.locator(".bnlab").count() == 0 and page.evaluate("window.listening()") == []
    assert watch.problems == [] and watch.requests_elsewhere == []
    page.close()


# --- for everybody ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_a_lab_that_has_run_passes_axe_and_fits(browser: Any, site: str, width: int, scheme: str):
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with opened(browser, site + link("batch,every,0.1,2", "none,every,0.1,2", every=10), **options) as page:
        page.evaluate("document.querySelectorAll('.bnlab details').forEach((d) => (d.open = true))")
        run(page)
        page.locator(".bnlab-insight").nth(1).wait_for()
        report = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        found = [(v["id"], [n["html"][:150] for n in v["nodes"]]) for v in report]
        assert found == []
        assert (
            page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        )
        if width < 600:
            controls = page.locator(".bnlab").locator("input, select, button, summary")
            heights = controls.evaluate_all("(all) => all.map((e) => e.getBoundingClientRect().height)")
            assert min(heights) >= 44


def test_less_motion_means_fewer_drawings(browser: Any, site: str):
    with opened(
        browser, site + link("batch,every,0.1,2", steps=60, speed=1), reduced_motion="reduce"
    ) as page:
        page.evaluate(
            """() => {
                window.drawings = 0;
                new MutationObserver(() => window.drawings++)
                    .observe(document.querySelector(".bnlab-chart svg"), { childList: true });
            }"""
        )
        run(page)
        assert page.evaluate("window.drawings") <= 6


def test_the_lab_works_from_disk(browser: Any, folder: Path):
    home = folder.as_uri()
    with opened(browser, f"{home}/index.html{link('batch,every,0.1,2')}", home) as page:
        run(page)
        assert share(table(page)[0]["Test accuracy"]) > 0.8


def test_without_webassembly_plain_javascript_gives_the_same_bits(browser: Any, site: str):
    with opened(browser, site + link("batch,every,0.1,2", steps=20)) as page:
        run(page)
        expected = hashes(page)
        page.get_by_role("button", name="Reset").click()
        page.evaluate(
            """() => {
                const Normal = window.Worker;
                window.Worker = class extends Normal {
                    postMessage(message) { super.postMessage({ ...message, wasm: null }); }
                };
            }"""
        )
        run(page)
        assert hashes(page) == expected
        assert "WebAssembly with SIMD is missing here" in page.locator(".bnlab-status").inner_text()


def test_the_widget_is_compact():
    assert BUILT.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("chapter", "preset"),
    [("02-does-it-work", "rates"), ("04-noisy-bn", "noise"), ("07-along-the-gradient", "smoothness")],
)
def test_a_chapter_holds_the_lab_as_it_is_built(chapter: str, preset: str):
    notebook = json.loads((ROOT / "chapters" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    models = notebook["metadata"]["widgets"][extension.STATE_TYPE]["state"].values()
    labs = [each["state"] for each in models if each["state"].get("_anywidget_id") == extension.WIDGET]
    assert [(lab["_esm"], lab["state"], lab["link"]) for lab in labs] == [
        (BUILT.read_text(encoding="utf-8"), {"preset": preset}, False)
    ], f"bnlib execute chapters/{chapter}.ipynb"


def test_a_page_with_a_lab_is_recognised():
    made = extension.widget_state("noise")["state"]
    assert made[extension.MODEL]["state"]["state"] == {"preset": "noise"}
    assert extension.holds_a_lab([made]) and not extension.holds_a_lab([{"a": {"state": {"_esm": ""}}}])
    with pytest.raises(ValueError, match="Unknown preset"):
        extension.widget_state("magic")
