"""Training from one start with several optimisers, and the slices between: every slice's ends are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bnlib import data, models, records, surfaces, training
from bnlib.experiments import EXPERIMENTS
from bnlib.probes import evaluating
from bnlib.specs import Run

SETTINGS = {
    "dataset": "digits",
    "model": {"name": "digit_cnn", "width": 4},
    "norm": "batch",
    "where": "everywhere",
    "init": "glorot_uniform",
    "batch_size": 64,
    "size": 128,
    "optimisers": {
        "sgd": {"lr": 0.1},
        "momentum": {"lr": 0.01, "momentum": 0.9},
        "adam": {"lr": 0.01, "momentum": 0.9, "optimiser": "adam"},
    },
    "steps": 60,
    "line": [0.0, 0.5, 1.0],
    "plane": [0.0, 1.0],
    "lengths": [-0.01, 0.0, 0.01],
    "directions": 3,
    "random_plane": [-0.5, 0.0],
    "dtype": "float64",
}
NAMES = list(SETTINGS["optimisers"])


def _measured(settings=SETTINGS, seed: int = 0) -> dict[tuple[str, str, int], float]:
    return {(metric, layer, step): value for step, layer, metric, value in surfaces.run(settings, seed=seed)}


@pytest.fixture(scope="module")
def rows():
    return _measured()


@pytest.fixture(scope="module")
def at_the_end(rows):
    return {metric: value for (metric, layer, step), value in rows.items() if step == 20 and layer == ""}


def _trained(name: str) -> tuple[torch.nn.Module, data.Dataset]:
    rest = {k: SETTINGS[k] for k in ("dataset", "model", "norm", "where", "init", "dtype", "batch_size")}
    model, dataset, rest = training.prepare(rest, seed=0)
    training.fit(model, dataset, seed=0, steps=20, **SETTINGS["optimisers"][name], **rest)
    return model, dataset


@pytest.mark.parametrize("name", NAMES)
def test_each_optimiser_trains_as_alone_from_the_same_start(rows, at_the_end, name):
    model, dataset = _trained(name)
    x, y = data.probe_batch(dataset, 128)
    with torch.no_grad():
        with evaluating(model):
            right = (model(dataset.x_test).argmax(1) == dataset.y_test).double().mean().item()
        loss = F.cross_entropy(model(x), y).item()
    assert at_the_end[f"end_loss[{name}]"] == pytest.approx(loss, rel=1e-12)
    assert at_the_end[f"end_test_accuracy[{name}]"] == pytest.approx(right, abs=1e-12)
    assert rows[f"train_loss[{name}]", "", 10] < rows[f"train_loss[{name}]", "", 0]


def test_lines_and_planes_have_the_solutions_at_their_ends(at_the_end):
    starts = {at_the_end[f"line[start-{name}]@0"] for name in NAMES}
    assert len(starts) == 1
    for one, other in (("sgd", "momentum"), ("sgd", "adam"), ("momentum", "adam")):
        assert at_the_end[f"line[{one}-{other}]@0"] == pytest.approx(at_the_end[f"end_loss[{one}]"], rel=1e-9)
        assert at_the_end[f"line[{one}-{other}]@1"] == pytest.approx(
            at_the_end[f"end_loss[{other}]"], rel=1e-9
        )
    corners = {"0,0": "sgd", "1,0": "momentum", "0,1": "adam"}
    for corner, name in corners.items():
        assert at_the_end[f"plane@{corner}"] == pytest.approx(at_the_end[f"end_loss[{name}]"], rel=1e-9)
    for metric in ("random[0]@0", "random[2]@0", "random_plane@0,0", "gradient[-]@0"):
        assert at_the_end[metric] == pytest.approx(at_the_end["end_loss[sgd]"], rel=1e-12)


def test_the_middle_of_a_line_is_the_mean_of_the_weights(at_the_end):
    (one, dataset), (other, _) = _trained("sgd"), _trained("adam")
    x, y = data.probe_batch(dataset, 128)
    ends = one.state_dict(), other.state_dict()
    middle = {
        name: value if "tracked" in name else (value + ends[1][name]) / 2 for name, value in ends[0].items()
    }
    one.load_state_dict(middle)
    with torch.no_grad():
        assert at_the_end["line[sgd-adam]@0.5"] == pytest.approx(F.cross_entropy(one(x), y).item(), rel=1e-9)
        one.load_state_dict(middle)  # the pass has moved the running statistics
        with evaluating(one):
            loss = F.cross_entropy(one(x), y).item()
    assert at_the_end["evaluation_line[sgd-adam]@0.5"] == pytest.approx(loss, rel=1e-9)


def test_the_gradient_goes_downhill_with_the_length_of_a_random_direction(at_the_end):
    slope = (at_the_end["gradient[-]@0.01"] - at_the_end["gradient[-]@-0.01"]) / 0.02
    drawn = [(at_the_end[f"random[{k}]@0.01"] - at_the_end[f"random[{k}]@-0.01"]) / 0.02 for k in range(3)]
    assert slope < 0
    assert all(abs(slope) > abs(other) for other in drawn)


def test_weights_moved_are_distances_of_every_layer(rows):
    model, _ = _trained("sgd")
    start = training.prepare(
        {k: SETTINGS[k] for k in ("dataset", "model", "norm", "where", "init", "dtype")}, seed=0
    )[0]
    for (layer, then), (_, now) in zip(models.layers(start), models.layers(model), strict=True):
        w0, wt = then.weight.detach().flatten().numpy(), now.weight.detach().flatten().numpy()
        k = w0 @ wt / (wt @ wt)
        assert rows["moved[sgd]", layer, 20] == pytest.approx(np.linalg.norm(wt - w0), rel=1e-9)
        assert rows["multiple[sgd]", layer, 20] == pytest.approx(k, rel=1e-9)
        assert rows["ray[sgd]", layer, 20] == pytest.approx(np.linalg.norm(k * wt - w0), rel=1e-9)


def test_input_spread_is_that_of_the_second_moments():
    """White inputs give 1, inputs that are all the same the number of channels."""
    model = models.mlp(depth=1, width=4, in_features=6).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    spread = surfaces.input_spread(model, x)
    moments = (x.T @ x / len(x)).numpy()
    assert spread["linear1"] == pytest.approx(np.linalg.eigvalsh(moments)[-1] / (np.trace(moments) / 6))
    assert 1 <= spread["linear1"] < 1.1
    assert surfaces.input_spread(model, torch.ones(8, 6, dtype=torch.float64))["linear1"] == pytest.approx(6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    surfaces.input_spread(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert surfaces.input_spread(model, torch.zeros(8, 6, dtype=torch.float64)) == {}


def test_a_diverged_optimiser_has_no_slices_and_the_others_have_theirs():
    optimisers = {"wild": {"lr": 1e9}, **{name: SETTINGS["optimisers"][name] for name in ("sgd", "adam")}}
    settings = SETTINGS | {"optimisers": optimisers, "norm": "none", "where": "nowhere"}
    metrics = {metric for metric, _, _ in _measured(settings)}
    assert "diverged_at[wild]" in metrics
    assert "line[sgd-adam]@0.5" in metrics
    assert not any("wild" in metric and ("line" in metric or "end" in metric) for metric in metrics)
    assert not any(metric.startswith("plane") for metric in metrics)  # two solutions span no plane
    assert all(math.isfinite(value) for value in _measured(settings).values())


def test_a_record_says_when_the_first_of_a_runs_networks_diverged(tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_RECORDS", str(tmp_path))
    run = Run("standard", 0, {"gain": 1.0})
    rows = [(5, "", "diverged_at[sgd]", 5.0), (3, "", "diverged_at[adam]", 3.0), (9, "", "line[a-b]@0", 1.0)]
    record = records.save("toy", "smoke", [run], {run.digest: {"rows": rows, "seconds": 0.0}}, {})
    assert record.runs[0]["diverged_at"] == 3


def test_the_same_seed_gives_the_same_rows(rows):
    assert _measured() == rows


def test_declared_runs_pair_arms_and_share_their_steps():
    for scale in ("smoke", "laptop", "paper"):
        runs = EXPERIMENTS["surfaces"].all_runs(scale, 1)
        assert {run.arm for run in runs} == {"standard", "bn"}
        for run in runs:
            assert run.settings["steps"] % len(run.settings["optimisers"]) == 0
            assert {0.0, 1.0} <= set(run.settings["line"])
