"""The widget runtime of the static book: real ipywidgets state, a real browser, the keyboard, no kernel."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import altair as alt
import anywidget
import ipywidgets as w
import pandas as pd
import pytest
import torch
import traitlets
from browser import Watch, chromium, served
from ipywidgets.embed import dependency_state

from bnlib.norms import batch_norm
from bnlib.widgets import Explorer, controls

EXTENSION = Path(__file__).parents[1] / "_ext"
sys.path.insert(0, str(EXTENSION))
from offline_book import assets, charts, lab, modules, policy  # noqa: E402

POINTS = [1.0, 2.0, 4.0, 9.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The files that a page of the book has beside it."""
    made = tmp_path_factory.mktemp("page")
    for script in (*assets.RUNTIME, *assets.CHARTS):
        (made / script).write_text((assets.STATIC / script).read_text(encoding="utf-8"), encoding="utf-8")
    (made / "vendor").mkdir()
    assets.write_vega(made / "vendor" / "vega.js")
    return made


@pytest.fixture(scope="module")
def site(folder) -> Iterator[str]:
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def show(browser, site, folder) -> Callable:
    """Show widgets in a page as the book embeds them."""

    @contextmanager
    def opened(*widgets: w.Widget, problems: bool = False, **context: Any) -> Iterator[Any]:
        state = dependency_state(list(widgets), drop_defaults=False)
        first, *rest = assets.RUNTIME
        scripts = [*assets.CHARTS, first, *modules.detach(state, folder), *rest]
        head = [
            '<link rel="icon" href="data:,">',
            *(f'<script defer src="{name}"></script>' for name in scripts),
        ]
        views = (
            f'<script type="application/vnd.jupyter.widget-view+json">{{"model_id": "{v.model_id}"}}</script>'
            for v in widgets
        )
        body = f'<script type="{lab.STATE_TYPE}">{charts.as_json({"state": state})}</script>{"".join(views)}'
        text = (
            f'<!doctype html><html><head><meta charset="utf-8">{"".join(head)}</head>'
            f"<body>{body}</body></html>"
        )
        (folder / "page.html").write_text(policy.protected(text, trains=False), encoding="utf-8")
        with browser.new_context(**context) as surroundings:
            page = surroundings.new_page()
            watch = Watch(page, site)
            page.goto(f"{site}page.html")
            page.wait_for_function(
                """() => {
                  const { charts, widgets } = document.documentElement.dataset;
                  return charts === "ready" && widgets === "ready";
                }"""
            )
            yield page
        assert watch.requests_elsewhere == []
        if not problems:
            assert watch.problems == []

    return opened


# --- numbers -------------------------------------------------------------------------------------------


def normalised_points() -> w.VBox:
    """Batch normalisation computed by Vega in the page, with a slider for each of its numbers."""
    gamma, beta = alt.param(name="gamma", value=1.0), alt.param(name="beta", value=0.0)
    eps, show = alt.param(name="eps", value=0.01), alt.param(name="shown", value="z")
    chart = (
        alt.Chart(pd.DataFrame({"x": POINTS}), width="container", height=100)
        .transform_joinaggregate(mu="mean(x)", var="variancep(x)")
        .transform_calculate(
            z="gamma * (datum.x - datum.mu) / sqrt(datum.var + eps) + beta",
            drawn="shown == 'z' ? datum.z : datum.x",
        )
        .mark_point()
        .encode(x=alt.X("drawn:Q", scale=alt.Scale(domain=[-10, 10])))
        .add_params(gamma, beta, eps, show)
    )
    return controls(
        Explorer(chart, description="Four points, batch-normalised."),
        gamma=w.FloatSlider(value=1.0, min=0.0, max=3.0, step=0.1, description="gamma"),
        beta=w.FloatSlider(value=0.0, min=-2.0, max=2.0, step=0.5, description="beta"),
        eps=w.FloatLogSlider(value=0.01, min=-6, max=1, step=0.5, description="epsilon"),
        shown=w.Dropdown(options=[("output", "z"), ("input", "x")], value="z", description="show"),
    )


def drawn(page: Any) -> list[float]:
    return page.evaluate(
        """async () => {
          const { vegaView } = document.querySelector(".book-anywidget");
          await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
          await vegaView.runAsync();
          return vegaView.data("data_0").map((row) => row.drawn);
        }"""
    )


def from_python(gamma: float = 1.0, beta: float = 0.0, eps: float = 0.01) -> list[float]:
    x = torch.tensor(POINTS, dtype=torch.float64)[:, None]
    weight, bias = torch.tensor([gamma], dtype=x.dtype), torch.tensor([beta], dtype=x.dtype)
    return batch_norm(x, weight, bias, eps=eps).y[:, 0].tolist()


def test_the_figures_numbers_are_pythons_wherever_the_sliders_stand(show):
    with show(normalised_points()) as page:
        assert drawn(page) == pytest.approx(from_python(), rel=1e-12)
        page.get_by_label("gamma").focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        assert drawn(page) == pytest.approx(from_python(gamma=1.5), rel=1e-12)
        page.get_by_label("beta").press("ArrowLeft")
        assert drawn(page) == pytest.approx(from_python(gamma=1.5, beta=-0.5), rel=1e-12)
        page.get_by_label("epsilon").press("End")
        assert drawn(page) == pytest.approx(from_python(gamma=1.5, beta=-0.5, eps=10.0), rel=1e-12)
        page.get_by_label("show").press("ArrowDown")
        assert drawn(page) == POINTS


def test_a_slider_shows_and_speaks_its_value(show):
    log = w.FloatLogSlider(value=0.001, min=-6, max=0, step=1, description="rate")
    steps = w.IntSlider(value=1200, min=0, max=5000, step=100, description="steps")
    share = w.FloatSlider(value=0.25, min=0, max=1, step=0.01, readout_format=".0%", description="share")
    with show(w.VBox([log, steps, share])) as page:
        texts = {}
        for name in ("rate", "steps", "share"):
            slider = page.get_by_label(name)
            slider.press("ArrowRight")
            texts[name] = slider.get_attribute("aria-valuetext")
            assert slider.locator("xpath=following-sibling::span").inner_text() == texts[name]
    assert texts == {"rate": "0.01", "steps": "1300", "share": "26%"}


# --- kinds of controls ---------------------------------------------------------------------------------

KINDS = {
    "int slider": (lambda: w.IntSlider(value=3, max=9, description="c"), "ArrowRight", "value", "4"),
    "float slider": (lambda: w.FloatSlider(value=0.3, max=1, step=0.1, description="c"), "End", "value", "1"),
    "log slider": (
        lambda: w.FloatLogSlider(value=10, step=1, description="c"),
        "ArrowLeft",
        "value",
        "0",
    ),
    "selection slider": (
        lambda: w.SelectionSlider(options=["low", "mid", "high"], value="mid", description="c"),
        "ArrowRight",
        "ariaValueText",
        "high",
    ),
    "drop-down": (
        lambda: w.Dropdown(options=["a", "b"], value="a", description="c"),
        "ArrowDown",
        "value",
        "1",
    ),
    "list": (lambda: w.Select(options=["a", "b"], value="a", description="c"), "ArrowDown", "value", "1"),
    "number": (lambda: w.BoundedIntText(value=3, max=9, description="c"), "ArrowUp", "value", "4"),
    "checkbox": (lambda: w.Checkbox(value=False, description="c"), "Space", "checked", True),
    "toggle": (lambda: w.ToggleButton(value=False, description="c"), "Enter", "ariaPressed", "true"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_linked_controls_follow_each_other_by_keyboard(show, kind):
    make, key, attribute, expected = KINDS[kind]
    first, second = make(), make()
    trait = "index" if first.has_trait("index") else "value"
    link = w.jslink((first, trait), (second, trait))
    with show(w.VBox([first, second])) as page:
        driven, follower = page.locator(".book-row").locator("input, select, button").all()
        driven.press(key)
        driven.blur()  # a number field speaks when it is left
        assert follower.evaluate(f"(c) => c.{attribute}") == expected
        assert follower.evaluate("(c) => c.labels[0]?.textContent ?? c.textContent") == "c"
    link.close()


@pytest.mark.parametrize("kind", [w.ToggleButtons, w.RadioButtons])
def test_one_of_several_by_arrow_keys(show, kind):
    buttons = [kind(options=["none", "batch", "layer"], value="batch", description="norm") for _ in range(2)]
    link = w.jslink((buttons[0], "index"), (buttons[1], "index"))
    with show(w.VBox(buttons)) as page:
        first, second = page.get_by_role("radiogroup", name="norm").all()
        first.get_by_label("batch").press("ArrowRight")
        assert second.get_by_label("layer").is_checked()
    link.close()


def test_a_directional_link_goes_one_way(show):
    first, second = (w.IntSlider(value=v, max=9, description=d) for v, d in ((3, "source"), (5, "target")))
    link = w.jsdlink((first, "value"), (second, "value"))
    with show(w.VBox([first, second])) as page:
        source, target = page.get_by_label("source"), page.get_by_label("target")
        assert target.input_value() == "3"
        source.press("ArrowRight")
        assert target.input_value() == "4"
        target.press("End")
        assert source.input_value() == "4"
    link.close()


def test_play_runs_to_the_end_and_pauses(show):
    play = w.Play(value=0, min=0, max=3, interval=30)
    slider = w.IntSlider(value=0, max=3, description="step")
    link = w.jslink((play, "value"), (slider, "value"))
    with show(w.HBox([play, slider])) as page:
        page.get_by_role("button", name="Play").press("Enter")
        page.get_by_role("button", name="Pause").wait_for()
        page.get_by_role("button", name="Play").wait_for()
        assert page.get_by_label("step").input_value() == "3"
    link.close()


def test_play_takes_single_steps_for_readers_who_want_less_motion(show):
    play = w.Play(value=0, min=0, max=2, interval=30)
    slider = w.IntSlider(value=0, max=2, description="step")
    link = w.jslink((play, "value"), (slider, "value"))
    with show(w.HBox([play, slider]), reduced_motion="reduce") as page:
        seen = []
        for _ in range(4):
            page.get_by_role("button", name="Step").press("Enter")
            page.wait_for_timeout(100)
            seen.append(page.get_by_label("step").input_value())
    assert seen == ["1", "2", "0", "1"]
    link.close()


# --- what goes wrong is said ---------------------------------------------------------------------------


def test_what_needs_a_kernel_says_so_and_leaves_the_rest_alone(show):
    box = w.VBox(
        [w.Button(description="Train"), w.IntSlider(value=1, max=9, description="depth"), w.HTML("<b>hi</b>")]
    )
    with show(box) as page:
        assert "Button" in page.get_by_role("alert").inner_text()
        assert "Binder" in page.get_by_role("alert").inner_text()
        page.get_by_label("depth").press("ArrowRight")
        assert page.get_by_label("depth").input_value() == "2"
        assert page.locator("b").inner_text() == "hi"


class Broken(anywidget.AnyWidget):
    _esm = "export default { render() { throw new Error('no such thing'); } };"


class Sum(anywidget.AnyWidget):
    """Binary state, a style, and both life-cycle functions."""

    _esm = """export default {
      initialize({ model }) { model.set("factor", 10); },
      render({ model, el }) {
        const bytes = new Uint8Array(model.get("data").buffer);
        el.textContent = model.get("factor") * bytes.reduce((a, b) => a + b, 0);
      },
    };"""
    _css = ".book-anywidget { font-weight: 700; }"
    data = traitlets.Bytes().tag(sync=True)
    factor = traitlets.Int(1).tag(sync=True)


def test_a_module_that_fails_says_so(show):
    with show(Broken(), problems=True) as page:
        assert "no such thing" in page.get_by_role("alert").inner_text()


def test_a_module_gets_binary_state_and_its_style(show):
    with show(Sum(data=bytes([1, 2, 3]))) as page:
        host = page.locator(".book-anywidget")
        assert host.inner_text() == "60"
        assert host.evaluate("(e) => getComputedStyle(e).fontWeight") == "700"
