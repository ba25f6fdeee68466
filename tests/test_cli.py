"""The command line: what it prints, and one clear sentence and a non-zero status for everything that goes
wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bnlib import __version__
from bnlib.__main__ import main
from bnlib.experiments import CLAIMS, EXPERIMENTS


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path / "records"))
    return tmp_path


def _fails(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("bnlib: ")
    return error


def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("mechanics", "training", "replication", "mnist", "robustness"))
    assert "nothing yet" in out


def test_run_verify_claims(capsys):
    assert main(["run", "mechanics", "--scale", "smoke", "--workers", "1"]) == 0
    assert "5 runs of 5 seeds recorded at smoke scale" in capsys.readouterr().out
    assert main(["verify"]) == 0
    assert "mechanics/smoke: good (5 runs, 5 seeds)" in capsys.readouterr().out
    assert main(["claims", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    expected = {
        "id",
        "statement",
        "source",
        "chapter",
        "scale",
        "n_seeds",
        "value",
        "low",
        "high",
        "criterion",
        "verdict",
    }
    assert expected <= set(rows["fold"])
    assert rows["fold"]["verdict"] == "holds" and rows["fold"]["n_seeds"] == 5
    assert rows["faster"]["verdict"] == "not recorded"
    assert main(["claims"]) == 0
    assert "HOLDS" in capsys.readouterr().out


def test_more_seeds_are_added_and_fewer_are_refused(capsys):
    assert main(["run", "mechanics", "--scale", "smoke", "--seeds", "1", "--workers", "1"]) == 0
    assert main(["run", "mechanics", "--scale", "smoke", "--seeds", "2", "--resume", "--workers", "1"]) == 0
    assert "2 runs of 2 seeds" in capsys.readouterr().out
    assert "recorded at smoke scale with 2 seeds; 1 would replace them" in _fails(
        capsys, "run", "mechanics", "--scale", "smoke", "--seeds", "1"
    )


def test_verify_fails_on_damage(capsys, folder):
    assert main(["run", "mechanics", "--scale", "smoke", "--seeds", "1", "--workers", "1"]) == 0
    path = folder / "records/mechanics/smoke.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    capsys.readouterr()
    assert main(["verify"]) == 1
    assert "damaged" in capsys.readouterr().out
    assert "damaged" in _fails(capsys, "claims")


def test_verify_says_when_the_code_has_changed(capsys, monkeypatch):
    from bnlib import records

    assert main(["run", "mechanics", "--scale", "smoke", "--seeds", "1", "--workers", "1"]) == 0
    monkeypatch.setattr(records, "source_digest", lambda: "another")
    capsys.readouterr()
    assert main(["verify"]) == 0
    assert "good (1 runs, 1 seeds, the code has changed since)" in capsys.readouterr().out


@pytest.mark.parametrize("chapter", sorted(path.stem for path in Path("chapters").glob("*.ipynb")))
def test_a_chapter_trains_from_scratch_at_smoke(capsys, folder, chapter):
    """The main job, end to end: papermill, recording, verdicts, figures, all without data on disk."""
    assert main(["execute", chapter, "--scale", "smoke", "--output", str(folder / "executed")]) == 0
    assert capsys.readouterr().out.count("wrote ") == 1
    assert main(["verify"]) == 0
    recorded = capsys.readouterr().out
    # Its own experiments, and those of other chapters that its claims are measured on; it may quote others.
    wanted = {name for name, experiment in EXPERIMENTS.items() if experiment.chapter == chapter}
    wanted |= {claim.experiment for claim in CLAIMS.values() if claim.chapter == chapter}
    assert wanted <= {name for name in EXPERIMENTS if f"{name}/smoke: good" in recorded}


def test_a_damaged_record_can_be_recorded_again(capsys, folder):
    for extra in ([], ["--resume"]):
        path = folder / "records/mechanics/smoke.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{ damaged")
        assert main(["run", "mechanics", "--scale", "smoke", "--seeds", "1", "--workers", "1", *extra]) == 0
        assert main(["verify"]) == 0


def test_wrong_names_are_explained(capsys):
    assert "did you mean 'training'" in _fails(capsys, "run", "trainin")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "training", "--scale", "huge"],
        ["run", "training", "--seeds", "0"],
        ["run", "training", "--seeds", "many"],
        ["run"],
        ["fly"],
        [],
    ],
)
def test_wrong_calls_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: bnlib" in capsys.readouterr().err


def test_missing_data_is_one_sentence_before_any_work(capsys, folder, monkeypatch):
    from bnlib import images

    def no_network(name, root, *rest):
        raise images.DataError(
            f"CIFAR-10 is not in {root} and could not be downloaded (no network): put it there."
        )

    monkeypatch.setenv("BNLIB_DATA", str(folder / "empty"))
    monkeypatch.setattr(images, "_download", no_network)
    error = _fails(capsys, "run", "training", "--scale", "laptop", "--seeds", "1")
    assert "CIFAR-10 is not in" in error
    assert not list((folder / "records").glob("training/*.json"))


def test_a_gpu_that_is_not_there(capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "PyTorch sees no GPU" in _fails(capsys, "run", "training", "--device", "cuda")


def test_an_unknown_chapter_is_explained(capsys):
    assert "there is no chapter '99-nothing': choose from 01-mechanics" in _fails(
        capsys, "execute", "99-nothing"
    )


def test_execute_outside_a_book_is_explained(capsys, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert "has no _toc.yml" in _fails(capsys, "execute")


def test_a_failing_chapter_shows_its_traceback_and_stays(capsys, folder, monkeypatch):
    import nbformat.v4 as v4

    (folder / "_toc.yml").write_text("format: jb-book\nroot: broken\n")
    broken = folder / "broken.ipynb"
    broken.write_text(json.dumps(v4.new_notebook(cells=[v4.new_code_cell("1 / 0")])))
    before = broken.read_bytes()
    monkeypatch.chdir(folder)
    assert main(["execute"]) == 1
    error = capsys.readouterr().err
    assert "cell 1 raised ZeroDivisionError" in error and "1 / 0" in error
    assert broken.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (["run", "mechanics"], "torch", "[compute]"),
        (["run", "mechanics", "--executor", "dask"], "distributed", "[cluster]"),
        (["execute"], "papermill", "[chapters]"),
        (["claims"], "pandas", ""),
    ],
)
def test_what_is_missing_is_named(capsys, monkeypatch, arguments, module, extra):
    from bnlib import claims, notebook, recording

    def without(*arguments, **options):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    for place, name in ((recording, "record"), (notebook, "execute"), (claims, "scoreboard")):
        monkeypatch.setattr(place, name, without)
    assert f'this needs {module}: pip install "bnlib{extra}"' in _fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scheduler", "tcp://127.0.0.1:8786"], "add --executor dask, or leave out --scheduler"),
        (["--executor", "dask"], "where is the dask scheduler? Name it: --scheduler tcp://HOST:8786"),
        (["--executor", "in-turn", "--workers", "2"], "leave out --workers, or take --executor processes"),
        (["--how", "haste=great"], "--how haste=great: There is no 'haste' to choose"),
        (["--how", "threads=none"], "threads is a whole number, at least 1, not 'none'"),
    ],
)
def test_what_does_not_go_together_is_said(capsys, arguments, sentence):
    assert sentence in _fails(capsys, "run", "mechanics", "--device", "cpu", *arguments)


def test_version_and_a_closed_pipe():
    version = subprocess.run(
        [sys.executable, "-m", "bnlib", "--version"], capture_output=True, text=True, check=True
    )
    assert version.stdout.strip() == f"bnlib {__version__}"
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run(
        [sys.executable, "-m", "bnlib", "list"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert "Traceback" not in closed.stderr


def test_reading_records_leaves_the_process_in_peace():
    """pyarrow's thread pools, once used, can abort the interpreter at exit about one time in six."""
    code = "import sys; from bnlib.__main__ import main; sys.exit(main(['verify']))"
    environment = {name: value for name, value in os.environ.items() if name != "BNLIB_RECORDS"}
    for _ in range(8):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
