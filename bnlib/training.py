"""The one training loop: plain SGD on an index stream, with probes plugged in.

All arms of a seed see the same batches and, layer by layer, the same initial weights, so that what differs
between them is the normalization alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bnlib import data, models, probes
from bnlib.probes.state import State
from bnlib.records import Row
from bnlib.updates import LAYOUTS, PLAIN, Alone, How, Stacked, allowed, products

#: name -> loss of (output, target), a scalar
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cross_entropy": F.cross_entropy,  # mean over the batch, nats
    "squared_classes": lambda output, y: (  # against 1 for the class and 0 for the others
        (output - F.one_hot(y, output.shape[1])).square().sum() / (2 * len(y))
    ),
    "squared_sum": lambda output, y: (output - y).square().sum(),
    "squared_mean": lambda output, y: (output - y).square().sum() / len(y),
}

#: name -> makes the optimiser of (parameters, learning rate, weight decay, momentum)
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters, lr, decay, momentum: torch.optim.SGD(
        parameters, lr, momentum=momentum, weight_decay=decay
    ),
    "adam": lambda parameters, lr, decay, momentum: torch.optim.Adam(
        parameters, lr, betas=(momentum, 0.999), weight_decay=decay
    ),
}

#: what `weight_decay` applies to, and how; see `fit`
DECAYS = ("all", "hidden", "as_rates")

FLUSH = 25  # steps between looks at the losses: a look waits for the device


Measured = Iterable[tuple[str, str, float]]  # layer, metric, value


@dataclass(frozen=True)
class Probe:
    """A measurement taken every `every` steps, before the update; it leaves no trace in the network."""

    measure: Callable[[State], Measured]
    every: int


def fit(
    model: nn.Module,
    dataset: data.Dataset,
    *,
    lr: float,
    steps: int,
    batch_size: int,
    seed: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decayed: str = "all",
    hidden_lr: float | None = None,
    optimiser: str = "sgd",
    loss: str = "cross_entropy",
    loss_every: int = 1,
    train_only: str = "everything",
    plugged: Iterable[Probe] = (),
    tick: Callable[[int], None] = lambda steps: None,
    how: How = PLAIN,
) -> list[Row]:
    """Train on the loss of that name in `LOSSES` and return what was measured.

    Equation: W <- W - lr (grad L(W; batch) + weight_decay W), heavy-ball momentum if asked for, no schedule,
    no augmentation, as in Santurkar et al. (2018), appendix A.  BN in training mode.  With a batch as large
    as the data it is gradient descent.  `optimiser="adam"` is Adam (Kingma and Ba 2015) with beta_1 =
    momentum, beta_2 = 0.999.

    The hidden weights (`hidden_weights`) may be treated apart: `hidden_lr` is their learning rate, None
    meaning `lr`; `decayed="hidden"` is weight decay of theirs alone.  `decayed="as_rates"` does without decay
    and lets their learning rate grow instead as lr (1 - lr weight_decay)^-(2t+1): the same training, where
    batch norm follows them (see `bnlib.theory.scale_invariance`).  It is for plain SGD; else ValueError.

    `train_only` names what is trained (`trained_entries`); the rest stays as it is, bit for bit, and needs no
    gradient from then on.

    Rows: `train_loss` (nats for the cross-entropy, mean over each `loss_every` steps, at the first of them,
    each loss before its update), whatever the probes measure (also once at the end, at step `steps`), and, if
    a loss is not finite, `diverged_at` with the step: training stops there and what came before is kept.
    Where not everything is trained, `trained_parameters` says how many numbers are.
    `tick(n)` is told of every n steps done.  `how` the steps are computed changes them by rounding alone; see
    `bnlib.updates`.
    """
    if loss not in LOSSES:
        raise ValueError(f"Unknown loss {loss!r}; choose one of {', '.join(LOSSES)}.")
    if optimiser not in OPTIMISERS:
        raise ValueError(f"Unknown optimiser {optimiser!r}; choose one of {', '.join(OPTIMISERS)}.")
    objective = LOSSES[loss]
    groups, rate_at = _groups(model, lr, hidden_lr, weight_decay, decayed)
    if decayed == "as_rates" and (momentum or optimiser != "sgd"):
        raise ValueError("Weight decay is a growing rate for plain SGD only: leave out momentum and Adam.")
    stepper = OPTIMISERS[optimiser](groups, lr, 0.0, momentum)
    entries = {} if train_only == "everything" else trained_entries(model, train_only, seed)
    for name, parameter in model.named_parameters() if entries else ():
        parameter.requires_grad_(name in entries)  # the optimiser leaves alone what has no gradient
    partly = [(model.get_parameter(name), chosen) for name, chosen in entries.items() if not chosen.all()]
    frozen = [(parameter, ~chosen, parameter.detach().clone()) for parameter, chosen in partly]

    def hold() -> None:
        with torch.no_grad():
            for parameter, mask, start in frozen:
                parameter[mask] = start[mask]

    # A graph replays one rate, and what Adam counts on the CPU it does not see.
    alike = optimiser == "sgd" and decayed != "as_rates" and not frozen
    how = allowed(replace(how, graph=how.graph and alike), model)
    update = Alone(model, dataset, objective, stepper, how, hold)
    (rows,) = loop(
        [model],
        update,
        seeds=[seed],
        lr=lr,
        rate_at=rate_at,
        steps=steps,
        batch_size=batch_size,
        loss_every=loss_every,
        plugged=plugged,
        tick=tick,
    )
    if entries:
        count = sum(int(chosen.sum()) for chosen in entries.values())
        rows.insert(0, (0, "", "trained_parameters", float(count)))
    return rows


def loop(
    networks: Sequence[nn.Module],
    update: Alone | Stacked,
    *,
    seeds: Sequence[int],
    lr: float,
    rate_at: Callable[[int], float],
    steps: int,
    batch_size: int,
    loss_every: int,
    plugged: Iterable[Probe],
    tick: Callable[[int], None],
) -> list[list[Row]]:
    """Train `networks` in lockstep, each on the index stream of its own seed; the rows of each, see `fit`.

    `update` takes the step for all of them; probes look at one network after the other.  One that diverges
    stops: nothing more is recorded of it, and the others go on.
    """
    dataset = update.dataset
    device = dataset.x_train.device
    streams = [data.batches(len(dataset.x_train), batch_size, seed, device=device) for seed in seeds]
    plugged = tuple(plugged)
    losses = torch.full((len(networks), steps), math.nan, device=device)
    rows: list[list[Row]] = [[] for _ in networks]
    stopped: dict[int, int] = {}  # network -> the first step whose loss was not finite
    for network in networks:
        network.train()

    with products("float32", device):
        for step in range(steps + 1):
            due = [probe for probe in plugged if step % probe.every == 0 or step == steps]
            if due or step % FLUSH == 0 or step == steps:
                bad = ~torch.isfinite(losses[:, :step])
                for k in bad.any(1).nonzero().flatten().tolist():
                    if k not in stopped:
                        stopped[k] = int(bad[k].nonzero()[0])
                        tick(steps - step)
                if len(stopped) == len(networks):
                    break
            going = [k for k in range(len(networks)) if k not in stopped]
            indices = torch.stack([next(stream) for stream in streams])
            group = update.optimiser.param_groups[0]
            group["lr"] = rate_at(step)
            states = []
            for k in going if due else ():
                x, y = dataset.x_train[indices[k]], dataset.y_train[indices[k]]
                decay = group["weight_decay"]
                state = State(
                    step,
                    networks[k],
                    x,
                    y,
                    lr,
                    dataset,
                    update.loss,
                    hidden_lr=rate_at(step),
                    hidden_decay=decay,
                    batched=update.how.batched,
                    shared=True,
                )
                rows[k] += [(step, *measured) for probe in due for measured in probe.measure(state)]
                states.append(state)
            if step == steps:
                break
            losses[:, step] = update(indices, states)
            tick(len(going))

    for k, found in enumerate(rows):
        finite = losses[k, : stopped.get(k, steps)].double().cpu()
        for first in range(0, len(finite), loss_every):
            found.append((first, "", "train_loss", finite[first : first + loss_every].mean().item()))
        if k in stopped:
            found.append((stopped[k], "", "diverged_at", float(stopped[k])))
    return rows


def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of every convolution and linear layer but the last, from input to output."""
    return [layer.weight for _, layer in models.layers(model)][:-1]


def _groups(
    model: nn.Module, lr: float, hidden_lr: float | None, weight_decay: float, decayed: str
) -> tuple[list[dict[str, Any]], Callable[[int], float]]:
    """The optimiser's parameter groups, and the learning rate of the first at each step."""
    if decayed not in DECAYS:
        raise ValueError(f"Unknown decayed {decayed!r}; choose one of {', '.join(DECAYS)}.")
    if hidden_lr is None and decayed == "all":
        return [{"params": list(model.parameters()), "weight_decay": weight_decay}], lambda step: lr
    hidden, first = hidden_weights(model), lr if hidden_lr is None else hidden_lr
    inside = {id(weight) for weight in hidden}
    others = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    growth = (1 - first * weight_decay) ** -2 if decayed == "as_rates" else 1.0
    start = first * math.sqrt(growth)
    groups = [
        {"params": hidden, "weight_decay": 0.0 if decayed == "as_rates" else weight_decay},
        {"params": others, "weight_decay": weight_decay if decayed == "all" else 0.0},
    ]
    return groups, lambda step: start * growth**step


def trained_entries(model: nn.Module, train_only: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Which numbers are trained: parameter name -> boolean mask of its shape; a parameter none of whose
    entries is trained is left out.

    `train_only` is one of

    - "everything";
    - "gamma_beta": all gammas and betas; "gamma_beta_readout": these and the last layer;
    - "readout": the last layer, its weights and bias;
    - "random_weights": of every layer that a norm follows, two weights of each output channel, drawn with
      `seed`: as many as there are gammas and betas, and as many in each layer.

    Raises ValueError for another word, and if nothing is left to train.  Source: Frankle, Schwab and Morcos
    2021.
    """
    parameters, layers = dict(model.named_parameters()), models.layers(model)
    of_layers = {f"{name}.{part}" for name, layer in layers for part, _ in layer.named_parameters()}
    of_readout = {name for name in of_layers if name.startswith(f"{layers[-1][0]}.")}
    others = set(parameters) - of_layers
    whole = {
        "everything": set(parameters),
        "gamma_beta": others,
        "gamma_beta_readout": others | of_readout,
        "readout": of_readout,
        "random_weights": set(),
    }
    if train_only not in whole:
        raise ValueError(f"Unknown train_only {train_only!r}; choose one of {', '.join(whole)}.")
    chosen = {
        name: torch.ones_like(parameter, dtype=torch.bool)
        for name, parameter in parameters.items()
        if name in whole[train_only]
    }
    if train_only == "random_weights":
        generator = torch.Generator().manual_seed(seed)
        for block in models.blocks(model):
            if block.end - block.start == 2:
                weight = parameters[f"{block.layer}.weight"]
                order = torch.rand(weight.flatten(1).shape, generator=generator).argsort(1)
                two = (order < 2).view(weight.shape)
                chosen[f"{block.layer}.weight"] = two.to(weight.device)
    if not chosen:
        raise ValueError(f"Nothing of this model is left to train with train_only={train_only!r}.")
    return chosen


def run(
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: str = "cpu",
    tick: Callable[[int], None] = lambda steps: None,
    how: How = PLAIN,
) -> list[Row]:
    """Build what `settings` declares, train it, and return the rows.

    Settings: `dataset` (a name for `data.load`, or the arguments of `data.linear_map`), `images` (train on
    the first so many alone), `model` (arguments of `bnlib.models.build`, with its `name`), `norm`, `where`,
    `init`, `gain`, `gamma`, `noise` (see `models.initialise`), `hidden_gain` (another factor on the hidden
    weights alone), `normalise_start` (normalise once, on the first so many images of the training set; see
    `models.normalise_start`), `eval_every`, `probes` (name in `bnlib.probes.PROBES` -> `every` and the
    probe's arguments), `dtype` and the keyword arguments of `fit`.  `how` is of the training step alone:
    probes and evaluation are always in the settings' own `dtype`.
    """
    model, dataset, rest = prepare(settings, seed=seed, device=device, layout=how.layout)
    plugged = probes_of(rest)
    return fit(model, dataset, seed=seed, plugged=plugged, tick=tick, how=how, **rest)


def probes_of(rest: dict[str, Any]) -> list[Probe]:
    """The probes that settings declare; they are taken out of `rest`."""
    plugged = []
    if every := rest.pop("eval_every", None):
        plugged.append(Probe(probes.evaluation, every))
    for name, arguments in rest.pop("probes", {}).items():
        if name not in probes.PROBES:
            raise ValueError(f"Unknown probe {name!r}; choose one of {', '.join(probes.PROBES)}.")
        arguments = dict(arguments)
        every = arguments.pop("every")
        plugged.append(Probe(partial(probes.PROBES[name], **arguments), every))
    return plugged


def prepare(
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: str = "cpu",
    layout: str = "channels_last",
    dataset: data.Dataset | None = None,
) -> tuple[nn.Module, data.Dataset, dict[str, Any]]:
    """The network at its start, the data set, and those of the settings that neither has used.

    `dataset` stands in for the declared one, if given.
    """
    rest = dict(settings)
    dtype = getattr(torch, rest.pop("dtype", "float32"))
    declared = rest.pop("dataset")
    dataset = _dataset(declared, seed, device, dtype) if dataset is None else dataset
    if (images := rest.pop("images", None)) is not None:
        dataset = replace(dataset, x_train=dataset.x_train[:images], y_train=dataset.y_train[:images])
    architecture = {**rest.pop("model"), "norm": rest.pop("norm"), "where": rest.pop("where")}
    model = models.build(**architecture, **_input_arguments(architecture["name"], dataset))
    names = ("gain", "gamma", "noise")
    models.initialise(model, rest.pop("init"), seed=seed, **{n: rest.pop(n) for n in names if n in rest})
    if "hidden_gain" in rest:
        gain = rest.pop("hidden_gain")
        with torch.no_grad():
            for weight in hidden_weights(model):
                weight *= gain
    if (images := rest.pop("normalise_start", None)) is not None:
        models.normalise_start(model.to(dataset.x_train), dataset.x_train[:images])
    return model.to(device=device, dtype=dtype, memory_format=LAYOUTS[layout]), dataset, rest


def _dataset(chosen: str | Mapping[str, int], seed: int, device: str, dtype: torch.dtype) -> data.Dataset:
    if isinstance(chosen, str):
        return data.load(chosen, device=device, dtype=dtype)
    return data.linear_map(**chosen, seed=seed, device=device, dtype=dtype)


def _input_arguments(model: str, dataset: data.Dataset) -> dict[str, int]:
    """What a model must know of the images and the classes."""
    if model == "deep_linear":
        return {}
    channels, height, width = dataset.x_train.shape[1:]
    sizes = {
        "vgg": {"in_channels": channels},
        "digit_cnn": {"in_channels": channels, "size": height},
        "mlp": {"in_features": channels * height * width},
        "residual_mlp": {"in_features": channels * height * width},
    }
    return {**sizes[model], "classes": dataset.classes}
