r"""What a normalization does not see: a layer with its norm, changed, and how far its output moves.

The layer is linear on vectors, or a 3x3 convolution without padding on images, with a bias that is 0.  Its
output z after the norm is compared with z' after a change, $\max|z'-z|/\max|z|$, in float64: about 1e-15
where the norm is invariant, of order 1 where it is not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bnlib import data, models
from bnlib.alternative_norms import BatchRenorm, GroupNorm
from bnlib.records import Row

CHANNELS = 16
FACTOR = 3.0
SEEN = 5  # batches from which the running statistics come

Change = Callable[[nn.Sequential, Tensor], Tensor]


def run(
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: str = "cpu",
    tick: Callable[[int], None] = lambda steps: None,
) -> list[Row]:
    """One normalization, all changes, on a batch of `batch_size` images of `dataset`; on the CPU.

    Settings: `norm`, see `layer_with_norm`; `eps`, a list.  Rows: layer "vectors" or "images", metric
    `CHANGE@EPS` for each change of `measure`.  Instance norm has no rows for vectors.
    """
    dataset = data.load(settings["dataset"], dtype=torch.float64)
    batches = data.batches(len(dataset.x_train), settings["batch_size"], seed)
    before = [dataset.x_train[next(batches)] for _ in range(SEEN)]
    x, others = (dataset.x_train[next(batches)] for _ in range(2))
    rows = []
    for kind in ("vectors", "images"):
        if settings["norm"] == "instance" and kind == "vectors":
            continue
        for eps in settings["eps"]:
            net = layer_with_norm(settings["norm"], kind, x.shape[1:], seed, eps, before)
            rows += [(0, kind, f"{name}@{eps:g}", value) for name, value in measure(net, x, others).items()]
    tick(1)
    return rows


def layer_with_norm(
    norm: str, kind: str, shape: torch.Size, seed: int, eps: float = 0.0, before: list[Tensor] = ()
) -> nn.Sequential:
    """A random layer for inputs of `shape` with 16 outputs, and its norm with gammas and betas that differ.

    `norm` is "none", "weight" or a name in `models.NORMS`; "batch_eval" is batch norm in evaluation mode,
    "batch_renorm" has no limits on r and d, as late in training, and "group" has groups of four: of two
    values nothing is left but which is the larger.  Running statistics come from the inputs `before`.  All
    but "batch_eval" are in training mode.  float64.
    """
    if kind == "vectors":
        layer = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), CHANNELS))
    else:
        layer = nn.Sequential(nn.Conv2d(shape[0], CHANNELS, 3))
    made = nn.Identity()
    if norm == "weight":
        models.OF_WEIGHTS[norm](layer[-1])
    elif norm == "batch_renorm":
        made = BatchRenorm(CHANNELS, limits=(math.inf, math.inf))
    elif norm == "group":
        made = GroupNorm(CHANNELS, groups=4)
    elif norm != "none":
        made = models.NORMS["batch" if norm == "batch_eval" else norm](CHANNELS)
    net = models.initialise(nn.Sequential(layer, made), "he_normal", seed=seed).double()
    with torch.no_grad():
        for parameter, low, high in zip(made.parameters(), (0.5, -1.0), (2.0, 1.0), strict=False):
            parameter.copy_(torch.linspace(low, high, CHANNELS))
        made.eps = eps
        for images in before:
            net(images)
    return net.eval() if norm == "batch_eval" else net


@torch.no_grad()
def measure(net: nn.Sequential, x: Tensor, others: Tensor) -> dict[str, float]:
    r"""How far each change moves the output, $\max|z'-z|/\max|z|$; `net` is left as it is.

    With factor 3 or a shift by 1, if nothing else is said:

    neuron_scale   the first neuron's incoming weights scaled
    layer_scale    all weights of the layer scaled; `layer_shrink`: divided by 100
    layer_shift    the same vector of incoming weights added to every neuron's
    neuron_bias    the first neuron's bias shifted; `layer_bias`: those of all by the same
    data_scale     all inputs scaled; `data_shift`: the same input added to all (on images: the same number)
    sample_scale   the first input scaled; `sample_shift`: shifted as the whole data above
    neighbours     all inputs of the batch replaced by `others` but the first, whose output is looked at
    order          the batch reversed; the outputs, reversed back, are looked at
    mode           training mode changed to evaluation mode, or the other way

    Of weight norm, "weights" are the directions v that are trained.
    """
    reference = copy.deepcopy(net)(x)
    size = reference.abs().max()

    def moved(change: Change, rows: slice = slice(None), order: int = 1) -> float:
        changed = copy.deepcopy(net)
        z = changed(change(changed, x.clone()))
        z = z.flip(0) if order < 0 else z
        return ((z - reference)[rows].abs().max() / size).item()

    found = {name: moved(change) for name, change in _CHANGES.items()}
    found["neighbours"] = moved(lambda _, inputs: torch.cat([inputs[:1], others[1:]]), slice(1))
    found["order"] = moved(lambda _, inputs: inputs.flip(0), order=-1)
    return found


def _weight(net: nn.Sequential) -> Tensor:
    layer = net[0][-1]
    if parametrize.is_parametrized(layer, "weight"):
        return layer.parametrizations.weight.original1
    return layer.weight


def _of_weights(act: Callable[[Tensor], object]) -> Change:
    def change(net: nn.Sequential, x: Tensor) -> Tensor:
        act(_weight(net))
        return x

    return change


def _of_bias(act: Callable[[Tensor], object]) -> Change:
    def change(net: nn.Sequential, x: Tensor) -> Tensor:
        act(net[0][-1].bias)
        return x

    return change


def _of_inputs(act: Callable[[Tensor], object]) -> Change:
    def change(net: nn.Sequential, x: Tensor) -> Tensor:
        act(x)
        return x

    return change


def _other_mode(net: nn.Sequential, x: Tensor) -> Tensor:
    net.train(not net[1].training)
    return x


_CHANGES: dict[str, Change] = {
    "neuron_scale": _of_weights(lambda w: w[0].mul_(FACTOR)),
    "layer_scale": _of_weights(lambda w: w.mul_(FACTOR)),
    "layer_shrink": _of_weights(lambda w: w.div_(100)),
    "layer_shift": _of_weights(lambda w: w.add_(w[:1].clone())),
    "neuron_bias": _of_bias(lambda b: b[0].add_(1)),
    "layer_bias": _of_bias(lambda b: b.add_(1)),
    "data_scale": _of_inputs(lambda x: x.mul_(FACTOR)),
    "data_shift": _of_inputs(lambda x: x.add_(1)),
    "sample_scale": _of_inputs(lambda x: x[0].mul_(FACTOR)),
    "sample_shift": _of_inputs(lambda x: x[0].add_(1)),
    "mode": _other_mode,
}
