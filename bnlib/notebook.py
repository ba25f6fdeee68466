"""What a chapter calls to show things, and what executes chapters so that the same run gives the same bytes.

This module never imports torch.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import altair as alt

from bnlib import charts  # noqa: F401  (registers the theme)

RECORDED = "recorded"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class NotebookError(RuntimeError):
    """A notebook that must not be committed: an error, stderr or a machine's path in its outputs."""


class ExecutionError(RuntimeError):
    """A chapter that failed, or whose outputs differ from the committed ones."""


# --- in a chapter ---


def setup() -> None:
    """Theme on, SVG charts without a menu. Call it once, in the first code cell."""
    alt.theme.enable("bnlib")
    alt.renderers.enable("default")
    alt.renderers.set_embed_options(renderer="svg", actions=False)
    alt.data_transformers.disable_max_rows()


def figure(chart_or_widget: Any, finding: str, note: str | None = None, alt: str | None = None) -> None:
    """Show a chart, an `Explorer` or a box that holds one, then its caption: the finding in bold, then
    the note.

    `alt` replaces the alt text that the chart computed for itself. A figure without alt text or without a
    finding raises ValueError.
    """
    from IPython.display import display

    if not finding.strip():
        raise ValueError("A figure needs a finding: one sentence that says what it shows.")
    shown = _with_alt_text(chart_or_widget, alt)
    display(shown)
    say(f"**{_sentence(finding)}**" + (f" {note.strip()}" if note else ""))


def say(markdown: str) -> None:
    """Display computed prose. Tag its cell `remove-input`: the reader sees a paragraph, not the code."""
    from IPython.display import display

    display({"text/markdown": markdown, "text/plain": markdown}, raw=True)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text[-1] in ".!?" else f"{text}."


def _with_alt_text(shown: Any, text: str | None) -> Any:
    if isinstance(shown, alt.TopLevelMixin):
        text = text or shown.to_dict(validate=False).get("description")
        if not text:
            raise ValueError("A chart needs alt text: pass alt=..., or give the chart a description.")
        return shown.properties(description=text)
    explorers = list(_explorers(shown))
    if not explorers:
        raise ValueError("figure shows an Altair chart, an Explorer, or a box that holds an Explorer.")
    if text:
        explorers[0].description = text
    return shown


def _explorers(widget: Any) -> Iterator[Any]:
    from bnlib.widgets import Explorer

    if isinstance(widget, Explorer):
        yield widget
    for child in getattr(widget, "children", ()):
        yield from _explorers(child)


# --- the same run, the same bytes ---


def normalise(notebook: Path | str | dict) -> dict:
    """An executed notebook without what differs between two identical runs; raises NotebookError if it
    must not be committed (an error, text on stderr, a path of this machine in an output).

    Dropped: papermill's and Jupyter's timings, the injected-parameters cell, versions of the kernel,
    widgets that are never shown, unset layout properties. Made stable: widget, chart and cell ids,
    execution counts, the splitting of printed text, object addresses. A path is rewritten in place; a
    dict is left as it is. Returns the normalised notebook in nbformat 4.5.
    """
    if not isinstance(notebook, dict):
        path = Path(notebook)
        clean = normalise(json.loads(path.read_text(encoding="utf-8")))
        _write(path, clean)
        return clean
    from nbformat.v4.rwbase import rejoin_lines, split_lines

    clean = rejoin_lines(_node(notebook))
    cells = [_clean_cell(cell) for cell in clean["cells"] if "injected-parameters" not in _tags(cell)]
    clean = {
        "cells": cells,
        "metadata": _clean_metadata(clean.get("metadata", {})),
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    _number(cells)
    _refuse(cells)
    ids = _shown_widgets(clean)
    text = json.dumps(clean, ensure_ascii=False)
    text = re.sub(r"[0-9a-f]{32}", lambda found: ids.get(found[0], found[0]), text)
    charts_seen: dict[str, str] = {}
    text = re.sub(
        r"altair-viz-([0-9a-f]{32})",
        lambda found: "altair-viz-" + charts_seen.setdefault(found[1], f"{len(charts_seen):032x}"),
        text,
    )
    text = re.sub(r"\bat 0x[0-9a-f]{6,}", "at 0x0", text)
    return split_lines(_node(json.loads(text)))


def as_text(notebook: dict) -> str:
    """The bytes of a committed notebook: sorted keys, one space of indent, a newline at the end."""
    from nbformat.v4.rwbase import split_lines

    return json.dumps(split_lines(_node(notebook)), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _node(notebook: dict) -> Any:
    """An independent copy in nbformat's own type, whatever mapping comes in."""
    import nbformat

    return nbformat.from_dict(json.loads(json.dumps(notebook)))


def _tags(cell: dict) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _clean_cell(cell: dict) -> dict:
    for key in ("papermill", "execution", "ExecuteTime"):
        cell["metadata"].pop(key, None)
    if not _tags(cell):
        cell["metadata"].pop("tags", None)
    if cell["cell_type"] == "code":
        cell["outputs"] = _join_streams(cell["outputs"])
    return cell


def _join_streams(outputs: list[dict]) -> list[dict]:
    """Printed text arrives in pieces that depend on the machine's load: join what follows one another."""
    joined: list[dict] = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output["output_type"] == "stream" and last.get("name") == output["name"]:
            last["text"] += output["text"]
        else:
            joined.append(output)
    return joined


def _clean_metadata(metadata: dict) -> dict:
    for key in ("papermill", "signature"):
        metadata.pop(key, None)
    metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata["language_info"] = {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"}
    return metadata


def _number(cells: list[dict]) -> None:
    """Execution counts 1..n in order, and an id for a cell that has none."""
    taken = {cell["id"] for cell in cells if "id" in cell}
    count = 0
    for position, cell in enumerate(cells):
        if "id" not in cell:
            cell["id"] = next(
                name for n in range(len(cells) + 1) if (name := f"cell-{position + n:03d}") not in taken
            )
            taken.add(cell["id"])
        if cell["cell_type"] != "code":
            continue
        if cell.get("execution_count") is not None:
            count += 1
            cell["execution_count"] = count
        for output in cell["outputs"]:
            if "execution_count" in output:
                output["execution_count"] = cell["execution_count"]


def _refuse(cells: list[dict]) -> None:
    homes = {str(Path.cwd()), str(Path.home()), tempfile.gettempdir(), str(Path(__file__).parents[1])} - {"/"}
    for position, cell in enumerate(cells, start=1):
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":
                raise NotebookError(f"Cell {position} raised {output['ename']}: mend it and execute again.")
            if output.get("name") == "stderr":
                first = output["text"].strip().splitlines() or ["(blank)"]
                raise NotebookError(f"Cell {position} wrote to stderr, mend its cause: {first[0]}")
            text = json.dumps(output, ensure_ascii=False)
            for home in homes:
                if re.search(rf"{re.escape(home)}[/\\]", text):
                    raise NotebookError(f"Cell {position} shows a path of this machine ({home}): print less.")


def _shown_widgets(notebook: dict) -> dict[str, str]:
    """Keep the widgets that a cell shows, what they hold and the links between them.

    Returns old id -> new id: 1, 2, ... in the order of display.
    """
    widgets = notebook["metadata"].pop("widgets", {}).get(WIDGET_STATE)
    if not widgets:
        return {}
    state = widgets["state"]
    for entry in state.values():
        unset = entry["model_name"].endswith(("LayoutModel", "StyleModel"))
        for key in [k for k, v in entry["state"].items() if v is None]:
            # In these the front end's default is null too.
            if unset or key in ("tooltip", "tabbable", "_view_count"):
                del entry["state"][key]
    order: list[str] = []

    def visit(model: str) -> None:
        if model not in state or model in order:
            return
        order.append(model)
        held = json.dumps(state[model]["state"], sort_keys=True)
        for child in re.findall(r"IPY_MODEL_([0-9a-f]{32})", held):
            visit(child)

    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            view = output.get("data", {}).get(WIDGET_VIEW)
            if view:
                visit(view["model_id"])
    # A link is shown by nobody: it stays if it joins two widgets that stay.
    links = {}
    for model, entry in state.items():
        if entry["model_name"].endswith("LinkModel"):
            ends = [entry["state"][end] for end in ("source", "target")]
            ids = [end[0].removeprefix("IPY_MODEL_") for end in ends]
            if all(i in order for i in ids):
                links[model] = [(order.index(i), end[1]) for i, end in zip(ids, ends, strict=True)]
    for model in sorted(links, key=links.__getitem__):
        visit(model)
    if order:
        widgets["state"] = {model: state[model] for model in order}
        notebook["metadata"]["widgets"] = {WIDGET_STATE: widgets}
    return {old: f"{number:032x}" for number, old in enumerate(order, start=1)}


# --- executing chapters ---


def chapters(root: Path | str = ".") -> list[Path]:
    """The book's notebooks in the order of `_toc.yml` in `root`."""
    import yaml

    root = Path(root)
    toc = root / "_toc.yml"
    if not toc.is_file():
        raise FileNotFoundError(f"{root} has no _toc.yml: pass the folder of the book.")

    def files(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield value
                else:
                    yield from files(value)
        elif isinstance(node, list):
            for item in node:
                yield from files(item)

    names = [name.removesuffix(".ipynb") + ".ipynb" for name in files(yaml.safe_load(toc.read_text("utf-8")))]
    return [root / name for name in names if (root / name).is_file()]


def execute(
    paths: Iterable[Path | str] | Path | str,
    scale: str = RECORDED,
    check: bool = False,
    progress: bool = True,
    output: Path | str | None = None,
) -> list[Path]:
    """Execute notebooks from top to bottom, each in its own kernel and folder; return the files written.

    scale="recorded" replays the records and replaces each notebook by its normalised execution, in one
    step: a failure or a kill leaves the committed file as it was. Any other scale is passed to the
    notebook as its parameter `scale`, and the result goes to `output`, by default
    `_build/executed/<scale>/` in the book. check=True changes nothing and raises ExecutionError if a
    fresh execution differs from the committed bytes. A failing cell stops everything with ExecutionError:
    the cell's number and its traceback.
    """
    paths = [Path(paths)] if isinstance(paths, Path | str) else [Path(p) for p in paths]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"There is no notebook {path}.")
    from tqdm.auto import tqdm

    written: list[Path] = []
    differing: list[str] = []
    for path in tqdm(paths, desc="chapters", unit="chapter", disable=not progress):
        executed = _run(path, scale, progress)
        if check:
            difference = _difference(path, as_text(normalise(executed)))
            if difference:
                differing.append(difference)
            continue
        if scale == RECORDED:
            executed = normalise(executed)
        if scale == RECORDED and output is None:
            target = path
        else:
            target = (Path(output) if output else _book(path) / "_build" / "executed" / scale) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, executed)
        written.append(target)
    if differing:
        raise ExecutionError("\n\n".join(differing))
    return written


def _book(path: Path) -> Path:
    """The folder that holds `_toc.yml`, or else the notebook's own."""
    folder = path.resolve().parent
    return next((p for p in (folder, *folder.parents) if (p / "_toc.yml").is_file()), folder)


def _run(path: Path, scale: str, progress: bool) -> dict:
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    tags = [_tags(cell) for cell in nbformat.read(path, as_version=4).cells]
    parameters = {} if scale == RECORDED else {"scale": scale}
    place = next((n for n, names in enumerate(tags) if "parameters" in names), None)
    if parameters and place is None:
        raise ExecutionError(f"{path} has no cell tagged 'parameters': it cannot run at the scale {scale!r}.")
    try:
        return papermill.execute_notebook(
            str(path),
            None,  # papermill would write half-executed notebooks as it goes
            parameters=parameters,
            kernel_name="python3",
            language="python",
            cwd=str(path.resolve().parent),
            progress_bar={"desc": path.stem, "leave": False} if progress else False,
        )
    except DeadKernelError:
        raise ExecutionError(f"{path}: the kernel died; most likely the memory did not suffice.") from None
    except papermill.PapermillExecutionError as error:
        number = error.cell_index + 1
        if parameters and error.cell_index > place:
            number -= 1  # papermill's own cell with the parameters
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        raise ExecutionError(
            f"{path}: cell {number} raised {error.ename}: {error.evalue}\n\n{trace}"
        ) from None


def _write(path: Path, notebook: dict) -> None:
    """Replace `path` in one step."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(as_text(notebook), encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _difference(path: Path, fresh: str) -> str:
    committed = path.read_text(encoding="utf-8")
    if fresh == committed:
        return ""
    lines = difflib.unified_diff(
        committed.splitlines(), fresh.splitlines(), "committed", "executed", n=2, lineterm=""
    )
    shown = [line if len(line) <= 200 else f"{line[:200]} ..." for line in lines]
    more = [f"... {len(shown) - 60} more lines"] if len(shown) > 60 else []
    return "\n".join([f"{path}: a fresh execution differs from the committed notebook.", *shown[:60], *more])
