"""The images of digits, MNIST and CIFAR-10 as uint8 arrays: found, downloaded, checked.  No torch.

Where they come from, in this order:

1. ``digits`` is embedded in scikit-learn: it needs neither files nor a network.
2. ``$BNLIB_DATA`` (default: ``bnlib`` in the user's cache folder) in torchvision's layout: ``MNIST/raw`` with
   the four ``*-ubyte`` files, plain or ``.gz``; ``cifar-10-batches-py``.
3. The same folder with ``mnist.npz`` or ``cifar10.npz``: uint8 arrays ``x_train``, ``y_train``, ``x_test``,
   ``y_test``, images as (N, 28, 28) or (N, 32, 32, 3). They may hold fewer images than the full set.
4. torchvision's download into that folder.

Whatever goes wrong on the way is a :class:`DataError`: one sentence that says what to do. No file is ever
unpickled.
"""

import gzip
import hashlib
import http.client
import os
import re
import shutil
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bnlib import cifar_batches

DATASETS = ("digits", "mnist", "cifar10")

Arrays = dict[str, np.ndarray]

PARTS = ("x_train", "y_train", "x_test", "y_test")
CLASSES = 10
_TITLES = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
_IMAGE_SHAPES = {"digits": (8, 8), "mnist": (28, 28), "cifar10": (32, 32, 3)}
_FOLDERS = {"mnist": Path("MNIST", "raw"), "cifar10": Path("cifar-10-batches-py")}
_MNIST_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
# File -> MD5 sum, as published with the data set.
_CIFAR10_TRAIN = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
_CIFAR10_TEST = {"test_batch": "40351d587109b95175f43aff81a1287e"}
# Seconds without an answer after which a network counts as absent; torchvision itself would wait for ever.
_NETWORK_TIMEOUT = 15.0

_fingerprints: dict[tuple[str, Path | None], str] = {}


class DataError(RuntimeError):
    """A data set is missing, damaged or out of reach; the message is one sentence that says what to do."""


def load(name: str, root: str | os.PathLike | None = None, download: bool = True) -> Arrays:
    """The uint8 arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` of the data set ``name``.

    Images are (N, H, W) or (N, H, W, C), labels (N,) in 0..9. Options and errors as in `bnlib.data.load`.
    """
    folder = folder_of(name, root)
    if folder is None:
        arrays, source = _digits(), "scikit-learn's digits"
    else:
        arrays, source = _find(name, folder) or _download(name, folder, download)
    _check(name, arrays, source)
    found = _digest(arrays)
    if found != _fingerprints.setdefault((name, folder), found):
        raise DataError(
            f"{source} has changed since this process first read it: start again, and leave the data alone "
            "while they are in use."
        )
    return arrays


def fingerprint(name: str, root: str | os.PathLike | None = None) -> str:
    """SHA-256 of the uint8 arrays of the data set ``name``, the same in whatever layout they lie.

    It is that of the arrays which this process has loaded; they are read only if it has loaded none yet.
    Raises as :func:`load`.
    """
    key = name, folder_of(name, root)
    if key not in _fingerprints:
        load(name, root)
    return _fingerprints[key]


def folder_of(name: str, root: str | os.PathLike | None = None) -> Path | None:
    """The absolute folder in which ``name`` is looked up, :func:`default_root` by default; None for digits.

    Raises ValueError for an unknown name, DataError where the folder has no absolute path.
    """
    if name not in DATASETS:
        raise ValueError(f"There is no data set {name!r}: choose one of {', '.join(DATASETS)}.")
    return None if name == "digits" else _absolute(default_root() if root is None else root)


def default_root() -> Path:
    """The folder that data sets are looked up in and downloaded to.

    ``$BNLIB_DATA``; where that is unset or empty, ``bnlib`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``.
    """
    if chosen := os.environ.get("BNLIB_DATA"):
        return _absolute(chosen)
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification asks to ignore a relative path.
    return _absolute(cache if os.path.isabs(cache) else "~/.cache") / "bnlib"


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        digest.update(f"{part} {arrays[part].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[part]))
    return digest.hexdigest()


def _check(name: str, arrays: Arrays, source: Path | str) -> None:
    """Raise DataError unless the arrays are what the data set ``name`` has to be."""
    shape = _IMAGE_SHAPES[name]
    remedy = f"put a complete {_TITLES[name]} there, or delete it to download one"

    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise DataError(f"{source} is no {_TITLES[name]} ({problem}): {remedy}.")

    for part in PARTS:
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
        require(int(y.max()) < CLASSES, f"a label {y.max()} in y_{half} where 0 to {CLASSES - 1} is expected")


# Finding and reading


def _digits() -> Arrays:
    """scikit-learn's 1797 images of 8x8; 1437 train, 360 test, every class split by the same fifth.

    The grey values 0..16 become 0..255 in 17 distinct, equally ordered steps.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:  # the display side does without it
        raise DataError(
            "The package scikit-learn, which holds the digits, is missing: pip install scikit-learn."
        ) from error

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
    """The batches of CIFAR-10: bytes whose MD5 sum is the published one, parsed but never unpickled."""

    def read(files: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = [], []
        for file, md5 in files.items():
            path = folder / file
            with _reading(path):
                if not path.exists():
                    raise _incomplete(folder, file)
                content = path.read_bytes()
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
                raise _damaged(path, "its MD5 sum is not the one of the original", folder)
            try:
                batch = cifar_batches.read(content)
            except ValueError as error:
                raise _damaged(path, _reason(error), folder) from error
            images.append(batch[0])
            labels.append(batch[1])
        rows = np.concatenate(images)  # (N, 3072): all red, then all green, then all blue values of an image
        return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.concatenate(labels)

    (x_train, y_train), (x_test, y_test) = read(_CIFAR10_TRAIN), read(_CIFAR10_TEST)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _read_npz(path: Path) -> Arrays:
    """The four arrays of an npz archive; never a pickle."""
    with _reading(path), path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise _damaged(path, "it is no complete npz archive", path)
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                missing = [part for part in PARTS if part not in archive.files]
                if missing:
                    raise _damaged(path, f"it lacks {', '.join(missing)}", path)
                return {part: archive[part] for part in PARTS}
        except (DataError, OSError):
            raise
        # zipfile, zlib and the parser of NumPy's headers answer damage with whatever their insides raise:
        # RuntimeError, TokenError, RecursionError and, for a size that nobody has, MemoryError.
        except Exception as error:
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

        # No file that merely exists, filelock's way where the system has no locks: it would outlive a kill.
        lock = FileLock(root / f"{name}.lock", fallback_to_soft=False)
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
    from torchvision.datasets import CIFAR10, MNIST, utils

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        if name == "mnist":
            MNIST(partial, train=False, download=True)
        else:  # its class would unpickle what it has downloaded
            utils.download_and_extract_archive(
                CIFAR10.url, partial, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5
            )
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
    # Some libraries show the whole damaged part of the file.
    return (text if len(text) <= 200 else f"{text[:200]} ...") or type(error).__name__


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
    except OSError as error:
        raise DataError(
            f"{title} is not in {root} and cannot be downloaded to it ({_reason(error)}): {here}, or set "
            "BNLIB_DATA to a folder that you can write to."
        ) from error
