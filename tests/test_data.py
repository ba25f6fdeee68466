"""bnlib.data on small data sets made here: no network, and no real MNIST or CIFAR-10, is ever used."""

import errno
import fcntl
import gzip
import hashlib
import http.client
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from torchvision.datasets import CIFAR10

from bnlib import cifar_batches, data, images
from bnlib.data import DataError, Dataset, batches, linear_map, load, probe_batch

IDX = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    """A test that would reach for the network fails instead; tests of the download replace this."""

    def refuse(*args, **kwargs):
        raise AssertionError("this test must not download")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", refuse)
    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", refuse)


def small(shape, n_train=40, n_test=20, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (n_train, *shape), dtype=np.uint8),
        "y_train": np.arange(n_train, dtype=np.uint8) % 10,
        "x_test": rng.integers(0, 256, (n_test, *shape), dtype=np.uint8),
        "y_test": np.arange(n_test, dtype=np.uint8) % 10,
    }


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_mnist(root, arrays, compress=False):
    folder = Path(root) / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for part, file in IDX.items():
        content = idx(arrays[part])
        if compress:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file).write_bytes(content)
    return folder


def text(value):
    """A string as Python 2 pickles it."""
    return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<I", len(value))) + value


def cifar10_batch(x, y):
    """Images (N, 32, 32, 3) and labels as a batch of CIFAR-10: written with Python 2 and its NumPy."""
    rows = x.transpose(0, 3, 1, 2).reshape(len(x), -1).tobytes()
    numbers = b"".join(b"K" + bytes([label]) for label in y.tolist())
    names = b"".join(text(b"toad_s_%06d.png" % n) + b"r" + struct.pack("<I", 256 + n) for n in range(len(y)))
    dtype = b"cnumpy\ndtype\nq\x0b" + text(b"u1") + b"K\x00K\x01\x87Rq\x0c"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
    array += b"K\x00\x85" + text(b"b") + b"\x87Rq\n"
    array += b"(K\x01J" + struct.pack("<I", len(x)) + b"M\x00\x0c\x86" + dtype + b"\x89" + text(rows) + b"tb"
    items = {
        b"batch_label": text(b"training batch 1 of 5") + b"q\x03",
        b"labels": b"]q\x05(" + numbers + b"e",
        b"data": array,
        b"filenames": b"]q\x0e(" + names + b"e",
    }
    content = b"".join(text(key) + b"q\x02" + value for key, value in items.items())
    return b"\x80\x02}q\x01(" + content + b"u."


def write_cifar10(root, arrays, monkeypatch):
    """torchvision's layout, and the list of MD5 sums made to fit it."""
    folder = Path(root) / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)

    def write(file, x, y):
        content = cifar10_batch(x, y)
        (folder / file).write_bytes(content)
        return file, hashlib.md5(content).hexdigest()

    pieces = zip(np.split(arrays["x_train"], 5), np.split(arrays["y_train"], 5), strict=True)
    train = dict(write(f"data_batch_{i}", x, y) for i, (x, y) in enumerate(pieces, 1))
    test = dict([write("test_batch", arrays["x_test"], arrays["y_test"])])
    monkeypatch.setattr(images, "_CIFAR10_TRAIN", train)
    monkeypatch.setattr(images, "_CIFAR10_TEST", test)
    return folder


def reference(arrays, part):
    """The normalisation written down once more, in float64: (N, C, H, W)."""

    def channels_first(x):
        return np.moveaxis(x.reshape(*x.shape[:3], -1), -1, 1).astype(np.float64)

    train = channels_first(arrays["x_train"])
    # One contiguous row per channel, because NumPy sums rows pairwise and columns naively.
    rows = np.ascontiguousarray(train.swapaxes(0, 1).reshape(train.shape[1], -1))
    mean, std = (moment.reshape(1, -1, 1, 1) for moment in (rows.mean(1), rows.std(1)))
    return (channels_first(arrays[part]) - mean) / std


def refusal(*args, **kwargs):
    """The message of the DataError, which has to be one sentence on one line."""
    with pytest.raises(DataError) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message
    return message


# What load returns


def test_digits_are_embedded_split_and_stratified():
    digits = load("digits")
    assert digits.x_train.shape == (1437, 1, 8, 8)
    assert digits.x_test.shape == (360, 1, 8, 8)
    assert digits.y_train.shape == (1437,)
    assert digits.y_test.shape == (360,)
    assert digits.classes == 10
    whole = (digits.y_train.bincount() + digits.y_test.bincount()).tolist()
    assert whole == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert all(abs(t - n / 5) < 1 for t, n in zip(digits.y_test.bincount().tolist(), whole, strict=True))


def test_digits_without_scikit_learn(monkeypatch):
    """An installation that only shows what is recorded has none."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(data, "_loaded", {})
    assert "pip install scikit-learn" in refusal("digits")


def test_digits_split_never_changes():
    """Records refer to this split, so it is pinned to its bytes."""
    arrays = images._digits()
    digest = hashlib.sha256(b"".join(arrays[part].tobytes() for part in images.PARTS)).hexdigest()
    assert digest == "17a5420f731c6eccaba72b161aac619d63b8e857adee1f685979c8f7abcbedfd"


def test_digits_keep_the_order_of_the_grey_values():
    from sklearn.datasets import load_digits

    original = load_digits().images
    arrays = images._digits()
    greys = np.unique(np.concatenate([arrays["x_train"], arrays["x_test"]]))
    assert len(greys) == len(np.unique(original)) == 17
    assert greys[0] == 0
    assert greys[-1] == 255
    # Every image is there exactly once, and its grey levels are the original ones.
    levels = np.searchsorted(greys, np.concatenate([arrays["x_train"], arrays["x_test"]]))
    assert sorted(map(bytes, levels.astype(np.uint8))) == sorted(map(bytes, original.astype(np.uint8)))


def test_digits_need_no_folder(monkeypatch):
    monkeypatch.setenv("BNLIB_DATA", "~no-such-user/data")
    data._loaded.clear()
    assert load("digits").name == "digits"


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_normalised_with_the_training_statistics(tmp_path, name):
    arrays = small({"mnist": (28, 28), "cifar10": (32, 32, 3)}[name])
    np.savez(tmp_path / f"{name}.npz", **arrays)
    ours = load(name, root=tmp_path)
    assert isinstance(ours, Dataset)
    assert ours.name == name
    assert ours.x_train.dtype == torch.float32
    assert ours.y_train.dtype == ours.y_test.dtype == torch.int64
    assert ours.x_train.mean((0, 2, 3)).abs().max() < 1e-6
    assert (ours.x_train.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6
    for part in ("x_train", "x_test"):
        np.testing.assert_allclose(getattr(ours, part).numpy(), reference(arrays, part), atol=1e-6)
    np.testing.assert_array_equal(ours.y_train.numpy(), arrays["y_train"])
    np.testing.assert_array_equal(ours.y_test.numpy(), arrays["y_test"])


@pytest.mark.parametrize("device", DEVICES)
def test_same_values_on_every_device_and_in_every_precision(tmp_path, device):
    arrays = small((32, 32, 3))
    np.savez(tmp_path / "cifar10.npz", **arrays)
    single = load("cifar10", root=tmp_path)
    there = load("cifar10", root=tmp_path, device=device)
    assert there.x_train.device.type == there.y_test.device.type == device
    assert torch.equal(there.x_train.cpu(), single.x_train)
    double = load("cifar10", root=tmp_path, device=device, dtype=torch.float64)
    np.testing.assert_allclose(double.x_test.cpu().numpy(), reference(arrays, "x_test"), rtol=0, atol=1e-13)
    half = load("cifar10", root=tmp_path, device=device, dtype=torch.bfloat16)
    assert torch.equal(half.x_train.cpu(), single.x_train.bfloat16())


def test_images_are_channels_last(tmp_path):
    for name, shape in (("mnist", (28, 28)), ("cifar10", (32, 32, 3))):
        np.savez(tmp_path / f"{name}.npz", **small(shape))
        ours = load(name, root=tmp_path)
        chosen = next(batches(40, 8, seed=0))
        for x in (ours.x_train, ours.x_test, ours.x_train[chosen], probe_batch(ours, 8)[0]):
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert x.stride(1) == 1


def test_loaded_once(tmp_path):
    np.savez(tmp_path / "mnist.npz", **small((28, 28)))
    first = load("mnist", root=tmp_path)
    assert load("mnist", root=str(tmp_path), device=torch.device("cpu"), download=False) is first
    assert load("mnist", root=tmp_path, dtype=torch.float64) is not first


def test_fingerprint_is_that_of_the_arrays_in_whatever_layout(tmp_path, monkeypatch):
    arrays = small((32, 32, 3))
    write_cifar10(tmp_path / "batches", arrays, monkeypatch)
    for name, changed in (("archive", {}), ("other", {"y_test": arrays["y_test"][::-1]})):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "cifar10.npz", **arrays | changed)
    one, same, other = (
        data.fingerprint("cifar10", tmp_path / name) for name in ("batches", "archive", "other")
    )
    assert one == same != other
    assert data.fingerprint("digits") == data.fingerprint("digits") != one


def test_data_that_change_under_the_process_are_noticed(tmp_path, monkeypatch):
    path = tmp_path / "mnist.npz"
    np.savez(path, **small((28, 28)))
    load("mnist", root=tmp_path)
    before = data.fingerprint("mnist", tmp_path)
    np.savez(path, **small((28, 28), seed=1))
    assert data.fingerprint("mnist", tmp_path) == before  # of what was loaded
    message = refusal("mnist", root=tmp_path, dtype=torch.float64)
    assert f"{path} has changed since this process first read it" in message


def test_repr_shows_no_tensor():
    assert len(repr(load("digits"))) < 100


@pytest.mark.parametrize("name", ["MNIST", "imagenet", ""])
def test_unknown_name(name):
    with pytest.raises(ValueError, match="choose one of digits, mnist, cifar10"):
        load(name)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, "float32", None])
def test_unfit_dtype(dtype):
    with pytest.raises(ValueError, match="floating-point"):
        load("digits", dtype=dtype)


# Where it looks


def test_torchvision_layouts_equal_the_archives(tmp_path, monkeypatch):
    mnist, cifar10 = small((28, 28)), small((32, 32, 3))
    write_mnist(tmp_path / "plain", mnist)
    write_mnist(tmp_path / "compressed", mnist, compress=True)
    write_cifar10(tmp_path / "plain", cifar10, monkeypatch)
    (tmp_path / "archives").mkdir()
    np.savez(tmp_path / "archives" / "mnist.npz", **mnist)
    np.savez_compressed(tmp_path / "archives" / "cifar10.npz", **cifar10)
    for name, root in (("mnist", "plain"), ("mnist", "compressed"), ("cifar10", "plain")):
        ours, theirs = load(name, root=tmp_path / root), load(name, root=tmp_path / "archives")
        for part in images.PARTS:
            assert torch.equal(getattr(ours, part), getattr(theirs, part))


def test_torchvision_layout_comes_first(tmp_path):
    write_mnist(tmp_path, small((28, 28), n_train=40))
    np.savez(tmp_path / "mnist.npz", **small((28, 28), n_train=30))
    assert len(load("mnist", root=tmp_path).x_train) == 40


def test_default_root(tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_DATA", str(tmp_path / "chosen"))
    assert data.default_root() == tmp_path / "chosen"
    monkeypatch.setenv("BNLIB_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.default_root() == tmp_path / "cache" / "bnlib"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for useless in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", useless)
        assert data.default_root() == tmp_path / "home" / ".cache" / "bnlib"


def test_environment_names_the_folder(tmp_path, monkeypatch):
    np.savez(tmp_path / "mnist.npz", **small((28, 28)))
    monkeypatch.setenv("BNLIB_DATA", str(tmp_path))
    assert load("mnist") is load("mnist", root=tmp_path)


def test_no_home_folder(monkeypatch):
    monkeypatch.setenv("BNLIB_DATA", "~no-such-user/data")
    assert "set BNLIB_DATA" in refusal("mnist")


def test_reading_leaves_the_folder_alone(tmp_path):
    write_mnist(tmp_path, small((28, 28)))
    before = sorted(tmp_path.rglob("*"))
    load("mnist", root=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_absent_and_not_to_be_downloaded(tmp_path):
    message = refusal("cifar10", root=tmp_path, download=False)
    assert f"CIFAR-10 is not in {tmp_path}" in message
    assert "cifar-10-batches-py" in message
    assert "cifar10.npz" in message
    assert "BNLIB_DATA" in message
    assert list(tmp_path.iterdir()) == []


# Files that are no data set


def overwrite(content):
    return lambda path: path.write_bytes(content)


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * share)])


MNIST_DAMAGE = {
    "empty": (overwrite(b""), "header"),
    "only half a header": (overwrite(struct.pack(">2I", 2051, 40)), "header"),
    "truncated": (cut(0.5), "bytes where its header announces"),
    "too long": (
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        "bytes where its header announces",
    ),
    "absurd sizes": (
        overwrite(struct.pack(">4I", 2051, *[2**32 - 1] * 3)),
        "bytes where its header announces",
    ),
    "labels in place of images": (overwrite(idx(np.zeros(40, np.uint8)) + b"\0" * 8), "magic number 2049"),
    "a web page": (overwrite(b"<!DOCTYPE html><title>Log in</title>"), "magic number"),
}


@pytest.mark.parametrize("damage", MNIST_DAMAGE)
def test_damaged_mnist_file(tmp_path, damage):
    spoil, problem = MNIST_DAMAGE[damage]
    folder = write_mnist(tmp_path, small((28, 28)))
    spoil(folder / IDX["x_train"])
    message = refusal("mnist", root=tmp_path)
    assert problem in message
    assert IDX["x_train"] in message
    assert f"delete {folder} and try again" in message


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_gz_file(tmp_path, share):
    folder = write_mnist(tmp_path, small((28, 28)), compress=True)
    cut(share)(folder / f"{IDX['x_test']}.gz")
    assert "is damaged" in refusal("mnist", root=tmp_path)


def test_gz_file_with_another_content(tmp_path):
    folder = write_mnist(tmp_path, small((28, 28)), compress=True)
    content = bytearray((folder / f"{IDX['x_test']}.gz").read_bytes())
    (folder / f"{IDX['x_test']}.gz").write_bytes(b"not gzip at all")
    assert "is damaged" in refusal("mnist", root=tmp_path)
    for position in (len(content) // 2, len(content) - 6):  # the compressed bytes, the checksum
        spoilt = content.copy()
        spoilt[position] ^= 0xFF
        (folder / f"{IDX['x_test']}.gz").write_bytes(spoilt)
        assert "is damaged" in refusal("mnist", root=tmp_path)


@pytest.mark.parametrize("part", IDX)
def test_incomplete_mnist_folder(tmp_path, part):
    """What torchvision leaves when it is stopped between two files."""
    folder = write_mnist(tmp_path, small((28, 28)))
    (folder / IDX[part]).unlink()
    message = refusal("mnist", root=tmp_path)
    assert f"{IDX[part]} is missing" in message
    assert "delete" in message


@pytest.mark.parametrize("file", ["data_batch_1", "data_batch_5", "test_batch"])
def test_incomplete_or_damaged_cifar10_folder(tmp_path, monkeypatch, file):
    folder = write_cifar10(tmp_path, small((32, 32, 3)), monkeypatch)
    cut(0.5)(folder / file)
    message = refusal("cifar10", root=tmp_path)
    assert "MD5" in message
    assert file in message
    (folder / file).unlink()
    assert f"{file} is missing" in refusal("cifar10", root=tmp_path)


def trap(path):
    """A pickle that makes a folder when it is loaded."""
    return f"cposix\nmkdir\n(S'{path}'\ntR.".encode()


def test_what_a_pickle_asks_for_is_never_done(tmp_path, monkeypatch):
    sprung = tmp_path / "sprung"
    folder = write_cifar10(tmp_path, small((32, 32, 3)), monkeypatch)
    batch = (folder / "data_batch_1").read_bytes()
    (folder / "data_batch_1").write_bytes(trap(sprung))
    assert "MD5" in refusal("cifar10", root=tmp_path)
    # As if it were the original's sum; alone, and inside a batch.
    inside = batch.replace(text(b"training batch 1 of 5"), trap(sprung)[:-1])
    for content in (trap(sprung), inside):
        (folder / "data_batch_1").write_bytes(content)
        md5 = hashlib.md5(content).hexdigest()
        monkeypatch.setitem(images._CIFAR10_TRAIN, "data_batch_1", md5)
        assert "data_batch_1 is damaged (it cannot be followed" in refusal("cifar10", root=tmp_path)

    arrays = small((28, 28))
    np.savez(tmp_path / "mnist.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "mnist.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w") as archive:
        for name, content in members.items():
            header = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (20,), }"
            objects = header.ljust(127) + b"\n" + trap(sprung)
            archive.writestr(name, objects if name == "y_test.npy" else content)
    message = refusal("mnist", root=tmp_path)
    assert "mnist.npz is damaged" in message and "allow_pickle" in message
    (tmp_path / "mnist.npz").write_bytes(trap(sprung))
    assert "mnist.npz is damaged" in refusal("mnist", root=tmp_path)
    assert not sprung.exists()


def test_every_part_of_a_batch_counts():
    """Whatever is cut or exchanged: one ValueError, or the very same arrays where it is nobody's business."""
    arrays = small((32, 32, 3), n_train=3)
    x, y = arrays["x_train"], arrays["y_train"]
    good = cifar10_batch(x, y)
    rows, labels = cifar_batches.read(good)
    np.testing.assert_array_equal(rows.reshape(3, 3, 32, 32).transpose(0, 2, 3, 1), x)
    np.testing.assert_array_equal(labels, y)
    for end in range(len(good)):
        with pytest.raises(ValueError):
            cifar_batches.read(good[:end])
    exchanged = {
        "labels that are too many": (text(b"labels") + b"q\x02]q\x05(", b"K\x00"),
        "a label that is none": (text(b"labels") + b"q\x02]q\x05(K", b"\x0c"),
    }
    for before, added in exchanged.values():
        start = good.index(before) + len(before)
        rest = good[start + (before[-1:] == b"K") :]
        with pytest.raises(ValueError, match="labels"):
            cifar_batches.read(good[:start] + added + rest)
    for old, new in (
        (b"u1", b"i1"),
        (b"ndarray", b"matrix."),
        (b"M\x00\x0c", b"M\x00\x0b"),
        (b"data", b"Data"),
    ):
        with pytest.raises(ValueError):
            cifar_batches.read(good.replace(old, new))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99, 0.9999])
def test_truncated_archive(tmp_path, share):
    path = tmp_path / "mnist.npz"
    np.savez(path, **small((28, 28)))
    cut(share)(path)
    message = refusal("mnist", root=tmp_path)
    assert f"{path} is damaged" in message
    assert f"delete {path}" in message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_wrong_byte_in_an_archive(tmp_path, save):
    """Wherever the byte is: either a DataError or, where it carries no content, the very same data."""
    arrays = small((28, 28), n_train=3, n_test=2)
    path = tmp_path / "mnist.npz"
    save(path, **arrays)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.choice(len(content), 200, replace=False):
        spoilt = bytearray(content)
        spoilt[position] ^= int(rng.integers(1, 256))
        path.write_bytes(spoilt)
        try:
            images._fingerprints.clear()
            found = images.load("mnist", tmp_path, download=False)
        except DataError:
            refused += 1
        else:
            assert all(np.array_equal(found[part], arrays[part]) for part in images.PARTS)
    assert refused > 150


def test_archive_that_is_an_array(tmp_path):
    with (tmp_path / "mnist.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert "is damaged" in refusal("mnist", root=tmp_path)


def test_archive_without_some_arrays(tmp_path):
    arrays = small((28, 28))
    np.savez(tmp_path / "mnist.npz", x_train=arrays["x_train"], y_test=arrays["y_test"])
    assert "it lacks y_train, x_test" in refusal("mnist", root=tmp_path)


WRONG_ARRAYS = {
    "images of another size": ({"x_train": np.zeros((40, 32, 32), np.uint8)}, "(N, 28, 28)"),
    "colour images": ({"x_test": np.zeros((20, 28, 28, 3), np.uint8)}, "(N, 28, 28)"),
    "flat images": ({"x_train": np.zeros((40, 784), np.uint8)}, "(N, 28, 28)"),
    "scaled images": ({"x_train": np.zeros((40, 28, 28), np.float32)}, "float32 where uint8"),
    "signed labels": ({"y_train": np.zeros(40, np.int64)}, "int64 where uint8"),
    "one-hot labels": ({"y_test": np.zeros((20, 10), np.uint8)}, "y_test has the shape (20, 10)"),
    "a label too many": ({"y_train": np.zeros(41, np.uint8)}, "40 images but 41 labels"),
    "an eleventh class": ({"y_test": np.full(20, 10, np.uint8)}, "a label 10 in y_test"),
    "no images": (
        {"x_test": np.zeros((0, 28, 28), np.uint8), "y_test": np.zeros(0, np.uint8)},
        "no image in the test set",
    ),
    "blank images": ({"x_train": np.full((40, 28, 28), 7, np.uint8)}, "one and the same value"),
}


@pytest.mark.parametrize("wrong", WRONG_ARRAYS)
def test_wrong_arrays(tmp_path, wrong):
    arrays, problem = WRONG_ARRAYS[wrong]
    np.savez(tmp_path / "mnist.npz", **small((28, 28)) | arrays)
    assert problem in refusal("mnist", root=tmp_path)


def test_wrong_image_size_in_torchvision_layout(tmp_path):
    folder = write_mnist(tmp_path, small((28, 28)) | {"x_train": np.zeros((40, 32, 32), np.uint8)})
    message = refusal("mnist", root=tmp_path)
    assert "(N, 28, 28)" in message
    assert str(folder) in message


def test_no_images_in_torchvision_layout(tmp_path):
    none = {"x_test": np.zeros((0, 28, 28), np.uint8), "y_test": np.zeros(0, np.uint8)}
    write_mnist(tmp_path, small((28, 28)) | none)
    assert "no image in the test set" in refusal("mnist", root=tmp_path)


def test_channels_first_archive(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **small((3, 32, 32)))
    assert "(N, 32, 32, 3)" in refusal("cifar10", root=tmp_path)


def test_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "mnist.npz").mkdir()
    assert "mnist.npz cannot be read" in refusal("mnist", root=tmp_path)


@pytest.mark.parametrize("layout", ["folder", "archive"])
def test_unreadable_file(tmp_path, monkeypatch, layout):
    """chmod does not bind root, so the refusal comes from the call itself."""
    if layout == "folder":
        write_mnist(tmp_path, small((28, 28)))
    else:
        np.savez(tmp_path / "mnist.npz", **small((28, 28)))

    def forbidden(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", os.fspath(self))

    monkeypatch.setattr(Path, "read_bytes" if layout == "folder" else "open", forbidden)
    message = refusal("mnist", root=tmp_path)
    assert "cannot be read (Permission denied): make it readable" in message


# Downloading


def fake_download(monkeypatch, write):
    """`write` in the place of torchvision's download; it finds the folder in its argument's `root`."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", write)

    def archive(url, root, filename, md5):
        assert (url, filename, md5) == (CIFAR10.url, CIFAR10.filename, CIFAR10.tgz_md5)
        write(SimpleNamespace(root=root))

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", archive)


def leftovers(root):
    return sorted(p.name for p in Path(root).iterdir() if p.suffix != ".lock")


def test_download_of_mnist(tmp_path, monkeypatch):
    arrays = small((28, 28))
    fake_download(monkeypatch, lambda self: write_mnist(self.root, arrays))
    root = tmp_path / "not" / "yet" / "there"
    ours = load("mnist", root=root)
    np.testing.assert_array_equal(ours.y_train.numpy(), arrays["y_train"])
    assert leftovers(root) == ["MNIST"]
    found, where = images._find("mnist", root)
    assert where == root / "MNIST" / "raw"
    assert np.array_equal(found["x_train"], arrays["x_train"])


def test_download_of_cifar10(tmp_path, monkeypatch):
    arrays = small((32, 32, 3))

    def write(self):
        write_cifar10(self.root, arrays, monkeypatch)
        (Path(self.root) / "cifar-10-python.tar.gz").write_bytes(b"what torchvision leaves beside it")

    fake_download(monkeypatch, write)
    ours = load("cifar10", root=tmp_path)
    np.testing.assert_allclose(ours.x_train.numpy(), reference(arrays, "x_train"), atol=1e-6)
    assert leftovers(tmp_path) == ["cifar-10-batches-py"]


def test_sums_of_cifar10_are_those_of_torchvision():
    assert list(images._CIFAR10_TRAIN.items()) == [tuple(each) for each in CIFAR10.train_list]
    assert list(images._CIFAR10_TEST.items()) == [tuple(each) for each in CIFAR10.test_list]


def test_empty_folder_does_not_stand_in_the_way(tmp_path, monkeypatch):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    fake_download(monkeypatch, lambda self: write_mnist(self.root, small((28, 28))))
    load("mnist", root=tmp_path)
    assert images._find("mnist", tmp_path) is not None


class Half:
    """An answer from the network that ends in the middle."""

    def __init__(self, url):
        self.url, self.length, self.rest = url, 1000, b"\x1f\x8b" * 250

    def read(self, size):
        chunk, self.rest = self.rest, b""
        return chunk

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def raising(error):
    def answer(request, *args, **kwargs):
        raise error

    return answer


NETWORKS = {
    "none": (raising(urllib.error.URLError(OSError(-3, "Temporary failure"))), "Temporary failure"),
    "silent": (raising(TimeoutError("timed out")), "timed out"),
    "blocked": (
        raising(urllib.error.HTTPError("https://example.org", 403, "Forbidden", {}, None)),
        "HTTP Error 403: Forbidden",
    ),
    "broken": (raising(http.client.IncompleteRead(b"abc", 10)), "IncompleteRead"),
    "half a file": (lambda request, *a, **k: Half(request.full_url), "File not found or corrupted"),
}


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("network", NETWORKS)
def test_network_that_fails(tmp_path, monkeypatch, name, network):
    """torchvision's own download code, on a network that does not do its part."""
    answer, reason = NETWORKS[network]
    monkeypatch.undo()
    monkeypatch.setattr("urllib.request.urlopen", answer)
    message = refusal(name, root=tmp_path)
    assert f"is not in {tmp_path} and could not be downloaded ({reason}" in message
    assert f"{name}.npz" in message
    assert "BNLIB_DATA" in message
    assert leftovers(tmp_path) == []
    assert images._find(name, tmp_path) is None


def test_network_timeout_is_set_and_given_back(tmp_path, monkeypatch):
    seen = []
    fake_download(
        monkeypatch,
        lambda self: seen.append(socket.getdefaulttimeout()) or write_mnist(self.root, small((28, 28))),
    )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(77.0)
    try:
        load("mnist", root=tmp_path)
        assert seen == [images._NETWORK_TIMEOUT]
        assert socket.getdefaulttimeout() == 77.0
    finally:
        socket.setdefaulttimeout(before)


def half_a_download(self):
    folder = write_mnist(self.root, small((28, 28)))
    cut(0.5)(folder / IDX["x_train"])
    (folder / IDX["y_test"]).unlink()


def test_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    """Ctrl-C, a defect elsewhere, a full disk: only the last is a matter of data."""
    for error in (KeyboardInterrupt(), KeyError("unrelated")):

        def interrupted(self, error=error):
            half_a_download(self)
            raise error

        fake_download(monkeypatch, interrupted)
        with pytest.raises(type(error)):
            load("mnist", root=tmp_path)
        assert leftovers(tmp_path) == []

    def disk_full(self):
        half_a_download(self)
        raise OSError(28, "No space left on device")

    fake_download(monkeypatch, disk_full)
    assert "could not be downloaded (No space left on device)" in refusal("mnist", root=tmp_path)
    assert leftovers(tmp_path) == []


def test_download_that_is_damaged_is_not_kept(tmp_path, monkeypatch):
    """torchvision checks the compressed file only; what came out of it is checked here."""

    def unpacked_by_half(self):
        folder = write_mnist(self.root, small((28, 28)))
        cut(0.5)(folder / IDX["x_train"])

    fake_download(monkeypatch, unpacked_by_half)
    assert "The download of MNIST is damaged: try again" in refusal("mnist", root=tmp_path)
    assert leftovers(tmp_path) == []

    def another_data_set(self):
        write_mnist(self.root, small((32, 32)))

    fake_download(monkeypatch, another_data_set)
    assert "The download of MNIST is damaged: try again" in refusal("mnist", root=tmp_path)
    assert leftovers(tmp_path) == []


KILLED = """
import os, pathlib, signal, sys
import torchvision
from bnlib import cifar_batches, data, images

def killed(self):
    folder = pathlib.Path(self.raw_folder)
    folder.mkdir(parents=True)
    for file in {files!r}:
        (folder / file).write_bytes(bytes.fromhex("00000803") + b"half an image")
    os.kill(os.getpid(), signal.SIGKILL)

torchvision.datasets.MNIST.download = killed
data.load("mnist", root=sys.argv[1])
"""


def test_killed_download_never_poses_as_a_data_set(tmp_path, monkeypatch):
    code = KILLED.format(files=list(IDX.values()))
    process = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, timeout=120)
    assert process.returncode < 0, process.stderr.decode()
    assert leftovers(tmp_path) == ["mnist.partial"]
    assert "MNIST is not in" in refusal("mnist", root=tmp_path, download=False)
    # The next download finds neither a lock nor a remnant in its way.
    fake_download(monkeypatch, lambda self: write_mnist(self.root, small((28, 28))))
    assert len(load("mnist", root=tmp_path).x_train) == 40
    assert leftovers(tmp_path) == ["MNIST"]


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refused(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refused)
    fake_download(monkeypatch, lambda self: write_mnist(self.root, small((28, 28))))
    said = refusal("mnist", root=tmp_path)
    assert "MNIST is not in" in said and "unction not implemented" in said, said
    assert "MNIST" not in leftovers(tmp_path)


def test_two_at_once_download_once(tmp_path, monkeypatch):
    calls = []

    def slow(self):
        calls.append(threading.get_ident())
        time.sleep(0.3)
        write_mnist(self.root, small((28, 28)))

    fake_download(monkeypatch, slow)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(load("mnist", root=tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(calls) == 1
    assert [len(result.x_train) for result in results] == [40] * 4
    assert leftovers(tmp_path) == ["MNIST"]


def test_folder_that_cannot_be_made(tmp_path):
    """A path below a regular file: nobody may write there, not even root."""
    (tmp_path / "file").write_text("no folder")
    message = refusal("mnist", root=tmp_path / "file" / "data")
    assert "cannot be downloaded to it (Not a directory)" in message
    assert "mnist.npz" in message
    assert "BNLIB_DATA" in message


def test_read_only_folder(tmp_path, monkeypatch):
    """chmod does not bind root, so the refusal comes from the call itself."""

    def read_only(path, *args, **kwargs):
        raise OSError(30, "Read-only file system", os.fspath(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)  # the lock file
        message = refusal("mnist", root=tmp_path)
    assert "cannot be downloaded to it (Read-only file system)" in message
    assert "BNLIB_DATA to a folder that you can write to" in message

    fake_download(monkeypatch, lambda self: write_mnist(self.root, small((28, 28))))
    monkeypatch.setattr(os, "rename", read_only)
    assert "cannot be downloaded to it (Read-only file system)" in refusal("mnist", root=tmp_path)
    assert leftovers(tmp_path) in ([], ["MNIST"])
    assert images._find("mnist", tmp_path) is None


# The order of the batches


def take(stream, count):
    return [batch.tolist() for batch in itertools.islice(stream, count)]


@pytest.mark.parametrize(("n", "batch_size"), [(1, 1), (10, 10), (12, 3), (103, 10), (1437, 128)])
def test_an_epoch_visits_every_example_at_most_once(n, batch_size):
    per_epoch = n // batch_size
    stream = batches(n, batch_size, seed=3)
    epochs = [list(itertools.chain(*take(stream, per_epoch))) for _ in range(3)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == per_epoch * batch_size
        assert set(epoch) <= set(range(n))
        if n % batch_size == 0:
            assert set(epoch) == set(range(n))
    if n > 10:
        assert epochs[0] != epochs[1] != epochs[2]


def test_left_over_examples_differ_between_epochs():
    """Dropping the last, incomplete batch loses nobody for ever."""
    stream = batches(103, 10, seed=0)
    seen = set(itertools.chain(*take(stream, 10 * 8)))
    assert seen == set(range(103))


def test_batches_are_int64_of_one_size():
    for batch in itertools.islice(batches(103, 10, seed=0), 25):
        assert batch.dtype == torch.int64
        assert batch.shape == (10,)


@pytest.mark.parametrize("device", DEVICES)
def test_stream_is_the_same_for_every_arm(device):
    """Whatever an arm draws or seeds meanwhile, and wherever it runs."""
    expected = take(batches(100, 16, seed=5), 20)
    torch.manual_seed(123)
    np.random.seed(7)
    stream, got = batches(100, 16, seed=5, device=device), []
    for _ in range(20):
        torch.randn(9)
        got.append(next(stream))
        torch.randperm(100)
    assert all(batch.device.type == device for batch in got)
    assert [batch.tolist() for batch in got] == expected


def test_stream_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    take(batches(100, 16, seed=5), 20)
    probe_batch(load("digits"), 64)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_streams_do_not_mix():
    one, two = batches(100, 16, seed=5), batches(100, 16, seed=5)
    assert [next(one).tolist() == next(two).tolist() for _ in range(20)] == [True] * 20


def test_seeds_give_different_streams():
    firsts = {tuple(next(batches(1437, 64, seed=seed)).tolist()) for seed in range(50)}
    assert len(firsts) == 50


def test_first_epoch_is_a_fair_shuffle():
    """Each of 20 examples is in the first batch of 5 for a quarter of 2000 seeds (within 5 sigma)."""
    counts = sum(torch.bincount(next(batches(20, 5, seed=seed)), minlength=20) for seed in range(2000))
    assert (counts - 500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize(("n", "batch_size"), [(10, 11), (10, 0), (10, -1), (0, 1)])
def test_impossible_batch_size(n, batch_size):
    """Refused at once, not at the first batch."""
    with pytest.raises(ValueError, match=f"A batch of {batch_size} cannot be drawn from {n} examples"):
        batches(n, batch_size, seed=0)


def test_probe_batch_is_fixed():
    digits = load("digits")
    x, y = probe_batch(digits, 64)
    again_x, again_y = probe_batch(digits, 64)
    assert torch.equal(x, again_x)
    assert torch.equal(y, again_y)
    assert x.shape == (64, 1, 8, 8)
    assert y.shape == (64,)
    assert not torch.equal(x, probe_batch(digits, 64, seed=1)[0])


def test_probe_batch_holds_distinct_training_examples_with_their_labels():
    digits = load("digits")
    x, y = probe_batch(digits, 1437)

    def pairs(images, labels):
        return sorted(
            (image.numpy().tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)
        )

    assert pairs(x, y) == pairs(digits.x_train, digits.y_train)


def test_probe_batch_is_independent_of_the_stream():
    """Not moved by it, and no batch of it, even with the same seed."""
    digits = load("digits")
    n, size = len(digits.x_train), 64
    before, _ = probe_batch(digits, size, seed=0)
    stream = batches(n, size, seed=0)
    for indices in itertools.islice(stream, 2 * (n // size)):
        assert not torch.equal(digits.x_train[indices], before)
    assert torch.equal(probe_batch(digits, size, seed=0)[0], before)


def test_probe_batch_is_a_copy():
    digits = load("digits")
    x, _ = probe_batch(digits, 8)
    x.zero_()
    assert not torch.equal(probe_batch(digits, 8)[0], x)


@pytest.mark.parametrize("size", [0, -1, 1438])
def test_impossible_probe_batch(size):
    with pytest.raises(ValueError, match="choose 1 to 1437"):
        probe_batch(load("digits"), size)


def flagged_as_encrypted(content):
    """A zip archive with one bit changed in each header: zipfile answers with a RuntimeError of its own."""
    flipped = bytearray(content)
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := flipped.find(signature, start + 1)) >= 0:
            flipped[start + flags] |= 1
    return bytes(flipped)


def test_an_archive_with_a_flipped_flag_is_one_sentence(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, **small((28, 28)))
    path.write_bytes(flagged_as_encrypted(path.read_bytes()))
    message = refusal("mnist", root=tmp_path)
    assert "mnist.npz is damaged" in message and "encrypted" in message


# The linear map of the deep linear network


def test_linear_map_is_a_linear_map():
    """Both halves are y = A x with one and the same A, which least squares finds."""
    made = linear_map(50, 4, seed=3)
    assert all(part.shape == (50, 4) for part in (made.x_train, made.y_train, made.x_test, made.y_test))
    a = torch.linalg.lstsq(made.x_train, made.y_train).solution
    torch.testing.assert_close(made.x_train @ a, made.y_train, rtol=0, atol=1e-12)
    torch.testing.assert_close(made.x_test @ a, made.y_test, rtol=0, atol=1e-12)
    assert not torch.equal(made.x_train, made.x_test)


def test_linear_map_is_standard_normal():
    made = linear_map(4000, 30, seed=0)
    a = torch.linalg.lstsq(made.x_train, made.y_train).solution
    for sample in (made.x_train, made.x_test, a):
        assert sample.mean().item() == pytest.approx(0, abs=5 / sample.numel() ** 0.5)
        assert sample.var().item() == pytest.approx(1, abs=5 * (2 / sample.numel()) ** 0.5)


def test_linear_map_depends_on_n_width_and_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    made = linear_map(20, 5, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = linear_map(20, 5, seed=2), linear_map(20, 5, seed=4)
    single = linear_map(20, 5, seed=2, dtype=torch.float32)
    for part in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(made, part), getattr(again, part))
        assert not torch.equal(getattr(made, part), getattr(other, part))
        assert torch.equal(getattr(made, part).float(), getattr(single, part)), "drawn in float64"


@pytest.mark.parametrize("n, width", [(0, 5), (5, 0), (-1, 5)])
def test_linear_map_needs_a_sample_and_a_dimension(n, width):
    with pytest.raises(ValueError, match=f"at least one sample and one dimension, not {n} and {width}"):
        linear_map(n, width, seed=0)
