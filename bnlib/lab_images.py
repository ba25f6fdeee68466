"""Images for the lab in the browser: a data set as one small packet of bytes.

The page of a static book brings the packet as a script, a running notebook sends it on request
(`bnlib.widgets.Lab`); so it stands in no notebook. No torch here: the book is built without it.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from bnlib import images

# Data set -> how many training and test images of each; None: all. MNIST's packet stays below 3 MB.
SIZES: dict[str, tuple[int, int] | None] = {"digits": None, "mnist": (10_000, 2_000)}


def pack(name: str) -> tuple[dict[str, Any], bytes]:
    """The data set ``name`` as ``(about, packet)``.

    ``packet`` is the zlib-compressed string of one byte per pixel (0..255) of all images, training images
    first, row by row, followed by one byte per label. ``about`` has ``height``, ``width``, ``classes``, the
    numbers ``train`` and ``test`` of images, and ``mean`` and ``deviation`` of the pixels of these training
    images: the networks see (pixel - mean) / deviation. The first images of each part are taken, in the order
    of `bnlib.images`. Nothing is downloaded. Raises ValueError for an unknown name and
    bnlib.images.DataError where the data set is not there.
    """
    if name not in SIZES:
        raise ValueError(f"The lab has no data set {name!r}: choose one of {', '.join(SIZES)}.")
    arrays = images.load(name, download=False)
    train, test = SIZES[name] or (None, None)
    kept = {part: array[: train if part.endswith("train") else test] for part, array in arrays.items()}
    parts = [kept[part] for part in ("x_train", "x_test", "y_train", "y_test")]
    packet = zlib.compress(b"".join(part.tobytes() for part in parts))
    pixels = parts[0]
    about = {
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "classes": images.CLASSES,
        "train": len(pixels),
        "test": len(parts[1]),
        "mean": float(pixels.mean(dtype=np.float64)),
        "deviation": float(pixels.std(dtype=np.float64)),
    }
    return about, packet
