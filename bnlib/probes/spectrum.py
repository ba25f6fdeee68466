r"""The Hessian's spectrum: the curvature of the loss in all directions, where `landscape` sees one.

$H=\nabla^2L(W)$ over the parameters W, of the loss on one fixed batch.  BN is in training mode: the moments
depend on W, and both derivatives go through them.  (PyHessian, a well-known tool, puts the network in
evaluation mode.  Its batch norms are then fixed affine maps, and its H is another matrix.)  Only products Hv
are formed, by differentiating the gradient once more.  Noise, if the model has any, is the same in all of
them.  A ReLU or a max pooling has no second derivative at its kinks; H is that of the smooth pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlib import data, models
from bnlib.probes.landscape import moved, start_of
from bnlib.probes.state import State
from bnlib.probes.tracing import no_trace
from bnlib.theory.lanczos import Product, Ritz, Spectrum, lanczos, rademacher, ritz


class Curvature(NamedTuple):
    """Loss, gradient (n,) and the `product` v -> Hv of (n,) vectors, all parameters strung together."""

    loss: float
    gradient: Tensor
    product: Product


@contextmanager
def curvature(state: State, relative: bool = False) -> Iterator[Curvature]:
    r"""First and second derivatives on the state's batch, in training mode, while the context is open.

    By default over all parameters, in the order of the model.  `relative`: over the weights of convolutions
    and linear layers only, each in units of its own norm, $u_l=W_l/\|W_l\|$ with the norm held fixed; then
    the gradient has the parts $\|W_l\|g_l$ and the Hessian the blocks $\|W_k\|H_{kl}\|W_l\|$, which do not
    change if layers are rescaled and the loss stays (see `relative_scan`).

    One pass forward and one backward, whose graph is kept; a product is a pass backward through both.
    Leaves no trace.
    """
    with no_trace(state.model) as model, torch.enable_grad():
        if relative:
            parameters = [layer.weight for _, layer in models.layers(model)]
            units = _strung([torch.full_like(p, p.norm().item()) for p in parameters])
        else:
            parameters = list(model.parameters())
            units = _strung([torch.ones_like(p) for p in parameters])
        loss = state.loss(model(state.x), state.y)
        gradient = _strung(torch.autograd.grad(loss, parameters, create_graph=True))

        def product(v: Tensor) -> Tensor:
            if not gradient.requires_grad:  # a linear loss: its gradient does not depend on the point
                return torch.zeros_like(v)
            parts = torch.autograd.grad(
                gradient, parameters, units * v, retain_graph=True, materialize_grads=True
            )
            return units * _strung(parts)

        yield Curvature(loss.item(), units * gradient.detach(), product)


def hessian_spectrum(
    state: State,
    steps: int = 60,
    draws: int = 2,
    size: int | None = None,
    top: int = 10,
    between: Sequence[float] = (),
    relative: bool = False,
    seed: int = 0,
) -> Iterator[tuple[str, str, float]]:
    r"""The spectrum of the Hessian by stochastic Lanczos quadrature, its edges, and the edge of stability.

    From each of `draws` random vectors of signs (they depend on `seed` and n alone) `steps` Lanczos steps
    with full reorthogonalisation.  `size` None means the state's own batch (in full-batch descent: the
    training set); a number means `data.probe_batch` of so many images, the same at every step and in every
    arm.  Rows:

    - `ritz[d,k]`, `ritz_weight[d,k]`: node $\theta_k$, ascending, and weight $\omega_k$ of draw d.  For any
      width $\varsigma$ the density is $\frac1{\text{draws}}\sum_d\sum_k\omega_{dk}N(t;\theta_{dk},
      \varsigma^2)$, and $\frac1{\text{draws}}\sum_d\sum_k\omega_{dk}\theta_{dk}^j$ estimates
      $\operatorname{tr}H^j/n$.
    - `eigenvalue[1]` to `eigenvalue[top]`: the largest, descending; `gradient_share[j]`: the share of
      $\|g\|^2$ in the span of the first j eigenvectors, as far as draw 0 found them.
    - `sharpness`, the largest, and `sharpness_error`: an eigenvalue lies within that distance of it;
      `smallest`; `trace`, estimated; `parameters`, n.
    - `loss`, `gradient_norm` and `weight_norm`, the norm of all weights of convolutions and linear layers.
    - `edge`, $\eta\lambda_{max}/2$ with the state's learning rate $\eta$: 1 is the edge of stability, above
      it gradient descent on a quadratic of that curvature diverges.
    - `sharpness@f` for each f of `between`: at $W-f\eta g$, on the way to the next step, from draw 0.

    Sharpness is not free of scale.  If batch norm follows a layer, $W\to cW$ leaves the loss and makes H's
    block of that layer $c^2$ times smaller, so read it beside `weight_norm`.  `relative` measures instead
    what rescaling layers cannot change, see `curvature`; biases, gamma and beta are left out.  All rows but
    `weight_norm` are then in these coordinates, all have the prefix `relative_`, and there is no `edge`:
    gradient descent has no single rate there.

    A product costs some 2 (without norms) to 3 training steps (with batch norm).  In float32 the largest
    eigenvalues of a quarter-width VGG-A are good to four digits.  If a gradient or a product is not finite,
    nothing is measured.  Raises ValueError if `steps`, `draws` or `top` is below 1.  Sources: Ghorbani,
    Krishnan and Xiao 2019; Cohen et al. 2021 (edge of stability).
    """
    if min(steps, draws, top) < 1:
        raise ValueError(f"steps, draws and top must be at least 1, not {steps}, {draws} and {top}.")
    if size is not None:
        x, y = data.probe_batch(state.dataset, size)
        state = replace(state, x=x, y=y)
    try:
        found = _measured(state, steps, draws, top, relative, seed)
        direction = start_of(state).gradient if between else {}
        for factor in between:
            with moved(state.model, (-factor * state.lr, direction)), curvature(state, relative) as there:
                sharpness = _draw(there, steps, seed, 0)[0].values[-1]
            found[f"sharpness@{factor:g}"] = sharpness.item()
    except ArithmeticError:
        return
    prefix = "relative_" if relative else ""
    for metric, value in found.items():
        if math.isfinite(value):
            yield "", prefix + metric, value


def relative_spectrum(state: State, **arguments: Any) -> Iterator[tuple[str, str, float]]:
    """`hessian_spectrum` in relative coordinates, under a name of its own, so that a run can have both."""
    yield from hessian_spectrum(state, relative=True, **arguments)


def _measured(state: State, steps: int, draws: int, top: int, relative: bool, seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    with curvature(state, relative) as here:
        drawn = [_draw(here, steps, seed, draw) for draw in range(draws)]
        loss, gradient = here.loss, here.gradient.double()
    spectrum = Spectrum(len(gradient), tuple(values for values, _ in drawn))
    for d, values in enumerate(spectrum.draws):
        for k, (node, weight) in enumerate(zip(values.values.tolist(), values.weights.tolist(), strict=True)):
            found |= {f"ritz[{d},{k}]": node, f"ritz_weight[{d},{k}]": weight}
    best = max(spectrum.draws, key=lambda values: values.values[-1].item())
    largest, shares = spectrum.largest(top).tolist(), drawn[0][1][:top].tolist()
    found |= {f"eigenvalue[{j}]": value for j, value in enumerate(largest, start=1)}
    found |= {f"gradient_share[{j}]": share for j, share in enumerate(shares, start=1)}
    weights = [layer.weight.detach().double() for _, layer in models.layers(state.model)]
    found |= {
        "sharpness": largest[0],
        "sharpness_error": best.errors[-1].item(),
        "smallest": spectrum.smallest,
        "trace": spectrum.trace,
        "parameters": len(gradient),
        "loss": loss,
        "gradient_norm": gradient.norm().item(),
        "weight_norm": math.sqrt(sum(weight.square().sum().item() for weight in weights)),
    }
    return found if relative else found | {"edge": state.lr * largest[0] / 2}


def _draw(here: Curvature, steps: int, seed: int, draw: int) -> tuple[Ritz, Tensor]:
    """Lanczos from one random start; and the gradient's share in the leading Ritz vectors, cumulated."""
    start = rademacher(len(here.gradient), seed, draw).to(here.gradient)
    t = lanczos(here.product, start, steps)
    found = ritz(t)
    along = (t.basis @ here.gradient).double().cpu() @ found.vectors  # <g, Q s_k>
    share = along.flip(0).square().cumsum(0) / here.gradient.double().square().sum().cpu()
    return found, share


def _strung(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
