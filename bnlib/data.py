"""Digits, MNIST and CIFAR-10 as normalised tensors on the device, and the order in which they are visited.

A data set is three steps: find the uint8 images and check them (`bnlib.images`), normalise them once. There
is no DataLoader: the tensors lie on the device, and training indexes them with the stream of :func:`batches`.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from bnlib import images
from bnlib.images import CLASSES, DATASETS, Arrays, DataError, default_root, fingerprint

__all__ = [
    "DATASETS",
    "DataError",
    "Dataset",
    "batches",
    "default_root",
    "fingerprint",
    "linear_map",
    "load",
    "probe_batch",
]

_loaded: dict[tuple, "Dataset"] = {}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set on one device.

    ``x_train`` and ``x_test`` are (N, C, H, W) in channels_last memory format, normalised per channel with
    the mean and the (biased) standard deviation of the training images; ``y_train`` and ``y_test`` are (N,)
    int64 labels in 0..classes-1. :func:`load` returns the same object to all callers: do not change the
    tensors in place.
    """

    name: str
    x_train: torch.Tensor = field(repr=False)
    y_train: torch.Tensor = field(repr=False)
    x_test: torch.Tensor = field(repr=False)
    y_test: torch.Tensor = field(repr=False)
    classes: int = CLASSES


def load(
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    root: str | os.PathLike | None = None,
    download: bool = True,
) -> Dataset:
    """The data set ``name`` (one of :data:`DATASETS`) on ``device``.

    With u the uint8 images, and mean and variance taken over all training images and pixels of channel c,

        x[n, c, h, w] = (u[n, c, h, w] - mean[c]) / sqrt(var[c]).

    The arithmetic is done in float32 (float64 for ``dtype=torch.float64``) and is the same on every device.

    ``root`` is the folder to look in; by default :func:`default_root`. ``digits`` needs none. What is loaded
    is kept per name, device, dtype and folder. A missing set is downloaded by torchvision with a progress
    bar, unless ``download`` is false.

    Raises :class:`DataError` for every problem with the data, and ValueError for an unknown name or a dtype
    that is not a floating-point one.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"Images cannot be normalised as {dtype}: choose a floating-point dtype.")
    device = torch.empty(0, device=device).device  # "cuda" and "cuda:0" are one device: keep one copy
    folder = images.folder_of(name, root)
    key = name, device, dtype, folder
    if key not in _loaded:
        _loaded[key] = _normalised(name, images.load(name, root, download), folder, device, dtype)
    return _loaded[key]


def batches(n: int, batch_size: int, seed: int, device: str | torch.device = "cpu") -> Iterator[torch.Tensor]:
    """An endless stream of batches of indices into n examples: int64, shape (batch_size,), on ``device``.

    Every epoch is a fresh permutation of 0..n-1, cut into n // batch_size batches; the n % batch_size
    examples left over are dropped for that epoch, so no index occurs twice in an epoch. The stream depends on
    (n, batch_size, seed) alone: it is drawn on the CPU by its own generator, and is the same for every arm of
    an experiment, on every device, whatever else draws random numbers.

    Raises ValueError unless 1 <= batch_size <= n.
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"A batch of {batch_size} cannot be drawn from {n} examples: choose 1 to {n}.")
    generator = torch.Generator().manual_seed(int(seed))

    def stream() -> Iterator[torch.Tensor]:
        used = n - n % batch_size
        while True:
            # One copy to the device per epoch, not per batch.
            epoch = torch.randperm(n, generator=generator)[:used].to(device)
            yield from epoch.split(batch_size)

    return stream()


def linear_map(
    n: int,
    width: int,
    seed: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Dataset:
    r"""A regression problem: $y=Ax$ with x and a square A of independent standard normal entries.

    ``x_train`` and ``y_train`` are (n, width), not images and labels; the test half is another draw of the
    same size, with the same A. All of it depends on (n, width, seed) alone and is drawn in float64. Source:
    the deep linear network of Santurkar et al. 2018, appendix A.1.

    Raises ValueError unless n and width are at least 1.
    """
    if n < 1 or width < 1:
        raise ValueError(f"A linear map needs at least one sample and one dimension, not {n} and {width}.")
    generator = torch.Generator().manual_seed(_seed_of(f"linear map {seed}"))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a, x_train, x_test = draw(width, width), draw(n, width), draw(n, width)
    parts = (part.to(device=device, dtype=dtype) for part in (x_train, x_train @ a.T, x_test, x_test @ a.T))
    return Dataset("linear_map", *parts, classes=0)


def probe_batch(dataset: Dataset, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A fixed batch (x, y) of ``size`` distinct training examples, for probes that compare different steps.

    Which examples it holds depends on (N, size, seed) alone, N being the number of training examples. Its
    generator is not that of :func:`batches`, so it is no batch of the training stream of the same seed.

    Raises ValueError unless 1 <= size <= N.
    """
    n = len(dataset.x_train)
    if not 1 <= size <= n:
        raise ValueError(f"A probe batch of {size} cannot be drawn from {n} examples: choose 1 to {n}.")
    generator = torch.Generator().manual_seed(_seed_of(f"probe batch {seed}"))
    chosen = torch.randperm(n, generator=generator)[:size].to(dataset.x_train.device)
    x = dataset.x_train[chosen]
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, dataset.y_train[chosen]


def _seed_of(purpose: str) -> int:
    """A seed for a stream of its own."""
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4])


# From uint8 to normalised tensors


def _normalised(
    name: str, arrays: Arrays, folder: Path | None, device: torch.device, dtype: torch.dtype
) -> Dataset:
    pixels = {part: _with_channels(arrays[part]) for part in ("x_train", "x_test")}
    mean, std = _moments(pixels["x_train"])
    if not std.all():
        raise DataError(
            f"The {name} in {folder} has one and the same value in a whole channel of its training images, "
            "which cannot be normalised: put the real images there."
        )
    x_train, x_test = (_normalise(pixels[part], mean, std, device, dtype) for part in ("x_train", "x_test"))
    y_train, y_test = (
        torch.tensor(arrays[p], dtype=torch.int64, device=device) for p in ("y_train", "y_test")
    )
    return Dataset(name, x_train, y_train, x_test, y_test)


def _with_channels(images: np.ndarray) -> np.ndarray:
    """(N, H, W) or (N, H, W, C) -> (N, H, W, C)."""
    return images.reshape(*images.shape, 1) if images.ndim == 3 else images


def _moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased standard deviation per channel of uint8 (N, H, W, C), from exact integer sums."""
    count = images[..., 0].size
    total = images.sum(axis=(0, 1, 2), dtype=np.uint64).tolist()
    # 255^2 fits into 16 bits, so that the squares need no larger type.
    square = np.square(images, dtype=np.uint16).sum(axis=(0, 1, 2), dtype=np.uint64).tolist()
    mean = [s / count for s in total]
    var = [(count * q - s * s) / count**2 for s, q in zip(total, square, strict=True)]
    return np.array(mean), np.sqrt(var)


def _normalise(
    images: np.ndarray, mean: np.ndarray, std: np.ndarray, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """uint8 (N, H, W, C) -> normalised (N, C, H, W) on the device; the permuted view is channels_last."""
    working = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (1, -1, 1, 1)
    x = torch.tensor(images, device=device).permute(0, 3, 1, 2).to(working)
    # Two correctly rounded operations: the same bits on every device.
    x.sub_(torch.tensor(mean, dtype=working, device=device).view(shape))
    x.div_(torch.tensor(std, dtype=working, device=device).view(shape))
    return x.to(dtype)
