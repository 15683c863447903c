"""Parameters with other values than their own, to see whether anybody would notice."""

from collections.abc import Iterator
from enum import Enum

import ml_dtypes
import numpy as np

from app.weights.dtypes import DTYPES
from workers.engine_host.tensors import Array, dtype_name

SMALL = 0.01  # of the root mean square of a parameter's values
LARGE = 100.0
PRIME = 4093  # the signs repeat after as many values, so that no rows are alike
PART = PRIME * 64  # values, a multiple of the signs, so that these go on where they ended


class Signs(Enum):
    """Which values become larger and which smaller.

    Those of chance change nothing where two values happen to move alike and only their difference counts.
    """

    CHANCE = 0
    TURNS = 1


def pattern(signs: Signs) -> Array:
    """Return the signs, the first of which are plus and minus."""
    turns: Array = np.resize(np.array([1, -1], np.int8), PRIME)
    if signs is Signs.TURNS:
        return turns
    chance: Array = np.random.Generator(np.random.PCG64(1)).integers(0, 2, PRIME, np.int8) * 2 - 1
    chance[:2] = turns[:2]
    return chance


def changed(value: Array, size: float = SMALL, signs: Array | None = None) -> Array:
    """Return the values, each larger or smaller by `size` of their root mean square, as far as their dtype allows.

    Integers change by one at least, and zeros are taken for ones. What is not finite stays. Beside the result no
    memory is taken that grows with the values.
    """
    kind = DTYPES[dtype_name(value)].kind
    if kind == "bool":
        return ~value
    signs = pattern(Signs.CHANCE) if signs is None else signs
    result = np.empty(value.shape, value.dtype)
    step = size * (_rms(value) or 1.0)
    if kind != "float":
        step = float(max(1, round(step)))  # a product of Python's integers and the signs would overflow as int8
    else:
        step = max(step, step / size * float(ml_dtypes.finfo(value.dtype).eps))  # type: ignore[no-untyped-call]
    for part, moved in zip(_parts(value), _parts(result), strict=True):
        wide = _wide(part) + np.resize(step * signs, part.shape)
        if kind != "float":
            bounds = np.iinfo(value.dtype)
            wide = np.clip(wide, bounds.min, bounds.max)
        moved[...] = wide.astype(value.dtype)
    return result


def _rms(value: Array) -> float:
    total, count = 0.0, 0
    for part in _parts(value):
        wide = _wide(part)
        finite = wide[np.isfinite(wide)]
        total, count = total + float(np.square(finite).sum()), count + finite.size
    return (total / count) ** 0.5 if count else 0.0


def _parts(value: Array) -> Iterator[Array]:
    """Yield the values in pieces of which copies may be made; of contiguous values these are views."""
    flat = value.reshape(-1)
    for start in range(0, flat.size, PART):
        yield flat[start : start + PART]


def _wide(part: Array) -> Array:
    wide: Array = part.astype(np.float64)
    return wide
