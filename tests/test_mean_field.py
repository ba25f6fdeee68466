"""Exploding gradients and rank collapse: theory against closed forms and samples, and wide networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnlib.theory import mean_field, wide_networks
from bnlib.theory.mean_field import growth_rate, moments, relu_growth_rate, residual_growth, residual_start
from bnlib.theory.wide_networks import (
    measured_exponent,
    measured_rate,
    plain_network,
    rank_collapse,
    residual_network,
    soft_rank,
)

BATCHES = (4, 8, 16, 32, 64, 128, 256, 512, math.inf)
ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardtanh": F.hardtanh,
    "absolute": torch.abs,
    "sine": torch.sin,
    "square": torch.square,
    "cube": lambda u: u**3,
    "exponential": torch.exp,
}


def identity(u):
    return u


def affine(u):
    return 3 - 2 * u


# --- the closed forms and the quadrature --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "relu", "linear", "tanh"),
    list(
        zip(
            BATCHES,
            (3.08406, 1.788190, 1.589950, 1.521953, 1.493063, 1.479681, 1.473234, 1.470069, 1.466942),
            (2, 1.2, 1.076923, 1.034483, 1.016393, 1.008, 1.003953, 1.001965, 1),
            (
                2.130,
                1.3588,
                1.2464,
                1.2090,
                1.1930,
                1.1859,
                1.1822,
                1.1805,
                1.177807,
            ),  # sampled, but for the last
            strict=True,
        )
    ),
)
def test_table_of_rates(batch, relu, linear, tanh):
    digits = 5e-6 if batch == 4 else 5e-7
    assert relu_growth_rate(batch) == pytest.approx(relu, abs=digits)
    assert mean_field.linear_growth_rate(batch) == pytest.approx(linear, abs=5e-7)
    assert growth_rate(torch.tanh, batch) == pytest.approx(tanh, rel=5e-7 if batch == math.inf else 5e-3)


@pytest.mark.parametrize("batch", [4, 5, 8, 33, 512, 10**5, math.inf])
def test_quadrature_gives_the_closed_forms(batch):
    quadratic = 2.0 if math.isinf(batch) else 2 * (batch - 1) / (batch - 3)  # harmonics of degree 2
    assert growth_rate(torch.relu, batch) == pytest.approx(relu_growth_rate(batch), rel=1e-9)
    assert growth_rate(identity, batch) == pytest.approx(mean_field.linear_growth_rate(batch), rel=1e-9)
    assert growth_rate(torch.square, batch) == pytest.approx(quadratic, rel=1e-9)


def test_limits_in_closed_form():
    assert relu_growth_rate() == pytest.approx(math.pi / (math.pi - 1), rel=1e-15)
    assert math.sqrt(relu_growth_rate()) == pytest.approx(1.2112, abs=5e-5)  # of the norm, not its square
    # Hermite polynomials: the Gaussian Poincare ratio is their degree.
    assert growth_rate(lambda u: u**3 - 3 * u) == pytest.approx(3, rel=1e-10)
    assert growth_rate(lambda u: u**4 - 6 * u**2 + 3) == pytest.approx(4, rel=1e-10)
    # E cos^2(aZ) = (1 + exp(-2a^2)) / 2 and Var sin(aZ) = (1 - exp(-2a^2)) / 2.
    a = 1.3
    expected = a**2 / math.tanh(a**2)
    assert growth_rate(lambda u: torch.sin(a * u)) == pytest.approx(expected, rel=1e-10)
    assert growth_rate(torch.exp) == pytest.approx(math.e / (math.e - 1), rel=1e-10)


@pytest.mark.parametrize("batch", [4, 6, 20])
def test_quadrature_is_the_law_of_a_normalised_channel(batch):
    """Against samples: normal vectors, centred and scaled, with the matrices written out."""
    random = torch.Generator().manual_seed(batch)
    h = torch.randn(400_000 // batch, batch, generator=random, dtype=torch.float64)
    centred = h - h.mean(1, keepdim=True)
    u = centred / centred.square().mean(1, keepdim=True).sqrt()
    slope = F.elu(u).where(u < 0, torch.zeros(())) + 1  # exp(u) below 0, 1 above
    g = torch.eye(batch, dtype=torch.float64) - 1 / batch
    dg = slope[:, :, None] * g
    inside = (dg @ dg).diagonal(dim1=1, dim2=2).sum(1)
    radial = torch.einsum("ni,ij,nj->n", slope * u, g, slope * u) / batch
    variance = (F.elu(u) @ g).square().sum(1).mean() / (batch - 1)
    sampled = batch / (variance * (batch - 3) * (batch - 1)) * (inside - radial).mean()
    assert growth_rate(F.elu, batch) == pytest.approx(sampled.item(), rel=5e-3)


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"hardtanh"}))
def test_more_nodes_change_nothing(name):
    for batch in (5, 40, math.inf):
        fine = growth_rate(ACTIVATIONS[name], batch, nodes=96)
        assert growth_rate(ACTIVATIONS[name], batch) == pytest.approx(fine, rel=1e-10)


def test_kinks_that_are_not_at_zero_need_more_nodes():
    inside, density = math.erf(math.sqrt(0.5)), math.exp(-0.5) / math.sqrt(2 * math.pi)
    exact = inside / (inside - 2 * density + 1 - inside)  # P(|Z| < 1) over E min(Z^2, 1)
    assert growth_rate(F.hardtanh) == pytest.approx(exact, rel=4e-3)
    assert growth_rate(F.hardtanh, nodes=200) == pytest.approx(exact, rel=2e-4)


# --- Poincare: gradients always explode ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_no_activation_explodes_less_than_none(name):
    for batch in BATCHES:
        rate, least = growth_rate(ACTIVATIONS[name], batch), mean_field.linear_growth_rate(batch)
        assert rate > least + 1e-3
        assert least >= 1


def test_random_activations_explode_too():
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        weights = torch.randn(3, 6, generator=random, dtype=torch.float64)

        def activation(u, weights=weights):
            return (weights[0] * torch.tanh(weights[1] * u[..., None] + weights[2])).sum(-1)

        for batch in (4, 8, 64, math.inf):
            assert growth_rate(activation, batch, nodes=24) > mean_field.linear_growth_rate(batch)


@pytest.mark.parametrize("batch", BATCHES)
def test_affine_activations_are_the_equality(batch):
    assert growth_rate(affine, batch) == pytest.approx(mean_field.linear_growth_rate(batch), rel=1e-9)


def test_rates_do_not_depend_on_scale_or_offset_of_the_activation():
    for batch in (4, 16, math.inf):
        moved = growth_rate(lambda u: 5 - 3 * torch.tanh(u), batch)
        assert moved == pytest.approx(growth_rate(torch.tanh, batch), rel=1e-9)


# --- layer normalization and skip connections ---------------------------------------------------------------


def test_layer_norm_rates():
    assert mean_field.layer_norm_growth_rate(torch.relu) == pytest.approx(1, rel=1e-12)
    assert mean_field.layer_norm_growth_rate(torch.tanh) == pytest.approx(1.177807, abs=5e-7)
    assert mean_field.layer_norm_growth_rate(torch.sigmoid) < 0.5
    for activation in ACTIVATIONS.values():
        assert mean_field.layer_norm_growth_rate(activation) <= growth_rate(activation) * (1 + 1e-12)


def test_residual_growth_is_the_product_and_polynomial():
    rate, start = relu_growth_rate(), residual_start(torch.relu)
    assert start == pytest.approx(1 / (1 - 1 / math.pi), rel=1e-9)
    product = math.prod(1 + rate / (k + start) for k in range(48))
    assert residual_growth(rate, 48, start) == pytest.approx(product, rel=1e-12)
    assert product == pytest.approx(144.8, abs=0.05)
    assert relu_growth_rate(128) ** 48 == pytest.approx(1.5e8, rel=0.03)  # without skip connections
    doubled = residual_growth(rate, 2**17, start) / residual_growth(rate, 2**16, start)
    assert math.log2(doubled) == pytest.approx(rate, abs=1e-4)
    assert residual_growth(rate, 0, start) == 1
    assert residual_growth(1, 48, 1) == pytest.approx(49, rel=1e-12)  # ReLU with layer normalization


# --- wide random networks -----------------------------------------------------------------------------------


def mean_rate(seeds, *arguments, **settings):
    """The geometric mean over seeds of the measured rate."""
    gradients = [plain_network(*arguments, seed=seed, **settings).gradient for seed in range(seeds)]
    return measured_rate(torch.stack(gradients)).log().mean().exp().item()


@pytest.mark.parametrize(
    ("activation", "tolerances"),
    [
        (F.relu, {8: 0.05, 32: 0.02, 128: 0.02, 512: 0.02}),
        (identity, {8: 0.05, 32: 0.02, 128: 0.01, 512: 0.01}),
        (torch.tanh, {8: 0.05, 32: 0.02, 128: 0.02, 512: 0.02}),
    ],
    ids=["relu", "linear", "tanh"],
)
def test_wide_networks_explode_at_the_rate(activation, tolerances):
    """Width 512, 20 layers; one seed for the batch of 512, two for the others."""
    for batch, tolerance in tolerances.items():
        measured = mean_rate(1 if batch == 512 else 2, 20, 512, batch, activation)
        assert measured == pytest.approx(growth_rate(activation, batch), rel=tolerance), batch


def test_relu_with_layer_norm_does_not_explode():
    """Samples end up parallel, so a batch counts as one: 50 layers instead of 20 reduce the noise."""
    assert mean_rate(3, 50, 512, 8, norm="layer") == pytest.approx(1, rel=0.02)


def test_residual_networks_explode_polynomially():
    rate, start = relu_growth_rate(128), residual_start(torch.relu, 128)
    for seed in range(2):
        measured = residual_network(48, 512, 128, seed=seed)
        assert measured_exponent(measured).item() == pytest.approx(relu_growth_rate(), abs=0.1)
        ratio = (measured.gradient[0] / measured.gradient[-1]).item()
        assert ratio == pytest.approx(144.8, rel=0.25)
        assert ratio == pytest.approx(residual_growth(rate, 48, start), rel=0.1)  # for B = 128, not infinity
        per_block = (measured.variance[-1] - measured.variance[0]).item() / 48
        assert per_block == pytest.approx(1 - 1 / math.pi, rel=0.03)


def test_other_residual_networks():
    layer = residual_network(32, 256, 16, norm="layer")
    assert (layer.gradient[0] / layer.gradient[-1]).item() == pytest.approx(33, rel=0.3)
    none = residual_network(16, 256, 16, norm="none")
    assert (none.gradient[0] / none.gradient[-1]).item() == pytest.approx(3**16, rel=0.4)  # 1 + 2 * 2 / 2


def test_he_initialisation_without_normalization_keeps_the_gradient():
    assert mean_rate(3, 20, 512, 32, norm="none") == pytest.approx(1, rel=0.04)
    assert mean_rate(3, 20, 512, 32, norm="none", weight_variance=1.0) == pytest.approx(0.5, rel=0.04)


def torch_network(depth, width, batch, norm, seed):
    """The network of `plain_network` in torch.nn, from the same random numbers: layers, x and readout."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    x, layers = normal(batch, width), []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False, dtype=torch.float64)
        linear.weight = nn.Parameter(normal(width, width).T * math.sqrt(2 / width))
        kind = nn.BatchNorm1d if norm == "batch" else nn.LayerNorm
        layers.append((linear, kind(width, eps=1e-30, dtype=torch.float64)))
    return layers, x, normal(batch, width)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_plain_network_is_torchs_and_weights_gradients_grow_alike(norm):
    layers, x, readout = torch_network(14, 256, 32, norm, seed=3)
    places = []
    for linear, normalization in layers:
        places.append(linear(x))
        x = torch.relu(normalization(places[-1]))
    weights = [linear.weight for linear, _ in layers]
    gradients = torch.autograd.grad((readout * x).sum(), [*places, *weights])
    squared = torch.stack([gradient.square().sum() for gradient in gradients])
    ours = plain_network(14, 256, 32, norm=norm, seed=3)
    torch.testing.assert_close(ours.gradient, squared[:14], rtol=1e-8, atol=0)
    variances = [place.var(0, correction=0).mean() for place in places]
    torch.testing.assert_close(ours.variance, torch.stack(variances), rtol=1e-8, atol=0)
    torch.testing.assert_close(measured_rate(squared[14:]), measured_rate(squared[:14]), rtol=0.05, atol=0)


def test_weights_variance_is_cancelled_and_the_random_state_untouched():
    before = torch.get_rng_state()
    for norm in ("batch", "layer"):
        small = plain_network(9, 64, 16, norm=norm, weight_variance=1e-4).gradient
        large = plain_network(9, 64, 16, norm=norm, weight_variance=1e4).gradient
        torch.testing.assert_close(measured_rate(small), measured_rate(large), rtol=1e-9, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_measured_rate_and_exponent_of_exact_powers():
    layers = torch.arange(12, dtype=torch.float64)
    assert measured_rate(1.5**-layers).item() == pytest.approx(1.5, rel=1e-12)
    disturbed = 1.5**-layers
    disturbed[[0, 1, 2, -3, -2, -1]] *= 7
    assert measured_rate(torch.stack([disturbed, 2**-layers])).tolist() == pytest.approx([1.5, 2])
    assert measured_exponent(wide_networks.Layers((1 + layers) ** -1.4, 3 * (1 + layers))).item() == (
        pytest.approx(1.4, rel=1e-12)
    )


# --- rank collapse ------------------------------------------------------------------------------------------


def test_batch_norm_keeps_the_rank_and_without_it_it_collapses():
    """Width 32, batch 64.  One layer's rank fluctuates, so the kept one is the mean over 400 layers; and a
    product of 500 matrices has not always collapsed (seed 0: 1.08), one of 1000 has."""
    kept = [rank_collapse(500, 32, 64, seed=seed)[100:].mean().item() for seed in range(5)]
    assert all(4 < rank < 7 for rank in kept)
    assert all(0.8 < rank / math.sqrt(32) < 1 for rank in kept)
    lost = torch.stack([rank_collapse(1000, 32, 64, normalised=False, seed=seed) for seed in range(9)])
    assert lost[:, 499].median().item() == pytest.approx(1, abs=1e-3)
    assert (lost[:, 499] < 1.2).all()
    assert (lost[:, 999] < 1.01).all()
    assert (lost > 1 - 1e-12).all()


def test_rank_that_is_kept_grows_like_the_root_of_the_width():
    ranks = [rank_collapse(200, width, 2 * width)[100:].mean().item() for width in (16, 64)]
    assert math.log(ranks[1] / ranks[0], 4) == pytest.approx(0.5, abs=0.1)


def test_soft_rank():
    basis = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(9, 9)))[0])
    for rank in (1, 3, 5):
        h = basis[:, :rank] @ basis[:rank, :5]
        equal = basis[:, :rank] @ torch.linalg.qr(basis[:5, :5])[0][:rank]
        assert soft_rank(equal).item() == pytest.approx(rank, rel=1e-12)
        assert 1 - 1e-12 <= soft_rank(h).item() <= rank + 1e-12
        assert soft_rank(7 * h.T).item() == pytest.approx(soft_rank(h).item(), rel=1e-12)


# --- what raises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [relu_growth_rate, mean_field.linear_growth_rate])
def test_too_small_batches_are_refused(rate):
    for batch in (1, 3, 3.5, math.nan):
        with pytest.raises(ValueError, match="at least 4 samples"):
            rate(batch)
        with pytest.raises(ValueError, match="at least 4 samples"):
            growth_rate(torch.tanh, batch)


def test_what_is_not_an_activation_is_refused():
    for constant in (torch.ones_like, lambda u: 0 * u + 2):
        with pytest.raises(ValueError, match="is constant"):
            moments(constant)
    with pytest.raises(ValueError, match="element by element"):
        moments(lambda u: u.sum(0))


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match="positive start"):
        residual_growth(1.5, 10, 0)
    with pytest.raises(ValueError, match="positive start"):
        residual_growth(1.5, -1, 1)
    with pytest.raises(ValueError, match="one of batch, layer, none"):
        plain_network(5, 8, 4, norm="group")
    with pytest.raises(ValueError, match="leave no ratio"):
        measured_rate(torch.ones(7))
    with pytest.raises(ValueError, match="leave no slope"):
        measured_exponent(wide_networks.Layers(torch.ones(4), torch.ones(4)))
