"""The kinds of slots. A slot is one initializer of the compiled graph, and how its value is made from parameters."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Self

import numpy as np

from app.weights.dtypes import numpy_dtype
from workers.engine_host.tensors import Array

TILE = 256  # rows and columns of a transposed weight that are copied at once
THREADED_BYTES = 1 << 20

Type = tuple[str, tuple[int, ...]]  # safetensors dtype and shape


@dataclass(frozen=True, slots=True)
class Slot:
    """An initializer that is one parameter, and the base of the other kinds.

    `sources` names the parameters that the value is made from, in order; `source_types` has their dtypes and shapes.
    `dtype` and `shape` are those of the value.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    source_types: tuple[Type, ...]

    is_computed: ClassVar[bool] = False

    @property
    def nbytes(self) -> int:
        """The size of the value in bytes."""
        return prod(self.shape) * numpy_dtype(self.dtype).itemsize

    def value(self, sources: Sequence[Array]) -> Array:
        """Return the value made from the sources' values; for this kind it is the one source's array itself."""
        return sources[0]

    def fill(self, target: Array, sources: Sequence[Array]) -> None:
        """Write the value into an array of its dtype and shape."""
        np.copyto(target, self.value(sources))


@dataclass(frozen=True, slots=True)
class PackedSlot(Slot):
    """Several small parameters in one flat initializer; `offsets` count its elements, and gaps are zero."""

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
    """Another slot's value with its axes in another order, for operators that read it transposed."""

    base: Slot
    axes: tuple[int, ...]

    is_computed: ClassVar[bool] = True

    @classmethod
    def of(cls, base: Slot, name: str, axes: tuple[int, ...]) -> Self:
        """Return the slot `name` with the axes of `base` in the order `axes`."""
        shape = tuple(base.shape[axis] for axis in axes)
        return cls(name, base.dtype, shape, base.sources, base.source_types, base, axes)

    def value(self, sources: Sequence[Array]) -> Array:
        """Return the transposed value; several threads copy a large matrix tile by tile."""
        turned = np.empty(self.shape, numpy_dtype(self.dtype))
        self.fill(turned, sources)
        return turned

    def fill(self, target: Array, sources: Sequence[Array]) -> None:
        """Write the transposed value into an array of its dtype and shape."""
        base = self.base.value(sources)
        if self.nbytes < THREADED_BYTES or self.axes != (1, 0):
            np.copyto(target, base.transpose(self.axes))
        else:
            _transpose(base, target)


def _transpose(matrix: Array, turned: Array) -> None:
    """Copy a matrix in tiles that stay in the cache: in whole rows, each element would come from a page of its own."""
    rows, columns = matrix.shape

    def copy_band(row: int) -> None:
        for column in range(0, columns, TILE):
            tile = matrix[row : row + TILE, column : column + TILE]
            turned[column : column + TILE, row : row + TILE] = tile.T

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy copies without the interpreter's lock
        list(pool.map(copy_band, range(0, rows, TILE)))


@dataclass(frozen=True, slots=True)
class NormalizationSlot(Slot):
    """A value made from a BatchNormalization; the first two sources are its scale and its variance.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias is the same as y = x * factor + shift, with factor =
    scale / sqrt(variance + epsilon) and shift = bias - mean * factor. Both are computed in F64. Source:
    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """

    epsilon: float

    is_computed: ClassVar[bool] = True

    def factor(self, sources: Sequence[Array]) -> Array:
        """Return scale / sqrt(variance + epsilon), F64 [channels]; not finite if variance + epsilon is not positive."""
        scale, variance = (source.astype(np.float64) for source in sources[:2])
        with np.errstate(all="ignore"):
            return scale / np.sqrt(variance + self.epsilon)

    def cast(self, array: Array) -> Array:
        """Return an array in the slot's dtype and shape."""
        with np.errstate(over="ignore"):
            return array.astype(numpy_dtype(self.dtype), copy=False).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class ScaleSlot(NormalizationSlot):
    """The factor of a BatchNormalization, [channels, 1, ...]."""

    def value(self, sources: Sequence[Array]) -> Array:
        """Return the factor."""
        return self.cast(self.factor(sources))


@dataclass(frozen=True, slots=True)
class ShiftSlot(NormalizationSlot):
    """The shift of a BatchNormalization, [channels, 1, ...], or the bias of the layer it is folded into, [channels].

    The third and fourth sources are the BatchNormalization's bias and mean. If it is folded into a layer that has a
    bias of its own, that is the fifth.
    """

    def value(self, sources: Sequence[Array]) -> Array:
        """Return bias + (own bias - mean) * factor."""
        bias, mean, *own = (source.astype(np.float64).reshape(-1) for source in sources[2:])
        with np.errstate(all="ignore"):
            return self.cast(bias + ((own[0] if own else 0.0) - mean) * self.factor(sources))


@dataclass(frozen=True, slots=True)
class FoldedWeightSlot(NormalizationSlot):
    """The weight of a layer that a BatchNormalization is folded into; the third source is the layer's own weight.

    `view` is the weight's shape as [groups, inputs, outputs, rest]. A channel is one output of one group.
    """

    view: tuple[int, int, int, int]

    def value(self, sources: Sequence[Array]) -> Array:
        """Return the weight times its channel's factor, computed in F32, or in F64 for an F64 weight."""
        weight = sources[2].reshape(self.view)
        groups, _, outputs, _ = self.view
        dtype = np.promote_types(np.float32, numpy_dtype(self.dtype))
        with np.errstate(all="ignore"):
            factor = self.factor(sources).astype(dtype).reshape(groups, 1, outputs, 1)
            return self.cast(np.multiply(weight, factor, dtype=dtype))
