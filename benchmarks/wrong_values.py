"""Values that a parameter may come to hold by a fault of binding, storage or refit."""

from collections import Counter
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from workers.engine_host.tensors import Array

Random = np.random.Generator
Values = dict[str, Array]


def _stale(values: Values, random: Random) -> Values:
    """A parameter as it was before an epoch of training, which has changed it by some percent."""
    name = any_of(values, random)
    value = values[name]
    moved = random.standard_normal(value.shape) * random.uniform(0.02, 0.2) * rms(value)
    return {name: (value + moved).astype(value.dtype)}


def _swapped(values: Values, random: Random) -> Values:
    """Two parameters of one shape in each other's place."""
    shapes = Counter(value.shape for value in values.values())
    one = any_of({name: value for name, value in values.items() if shapes[value.shape] > 1}, random)
    alike = {name: value for name, value in values.items() if value.shape == values[one].shape and name != one}
    other = any_of(alike, random)
    return {one: values[other], other: values[one]}


def _transposed(values: Values, random: Random) -> Values:
    """A matrix in the other layout: the bytes of its transpose under its own shape."""
    name = any_of({name: value for name, value in values.items() if value.ndim > 1 and min(value.shape) > 1}, random)
    value = values[name]
    return {name: np.ascontiguousarray(value.T).reshape(value.shape)}


def _cut(values: Values, random: Random) -> Values:
    """A parameter whose last values are zero, as of a file that was cut and filled up."""
    name = any_of(values, random)
    flat = values[name].copy().reshape(-1)
    flat[int(flat.size * random.uniform(0, 0.95)) :] = 0
    return {name: flat.reshape(values[name].shape)}


def _miscast(values: Values, random: Random) -> Values:
    """A parameter that went through a smaller dtype on its way, or whose bytes were read in the wrong order."""
    name = any_of(values, random)
    value = values[name]
    ways: tuple[Callable[[Array], Array], ...] = (
        lambda one: one.astype(np.float16),
        lambda one: one.astype(ml_dtypes.bfloat16),
        lambda one: one.astype(ml_dtypes.float8_e4m3fn),
        lambda one: one.astype(np.int32),
        lambda one: one.byteswap(),
    )
    return {name: ways[int(random.integers(len(ways)))](value).astype(value.dtype)}


def _scaled(values: Values, random: Random) -> Values:
    """A parameter that was quantised, and is not scaled back, or by the wrong number."""
    name = any_of(values, random)
    return {name: (values[name] * random.choice([-1, 0, 1 / 127, 0.5, 0.9, 1.1, 2, 127])).astype(values[name].dtype)}


def _one_bit(values: Values, random: Random) -> Values:
    """A parameter with one bit flipped: often of no consequence, and sometimes infinite."""
    name = any_of(values, random)
    value = values[name]
    return {name: np.frombuffer(flipped(value.tobytes(), random), value.dtype).reshape(value.shape)}


def any_of(values: Values, random: Random) -> str:
    """Return a name by chance."""
    names = list(values)
    return names[int(random.integers(len(names)))]


def flipped(content: bytes, random: Random) -> bytes:
    """Return the bytes with one bit the other way round."""
    changed = bytearray(content)
    changed[int(random.integers(len(changed)))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def rms(value: Array) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.square(value.astype(np.float64)).mean()))


VALUES: Mapping[str, Callable[[Values, Random], Values]] = {
    "stale": _stale,
    "swapped": _swapped,
    "transposed": _transposed,
    "truncated and filled up": _cut,
    "mis-cast": _miscast,
    "wrong scale": _scaled,
    "bit flip in a weight": _one_bit,
}
