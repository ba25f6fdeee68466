r"""Noise put on activations on purpose: the law of Santurkar et al., and a stationary one beside it.

Each module draws from a random stream of its own, seeded by `models.initialise`, and neither reads nor
changes torch's global random state. In evaluation mode both pass their input on unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Noise(nn.Module):
    """Noise of a strength, with a random stream of its own on whatever device its input lies."""

    def __init__(self, channels: int, strength: float = 1.0) -> None:
        super().__init__()
        self.channels, self.strength = channels, strength
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Start the stream anew."""
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, a: Tensor) -> Tensor:
        if not self.training or self.strength == 0:
            return a
        if self.generator.device != a.device:
            self.generator = torch.Generator(a.device).manual_seed(self.seed)
        return self.disturb(a)

    def per_channel(self, a: Tensor, low: float, high: float) -> Tensor:
        """One uniform number for each channel, shaped to broadcast along the channels of `a`."""
        shape = (self.channels,) + (1,) * (a.ndim - 2)
        return a.new_empty(shape).uniform_(low, high, generator=self.generator)

    def per_value(self, a: Tensor, method: str, *law: float) -> Tensor:
        """One number for each value of `a`, drawn by a tensor's `method`: "uniform_" or "normal_"."""
        # Drawn into contiguous memory, channels last: into a permuted view it takes eight times as long.
        values = a.new_empty(a.shape if a.ndim == 2 else a.movedim(1, -1).shape)
        return getattr(values, method)(*law, generator=self.generator).movedim(-1, 1)

    def extra_repr(self) -> str:
        return f"{self.channels}, strength={self.strength}"


class NonStationaryNoise(_Noise):
    r"""Shift and scale every value by noise whose own distribution is drawn anew at every step.

    $$\mu_j\sim U(-n_\mu,n_\mu),\ \sigma_j\sim U(1,n_\sigma);\quad
    m_{ij}\sim U(\mu_j-r_\mu,\mu_j+r_\mu),\ s_{ij}\sim N(\sigma_j,r_\sigma);\quad
    a_{ij}\leftarrow s_{ij}\,a_{ij}+m_{ij}$$

    j is a channel, i a sample and, for images, a pixel; $n_\mu=0.5$, $n_\sigma=1.25$, $r_\mu=r_\sigma=0.1$.
    The paper does not say whether $r_\sigma$ is a standard deviation or a variance; here it is the standard
    deviation. `strength` scales the whole law, all of $n_\mu$, $n_\sigma-1$, $r_\mu$ and $r_\sigma$; 0 is
    no noise. Input (N, C) or (N, C, H, W), training mode only. Source: Santurkar et al. 2018, appendix A.2.1,
    Algorithm 1.
    """

    n_mu, n_sigma, r_mu, r_sigma = 0.5, 1.25, 0.1, 0.1

    def disturb(self, a: Tensor) -> Tensor:
        """The law above, in training mode."""
        k = self.strength
        # The distribution of this step, one for each channel ...
        mu = self.per_channel(a, -k * self.n_mu, k * self.n_mu)
        sigma = self.per_channel(a, 1, 1 + k * (self.n_sigma - 1))
        # ... and from it a shift and a scale for each value.
        m = self.per_value(a, "uniform_", -k * self.r_mu, k * self.r_mu).add_(mu)
        s = self.per_value(a, "normal_", 0, k * self.r_sigma).add_(sigma)
        return torch.addcmul(m, s, a)


class StationaryNoise(_Noise):
    r"""Add independent noise from one fixed distribution: $a\leftarrow a+\varepsilon$,
    $\varepsilon\sim N(0.1,\,0.5)$ (mean, standard deviation).

    Every step draws new values, always from the same law, so each channel's mean and variance stay the same
    over time up to sampling. `strength` scales mean and standard deviation. Any shape, training mode only.
    Source: the second, stronger noise of the live-training blog post's code.
    """

    mean, std = 0.1, 0.5

    def disturb(self, a: Tensor) -> Tensor:
        """The law above, in training mode."""
        return a + self.per_value(a, "normal_", self.strength * self.mean, self.strength * self.std)
