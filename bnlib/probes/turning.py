r"""How fast the weights turn: lengths, effective learning rates and the angle of the coming step.

Where batch norm follows a layer, only the directions of its weights matter, one for each neuron (or filter).
A step $W^+=(1-\eta\lambda)W-\eta g$ turns them by an angle that follows from W and g; see
`bnlib.theory.scale_invariance` for what that angle settles at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bnlib import models
from bnlib.probes.landscape import start_of
from bnlib.probes.state import State


def turning(state: State) -> Iterator[tuple[str, str, float]]:
    r"""Lengths and angles of the hidden weights, and what the coming step of SGD does to them.

    For every convolution and linear layer but the last, with the weight W, its gradient g on the state's
    batch (training mode), the layer's learning rate $\eta$ and weight decay $\lambda$, and no momentum:

    - `weight_norm` $\|W\|$ and `gradient_norm` $\|g\|$;
    - `radial`, $|\langle W,g\rangle|/(\|W\|\|g\|)$: 0 if batch norm follows and eps = 0;
    - `effective_rate` $\eta/\|W\|^2$;
    - `angle` between W and $W^+=(1-\eta\lambda)W-\eta g$, radians,

    $$\tan\angle=\frac{\eta\|g_\perp\|}{(1-\eta\lambda)\|W\|-\eta\langle g,W\rangle/\|W\|},\qquad
      g_\perp=g-\frac{\langle g,W\rangle}{\|W\|^2}W;$$

    - `neuron_radial`, `neuron_effective_rate`, `neuron_angle`: the same of each neuron's row $w_j$, the
      median of all neurons (the lower one of two); one that has no gradient does not turn.

    With weight decay also one row for the whole network, `equilibrium_angle` $\sqrt{2\eta\lambda}$.  Weights
    that another parameter stands for (weight normalization) are left out.  In the standard network the same
    is measured; there neither lengths nor angles have this meaning.  One gradient; leaves no trace.
    Sources: van Laarhoven 2017 for effective rates and the equilibrium.
    """
    lr = state.lr if state.hidden_lr is None else state.hidden_lr
    parameters = dict(state.model.named_parameters())
    names = [name for name, _ in models.layers(state.model)][:-1]
    names = [name for name in names if f"{name}.weight" in parameters]
    gradient = start_of(state, [f"{name}.weight" for name in names]).gradient if names else {}
    for name in names:
        w = parameters[f"{name}.weight"].detach().double().flatten(1)
        g = gradient[f"{name}.weight"].double().flatten(1)
        whole = lengths_and_angles(w.reshape(1, -1), g.reshape(1, -1), lr, state.hidden_decay)
        found = {metric: values.item() for metric, values in whole.items()}
        for metric, values in lengths_and_angles(w, g, lr, state.hidden_decay).items():
            if metric in ("radial", "effective_rate", "angle"):
                found[f"neuron_{metric}"] = values.median().item()
        yield from ((name, metric, value) for metric, value in found.items() if math.isfinite(value))
    if (product := lr * state.hidden_decay) > 0:
        yield "", "equilibrium_angle", math.sqrt(2 * product)


def lengths_and_angles(w: Tensor, g: Tensor, lr: float, decay: float) -> dict[str, Tensor]:
    """The quantities of `turning` for each row of w and its gradient g, (n, values); (n,) each."""
    length, steepness = w.norm(dim=1), g.norm(dim=1)
    unit = w / length[:, None]
    inner = (unit * g).sum(1)
    across = (g - inner[:, None] * unit).norm(dim=1)
    # The tangent, because near 1 a cosine has lost half the digits of its angle.
    angle = torch.atan2(lr * across, (1 - lr * decay) * length - lr * inner)
    radial = torch.where(steepness > 0, inner.abs() / steepness, 0.0)
    return {
        "weight_norm": length,
        "gradient_norm": steepness,
        "radial": radial,
        "effective_rate": lr / length.square(),
        "angle": angle,
    }
