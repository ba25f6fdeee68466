r"""Scale invariance: what follows for descent when the weights' lengths do not matter.

Batch norm follows a layer, so for every neuron (or filter) j and every $c_j>0$ the loss f is the same at
$c_jw_j$ as at $w_j$.  Differentiate that in $c_j$, and in $w$:

$$\langle w_j,\nabla_jf\rangle=0,\qquad\nabla_jf(cw)=\tfrac1{c_j}\nabla_jf(w),\qquad
H_{jk}(cw)=\tfrac1{c_jc_k}H_{jk}(w),\qquad Hw=-\nabla f,\qquad w^\top Hw=0.$$

All else here follows from these.  They are exact for eps = 0.  Rows of a `weight` (n, ...) are neurons, as in
torch.  Sources: van Laarhoven 2017; Arora, Li and Lyu 2019; Li and Arora 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bnlib.theory.gradients import Loss, gradient_of

StepLoss = Callable[[Tensor, int], Tensor]  # the loss at a weight and of a step's batch


class ScaleIdentities(NamedTuple):
    r"""Both sides of the five identities.  `gradient` and all below it are shaped like the weight.

    `inner` and `quadratic` are zero, and `gradient` equals `scaled_gradient`, `product` equals
    `scaled_product`, `radial` equals minus `gradient`, if f is scale invariant.
    """

    inner: Tensor  # (n,): <w_j, g_j>
    quadratic: Tensor  # scalar: w^T H w
    gradient: Tensor  # g at w
    scaled_gradient: Tensor  # c_j g_j at cw
    product: Tensor  # Hv at w
    scaled_product: Tensor  # c_j (H(cw) (cv))_j
    radial: Tensor  # Hw
    weight: Tensor

    @property
    def errors(self) -> dict[str, float]:
        r"""How far each is from holding, relative to the size of its terms.

        `orthogonality` $\max_j|\langle w_j,g_j\rangle|/(\|w_j\|\|g_j\|)$, the largest cosine of all neurons;
        `gradient`, `hessian`, `radial`: the norm of the difference in units of the right side's;
        `quadratic` $|w^\top Hw|/(\|w\|\|Hw\|)$.  0 where both sides are.
        """
        lengths = _norms(self.weight) * _norms(self.gradient)
        size = self.weight.norm() * self.radial.norm()
        return {
            "orthogonality": _ratio(self.inner.abs(), lengths).max().item(),
            "gradient": _apart(self.scaled_gradient, self.gradient),
            "hessian": _apart(self.scaled_product, self.product),
            "radial": _apart(self.radial, -self.gradient),
            "quadratic": _ratio(self.quadratic.abs(), size).item(),
        }


def scale_identities(loss: Loss, weight: Tensor, factors: Tensor, direction: Tensor) -> ScaleIdentities:
    r"""The identities of this module at one weight; see `ScaleIdentities` for what equals what.

    `loss` maps a tensor shaped like `weight` (n, ...) to a scalar and must be twice differentiable (almost
    everywhere: ReLU will do); `factors` (n,) are the $c_j>0$, one for each neuron; `direction`, shaped like
    the weight, is the v of Hv.  With batch norm in training mode and eps = 0 they hold to rounding; with eps
    > 0 nearly, see `radial_gradient`.  Give float64.  Raises ValueError if a factor is not positive.
    """
    if not bool((factors > 0).all()):
        raise ValueError("The factors must be positive: batch norm sees the sign of a weight.")
    c = _by_row(factors, weight)
    gradient, product = _derivatives(loss, weight, direction)
    scaled_gradient, scaled_product = _derivatives(loss, c * weight, c * direction)
    _, radial = _derivatives(loss, weight, weight)
    return ScaleIdentities(
        inner=_rows(weight * gradient).sum(1),
        quadratic=(weight * radial).sum(),
        gradient=gradient,
        scaled_gradient=c * scaled_gradient,
        product=product,
        scaled_product=c * scaled_product,
        radial=radial,
        weight=weight.detach(),
    )


class RadialGradient(NamedTuple):
    r"""What eps leaves of the gradient along each neuron's weights, all (n,).

    `inner` $\langle w_j,\nabla_jL\rangle$ equals `predicted`; `relative` is `inner` over
    $\|w_j\|\|\nabla_jL\|$, the cosine that scale invariance says is zero.
    """

    inner: Tensor
    predicted: Tensor
    relative: Tensor


def radial_gradient(
    weight: Tensor, gradient: Tensor, gamma: Tensor, gamma_gradient: Tensor, var: Tensor, eps: float
) -> RadialGradient:
    r"""How eps breaks scale invariance, exactly: batch norm at cw with eps is batch norm at w with eps / c^2.

    $$\langle w_j,\nabla_{w_j}L\rangle=\delta_j\,\gamma_j\,\frac{\partial L}{\partial\gamma_j},\qquad
    \delta_j=\frac{\epsilon}{\sigma_j^2+\epsilon}$$

    So it is small while $\sigma_j^2$, which goes as $\|w_j\|^2$, is large against eps.  Weights c times
    smaller have $\delta$ about $1/c^2$ times larger: that is where weight decay may lead them.

    `weight` and `gradient` (n, ...) of a layer without a bias, or with one (which changes nothing) left out;
    `gamma`, its gradient and `var`, the batch's biased variance of the layer's outputs, (n,).
    """
    inner = _rows(weight * gradient).sum(1)
    predicted = eps / (var + eps) * gamma * gamma_gradient
    return RadialGradient(inner, predicted, _ratio(inner, _norms(weight) * _norms(gradient)))


def squared_norms_after(weight: Tensor, gradient: Tensor, lr: float, decay: float = 0.0) -> Tensor:
    r"""Each neuron's squared norm after a step $w^+=(1-\eta\lambda)w-\eta g$, by Pythagoras, (n,).

    $$\|w_j^+\|^2=(1-\eta\lambda)^2\|w_j\|^2+\eta^2\|g_j\|^2\quad\text{because }g_j\perp w_j$$

    Without weight decay (`decay` $\lambda$ = 0) the norm can only grow.  `weight`, `gradient` (n, ...).
    """
    return (1 - lr * decay) ** 2 * _norms(weight).square() + lr**2 * _norms(gradient).square()


def effective_rates(weight: Tensor, lr: float) -> Tensor:
    r"""$\eta/\|w_j\|^2$ of each neuron, (n,): the learning rate that its direction sees.

    With $u=w/\|w\|$ and $g(w)=g(u)/\|w\|$, the step $w-\eta g(w)$ has the direction of
    $u-\frac{\eta}{\|w\|^2}g(u)$.  Only this ratio counts: larger weights learn as with a smaller rate.
    """
    return lr / _norms(weight).square()


def exponential_rates(lr: float, decay: float, steps: int) -> Tensor:
    r"""$\eta_t=\eta(1-\eta\lambda)^{-(2t+1)}$ for t = 0 ... steps - 1, (steps,), float64.

    The rates that, without weight decay, go the way of a constant rate $\eta$ with weight decay $\lambda$;
    see `decay_as_rates`.  With the exponent $-2t$ the two ways part.  Raises ValueError unless
    $0\le\eta\lambda<1$.  Source: Li and Arora 2020, for descent without momentum.
    """
    if not 0 <= lr * decay < 1:
        raise ValueError(f"lr * decay must be at least 0 and below 1, not {lr * decay}.")
    t = torch.arange(steps, dtype=torch.float64)
    return lr * (1 - lr * decay) ** -(2 * t + 1)


def descend(loss: StepLoss, start: Tensor, rates: Tensor, decay: float = 0.0) -> Tensor:
    r"""Gradient descent $w_{t+1}=(1-\eta_t\lambda)w_t-\eta_t\nabla f_t(w_t)$: the path, (steps + 1, *start).

    `loss(w, t)` is $f_t(w)$, the loss of step t's batch; `rates` (steps,) the $\eta_t$, `decay` $\lambda$.
    """
    path = [start.detach()]
    for t, rate in enumerate(rates.tolist()):
        gradient = gradient_of(lambda w, t=t: loss(w, t), path[-1])
        path.append((1 - rate * decay) * path[-1] - rate * gradient)
    return torch.stack(path)


class DecayAsRates(NamedTuple):
    """Two paths, (steps + 1, n, ...): weight decay at a constant rate, and no decay at growing `rates`."""

    decayed: Tensor
    growing: Tensor
    rates: Tensor
    shrinkage: Tensor  # (1 - lr decay)^t, (steps + 1,): decayed = shrinkage * growing

    @property
    def error(self) -> float:
        """The largest distance between the directions of a neuron on the two ways, over all steps."""
        return (_directions(self.decayed) - _directions(self.growing)).norm(dim=2).max().item()


def decay_as_rates(
    loss: StepLoss, start: Tensor, lr: float, decay: float, steps: int, rates: Tensor | None = None
) -> DecayAsRates:
    r"""Weight decay with a constant rate is no weight decay with an exponentially growing one.

    With $q=1-\eta\lambda$ put $\tilde w_t=q^{-t}w_t$.  From $w_{t+1}=qw_t-\eta\nabla f(w_t)$ and
    $\nabla f(q^t\tilde w)=q^{-t}\nabla f(\tilde w)$,

    $$\tilde w_{t+1}=\tilde w_t-\eta\,q^{-(2t+1)}\nabla f(\tilde w_t):$$

    the same directions, and so the same losses, at every step; also with minibatches, if both ways see the
    same.  `loss` as in `descend`, scale invariant in every row of `start` (n, ...).  `rates` None means
    `exponential_rates`; others can be tried.  Raises as there.  Source: Li and Arora 2020.
    """
    right = exponential_rates(lr, decay, steps)
    chosen = right if rates is None else rates
    constant = torch.full((steps,), lr, dtype=torch.float64)
    shrinkage = (1 - lr * decay) ** torch.arange(steps + 1, dtype=torch.float64)
    return DecayAsRates(
        descend(loss, start, constant, decay), descend(loss, start, chosen), chosen, shrinkage
    )


class Equilibrium(NamedTuple):
    r"""Where weight decay and the growth of `squared_norms_after` balance.

    `angle` by which a step turns the weights, radians, exact for a constant $\|\tilde g\|$, and
    `small_angle`, for small $\eta\lambda$; `norm` $\|w\|$ and `small_norm`; `steps`, the time constant.
    """

    angle: float  # arccos(1 - eta lambda)
    small_angle: float  # sqrt(2 eta lambda)
    norm: float  # (eta |g~|^2 / (lambda (2 - eta lambda)))^(1/4)
    small_norm: float  # (eta |g~|^2 / (2 lambda))^(1/4)
    steps: float  # 1 / (4 eta lambda): the norm's distance shrinks by 1/e


def equilibrium(lr: float, decay: float, gradient_norm: float = 1.0) -> Equilibrium:
    r"""The norm and the turning angle at which a scale-invariant weight with weight decay settles.

    The gradient at w has the norm $\|\tilde g\|/\|w\|$, $\|\tilde g\|$ (`gradient_norm`) being that on the
    unit sphere.  The norm stays if $\|w\|^2=(1-\eta\lambda)^2\|w\|^2+\eta^2\|\tilde g\|^2/\|w\|^2$:

    $$\|w\|^4=\frac{\eta\|\tilde g\|^2}{\lambda(2-\eta\lambda)}\approx\frac{\eta\|\tilde g\|^2}{2\lambda},
    \qquad\cos\angle(w,w^+)=1-\eta\lambda,\quad\angle\approx\sqrt{2\eta\lambda}.$$

    The angle depends on neither the gradient nor the network.  It is reached after some
    $1/(4\eta\lambda)$ steps.  In a network $\|\tilde g\|$ varies from step to step; then these are averages.
    Raises ValueError unless $0<\eta\lambda<1$.  Source: van Laarhoven 2017; the exact angle is derived here.
    """
    product = lr * decay
    if not 0 < product < 1:
        raise ValueError(f"lr * decay must be between 0 and 1, not {product}.")
    fourth = lr * gradient_norm**2 / decay
    return Equilibrium(
        angle=math.acos(1 - product),
        small_angle=math.sqrt(2 * product),
        norm=(fourth / (2 - product)) ** 0.25,
        small_norm=(fourth / 2) ** 0.25,
        steps=1 / (4 * product),
    )


class Walk(NamedTuple):
    """A random walk of one weight vector: `norms` (steps + 1,) and `angles` (steps,) between neighbours."""

    norms: Tensor
    angles: Tensor


def random_walk(
    lr: float, decay: float, steps: int, size: int = 100, norm: float = 1.0, seed: int = 0
) -> Walk:
    r"""Descent of a scale-invariant weight whose gradients are nothing but noise, in float64.

    From a random w of `size` values with the given `norm`, $w\to(1-\eta\lambda)w-\eta\,n/\|w\|$ with n
    uniform among the unit vectors orthogonal to w.  It settles at `equilibrium` with $\|\tilde g\|=1$.
    torch's random state is not touched.
    """
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(size, generator=random, dtype=torch.float64)
    w = norm * w / w.norm()
    norms, angles = [w.norm()], []
    for _ in range(steps):
        noise = torch.randn(size, generator=random, dtype=torch.float64)
        noise = noise - (noise @ w) / (w @ w) * w
        after = (1 - lr * decay) * w - lr * noise / noise.norm() / w.norm()
        # Where the cosine is near 1 its arccosine has lost half the digits; the tangent has not.
        along = after @ w / w.norm()
        angles.append(torch.atan2((after - along * w / w.norm()).norm(), along))
        w = after
        norms.append(w.norm())
    return Walk(torch.stack(norms), torch.stack(angles))


def _derivatives(loss: Loss, at: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian-vector product at one point, detached."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(at), at, create_graph=True)
        if not gradient.requires_grad:  # a linear loss: its gradient does not depend on the point
            return gradient, torch.zeros_like(gradient)
        (product,) = torch.autograd.grad(gradient, at, direction.detach(), materialize_grads=True)
    return gradient.detach(), product


def _rows(values: Tensor) -> Tensor:
    return values.detach().flatten(1)


def _norms(weight: Tensor) -> Tensor:
    return _rows(weight).norm(dim=1)


def _by_row(factors: Tensor, weight: Tensor) -> Tensor:
    return factors.view(-1, *[1] * (weight.ndim - 1))


def _directions(path: Tensor) -> Tensor:
    rows = path.flatten(2)
    return rows / rows.norm(dim=2, keepdim=True)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == 0, part.abs(), part / whole)


def _apart(left: Tensor, right: Tensor) -> float:
    return _ratio((left - right).norm(), right.norm()).item()
