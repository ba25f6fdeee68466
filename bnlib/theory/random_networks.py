"""Small random networks, to count how often a statement about one batch normalization layer holds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlib import norms
from bnlib.theory.gradients import Loss

Activation = Callable[[Tensor], Tensor]

SMOOTH: tuple[Activation, ...] = (torch.tanh, torch.sigmoid, F.softplus)
ANY: tuple[Activation, ...] = (torch.relu, torch.tanh, F.softplus)


class RandomNetwork(NamedTuple):
    """A linear layer, the layer's place, and the rest: `y = x @ weight.T`, then `loss(z)`.

    Shapes: `x` (m, d), `weight` (C, d), `y` (m, C), `gamma` and `beta` (C,); `loss` maps (m, C) to a scalar.
    """

    x: Tensor
    weight: Tensor
    y: Tensor
    gamma: Tensor
    beta: Tensor
    loss: Loss


def random_network(seed: int, smooth: bool = False) -> RandomNetwork:
    r"""The random network number `seed`, in float64; torch's global random state is not touched.

    Integers are uniform, the rest is standard normal unless said.  Batch size m in 4..32, inputs d in 2..10,
    units C in 2..8.  x is normal, times $e^{N(0,1)}$, one factor for all of it, plus an offset per input.
    Weights $N(0,1/\text{fan in})$; $|\gamma|\sim U(0.3,2)$ with a random sign, $\beta$ normal.  What follows:
    one to three times an activation and a linear layer with a bias and 2..8 outputs, in a third of the
    networks with a batch norm (eps 1e-5) after the first of them.  Then, at even odds, half the squared
    distance to a normal target, summed, or the mean cross-entropy with uniform classes.  The activation, one
    for all of the network, is tanh, sigmoid or softplus if `smooth`, else ReLU, tanh or softplus.
    """
    random = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    def linear(inputs: int, outputs: int) -> Tensor:
        return normal(outputs, inputs) / inputs**0.5

    m, d, units = integer(4, 32), integer(2, 10), integer(2, 8)
    x = normal(m, d) * normal().exp() + normal(d)
    weight = linear(d, units)
    size = 0.3 + 1.7 * torch.rand(units, generator=random, dtype=torch.float64)
    gamma, beta = size * normal(units).sign(), normal(units)
    activations = SMOOTH if smooth else ANY
    activation = activations[integer(0, len(activations) - 1)]
    depth, renormalised, squared = integer(1, 3), integer(0, 2) == 0, integer(0, 1) == 0
    widths = [units, *(integer(2, 8) for _ in range(depth))]
    rest = [(linear(a, b), normal(b)) for a, b in pairwise(widths)]
    target, classes = normal(m, widths[-1]), torch.randint(widths[-1], (m,), generator=random)

    def loss(z: Tensor) -> Tensor:
        for position, (matrix, bias) in enumerate(rest):
            z = F.linear(activation(z), matrix, bias)
            if position == 0 and renormalised:
                z = norms.batch_norm(z).y
        return (z - target).square().sum() / 2 if squared else F.cross_entropy(z, classes)

    return RandomNetwork(x, weight, x @ weight.T, gamma, beta, loss)
