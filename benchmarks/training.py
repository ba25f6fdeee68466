"""How fast networks are trained: `python benchmarks/training.py [--write] [--quick] [--device cuda]`.

First a training step and a short run with an evaluation, beside the loop that published replications have:
the network put together from torchvision's layers, a DataLoader whose transforms make tensors of images,
float32, `.item()` at every step.  Both see the same images and batch sizes; medians of rounds in which each
has its turn.

Then the whole machine with every setting of `bnlib.speed`: processes that fill all cores, or a GPU; and
beside them the one that `bnlib.speed.choose` would take.  At the end, what the laptop records say they took.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import report
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.vgg import make_layers
from torchvision.transforms import Compose, Normalize, ToTensor
from torchvision.transforms.functional import to_pil_image

from bnlib import data, experiments, images, models, records, speed, training
from bnlib.updates import LAYOUTS, PLAIN, PRECISIONS, How, products

ARMS = {"standard": "none", "BN": "batch"}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # as replications write them down
NO_GPU = "this machine has no GPU"


class Images(Dataset):
    """Images as torchvision's data sets hold them, an image and its label at a time."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y
        self.transform = Compose([ToTensor(), Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(to_pil_image(self.x[index])), int(self.y[index])


def settings(norm: str, width: float, batch: int, steps: int) -> dict[str, Any]:
    """A run of VGG-A on CIFAR-10 with one evaluation, at its end."""
    return {
        "dataset": "cifar10",
        "model": {"name": "vgg", "config": "A", "width": width},
        "norm": norm,
        "where": "everywhere",
        "init": "glorot_uniform",
        "lr": 0.1,
        "steps": steps,
        "batch_size": batch,
        "eval_every": steps,
    }


# -- one run, beside the plain loop ----------------------------------------------------------------------


def ours(run: Mapping[str, Any], device: str, how: How) -> tuple[float, float]:
    """Seconds of a step, without the first, and of the whole run."""
    stamps: list[float] = []

    def tick(steps: int) -> None:
        if device != "cpu":
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())

    start = time.perf_counter()
    training.run(run, seed=0, device=device, tick=tick, how=how)
    return (stamps[-1] - stamps[0]) / (len(stamps) - 1), time.perf_counter() - start


def theirs(
    run: Mapping[str, Any], arrays: Mapping[str, np.ndarray], device: str, workers: int
) -> tuple[float, float]:
    """The same of the plain loop, with so many workers of its DataLoader."""
    plan = [c if c == "M" else round(c * run["model"]["width"]) for c in models.VGG["A"]]
    features = make_layers(plan, batch_norm=run["norm"] == "batch")
    model = nn.Sequential(features, nn.Flatten(), nn.Linear(plan[-2], 10)).to(device)
    optimiser, criterion = torch.optim.SGD(model.parameters(), run["lr"]), nn.CrossEntropyLoss()

    def loader(half: str) -> DataLoader:
        pairs = Images(arrays[f"x_{half}"], arrays[f"y_{half}"])
        return DataLoader(pairs, run["batch_size"], shuffle=half == "train", num_workers=workers)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from loader("train")

    stamps, losses, right = [], 0.0, 0
    start = time.perf_counter()
    model.train()
    for _, (x, y) in zip(range(run["steps"]), batches(), strict=False):
        x, y = x.to(device), y.to(device)
        optimiser.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimiser.step()
        losses += loss.item()
        stamps.append(time.perf_counter())
    model.eval()
    with torch.no_grad():
        for x, y in loader("test"):
            right += (model(x.to(device)).argmax(1) == y.to(device)).sum().item()
    return (stamps[-1] - stamps[0]) / (len(stamps) - 1), time.perf_counter() - start


def side_by_side(run: Mapping[str, Any], arrays: Mapping, device: str, rounds: int, how: How) -> list[float]:
    """Medians: our step, their step, their step / ours, our run, their run, their run / ours."""
    found = []
    for _ in range(rounds):
        (step, whole), (peer, peers) = ours(run, device, how), theirs(run, arrays, device, how.threads // 2)
        found.append([step, peer, peer / step, whole, peers, peers / whole])
    return [median(column) for column in zip(*found, strict=True)]


# -- the whole machine -----------------------------------------------------------------------------------


def sweep(device: str, cores: int) -> list[How]:
    """Every setting that a device can be given."""
    if device != "cpu":
        ways = product(LAYOUTS, [1], PRECISIONS, [1, 2, 5], [False, True])
    else:
        threads = [n for n in range(1, cores + 1) if cores % n == 0]
        ways = product(LAYOUTS, threads, ("float32", "bfloat16"), [1, 2], [False])
    return [PLAIN, *(how for how in (How(*way) for way in ways) if how != PLAIN)]


def words(how: How, cores: int) -> str:
    """A setting in a line."""
    parts = [f"{max(1, cores // how.threads)} x {how.threads}", how.layout.replace("_", " "), how.precision]
    return ", ".join([*parts, f"{how.together} at once"] + (["graph"] if how.graph else []))


def peak(precision: str) -> float:
    """Floating-point operations per second of a large product of matrices on the GPU."""
    n = 8192
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
    with products(precision, a.device):
        times = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(10):
                a @ b
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) / 10)
    return 2 * n**3 / min(times)


# -- what the records took -------------------------------------------------------------------------------


def minutes_by_chapter(workers: int = 4) -> dict[str, float]:
    """The recorded seconds of all runs of a chapter's laptop records, spread over so many workers."""
    found: dict[str, float] = {}
    for experiment in experiments.EXPERIMENTS.values():
        try:
            record = records.load(experiment.name, "laptop")
        except records.RecordError:
            continue
        taken = record.provenance["run_seconds"] / 60 / workers
        found[experiment.chapter] = found.get(experiment.chapter, 0.0) + taken
    return found


# -- the report ------------------------------------------------------------------------------------------


def on_a_cpu(goals: report.Goals, arrays: Mapping, quick: bool) -> str:
    """The tables of a CPU."""
    width, batch, steps = (1 / 32, 16, 3) if quick else (0.25, 128, 20)
    rounds, cores = (1, 1) if quick else (3, os.cpu_count() or 1)
    rows = []
    for arm, norm in ARMS.items():
        run = settings(norm, width, batch, steps)
        for threads in sorted({1, cores}):
            torch.set_num_threads(threads)
            found = side_by_side(run, arrays, "cpu", rounds, How(threads=threads))
            cells = [f"{1000 * value:.0f} ms" for value in found[:2]] + [report.number(found[2])]
            cells += [f"{value:.1f} s" for value in found[3:5]] + [report.number(found[5])]
            rows.append([f"{arm}, threads: {threads}", *cells])
            if threads == 1:
                goals.remark(f"plain loop / ours, a step, {arm}, 1 thread", report.number(found[2]))
    torch.set_num_threads(1)
    head = ["one run", "step", "plain loop's", "ratio", "run", "plain loop's", "ratio"]
    text = f"A run: {steps} steps of {batch} images and {len(arrays['x_test'])} test images.\n\n"
    text += report.table(head, rows)

    run = settings("batch", width, batch, steps)
    window = 0.02 if quick else speed.WINDOW
    everything = {"budget": math.inf, "tolerance": math.inf, "window": window}
    measured = speed.rates(run, sweep("cpu", cores), "cpu", cores, **everything)
    ways = sorted(measured, key=measured.__getitem__, reverse=True)
    kinds = {(how.layout, how.precision) for how in ways}
    error = {kind: speed.departure(run, How(layout=kind[0], precision=kind[1]), "cpu") for kind in kinds}
    best = max(measured.values())
    rows = [
        [
            words(how, cores),
            report.number(measured[how]),
            report.number(best / measured[how]),
            f"{error[how.layout, how.precision]:.0e}",
        ]
        for how in ways
        if measured[how]
    ]
    head = ["processes x threads and setting, BN", "steps/s", "slower than the best", "gradient off by"]
    text += f"\n\nAll {cores} cores at work, with each setting in turn:\n\n{report.table(head, rows)}"

    again = speed.rates(run, speed.candidates("cpu", cores), "cpu", cores, window=window)
    chosen = speed.best(again)
    close = [how for how in ways if error[how.layout, how.precision] <= speed.TOLERANCE]
    goals.most(
        f"best setting / the one chosen ({words(chosen, cores)}), gradients within {speed.TOLERANCE:g}",
        1.15,
        max(measured[how] for how in close) / measured[chosen],
    )
    goals.remark(
        "best setting / the one chosen, whatever becomes of the gradient",
        report.number(best / measured[chosen]),
    )
    pair = measured.get(replace(PLAIN, together=2))
    if pair:
        goals.remark("two seeds at once / one by one, a CPU", report.number(pair / measured[PLAIN]))
    goals.unknown("a run beside a plain loop, a GPU", "at least 10 times", NO_GPU)
    goals.unknown("share of the matrix peak in the training step, a GPU", "at least 0.4", NO_GPU)
    goals.unknown("all experiments at paper scale, a GPU", "at most 10 minutes", NO_GPU)
    return text


def on_a_gpu(goals: report.Goals, arrays: Mapping, device: str) -> str:
    """The tables of a GPU, at full width."""
    run = settings("batch", 1.0, 128, 500)
    measured = speed.rates(run, sweep(device, 1), device, budget=math.inf, tolerance=math.inf)
    peaks = {precision: peak(precision) for precision in PRECISIONS}
    work = speed.operations(run) / run["steps"]
    rows = []
    for how in sorted(measured, key=measured.__getitem__, reverse=True):
        share = measured[how] * work / peaks[how.precision]
        off = speed.departure(run, how, device)
        rows.append([words(how, 1), report.number(measured[how]), report.number(share), f"{off:.0e}"])
    head = ["setting, BN, full width", "steps/s", "share of the matrix peak", "gradient off by"]
    listed = ", ".join(f"{name} {value / 1e12:.0f}" for name, value in peaks.items())
    text = f"Matrix peaks in 10^12 operations per second: {listed}.\n\n{report.table(head, rows)}"
    chosen = speed.as_done(speed.best(speed.rates(run, speed.candidates(device, 1), device)))
    found = side_by_side(run, arrays, device, 3, replace(chosen, together=1, threads=4))
    # Seeds that are trained together share the time of a step.
    whole = found[4] / found[3] * max(1.0, measured[chosen] / measured[replace(chosen, together=1)])
    goals.least(f"plain loop / ours, a run, a GPU ({words(chosen, 1)})", 10, whole, "times")
    goals.least(
        "share of the matrix peak in the training step",
        0.4,
        measured[chosen] * work / peaks[chosen.precision],
    )
    goals.unknown("all experiments at paper scale", "at most 10 minutes", "it is a recording of its own")
    return text


def of_the_records(goals: report.Goals) -> str:
    """The table of the laptop records."""
    taken = minutes_by_chapter()
    longest = max(taken, key=taken.__getitem__)
    goals.most(
        f"recording a chapter at laptop scale, four workers; the longest: {longest}",
        30,
        taken[longest],
        "minutes",
    )
    goals.most("recording all chapters at laptop scale, four workers", 180, sum(taken.values()), "minutes")
    rows = [[chapter, report.number(minutes)] for chapter, minutes in sorted(taken.items())]
    return (
        "The laptop records, as their provenance tells: the seconds of all runs of a chapter, each measured "
        "while others ran beside it, divided by four workers.\n\n"
        + report.table(["chapter", "minutes"], rows)
    )


def made_up(folder: str, count: int) -> None:
    """A file of random images in the place and form of CIFAR-10, of which data sets are then loaded."""
    drawn = np.random.default_rng(0)
    halves = {}
    for half in ("train", "test"):
        halves[f"x_{half}"] = drawn.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        halves[f"y_{half}"] = np.arange(count, dtype=np.uint8) % 10
    np.savez(Path(folder) / "cifar10.npz", **halves)
    os.environ["BNLIB_DATA"] = folder


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--write", action="store_true", help="put the tables into the README beside this file"
    )
    parser.add_argument("--quick", action="store_true", help="tiny networks on random images: does it run?")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    chosen = parser.parse_args()
    load, threads, before = os.getloadavg()[0], torch.get_num_threads(), os.environ.get("BNLIB_DATA")
    goals = report.Goals()
    with tempfile.TemporaryDirectory() as folder:
        try:
            if chosen.quick:
                made_up(folder, 64)
            arrays = images.load("cifar10", download=False)
            measure: Callable[[], str] = (
                (lambda: on_a_cpu(goals, arrays, chosen.quick))
                if chosen.device == "cpu"
                else (lambda: on_a_gpu(goals, arrays, chosen.device))
            )
            data.load("cifar10", device=chosen.device)
            text = measure()
        except data.DataError as error:
            raise SystemExit(str(error)) from error
        finally:
            torch.set_num_threads(threads)
            os.environ.pop("BNLIB_DATA", None)
            os.environ |= {} if before is None else {"BNLIB_DATA": before}
    text += "\n\n" + of_the_records(goals)
    text = f"{report.machine('torch', 'torchvision', load=load)}\n\n{goals.table()}\n\n{text}"
    print(text)
    if chosen.write:
        report.write("training", text)


if __name__ == "__main__":
    main()
