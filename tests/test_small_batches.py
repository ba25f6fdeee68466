"""Small batches: Samuelson's bound, the distribution of normalised values, and the statistics' own spread."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bnlib.norms import batch_norm
from bnlib.theory.small_batches import (
    farthest,
    gaussian_batch,
    normalised_batches,
    normalised_density,
    samuelson_bound,
)

SIZES = [4, 8, 32]


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.floats(-100, 100).map(lambda v: round(v, 3)), min_size=2, max_size=40))
def test_no_value_exceeds_samuelsons_bound(values):
    y = torch.tensor(values, dtype=torch.float64)[:, None]
    if y.max() > y.min():
        assert batch_norm(y, eps=0.0).y.abs().max() <= samuelson_bound(len(y)) * (1 + 1e-9)


@pytest.mark.parametrize("m", [2, 3, 8, 100])
def test_one_value_far_from_all_others_reaches_the_bound(m):
    y_hat = batch_norm(farthest(m)[:, None], eps=0.0).y[:, 0]
    assert y_hat[0].item() == pytest.approx(math.sqrt(m - 1), rel=1e-12)


def test_of_two_values_only_the_order_is_left():
    y_hat = normalised_batches(2, 100).x_hat
    torch.testing.assert_close(y_hat.abs(), torch.ones_like(y_hat), rtol=1e-12, atol=0)
    torch.testing.assert_close(y_hat.sum(0), torch.zeros(100, dtype=torch.float64), rtol=0, atol=1e-12)
    assert gaussian_batch(2).kurtosis == 1


@pytest.mark.parametrize("m", SIZES)
def test_statistics_of_gaussian_batches(m):
    count = 100_000
    found, expected = normalised_batches(m, count), gaussian_batch(m)
    assert found.x_hat.shape == (m, count)

    def agrees(samples, exact):
        assert abs(samples.mean().item() - exact) < 5 * samples.std().item() / math.sqrt(len(samples))

    agrees(found.x_hat[0] ** 4, expected.kurtosis)
    agrees(found.var, expected.variance)
    agrees(found.var.rsqrt(), expected.inverse_deviation)
    assert found.var.std().item() == pytest.approx(expected.variance_deviation, rel=0.03)
    assert found.mean.std().item() == pytest.approx(expected.mean_deviation, rel=0.03)
    if m > 4:  # below, 1 / var has no variance and its mean converges too slowly
        agrees(1 / found.var, expected.inverse_variance)


@pytest.mark.parametrize("m", [3, 4, 5, 8, 64])
def test_expectations_against_the_chi_squared_distribution(m):
    found, chi2 = gaussian_batch(m), stats.chi2(m - 1)
    assert found.kurtosis == pytest.approx(3 * (m - 1) / (m + 1))
    assert found.variance == pytest.approx(chi2.mean() / m)
    assert found.variance_deviation == pytest.approx(chi2.std() / m)
    assert found.inverse_deviation == pytest.approx(math.sqrt(m) * chi2.expect(lambda x: x**-0.5), rel=1e-3)
    if m > 3:
        assert found.inverse_variance == pytest.approx(m * chi2.expect(lambda x: 1 / x), rel=1e-3)
        assert found.inverse_variance == pytest.approx(m / (m - 3))


def test_where_there_is_no_expectation_it_is_infinite():
    assert gaussian_batch(3).inverse_variance == gaussian_batch(2).inverse_variance == math.inf
    assert gaussian_batch(2).inverse_deviation == math.inf
    assert gaussian_batch(3).inverse_deviation < math.inf


def test_squared_gradients_grow_as_in_a_linear_network():
    """Through the layer, a random gradient's square changes by (m - 2) / (m - 3) on average."""
    m, count = 12, 50_000
    found = normalised_batches(m, count)
    g = torch.randn(m, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    projected = g - g.mean(0) - found.x_hat * (g * found.x_hat).mean(0)
    ratio = projected.square().sum(0) / found.var / m
    assert ratio.mean().item() == pytest.approx((m - 2) / (m - 3), rel=0.01)
    assert gaussian_batch(m).inverse_variance * (m - 2) / m == pytest.approx((m - 2) / (m - 3))


@pytest.mark.parametrize("m", [3, 4, 5, 8, 1000])
def test_the_density_of_a_normalised_value(m):
    values = normalised_batches(m, 20_000).x_hat[0]
    bound = samuelson_bound(m)
    edges = torch.linspace(-min(bound, 4), min(bound, 4), 9, dtype=torch.float64)
    for low, high in pairwise(edges):
        # The midpoints of a substitution y = bound sin(u), under which the ends are no longer singular.
        ends = (torch.stack([low, high]) / bound).clamp(-1, 1).asin()
        width = (ends[1] - ends[0]) / 2000
        u = ends[0] + width * (torch.arange(2000, dtype=torch.float64) + 0.5)
        expected = (normalised_density(bound * u.sin(), m) * bound * u.cos()).sum() * width
        counted = ((values >= low) & (values < high)).double().mean()
        assert abs(counted - expected) < 5 * math.sqrt(expected / 20_000) + 1e-4
    assert normalised_density(torch.tensor([bound + 0.1, -bound - 1]), m).tolist() == [0, 0]


def test_four_values_are_uniform_and_many_are_gaussian():
    grid = torch.linspace(-1.7, 1.7, 30, dtype=torch.float64)
    uniform = normalised_density(grid, 4)
    torch.testing.assert_close(uniform, torch.full_like(grid, 1 / (2 * math.sqrt(3))))
    gaussian = torch.exp(-grid.square() / 2) / math.sqrt(2 * math.pi)
    torch.testing.assert_close(normalised_density(grid, 10**5), gaussian, rtol=1e-4, atol=0)


def test_too_few_values():
    for call in (samuelson_bound, farthest, gaussian_batch):
        with pytest.raises(ValueError, match="at least 2"):
            call(1)
    with pytest.raises(ValueError, match="at least 2"):
        normalised_batches(1, 5)
    with pytest.raises(ValueError, match="at least 3"):
        normalised_density(torch.zeros(1), 2)
