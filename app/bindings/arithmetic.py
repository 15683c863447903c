"""Transforms that compute: exactly, in float32 (in float64 if the tensor is F64), and rounded once at the end.

They work through large tensors in pieces, so that beside the tensors and the result there is little in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import TYPE_CHECKING, Any, ClassVar, Final

from app.bindings.cast_losses import store
from app.bindings.steps import MAX_EXTENT, Step, TensorType, TransformError, along, axis_of, replaced
from app.weights.dtypes import DTYPES, numpy_dtype

if TYPE_CHECKING:
    from app.bindings.steps import Array

PIECE: Final = 2**20  # elements computed at a time
MAX_QUANTISED_BITS: Final = 16  # so that float32 holds every number of them exactly


@dataclass(frozen=True, slots=True)
class Pad(Step):
    """Lengthen an axis at its end to `size`, as for a vocabulary; the new elements are `value`."""

    op: ClassVar[str] = "pad"
    axis: int
    size: int
    value: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_EXTENT:
            raise TransformError(f"pad size {self.size} must be an extent of 0 or more")
        if not isfinite(self.value):
            raise TransformError(f"pad value must be a finite number; got {self.value}")

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the types, longer along the axis."""
        return tuple(self._padded(one) for one in types)

    def _padded(self, one: TensorType) -> TensorType:
        axis = axis_of(self.op, self.axis, one)
        if one.shape[axis] > self.size:
            raise TransformError(
                f"pad to {self.size} is shorter than axis {axis} of {one}: take a part of it with slice instead"
            )
        return TensorType(one.dtype, replaced(one.shape, axis, self.size))

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return new arrays."""
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        padded = []
        for array in arrays:
            axis = self.axis % array.ndim
            longer = np.full(replaced(array.shape, axis, self.size), self.value, array.dtype)
            longer[along(axis, array.ndim, slice(array.shape[axis]))] = array
            padded.append(longer)
        return padded


@dataclass(frozen=True, slots=True)
class Dequantize(Step):
    """Make F32 of quantised numbers and their scale: (number - zero point) * scale.

    The tensors are the numbers (8-bit floats, or integers of at most 16 bits), the scale and, if there is one, the zero
    point in the scale's shape. A scale of one element holds for the whole tensor. One with as many elements as `axis`
    is long holds per channel. One whose extents are those of the tensor or 1 is broadcast. With `block`, the extents
    of a block, there is one scale for each block; the last block of an axis may be shorter.
    """

    op: ClassVar[str] = "dequantize"
    axis: int = 0
    block: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.block and min(self.block) < 1:
            raise TransformError(f"dequantize block {list(self.block)} must be extents of 1 or more")

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the one F32 type."""
        if len(types) not in {2, 3}:
            raise TransformError(
                f"dequantize takes the numbers, their scale and perhaps their zero point; got {len(types)} tensors"
            )
        numbers, scale, *zero_point = types
        if not is_quantised(numbers.dtype):
            raise TransformError(f"dequantize takes 8-bit floats or integers of at most 16 bits; got {numbers}")
        if DTYPES[scale.dtype].kind != "float":
            raise TransformError(f"dequantize takes a scale of floats; got {scale}: name the scale second in the rule")
        for one in zero_point:
            if one.shape != scale.shape:
                raise TransformError(f"dequantize zero point {one} must have the shape of the scale, {scale}")
        self._blocks(numbers.shape, scale.shape)
        return (TensorType("F32", numbers.shape),)

    def changes(self, types: Sequence[TensorType]) -> bool:  # noqa: ARG002 - of whatever type
        """Say that it always does."""
        return True

    def _blocks(self, shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the scale's shape with the rank of the tensor, and the extents of its blocks."""
        rank = len(shape)
        if self.block:
            wanted = tuple(-(-extent // size) for extent, size in zip(shape, self.block, strict=False))
            if len(self.block) == rank and scales == wanted:
                return scales, self.block
        elif prod(scales) == 1:
            return (1,) * rank, shape
        elif len(scales) == rank and all(one in {1, extent} for one, extent in zip(scales, shape, strict=True)):
            return scales, tuple(1 if one == extent else extent for one, extent in zip(scales, shape, strict=True))
        elif len(scales) == 1 and -rank <= self.axis < rank and scales[0] == shape[self.axis]:
            along_axis = replaced((1,) * rank, self.axis % rank, scales[0])
            return along_axis, replaced(shape, self.axis % rank, 1)
        raise TransformError(
            f"dequantize does not know which numbers of {list(shape)} each scale of {list(scales)} is for: give `axis` "
            'for one scale per channel, or the extents of a block, as in "block": [128, 128]'
        )

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return one new F32 array."""
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        numbers, scale, *zero_point = arrays
        shape, block = self._blocks(numbers.shape, scale.shape)
        result = numbers.astype(np.float32)
        if not result.ndim:
            result = result.reshape(1)
            shape, block = (1,), (1,)
        spread = [one.astype(np.float32).reshape(shape) for one in (scale, *zero_point)]
        for rows, blocks in _pieces(result.shape, block[0], shape[0]):
            piece = result[rows]
            scales, *zeros = (_repeated(one[blocks], block, piece.shape) for one in spread)
            for zero in zeros:
                piece -= zero
            piece *= scales
        return [result.reshape(numbers.shape)]


def is_quantised(dtype: str) -> bool:
    """Whether numbers of this dtype mean little without a scale."""
    known = DTYPES[dtype]
    return known.bits == 8 if known.kind == "float" else known.kind != "bool" and known.bits <= MAX_QUANTISED_BITS


@dataclass(frozen=True, slots=True)
class AddScaled(Step):
    """Add `scale` times the second tensor to the first, whose dtype and shape the result has."""

    op: ClassVar[str] = "add_scaled"
    scale: float

    def __post_init__(self) -> None:
        _check_scale(self.op, self.scale)

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the first type."""
        if len(types) != 2 or types[0].shape != types[1].shape or not _are_floats(types):
            raise TransformError(f"add_scaled takes two tensors of floats of one shape; got {_listed(types)}")
        return (types[0],)

    def changes(self, types: Sequence[TensorType]) -> bool:  # noqa: ARG002 - of whatever type
        """Say that it always does: it leaves one tensor of two."""
        return True

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return one new array."""
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        first, second = np.atleast_1d(arrays[0]), np.atleast_1d(arrays[1])
        result, exact = np.empty(first.shape, first.dtype), _working_dtype(first)
        for rows, _ in _pieces(first.shape, 1, first.shape[0]):
            store(result[rows], first[rows].astype(exact) + exact.type(self.scale) * second[rows].astype(exact))
        return [result.reshape(arrays[0].shape)]


@dataclass(frozen=True, slots=True)
class MergeLora(Step):
    """Merge the factors of a low-rank adapter into a weight W: W + `scale` * B A, with W's dtype and shape.

    The tensors are W [out, in], A [rank, in] and B [out, rank]; `scale` is alpha / rank. Those of a convolution may
    have more axes behind, as they have in PEFT: W [out, in, height, width], A [rank, in, height, width] and
    B [out, rank, 1, 1]. A weight that is kept [in, out] has to be transposed before and after.
    """

    op: ClassVar[str] = "merge_lora"
    scale: float

    def __post_init__(self) -> None:
        _check_scale(self.op, self.scale)

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the weight's type."""
        if len(types) != 3 or not _are_floats(types) or not _are_factors(*(one.shape for one in types)):
            raise TransformError(
                "merge_lora takes the weight [out, in], lora_A [rank, in] and lora_B [out, rank], in this order; got "
                f"{_listed(types)}. Transpose a weight that is kept [in, out] before and after, with each and transpose"
            )
        return (types[0],)

    def changes(self, types: Sequence[TensorType]) -> bool:  # noqa: ARG002 - of whatever type
        """Say that it always does: it leaves one tensor of three."""
        return True

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return one new array."""
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        weight, down, up = arrays
        exact, rank = _working_dtype(weight), down.shape[0]
        factor_a = down.reshape(rank, -1).astype(exact)
        factor_b = up.reshape(-1, rank).astype(exact)
        result = np.empty(weight.shape, weight.dtype)
        for rows, _ in _pieces(weight.shape, 1, weight.shape[0]):
            base = weight[rows].astype(exact)
            store(result[rows], base + exact.type(self.scale) * (factor_b[rows] @ factor_a).reshape(base.shape))
        return [result]


def _are_factors(weight: tuple[int, ...], down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    if min(len(weight), len(down), len(up)) < 2:
        return False
    return weight[0] == up[0] and down[0] == up[1] == prod(up[1:]) and weight[1:] == down[1:]


def _are_floats(types: Sequence[TensorType]) -> bool:
    return all(DTYPES[one.dtype].kind == "float" and DTYPES[one.dtype].bits >= 16 for one in types)


def _check_scale(op: str, scale: float) -> None:
    if not isfinite(scale):
        raise TransformError(f"{op} scale must be a finite number; got {scale}")


def _listed(types: Sequence[TensorType]) -> str:
    return ", ".join(map(str, types)) or "none"


def _working_dtype(array: "Array") -> Any:  # noqa: ANN401 - a numpy dtype
    return numpy_dtype("F64" if array.dtype == numpy_dtype("F64") else "F32")


def _pieces(shape: tuple[int, ...], block: int, blocks: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows of about PIECE elements, as whole blocks of `block` rows, and which of the `blocks` these are."""
    step = max(1, PIECE // max(1, block * prod(shape[1:])))
    for start in range(0, blocks, step):
        stop = min(start + step, blocks)
        yield slice(start * block, stop * block), slice(start, stop)


def _repeated(scale: "Array", block: Sequence[int], shape: tuple[int, ...]) -> "Array":
    """Spread one scale per block over the elements of the blocks, as far as the array of this shape goes."""
    for axis, extent in enumerate(shape):
        if scale.shape[axis] > 1 or block[axis] < extent:
            scale = scale.repeat(block[axis], axis)[along(axis, scale.ndim, slice(extent))]
    return scale
