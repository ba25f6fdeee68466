"""The charts of the chapters compute what `bnlib.norms` computes: read out of the running Vega views."""

import itertools
import math

import numpy as np
import pytest
import torch
from browser import data_sets, drawn, rows_with

from bnlib import norms
from bnlib.explorables import mechanics as explorables
from bnlib.widgets import Explorer

CHARTS = {
    "transform": explorables.transform_chart,
    "running": explorables.running_chart,
    "coupling": explorables.coupling_chart,
}
WIDGETS = [explorables.transform_steps, explorables.running_statistics, explorables.coupling]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def page():
    """A page with the three charts drawn, in Altair's own theme."""
    with drawn({name: chart().to_dict() for name, chart in CHARTS.items()}, width=900) as page:
        yield page


def rows(page, chart, field, **params):
    """The rows that have `field` in the chart's data after its params were set, in their order."""
    return rows_with(data_sets(page, chart, **params), field)


def columns(found, *names):
    return np.array([[row[name] for name in names] for row in found])


# --- (a) the transform ---


def expected_points(stage, whiten, gamma, beta, log_epsilon, batch):
    x = torch.from_numpy(explorables.batches_of_points()[batch])
    eps = 10.0**log_epsilon
    centred = x - x.mean(0)
    divided = norms.zca_whiten(x, eps)[0] if whiten else norms.batch_norm(x, eps=eps).y
    pair = torch.tensor([gamma, 1.0], dtype=torch.float64), torch.tensor([beta, 0.0], dtype=torch.float64)
    scaled = divided * pair[0] + pair[1] if whiten else norms.batch_norm(x, *pair, eps=eps).y
    stations = [x, centred, divided, scaled]
    left = min(int(stage), 2)
    return torch.lerp(stations[left], stations[left + 1], stage - left).numpy()


@pytest.mark.parametrize("stage", [0, 0.4, 1, 1.5, 2, 2.7, 3])
@pytest.mark.parametrize("whiten", [False, True])
def test_the_points_are_those_of_batch_norm_and_zca(page, stage, whiten):
    for gamma, beta, log_epsilon, batch in [(1.5, 1.0, -5, 0), (-0.7, 0.3, 0.5, 7), (2.0, -2.0, -8, 19)]:
        params = {"gamma": gamma, "beta": beta, "log_epsilon": log_epsilon, "batch": batch}
        found = rows(page, "transform", "p1", stage=stage, whiten=whiten, **params)
        expected = expected_points(stage, whiten, **params)
        np.testing.assert_allclose(columns(found, "p1", "p2"), expected, **CLOSE)


def test_the_lines_and_the_ellipse_state_the_moments_of_what_is_shown(page):
    for stage, whiten in itertools.product([0, 1, 2, 3], [False, True]):
        settings = {"gamma": 1.5, "beta": 1.0, "log_epsilon": -5, "batch": 3}
        found = rows(page, "transform", "e1", stage=stage, whiten=whiten, **settings)
        points = columns(found, "p1", "p2")
        mean, std, cov = points.mean(0), points.std(0), np.cov(points.T, bias=True)
        np.testing.assert_allclose(columns(found[:1], "m1", "m2", "s1", "s2")[0], [*mean, *std], **CLOSE)
        off = columns(found, "e1", "e2") - mean
        np.testing.assert_allclose(np.einsum("ni,ij,nj->n", off, np.linalg.inv(cov), off), 1, rtol=1e-6)
        correlation = cov[0, 1] / std.prod()
        line = found[0]["spreads"].replace("−", "-")
        assert f"std ({std[0]:.2f}, {std[1]:.2f})" in line
        assert abs(float(line.split()[-1]) - correlation) < 0.0051


def test_batch_norm_keeps_the_correlation_and_whitening_removes_it(page):
    settings = {"gamma": 1.0, "beta": 0.0, "log_epsilon": -8, "batch": 0}
    raw, divided, white = (
        rows(page, "transform", "correlation", stage=stage, whiten=whiten, **settings)[0]["correlation"]
        for stage, whiten in [(0, False), (2, False), (2, True)]
    )
    assert abs(divided - raw) < 1e-6 and abs(raw) > 0.5
    assert abs(white) < 1e-5


# --- (b) running statistics ---


@pytest.mark.parametrize("batch_size", explorables.BATCH_SIZES)
@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.9])
def test_the_running_averages_and_both_outputs_are_those_of_the_module(page, batch_size, momentum):
    settings = {"batch_size": batch_size, "momentum": momentum}
    found = rows(page, "running", "eval", unbiased=True, **settings)
    assert len(found) == explorables.STEPS
    bn = norms.BatchNorm(1, momentum=momentum).double()
    fixed = torch.tensor([[explorables.FIXED_INPUT]], dtype=torch.float64)
    mean, var = explorables.batch_statistics()[batch_size]
    sides = torch.tensor([[-1.0], [1.0]] * (batch_size // 2), dtype=torch.float64)
    for t, row in enumerate(found):
        # A batch that has this mean and this biased variance.
        bn.train()(mean[t] + math.sqrt(var[t]) * sides)
        expected = [mean[t], var[t], bn.running_mean.item(), bn.running_var.item()]
        expected += [
            (explorables.FIXED_INPUT - mean[t]) / math.sqrt(var[t] + bn.eps),
            bn.eval()(fixed).item(),
        ]
        names = ("mean", "var", "running_mean", "running_var", "train", "eval")
        np.testing.assert_allclose([row[name] for name in names], expected, rtol=1e-8, atol=1e-8)


def test_without_the_correction_the_running_variance_of_pairs_is_about_half(page):
    variances = {
        unbiased: rows(page, "running", "eval", batch_size=2, momentum=0.02, unbiased=unbiased)
        for unbiased in (True, False)
    }
    corrected, biased = (columns(variances[key], "running_var")[:, 0] for key in (True, False))
    start = (1 - 0.02) ** np.arange(1, explorables.STEPS + 1)  # what is left of the initial 1
    np.testing.assert_allclose(corrected - start, 2 * (biased - start), rtol=1e-6, atol=1e-9)


# --- (c) coupling ---


@pytest.mark.parametrize("moved", range(1, len(explorables.ITEMS) + 1))
@pytest.mark.parametrize("shift", [-3, 0, 2])
def test_the_coupling_chart_shows_the_outputs_and_their_jacobian(page, moved, shift):
    before = torch.tensor(explorables.ITEMS, dtype=torch.float64)[:, None]
    after = before.clone()
    after[moved - 1] += shift
    found = rows(page, "coupling", "slope", moved=moved, shift=shift, inference=False)
    expected = torch.cat([norms.batch_norm(x).y for x in (before, after)], 1)
    np.testing.assert_allclose(columns(found, "before", "after"), expected, **CLOSE)
    jacobian = torch.autograd.functional.jacobian(lambda x: norms.batch_norm(x).y[:, 0], after)
    np.testing.assert_allclose(columns(found, "slope")[:, 0], jacobian[:, moved - 1, 0], **CLOSE)


def test_at_inference_only_the_moved_item_moves(page):
    found = rows(page, "coupling", "slope", moved=3, shift=2, inference=True)
    values = columns(found, "before", "after", "slope")
    still = np.arange(len(values)) != 2
    np.testing.assert_array_equal(values[still, 0], values[still, 1])
    np.testing.assert_array_equal(values[still, 2], 0)
    std = np.sqrt(np.var(explorables.ITEMS) + explorables.EPSILON)
    np.testing.assert_allclose(values[2, 1] - values[2, 0], 2 / std, **CLOSE)
    np.testing.assert_allclose(values[2, 2], 1 / std, **CLOSE)


# --- all of them ---


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("width", [390, 900])
def test_a_chart_fills_the_page_and_not_more(page, chart, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(150)
    host, drawn = page.evaluate(
        "id => [document.getElementById(id).clientWidth, "
        "document.querySelector(`#${id} svg`).getBoundingClientRect().width]",
        chart,
    )
    assert 0.85 * host <= drawn <= host


@pytest.mark.parametrize("build", WIDGETS, ids=lambda build: build.__name__)
def test_every_param_has_a_labelled_control_and_the_figure_an_alt_text(build):
    box = build()
    panel, explorer = box.children
    assert isinstance(explorer, Explorer)
    assert len(panel.children) == len(explorer.params)
    assert all(control.description for control in panel.children)
    assert len(explorer.description) > 100 and any(c.isdigit() for c in explorer.description)
    assert build().children[1].spec == explorer.spec  # nothing random between two calls


def test_the_channel_chart_states_the_moments_of_batch_norm():
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 4, 4)))
    stated = explorables.channel_chart(x.numpy()).to_dict()["description"]
    out = norms.batch_norm(x)
    for c in range(3):
        assert f"channel {c + 1} {out.mean[c]:.2f} and {out.var[c]:.2f}" in stated
