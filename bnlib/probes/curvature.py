r"""Theorem 4.2 of Santurkar et al. (2018), term by term, in the batch normalization layers of a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bnlib.probes.pairs import ROUNDING, normalised_layers
from bnlib.probes.state import State
from bnlib.theory import Theorem42, theorem_4_2


def curvature_terms(
    state: State, layers: Sequence[str] | None = None, channels: int = 2, size: int = 32
) -> Iterator[tuple[str, str, float]]:
    r"""The curvature along the gradient through a batch norm: both forms of Theorem 4.2, at eps = 0.

    With $v=\nabla_{y_j}\hat L$, $g=\nabla_{z_j}\hat L$ and H the Hessian of the loss in channel j of z,

    $$v^\top(\nabla_{y_j}^2\hat L)v=\frac{\gamma^2}{\sigma^2}v^\top Hv
    -\frac{\gamma}{m\sigma^2}\langle g,\hat y\rangle\|v\|^2,$$

    and the second form has $g^\top Hg$ for $v^\top Hv$ and "$\le$".  In every layer that a batch norm follows
    (or in those of `layers`), for the first `channels` of its channels that vary and that a gradient reaches,
    on the first `size` images of the state's batch.

    Rows for channel number c: `thm42_lhs[c]`; `thm42_rhs[c]` and `thm42_second[c]`, the right sides of the
    two forms; `thm42_curvature[c]` $\frac{\gamma^2}{\sigma^2}v^\top Hv$ and `thm42_bending[c]`, the two terms
    of the first.  Over these channels: `thm42_error`, the largest |left - right| of the first form in units
    of the sum of its terms' sizes; `thm42_second_violated`, the share in which the second form is false
    (by more than 1e-9 of its terms); `thm42_preserves`, the share that meets its condition
    $v^\top Hv\le g^\top Hg$; `thm42_convex`, the share with $v^\top Hv\ge0$; `thm42_aligned`, the share with
    $\langle g,\hat y\rangle\ge0$.

    A float64 copy of the model, in training mode.  The price is that of differentiating twice: four
    Hessian-vector products per channel through the rest of the network.  At the first convolution of a
    quarter-width VGG-A on a CPU, two channels take as long as 13 training steps with 32 images, and as 60
    with 128.  Raises ValueError for an unknown layer.  Source: Santurkar et al. 2018, theorem 4.2; see
    `theory.theorem_4_2`.
    """
    for layer in normalised_layers(state, layers, size):
        reaching = [d for d in range(layer.g_y.ndim) if d != 1]
        live = (layer.g_y.square().sum(reaching) > 0).nonzero().flatten()[:channels].tolist()
        if not live:
            continue
        terms = theorem_4_2(layer.y, layer.loss, layer.gamma, layer.beta, channels=live)
        numbers = layer.channels[live].tolist()
        for metric, value in _rows(terms, numbers).items():
            if math.isfinite(value):
                yield layer.name, f"thm42_{metric}", value


def _rows(terms: Theorem42, numbers: Sequence[int]) -> dict[str, float]:
    curvature = terms.factor * terms.curvature
    each = {
        "lhs": terms.lhs,
        "rhs": terms.rhs,
        "second": terms.second,
        "curvature": curvature,
        "bending": terms.bending,
    }
    found = {
        f"{metric}[{c}]": value
        for metric, values in each.items()
        for c, value in zip(numbers, values.tolist(), strict=True)
    }
    sizes = curvature.abs() + terms.factor * terms.output_curvature.abs() + terms.bending.abs()
    shares = {
        "second_violated": terms.lhs > terms.second + ROUNDING * sizes,
        "preserves": terms.preserves_norms,
        "convex": terms.curvature >= 0,
        "aligned": terms.inner >= 0,
    }
    found["error"] = terms.error.max().item()
    return found | {metric: held.double().mean().item() for metric, held in shares.items()}
