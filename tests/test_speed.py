"""The ways of computing a step give the same training; the choice among them is measured, and remembered."""

from __future__ import annotations

import copy
import json
import math
import os
import runpy
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from bnlib import data, models, speed, training, updates
from bnlib.specs import Run
from bnlib.updates import PLAIN, Alone, GraphWarning, How, Replayed

LOSS = training.LOSSES["cross_entropy"]
SETTINGS = {
    "dataset": "digits",
    "model": {"name": "digit_cnn", "width": 4},
    "norm": "batch",
    "where": "everywhere",
    "init": "glorot_uniform",
    "lr": 0.1,
    "steps": 12,
    "batch_size": 16,
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bnlib" / "speed.json"


def _run(**changes) -> Run:
    return Run("arm", 0, {**SETTINGS, "dataset": "large digits", **changes})


@pytest.fixture
def large(monkeypatch):
    """The digits under a name that is not known to be small."""
    load = data.load
    monkeypatch.setattr(data, "load", lambda name, **named: load(name.split()[-1], **named))
    monkeypatch.setattr(speed, "WORTH", {"cpu": 1.0, "cuda": 1.0})


# -- How -------------------------------------------------------------------------------------------------


def test_the_plain_way_is_the_default():
    assert speed.parse("") == speed.parse("plain") == How() == PLAIN
    assert How(**json.loads(json.dumps(asdict(PLAIN)))) == PLAIN


def test_a_way_in_words():
    found = speed.parse("layout=contiguous, threads=2,precision=bfloat16,together=3,graph=true,batched=true")
    assert found == How("contiguous", 2, "bfloat16", 3, True, True)
    assert speed.parse("graph=false,threads=3") == How(threads=3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("fast", "There is no 'fast' to choose: write plain or some of layout, threads"),
        ("layout=rows", "layout is one of channels_last, contiguous, not 'rows'."),
        ("threads=0", "threads is a whole number, at least 1, not 0."),
        ("threads=two", "threads is a whole number, at least 1, not 'two'."),
        ("together=-1", "together is a whole number, at least 1, not '-1'."),
        ("precision=", "precision is one of float32, tf32, bfloat16, not ''."),
        ("graph=1", "graph is one of True, False, not '1'."),
        ("plain,threads=2", "There is no 'plain' to choose"),
    ],
)
def test_other_words_are_refused_in_one_sentence(text, problem):
    with pytest.raises(ValueError, match=problem[:40]) as caught:
        speed.parse(text)
    assert str(caught.value).startswith(problem)


def test_a_cpu_has_no_graphs_and_no_tf32():
    assert speed.usable(How(precision="bfloat16"), "cpu") == How(precision="bfloat16")
    for how, word in ((How(graph=True), "CUDA graph"), (How(precision="tf32"), "TF32")):
        assert speed.usable(how, "cuda:0") == how
        with pytest.raises(ValueError, match=word):
            speed.usable(how, "cpu")


# -- the same training -----------------------------------------------------------------------------------


def test_a_contiguous_layout_gives_the_same_rows():
    settings = {**SETTINGS, "dtype": "float64", "eval_every": 5}
    one, other = training.run(settings, seed=1), training.run(settings, seed=1, how=How(layout="contiguous"))
    assert [row[:3] for row in one] == [row[:3] for row in other]
    assert [row[3] for row in one] == pytest.approx([row[3] for row in other], rel=1e-9)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_what_bfloat16_changes_is_bounded(norm):
    """The gradient of a quarter-width VGG-A at the start and after 20 steps, and the losses on the way."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (64,), generator=generator)
    classes = torch.randn(10, 3, 32, 32, generator=generator)
    x = 0.5 * classes[y] + torch.randn(64, 3, 32, 32, generator=generator)
    images = data.Dataset("made up", x.contiguous(memory_format=torch.channels_last), y, x, y)
    start = models.initialise(models.vgg(width=0.25, norm=norm), seed=0).train()
    start = start.to(memory_format=torch.channels_last)
    rough = How(precision="bfloat16")

    def gradient(model: torch.nn.Module, how: How) -> torch.Tensor:
        model = copy.deepcopy(model)
        value = updates.loss_in(how.precision, model, *updates.batch(images, torch.arange(32)), LOSS)
        assert value.dtype == torch.float32
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, list(model.parameters()))])

    def trained(how: How) -> tuple[torch.nn.Module, torch.Tensor]:
        model = copy.deepcopy(start)
        update = Alone(model, images, LOSS, torch.optim.SGD(model.parameters(), 0.02), how)
        losses = [update(torch.arange(32)[None] + 32 * (step % 2)) for step in range(20)]
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        return model, torch.cat(losses)

    (end, plain), (_, other) = trained(PLAIN), trained(rough)
    for model in (start, end):
        exact = gradient(model, PLAIN)
        error = ((gradient(model, rough) - exact).norm() / exact.norm()).item()
        assert 1e-3 < error < updates.BFLOAT16_GRADIENT[norm]
    assert (plain - other).abs().mean() < updates.BFLOAT16_LOSS * plain[0]


@pytest.mark.parametrize("norm", list(models.NORMS))
def test_bfloat16_is_for_every_norm(norm):
    settings = {**SETTINGS, "norm": norm, "steps": 2}
    rows = training.run(settings, seed=0, how=How(precision="bfloat16"))
    plain = training.run(settings, seed=0)
    assert rows[0][3] == pytest.approx(plain[0][3], rel=0.05)


def test_a_captured_step_is_replayed_between_probes(monkeypatch):
    """A CPU cannot capture: in the graph's place stands one that computes the step when it is replayed."""
    replays = []

    class Recorded:
        def __init__(self, replayed: Replayed) -> None:
            self.replayed, self.value = replayed, torch.zeros(1)

        def replay(self) -> None:
            replays.append(1)
            self.value.copy_(self.replayed.step(self.replayed.indices))

    def captured(self: Replayed) -> tuple[Recorded, torch.Tensor]:
        graph = Recorded(self)
        return graph, graph.value

    monkeypatch.setattr(Replayed, "aside", lambda self: self.step(self.indices))
    monkeypatch.setattr(Replayed, "captured", captured)
    settings = {**SETTINGS, "eval_every": 4, "probes": {"turning": {"every": 6}}}
    found = training.run(settings, seed=2, how=How(graph=True))
    assert len(replays) == SETTINGS["steps"] - Replayed.FIRST - 2, "two steps used the pass of a probe"
    assert found == training.run(settings, seed=2)
    replays.clear()
    for change in ({"optimiser": "adam"}, {"norm": "noise"}, {"norm": "batch_renorm"}):
        training.run({**SETTINGS, **change}, seed=2, how=How(graph=True))
    assert replays == [], "these steps are not one like the other"


def test_a_step_that_cannot_be_captured_is_computed(monkeypatch):
    def captured(self: Replayed) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(Replayed, "aside", lambda self: self.step(self.indices))
    monkeypatch.setattr(Replayed, "captured", captured)
    monkeypatch.setattr(Replayed, "refused", False)
    assert speed.as_done(How(graph=True)) == How(graph=True)
    with pytest.warns(GraphWarning, match="not permitted when stream is capturing") as caught:
        found = training.run(SETTINGS, seed=2, how=How(graph=True))
    assert len(caught) == 1
    assert found == training.run(SETTINGS, seed=2)
    assert speed.as_done(How(graph=True, threads=2)) == How(threads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training.run(SETTINGS, seed=2, how=How(graph=True))


# -- choosing --------------------------------------------------------------------------------------------


def test_a_capture_without_memory_is_an_error_of_its_own(monkeypatch):
    def captured(self: Replayed) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Replayed, "aside", lambda self: self.step(self.indices))
    monkeypatch.setattr(Replayed, "captured", captured)
    monkeypatch.setattr(Replayed, "refused", False)
    with pytest.raises(torch.OutOfMemoryError):
        training.run(SETTINGS, seed=2, how=How(graph=True))
    assert not Replayed.refused


@pytest.mark.parametrize("error", [EOFError(), BrokenPipeError("gone"), OSError("no more processes")])
def test_a_measurement_that_is_cut_off_leaves_the_plain_way(error, large, monkeypatch, cache):
    def cut_off(*_):
        raise error

    monkeypatch.setattr(speed, "rates", cut_off)
    assert speed.choose([_run()], "cpu", 2) == PLAIN
    assert not cache.exists()


def test_small_work_is_not_measured(monkeypatch, cache):
    monkeypatch.setattr(speed, "rates", lambda *_: pytest.fail("there is nothing to gain"))
    digits = Run("arm", 0, {**SETTINGS, "steps": 10**9})
    other = Run("arm", 0, {"dataset": "digits"}, task="identities")
    assert speed.choose([]) == speed.choose([digits, other]) == PLAIN
    assert speed.choose([Run("arm", 0, {"steps": 3})]) == PLAIN
    assert not cache.exists()


def test_the_heaviest_network_is_measured_and_the_choice_is_remembered(large, monkeypatch, cache):
    asked = []

    def rates(settings, ways, device, cores):
        asked.append((settings["model"]["width"], cores))
        return {way: 2.0 if way == How(threads=2) else 1.0 for way in ways}

    monkeypatch.setattr(speed, "rates", rates)
    runs = [_run(steps=1000), _run(model={"name": "digit_cnn", "width": 8}), _run(norm="none")]
    assert speed.choose(runs, "cpu", 4) == How(threads=2)
    assert asked == [(8, 4)]
    assert speed.choose(runs, "cpu", 4) == How(threads=2)
    assert len(asked) == 1
    (kept,) = json.loads(cache.read_text()).values()
    assert How(**kept["how"]) == How(threads=2) and len(kept["steps_per_second"]) > 3
    assert speed.choose(runs, "cpu", 2) == How(threads=2)
    assert asked == [(8, 4), (8, 2)], "another number of cores is another question"
    assert [entry.name for entry in cache.parent.iterdir()] == [cache.name]


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"KEY": 1}', '{"KEY": {"how": {"threads": 0}}}', "\udcff"]
)
def test_a_damaged_memory_is_measured_again(content, large, monkeypatch, cache):
    monkeypatch.setattr(speed, "rates", lambda settings, ways, *_: dict.fromkeys(ways, 1.0))
    key = json.dumps(speed._key(_run().settings, "cpu", 1))
    cache.parent.mkdir()
    cache.write_bytes(content.replace('"KEY"', key).encode("utf-8", "surrogateescape"))
    assert speed.choose([_run()], "cpu", 1) == PLAIN
    assert speed.recall(json.loads(key)) == PLAIN


def test_without_a_place_to_remember_it_goes_on(large, monkeypatch, cache):
    monkeypatch.setattr(speed, "rates", lambda settings, ways, *_: dict.fromkeys(ways, 1.0))
    cache.parent.write_text("a file where the folder should be")
    assert speed.choose([_run()], "cpu", 1) == PLAIN


def test_only_what_is_clearly_faster_is_chosen():
    threads = How(threads=2)
    assert speed.best({PLAIN: 1.0, threads: 1.04}) == PLAIN
    assert speed.best({PLAIN: 1.0, threads: 1.06}) == threads
    assert speed.best({PLAIN: 0.0, threads: 0.0}) == PLAIN


def test_the_machine_is_measured_and_left_as_it_was(large):
    """In this process and in two others; a way whose gradient is too far off is left out."""
    torch.manual_seed(5)
    random, threads, flags = torch.get_rng_state(), torch.get_num_threads(), torch.is_autocast_enabled("cpu")
    settings = _run().settings
    ways = [PLAIN, How(layout="contiguous"), How(precision="bfloat16"), How(together=2)]
    found = speed.rates(settings, ways, "cpu", 1, budget=math.inf, tolerance=1e-4, window=0.01)
    assert list(found) == [PLAIN, How(layout="contiguous"), How(together=2)]
    assert all(rate > 0 for rate in found.values())
    assert 1e-4 < speed.departure(settings, How(precision="bfloat16"), "cpu") < 1
    assert speed.departure(settings, How(layout="contiguous"), "cpu") < 1e-5
    two = speed.rates(settings, [PLAIN, How(threads=2)], "cpu", 2, budget=math.inf, window=0.01)
    assert len(two) == 2 and all(rate > 0 for rate in two.values())
    noisy = {**settings, "norm": "noisy_batch"}
    assert list(speed.rates(noisy, [PLAIN, How(together=2)], window=0.01)) == [PLAIN], "not possible together"
    assert torch.equal(torch.get_rng_state(), random)
    assert (torch.get_num_threads(), torch.is_autocast_enabled("cpu")) == (threads, flags)


def test_a_spent_budget_ends_the_measurement(large):
    start = time.monotonic()
    assert list(speed.rates(_run().settings, speed.candidates("cpu", 1), budget=0.0, window=0.01)) == [PLAIN]
    assert time.monotonic() - start < 10


def test_a_way_that_fails_is_not_chosen(large, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(updates.Stacked, "__call__", fail)
    found = speed.rates(_run().settings, [PLAIN, How(together=2)], window=0.01)
    assert found[How(together=2)] == 0.0 and speed.best(found) == PLAIN


def test_candidates_use_all_cores():
    assert [how.threads for how in speed.candidates("cpu", 4) if replace(how, threads=1) == PLAIN] == [
        1,
        2,
        4,
    ]
    assert speed.candidates("cpu", 1)[0] == speed.candidates("cuda", 1)[0] == PLAIN
    assert all(speed.usable(how, "cpu") for how in speed.candidates("cpu", os.cpu_count() or 1))


# -- the benchmark ---------------------------------------------------------------------------------------

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "training.py"


def test_the_benchmark_runs_and_leaves_the_environment_alone(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), "--quick"])
    before, threads = os.environ.get("BNLIB_DATA"), torch.get_num_threads()
    runpy.run_path(str(BENCHMARK), run_name="__main__")
    output = capsys.readouterr().out
    assert (os.environ.get("BNLIB_DATA"), torch.get_num_threads()) == (before, threads)
    for word in ("plain loop / ours, a step, BN", "at most 1.15", "not measured", "| 02-does-it-work |"):
        assert word in output
    assert not {"nan", "inf"} & set(output.split())
