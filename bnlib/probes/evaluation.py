"""How well the network does: on the test set, and in training mode."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bnlib import data
from bnlib.probes.state import State
from bnlib.probes.tracing import evaluating, no_trace

#: images at a time: the activations of many do not fit into a processor's cache, of few do not fill a GPU
CHUNK = {"cpu": 250, "cuda": 2000}


@torch.no_grad()
def evaluation(state: State, chunk: int | None = None) -> Iterator[tuple[str, str, float]]:
    """Loss (nats, mean cross-entropy) and accuracy (share in 0..1) on the whole test set, BN in evaluation
    mode; `chunk` images at a time (None: as many as `CHUNK` says)."""
    x, y = state.dataset.x_test, state.dataset.y_test
    chunk = chunk or CHUNK["cuda" if x.is_cuda else "cpu"]
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


@torch.no_grad()
def training_mode_accuracy(state: State, size: int = 512) -> Iterator[tuple[str, str, float]]:
    """Accuracy (share in 0..1) with BN in training mode: it uses the statistics of these `size` images, all
    in one batch.

    Rows: `train_accuracy` on a fixed batch of training images, with the noise that the model has, if any;
    `test_accuracy_noisy` on the first `size` test images, with the noise; `test_accuracy_batch` on the same
    images, with the noise off.
    """
    test, labels = state.dataset.x_test[:size], state.dataset.y_test[:size]
    with no_trace(state.model) as model:
        noisy = [module for module in model.modules() if hasattr(module, "strength")]
        strengths = [module.strength for module in noisy]

        def accuracy(x: torch.Tensor, y: torch.Tensor) -> float:
            return (model(x).argmax(1) == y).double().mean().item()

        yield "", "train_accuracy", accuracy(*data.probe_batch(state.dataset, size))
        yield "", "test_accuracy_noisy", accuracy(test, labels)
        try:
            for module in noisy:
                module.strength = 0.0
            yield "", "test_accuracy_batch", accuracy(test, labels)
        finally:
            for module, strength in zip(noisy, strengths, strict=True):
                module.strength = strength
