"""Batch norm's two modes, and what its statistics are worth: how well it does with which of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlib import models, norms
from bnlib.probes.state import State
from bnlib.probes.tracing import evaluating, no_trace

Rows = Iterator[tuple[str, str, float]]


# -- training mode against evaluation mode ---------------------------------------------------------------


@torch.no_grad()
def two_modes(state: State, size: int = 2000, batch_size: int | None = None, many: int = 256) -> Rows:
    r"""How far training and evaluation mode are apart: on the first `size` test images, in batches of
    `batch_size` (None: that of the training).

    Rows without a layer, shares in 0..1: `test_accuracy_running` in evaluation mode; `test_accuracy_batch` in
    training mode, every batch with its own statistics; `mode_disagreement`, the share of images that the two
    modes put into different classes; and, if the model has a `BatchNorm`, `test_accuracy_reestimated`, in
    evaluation mode with the statistics of `norms.re_estimate` over 4 batches of `many` training images.

    Row for each `BatchNorm`, by its layer: `inverse_variance`, the mean over batches and channels of
    $\bar\sigma^2/\sigma_B^2$, with $\sigma_B^2$ a batch's biased variance of what enters and $\bar\sigma^2$
    the channel's variance over all `size` images in these batches; m / (m - 3) for Gaussian values.
    """
    x, y = state.dataset.x_test[:size], state.dataset.y_test[:size]
    batch = len(state.x) if batch_size is None else batch_size
    x, y = x[: len(x) - len(x) % batch], y[: len(y) - len(y) % batch]
    with no_trace(state.model) as model:
        running = _classes(model.eval(), x, 1000)
        with _watched(model) as entering:
            batched = _classes(model.train(), x, batch)
        spread = {layer: _inverse_variance(parts) for layer, parts in entering.items()}
        reestimated = None
        if entering:
            norms.re_estimate(model, state.dataset.x_train[: 4 * many], min(many, len(state.dataset.x_train)))
            reestimated = _classes(model.eval(), x, 1000)
    yield "", "test_accuracy_running", _share(running == y)
    yield "", "test_accuracy_batch", _share(batched == y)
    yield "", "mode_disagreement", _share(running != batched)
    if reestimated is not None:
        yield "", "test_accuracy_reestimated", _share(reestimated == y)
    for layer, value in spread.items():
        if math.isfinite(value):
            yield layer, "inverse_variance", value


class _watched:
    """The inputs of every `BatchNorm` while it is open: (mean, biased variance) per batch, by layer."""

    def __init__(self, model: nn.Sequential) -> None:
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.hooks = []
        for layer, norm in _norms(model):
            if isinstance(norm, norms.BatchNorm):
                self.seen[layer] = []
                self.hooks.append(norm.register_forward_pre_hook(partial(self._look, layer)))

    def _look(self, layer: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        over = [dim for dim in range(inputs[0].ndim) if dim != 1]
        variance, mean = torch.var_mean(inputs[0].double(), over, correction=0)
        self.seen[layer].append((mean, variance))

    def __enter__(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        return self.seen

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def _inverse_variance(parts: list[tuple[Tensor, Tensor]]) -> float:
    means, variances = (torch.stack(items) for items in zip(*parts, strict=True))
    total = variances.mean(0) + means.var(0, correction=0)
    alive = total > 0
    return (total[alive] / variances[:, alive]).mean().item()


# -- other images than those of the training -------------------------------------------------------------


def _brightness(x: Tensor, strength: float) -> Tensor:
    return x + strength


def _contrast(x: Tensor, strength: float) -> Tensor:
    return (1 - strength) * x


def _colour(x: Tensor, strength: float) -> Tensor:
    shift = torch.linspace(1, -1, x.shape[1], device=x.device, dtype=x.dtype)
    return x + strength * shift.view(1, -1, 1, 1)


def _noise(x: Tensor, strength: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(x.shape[1:], generator=generator, dtype=torch.float64)
    shifts = torch.randint(drawn.numel(), (len(x),), generator=generator)
    # One draw, turned round by another number of places for each image: the same bits on every device, and
    # the noise of an image does not depend on how many others there are.
    turned = torch.stack([drawn.flatten().roll(int(places)) for places in shifts]).view(x.shape)
    return x + strength * turned.to(x)


def _blur(x: Tensor, strength: float) -> Tensor:
    line = torch.tensor([1.0, 2.0, 1.0], device=x.device, dtype=x.dtype) / 4
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    for _ in range(round(strength)):
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
    return x


#: kind of shift -> function of (images, strength); see `shifted`
SHIFTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "colour": _colour,
    "noise": _noise,
    "blur": _blur,
}


def shifted(x: Tensor, kind: str, strength: float) -> Tensor:
    r"""Images of another camera: `x` of shape (N, C, H, W), normalised as in `data.load`, s the strength.

    | kind | what becomes of x | unit of s |
    |---|---|---|
    | brightness | x + s | standard deviations of the training images |
    | contrast | (1 - s) x, towards their mean | 1: all is grey |
    | colour | x_c + s a_c, a from 1 for the first channel to -1 for the last | standard deviations |
    | noise | x + s z, z standard normal at each pixel and channel | standard deviations |
    | blur | s times the 3x3 binomial filter (1, 2, 1) / 4, borders repeated | passes |

    Nothing is cut off at black or white.  Deterministic; torch's random state is not touched.  Raises
    ValueError for another kind.
    """
    if kind not in SHIFTS:
        raise ValueError(f"Unknown shift {kind!r}; choose one of {', '.join(SHIFTS)}.")
    return SHIFTS[kind](x, strength)


@torch.no_grad()
def shifted_accuracy(
    state: State,
    shifts: dict[str, Sequence[float]],
    size: int = 1000,
    samples: Sequence[int] = (8, 32, 128, 512),
) -> Rows:
    """Test accuracy (share in 0..1) on images that are not like the training images, with the statistics of
    which images?

    Rows `accuracy[how]@kind=strength` for the first `size` test images, clean (`@clean=0`) and for each kind
    and strength of `shifts` (see `shifted`): how = "running", evaluation mode as it is; and, if the model has
    a `BatchNorm`, "batch", training mode, the `size` images in one batch; "n=N" for each N of `samples`,
    evaluation mode after `norms.re_estimate` on the last N test images, shifted in the same way, in one
    batch and without their labels.  Raises ValueError if those and the first `size` overlap.
    """
    x, y = state.dataset.x_test[:size], state.dataset.y_test[:size]
    if len(x) + max(samples) > len(state.dataset.x_test):
        raise ValueError(
            f"There are no {size} test images and {max(samples)} others among {len(state.dataset.x_test)}; "
            "choose fewer."
        )
    cases = [("clean", 0.0), *((kind, s) for kind, strengths in shifts.items() for s in strengths)]
    for kind, strength in cases:
        images, others = x, state.dataset.x_test[-max(samples) :]
        if kind != "clean":
            images, others = shifted(images, kind, strength), shifted(others, kind, strength)
        found = {"running": _evaluated(state.model, images)}
        if any(isinstance(module, norms.BatchNorm) for module in state.model.modules()):
            with no_trace(state.model) as model:
                found["batch"] = model(images).argmax(1)
                for n in samples:
                    norms.re_estimate(model, others[-n:])
                    found[f"n={n}"] = _evaluated(model, images)
        for how, classes in found.items():
            yield "", f"accuracy[{how}]@{kind}={strength:g}", _share(classes == y)


# -- gamma and beta --------------------------------------------------------------------------------------


@torch.no_grad()
def gammas(state: State) -> Rows:
    """Every normalization's scale: rows `gamma[c]` and `beta[c]` for channel c, by the layer before it."""
    for layer, norm in _norms(state.model):
        for letter, name in (("gamma", "weight"), ("beta", "bias")):
            values = getattr(norm, name, None)
            for channel, value in enumerate([] if values is None else values.tolist()):
                if math.isfinite(value):
                    yield layer, f"{letter}[{channel}]", value


def _norms(model: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    """Every normalization, by the layer that it follows; of batch norm with noise after it the former."""
    modules = list(model)
    for block in models.blocks(model):
        if block.end - block.start == 2:
            norm = modules[block.end - 1]
            yield block.layer, norm[0] if isinstance(norm, nn.Sequential) else norm


def _classes(model: nn.Module, x: Tensor, batch: int) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in x.split(batch)])


def _evaluated(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model):
        return _classes(model, x, 1000)


def _share(true: Tensor) -> float:
    return true.double().mean().item()
