"""What a probe is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlib import data
from bnlib.probes.tracing import no_trace, noise_states, restore_noise


class Pass(NamedTuple):
    """One pass forward and backward: the loss, its gradient by parameter name, and what the pass leaves in
    the model, running statistics and the places in the streams of noise.

    The gradient of a parameter that is not trained, or on which the loss does not depend, is None.
    """

    loss: Tensor
    gradient: dict[str, Tensor | None]
    buffers: list[Tensor]
    noise: list[tuple[torch.Generator, Tensor]]

    def leave(self, model: nn.Module) -> None:
        """Bring the model to where the pass left it."""
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), self.buffers, strict=True):
                buffer.copy_(value)
        restore_noise(model, self.noise)


@dataclass(frozen=True)
class State:
    """What a probe sees: the network after `step` updates, the batch that update `step` is about to use, and
    the loss.

    `lr` is the learning rate; `hidden_lr`, where it differs, that of the hidden weights in the coming update,
    and `hidden_decay` their weight decay (see `bnlib.training.fit`).  `batched`: go through all points of a
    walk at once.  `shared`: the state is of one moment, so its pass may be kept (see `here`); a state made
    with `dataclasses.replace` makes its own.
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
    batched: bool = False
    shared: bool = False

    @property
    def here(self) -> Pass:
        """The pass of the coming update, BN in training mode.  Leaves no trace.

        Of a `shared` state it is made when a probe first asks for it, and then used by all that ask and by
        the update itself; so the model must be at the state, untouched, when it is asked for.
        """
        return self._shared_pass if self.shared else self._pass()

    @property
    def made(self) -> Pass | None:
        """The shared pass, if a probe has asked for it."""
        return self.__dict__.get("_shared_pass")

    @cached_property
    def _shared_pass(self) -> Pass:
        return self._pass()

    def _pass(self) -> Pass:
        with no_trace(self.model) as model, torch.enable_grad():
            loss = self.loss(model(self.x), self.y)
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            gradient = dict.fromkeys(dict(model.named_parameters())) | dict(zip(trained, found, strict=True))
            left = [buffer.clone() for buffer in model.buffers()]
            return Pass(loss.detach(), gradient, left, noise_states(model))
