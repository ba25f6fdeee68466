"""Noise on activations: the laws as printed, a stream of its own, and nothing at all in evaluation mode."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bnlib import models
from bnlib.noise import NonStationaryNoise, StationaryNoise

KINDS = [NonStationaryNoise, StationaryNoise]
SHAPES = [(6, 5), (6, 5, 4, 3)]


def _input(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _shift_and_scale(noise: NonStationaryNoise, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One step's m and s: noise on zeros is m, and the same noise on ones m + s."""
    state = noise.generator.get_state()
    shift = noise(torch.zeros(shape, dtype=torch.float64))
    noise.generator.set_state(state)
    return shift, noise(torch.ones(shape, dtype=torch.float64)) - shift


# -- the law of Santurkar et al., appendix A.2.1 ---------------------------------------------------------


def test_moments_over_many_steps():
    """What batch norm passes on, mean 0 and variance 1 over 128 samples, disturbed 4000 times."""
    m, steps, channels = 128, 4000, 4
    a = _input(m, channels)
    a = (a - a.mean(0)) / a.std(0, correction=0)
    noise = NonStationaryNoise(channels)
    disturbed = torch.stack([torch.stack(torch.var_mean(noise(a), 0, correction=0)) for _ in range(steps)])
    variances, means = disturbed.unbind(1)
    # mu_j, and what 128 samples leave of m_ij and s_ij
    sampling = (0.1**2 / 3 + 0.1**2) / m
    assert means.std().item() == pytest.approx(math.sqrt(0.5**2 / 3 + sampling), rel=0.02)
    assert means.std().item() == pytest.approx(0.2887, rel=0.02)
    assert means.mean().item() == pytest.approx(0, abs=5 * 0.2887 / math.sqrt(steps * channels))
    # E sigma^2 + r_sigma^2 + r_mu^2 / 3
    assert variances.mean().item() == pytest.approx(1.28417, rel=0.02)
    # the distance of two uniform numbers is a third of their range: the distribution jumps at every step
    assert means.diff(dim=0).abs().mean().item() == pytest.approx(1 / 3, rel=0.02)


def test_every_channel_has_its_own_distribution_and_every_step_another():
    noise, drawn = NonStationaryNoise(400), []
    for _ in range(2):
        shift, scale = _shift_and_scale(noise, 300, 400)
        mu, sigma = shift.mean(0), scale.mean(0)
        drawn.append(mu)
        assert mu.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.1)
        assert sigma.mean().item() == pytest.approx(1.125, abs=0.02)
        assert sigma.std().item() == pytest.approx(0.25 / math.sqrt(12), rel=0.1)
        assert -0.51 < mu.min() < -0.48 and 0.48 < mu.max() < 0.51
        assert 0.97 < sigma.min() < 1.03 and 1.22 < sigma.max() < 1.28
        assert abs(torch.corrcoef(torch.stack([mu, sigma]))[0, 1]) < 0.2
        assert 0.19 < (shift.amax(0) - shift.amin(0)).max() <= 0.2, "uniform, within r_mu of mu_j"
        assert (shift - mu).std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
        assert (scale - sigma).std().item() == pytest.approx(0.1, rel=0.02)  # r_sigma as standard deviation
        kurtosis = ((scale - sigma) / 0.1).pow(4).mean().item()
        assert kurtosis == pytest.approx(3, abs=0.15), "normal"
    assert abs(torch.corrcoef(torch.stack(drawn))[0, 1]) < 0.2


def test_pixels_share_their_channels_distribution_but_not_its_values():
    shift, scale = _shift_and_scale(NonStationaryNoise(64), 8, 64, 5, 5)
    by_channel = shift.movedim(1, 0).flatten(1)
    assert (by_channel.amax(1) - by_channel.amin(1)).max() <= 0.2
    assert by_channel.mean(1).amax() - by_channel.mean(1).amin() > 0.8, "one mu for the layer would give 0"
    assert shift.std((2, 3)).mean().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)
    assert scale.std((2, 3)).mean().item() == pytest.approx(0.1, rel=0.05)
    assert by_channel.unique().numel() == by_channel.numel()


@pytest.mark.parametrize("strength", [0.25, 2.0])
def test_strength_scales_the_whole_law(strength):
    one, other = NonStationaryNoise(5), NonStationaryNoise(5, strength)
    (shift, scale), (stronger_shift, stronger_scale) = (
        _shift_and_scale(noise, 6, 5, 4, 3) for noise in (one, other)
    )
    torch.testing.assert_close(stronger_shift, strength * shift, rtol=0, atol=1e-12)
    torch.testing.assert_close(stronger_scale - 1, strength * (scale - 1), rtol=0, atol=1e-12)
    added, more = (StationaryNoise(5, k)(torch.zeros(6, 5, dtype=torch.float64)) for k in (1.0, strength))
    torch.testing.assert_close(more, strength * added, rtol=0, atol=1e-12)


def test_the_gradient_passes_through_the_scale():
    noise, a = NonStationaryNoise(5), _input(6, 5, 4, 3).requires_grad_()
    state = noise.generator.get_state()
    (gradient,) = torch.autograd.grad(noise(a).sum(), a)
    noise.generator.set_state(state)
    torch.testing.assert_close(gradient, _shift_and_scale(noise, 6, 5, 4, 3)[1], rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(StationaryNoise(5)(a).sum(), a)
    assert torch.equal(gradient, torch.ones_like(a)), "noise that is only added leaves gradients alone"


# -- stationary noise ------------------------------------------------------------------------------------


def test_stationary_noise_has_one_law_for_all_steps():
    noise, a = StationaryNoise(20), torch.zeros(500, 20, dtype=torch.float64)
    steps = torch.stack([noise(a) for _ in range(200)])
    assert steps.mean().item() == pytest.approx(0.1, abs=0.003)
    assert steps.std().item() == pytest.approx(0.5, rel=0.01)
    # The means move by sampling alone, 0.5 / sqrt(500) = 0.022, where the paper's law moves them by 0.29.
    assert steps.mean(1).std().item() == pytest.approx(0.5 / math.sqrt(500), rel=0.05)
    assert steps.std(1).std().item() < 0.02


# -- what both have in common ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_mode_and_strength_0_pass_the_input_on(kind, shape):
    a = _input(*shape)
    for noise in (kind(5).eval(), kind(5, strength=0.0)):
        before = noise.generator.get_state()
        assert noise(a) is a
        assert torch.equal(noise.generator.get_state(), before), "nothing is drawn"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_stream_is_the_modules_own(kind, shape):
    a, noise, again = _input(*shape), kind(5), kind(5)
    before = torch.get_rng_state()
    first, second = noise(a), noise(a)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(again(a), first) and torch.equal(again(a), second)
    torch.set_rng_state(before)
    assert not torch.equal(first, second)
    noise.reseed(1)
    assert not torch.equal(noise(a), first)
    noise.reseed(0)
    assert torch.equal(noise(a), first)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_layout_changes_no_value(kind):
    a = _input(6, 5, 4, 3)
    contiguous, last = kind(5)(a), kind(5)(a.contiguous(memory_format=torch.channels_last))
    assert torch.equal(contiguous, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_and_dtype_are_the_inputs(kind, dtype, shape):
    a = _input(*shape).to(dtype)
    before = a.clone()
    out = kind(5)(a)
    assert out.dtype == dtype and out.shape == a.shape
    assert torch.equal(a, before), "the input is not changed in place"


NOISY = ["noise", "noisy_batch", "stationary_noise_batch"]


def _net(norm: str, seed: int = 1, noise: float = 1.0) -> torch.nn.Sequential:
    model = models.mlp(3, 7, norm, in_features=4)
    return models.initialise(model, seed=seed, noise=noise).double()


def _modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in model.modules() if isinstance(module, NonStationaryNoise | StationaryNoise)]


@pytest.mark.parametrize("norm", NOISY)
def test_initialise_seeds_every_module_apart(norm):
    a, model = _input(6, 7), _net(norm)
    first = [module(a) for module in _modules(model)]
    assert len(first) == 3
    assert not any(torch.equal(first[i], first[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    models.initialise(model, seed=1)
    assert all(torch.equal(module(a), out) for module, out in zip(_modules(model), first, strict=True))
    for module, out in zip(_modules(_net(norm, seed=2)), first, strict=True):
        assert not torch.equal(module(a), out)
    assert [module.strength for module in _modules(_net(norm, noise=0.25))] == [0.25] * 3


@pytest.mark.parametrize("norm", NOISY)
def test_a_network_with_noise_can_be_copied_and_saved(norm):
    model, x = _net(norm), _input(6, 4)
    model(x)
    twin = copy.deepcopy(model)
    following = [model(x) for _ in range(2)]
    assert torch.equal(twin(x), following[0]), "a copy goes on with the same noise ..."
    model(x)
    assert torch.equal(twin(x), following[1]), "... and has a stream of its own"
    plain = models.mlp(3, 7, "none" if norm == "noise" else "batch", in_features=4)
    assert len(model.state_dict()) == len(plain.state_dict()), "noise has nothing to save"
    loaded = _net(norm, seed=5)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded.eval()(x), model.eval()(x))
