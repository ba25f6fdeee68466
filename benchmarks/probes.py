"""What each probe costs, in units of a training step, on the quarter-width VGG-A of the laptop scale.

    python benchmarks/probes.py [--write] [--rounds N] [--quick]

One thread, as in a recording on a CPU.  In every round the training step and all probes take their turn; the
table gives medians, over the rounds, of the ratio of two times of the same round.  Times are CPU times, so
that other work on the machine counts as little as possible.  Batch 128, all layers; CIFAR-10 if it is there,
and else random images of that shape, which cost the same.

"Alone" is the probe by itself.  "In a run" is what it adds to the step that follows, which uses the pass that
the probe has made at the same weights, if it has made one.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import report
import torch
from torch import Tensor, nn

from bnlib import data, models, probes
from bnlib.training import LOSSES, State
from bnlib.updates import Alone

Rows = list[tuple[str, str, float]]
LENGTHS = [1e-3, 1e-2, 1e-1]

OURS, NAIVE = "covariate_shift", "covariate_shift the naive way: a copy of the network per layer"
#: the probes that run at all layers; `evaluation` is left out: its cost is that of the test set
MEASURED: dict[str, Callable[[State], Rows]] = {
    OURS: lambda state: list(probes.covariate_shift(state)),
    "matched_covariate_shift, one length": lambda state: list(probes.matched_covariate_shift(state, [1e-2])),
    "activation_shift": lambda state: list(probes.activation_shift(state, size=len(state.x))),
    "activation_histogram": lambda state: list(probes.activation_histogram(state, size=len(state.x))),
    "activation_moments": lambda state: list(probes.activation_moments(state, size=len(state.x))),
    "training_mode_accuracy, one batch": lambda state: list(
        probes.training_mode_accuracy(state, size=len(state.x))
    ),
    "landscape, four steps": lambda state: list(probes.landscape(state, [0.5, 1, 2, 4])),
    "relative_landscape, three lengths": lambda state: list(probes.relative_landscape(state, LENGTHS)),
    "activation_beta, one layer, four steps": lambda state: list(
        probes.activation_beta(state, [0.5, 1, 2, 4], layers=["conv4"])
    ),
    "landscape_mistakes, one of them, four steps": lambda state: list(
        probes.landscape_mistakes(state, [0.5, 1, 2, 4], ["summed_gradients"])
    ),
    "random_slice, five points": lambda state: list(probes.random_slice(state, [-1, -0.5, 0, 0.5, 1])),
    "batch_norm_terms": lambda state: list(probes.batch_norm_terms(state)),
    "lp_scales, three sizes, four orders": lambda state: list(probes.lp_scales(state)),
    "one_layer_pairs, in float64": lambda state: list(probes.one_layer_pairs(state)),
    "curvature_terms, two channels of one layer, 32 images, in float64": lambda state: list(
        probes.curvature_terms(state, layers=["conv4"])
    ),
    "hessian_spectrum, one draw of ten Lanczos steps": lambda state: list(
        probes.hessian_spectrum(state, steps=10, draws=1)
    ),
    "relative_spectrum, one draw of ten Lanczos steps": lambda state: list(
        probes.relative_spectrum(state, steps=10, draws=1)
    ),
    "turning": lambda state: list(probes.turning(state)),
    "two_modes, two batches": lambda state: list(
        probes.two_modes(state, size=2 * len(state.x), many=len(state.x))
    ),
    "shifted_accuracy, one batch of one shift, two sets of statistics": lambda state: list(
        probes.shifted_accuracy(state, {"contrast": [0.5]}, size=len(state.x), samples=[8, len(state.x)])
    ),
    "gammas": lambda state: list(probes.gammas(state)),
    "weight_gradients": lambda state: list(probes.weight_gradients(state)),
    NAIVE: lambda state: naive_covariate_shift(state),
}


def naive_covariate_shift(state: State) -> Rows:
    """Definition 2.1 as one would write it down first: for every layer a copy of the whole network in which
    the modules before it have moved."""

    def gradients(model: nn.Sequential, *names: str) -> list[Tensor]:
        wanted = [model.get_parameter(name) for name in names]
        return list(torch.autograd.grad(state.loss(model(state.x), state.y), wanted))

    names = [name for name, _ in state.model.named_parameters()]
    modules = [name for name, _ in state.model.named_children()]
    before = dict(zip(names, gradients(copy.deepcopy(state.model), *names), strict=True))
    rows = []
    for layer, _ in models.layers(state.model):
        mixed = copy.deepcopy(state.model)
        with torch.no_grad():
            for name, parameter in mixed.named_parameters():
                if modules.index(name.split(".")[0]) < modules.index(layer):
                    parameter -= state.lr * before[name]
        (after,) = gradients(mixed, f"{layer}.weight")
        rows.append((layer, "shift_l2", (before[f"{layer}.weight"] - after).double().norm().item()))
    return rows


def images(quick: bool) -> tuple[data.Dataset, str]:
    """CIFAR-10, or random images of its shape, and which of the two."""
    if not quick:
        try:
            return data.load("cifar10", download=False), "CIFAR-10"
        except data.DataError:
            pass
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (512,), generator=generator)
    return data.Dataset("random", x, y, x, y), "random images of the shape of CIFAR-10"


def seconds(call: Callable[[], object]) -> float:
    """The CPU time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def costs(norm: str, dataset: data.Dataset, batch: int, width: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of a training step ("step"), of each probe alone (its name), and of each probe with the step
    after it (its name and "+"), in every round."""
    model = models.initialise(models.vgg(width=width, norm=norm), seed=0)
    model = model.to(memory_format=torch.channels_last)
    x, y = dataset.x_train[:batch], dataset.y_train[:batch]
    state = State(0, model, x, y, 0.1, dataset, LOSSES["cross_entropy"], shared=True)
    # A learning rate of 0, so that the probes see the same network in every round; a step costs the same.
    update = Alone(model, dataset, state.loss, torch.optim.SGD(model.parameters(), lr=0.0))
    first = torch.arange(batch)[None]

    rows = MEASURED[OURS](state)
    ours = [value for _, metric, value in rows if metric == "shift_l2"]
    theirs = [value for _, _, value in naive_covariate_shift(state)]
    if not torch.allclose(torch.tensor(ours), torch.tensor(theirs), rtol=1e-2, atol=1e-5):
        raise AssertionError(f"The two ways must measure the same shift, not {ours} and {theirs}.")
    taken: dict[str, list[float]] = {name: [] for name in ("step", *MEASURED, *(f"{n}+" for n in MEASURED))}
    for _ in range(rounds + 1):
        taken["step"].append(seconds(lambda: update(first)))
        for name, probe in MEASURED.items():
            fresh = replace(state)
            taken[name].append(seconds(lambda probe=probe, fresh=fresh: probe(fresh)))
            after = seconds(lambda fresh=fresh: update(first, [fresh])) if fresh.made else taken["step"][-1]
            taken[f"{name}+"].append(taken[name][-1] + after)
    return {name: times[1:] for name, times in taken.items()}  # the first round warms up


def table(measured: dict[str, dict[str, list[float]]]) -> str:
    """The report as Markdown; `measured` is by norm and by name."""

    def ratio(taken: dict[str, list[float]], name: str, unit: str) -> float:
        return median(a / b for a, b in zip(taken[name], taken[unit], strict=True))

    def cells(taken: dict[str, list[float]], name: str) -> list[str]:
        added = ratio(taken, f"{name}+", "step") - 1
        return [f"{ratio(taken, name, 'step'):.1f}", f"{max(0.0, added):.1f}"]

    head = [
        "cost in training steps",
        *(f"{norm}, {how}" for norm in measured for how in ("alone", "in a run")),
    ]
    rows = [
        [name, *(cell for taken in measured.values() for cell in cells(taken, name))] for name in MEASURED
    ]
    last = {"the naive way / covariate_shift": lambda taken: f"{ratio(taken, NAIVE, OURS):.1f}"}
    last["one training step"] = lambda taken: f"{1000 * median(taken['step']):.0f} ms"
    rows += [
        [name, *(c for taken in measured.values() for c in (cell(taken), ""))] for name, cell in last.items()
    ]
    return report.table(head, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="how often everything takes its turn (7)")
    parser.add_argument("--write", action="store_true", help="put the table into the README beside this file")
    parser.add_argument("--quick", action="store_true", help="a tiny network, one round: does it run?")
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    dataset, name = images(chosen.quick)
    size = {"batch": 8, "width": 0.0625, "rounds": 1} if chosen.quick else {"batch": 128, "width": 0.25}
    size = {"rounds": chosen.rounds, **size}
    measured = {
        label: costs(norm, dataset, **size) for label, norm in (("standard", "none"), ("BN", "batch"))
    }
    text = (
        f"VGG-A, width {size['width']}, batch {size['batch']}, {name}; 1 thread, medians of {size['rounds']} "
        f"rounds.  {report.machine('torch', 'numpy', load=load)}\n\n{table(measured)}"
    )
    print(text)
    if chosen.write:
        report.write("probes", text)


if __name__ == "__main__":
    main()
