"""How a probe leaves no trace: what it touches is put back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


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


@contextmanager
def no_trace(model: nn.Module) -> Iterator[nn.Module]:
    """The model in training mode (BN uses the batch), to do anything with; afterwards every parameter,
    gradient, buffer, mode and random state is as before, bit for bit, also after an error.

    Random states: torch's global ones and those of the model's own noise.
    """
    values = [(tensor, tensor.detach().clone()) for tensor in chain(model.parameters(), model.buffers())]
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    noise, here = noise_states(model), torch.get_rng_state()
    there = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    model.train()
    try:
        yield model
    finally:
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
            for parameter, gradient, value in gradients:
                parameter.grad = gradient if value is None else gradient.copy_(value)
        for module, mode in modes:
            module.training = mode
        restore_noise(model, noise)
        torch.set_rng_state(here)
        if there is not None:
            torch.cuda.set_rng_state_all(there)


def noise_states(model: nn.Module) -> list[tuple[torch.Generator, Tensor]]:
    """The state of every random stream that the model's own modules hold."""
    streams = [module.generator for module in model.modules() if hasattr(module, "generator")]
    return [(stream, stream.get_state()) for stream in streams]


def restore_noise(model: nn.Module, states: list[tuple[torch.Generator, Tensor]]) -> None:
    """Set the streams back, so that the next pass draws the noise that the pass after `noise_states` drew."""
    noisy = [module for module in model.modules() if hasattr(module, "generator")]
    for module, (stream, state) in zip(noisy, states, strict=True):
        module.generator = stream.set_state(state)
