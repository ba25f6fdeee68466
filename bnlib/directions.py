r"""Length and direction apart: random problems solved with and without the normalised parametrisation.

One run is one problem, drawn from the seed, and one way to solve it; all in float64.  What is measured are
the quantities that the theorems bound, and the largest factor by which a single step multiplies them.  The
theorems themselves are in `bnlib.theory`: `least_squares`, `rayleigh`, `halfspaces`, `one_hidden_layer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bnlib import data
from bnlib.records import Row
from bnlib.theory.halfspaces import SIGMOID, SOFTPLUS, SQUARE, Gaussian, Halfspace, Sample, gdnp
from bnlib.theory.least_squares import LeastSquares, train_both
from bnlib.theory.one_hidden_layer import OneHiddenLayer
from bnlib.theory.rayleigh import RayleighQuotient

LOSSES = {"softplus": SOFTPLUS, "sigmoid": SIGMOID, "square": SQUARE}
#: largest |second derivative| of each loss: f is smooth with this times L
CURVATURE = {"softplus": 0.25, "sigmoid": 1 / (6 * math.sqrt(3)), "square": 1.0}
CRITERIA = {"gdnp": Halfspace.criterion, "gdnp_printed": Halfspace.wikipedia_criterion}
#: a distance whose square is below this is rounding, relative to the problem's size
RESOLVED = 1e-16
#: beyond it a run counts as diverged and is measured no further
DIVERGED = 1e6


def run(
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: str = "cpu",
    tick: Callable[[int], None] = lambda steps: None,
) -> list[Row]:
    """Draw the problem that `settings["problem"]` names from the seed and measure one way to solve it.

    The other settings are the keyword arguments of the function in `PROBLEMS`, where the rows are described.
    Everything is small: it runs on the CPU, in float64, whatever `device` says.
    """
    rest = dict(settings)
    rows = PROBLEMS[rest.pop("problem")](seed=seed, **rest)
    tick(settings.get("steps", 1))
    return [(step, layer, metric, float(value)) for step, layer, metric, value in rows]


# --- problems -----------------------------------------------------------------------------------------------


def _randn(*shape: int, seed: int, stream: int) -> Tensor:
    """Standard normal numbers; the streams of one seed are independent."""
    generator = torch.Generator().manual_seed(1000 * seed + stream)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def conditioned(d: int, condition: float, seed: int) -> Tensor:
    """A random symmetric (d, d) matrix: eigenvalues 1 to `condition`, equally spaced in the logarithm."""
    rotation = torch.linalg.qr(_randn(d, d, seed=seed, stream=0)).Q
    values = torch.logspace(0, math.log10(condition), d, dtype=torch.float64)
    matrix = rotation * values @ rotation.T
    return (matrix + matrix.T) / 2


def drawn_least_squares(d: int, condition: float, seed: int) -> tuple[LeastSquares, Tensor]:
    """A problem with a random u, and a random direction to start from."""
    u, w = (_randn(d, seed=seed, stream=stream) for stream in (1, 2))
    return LeastSquares(conditioned(d, condition, seed), u), w


def drawn_halfspace(d: int, condition: float, distance: float, loss: str, seed: int) -> Halfspace:
    r"""Gaussian inputs with $u^\top\Sigma^{-1}u$ = `distance` and Sigma of that condition number."""
    sigma, u = conditioned(d, condition, seed), _randn(d, seed=seed, stream=1)
    u = u * (distance / (u @ torch.linalg.solve(sigma, u))).sqrt()
    return Halfspace(Gaussian(u, sigma), LOSSES[loss])


def two_classes(dataset: str, classes: Sequence[int], d: int, whitened: bool, device: str = "cpu") -> Sample:
    r"""The training images of two classes, y = 1 and -1, as z = -yx in their first d principal components.

    The images are centred.  `whitened`: every component has variance 1, and so S = I; else the components
    are divided by one number that makes their mean variance 1.
    """
    images = data.load(dataset, device=device, dtype=torch.float64)
    flat, labels = images.x_train.flatten(1), images.y_train
    one, other = classes
    kept = (labels == one) | (labels == other)
    x, y = flat[kept], torch.where(labels[kept] == one, 1.0, -1.0).to(flat)
    x = x - x.mean(0)
    variances, axes = torch.linalg.eigh(x.T @ x / len(x))
    variances, axes = variances.flip(0)[:d], axes.flip(1)[:, :d]
    scale = variances.sqrt() if whitened else variances.mean().sqrt()
    return Sample(-y[:, None] * (x @ axes / scale))


def minimiser(problem: Halfspace, steps: int = 100) -> Tensor:
    r"""The minimiser of a convex f over a sample, (d,), by damped Newton steps, to $\|\nabla f\|<10^{-13}$.

    Raises ValueError if there is none, because a halfspace separates the two classes.
    """
    z = problem.inputs.z
    w = torch.zeros_like(z[0])
    value, gradient = problem.value(w), problem.gradient(w)
    for _ in range(steps):
        if bool((z @ w < 0).all()):
            break
        if gradient.norm() < 1e-13:
            return w
        hessian = (problem.loss.second(z @ w)[:, None] * z).T @ z / len(z)
        move, size = torch.linalg.solve(hessian, gradient), 1.0
        while problem.value(w - size * move) > value * (1 + 1e-14) and size > 1e-6:
            size /= 2
        w = w - size * move
        value, gradient = problem.value(w), problem.gradient(w)
    raise ValueError("f has no minimiser, a halfspace separates the classes: take fewer components.")


# --- what is measured ---------------------------------------------------------------------------------------


def measured_steps(steps: int) -> list[int]:
    """0 to 50, then every step that is 4 % further than the one before, then the last."""
    chosen = list(range(min(steps, 50) + 1))
    while chosen[-1] < steps:
        chosen.append(min(steps, math.ceil(1.04 * chosen[-1])))
    return chosen


def factors(gap: Tensor, floor: float) -> Iterator[tuple[int, str, str, float]]:
    """From the gap at every step, (steps + 1,): the `largest_factor` and the `late_factor` of one step, and
    how many `resolved_steps` there are before the gap is below `floor`, where it is rounding."""
    resolved = int((gap > floor).long().cumprod(0).sum()) - 1
    if resolved >= 1:
        ratios = gap[1 : resolved + 1] / gap[:resolved]
        yield 0, "", "largest_factor", ratios.max().item()
        yield resolved, "", "late_factor", ratios[-1].item()
    yield 0, "", "resolved_steps", resolved


def _first_below(values: Tensor, level: float) -> int:
    """The first step at which `values` (steps + 1,) is at most `level`; the number of values if none is."""
    below = values <= level
    return int(below.long().argmax()) if bool(below.any()) else len(values)


def _series(metric: str, values: Tensor) -> Iterator[tuple[int, str, str, float]]:
    """`values` (steps + 1,) at `measured_steps`, while they are finite and below `DIVERGED`."""
    for step in measured_steps(len(values) - 1):
        value = values[step].item()
        if not abs(value) < DIVERGED:
            return
        yield step, "", metric, value


def least_squares(
    seed: int, method: str, d: int, condition: float, steps: int
) -> Iterator[tuple[int, str, str, float]]:
    r"""Least squares with the step that the theory takes: "bn", in direction; "standard", 1 / L without it.

    Both start from the same weights: a random direction, with its best length.  Rows: `gap` by step,
    $(\rho-\rho^*)/|\rho^*|$ and $(f-f^*)/|\rho^*|$; `factors` of the gap; `bound`, $(1-\mu/L)^2$;
    `asymptotic_rate`, the exact late factor; `steps_to`, the first step whose gap is 1e-10 of the first one.
    """
    problem, w = drawn_least_squares(d, condition, seed)
    size, bound = -problem.rho_star, (1 - problem.mu / problem.smoothness) ** 2
    if method == "bn":
        gap, asymptotic = problem.gap(problem.descend(w, steps)) / size, problem.asymptotic_rate
    else:
        path = problem.descend_without(problem.weights(w, problem.best_length(w)), steps)
        gap, asymptotic = problem.norm_or_zero(path - problem.optimum) ** 2 / size, bound
    yield from _series("gap", gap)
    yield from factors(gap, RESOLVED)
    yield 0, "", "bound", bound
    yield 0, "", "asymptotic_rate", asymptotic
    yield 0, "", "steps_to", _first_below(gap, 1e-10 * gap[0])


def any_rate(
    seed: int, method: str, d: int, condition: float, steps: int, rates: Sequence[float]
) -> Iterator[tuple[int, str, str, float]]:
    r"""Least squares with fixed learning rates, each of `rates` for the weights ("bn": 1 for the length).

    From the same weights: a random direction, of unit $\|w\|_S$, with its best length.  Rows: `gap@RATE` by
    step, $(f-f^*)/|\rho^*|$, until it exceeds `DIVERGED`; `limit`, 2 / L.
    """
    problem, w = drawn_least_squares(d, condition, seed)
    w = w / problem.norm(w)
    lr = torch.tensor(rates, dtype=torch.float64)
    g = problem.best_length(w).expand(len(lr))
    weights, direction = problem.weights(w, g[0]).expand(len(lr), -1), w.expand(len(lr), -1)
    alive, chosen = torch.ones_like(lr, dtype=torch.bool), measured_steps(steps)
    for before, step in zip([0, *chosen], chosen, strict=False):
        if method == "bn":
            if step > before:
                direction, g = train_both(problem, direction, g, lr, steps=step - before)
            weights = problem.weights(direction, g)
        else:
            for _ in range(step - before):
                weights = weights - lr[:, None] * (weights @ problem.s + problem.u)
        gap = problem.norm_or_zero(weights - problem.optimum) ** 2 / -problem.rho_star
        alive = alive & (gap < DIVERGED)
        for rate, value, going in zip(rates, gap.tolist(), alive.tolist(), strict=True):
            if going:
                yield step, "", f"gap@{rate:g}", value
    yield 0, "", "limit", 2 / problem.smoothness


def rayleigh(
    seed: int, step: str, d: int, condition: float, steps: int
) -> Iterator[tuple[int, str, str, float]]:
    r"""Ascent on a random Rayleigh quotient with T = $A^{-1}$ ("inverse") or I / L ("euclidean").

    A has the condition number given, B is a random symmetric matrix.  Rows: `gap` by step,
    $(\lambda_1-\rho)/(\lambda_1-\lambda_{\min})$; `factors` of $(\lambda_1-\rho)/(\rho-\lambda_2)$ from the
    first step at which $\rho>\lambda_2$; `ideal_bound`, $q_0^2$, and `bound`, $q^2$ for the T that is used.
    """
    matrix, w = _randn(d, d, seed=seed, stream=1), _randn(d, seed=seed, stream=2)
    problem = RayleighQuotient(conditioned(d, condition, seed), (matrix + matrix.T) / 2)
    if step == "inverse":
        t = torch.linalg.inv(problem.a)
    else:
        t = torch.eye(d, dtype=torch.float64) / torch.linalg.eigvalsh(problem.a)[-1]
    path = [w / w.norm()]
    for _ in range(steps):
        after = problem.step(path[-1], t)
        path.append(after / after.norm())
    values, gap = problem.eigenvalues, problem.gap(torch.stack(path))
    yield from _series("gap", gap / (values[0] - values[-1]))
    first = int((gap < values[0] - values[1]).long().argmax())
    late = gap[first:]
    yield from factors(late / (values[0] - values[1] - late), 1e-10)
    yield 0, "", "ideal_bound", problem.ideal_rate**2
    yield 0, "", "bound", problem.rate(t) ** 2


def _descent(
    problem: Halfspace, w: Tensor, method: str, loss: str, steps: int, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Directions (T + 1, d), lengths (T + 1,) and $\|\nabla f\|$ (T + 1,) of one method.

    All start from w, made `start` long in $\|\cdot\|_S$, with the length g that bisection gives it.  "gdnp",
    "gdnp_printed": `theory.halfspaces.gdnp`; "bn": fixed learning rates, `lr` for the weights,
    $1/\max|\varphi''|$ for the length; "standard": $\tilde w$ itself, with the step $1/(L\max|\varphi''|)$.
    """
    geometry, curvature = problem.geometry, CURVATURE[loss]
    halvings, bracket = options.get("halvings", 50), tuple(options.get("bracket", (0.0, 100.0)))
    w = options.get("start", 1.0) * w / geometry.norm(w)
    g = problem.best_length(w, bracket, halvings)
    if method in CRITERIA:
        path = gdnp(problem, w, g.item(), steps, halvings, bracket, criterion=CRITERIA[method])
        return path.w, path.g, path.gradient_norm
    directions, lengths, gradients = [], [], []
    weights = problem.weights(w, g)
    for k in range(steps + 1):
        gradient = problem.gradient(weights)
        directions.append(w if method == "bn" else weights)
        lengths.append(g if method == "bn" else geometry.norm(weights))
        gradients.append(gradient.norm())
        if k == steps:
            break
        if method == "bn":
            size = geometry.norm(w)
            slope = w @ gradient / size
            across = g / size * (gradient - slope / size * (geometry.s @ w))
            w, g = w - options["lr"] * across, g - slope / curvature
            weights = problem.weights(w, g)
        else:
            weights = weights - gradient / (geometry.smoothness * curvature)
    return torch.stack(directions), torch.stack(lengths), torch.stack(gradients)


def halfspace(
    seed: int, method: str, loss: str, d: int, condition: float, distance: float, steps: int, **options: Any
) -> Iterator[tuple[int, str, str, float]]:
    r"""A halfspace with Gaussian inputs, by the methods of `_descent` and with its options.

    Rows: `gap` by step, $(\rho(w)-\rho^*)/|\rho^*|$, the squared sine of the S-angle to the line of all
    critical points; `gradient_norm` and `length` $g$ by step; `factors` of the gap; `bound`, $(1-\mu/L)^2$;
    `least_squares_distance`, the largest distance between this path's directions and those of least squares,
    both of unit length.
    """
    problem = drawn_halfspace(d, condition, distance, loss, seed)
    geometry, w = problem.geometry, _randn(d, seed=seed, stream=2)
    w = -w * (w @ problem.inputs.u).sign()
    directions, lengths, gradients = _descent(problem, w, method, loss, steps, **options)
    gap = geometry.gap(directions) / -geometry.rho_star
    yield from _series("gap", gap)
    yield from _series("gradient_norm", gradients)
    yield from _series("length", lengths)
    yield from factors(gap, RESOLVED)
    yield 0, "", "bound", (1 - geometry.mu / geometry.smoothness) ** 2
    if method == "gdnp":
        path = geometry.descend(w, steps)
        one, other = (v / v.norm(dim=1, keepdim=True) for v in (path, directions))
        yield 0, "", "least_squares_distance", (one - other).norm(dim=1).max().item()


def real_halfspace(
    seed: int,
    method: str,
    dataset: str,
    classes: Sequence[Sequence[int]],
    d: int,
    whitened: bool,
    steps: int,
    **options: Any,
) -> Iterator[tuple[int, str, str, float]]:
    r"""Logistic regression between two classes of images; seed k takes the k-th pair of `classes`.

    As `halfspace` on the images themselves, which are not Gaussian: `sine` by step is the squared sine of the
    S-angle to the minimiser $\tilde w^*$, found by Newton's method, and `factors` are of it; `gradient_norm`
    and `length`; `excess`, $f-f^*$ in nats; `bound`, $(1-\mu/L)^2$, which the theory promises for Gaussian
    inputs; `line`, the squared sine of the S-angle between $\tilde w^*$ and $S^{-1}u$; `condition`, L / mu;
    `steps_to`, the first step whose gradient is 1e-4 of the first one (`steps` + 1 if none is).
    """
    problem = Halfspace(two_classes(dataset, classes[seed % len(classes)], d, whitened))
    geometry, best = problem.geometry, minimiser(problem)
    target = LeastSquares(geometry.s, -geometry.s @ best)
    w = _randn(d, seed=seed, stream=2)
    w = -w * (w @ problem.inputs.u).sign()
    directions, lengths, gradients = _descent(problem, w, method, "softplus", steps, **options)
    sine = target.gap(directions) / -target.rho_star
    yield from _series("sine", sine)
    yield from _series("gradient_norm", gradients)
    yield from _series("length", lengths)
    floor = problem.value(best)
    for step in measured_steps(len(lengths) - 1):
        weights = problem.weights(directions[step], lengths[step])
        if math.isfinite(excess := (problem.value(weights) - floor).item()):
            yield step, "", "excess", max(excess, 0.0)
    yield from factors(sine, RESOLVED)
    yield 0, "", "bound", (1 - geometry.mu / geometry.smoothness) ** 2
    yield 0, "", "condition", geometry.smoothness / geometry.mu
    yield 0, "", "line", target.gap(geometry.optimum).item() / -target.rho_star.item()
    yield 0, "", "steps_to", _first_below(gradients, 1e-4 * gradients[0].item())


def one_hidden_layer(
    seed: int,
    loss: str,
    units: str,
    starts: int,
    theta: Sequence[float],
    d: int,
    nodes: int,
    tolerance: float,
) -> Iterator[tuple[int, str, str, float]]:
    r"""Critical points of a random network with one hidden layer, from `starts` random starts; step = start.

    `units`: "all" jointly, or "first", beside the others frozen where they started.  Rows for every start
    from which a critical point is found: `found` 1, else 0; `off_line`, the largest distance of a unit's
    weights (a moving one's) from the line, divided by the length of the longest unit; `effective_off_line`,
    the same of the rows of bW; `conditioning`, the smallest |eigenvalue| of b; `stein_gap`, the quadrature's
    error; `size`, $\|W\|$; in layer "unitK": `along` and `across`, a unit's weights along the line and off it
    (d = 2: the signed distance); and the `angle` of the line in radians (d = 2).
    """
    u, a = _randn(d, seed=seed, stream=0), _randn(d, d, seed=seed, stream=1)
    sigma = (torch.eye(d, dtype=torch.float64) + a @ a.T / d) / 2
    net = OneHiddenLayer(u / u.norm(), sigma, torch.tensor(theta, dtype=torch.float64), LOSSES[loss], nodes)
    moving = None if units == "all" else [0]
    for start in range(starts):
        w = _randn(len(theta), d, seed=seed, stream=10 + start) / 2
        try:
            w = net.critical_point(w, moving, tolerance=tolerance)
        except RuntimeError:
            yield start, "", "found", 0.0
            continue
        yield start, "", "found", 1.0
        yield start, "", "off_line", _off(w[moving] if moving else w, net.line)
        yield start, "", "effective_off_line", _off(net.moments(w).b @ w, net.line)
        yield start, "", "conditioning", net.conditioning(w)
        yield start, "", "stein_gap", net.stein_gap(w)
        yield start, "", "size", w.norm().item()
        for unit, weights in enumerate(w):
            along = (weights @ net.line).item()
            rest = weights - along * net.line
            across = (net.line[0] * rest[1] - net.line[1] * rest[0]).item() if d == 2 else rest.norm().item()
            yield start, f"unit{unit + 1}", "along", along
            yield start, f"unit{unit + 1}", "across", across


def _off(rows: Tensor, line: Tensor) -> float:
    """The largest distance of a row from the line, over the longest row's length."""
    return ((rows - torch.outer(rows @ line, line)).norm(dim=1).max() / rows.norm(dim=1).max()).item()


PROBLEMS: dict[str, Callable[..., Iterator[tuple[int, str, str, float]]]] = {
    "least_squares": least_squares,
    "any_rate": any_rate,
    "rayleigh": rayleigh,
    "halfspace": halfspace,
    "real_halfspace": real_halfspace,
    "one_hidden_layer": one_hidden_layer,
}
