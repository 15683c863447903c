"""The tensors in the golden checkpoints: a perceptron of two layers, as `tests.workers.networks` has it, and others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
FOLDER = Path(__file__).parent


def _values(shape: tuple[int, ...], start: int) -> Array:
    count = int(np.prod(shape))
    return ((np.arange(start, start + count) * 7 % 23 - 11) / 16).astype(np.float32).reshape(shape)


PERCEPTRON: Mapping[str, Array] = {
    "0.weight": _values((8, 8), 0),
    "0.bias": _values((8,), 3),
    "1.weight": _values((8, 8), 5),
    "1.bias": _values((8,), 9),
}
SMALL: Mapping[str, Array] = {
    "f64": np.array([0.1, -2.5]),
    "f32": np.array([[1.5, 2], [3, 4]], np.float32),
    "f16": np.array([0.5, -4], np.float16),
    "i64": np.array([2**40, -1]),
    "i32": np.array([7, -8], np.int32),
    "i16": np.array([300], np.int16),
    "i8": np.array([-7], np.int8),
    "u8": np.array([200], np.uint8),
    "u16": np.array([60_000, 1], np.uint16),
    "bool": np.array([True, False, True]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


def read(name: str) -> bytes:
    """Return a golden file."""
    return (FOLDER / name).read_bytes()
