r"""The surface between networks: train from one start with several optimisers, then cut slices through it.

For every optimiser the network starts from the same weights and sees the same batches.  Afterwards the loss
is taken on one fixed batch of training images, on lines and planes through the start and the ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn

from bnlib import data, models, theory, training
from bnlib.probes import evaluation, slices
from bnlib.probes.landscape import Vector, gradient_here
from bnlib.probes.state import State
from bnlib.probes.tracing import evaluating, no_trace
from bnlib.records import Row

START = "start"
Weights = dict[str, Tensor]  # a copy of a `state_dict()`


def run(
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: str = "cpu",
    tick: Callable[[int], None] = lambda steps: None,
) -> list[Row]:
    """Train with each optimiser and measure the surface around and between the solutions.

    Settings: those of `training.run` that make the network and the data, and `batch_size`; `optimisers`, name
    -> arguments of `training.fit` (`lr`, `momentum`, `optimiser`); `steps`, in all, shared equally among the
    optimisers; and what `slices_between` takes.

    Rows, with the optimiser's name in brackets: `train_loss[sgd]` (nats, mean over 10 steps) and
    `diverged_at[sgd]`, as from `training.fit`; `end_loss[sgd]`, `end_accuracy[sgd]` on the fixed batch, BN in
    training mode; `end_test_accuracy[sgd]` on the whole test set, BN in evaluation mode; for each layer those
    of `weights_moved` and `input_spread`, the latter also at step 0, without brackets; and the slices.  A
    network that has diverged has no more than its `diverged_at`.
    """
    rest = dict(settings)
    optimisers = rest.pop("optimisers")
    each = rest.pop("steps") // len(optimisers)
    cuts = {name: rest.pop(name) for name in ("line", "plane", "lengths", "directions", "random_plane")}
    size = rest.pop("size")
    model, dataset, rest = training.prepare(rest, seed=seed, device=device)
    x, y = data.probe_batch(dataset, size)
    state = State(each, model, x, y, 1.0, dataset)
    places = {START: _copy(model)}
    rows: list[Row] = [(0, layer, "input_spread", value) for layer, value in input_spread(model, x).items()]
    for name, arguments in optimisers.items():
        model.load_state_dict(places[START])
        measured = training.fit(
            model, dataset, seed=seed, steps=each, loss_every=10, tick=tick, **arguments, **rest
        )
        rows += [(step, layer, f"{metric}[{name}]", value) for step, layer, metric, value in measured]
        if any(metric == "diverged_at" for _, _, metric, _ in measured):
            continue
        places[name] = _copy(model)
        found = [*_end(state), *weights_moved(model, places[START])]
        found += [(layer, "input_spread", value) for layer, value in input_spread(model, x).items()]
        rows += [(each, layer, f"{metric}[{name}]", value) for layer, metric, value in found]
    cut = slices_between(state, places, **cuts)
    return rows + [(each, "", metric, value) for metric, value in cut if math.isfinite(value)]


def slices_between(
    state: State,
    places: Mapping[str, Weights],
    line: Sequence[float],
    plane: Sequence[float],
    lengths: Sequence[float],
    directions: int,
    random_plane: Sequence[float],
) -> Iterator[tuple[str, float]]:
    r"""Losses on the state's batch, on lines and planes through `places`: the start, then the solutions.

    - `line[A-B]@s` for s in `line`: at A + s (B - A), BN in training mode, for every pair of places;
      `evaluation_line[A-B]@s`: the same with BN in evaluation mode, with running statistics on the line too;
    - `plane@s,t` for s, t in `plane`: at A + s (B - A) + t (C - A), A, B, C the first three solutions;
    - `random[k]@e` for e in `lengths`, k < `directions`: from the first solution along the filter-normalised
      direction of seed k; `random_plane@s,t` for s, t in `random_plane` along those of 0 and 1;
    - `gradient[-]@e`: from the first solution along the gradient of the convolutions' and linear layers'
      weights, downhill for e > 0, scaled to the length of direction 0.

    All but `evaluation_line` are in training mode: BN takes the moments anew at each point.  Without a
    solution there is nothing; without three, no plane.  Source: Im, Tao and Branson 2016; Li et al. 2018.
    """
    model, solutions = state.model, [name for name in places if name != START]
    for one, other in combinations(places, 2):
        model.load_state_dict(places[one])
        direction = slices.direction_to(model, places[other])
        for s, loss in zip(line, slices.line(state, direction, line).tolist(), strict=True):
            yield f"line[{one}-{other}]@{s:g}", loss
        for s in line:
            yield (
                f"evaluation_line[{one}-{other}]@{s:g}",
                _evaluation_loss(state, places[one], places[other], s),
            )
    if len(solutions) >= 3 and plane:
        model.load_state_dict(places[solutions[0]])
        first, second = (slices.direction_to(model, places[name]) for name in solutions[1:3])
        yield from _grid("plane", slices.plane(state, first, second, plane, plane), plane)
    if not solutions:
        return
    model.load_state_dict(places[solutions[0]])
    drawn = [slices.filter_normalised(model, k) for k in range(max(directions, 2))]
    lines = {f"random[{k}]": direction for k, direction in enumerate(drawn[:directions])}
    for name, direction in (lines | {"gradient[-]": _downhill(state, drawn[0])}).items():
        for e, loss in zip(lengths, slices.line(state, direction, lengths).tolist(), strict=True):
            yield f"{name}@{e:g}", loss
    if random_plane:
        surface = slices.plane(state, drawn[0], drawn[1], random_plane, random_plane)
        yield from _grid("random_plane", surface, random_plane)


def weights_moved(model: nn.Module, start: Weights) -> Iterator[tuple[str, str, float]]:
    r"""How far each layer's weights have come from `start`, and Lemma 4.5's distances.

    Rows: `start_norm` $\|W_0\|$, `end_norm` $\|W_T\|$, `moved` $\|W_T-W_0\|$, `ray` the distance from $W_0$
    to the ray through $W_T$, `multiple` where on it, all of one layer's weights; see `theory.lemma_4_5`.
    """
    for layer, module in models.layers(model):
        then, now = start[f"{layer}.weight"].double(), module.weight.detach().double()
        lemma = theory.lemma_4_5(then, now)
        values = {
            "start_norm": then.norm(),
            "end_norm": now.norm(),
            "moved": lemma.vanilla.sqrt(),
            "ray": lemma.lhs.sqrt(),
            "multiple": lemma.multiple,
        }
        yield from ((layer, metric, value.item()) for metric, value in values.items())


@torch.no_grad()
def input_spread(model: nn.Module, x: Tensor) -> dict[str, float]:
    r"""How uneven the inputs of each layer are: the largest eigenvalue of their second moments over the mean.

    The inputs of a layer are rows a of C channels, one row for each sample (and pixel); the eigenvalues are
    those of $E[aa^\top]$, the curvature that a least squares problem on these inputs would have.  1 is a
    round bowl; C says that all channels move together, as a large common mean makes them.  BN in training
    mode.  Layers whose inputs are all zero are left out.
    """
    spread: dict[str, float] = {}

    def look(layer: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].movedim(1, -1).flatten(0, -2).double()
            eigenvalues = torch.linalg.eigvalsh(rows.T @ rows / len(rows))
            if eigenvalues[-1] > 0:
                spread[layer] = (eigenvalues[-1] / eigenvalues.mean()).item()

        return hook

    hooks = [module.register_forward_pre_hook(look(layer)) for layer, module in models.layers(model)]
    try:
        with no_trace(model):
            model(x)
    finally:
        for handle in hooks:
            handle.remove()
    return spread


def _end(state: State) -> Iterator[tuple[str, str, float]]:
    """Loss and accuracy where training has ended."""
    with no_trace(state.model) as model, torch.no_grad():
        logits = model(state.x)
        yield "", "end_loss", state.loss(logits, state.y).item()
        yield "", "end_accuracy", (logits.argmax(1) == state.y).double().mean().item()
    yield "", "end_test_accuracy", dict(row[1:] for row in evaluation(state))["test_accuracy"]


def _downhill(state: State, like: Vector) -> Vector:
    """Minus the gradient of the parameters that `like` names, of the same length as `like` in all."""
    gradient = gradient_here(state, list(like)).gradient

    def length(vector: Vector) -> float:
        return math.sqrt(sum(part.double().square().sum().item() for part in vector.values()))

    scale = -length(like) / (length(gradient) or 1.0)
    return {name: scale * part for name, part in gradient.items()}


@torch.no_grad()
def _evaluation_loss(state: State, one: Weights, other: Weights, s: float) -> float:
    between = {
        name: torch.lerp(value, other[name], s) if value.is_floating_point() else value
        for name, value in one.items()
    }
    state.model.load_state_dict(between)
    with evaluating(state.model) as model:
        return state.loss(model(state.x), state.y).item()


def _grid(name: str, losses: Tensor, positions: Sequence[float]) -> Iterator[tuple[str, float]]:
    for (s, t), loss in zip(product(positions, repeat=2), losses.flatten().tolist(), strict=True):
        yield f"{name}@{s:g},{t:g}", loss


def _copy(model: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
