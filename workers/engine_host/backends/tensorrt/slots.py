"""Kinds of slots: one initializer each of the graph that is compiled, and how its value is made from parameters."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Self

import numpy as np

from app.weights.dtypes import numpy_dtype
from workers.engine_host.tensors import Array

TILE = 256  # rows and columns of a transposed weight, copied at once
THREADED_BYTES = 1 << 20

Type = tuple[str, tuple[int, ...]]  # safetensors dtype and shape


@dataclass(frozen=True, slots=True)
class Slot:
    """An initializer that is one parameter; `sources` are the parameters its value is made of, in order.

    Sources of the dtypes and shapes in `source_types` make a value of the slot's dtype and shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    source_types: tuple[Type, ...]

    is_computed: ClassVar[bool] = False

    @property
    def nbytes(self) -> int:
        """Bytes of the value."""
        return prod(self.shape) * numpy_dtype(self.dtype).itemsize

    def value(self, sources: Sequence[Array]) -> Array:
        """Return the value that the sources' values make; here the very array."""
        return sources[0]


@dataclass(frozen=True, slots=True)
class PackedSlot(Slot):
    """Several small parameters in one initializer; `offsets` are in elements of the flat value, gaps are zero."""

    offsets: tuple[int, ...]

    is_computed: ClassVar[bool] = True

    def value(self, sources: Sequence[Array]) -> Array:
        """Return the sources' elements at their offsets, row-major."""
        flat = np.zeros(prod(self.shape), numpy_dtype(self.dtype))
        for offset, source in zip(self.offsets, sources, strict=True):
            flat[offset : offset + source.size] = source.reshape(-1)
        return flat.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class TransposedSlot(Slot):
    """Another slot's value with its axes in another order, for operators that read it so."""

    base: Slot
    axes: tuple[int, ...]

    is_computed: ClassVar[bool] = True

    @classmethod
    def of(cls, base: Slot, name: str, axes: tuple[int, ...]) -> Self:
        """Return the slot of that name with the axes of `base` in the order `axes`."""
        shape = tuple(base.shape[axis] for axis in axes)
        return cls(name, base.dtype, shape, base.sources, base.source_types, base, axes)

    def value(self, sources: Sequence[Array]) -> Array:
        """Return the transposed value; a large matrix is copied tile by tile, by several threads."""
        base = self.base.value(sources)
        if self.nbytes < THREADED_BYTES or self.axes != (1, 0):
            return np.ascontiguousarray(base.transpose(self.axes))
        return _transposed(base)


def _transposed(matrix: Array) -> Array:
    """Copy a matrix in tiles that stay in the cache: at full length each element would come from a page of its own."""
    rows, columns = matrix.shape
    turned = np.empty((columns, rows), matrix.dtype)

    def copy_band(row: int) -> None:
        for column in range(0, columns, TILE):
            tile = matrix[row : row + TILE, column : column + TILE]
            turned[column : column + TILE, row : row + TILE] = tile.T

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy copies without the interpreter's lock
        list(pool.map(copy_band, range(0, rows, TILE)))
    return turned


@dataclass(frozen=True, slots=True)
class NormalizationSlot(Slot):
    """Made from a BatchNormalization's scale and variance, the first two sources, and others.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias, so y = x * factor + shift with the two below, which are
    computed in F64 (https://onnx.ai/onnx/operators/onnx__BatchNormalization.html).
    """

    epsilon: float

    is_computed: ClassVar[bool] = True

    def factor(self, sources: Sequence[Array]) -> Array:
        """Return scale / sqrt(variance + epsilon), F64 [channels]; not finite where the variance is negative."""
        scale, variance = (source.astype(np.float64) for source in sources[:2])
        with np.errstate(all="ignore"):
            return scale / np.sqrt(variance + self.epsilon)

    def cast(self, array: Array) -> Array:
        """Return an array in the slot's dtype and shape."""
        with np.errstate(over="ignore"):
            return array.astype(numpy_dtype(self.dtype), copy=False).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class ScaleSlot(NormalizationSlot):
    """What a BatchNormalization multiplies with, [channels, 1, ...]."""

    def value(self, sources: Sequence[Array]) -> Array:
        """Return the factor."""
        return self.cast(self.factor(sources))


@dataclass(frozen=True, slots=True)
class ShiftSlot(NormalizationSlot):
    """What a BatchNormalization adds, [channels, 1, ...], or the bias of the layer it is folded into, [channels].

    The sources go on with its bias, its mean and, where that layer has one, the layer's own bias.
    """

    def value(self, sources: Sequence[Array]) -> Array:
        """Return bias + (own bias - mean) * factor."""
        bias, mean, *own = (source.astype(np.float64).reshape(-1) for source in sources[2:])
        with np.errstate(all="ignore"):
            return self.cast(bias + ((own[0] if own else 0.0) - mean) * self.factor(sources))


@dataclass(frozen=True, slots=True)
class FoldedWeightSlot(NormalizationSlot):
    """The weight, the third source, of a layer that a BatchNormalization is folded into.

    `view` is the weight's shape as [groups, inputs, outputs, rest]: a channel is a group and one of its outputs.
    """

    view: tuple[int, int, int, int]

    def value(self, sources: Sequence[Array]) -> Array:
        """Return the weight times its channel's factor; computed in F32, F64 weights in F64."""
        weight = sources[2].reshape(self.view)
        groups, _, outputs, _ = self.view
        dtype = np.promote_types(np.float32, numpy_dtype(self.dtype))
        with np.errstate(all="ignore"):
            factor = self.factor(sources).astype(dtype).reshape(groups, 1, outputs, 1)
            return self.cast(np.multiply(weight, factor, dtype=dtype))
