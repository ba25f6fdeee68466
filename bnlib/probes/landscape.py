r"""The loss landscape along the gradient: section 3.2 and appendix A.2.2 of Santurkar et al. (2018).

At $W_t$, with the batch that training is about to use and $g=\nabla L(W_t)$, walk to $W_t-\alpha g$ for
several step sizes and look at the loss and the gradient $g'$ there, on the same batch:

- loss variation: the range of $L(W_t-\alpha g)$ over the step sizes;
- gradient predictiveness: the range of $\|g-g'\|_2$, the norm of the *difference*, so smaller is better;
- effective beta-smoothness: $\max_\alpha\|g-g'\|_2/(\alpha\|g\|_2)$.

BN is in training mode: it takes the moments of the batch anew at every point, and the gradient goes through
them.  Noise, if the model has any, is the same at all points.  Nothing is trained, and no trace is left.

Two traps.  ReLU and max pooling have kinks, at which the gradient jumps.  In a wide network even a short walk
crosses some, so $\|g-g'\|$ falls more slowly than $\alpha$, and beta grows as the shortest step gets shorter.
And where the walk ends in a flat place, $\|g-g'\|$ is about $\|g\|$ and beta about $1/\alpha$, whatever the
curvature was.  So compare beta only between networks with the same step sizes, and look at it step by step
(`Scan.betas`).

The last part holds common mistakes, to be shown beside the right measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlib import data, models
from bnlib.norms import BatchNorm
from bnlib.probes.activations import activations
from bnlib.probes.state import State
from bnlib.probes.tracing import no_trace, noise_states, restore_noise
from bnlib.updates import losses

Vector = Mapping[str, Tensor]  # parameter's name -> values of its shape


# -- walking ---------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """A place in the landscape: the loss there, and its gradient by parameter name."""

    loss: float
    gradient: Vector


@contextmanager
def moved(model: nn.Module, *moves: tuple[float, Vector]) -> Iterator[nn.Module]:
    r"""The model at $W+\sum_k t_kd_k$ for `moves` $(t_k,d_k)$; afterwards at W again, bit for bit.

    A direction names the parameters that move; the others stay.
    """
    parameters = {name: model.get_parameter(name) for _, direction in moves for name in direction}
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for t, direction in moves:
                for name, change in direction.items():
                    parameters[name].add_(change, alpha=t)
        yield model
    finally:
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)


def start_of(state: State, names: Sequence[str] | None = None) -> Point:
    """W_t itself, with the gradient of the parameters `names` (None: all): the pass that the probes of a
    state and its update share."""
    here = state.here
    return Point(here.loss.item(), {name: here.gradient[name] for name in names or here.gradient})


def gradient_here(state: State, names: Sequence[str] | None = None) -> Point:
    """Loss and gradient on the state's batch where the model is now, BN in training mode, for the parameters
    `names` (None: all)."""
    with no_trace(state.model) as model:
        names = [name for name, _ in model.named_parameters()] if names is None else list(names)
        loss = state.loss(model(state.x), state.y)
        gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
        return Point(loss.item(), dict(zip(names, gradients, strict=True)))


def walk(state: State, direction: Vector, steps: Sequence[float]) -> list[Point]:
    r"""Loss and gradient at $W_t-\alpha d$ for every $\alpha$ in `steps`, on the state's batch.

    The parameters that `direction` d names are moved, and gradients are taken with respect to them.  One
    forward and backward pass per step, or, if the state says `batched`, one for all steps together.
    """
    if state.batched:
        return _walk_at_once(state, direction, steps)
    points = []
    for step in steps:
        with moved(state.model, (-step, direction)):
            points.append(gradient_here(state, list(direction)))
    return points


def _walk_at_once(state: State, direction: Vector, steps: Sequence[float]) -> list[Point]:
    """`walk` with the points side by side, as if each were a network of its own: the same up to rounding."""

    def beside(tensor: Tensor) -> Tensor:
        return torch.stack([tensor.detach()] * len(steps))

    with no_trace(state.model) as model, torch.enable_grad():
        parameters = {name: beside(parameter) for name, parameter in model.named_parameters()}
        for name, change in direction.items():
            moves = torch.stack([-step * change for step in steps])
            parameters[name] = (parameters[name] + moves).requires_grad_()
        buffers = {name: beside(buffer) for name, buffer in model.named_buffers()}
        values = losses(model, parameters, buffers, state.x, state.y, state.loss, one_batch=True)
        gradients = torch.autograd.grad(values.sum(), [parameters[name] for name in direction])
    found = zip(values.tolist(), *(gradient.unbind() for gradient in gradients), strict=True)
    return [Point(loss, dict(zip(direction, parts, strict=True))) for loss, *parts in found]


@dataclass(frozen=True)
class Scan:
    r"""What a walk found: one entry for each step size, in the order in which they were asked for.

    `labels` name the steps, `distances` are their lengths $\|\alpha d\|_2$, `losses` and `changes` are
    $L(W_t-\alpha d)$ and $\|g-g'\|_2$.  `loss` and `gradient_norm` are those of $W_t$ itself.
    """

    loss: float
    gradient_norm: float
    labels: list[float]
    distances: list[float]
    losses: list[float]
    changes: list[float]

    @property
    def betas(self) -> list[float]:
        r"""$\|g-g'\|/\|\alpha d\|$ of each step; infinite if the gradient is not finite, NaN for a step of
        length 0."""
        pairs = zip(self.changes, self.distances, strict=True)
        return [_infinite(change / distance) if distance else math.nan for change, distance in pairs]

    @property
    def effective_beta(self) -> float:
        """The largest of `betas`; NaN if no step has a length."""
        return max((beta for beta in self.betas if not math.isnan(beta)), default=math.nan)

    def rows(self, layer: str = "", name: str = "{}") -> Iterator[tuple[str, str, float]]:
        """The scan as (layer, metric, value); `name` is a pattern for the metrics' names.

        For each label: `loss@label`, `predictiveness@label`.  Over all of them: `loss_low`, `loss_high`,
        `predictiveness_low`, `predictiveness_high`, `effective_beta`.  At $W_t$: `loss`, `gradient_norm`.
        `finite`, the share of steps at whose end loss and gradient are finite: where it is below 1, the upper
        ends and beta are infinite and left out, never the largest of the finite rest.
        """
        losses, changes = map(_infinite, self.losses), map(_infinite, self.changes)
        ends = list(zip(self.labels, losses, changes, strict=True))
        values = {"loss": self.loss, "gradient_norm": self.gradient_norm}
        for label, loss, change in ends:
            values |= {f"loss@{label:g}": loss, f"predictiveness@{label:g}": change}
        for metric, column in (("loss", 1), ("predictiveness", 2)):
            found = [end[column] for end in ends]
            values |= {f"{metric}_low": min(found), f"{metric}_high": max(found)}
        values["effective_beta"] = self.effective_beta
        finite = [math.isfinite(loss) and math.isfinite(change) for _, loss, change in ends]
        values["finite"] = sum(finite) / len(finite)
        yield from ((layer, name.format(k), value) for k, value in values.items() if math.isfinite(value))


def _infinite(value: float) -> float:
    """NaN as infinity: beyond the largest number, inf - inf is worse than every finite value."""
    return math.inf if math.isnan(value) else value


def _norm(vector: Vector) -> float:
    return math.sqrt(float(sum(part.double().square().sum() for part in vector.values())))


def _distance(one: Vector, other: Vector) -> float:
    return _norm({name: one[name].double() - other[name].double() for name in one})


# -- the paper's landscape, and the same in relative coordinates -----------------------------------------


def scan(state: State, factors: Sequence[float]) -> Scan:
    r"""Walk along the gradient: $\alpha$ = factor times the learning rate, for each of `factors`.

    The gradient is that of all parameters, weights, biases, gamma and beta, and all of them move: it is the
    line on which the next training step goes.
    """
    start, points, distances = _along_gradient(state, factors)
    return _compared(start, points, factors, distances)


def landscape(state: State, factors: Sequence[float]) -> Iterator[tuple[str, str, float]]:
    r"""The paper's three quantities at $W_t$, for step sizes $\alpha$ = factor times the learning rate.

    Rows: see `Scan.rows`.  The paper's factors: 1/2 to 4 for its VGG, 1/100 to 30 for its deep linear
    network.  None of the three is scale-free: in a BN net $W\to cW$ leaves the loss as it is, but makes the
    gradient c times and beta $c^2$ times smaller.  `relative_landscape` is.  Source: Santurkar et al. 2018,
    figure 4 and appendix A.2.2.
    """
    yield from scan(state, factors).rows()


def relative_scan(state: State, lengths: Sequence[float]) -> Scan:
    r"""The landscape in relative coordinates: every layer's weight is measured in units of its own norm.

    Write $W_l=\|W_{l,t}\|u_l$ for the weight of layer l, convolution or linear, with the norm that it has at
    $W_t$.  The loss as a function of u has the gradient $\tilde g_l=\|W_{l,t}\|\,g_l$.  Walk along it so that
    $u$ moves by the length e, for each e in `lengths`:

    $$W_l\to W_l-\alpha\|W_{l,t}\|^2g_l,\qquad\alpha\|\tilde g\|=e=\Big(\sum_l\|\Delta W_l\|^2/
    \|W_{l,t}\|^2\Big)^{1/2}$$

    In the result everything is in these coordinates: distances e, gradients $\tilde g$, and so
    $\beta=\max_e\|\tilde g-\tilde g'\|/e$.  All are in the loss's unit.  With a single layer it is the plain
    walk with $\|\alpha g\|=e\|W\|$, and $\beta$ is $\|W\|^2$ times the plain one.

    Weights of convolutions and linear layers move, also the last one.  Biases, gamma and beta stay: biases
    and beta start at 0, so there is no length to compare a step with.

    Why it is fair: under $W_l\to c_lW_l$ with the loss unchanged, $g_l\to g_l/c_l$ and the Hessian's blocks
    $H_{kl}\to H_{kl}/(c_kc_l)$, so $\tilde g$, e, the losses and $\beta$ stay as they are.  The loss is
    unchanged for any $c_l>0$ of a layer that batch norm follows (up to its eps); and in a ReLU net without
    norms if the product of all $c_l$ is 1 and biases follow.  Layers may be rescaled one by one, not filters.
    """
    weights = {f"{name}.weight": layer.weight.detach() for name, layer in models.layers(state.model)}
    units = {name: weight.double().norm().item() for name, weight in weights.items()}

    def relative(gradient: Vector) -> Vector:
        return {name: units[name] * part.double() for name, part in gradient.items()}

    start = start_of(state, list(weights))
    norm = _norm(relative(start.gradient))
    direction = {
        name: (part.double() * (units[name] ** 2 / norm if norm else 0.0)).to(part.dtype)
        for name, part in start.gradient.items()
    }
    points = walk(state, direction, lengths)
    return _compared(
        Point(start.loss, relative(start.gradient)),
        [Point(point.loss, relative(point.gradient)) for point in points],
        lengths,
        [abs(length) if norm else 0.0 for length in lengths],
    )


def relative_landscape(state: State, lengths: Sequence[float]) -> Iterator[tuple[str, str, float]]:
    """The landscape for steps of given relative length, see `relative_scan`: what scaling cannot change.

    Rows as in `Scan.rows`, with the prefix `relative_`, for example `relative_loss@0.01`,
    `relative_effective_beta`.  In float32, rounding changes the gradients' difference by some 2 % at e = 1e-5
    and by 0.1 % from 1e-4 on (a quarter-width VGG against itself in float64), where it decides on which side
    of a kink a value lies.
    """
    yield from relative_scan(state, lengths).rows(name="relative_{}")


def activation_scan(state: State, layer: str, factors: Sequence[float]) -> Scan:
    r"""The landscape of the loss as a function of one layer's activations, all else fixed.

    The activations a are what `layer` passes on to its nonlinearity, after its norm, if any: shape (N, C) or
    (N, C, H, W).  Walk to $a-\alpha\nabla_aL$, $\alpha$ = factor times the learning rate; norms are over all
    values of a.  The batch norms behind take the moments of the moved activations, and gradients go through
    them.  $\nabla_aL$ of a loss that is a mean over the batch goes as 1/N, and beta with it.
    """
    (block,) = (block for block in models.blocks(state.model) if block.layer == layer)
    with no_trace(state.model) as model:
        rest, noise = model[block.end :], noise_states(model)

        def look(a: Tensor) -> Point:
            restore_noise(model, noise)
            a = a.detach().requires_grad_()
            loss = state.loss(rest(a), state.y)
            return Point(loss.item(), {"a": torch.autograd.grad(loss, a)[0]})

        with torch.no_grad():
            here = activations(model, state.x, [layer])[layer]
        start = look(here)
        steps = [factor * state.lr for factor in factors]
        points = [look(here - step * start.gradient["a"]) for step in steps]
    return _compared(start, points, factors, [abs(step) * _norm(start.gradient) for step in steps])


def activation_beta(
    state: State, factors: Sequence[float], layers: Sequence[str] | None = None
) -> Iterator[tuple[str, str, float]]:
    """Smoothness of the loss in the activations of each of `layers` (None: all), see `activation_scan`.

    Rows as in `Scan.rows`, with the layer's name and the prefix `activation_`.  It is what the live-training
    blog post means to plot; its code differentiates the sum of the logits with frozen moments.
    """
    known = [block.layer for block in models.blocks(state.model)]
    wanted = known if layers is None else list(layers)
    if unknown := [layer for layer in wanted if layer not in known]:
        raise ValueError(f"There is no layer {unknown[0]!r}; choose from {', '.join(known)}.")
    for layer in wanted:
        yield from activation_scan(state, layer, factors).rows(layer, "activation_{}")


def _along_gradient(
    state: State, factors: Sequence[float], there: State | None = None
) -> tuple[Point, list[Point], list[float]]:
    """W_t, the points on the way along its gradient, looked at from `there` (None: from `state`), their
    distances."""
    start = start_of(state)
    steps = [factor * state.lr for factor in factors]
    points = walk(there or state, start.gradient, steps)
    return start, points, [abs(step) * _norm(start.gradient) for step in steps]


def _compared(
    start: Point, points: Sequence[Point], labels: Sequence[float], distances: Sequence[float]
) -> Scan:
    if not labels:
        raise ValueError("Give at least one step size.")
    return Scan(
        loss=start.loss,
        gradient_norm=_norm(start.gradient),
        labels=list(labels),
        distances=list(distances),
        losses=[point.loss for point in points],
        changes=[_distance(start.gradient, point.gradient) for point in points],
    )


# -- mistakes: what some replications measure instead ----------------------------------------------------


def summed_gradients(state: State, factors: Sequence[float]) -> Scan:
    r"""A MISTAKE: "predictiveness" as $\|g+g'\|$, the norm of the sum.

    At small steps it is twice the gradient's norm, whatever the landscape: a smooth landscape and a small
    gradient look alike.  A VGG replication blog does it.
    """
    start, points, distances = _along_gradient(state, factors)
    backwards = {name: -part for name, part in start.gradient.items()}
    summed = [_distance(backwards, point.gradient) for point in points]
    return replace(_compared(start, points, factors, distances), changes=summed)


def different_minibatches(state: State, factors: Sequence[float]) -> Scan:
    r"""A MISTAKE: $g'$ on another minibatch than g, so that sampling noise counts as roughness.

    Even a step of length 0 "changes" the gradient.  The other batch is `data.probe_batch` of the same size.
    """
    x, y = data.probe_batch(state.dataset, len(state.x))
    start, points, distances = _along_gradient(state, factors, there=replace(state, x=x, y=y))
    return _compared(start, points, factors, distances)


def frozen_moments(state: State, factors: Sequence[float]) -> Scan:
    r"""A MISTAKE: each batch norm keeps the moments that it has at $W_t$, as constants, at all points.

    It is then a fixed affine map: the gradient lacks its two projections, and the loss at the moved point is
    that of another function.  Without batch norms in the model it is the right scan.  The live-training blog
    post's code does it, in the space of activations.
    """
    with _moments_of_the_first_pass(state.model):
        return scan(replace(state), factors)  # a state anew: its pass must go through these moments


def logits_for_loss(state: State, factors: Sequence[float]) -> Scan:
    """A MISTAKE: the sum of the network's outputs in place of the loss: the labels play no part.

    The live-training blog post's code does it.
    """
    return scan(replace(state, loss=lambda output, y: output.sum()), factors)


def normalised_steps(state: State, factors: Sequence[float]) -> Scan:
    r"""A MISTAKE: $W_t-\alpha g/\|g\|$, steps of equal length for all networks, under the name of $\alpha g$.

    It asks another question, and not yet a scale-free one: that is `relative_scan`.
    """
    start = start_of(state)
    steps = [factor * state.lr for factor in factors]
    norm = _norm(start.gradient)
    unit = {name: part / norm if norm else part for name, part in start.gradient.items()}
    return _compared(start, walk(state, unit, steps), factors, [abs(step) for step in steps])


MISTAKES: dict[str, Callable[[State, Sequence[float]], Scan]] = {
    mistake.__name__: mistake
    for mistake in (
        summed_gradients,
        different_minibatches,
        frozen_moments,
        logits_for_loss,
        normalised_steps,
    )
}


def landscape_mistakes(
    state: State, factors: Sequence[float], mistakes: Sequence[str] | None = None
) -> Iterator[tuple[str, str, float]]:
    """The landscape as measured with each of `mistakes` (None: all of `MISTAKES`).

    Rows as in `Scan.rows`, marked with the mistake's name: `predictiveness_high[summed_gradients]`.
    """
    wanted = list(MISTAKES) if mistakes is None else list(mistakes)
    if unknown := [name for name in wanted if name not in MISTAKES]:
        raise ValueError(f"There is no mistake {unknown[0]!r}; choose from {', '.join(MISTAKES)}.")
    for name in wanted:
        yield from MISTAKES[name](state, factors).rows(name=f"{{}}[{name}]")


@contextmanager
def _moments_of_the_first_pass(model: nn.Module) -> Iterator[None]:
    moments: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def affine(norm: BatchNorm, inputs: tuple[Tensor], _: Tensor) -> Tensor:
        (x,) = inputs
        if norm not in moments:
            over = [d for d in range(x.ndim) if d != 1]
            variance, mean = torch.var_mean(x.detach(), over, correction=0)
            moments[norm] = mean, variance
        return F.batch_norm(x, *moments[norm], norm.weight, norm.bias, training=False, eps=norm.eps)

    hooks = [m.register_forward_hook(affine) for m in model.modules() if isinstance(m, BatchNorm)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
