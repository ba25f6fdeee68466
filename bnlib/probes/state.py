"""What a probe is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bnlib import data


@dataclass(frozen=True)
class State:
    """What a probe sees: the network after `step` updates, the batch that update `step` is about to use, and
    the loss.

    `lr` is the learning rate; `hidden_lr`, where it differs, that of the hidden weights in the coming update,
    and `hidden_decay` their weight decay (see `bnlib.training.fit`).
    """

    step: int
    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    lr: float
    dataset: data.Dataset
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy
    hidden_lr: float | None = None
    hidden_decay: float = 0.0
