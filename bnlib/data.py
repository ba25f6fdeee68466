"""Digits, MNIST and CIFAR-10 as normalised tensors on the device, and the order in which they are visited.

A data set is three steps: find the uint8 images, check them, normalise them once. There is no DataLoader:
the tensors lie on the device, and training indexes them with the stream of :func:`batches`.

Where the images come from, in this order:

1. ``digits`` is embedded in scikit-learn: it needs neither files nor a network.
2. ``$BNLIB_DATA`` (default: ``bnlib`` in the user's cache folder) in torchvision's layout: ``MNIST/raw`` with
   the four ``*-ubyte`` files, plain or ``.gz``; ``cifar-10-batches-py``.
3. The same folder with ``mnist.npz`` or ``cifar10.npz``: uint8 arrays ``x_train``, ``y_train``, ``x_test``,
   ``y_test``, images as (N, 28, 28) or (N, 32, 32, 3). They may hold fewer images than the full set.
4. torchvision's download into that folder.

Whatever goes wrong on the way is a :class:`DataError`: one sentence that says what to do.
"""

import gzip
import hashlib
import http.client
import os
import pickle
import re
import shutil
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

DATASETS = ("digits", "mnist", "cifar10")

Arrays = dict[str, np.ndarray]

_PARTS = ("x_train", "y_train", "x_test", "y_test")
_CLASSES = 10
_TITLES = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
_IMAGE_SHAPES = {"digits": (8, 8), "mnist": (28, 28), "cifar10": (32, 32, 3)}
_FOLDERS = {"mnist": Path("MNIST", "raw"), "cifar10": Path("cifar-10-batches-py")}
_MNIST_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
# Seconds without an answer after which a network counts as absent; torchvision itself would wait for ever.
_NETWORK_TIMEOUT = 15.0

_loaded: dict[tuple, "Dataset"] = {}


class DataError(RuntimeError):
    """A data set is missing, damaged or out of reach; the message is one sentence that says what to do."""


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
    classes: int = _CLASSES


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
    if name not in DATASETS:
        raise ValueError(f"There is no data set {name!r}: choose one of {', '.join(DATASETS)}.")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"Images cannot be normalised as {dtype}: choose a floating-point dtype.")
    device = torch.empty(0, device=device).device  # "cuda" and "cuda:0" are one device: keep one copy
    folder = None if name == "digits" else _absolute(default_root() if root is None else root)
    key = name, device, dtype, folder
    if key not in _loaded:
        _loaded[key] = _normalised(name, *_uint8(name, folder, download), device, dtype)
    return _loaded[key]


def default_root() -> Path:
    """The folder that data sets are looked up in and downloaded to.

    ``$BNLIB_DATA``; where that is unset or empty, ``bnlib`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``.
    """
    if chosen := os.environ.get("BNLIB_DATA"):
        return _absolute(chosen)
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification asks to ignore a relative path.
    return _absolute(cache if os.path.isabs(cache) else "~/.cache") / "bnlib"


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


def _uint8(name: str, root: Path | None, download: bool) -> tuple[Arrays, Path | str]:
    """The checked uint8 arrays of a data set and where they lie."""
    if root is None:
        arrays, source = _digits(), "scikit-learn's digits"
    else:
        arrays, source = _find(name, root) or _download(name, root, download)
    _check(name, arrays, source)
    return arrays, source


def _normalised(
    name: str, arrays: Arrays, source: Path | str, device: torch.device, dtype: torch.dtype
) -> Dataset:
    images = {part: _with_channels(arrays[part]) for part in ("x_train", "x_test")}
    mean, std = _moments(images["x_train"])
    if not std.all():
        raise DataError(
            f"{source} has one and the same value in a whole channel of its training images, which cannot be "
            "normalised: put the real images there."
        )
    x_train, x_test = (_normalise(images[part], mean, std, device, dtype) for part in ("x_train", "x_test"))
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


def _check(name: str, arrays: Arrays, source: Path | str) -> None:
    """Raise DataError unless the arrays are what the data set ``name`` has to be."""
    shape = _IMAGE_SHAPES[name]
    remedy = f"put a complete {_TITLES[name]} there, or delete it to download one"

    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise DataError(f"{source} is no {_TITLES[name]} ({problem}): {remedy}.")

    for part in _PARTS:
        require(
            arrays[part].dtype == np.uint8,
            f"{part} has the type {arrays[part].dtype} where uint8 is expected",
        )
    for half in ("train", "test"):
        x, y = arrays[f"x_{half}"], arrays[f"y_{half}"]
        require(
            x.ndim == len(shape) + 1 and x.shape[1:] == shape,
            f"x_{half} has the shape {x.shape} where (N, {', '.join(map(str, shape))}) is expected",
        )
        require(y.ndim == 1, f"y_{half} has the shape {y.shape} where (N,) is expected")
        require(len(x) == len(y), f"{len(x)} images but {len(y)} labels in the {half} set")
        require(len(x) > 0, f"no image in the {half} set")
        require(
            int(y.max()) < _CLASSES, f"a label {y.max()} in y_{half} where 0 to {_CLASSES - 1} is expected"
        )


# Finding and reading


def _digits() -> Arrays:
    """scikit-learn's 1797 images of 8x8; 1437 train, 360 test, every class split by the same fifth.

    The grey values 0..16 become 0..255 in 17 distinct, equally ordered steps.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = ((bunch.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
    labels = bunch.target.astype(np.uint8)
    # RandomState, because NumPy promises never to change its stream: the split outlives library versions.
    shuffled = np.random.RandomState(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[by_class[::5]] = True
    return {
        "x_train": images[~is_test],
        "y_train": labels[~is_test],
        "x_test": images[is_test],
        "y_test": labels[is_test],
    }


def _find(name: str, root: Path) -> tuple[Arrays, Path] | None:
    """The arrays of a data set in ``root`` and where they lie, or None when it holds nothing of that set."""
    folder, archive = root / _FOLDERS[name], root / f"{name}.npz"
    with _reading(folder):
        has_folder = folder.is_dir() and any(folder.iterdir())
        has_archive = archive.exists()
    if has_folder:
        return {"mnist": _read_mnist, "cifar10": _read_cifar10}[name](folder), folder
    if has_archive:
        return _read_npz(archive), archive
    return None


def _read_mnist(folder: Path) -> Arrays:
    """The four IDX files of MNIST, each plain or compressed."""
    return {part: _read_idx(folder, file, 3 if part[0] == "x" else 1) for part, file in _MNIST_FILES.items()}


def _read_idx(folder: Path, file: str, ndim: int) -> np.ndarray:
    """An IDX file of bytes: magic number 0x0800 + ndim, ndim sizes (big-endian, 4 bytes each), values."""
    path = folder / file
    with _reading(path):
        if not path.exists():
            path = folder / f"{file}.gz"
            if not path.exists():
                raise _incomplete(folder, file)
        content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, _reason(error), folder) from error
    header = 4 * (1 + ndim)
    if len(content) < header:
        raise _damaged(path, f"{len(content)} bytes do not even hold a header", folder)
    magic, *sizes = struct.unpack(f">{1 + ndim}I", content[:header])
    if magic != 0x0800 + ndim:
        raise _damaged(path, f"magic number {magic} where {0x0800 + ndim} is expected", folder)
    expected = header + int(np.prod(sizes, dtype=object))
    if len(content) != expected:
        raise _damaged(path, f"{len(content)} bytes where its header announces {expected}", folder)
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(sizes)


def _read_cifar10(folder: Path) -> Arrays:
    """The batches of CIFAR-10. They are pickles: only bytes whose MD5 sum torchvision lists are unpickled."""
    from torchvision.datasets import CIFAR10

    def read(listed: list) -> tuple[np.ndarray, np.ndarray]:
        images, labels = [], []
        for file, md5 in listed:
            path = folder / file
            with _reading(path):
                if not path.exists():
                    raise _incomplete(folder, file)
                content = path.read_bytes()
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
                raise _damaged(path, "its MD5 sum is not the one of the original", folder)
            batch = pickle.loads(content, encoding="latin1")
            images.append(batch["data"])
            labels.append(np.array(batch["labels"], dtype=np.uint8))
        rows = np.concatenate(images)  # (N, 3072): all red, then all green, then all blue values of an image
        return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.concatenate(labels)

    (x_train, y_train), (x_test, y_test) = read(CIFAR10.train_list), read(CIFAR10.test_list)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _read_npz(path: Path) -> Arrays:
    """The four arrays of an npz archive; never a pickle."""
    with _reading(path), path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise _damaged(path, "it is no complete npz archive", path)
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                missing = [part for part in _PARTS if part not in archive.files]
                if missing:
                    raise _damaged(path, f"it lacks {', '.join(missing)}", path)
                return {part: archive[part] for part in _PARTS}
        except DataError:
            raise
        # RuntimeError: zipfile's word for a flag that says encrypted, or for an unknown compression.
        except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise _damaged(path, _reason(error), path) from error


# Downloading


def _download(name: str, root: Path, allowed: bool) -> tuple[Arrays, Path]:
    """Let torchvision download into a partial folder beside the final place; move it there once checked.

    A download that is killed leaves a ``NAME.partial`` folder, which is never read and which the next
    download clears. A lock lets one process download while the others wait for its result.
    """
    title, folder = _TITLES[name], root / _FOLDERS[name]
    here = f"put {_FOLDERS[name].as_posix()} (torchvision's layout) or {name}.npz there"
    if not allowed:
        raise DataError(f"{title} is not in {root}: {here}, set BNLIB_DATA, or allow the download.")
    with _writing(title, root, here):
        root.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock

        lock = FileLock(root / f"{name}.lock")
        lock.acquire()
    try:
        if found := _find(name, root):  # another process was faster
            return found
        partial = root / f"{name}.partial"
        with _writing(title, root, here):
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir()
        try:
            _fetch(name, root, partial, here)
            arrays = _downloaded(name, partial, here)
            with _writing(title, root, here):
                folder.parent.mkdir(parents=True, exist_ok=True)
                if folder.is_dir():
                    folder.rmdir()  # an empty folder, or _find would have read it
                os.rename(partial / _FOLDERS[name], folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return arrays, folder
    finally:
        lock.release()


def _fetch(name: str, root: Path, partial: Path, here: str) -> None:
    """Let torchvision download into ``partial``, with its progress bar and its MD5 checks."""
    import torchvision

    download = {"mnist": torchvision.datasets.MNIST, "cifar10": torchvision.datasets.CIFAR10}[name]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        download(os.fspath(partial), train=False, download=True)
    # torchvision reports failed mirrors and wrong MD5 sums as RuntimeError; a full disk is an OSError.
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        raise DataError(
            f"{_TITLES[name]} is not in {root} and could not be downloaded ({_reason(error)}): {here}, or "
            "set BNLIB_DATA to a folder that has it."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _downloaded(name: str, partial: Path, here: str) -> Arrays:
    """The checked arrays of a download that torchvision holds to be complete."""
    try:
        if found := _find(name, partial):
            _check(name, *found)
            return found[0]
    except DataError as error:
        # Said anew, because its message names files that are about to be removed.
        raise DataError(f"The download of {_TITLES[name]} is damaged: try again, or {here}.") from error
    raise DataError(f"The download of {_TITLES[name]} brought no files: try again, or {here}.")


# What to say


def _absolute(path: str | os.PathLike) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:  # no home folder
        raise DataError(f"The folder {path} cannot be found ({_reason(error)}): set BNLIB_DATA.") from error


def _reason(error: BaseException) -> str:
    """The message of an exception as one line without a full stop, fit for parentheses in a sentence."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    # torchvision lists every mirror it tried; the first answer tells enough.
    if mirrors := re.search(r"Tried \S+ got: (.+?)(?= Tried |$)", text):
        text = mirrors[1]
    text = re.sub(r"^<urlopen error (.*)>$", r"\1", text)
    text = re.sub(r"^\[Errno -?\d+\] ", "", text).rstrip(". ")
    return text or type(error).__name__


def _damaged(path: Path, problem: str, delete: Path) -> DataError:
    return DataError(
        f"{path} is damaged ({problem}): delete {delete} and try again, or put an intact copy there."
    )


def _incomplete(folder: Path, missing: str) -> DataError:
    return DataError(
        f"{folder} is incomplete ({missing} is missing): delete {folder} and try again, or complete it."
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({_reason(error)}): make it readable, or set BNLIB_DATA to another "
            "folder."
        ) from error


@contextmanager
def _writing(title: str, root: Path, here: str) -> Iterator[None]:
    try:
        yield
    # RuntimeError: the file system knows no locks.
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{title} is not in {root} and cannot be downloaded to it ({_reason(error)}): {here}, or set "
            "BNLIB_DATA to a folder that you can write to."
        ) from error
