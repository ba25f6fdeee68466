"""Executing a chapter twice gives the same bytes, and a failure changes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import altair as alt
import ipywidgets
import nbformat
import pandas as pd
import pytest

from bnlib import notebook, widgets

IMPORTS = """import altair as alt
import ipywidgets
import pandas as pd

from bnlib import charts, notebook, widgets

notebook.setup()"""

FIGURES = """frame = pd.DataFrame(
    [(a, seed, step, step * (seed + 1.0)) for a in ("standard", "bn") for seed in (0, 1) for step in (0, 1)],
    columns=["arm", "seed", "step", "value"],
)
notebook.figure(charts.curves(frame, y_title="Loss (nats)"), "Loss rises")
charts.curves(frame, y_title="Loss (nats)")"""

EXPLORER = """scale_param = alt.param(name="factor", value=1.0)
shape = alt.param(name="curve", value="line")
chart = (
    alt.Chart(pd.DataFrame({"x": [1, 2, 3]}), description="A line.")
    .transform_calculate(y="factor * datum.x * (curve == 'line' ? 1 : datum.x)")
    .mark_line()
    .encode(x="x:Q", y="y:Q")
    .add_params(scale_param, shape)
)
hidden = ipywidgets.IntSlider(description="never shown")
notebook.figure(
    widgets.controls(
        widgets.Explorer(chart),
        factor=ipywidgets.FloatSlider(value=1.0, min=0, max=3, description="factor"),
        curve=ipywidgets.Dropdown(options=[("Line", "line"), ("Parabola", "parabola")], description="curve"),
    ),
    "The factor sets the slope.",
    note="Move it.",
)"""

PRINTS = """print(object())
for n in range(20):
    print(n, flush=True)
notebook.say(f"The scale is {scale}.")"""


def sample(folder: Path, *cells: str, name: str = "01-sample.ipynb") -> Path:
    """A notebook with a cell tagged `parameters` followed by `cells`."""
    new = nbformat.v4.new_code_cell
    parameters = new("scale = 'recorded'", id="parameters", metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Sample", id="title"), parameters]
        + [new(source, id=f"code-{n}") for n, source in enumerate(cells)]
    )
    path = folder / name
    nbformat.write(book, path)
    return path


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    path = sample(tmp_path_factory.mktemp("book"), IMPORTS, FIGURES, EXPLORER, PRINTS)
    assert notebook.execute(path, progress=False) == [path]
    return path


def outputs(path: Path) -> list[dict]:
    return [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]


def test_two_executions_give_the_same_bytes(executed):
    before = executed.read_bytes()
    notebook.execute(executed, check=True, progress=False)
    assert executed.read_bytes() == before
    notebook.execute(executed, progress=False)
    assert executed.read_bytes() == before
    assert [p.name for p in executed.parent.iterdir()] == [executed.name]


def test_normalising_twice_changes_nothing(executed):
    once = executed.read_bytes()
    notebook.normalise(executed)
    assert executed.read_bytes() == once
    assert notebook.as_text(notebook.normalise(json.loads(once))).encode() == once


def test_the_committed_form_is_valid_and_free_of_noise(executed):
    text = executed.read_text()
    nbformat.validate(json.loads(text))
    assert text.endswith("}\n") and not text.endswith("\n\n")
    for noise in ("papermill", "start_time", "iopub", "at 0x7", str(executed.parent), '"version"'):
        assert noise not in text
    state = json.loads(text)["metadata"]["widgets"][notebook.WIDGET_STATE]["state"]
    assert "never shown" not in json.dumps(state)
    assert list(state) == [f"{n:032x}" for n in range(1, len(state) + 1)]
    assert sum(entry["model_name"] == "LinkModel" for entry in state.values()) == 2
    assert None not in [
        v for e in state.values() if e["model_name"] == "LayoutModel" for v in e["state"].values()
    ]
    printed = [o for o in outputs(executed) if o["output_type"] == "stream"]
    assert len(printed) == 1
    assert [c["execution_count"] for c in json.loads(text)["cells"] if c["cell_type"] == "code"] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_the_linked_traits_are_all_in_the_saved_state(executed):
    state = json.loads(executed.read_text())["metadata"]["widgets"][notebook.WIDGET_STATE]["state"]
    for entry in state.values():
        if entry["model_name"] == "LinkModel":
            for model, trait in (entry["state"]["source"], entry["state"]["target"]):
                assert trait in state[model.removeprefix("IPY_MODEL_")]["state"]


def test_figures_carry_caption_and_alt_text(executed):
    captions = [o["data"]["text/markdown"] for o in outputs(executed) if "text/markdown" in o.get("data", {})]
    assert captions == [
        "**Loss rises.**",
        "**The factor sets the slope.** Move it.",
        "The scale is recorded.",
    ]
    html = [o["data"]["text/html"] for o in outputs(executed) if "text/html" in o.get("data", {})]
    assert len(html) == 2
    assert '"description": "Curves of Loss (nats) against step (0 to 1)' in html[0]
    assert '"renderer": "svg"' in html[0] and '"actions": false' in html[0]
    assert "altair-viz-" + f"{0:032x}" in html[0] and "altair-viz-" + f"{1:032x}" in html[1]


def test_nbval_agrees_with_the_committed_outputs(executed):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval"]
    config = Path(__file__).with_name("sanitize.cfg")
    done = subprocess.run(
        [*command, f"--nbval-sanitize-with={config}", executed.name],
        cwd=executed.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "5 passed" in done.stdout


def test_another_scale_leaves_the_committed_notebook_alone(executed):
    before = executed.read_bytes()
    (executed.parent / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    try:
        (written,) = notebook.execute(executed, scale="smoke", progress=False)
    finally:
        (executed.parent / "_toc.yml").unlink()
    assert written == executed.parent / "_build" / "executed" / "smoke" / executed.name
    assert any("The scale is smoke." in json.dumps(o) for o in outputs(written))
    assert executed.read_bytes() == before
    written.unlink()
    for folder in (written.parent, written.parent.parent, written.parent.parent.parent):
        folder.rmdir()


def test_a_scale_needs_a_parameters_cell(tmp_path):
    path = tmp_path / "plain.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
    with pytest.raises(notebook.ExecutionError, match="no cell tagged 'parameters'"):
        notebook.execute(path, scale="smoke", progress=False)


def test_a_dead_kernel_is_named(tmp_path):
    path = sample(tmp_path, "import os\nos._exit(1)")
    before = path.read_bytes()
    with pytest.raises(notebook.ExecutionError, match="the kernel died"):
        notebook.execute(path, progress=False)
    assert path.read_bytes() == before


@pytest.mark.parametrize("scale", ["recorded", "smoke"])
def test_a_failing_cell_stops_at_once_and_changes_nothing(tmp_path, scale):
    path = sample(tmp_path, "1 + 1", "raise ValueError('no such arm')", "open('after', 'w')")
    before = path.read_bytes()
    with pytest.raises(notebook.ExecutionError, match=r"cell 4 raised ValueError: no such arm") as caught:
        notebook.execute([path], scale=scale, progress=False)
    assert "raise ValueError" in str(caught.value) and "\x1b" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_check_reports_the_difference_and_changes_nothing(tmp_path):
    path = sample(tmp_path, "print('one')")
    notebook.execute(path, progress=False)
    changed = path.read_text().replace('"one\\n"', '"two\\n"')
    path.write_text(changed)
    with pytest.raises(notebook.ExecutionError, match="differs from the committed notebook") as caught:
        notebook.execute(path, check=True, progress=False)
    changed_lines = [line for line in str(caught.value).splitlines() if line[0] in "+-" and "\\n" in line]
    assert changed_lines == ['-      "two\\n"', '+      "one\\n"']
    assert path.read_text() == changed


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import sys\nprint('warning: slow', file=sys.stderr)", "Cell 3 wrote to stderr.*warning: slow"),
        ("from pathlib import Path\nprint(Path.home() / 'data')", "Cell 3 shows a path of this machine"),
    ],
)
def test_outputs_that_must_not_be_committed_are_refused(tmp_path, source, reason):
    path = sample(tmp_path, source)
    before = path.read_bytes()
    with pytest.raises(notebook.NotebookError, match=reason):
        notebook.execute(path, progress=False)
    assert path.read_bytes() == before


def test_a_stored_error_is_refused():
    cell = nbformat.v4.new_code_cell("1 / 0", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="x", traceback=["x"])]
    with pytest.raises(notebook.NotebookError, match="Cell 1 raised ZeroDivisionError"):
        notebook.normalise(nbformat.v4.new_notebook(cells=[cell]))


def test_normalise_keeps_what_authors_wrote():
    tagged = nbformat.v4.new_code_cell(
        "1", id="mine", metadata={"tags": ["remove-input"], "papermill": {"x": 1}}
    )
    injected = nbformat.v4.new_code_cell("scale = 'smoke'", metadata={"tags": ["injected-parameters"]})
    book = nbformat.v4.new_notebook(cells=[tagged, injected], metadata={"title": "Mine"})
    clean = notebook.normalise(book)
    assert [cell["id"] for cell in clean["cells"]] == ["mine"]
    assert clean["cells"][0]["metadata"] == {"tags": ["remove-input"]}
    assert clean["metadata"]["title"] == "Mine"
    assert len(book.cells) == 2 and "papermill" in book.cells[0].metadata


def test_cells_without_an_id_get_a_stable_one():
    cells = [{"cell_type": "markdown", "metadata": {}, "source": t} for t in ("a", "b")]
    old = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    first, second = notebook.normalise(old), notebook.normalise(old)
    assert first == second and len({cell["id"] for cell in first["cells"]}) == 2
    nbformat.validate(first)


def test_chapters_follow_the_table_of_contents(tmp_path):
    (tmp_path / "chapters").mkdir()
    for name in ("01-a", "02-b"):
        (tmp_path / "chapters" / f"{name}.ipynb").write_text("{}")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: intro\nparts:\n- caption: One\n  chapters:\n"
        "  - file: chapters/02-b\n  - file: chapters/01-a.ipynb\n  - file: scoreboard\n"
    )
    assert [p.name for p in notebook.chapters(tmp_path)] == ["02-b.ipynb", "01-a.ipynb"]
    with pytest.raises(FileNotFoundError, match="no _toc"):
        notebook.chapters(tmp_path / "chapters")


def explorer() -> widgets.Explorer:
    chart = alt.Chart(pd.DataFrame({"x": [1]})).mark_point().encode(x="x:Q")
    return widgets.Explorer(chart.add_params(alt.param(name="size", value=1.0)), description="A dot.")


def test_figure_needs_alt_text_and_a_finding(capsys):
    bare = alt.Chart(pd.DataFrame({"x": [1]})).mark_point().encode(x="x:Q")
    with pytest.raises(ValueError, match="needs alt text"):
        notebook.figure(bare, "A dot.")
    with pytest.raises(ValueError, match="needs a finding"):
        notebook.figure(bare, " ", alt="A dot.")
    with pytest.raises(ValueError, match="holds an Explorer"):
        notebook.figure(ipywidgets.IntSlider(), "A slider.")
    shown = ipywidgets.VBox([ipywidgets.VBox([explorer()])])
    notebook.figure(shown, "A dot", alt="One dot at 1.")
    assert shown.children[0].children[0].description == "One dot at 1."
    assert "**A dot.**" in capsys.readouterr().out
