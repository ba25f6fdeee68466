"""What is measured on a network: one function per quantity.  A probe leaves no trace.

Every probe takes a `training.State` and yields (layer, metric, value).  It restores whatever it touches:
parameters, gradients, buffers, mode and random state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from bnlib.training import State


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode (BN uses its running statistics), every module's mode restored
    afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def evaluation(state: State, chunk: int = 2000) -> Iterator[tuple[str, str, float]]:
    """Loss (nats, mean cross-entropy) and accuracy (share in 0..1) on the whole test set, BN in evaluation
    mode."""
    x, y = state.dataset.x_test, state.dataset.y_test
    loss, right = 0.0, 0
    with evaluating(state.model):
        for part, target in zip(x.split(chunk), y.split(chunk), strict=True):
            logits = state.model(part)
            loss += F.cross_entropy(logits, target, reduction="sum").item()
            right += int((logits.argmax(1) == target).sum())
    accuracy = right / len(y)
    yield "", "test_accuracy", accuracy
    # A network about to diverge can have an infinite test loss; a record holds finite numbers only.
    if torch.isfinite(torch.tensor(loss)):
        yield "", "test_loss", loss / len(y)
