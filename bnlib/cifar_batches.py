"""CIFAR-10's batches, read without unpickling them.

A batch is a pickle that Python 2 wrote: a dict with the keys ``data`` (a NumPy array of one row of bytes per
image), ``labels`` (a list of numbers) and others that nobody needs. To unpickle is to run what the file says.
Here it is only parsed, and the few opcodes that such a file consists of are followed on paper: where it says
"call this", a note of the call is kept, and an array is made of the note that NumPy leaves of one.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

_PIXELS = 3 * 32 * 32
_CLASSES = 10

_CONSTANTS = {"NONE": None, "NEWFALSE": False, "NEWTRUE": True}
# The opcode's argument is the value, or the name of the function.
_VALUES = {"BININT", "BININT1", "BININT2", "SHORT_BINSTRING", "BINSTRING", "GLOBAL"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


@dataclass(eq=False)
class _Call:
    """What unpickling would call with what, and the state that the result would be given."""

    function: Any
    arguments: Any
    state: Any = None


def read(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The images (N, 3072) and the labels (N,) of a batch, uint8; a row is all red, green, then blue values.

    Raises ValueError for everything that is not the pickle of such a batch.
    """
    try:
        batch = _parse(content)
    # What a stack, a memo and pickletools answer to a file that is none of ours.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("it cannot be followed as the pickle of a batch") from error
    if not isinstance(batch, dict) or not {"data", "labels"} <= batch.keys():
        raise ValueError("it is no dict with the keys data and labels")
    images = _images(batch["data"])
    labels = batch["labels"]
    if not isinstance(labels, list) or not all(type(n) is int and 0 <= n < _CLASSES for n in labels):
        raise ValueError(f"its labels are no list of numbers from 0 to {_CLASSES - 1}")
    if len(labels) != len(images):
        raise ValueError(f"it has {len(images)} images but {len(labels)} labels")
    return images, np.array(labels, dtype=np.uint8)


def _images(call: Any) -> np.ndarray:
    """The array that NumPy's note of it describes: class and state (version, shape, dtype, order, bytes)."""
    match call:
        case _Call(
            "numpy.core.multiarray _reconstruct",
            ("numpy ndarray", *_),
            (_, (int(rows), 3072), _Call("numpy dtype", ("u1", *_)), bool(by_column), str(text)),
        ) if len(text) == rows * _PIXELS:
            values = np.frombuffer(text.encode("latin-1"), dtype=np.uint8)
            return values.reshape(rows, _PIXELS, order="F" if by_column else "C")
    raise ValueError(f"its data are no rows of {_PIXELS} bytes")


def _parse(content: bytes) -> Any:
    """The value that a pickle describes, with a `_Call` wherever unpickling would call something."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        start = len(stack) - 1 - stack[::-1].index(_MARK)
        found = stack[start + 1 :]
        del stack[start:]
        return found

    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "APPENDS":
            values = above_mark()
            stack[-1].extend(values)
        elif name == "SETITEM":
            key, value = stack[-2:]
            del stack[-2:]
            stack[-1][key] = value
        elif name == "SETITEMS":
            items = above_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "REDUCE":
            function, arguments = stack[-2:]
            stack[-2:] = [_Call(function, arguments)]
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif name == "STOP":
            (value,) = stack
            return value
        elif name != "PROTO":
            raise ValueError(f"{name} is no part of a batch")
    raise ValueError("it has no end")
