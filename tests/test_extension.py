"""The Sphinx extension's plain functions: no browser, no build."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sphinx.errors import ConfigError, ExtensionError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "_ext"))
from offline_book import (  # noqa: E402
    assets,
    charts,
    icons,
    launch,
    listings,
    modules,
    pages,
    policy,
    provenance,
    repository,
    scoreboard,
)

URL = "https://github.com/owner/book"
BASE = "https://owner.github.io/book/"


# --- the repository ------------------------------------------------------------------------------------


def test_without_a_workflow_the_configured_addresses_stand():
    assert repository.overridden(URL, BASE, {}) == (URL, BASE)
    assert repository.overridden(URL, BASE, {"GITHUB_REPOSITORY": "owner/book"}) == (URL, BASE)


def test_a_fork_overrides_both_addresses():
    environment = {"GITHUB_REPOSITORY": "Reader/copy"}
    expected = ("https://github.com/Reader/copy", "https://reader.github.io/copy/")
    assert repository.overridden(URL, BASE, environment) == expected
    environment["GITHUB_SERVER_URL"] = "https://git.example.org"
    assert repository.overridden(URL, BASE, environment)[0] == "https://git.example.org/Reader/copy"


def test_a_malformed_override_is_refused():
    with pytest.raises(ConfigError, match="owner/name"):
        repository.overridden(URL, BASE, {"GITHUB_REPOSITORY": "copy"})


# --- Colab's cell --------------------------------------------------------------------------------------


def notebook(*sources: str, tags: tuple = ("colab",), as_list: bool = True) -> str:
    cells = [
        {
            "cell_type": "code",
            "source": s.splitlines(keepends=True) if as_list else s,
            "metadata": {"tags": list(tags)},
        }
        for s in sources
    ]
    return json.dumps({"cells": [{"cell_type": "markdown", "source": "# Ü", "metadata": {}}, *cells]})


@pytest.mark.parametrize("as_list", [True, False])
def test_stamping_writes_the_address_once_and_again(as_list):
    plain = notebook('# Colab\nrepository = ""  # filled in\nrun()', as_list=as_list)
    once = launch.stamped(plain, URL)
    cell = json.loads(once)["cells"][1]
    assert "".join(cell["source"]) == f'# Colab\nrepository = "{URL}"  # filled in\nrun()'
    assert isinstance(cell["source"], list) == as_list
    assert launch.stamped(once, URL) == once
    assert launch.stamped(once, "https://x.org/a/b") == launch.stamped(plain, "https://x.org/a/b")
    assert "# Ü" in once


def test_stamping_refuses_a_notebook_that_colab_could_not_run():
    with pytest.raises(ValueError, match="no cell is tagged"):
        launch.stamped(notebook('repository = ""', tags=()), URL)
    with pytest.raises(ValueError, match="once"):
        launch.stamped(notebook("print(1)"), URL)


def test_launch_addresses():
    here = repository.Repository(URL, "main")
    assert launch.colab_url(here, "chapters/01").endswith(
        "/github/owner/book/blob/gh-pages/_sources/chapters/01.ipynb"
    )
    assert launch.binder_url("https://hub.example/", here, "chapters") == (
        "https://hub.example/v2/gh/owner/book/main?urlpath=lab/tree/chapters"
    )


# --- widgets' modules and Altair's output ---------------------------------------------------------------


def test_imports_are_read_out_of_the_widgets_code():
    source = """
        import embed from "https://cdn.example/vega-embed@7?deps=vega@6";
        import * as d3 from 'https://cdn.example/d3';
        const later = () => import("https://cdn.example/vega-embed@7?deps=vega@6");
        const local = await import("./local.js"); // https://cdn.example/comment
    """
    assert modules.module_imports(source) == [
        "https://cdn.example/vega-embed@7?deps=vega@6",
        "https://cdn.example/d3",
    ]


def test_the_explorers_one_import_is_served_by_the_book():
    import bnlib.widgets

    source = Path(bnlib.widgets.__file__).with_name("explorer.js").read_text(encoding="utf-8")
    assert len(modules.module_imports(source)) == 1
    code = modules.classic(source)
    assert modules.module_imports(code) == []
    assert code.count("window.vegaEmbed") == 1 and code.endswith("return exported;")


@pytest.mark.parametrize("ending", ["export default { render };", "export{r as default};\n"])
def test_a_widgets_module_becomes_a_file_and_leaves_its_name(tmp_path, ending):
    source = f"const r = 1, render = 2;\n{ending}"
    state = {name: {"state": {"_esm": source}} for name in "ab"} | {"c": {"state": {"value": 1}}}
    (script,) = modules.detach(state, tmp_path)
    name = modules.module_name(source)
    assert script == f"widgets/{name}.js"
    assert state["a"]["state"]["_esm"] == state["b"]["state"]["_esm"] == name
    text = (tmp_path / script).read_text(encoding="utf-8")
    assert f'modules.set("{name}", ' in text and "export " not in text and "const exported = " in text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('import d3 from "https://cdn.example/d3"\nexport default {};', r"https://cdn\.example/d3"),
        ("export const render = 1;", "export one default"),
        ("const render = 1;", "export one default"),
        ('import x from "./x.js";\nexport default x;', "import nothing"),
    ],
)
def test_a_module_that_the_book_cannot_serve_stops_the_build(source, said):
    with pytest.raises(ExtensionError, match=said):
        modules.classic(source)


def test_a_chart_becomes_its_specification():
    import altair as alt
    import pandas as pd

    table = pd.DataFrame({"x": [1], "of": ["</b>"]})
    chart = alt.Chart(table, description="One point.").mark_point().encode(x="x")
    output = chart._repr_mimebundle_()["text/html"]
    body = charts.as_data(f"<p>before</p>{output}<p>between</p>{output}<p>after</p>")
    parts = re.findall(rf'<script type="{re.escape(charts.CHART_TYPE)}">(.*?)</script>', body)
    assert [json.loads(part) for part in parts] == [chart.to_dict()] * 2
    assert body.startswith("<p>before</p>") and "<p>between</p>" in body and "altair-viz" not in body
    assert charts.as_data("<p>No chart.</p>") == "<p>No chart.</p>"


def test_an_unknown_form_of_altairs_output_stops_the_build():
    with pytest.raises(ExtensionError, match="unknown form"):
        charts.as_data('<div id="altair-viz-1"></div><script type="text/javascript">draw()</script>')
    with pytest.raises(ExtensionError, match="unknown form"):
        charts.as_data('<div id="altair-viz-1"></div><script type="module">draw()</script>')


def test_an_inline_script_is_kept_once():
    def script(body: str | None) -> SimpleNamespace:
        return SimpleNamespace(attributes={"body": body} if body else {})

    scripts = [
        script("const a = 1"),
        script(None),
        script("const b = 2"),
        script("const a = 1"),
        script(None),
    ]
    kept = assets.without_repeated(scripts)
    assert [s.attributes.get("body") for s in kept] == ["const a = 1", None, "const b = 2", None]


# --- what is done to a page last ------------------------------------------------------------------------


def test_icons_are_drawn_in_the_page():
    page = '<i class="fas fa-adjust fa-lg theme" data-mode="dark"  title="Dark"></i><em class="fair">x</em>'
    drawn = icons.drawn(page, pages.theme_file(pages.FONT_AWESOME_SOURCE))
    assert drawn.startswith('<svg class="svg-inline--fa fa-adjust fa-lg theme" viewBox="0 0 512 512"')
    assert 'data-mode="dark"' in drawn and "<title>Dark</title><path" in drawn
    assert drawn.endswith('</svg><em class="fair">x</em>')
    with pytest.raises(ExtensionError, match="no-such-icon"):
        icons.drawn('<i class="fas fa-no-such-icon"></i>', pages.theme_file(pages.FONT_AWESOME_SOURCE))


def test_a_solid_icon_is_not_the_outlined_one_of_its_name():
    found = icons.drawings(pages.theme_file(pages.FONT_AWESOME_SOURCE))
    assert found["solid", "lightbulb"] != found["regular", "lightbulb"]
    assert ("brands", "github") in found and ("solid", "github") not in found


HEAD = '<html><head><meta charset="utf-8" /></head><body>'


def test_the_policy_names_the_inline_scripts_and_nothing_else():
    others = '<script src="a.js"></script><script type="application/json">1</script>'
    page = f"{HEAD}<script>let a = 1;</script>{others}"
    (known,) = policy.inline_hashes(page)
    assert known == "'sha256-xY6QKfH9PRsQnLz56nj6MBwiK5oHg+im1Jkpdp1x/Ck='"
    protected = policy.protected(page, trains=False)
    assert protected.index("Content-Security-Policy") < protected.index("<script")
    assert f"script-src 'self' file: {known};" in protected and "default-src 'none'" in protected
    assert "wasm" not in protected and "unsafe-eval" not in protected and "worker-src 'none'" in protected
    trains = policy.protected(page, trains=True)
    assert "'wasm-unsafe-eval'" in trains and "worker-src blob:" in trains


def test_inline_handlers_become_listeners_or_stop_the_build():
    assert 'data-book-action="print"' in policy.protected(f'{HEAD}<a onclick="window.print()">', False)
    with pytest.raises(ExtensionError, match="onclick"):
        policy.protected(f'{HEAD}<a class="b" onclick="other()">', False)
    with pytest.raises(ExtensionError, match="charset"):
        policy.protected("<html>", False)


def test_a_pages_scripts_wait_and_its_state_comes_last():
    state = f'<script type="{pages.lab.STATE_TYPE}">{{}}</script>'
    page = f'<head>{state}<script src="a.js"></script><script async src="b.js"></script></head><body>x</body>'
    assert pages.deferred(pages.state_last(page)) == (
        '<head><script defer="defer" src="a.js"></script><script async src="b.js"></script></head>'
        f"<body>x{state}\n</body>"
    )


# --- listings ------------------------------------------------------------------------------------------

MODULE = '''"""A module."""

CONSTANT = {
    "a": 1,
}


@decorated
def function(x: int) -> int:
    """Doc.

    More.
    """

    # why
    return x


class Thing:
    """Doc."""

    def method(self):
        """Doc."""
        return 1


def only_a_docstring():
    """Nothing else."""
'''


@pytest.fixture
def package(tmp_path) -> Path:
    (tmp_path / "pkg" / "sub").mkdir(parents=True)
    (tmp_path / "pkg" / "__init__.py").write_text("def top():\n    return 0\n")
    (tmp_path / "pkg" / "module.py").write_text(MODULE)
    (tmp_path / "pkg" / "sub" / "__init__.py").write_text("import torch_is_not_here\n\nDEEP: int = 1\n")
    return tmp_path


def test_a_function_is_listed_with_its_decorator_and_without_its_docstring(package):
    source = listings.find_source(package, "pkg.module.function")
    assert source.text == "@decorated\ndef function(x: int) -> int:\n    # why\n    return x"
    assert (str(source.path), source.first, source.last) == ("pkg/module.py", 8, 16)


def test_a_listing_can_keep_the_docstring(package):
    source = listings.find_source(package, "pkg.module.function", docstring=True)
    assert source.text == "\n".join(MODULE.splitlines()[7:16])


def test_methods_constants_and_package_members_are_found(package):
    assert listings.find_source(package, "pkg.module.Thing.method").text == "def method(self):\n    return 1"
    assert listings.find_source(package, "pkg.module.CONSTANT").text == 'CONSTANT = {\n    "a": 1,\n}'
    assert listings.find_source(package, "pkg.top").text == "def top():\n    return 0"
    assert listings.find_source(package, "pkg.sub.DEEP").text == "DEEP: int = 1"
    assert '"""Nothing else."""' in listings.find_source(package, "pkg.module.only_a_docstring").text


@pytest.mark.parametrize("name", ["pkg.module.missing", "pkg.module.Thing.missing", "elsewhere.f", "pkg"])
def test_an_unknown_name_is_refused(package, name):
    with pytest.raises(LookupError):
        listings.find_source(package, name)


def test_the_real_package_is_listed():
    source = listings.find_source(ROOT, "bnlib.specs.canonical")
    assert source.text.startswith("def canonical(")
    lines = (ROOT / source.path).read_text(encoding="utf-8").splitlines()
    assert lines[source.first - 1].startswith("def canonical(")


# --- provenance and scoreboard -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (12600, "3.5 h")]
)
def test_durations(seconds, text):
    assert provenance.duration(seconds) == text


def _sitting(**changes) -> dict:
    return {
        "started": "2026-03-05T10:11:12+00:00",
        "seconds": 190.0,
        "device": {"type": "cpu", "name": "Some processor", "cores": 4},
        "versions": {"python": "3.12.1", "torch": "2.15.0"},
        "source_sha256": "abc",
        "workers": 4,
        "command": "bnlib run training --scale laptop",
    } | changes


def test_a_page_is_read_again_when_a_record_comes_and_only_then(tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    record = tmp_path / "training" / "laptop.json"
    record.parent.mkdir()
    record.write_text("{}")
    noted = []
    metadata = {"chapter": {}, "lab": {}}
    env = SimpleNamespace(docname="chapter", metadata=metadata, note_dependency=noted.append)
    provenance.note_records(env, ["training"])
    provenance.note_records(env, ["noise"])
    assert noted[-1] == str(record)
    assert provenance._with_new_records(None, env) == []
    record.with_name("paper.json").write_text("{}")
    assert provenance._with_new_records(None, env) == ["chapter"]


def _provenance(*sittings: dict) -> dict:
    return {
        "scale": "laptop",
        "runs": [
            {"seed": 0, "sitting": 0},
            {"seed": 1, "sitting": 0},
            {"seed": 1, "sitting": len(sittings) - 1},
        ],
        "sittings": list(sittings),
        "run_seconds": 723.4,
        "table_sha256": "0123456789abcdef",
    }


def test_the_footers_facts():
    assert provenance.facts(_provenance(_sitting())) == {
        "Scale": "laptop",
        "Runs": "3 (2 seeds)",
        "Device": "Some processor, 4 cores",
        "Versions": "python 3.12.1, torch 2.15.0",
        "Recorded": "5 March 2026; 12 min of runs, 4 at a time",
        "Record again": "bnlib run training --scale laptop",
        "Checksum": "0123456789ab",
    }


def test_the_footer_of_a_record_of_several_sittings():
    later = _sitting(
        started="2026-03-07T08:00:00.123+00:00",
        device={"type": "cuda", "name": "Some GPU"},
        source_sha256="def",
        workers=1,
        command="bnlib run training --scale laptop --seeds 7",
    )
    told = provenance.facts(_provenance(_sitting(), later))
    assert told["Sittings"] == "Recorded in 2 sittings of 2 and 1 runs, with changed code."
    assert told["Device"] == "Some processor, 4 cores; Some GPU"
    assert told["Versions"] == "python 3.12.1, torch 2.15.0"
    assert told["Recorded"] == "5 March 2026; 7 March 2026; 12 min of runs, 1 or 4 at a time"
    assert told["Record again"] == "bnlib run training --scale laptop --seeds 7"
    same = _provenance(_sitting(), _sitting(started="2026-03-05T12:00:00.000+00:00"))
    assert provenance.facts(same)["Sittings"] == "Recorded in 2 sittings of 2 and 1 runs, with the same code."
    assert provenance.facts(same)["Recorded"] == "5 March 2026; 12 min of runs, 4 at a time"


def test_the_pace_of_a_recording():
    made = {"run_seconds": 5400, "sittings": [_sitting(workers=1)]}
    assert provenance.run_time(made) == "1.5 h of runs, one after the other"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (14.2345, "14.2"),
        (-0.01234, "−0.0123"),
        (999.7, "1000"),
        (15321.0, "15321"),
        (1.5e-5, "1.5×10⁻⁵"),
        (2.5e7, "2.5×10⁷"),
        (float("inf"), "∞"),
        (float("nan"), "undefined"),
    ],
)
def test_numbers_as_people_write_them(value, text):
    assert scoreboard.number(value) == text


def test_what_stands_behind_a_verdict():
    row = {
        "criterion": "> 0",
        "value": 2.0,
        "low": 1.0,
        "high": 3.0,
        "digits": 3,
        "n_seeds": 5,
        "scale": "paper",
        "unit": "points",
    }
    assert scoreboard.measured(row) == "2 points"
    assert scoreboard.basis(row) == "criterion: > 0; range 1 to 3; 5 seeds; paper scale"
    close = row | {"criterion": "> 1", "value": 1.0016, "low": 1.0013, "high": 1.083, "unit": "", "digits": 4}
    assert (scoreboard.measured(close), scoreboard.basis(close).split("; ")[1]) == (
        "1.002",
        "range 1.001 to 1.083",
    )
    missing = row | {"value": None, "n_seeds": 0, "scale": None}
    assert scoreboard.measured(missing) == "–"
    assert scoreboard.basis(missing) == "criterion: > 0"


def test_every_claim_cites_a_source_that_is_in_the_bibliography():
    from bnlib.experiments import CLAIMS

    bibliography = (ROOT / "references.bib").read_text(encoding="utf-8")
    for claim in CLAIMS.values():
        assert f"{{{claim.source}," in bibliography, claim.id


def test_every_verdict_has_a_sign_and_a_colour():
    style = (assets.STATIC / "book.css").read_text(encoding="utf-8")
    for word in ("holds", "fails", "inconclusive", "not recorded"):
        node = scoreboard.verdict(word)
        assert node.astext() == f"{scoreboard.SIGNS[word]} {word}"
        assert f".verdict-{word.replace(' ', '-')}" in style


def test_an_unknown_listing_stops_the_build_and_says_where(tmp_path):
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    (tmp_path / "index.md").write_text("# Title\n\nText.\n\n```{listing} bnlib.norms.no_such_name\n```\n")
    folders = [str(tmp_path), None, str(tmp_path / "out"), str(tmp_path / "trees")]
    overrides = {"extensions": ["myst_parser", "offline_book.listings"]}
    with patch_docutils(), docutils_namespace():
        app = Sphinx(*folders, "html", confoverrides=overrides, status=None, warning=None)
        with pytest.raises(ExtensionError, match=r"index\.md:5: cannot list bnlib\.norms\.no_such_name"):
            app.build()
