"""Images for the lab in the browser: a data set as one small packet of bytes.

The page of a static book brings the packet as a script, a running notebook sends it on request
(`bnlib.widgets.Lab`); so it stands in no notebook. This module never imports torch by itself; the data sets
come from `bnlib.data`, which does, when a packet is made.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

# Data set -> how many training and test images of each; None: all. MNIST's packet stays below 3 MB.
SIZES: dict[str, tuple[int, int] | None] = {"digits": None, "mnist": (10_000, 2_000)}


def pack(name: str) -> tuple[dict[str, Any], bytes]:
    """The data set ``name`` as ``(about, packet)``.

    ``packet`` is the zlib-compressed string of one byte per pixel (0..255) of all images, training images
    first, row by row, followed by one byte per label. ``about`` has ``height``, ``width``, ``classes``, the
    numbers ``train`` and ``test`` of images, and ``mean`` and ``deviation`` of the pixels of these training
    images: the networks see (pixel - mean) / deviation. The first images of each part are taken, in the order
    of `bnlib.data`. Nothing is downloaded. Raises ValueError for an unknown name and bnlib.data.DataError
    where the data set is not there.
    """
    if name not in SIZES:
        raise ValueError(f"The lab has no data set {name!r}: choose one of {', '.join(SIZES)}.")
    from bnlib import data  # imports torch: only who makes a packet needs it

    dataset = data.load(name, download=False)
    train, test = SIZES[name] or (None, None)
    x_train, x_test = _pixels(dataset.x_train[:train], dataset.x_test[:test])
    parts = [x_train, x_test, dataset.y_train[:train].numpy(), dataset.y_test[:test].numpy()]
    packet = zlib.compress(b"".join(part.astype(np.uint8).tobytes() for part in parts))
    about = {
        "height": x_train.shape[-2],
        "width": x_train.shape[-1],
        "classes": dataset.classes,
        "train": len(parts[0]),
        "test": len(parts[1]),
        "mean": float(parts[0].mean(dtype=np.float64)),
        "deviation": float(parts[0].std(dtype=np.float64)),
    }
    return about, packet


def _pixels(*parts: Any) -> list[np.ndarray]:
    """Normalised tensors (N, 1, H, W) back to grey values 0..255; both ends occur in the first part."""
    low, high = float(parts[0].min()), float(parts[0].max())
    return [np.rint((x.squeeze(1).numpy() - low) * (255 / (high - low))).clip(0, 255) for x in parts]
