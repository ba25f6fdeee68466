"""``{listing}``: the real source of a function or class, so that what a chapter shows cannot drift.

::

    ```{listing} bnlib.norms.batch_norm
    # in a live notebook: batch_norm??
    ```

The source is read from the module's file with ``ast``: nothing is imported, so building the book needs no
torch. The docstring is left out (the option ``:docstring:`` keeps it). The body of the fence is a hint for
readers of the live notebook, where the directive does not run; the book ignores it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from .repository import current

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Source:
    """A definition as it stands in its file; ``first`` and ``last`` are line numbers, from 1."""

    path: PurePosixPath
    first: int
    last: int
    text: str


def _find_module(root: Path, name: str) -> tuple[Path, list[str]]:
    """The file of the longest prefix of ``name`` that is a module, and the rest of the name."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        stem = root.joinpath(*parts[:cut])
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path, parts[cut:]
    raise LookupError(f"there is no module for {name}")


def _defined_names(node: Definition) -> list[str]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    return [node.name]


def _docstring(node: Definition) -> ast.stmt | None:
    if isinstance(node, ast.Assign | ast.AnnAssign) or ast.get_docstring(node) is None or len(node.body) < 2:
        return None
    return node.body[0]


def find_source(root: Path, name: str, docstring: bool = False) -> Source:
    """The definition of the dotted ``name`` under the folder ``root``. LookupError if there is none."""
    path, rest = _find_module(root, name)
    lines = path.read_text(encoding="utf-8").splitlines()
    scope: ast.AST = ast.parse("\n".join(lines), filename=str(path))
    for part in rest:
        candidates = [n for n in getattr(scope, "body", []) if isinstance(n, Definition)]
        scope = next((n for n in candidates if part in _defined_names(n)), None)
        if scope is None:
            raise LookupError(f"{path.relative_to(root)} does not define {'.'.join(rest)}")
    decorators = getattr(scope, "decorator_list", [])
    first = min([scope.lineno, *(d.lineno for d in decorators)])
    kept = list(range(first, scope.end_lineno + 1))
    if not docstring and (text := _docstring(scope)) is not None:
        kept = [n for n in kept if not text.lineno <= n <= text.end_lineno]
        # A blank line after the docstring would be left hanging under the signature.
        while not lines[kept[text.lineno - first] - 1].strip():
            del kept[text.lineno - first]
    shown = [lines[n - 1] for n in kept]
    indent = min(len(line) - len(line.lstrip()) for line in shown if line.strip())
    code = "\n".join(line[indent:] for line in shown)
    return Source(PurePosixPath(path.relative_to(root).as_posix()), first, scope.end_lineno, code)


class Listing(SphinxDirective):
    """The listing with its caption, which links to the lines in the repository."""

    required_arguments = 1
    option_spec: ClassVar = {"docstring": directives.flag}
    has_content = True

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        root = Path(self.env.srcdir)
        try:
            source = find_source(root, name, "docstring" in self.options)
        except LookupError as problem:
            raise ExtensionError(f"{self.get_location()}: cannot list {name}: {problem}.") from None
        self.env.note_dependency(str(root / source.path))
        code = nodes.literal_block(source.text, source.text, language="python")
        address = current(self.config).source(source.path, source.first, source.last)
        link = nodes.reference(refuri=address, internal=False)
        link += nodes.Text(f"{source.path}, lines {source.first}–{source.last}")
        caption = nodes.paragraph(classes=["listing-caption"])
        caption += [nodes.literal(text=name), nodes.Text(" · "), link]
        return [nodes.container("", caption, code, classes=["listing"])]


def setup(app: Sphinx) -> None:
    """Add the directive."""
    app.add_directive("listing", Listing)
