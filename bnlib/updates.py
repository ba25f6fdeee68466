"""How a training step is computed: layout, precision, one network or several at once, eagerly or replayed.

Whatever is chosen, the same step is taken: the gradient of the loss on a batch, and the optimiser's update.
The default computes it in the plainest way, and is what the book's records are made with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bnlib.alternative_norms import BatchRenorm
from bnlib.data import Dataset
from bnlib.lp_norms import LpNorm
from bnlib.noise import NonStationaryNoise, StationaryNoise

if TYPE_CHECKING:
    from bnlib.probes.state import State

#: name -> order of an image's or a kernel's values in memory
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
#: of the training step: float32 throughout; products of float32 matrices with 10 bits of fraction (TF32, CUDA
#: only); or with bfloat16 matrices (autocast).  Parameters, updates and probes are float32 in all of them.
PRECISIONS = ("float32", "tf32", "bfloat16")

#: how far bfloat16 may move the gradient of a quarter-width VGG-A without and with batch norm, as a share of
#: its length; and the losses of its first 20 steps on average, as a share of the first
BFLOAT16_GRADIENT, BFLOAT16_LOSS = {"none": 0.2, "batch": 0.6}, 0.1

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class How:
    """How runs are computed.  The default is the plainest way; the others agree with it up to rounding.

    `layout` and `precision` of the training step, see `LAYOUTS` and `PRECISIONS`; `threads` of a process;
    `together`, how many seeds are trained at once; `graph`, whether the step is captured in a CUDA graph and
    replayed; `batched`, whether a probe passes through all points of a walk at once.  The last four are done
    where settings allow it.  Raises ValueError for anything else.
    """

    layout: str = "channels_last"
    threads: int = 1
    precision: str = "float32"
    together: int = 1
    graph: bool = False
    batched: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("layout", self.layout, tuple(LAYOUTS)),
            ("precision", self.precision, PRECISIONS),
            ("graph", self.graph, (True, False)),
            ("batched", self.batched, (True, False)),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(map(str, known))}, not {value!r}.")
        for name, value in (("threads", self.threads), ("together", self.together)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a whole number, at least 1, not {value!r}.")


PLAIN = How()


def allowed(how: How, model: nn.Module) -> How:
    """What of `how` suits the network: neither a replayed graph nor vmap can draw noise or decide by numbers
    counted on the CPU, and some norms keep their statistics in their input's dtype."""
    kinds = {type(module) for module in model.modules()}
    alike = not kinds & {NonStationaryNoise, StationaryNoise, BatchRenorm}
    return replace(
        how,
        graph=how.graph and alike,
        batched=how.batched and alike and LpNorm not in kinds,
        precision="float32" if kinds & {LpNorm, BatchRenorm} else how.precision,
    )


# -- precision -------------------------------------------------------------------------------------------


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """What a GPU multiplies float32 matrices in while the context is open: "float32" or "tf32".

    torch's own default is TF32 in convolutions, which a probe that compares gradients would see.
    """
    if device.type != "cuda":
        yield
        return
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [flag.fp32_precision for flag in flags]
    try:
        for flag in flags:
            flag.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.fp32_precision = value


def loss_in(precision: str, network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """The loss of the network's output, whose matrices are multiplied in `precision`; the loss itself is
    computed in the images' own."""
    autocast = precision == "bfloat16"
    with torch.autocast(x.device.type, torch.bfloat16) if autocast else nullcontext():
        output = network(x)
    return loss(output.to(x.dtype), y)


# -- one network, or several -----------------------------------------------------------------------------


class Alone:
    """The update of one network."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        loss: Loss,
        optimiser: torch.optim.Optimizer,
        how: How = PLAIN,
        hold: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.dataset, self.loss, self.optimiser = model, dataset, loss, optimiser
        self.how, self.hold = how, hold
        self.step = Replayed(self.computed) if how.graph else self.computed

    def __call__(self, indices: Tensor, states: Sequence[State] = ()) -> Tensor:
        """Take a step on the batch of these `indices`, (1, batch); returns its loss before the step, (1,).

        `states` are what probes have just seen: where one has made the pass that the step needs, it is used.
        """
        made = states[0].made if states and self.how.precision == "float32" else None
        if made is None:
            return self.step(indices)
        made.leave(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.grad = made.gradient[name]
        self._update()
        return made.loss[None]

    def computed(self, indices: Tensor) -> Tensor:
        """The step, computed: pass forward, pass backward, update."""
        x, y = batch(self.dataset, indices[0], self.how)
        self.optimiser.zero_grad(set_to_none=True)
        with products(self.how.precision, x.device):
            value = loss_in(self.how.precision, self.model, x, y, self.loss)
            value.backward()
        self._update()
        return value.detach()[None]

    def _update(self) -> None:
        self.optimiser.step()
        self.hold()


class Stacked:
    """The update of K networks of one architecture: the same step for all, each on a batch of its own.

    `parameters` and `buffers` hold the networks' tensors side by side, (K, ...); afterwards those of each
    network are views of them, so that whatever looks at or moves one network does so here too.  The gradient
    is that of the sum of the losses: no network is in another's.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        dataset: Dataset,
        loss: Loss,
        optimiser: Callable[[list[Tensor]], torch.optim.Optimizer],
        how: How = PLAIN,
    ) -> None:
        self.model, self.dataset, self.loss, self.how = models[0], dataset, loss, how
        self.parameters = _side_by_side([dict(model.named_parameters()) for model in models])
        self.buffers = _side_by_side([dict(model.named_buffers()) for model in models])
        for stack in self.parameters.values():
            stack.requires_grad_()
        self.optimiser = optimiser(list(self.parameters.values()))
        self.step = Replayed(self.computed) if how.graph else self.computed

    def __call__(self, indices: Tensor, states: Sequence[State] = ()) -> Tensor:
        """Take a step on the batches of these `indices`, (K, batch); returns the losses before it, (K,)."""
        return self.step(indices)

    def computed(self, indices: Tensor) -> Tensor:
        """The step, computed: pass forward, pass backward, update."""
        x, y = batch(self.dataset, indices, self.how)
        self.optimiser.zero_grad(set_to_none=True)
        with products(self.how.precision, x.device):
            values = losses(self.model, self.parameters, self.buffers, x, y, self.loss, self.how.precision)
            values.sum().backward()
        self.optimiser.step()
        return values.detach()


def losses(
    model: nn.Module,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    loss: Loss,
    precision: str = "float32",
    one_batch: bool = False,
) -> Tensor:
    """The losses of K networks like `model`, (K,), in one pass: parameters, buffers, x and y are (K, ...),
    with `one_batch` x and y are (...), the same for all.

    In training mode the buffers move, each network's its own.
    """

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        def network(x: Tensor) -> Tensor:
            return functional_call(model, (parameters, buffers), (x,))

        return loss_in(precision, network, x, y, loss)

    images = None if one_batch else 0
    return vmap(one, (0, 0, images, images))(parameters, buffers, x, y)


def batch(dataset: Dataset, indices: Tensor, how: How = PLAIN) -> tuple[Tensor, Tensor]:
    """Images and labels of these `indices`, of any shape, gathered on the device that they lie on."""
    x, y = dataset.x_train[indices], dataset.y_train[indices]
    # A convolution follows the layout of its images as well as that of its weights.
    return (x.contiguous() if how.layout == "contiguous" else x), y


def _side_by_side(tensors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One tensor (K, ...) for each name, of which the given ones become views."""
    stacks = {}
    for name, first in tensors[0].items():
        parts = [named[name].detach() for named in tensors]
        if first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last):
            stacks[name] = torch.stack([part.movedim(1, -1) for part in parts]).movedim(-1, 2)
        else:
            stacks[name] = torch.stack(parts)
        for named, view in zip(tensors, stacks[name].unbind(), strict=True):
            named[name].data = view
    return stacks


# -- CUDA graphs -----------------------------------------------------------------------------------------


class GraphWarning(RuntimeWarning):
    """A step could not be captured; it is computed launch by launch."""


class Replayed:
    """A step that is captured in a CUDA graph once and then replayed: one launch in place of some hundred.

    A graph reads and writes fixed places in memory.  Parameters, buffers and momentum never move; the indices
    of the batch are copied to a place of their own, and the images are gathered within the graph.  Before a
    capture torch asks for a few runs on another stream, in which libraries and the optimiser allocate what
    they need: these are the first real steps.  Sources: "CUDA Graphs" in torch's notes on CUDA semantics.
    """

    FIRST = 3  # steps before the capture
    refused = False  # whether a capture has failed in this process

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        self.step, self.taken, self.indices = step, 0, None
        self.graph, self.value = None, None

    def __call__(self, indices: Tensor) -> Tensor:
        if Replayed.refused:
            return self.step(indices)
        if self.indices is None:
            self.indices = torch.empty_like(indices)
        self.indices.copy_(indices)
        if self.taken < self.FIRST:
            self.taken += 1
            return self.aside()
        if self.graph is None:
            try:
                self.graph, self.value = self.captured()
            except torch.OutOfMemoryError:
                raise  # for who has other ways to need less
            except RuntimeError as error:
                Replayed.refused = True
                problem = "The training step could not be captured and goes on without a CUDA graph"
                warnings.warn(f"{problem}: {' '.join(str(error).split())}", GraphWarning, stacklevel=2)
                return self.step(indices)
        self.graph.replay()
        return self.value.clone()

    def aside(self) -> Tensor:
        """A step on another stream than the current one."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            value = self.step(self.indices)
        current.wait_stream(stream)
        return value

    def captured(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph, and where it leaves the loss.  Nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value = self.step(self.indices)
        return graph, value
