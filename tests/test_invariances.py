"""The table of invariances: every cell is what pencil and paper say, and a change changes what it names."""

from __future__ import annotations

import copy

import pytest
import torch

from bnlib import data, invariances, models
from bnlib.experiments import alternatives
from bnlib.invariances import layer_with_norm, measure

EXACT = 1e-12
CHANGES = [
    *("neuron_scale", "layer_scale", "layer_shrink", "layer_shift", "neuron_bias", "layer_bias"),
    *("data_scale", "data_shift", "sample_scale", "sample_shift", "mode", "neighbours", "order"),
]
SCALES = {"layer_scale", "layer_shrink", "data_scale"}
ALONE = {"mode", "neighbours", "order"}
#: norm -> what it does not see: on vectors, and on images
INVARIANT = {
    "none": (ALONE, ALONE),
    "weight": (ALONE | {"neuron_scale", "layer_scale", "layer_shrink"},) * 2,
    "batch": (SCALES | {"neuron_scale", "neuron_bias", "layer_bias", "data_shift", "order"},) * 2,
    "batch_eval": ({"neighbours", "order"},) * 2,
    "batch_renorm": (ALONE, ALONE),
    "layer": (
        ALONE | SCALES | {"layer_shift", "layer_bias", "sample_scale"},
        ALONE | SCALES | {"layer_bias", "sample_scale"},  # the added map differs from pixel to pixel
    ),
    "group": (
        ALONE | SCALES | {"layer_shift", "layer_bias", "sample_scale"},
        ALONE | SCALES | {"layer_bias", "sample_scale"},
    ),
    "rms": (ALONE | SCALES | {"sample_scale"},) * 2,
    "instance": (None, set(CHANGES) - {"layer_shift"}),
}


@pytest.fixture(scope="module")
def images():
    return data.load("digits", dtype=torch.float64).x_train


@pytest.mark.parametrize("norm", INVARIANT)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_whole_table(norm, seed):
    rows = invariances.run({"dataset": "digits", "norm": norm, "eps": [0.0], "batch_size": 12}, seed=seed)
    for kind, expected in zip(("vectors", "images"), INVARIANT[norm], strict=True):
        values = {metric: value for _, layer, metric, value in rows if layer == kind}
        if expected is None:
            assert not values
            continue
        assert list(values) == [f"{name}@0" for name in CHANGES]
        for name in CHANGES:
            value = values[f"{name}@0"]
            assert value < EXACT if name in expected else value > 1e-3, (norm, kind, name, value)


def test_the_printed_table_is_this_one():
    said = {
        norm: {c for c, cells in alternatives.TABLE_1.items() if cells[i]}
        for i, norm in enumerate(("batch", "weight", "layer"))
    }
    for norm, changes in said.items():
        assert changes == INVARIANT[norm][0] & set(alternatives.TABLE_1)


def test_eps_breaks_the_invariance_to_scale(images):
    """With the weights divided by 100 the variance falls by 1e4, towards eps."""
    for norm in ("batch", "layer", "instance", "rms"):
        net = layer_with_norm(norm, "images", images.shape[1:], 0, eps=1e-5)
        found = measure(net, images[:12], images[12:24])
        assert 1e-8 < found["layer_scale"] < 1e-4 < found["layer_shrink"] < 0.5


@pytest.mark.parametrize("kind", ["vectors", "images"])
@pytest.mark.parametrize("norm", ["batch", "batch_renorm", "weight", "layer"])
def test_the_network_and_the_images_are_left_as_they_are(norm, kind, images):
    net = layer_with_norm(norm, kind, images.shape[1:], 0, before=[images[:10]])
    values, x = copy.deepcopy(net.state_dict()), images[:8].clone()
    measure(net, x, images[8:16])
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    assert torch.equal(x, images[:8])
    assert net.training


def test_running_statistics_come_from_what_was_seen_before(images):
    net = layer_with_norm("batch_eval", "images", images.shape[1:], 0, before=[images[:10], images[10:30]])
    assert not net.training
    assert net[1].num_batches_tracked == 2
    assert isinstance(net[1], models.NORMS["batch"])
    renorm = layer_with_norm("batch_renorm", "images", images.shape[1:], 0, before=[images[:10]])
    x = images[30:40]
    assert torch.allclose(renorm(x), copy.deepcopy(renorm).eval()(x), rtol=0, atol=0.5), "stale by one batch"
