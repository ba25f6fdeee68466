"""The Explorer: its Python side, and its JavaScript side in a real browser against numbers from pandas."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import altair as alt
import ipywidgets
import numpy as np
import pandas as pd
import pytest
import traitlets
from browser import vega

from bnlib import charts, widgets

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
ESM = Path(widgets.__file__).with_name("explorer.js")

POINTS = pd.DataFrame({"x": [1.0, 2.0, 3.0, 6.0]})


def chart() -> alt.LayerChart:
    """Points moved by `factor`, shown raw or squared, with a selection that is no trait."""
    factor = alt.param(name="factor", value=1.0)
    shape = alt.param(name="shape", value="line")
    derived = alt.param(name="twice", expr="2 * factor")
    return (
        alt.layer(alt.Chart(POINTS).mark_point().encode(x="x:Q", y="y:Q"))
        .transform_calculate(y="factor * (shape == 'line' ? datum.x : datum.x * datum.x)")
        .add_params(factor, shape, derived, alt.selection_point(name="picked"))
        .properties(width="container", height=150, description="Four points.")
    )


# --- Python ---


def test_params_become_synced_traits():
    explorer = widgets.Explorer(chart())
    assert explorer.params == ["factor", "shape"]
    state = explorer.get_state()
    assert {"spec", "description", "params", "choices", "factor", "shape"} <= set(state)
    assert (state["factor"], state["shape"], state["description"]) == (1.0, "line", "Four points.")
    assert "import(" in state["_esm"]
    explorer.factor = 2
    assert explorer.get_state(["factor"]) == {"factor": 2.0}
    assert repr(explorer) == "Explorer(factor=2.0, shape='line')"


def test_the_spec_has_the_theme_and_is_plain_json():
    spec = widgets.Explorer(chart()).spec
    assert spec["config"]["background"] == "transparent"
    assert json.loads(json.dumps(spec)) == spec


def test_values_can_be_given_at_the_start():
    assert widgets.Explorer(chart(), factor=2.5).factor == 2.5


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: widgets.Explorer(alt.Chart(POINTS).mark_point(), "Points."), "no named param"),
        (
            lambda: widgets.Explorer(alt.Chart(POINTS).mark_point().add_params(alt.param(name="a", value=1))),
            "needs a description",
        ),
        (lambda: widgets.Explorer(chart(), gamma=1.0), "Unknown param 'gamma'"),
        (lambda: widgets.Explorer(chart().add_params(alt.param(name="layout", value=1))), "is taken"),
        (lambda: widgets.Explorer(chart().add_params(alt.param(name="item", value=1))), "is taken"),
    ],
)
def test_an_explorer_that_cannot_work_is_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


def test_setting_what_is_not_a_param_raises():
    explorer = widgets.Explorer(chart())
    with pytest.raises(AttributeError, match="Unknown param 'gamma': the chart has factor, shape"):
        explorer.gamma = 1.0
    with pytest.raises(traitlets.TraitError):
        explorer.factor = "much"


def test_controls_link_values_and_indices():
    explorer = widgets.Explorer(chart())
    slider = ipywidgets.FloatSlider(value=1.0, max=4.0, description="factor")
    menu = ipywidgets.Dropdown(options=[("Line", "line"), ("Parabola", "parabola")], description="shape")
    box = widgets.controls(explorer, factor=slider, shape=menu)
    assert isinstance(box, ipywidgets.VBox) and box.children[-1] is explorer
    assert box.children[0].children == (slider, menu)
    assert explorer.choices == {"shape": ["line", "parabola"]} and explorer.shape_index == 0
    explorer.shape = "parabola"
    assert explorer.shape_index == 1
    explorer.shape_index = 0
    assert explorer.shape == "line"


def test_a_play_button_and_a_slider_can_drive_one_param():
    explorer = widgets.Explorer(chart())
    play = ipywidgets.Play(value=1, max=5)
    slider = ipywidgets.FloatSlider(value=1.0, max=5.0, description="factor")
    box = widgets.controls(explorer, factor=(play, slider))
    assert box.children[0].children[0].children == (play, slider)


def slider(**options: Any) -> ipywidgets.FloatSlider:
    return ipywidgets.FloatSlider(**{"value": 1.0, "description": "factor", **options})


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        ({"gamma": slider()}, ValueError, "Unknown param 'gamma'"),
        ({"factor": slider(value=2.0)}, ValueError, "starts at 2.0, the chart at 1.0"),
        ({"factor": slider(description="")}, ValueError, "needs a description"),
        ({"shape": ipywidgets.Dropdown(options=["a"], description="s")}, ValueError, "starts at 'a'"),
        ({"factor": ipywidgets.Button(description="go")}, TypeError, "has no value"),
        (
            {"shape": ipywidgets.SelectMultiple(options=["line"], value=["line"], description="s")},
            TypeError,
            "single choice",
        ),
    ],
)
def test_controls_that_cannot_work_are_refused(given, error, reason):
    with pytest.raises(error, match=reason):
        widgets.controls(widgets.Explorer(chart()), **given)


def test_the_module_imports_one_pinned_address_that_fits_altair():
    source = ESM.read_text()
    (address,) = re.findall(r"https?://[^\"'`\s]+", source)
    assert f'import("{address}")' in source and source.count("import(") == 1
    major = alt.VEGALITE_VERSION.split(".")[0]
    assert re.search(
        rf"vega-embed@\d+\.\d+\.\d+\?deps=vega@\d+\.\d+\.\d+,vega-lite@{major}\.\d+\.\d+$", address
    )
    assert re.search(rf"/vega-embed@{alt.VEGAEMBED_VERSION.lstrip('v').split('.')[0]}\.", address)


# --- in the browser ---

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Test</title>
<script type="importmap">{"imports": {"%(address)s": "/%(shim)s"}}</script>
<script src="/vega.js"></script>
<body style="margin: 0; color: rgb(1, 2, 3)"><div id="host" style="width: 600px"></div>
<script type="module">
import widget from "/explorer.js";
class Model {  // what anywidget and the static book give to `render`
  constructor(state) { this.state = state; this.listeners = {}; this.saved = 0; }
  get(key) { return this.state[key]; }
  set(key, value) {
    if (Object.is(this.state[key], value)) return;
    this.state[key] = value;
    for (const listener of [...(this.listeners[`change:${key}`] ?? [])]) listener();
  }
  save_changes() { this.saved += 1; }
  on(event, listener) { (this.listeners[event] ??= new Set()).add(listener); }
  off(event, listener) { this.listeners[event]?.delete(listener); }
  get count() { return Object.values(this.listeners).reduce((sum, set) => sum + set.size, 0); }
}
window.host = document.getElementById("host");
window.mount = async (state) => {
  window.model = new Model(state);
  window.cleanUp = await widget.render({ model, el: host });
};
window.embed = (spec) => vegaEmbed(host, spec, { renderer: "svg", actions: false });
window.settle = async () => {
  for (let n = 0; n < 3; n += 1) await new Promise(requestAnimationFrame);
  await host.vegaView?.runAsync();
};
window.ys = () => host.vegaView.data("data_0").map((row) => row.y);
window.ready = true;
</script>"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Callable[..., Any]]:
    """Runs `script`, the body of an async function of `argument`, in a fresh page with explorer.js and Vega.

    The browser lives in a thread of its own: Playwright allows one synchronous instance in each.
    """
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: install Debian's chromium to run the browser tests")
    from playwright.sync_api import sync_playwright

    address = re.search(r'import\("([^"]+)"\)', ESM.read_text())[1]
    served = {
        "/explorer.js": ESM.read_text(),
        "/vega.js": f"(function () {{{vega()}\n}})();",
        "/shim.mjs": "export default window.vegaEmbed;",
    }

    def start() -> tuple:
        playwright = sync_playwright().start()
        return playwright, playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)

    def visit(script: str, argument: Any, width: int, shim: str) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 800})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))

        def serve(route: Any) -> None:
            path = re.sub(r"^http://book\.test", "", route.request.url)
            if path == "/":
                body = PAGE % {"address": address, "shim": shim}
                route.fulfill(body=body, content_type="text/html")
            elif path in served:
                route.fulfill(body=served[path], content_type="text/javascript")
            else:
                route.abort()

        page.route("**/*", serve)
        try:
            page.goto("http://book.test/")
            page.wait_for_function("window.ready")
            result = page.evaluate(f"async (argument) => {{ {script} }}", argument)
        finally:
            page.close()
        assert problems == []
        return result

    with ThreadPoolExecutor(1) as thread:
        playwright, browser = thread.submit(start).result()
        yield lambda script, argument=None, width=800, shim="shim.mjs": thread.submit(
            visit, script, argument, width, shim
        ).result()
        thread.submit(browser.close).result()
        thread.submit(playwright.stop).result()


def state(**values: Any) -> dict:
    explorer = widgets.Explorer(chart(), **values)
    menu = ipywidgets.Dropdown(options=[("Line", "line"), ("Parabola", "parabola")], description="shape")
    widgets.controls(explorer, shape=menu)
    keys = ["spec", "description", "params", "choices", "shape_index", *explorer.params]
    return json.loads(json.dumps(explorer.get_state(keys)))


def expected(factor: float, shape: str) -> list[float]:
    return (factor * (POINTS["x"] if shape == "line" else POINTS["x"] ** 2)).tolist()


def test_the_first_frame_has_the_traits_values(chromium):
    shown = chromium(
        """await mount(argument);
        return {ys: ys(), ready: host.dataset.ready, saved: model.saved,
                svg: host.querySelectorAll("svg").length,
                label: host.querySelector("[aria-label='Four points.']")?.getAttribute("role"),
                menu: host.querySelectorAll("details").length};""",
        state(factor=2.5),
    )
    assert shown == {
        "ys": expected(2.5, "line"),
        "ready": "true",
        "svg": 1,
        "saved": 0,
        "label": "graphics-document",
        "menu": 0,
    }


def test_params_move_the_numbers_as_pandas_computes_them(chromium):
    moves = [(0.5, "line"), (3.0, "parabola"), (-1.25, "parabola"), (2.0, "line")]
    seen = chromium(
        """await mount(argument.state);
        const seen = [];
        for (const [factor, shape] of argument.moves) {
          model.set("factor", factor); model.set("shape", shape);
          await settle();
          seen.push([ys(), model.get("shape_index")]);
        }
        return seen;""",
        {"state": state(), "moves": moves},
    )
    assert seen == [[expected(f, s), int(s == "parabola")] for f, s in moves]


def test_a_drop_down_speaks_through_its_index(chromium):
    seen = chromium(
        """await mount(argument);
        model.set("shape_index", 1);
        await settle();
        return [ys(), model.get("shape"), model.saved];""",
        state(),
    )
    assert seen == [expected(1.0, "parabola"), "parabola", 1]


def test_many_moves_in_one_frame_end_at_the_last(chromium):
    seen = chromium(
        """await mount(argument);
        let runs = 0;
        const run = host.vegaView.runAsync.bind(host.vegaView);
        host.vegaView.runAsync = () => { runs += 1; return run(); };
        for (let n = 0; n <= 100; n += 1) model.set("factor", n / 10);
        for (let n = 0; n < 3; n += 1) await new Promise(requestAnimationFrame);
        return [ys(), model.get("factor"), runs, model.saved];""",
        state(),
    )
    assert seen == [expected(10.0, "line"), 10, 1, 0]


def test_a_signal_changed_in_the_chart_is_written_back_once(chromium):
    seen = chromium(
        """await mount(argument);
        await host.vegaView.signal("factor", 4).runAsync();
        await settle();
        return [model.get("factor"), model.saved, ys()];""",
        state(),
    )
    assert seen == [4, 1, expected(4.0, "line")]


def test_description_and_spec_can_change(chromium):
    seen = chromium(
        """await mount(argument);
        model.set("description", "Four moved points.");
        const label = host.querySelector("[role='graphics-document']").getAttribute("aria-label");
        const spec = structuredClone(model.get("spec"));
        Object.values(spec.datasets)[0].push({x: 10});
        const before = host.vegaView;
        model.set("spec", spec);
        while (!host.vegaView || host.vegaView === before) await new Promise(requestAnimationFrame);
        return [label, ys(), host.querySelectorAll("svg").length];""",
        state(),
    )
    assert seen == ["Four moved points.", [*expected(1.0, "line"), 10.0], 1]


def test_clean_up_leaves_nothing_behind(chromium):
    seen = chromium(
        """await mount(argument);
        const during = model.count;
        cleanUp();
        model.set("factor", 3);
        await settle();
        const left = ["vegaView" in host, "ready" in host.dataset];
        return [during > 0, model.count, host.childElementCount, ...left];""",
        state(),
    )
    assert seen == [True, 0, 0, False, False]


def test_a_container_without_width_at_first_is_filled_later(chromium):
    seen = chromium(
        """host.style.width = "0px";
        await mount(argument);
        const hidden = host.querySelector("svg").getBoundingClientRect().width;
        host.style.width = "500px";
        for (let n = 0; n < 5; n += 1) await settle();
        return [hidden, host.querySelector("svg").getBoundingClientRect().width];""",
        state(),
    )
    assert seen[0] < 450 and seen[1] == pytest.approx(500, abs=2)


def test_without_vega_a_sentence_stands_in_for_the_figure(chromium):
    seen = chromium(
        """await mount(argument);
        const alert = host.querySelector("[role='alert']");
        return [host.dataset.ready, alert.textContent];""",
        state(),
        shim="missing.mjs",
    )
    assert seen[0] == "error"
    assert "could not be drawn" in seen[1] and "Four points." in seen[1]


# --- charts in the browser ---


def runs() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [
        (arm, seed, step, layer, 2.0 + generator.normal() - step / 100)
        for arm in ("standard", "bn")
        for seed in range(5)
        for step in range(0, 101, 10)
        for layer in (5, 13, 21)
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "value"])


def themed(figure: alt.TopLevelMixin) -> dict:
    with alt.theme.enable("bnlib"):
        return json.loads(figure.to_json())


SHAPES = {
    "curves": lambda: charts.curves(runs().query("layer == 5"), y_title="Loss (nats)"),
    "small_multiples": lambda: charts.small_multiples(runs(), "layer", y_title="Loss (nats)"),
    "heatmap": lambda: charts.heatmap(
        runs(), "layer", "step", x_title="Layer", y_title="Step", value_title="loss"
    ),
    "ridges": lambda: charts.ridges(
        runs().query("seed == 0 and layer == 5").assign(bin=lambda f: f["step"], row=0, density=1.0),
        row="row",
        x_title="Activation",
        row_title="Step",
    ),
    "dots": lambda: charts.dots(runs().query("layer == 5 and step == 100"), y_title="Loss (nats)"),
}


@pytest.mark.parametrize("width", [358, 800])
@pytest.mark.parametrize("name", SHAPES)
def test_every_kind_of_chart_fits_the_page_and_takes_its_ink(chromium, name, width):
    spec = themed(SHAPES[name]())
    seen = chromium(
        """host.style.width = argument.width + "px";
        await embed(argument.spec);
        const svg = host.querySelector("svg");
        const words = [...svg.querySelectorAll("text")].filter((text) => text.textContent);
        const box = host.getBoundingClientRect();
        return {
          width: svg.getBoundingClientRect().width,
          label: document.querySelector("[role='graphics-document']").getAttribute("aria-label"),
          outside: words.filter((text) => text.getBoundingClientRect().right > box.right + 1
            || text.getBoundingClientRect().left < box.left - 1).map((text) => text.textContent),
          ink: [...new Set(words.map((text) => getComputedStyle(text).fill))],
          size: Math.min(...words.map((text) => parseFloat(getComputedStyle(text).fontSize))),
          shapes: svg.querySelectorAll("[class*='mark-'] path[d]").length,
        };""",
        {"spec": spec, "width": width},
        width=width,
    )
    assert seen["label"] == spec["description"]
    assert 0.9 * width < seen["width"] <= width
    assert seen["outside"] == []
    assert seen["size"] >= 11
    assert seen["shapes"] > 0
    if name == "heatmap":  # the numbers in the cells follow the cell, not the page
        assert set(seen["ink"]) <= {"rgb(1, 2, 3)", "rgb(255, 255, 255)", "rgb(0, 0, 0)"}
    else:
        assert seen["ink"] == ["rgb(1, 2, 3)"]


def test_small_multiples_wrap_to_the_page_and_follow_its_width(chromium):
    """Three panels, then two: first in a narrow window, then in a wide one, then in a narrow one again."""
    for panels, columns in ((3, (1, 3)), (2, (1, 2))):
        frame = runs().query("layer < 20") if panels == 2 else runs()
        steps = chromium(
            """host.style.width = argument.widths[0] + "px";
            const { view } = await embed(argument.spec);
            const steps = [];
            for (const width of argument.widths) {
              host.style.width = width + "px";
              window.dispatchEvent(new Event("resize"));
              await view.runAsync();
              const cells = [...host.querySelectorAll(".mark-group.role-scope.cell > g > path.background")]
                .map((cell) => cell.getBoundingClientRect());
              steps.push({
                lefts: cells.map((cell) => Math.round(cell.left)),
                right: Math.max(...cells.map((cell) => cell.right)),
                svg: Number(host.querySelector("svg").getAttribute("width")),
              });
            }
            return steps;""",
            {
                "spec": themed(charts.small_multiples(frame, "layer", y_title="Loss (nats)")),
                "widths": [358, 800, 358],
            },
        )
        assert [len(step["lefts"]) for step in steps] == [panels] * 3
        assert [len(set(step["lefts"])) for step in steps] == [columns[0], columns[1], columns[0]]
        for step, width in zip(steps, (358, 800, 358), strict=True):
            assert 0.85 * width < step["svg"] <= width and step["right"] <= width + 8
        assert steps[2] == steps[0]


def test_the_drawn_medians_are_pandas_medians(chromium):
    frame = runs().query("layer == 5")
    drawn = chromium(
        """const { view } = await embed(argument);
        const names = Object.keys(view.getState({ data: () => true, signals: () => false }).data);
        const tables = names.map((name) => view.data(name));
        const rows = tables.find((rows) => rows.length && "median_y" in rows[0]);
        return rows.map((row) => [row.arm, row.x, row.median_y]);""",
        themed(SHAPES["curves"]()),
    )
    table = frame.assign(value=charts.significant(frame["value"].to_numpy()))
    medians = table.groupby(["arm", "step"])["value"].median()
    labels = {charts.ARMS[arm].label: arm for arm in ("standard", "bn")}
    assert len(drawn) == len(medians)
    for label, step, value in drawn:
        assert value == pytest.approx(medians[labels[label], step], abs=1e-12)
