"""Exact statements about one batch normalization layer, measured on real images in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bnlib import data, models, norms
from bnlib.records import Row


def run(
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: str = "cpu",
    tick: Callable[[int], None] = lambda steps: None,
) -> list[Row]:
    """A random 3x3 convolution on one batch of images, then BN in training mode: what holds exactly?

    Settings: `dataset`, `batch_size`, `channels`, `eps`.  All values are dimensionless; see `measure`.
    """
    dataset = data.load(settings["dataset"], device=device, dtype=torch.float64)
    indices = next(data.batches(len(dataset.x_train), settings["batch_size"], seed)).to(device)
    images = dataset.x_train[indices]
    conv = nn.Conv2d(images.shape[1], settings["channels"], 3, padding=1, dtype=torch.float64)
    models.initialise(nn.Sequential(conv), "glorot_uniform", seed=seed)
    values = measure(conv.to(device), images, settings["eps"])
    tick(1)
    return [(0, "conv1", name, value) for name, value in values.items()]


def measure(conv: nn.Conv2d, images: torch.Tensor, eps: float) -> dict[str, float]:
    """What chapter 1 states about BN after `conv`, each as one number.

    identity_error_printed   max |BN(x) - x| / sqrt(Var x) for gamma = sqrt(Var x), beta = E x
    identity_error_exact     the same for gamma = sqrt(Var x + eps)
    fold_error               max |fold(conv, bn)(images) - bn(conv(images))| in evaluation mode
    coupled_share            share of ordered pairs i != j of images with d y_j / d x_i not zero
    correlation_left         mean |correlation| between channels after BN / before
    correlation_zca          mean |correlation| between channels after ZCA whitening / before
    """
    with torch.no_grad():
        x = conv(images)
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    spread = var.sqrt().view(1, -1, 1, 1)

    def identity_error(gamma: torch.Tensor) -> float:
        y = norms.batch_norm(x, gamma, mean, eps).y
        return ((y - x).abs() / spread).max().item()

    before = _mean_correlation(_rows(x))
    after = _mean_correlation(_rows(norms.batch_norm(x, eps=eps).y))
    whitened = _mean_correlation(norms.zca_whiten(_rows(x))[0])
    return {
        "identity_error_printed": identity_error(var.sqrt()),
        "identity_error_exact": identity_error((var + eps).sqrt()),
        "fold_error": _fold_error(conv, images, eps),
        "coupled_share": _coupled_share(x, eps),
        "correlation_left": after / before,
        "correlation_zca": whitened / before,
    }


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) as (N H W, C): one row for each value that a channel's statistics average over."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _mean_correlation(rows: torch.Tensor) -> float:
    """Mean absolute correlation over all pairs of different channels."""
    correlation = torch.corrcoef(rows.T)
    off_diagonal = ~torch.eye(len(correlation), dtype=torch.bool, device=rows.device)
    return correlation[off_diagonal].abs().mean().item()


def _fold_error(conv: nn.Conv2d, images: torch.Tensor, eps: float) -> float:
    bn = norms.BatchNorm(conv.out_channels, eps=eps).to(images)
    with torch.no_grad():
        for shift in (
            0.0,
            0.5,
            -0.25,
        ):  # a few updates, so that the running statistics are not the initial ones
            bn(conv(images + shift))
        bn.eval()
        return (norms.fold(conv, bn)(images) - bn(conv(images))).abs().max().item()


def _coupled_share(x: torch.Tensor, eps: float) -> float:
    """Ordered pairs of images (i, j), i != j: does any value of image i change the first pixel of image j?"""
    x = x[:32].detach().requires_grad_()
    first_pixels = norms.batch_norm(x, eps=eps).y[:, :, 0, 0].sum(1)
    coupled = 0
    for j, pixel in enumerate(first_pixels):
        (gradient,) = torch.autograd.grad(pixel, x, retain_graph=True)
        touched = gradient.flatten(1).abs().amax(1) > 0
        coupled += int(touched.sum()) - int(touched[j])
    return coupled / (len(x) * (len(x) - 1))
