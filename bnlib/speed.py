"""Which way of computing is the fastest on this machine: measured briefly, and remembered.

Every way gives the same training up to rounding (`bnlib.updates`); this module chooses among those whose
first gradient stays within `TOLERANCE` of the plain one.  What was chosen stands in a record's provenance.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnlib import machine, together, training
from bnlib.data import Dataset
from bnlib.specs import Run, canonical
from bnlib.updates import PLAIN, Alone, How, Replayed, Stacked, allowed, batch, loss_in, products

#: how far a first gradient may be from the plain one, as a share of its length.  (Those of two batches of 128
#: images are further apart than their own length.)
TOLERANCE = 0.05
#: how much faster than the plain way another must be
MARGIN = 1.05
#: floating-point operations of training that are worth a measurement: some minutes of a core, or of a GPU
WORTH = {"cpu": 1e14, "cuda": 1e16}
BUDGET = 15.0  # seconds after which no further measurement is begun
ROUNDS = 2  # how often every candidate has its turn; the better one counts, since others may use the machine
WINDOW = 0.4  # seconds that the steps of one candidate are counted for in a round
IMAGES = 4  # batches of made-up images that a measurement trains on


# -- in words --------------------------------------------------------------------------------------------


def parse(text: str) -> How:
    """A `How` written as "layout=contiguous,threads=2"; what is not named is as in the plain way, and so is
    everything for "plain".  Raises ValueError for another name or value."""
    kinds = {field.name: type(getattr(PLAIN, field.name)) for field in fields(How)}
    found: dict[str, Any] = {}
    for part in text.split(",") if text not in ("", "plain") else ():
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in kinds:
            raise ValueError(f"There is no {name!r} to choose: write plain or some of {', '.join(kinds)}.")
        if kinds[name] is bool:
            found[name] = {"true": True, "false": False}.get(value.lower(), value)
        else:
            found[name] = int(value) if kinds[name] is int and value.isdecimal() else value
    return How(**found)


def usable(how: How, device: str) -> How:
    """The same, if the device can do it; else ValueError."""
    if not device.startswith("cuda"):
        if how.precision == "tf32":
            raise ValueError("TF32 is a precision of NVIDIA GPUs: choose float32 or bfloat16 on a CPU.")
        if how.graph:
            raise ValueError("A CUDA graph needs an NVIDIA GPU: leave graph out on a CPU.")
    return how


def as_done(how: How) -> How:
    """What was done in this process where `how` was asked for: without graphs, if a capture has failed."""
    return replace(how, graph=how.graph and not Replayed.refused)


# -- choosing --------------------------------------------------------------------------------------------


def choose(runs: Sequence[Run], device: str = "cpu", workers: int | None = None) -> How:
    """The fastest way to do `runs` on this machine with so many `workers` (None: one per core).

    Measured with the heaviest of their networks, in little more than `BUDGET` seconds, and remembered in the
    user's cache folder for each processor, torch version and network; the plain way where the runs are too
    small to pay for that, and where nothing is faster by `MARGIN`.  torch's threads, flags and random states
    stay as they are.
    """
    runs = [run for run in runs if run.task == "train" and run.settings.get("dataset", "digits") != "digits"]
    if not runs:
        return PLAIN
    kind = "cuda" if device.startswith("cuda") else "cpu"
    costs = [operations(run.settings) for run in runs]
    if sum(costs) < WORTH[kind]:
        return PLAIN
    heaviest = max(zip(costs, runs, strict=True), key=lambda pair: pair[0] / pair[1].settings["steps"])
    settings = heaviest[1].settings
    cores = (workers or os.cpu_count() or 1) if kind == "cpu" else 1
    key = _key(settings, device, cores)
    if (remembered := recall(key)) is not None:
        return remembered
    try:
        measured = rates(settings, candidates(device, cores), device, cores)
    except (EOFError, OSError):  # a process was not to be had, or was killed, as for want of memory
        return PLAIN
    how = as_done(best(measured))
    remember(key, how, measured)
    return how


def candidates(device: str, cores: int) -> list[How]:
    """The ways that are worth a look, the plain one first."""
    if device.startswith("cuda"):
        fast = How(precision="tf32", graph=True)
        return [
            PLAIN,
            How(graph=True),
            How(precision="tf32"),
            fast,
            *(replace(fast, together=seeds) for seeds in (2, 5)),
            How(precision="bfloat16", graph=True),
            replace(fast, layout="contiguous"),
        ]
    splits = [threads for threads in range(2, cores + 1) if cores % threads == 0]
    return [
        PLAIN,
        How(layout="contiguous"),
        *(How(threads=threads) for threads in splits),
        How(precision="bfloat16"),
        How(together=2),
    ]


def best(measured: Mapping[How, float]) -> How:
    """The fastest of the measured ways; the plain one, unless another is faster by `MARGIN`."""
    fastest = max(measured, key=measured.__getitem__)
    return fastest if measured[fastest] > MARGIN * measured[PLAIN] else PLAIN


def operations(settings: Mapping[str, Any]) -> float:
    """Floating-point operations of a run's training: three times those of its passes forward, in which a
    multiplication and an addition are two."""
    network = canonical({name: settings[name] for name in ("dataset", "model")}).decode()
    return 3.0 * _operations_per_image(network) * settings["steps"] * settings["batch_size"]


@cache
def _operations_per_image(network: str) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # brings half a second of other imports

    plain = {"norm": "none", "where": "nowhere", "init": "glorot_uniform"}
    model, dataset, _ = training.prepare({**json.loads(network), **plain}, seed=0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(dataset.x_train[:1])
    return counter.get_total_flops()


# -- measuring -------------------------------------------------------------------------------------------


def rates(
    settings: Mapping[str, Any],
    ways: Sequence[How],
    device: str = "cpu",
    cores: int = 1,
    budget: float = BUDGET,
    tolerance: float = TOLERANCE,
    window: float = WINDOW,
) -> dict[How, float]:
    """Training steps per second of the whole machine, all its `cores` at work, for each of `ways`.

    A way is left out if settings do not allow it, if its first gradient is further than `tolerance` from the
    plain one, or if the `budget` of seconds is used up; the first is always measured.  One that fails, as for
    want of memory, has the rate 0.
    """
    images = _images(settings, device)
    kinds = {(how.layout, how.precision) for how in ways}
    close = {
        kind
        for kind in kinds
        if departure(settings, How(layout=kind[0], precision=kind[1]), device, images) <= tolerance
    }
    found: dict[How, float] = {}
    with _crew(cores) as crew:
        end = time.monotonic() + budget  # not before: to start processes can take long on a busy machine
        for how in [*ways] * ROUNDS:
            allowed = how.together == 1 or together.possible(settings)
            if allowed and (how.layout, how.precision) in close and (not found or time.monotonic() < end):
                work = partial(_steps_per_second, settings, images, how, device, window)
                found[how] = max(found.get(how, 0.0), sum(crew(work, how.threads)))
    return found


def departure(settings: Mapping[str, Any], how: How, device: str, images: Dataset | None = None) -> float:
    """How far the first gradient is from the plain one, as a share of that one's length."""
    if (how.layout, how.precision) == (PLAIN.layout, PLAIN.precision):
        return 0.0
    plain, other = (_first_gradient(settings, way, device, images) for way in (PLAIN, how))
    length = plain.norm().item()
    found = (other - plain).norm().item() / length if length else 0.0
    return found if math.isfinite(found) else math.inf


def _first_gradient(settings: Mapping[str, Any], how: How, device: str, images: Dataset | None) -> Tensor:
    model, dataset, rest = training.prepare(
        settings, seed=0, device=device, layout=how.layout, dataset=images
    )
    how, loss = allowed(how, model), training.LOSSES[rest.get("loss", "cross_entropy")]
    x, y = batch(dataset, torch.arange(rest["batch_size"], device=device), how)
    with products(how.precision, x.device):
        gradient = torch.autograd.grad(
            loss_in(how.precision, model.train(), x, y, loss), list(model.parameters())
        )
    return torch.cat([part.flatten().double() for part in gradient])


def _steps_per_second(
    settings: Mapping[str, Any], images: Dataset | None, how: How, device: str, window: float
) -> float:
    """Steps of a network per second in this process, counted for `window` seconds after the first."""
    machine.keep_freed_memory()  # as the runs do
    try:
        update, size = _update(settings, images, how, device)
        stream = torch.arange(how.together * size, device=device).view(how.together, size) % (IMAGES * size)
        for _ in range(Replayed.FIRST + 2 if how.graph else 1):
            start = _finished(update, stream)
        count = 1
        while (now := _finished(update, stream)) < start + window or count < 2:
            count += 1
    except RuntimeError:  # no memory for it, or no such kernel
        return 0.0
    return count * how.together / (now - start)


def _finished(update: Alone | Stacked, indices: Tensor) -> float:
    """Take a step; the time at which the device has done it."""
    update(indices)
    if update.dataset.x_train.is_cuda:
        torch.cuda.synchronize()
    return time.monotonic()


def _update(
    settings: Mapping[str, Any], images: Dataset | None, how: How, device: str
) -> tuple[Alone | Stacked, int]:
    """What takes a step of `how.together` networks, and the size of a batch."""
    prepared = [
        training.prepare(settings, seed=seed, device=device, layout=how.layout, dataset=images)
        for seed in range(how.together)
    ]
    models, dataset, rest = [model.train() for model, _, _ in prepared], prepared[0][1], prepared[0][2]
    loss = training.LOSSES[rest.get("loss", "cross_entropy")]
    # A rate of 0: a step costs the same, and no network diverges meanwhile.
    optimiser = partial(training.OPTIMISERS["sgd"], lr=0.0, decay=0.0, momentum=rest.get("momentum", 0.0))
    how = allowed(how, models[0])
    if how.together == 1:
        update = Alone(models[0], dataset, loss, optimiser(models[0].parameters()), how)
    else:
        update = Stacked(models, dataset, loss, optimiser, how)
    return update, rest["batch_size"]


def _images(settings: Mapping[str, Any], device: str) -> Dataset | None:
    """Made-up images of the shape of the declared ones, so that no process has to load those; None where
    the settings make their data themselves."""
    if not isinstance(settings["dataset"], str):
        return None
    _, real, rest = training.prepare(settings, seed=0)
    generator, count = torch.Generator().manual_seed(0), IMAGES * rest["batch_size"]
    x = torch.randn(count, *real.x_train.shape[1:], generator=generator, dtype=torch.float64)
    x = x.to(device, real.x_train.dtype, memory_format=torch.channels_last)
    y = torch.randint(real.classes, (count,), generator=generator).to(device)
    return Dataset("made up", x, y, x, y, real.classes)


@contextmanager
def _crew(cores: int) -> Iterator[Callable[[Callable[[], float], int], list[float]]]:
    """Processes that do one task at the same time, each with so many threads: (task, threads) -> results.

    A single core's task is done in this process.
    """
    if cores == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield lambda task, threads: [task()]
        finally:
            torch.set_num_threads(before)
        return
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(cores):
            here, there = context.Pipe()
            process = context.Process(target=_member, args=(there,), daemon=True)
            process.start()
            there.close()  # so that the member's end is the only one, and it notices when this process dies
            pipes.append(here)
            processes.append(process)
        for pipe in pipes:
            pipe.recv()  # torch is imported

        def work(task: Callable[[], float], threads: int) -> list[float]:
            chosen = pipes[: max(1, cores // threads)]
            for pipe in chosen:
                pipe.send((task, threads))
            return [pipe.recv() for pipe in chosen]

        yield work
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _member(pipe: Connection) -> None:
    """Do what comes through the pipe until it is closed."""
    try:
        pipe.send("ready")
        while True:
            task, threads = pipe.recv()
            torch.set_num_threads(threads)
            pipe.send(task())
    except (EOFError, OSError):
        return


# -- remembering -----------------------------------------------------------------------------------------


def memory() -> Path:
    """The file in which choices are remembered: in `$XDG_CACHE_HOME` or in `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path("~/.cache").expanduser()) / "bnlib" / "speed.json"


def recall(key: str) -> How | None:
    """What was chosen before; None if nothing was, or if the file cannot be read."""
    try:
        return How(**_remembered()[key]["how"])
    except (KeyError, TypeError, ValueError):
        return None


def remember(key: str, how: How, measured: Mapping[How, float]) -> None:
    """Keep a choice and what it rests on; without a place to write to, it is measured again next time."""
    known = _remembered()
    known[key] = {
        "how": asdict(how),
        "steps_per_second": [[asdict(way), round(rate, 2)] for way, rate in measured.items()],
    }
    temporary = None
    try:
        memory().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memory().parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            json.dump(known, file, indent=1)
        os.replace(temporary, memory())
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _remembered() -> dict[str, Any]:
    try:
        found = json.loads(memory().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(settings: Mapping[str, Any], device: str, cores: int) -> str:
    """What a choice depends on, in words."""
    names = ("dataset", "model", "norm", "where", "batch_size", "dtype")
    network = canonical({name: settings.get(name) for name in names}).decode()
    where = machine.describe(device)["name"]
    return f"{where}, {cores} of {os.cpu_count()} cores, torch {torch.__version__}, {device}: {network}"
