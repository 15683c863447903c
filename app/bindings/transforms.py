"""Transforms that move elements, and the cast: none of them computes.

`Concat` joins tensors into one, `Divide` makes several of each, and `Each` treats every one differently; the others
work on each alike. Only `Concat`, `Reorder`, a reshape of a strided view and a cast copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from app.bindings.cast_losses import counting
from app.bindings.steps import (
    MAX_EXTENT,
    MAX_RANK,
    Step,
    TensorType,
    Transform,
    TransformError,
    along,
    apply_all,
    axis_of,
    infer_all,
    replaced,
)
from app.weights.dtypes import DTYPES, numpy_dtype

if TYPE_CHECKING:
    from app.bindings.steps import Array


@dataclass(frozen=True, slots=True)
class Transpose(Step):
    """Reorder the axes: axis i of the result is axis `perm[i]` of the tensor."""

    op: ClassVar[str] = "transpose"
    perm: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.perm) != list(range(len(self.perm))) or len(self.perm) > MAX_RANK:
            raise TransformError(
                f"transpose perm {list(self.perm)} must name at most {MAX_RANK} axes, 0 to n-1 once each"
            )

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the types with their axes reordered."""
        return tuple(TensorType(one.dtype, self._permuted(one)) for one in types)

    def _permuted(self, one: TensorType) -> tuple[int, ...]:
        if len(self.perm) != len(one.shape):
            raise TransformError(f"transpose perm {list(self.perm)} does not fit {one}: name each of its axes once")
        return tuple(one.shape[axis] for axis in self.perm)

    def changes(self, types: Sequence[TensorType]) -> bool:  # noqa: ARG002 - of whatever type
        """Say whether any axis moves."""
        return list(self.perm) != sorted(self.perm)

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return transposed views."""
        return [array.transpose(self.perm) for array in arrays]


@dataclass(frozen=True, slots=True)
class Reshape(Step):
    """Give the elements, in row-major order, another shape; one extent may be -1, meaning the rest."""

    op: ClassVar[str] = "reshape"
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        fits = all(-1 <= extent <= MAX_EXTENT for extent in self.shape) and len(self.shape) <= MAX_RANK
        if not fits or self.shape.count(-1) > 1:
            raise TransformError(
                f"reshape shape {list(self.shape)} must be at most {MAX_RANK} extents of 0 to {MAX_EXTENT}; "
                "one of them may be -1"
            )

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the types in the new shape."""
        return tuple(TensorType(one.dtype, self._resolved(one)) for one in types)

    def _resolved(self, one: TensorType) -> tuple[int, ...]:
        count, known = prod(one.shape), prod(extent for extent in self.shape if extent != -1)
        shape = self.shape
        if -1 in shape and known and count % known == 0:
            shape = tuple(count // known if extent == -1 else extent for extent in shape)
        if -1 in shape or prod(shape) != count:
            raise TransformError(
                f"reshape to {list(self.shape)} does not fit {one}, which has {count} elements: "
                "the extents must multiply to exactly that"
            )
        return shape

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return reshaped arrays, as views if the memory allows it."""
        return [array.reshape(self.shape) for array in arrays]


@dataclass(frozen=True, slots=True)
class Slice(Step):
    """Take `start:stop:step` along one axis, with Python's meaning of all three."""

    op: ClassVar[str] = "slice"
    axis: int
    start: int | None = None
    stop: int | None = None
    step: int = 1

    def __post_init__(self) -> None:
        if self.step == 0:
            raise TransformError("slice step must not be 0")

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the types, shorter along the axis."""
        return tuple(self._sliced(one) for one in types)

    def _sliced(self, one: TensorType) -> TensorType:
        axis = axis_of(self.op, self.axis, one)
        extent = len(range(*self._range.indices(one.shape[axis])))
        return TensorType(one.dtype, replaced(one.shape, axis, extent))

    def changes(self, types: Sequence[TensorType]) -> bool:
        """Say whether anything is left out or the axis is reversed, even if it has one element."""
        return self.step < 0 or Step.changes(self, types)

    @property
    def _range(self) -> slice:
        return slice(self.start, self.stop, self.step)

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return sliced views."""
        return [array[along(self.axis, array.ndim, self._range)] for array in arrays]


@dataclass(frozen=True, slots=True)
class Split(Step):
    """Cut an axis into `sections` equal parts and take the one numbered `index`, counting from 0."""

    op: ClassVar[str] = "split"
    axis: int
    sections: int
    index: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.sections:
            raise TransformError(
                f"split index {self.index} of {self.sections} sections: sections must be 1 or more, "
                "index from 0 to sections-1"
            )

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the types, the axis divided by `sections`."""
        return tuple(self._divided(one) for one in types)

    def _divided(self, one: TensorType) -> TensorType:
        axis = axis_of(self.op, self.axis, one)
        if one.shape[axis] % self.sections:
            raise TransformError(
                f"split cannot cut axis {axis} of {one} into {self.sections} equal parts: "
                "choose a divisor of its extent, or take unequal parts with slice"
            )
        return TensorType(one.dtype, replaced(one.shape, axis, one.shape[axis] // self.sections))

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return views of the chosen part."""
        parts = []
        for array in arrays:
            extent = array.shape[self.axis] // self.sections
            chosen = slice(self.index * extent, (self.index + 1) * extent)
            parts.append(array[along(self.axis, array.ndim, chosen)])
        return parts


@dataclass(frozen=True, slots=True)
class Concat(Step):
    """Join all tensors, in the order in which the rule names them, along an axis they have."""

    op: ClassVar[str] = "concat"
    axis: int

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the one joined type."""
        if not types:
            raise TransformError("concat has no tensors to join: name at least one in the rule")
        first = types[0]
        axis = axis_of(self.op, self.axis, first)
        for other in types[1:]:
            if replaced(other.shape, axis, 0) != replaced(first.shape, axis, 0) or other.dtype != first.dtype:
                raise TransformError(
                    f"concat on axis {axis} cannot join {first} and {other}: dtypes and all other axes must "
                    "be equal; put a cast, reshape or transpose before it"
                )
        return (TensorType(first.dtype, replaced(first.shape, axis, sum(one.shape[axis] for one in types))),)

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return the joined tensors as one new array; one tensor is returned as it is."""
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        return [arrays[0]] if len(arrays) == 1 else [np.concatenate(arrays, axis=self.axis)]


@dataclass(frozen=True, slots=True)
class Cast(Step):
    """Convert the elements to another dtype as numpy does.

    A cast between floats rounds ties to even. A cast from float to integer truncates toward zero. A value out of range
    is undefined.
    """

    op: ClassVar[str] = "cast"
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TransformError(f"cast dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the types with the new dtype."""
        return tuple(TensorType(self.dtype, one.shape) for one in types)

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return converted arrays that lie in memory as they did; one that has the dtype is returned as it is."""
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        with np.errstate(all="ignore"):  # a lossy cast was asked for in so many words
            cast = [array.astype(numpy_dtype(self.dtype), copy=False) for array in arrays]
            if (losses := counting()) is not None:
                for before, after in zip(arrays, cast, strict=True):
                    losses.count(before, after, self.dtype)
            return cast


@dataclass(frozen=True, slots=True)
class Reorder(Step):
    """Cut an axis into equal sections and put them in another order: section i of the result was `order[i]`.

    In JSON the order may be told by letters: "ifco->iofc" makes ONNX's gates of an LSTM of PyTorch's.
    """

    op: ClassVar[str] = "reorder"
    axis: int
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.order or sorted(self.order) != list(range(len(self.order))):
            raise TransformError(
                f"reorder order {list(self.order)} must name the sections 0 to n-1 once each, or tell them by letters, "
                'as in "ifco->iofc"'
            )

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the types as they are."""
        for one in types:
            axis = axis_of(self.op, self.axis, one)
            if one.shape[axis] % len(self.order):
                raise TransformError(
                    f"reorder cannot cut axis {axis} of {one} into {len(self.order)} equal sections: choose another "
                    "axis, or cut unequal parts with divide"
                )
        return tuple(types)

    def changes(self, types: Sequence[TensorType]) -> bool:  # noqa: ARG002 - of whatever type
        """Say whether any section moves."""
        return list(self.order) != sorted(self.order)

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return new arrays."""
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        count = len(self.order)
        cut = [np.split(array, count, axis=self.axis) for array in arrays]
        return [np.concatenate([parts[index] for index in self.order], axis=self.axis) for parts in cut]


@dataclass(frozen=True, slots=True)
class Divide(Step):
    """Cut each tensor along an axis into parts of these sizes, all of which go on, in their order."""

    op: ClassVar[str] = "divide"
    axis: int
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise TransformError(f"divide sizes {list(self.sizes)} must be one or more extents of 1 or more")

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return one type for each part."""
        return tuple(part for one in types for part in self._parts(one))

    def _parts(self, one: TensorType) -> list[TensorType]:
        axis = axis_of(self.op, self.axis, one)
        if one.shape[axis] != sum(self.sizes):
            raise TransformError(
                f"divide sizes {list(self.sizes)} do not fit axis {axis} of {one}: make their sum {one.shape[axis]}"
            )
        return [TensorType(one.dtype, replaced(one.shape, axis, size)) for size in self.sizes]

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return views of the parts."""
        parts = []
        for array in arrays:
            start = 0
            for size in self.sizes:
                parts.append(array[along(self.axis, array.ndim, slice(start, start + size))])
                start += size
        return parts


@dataclass(frozen=True, slots=True)
class Each(Step):
    """Put each tensor through transforms of its own: the first through the first list, and so on."""

    op: ClassVar[str] = "each"
    transforms: tuple[tuple[Transform, ...], ...]

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return one type for each tensor."""
        self._check(len(types))
        return tuple(infer_all(steps, [one])[0] for steps, one in zip(self.transforms, types, strict=True))

    def changes(self, types: Sequence[TensorType]) -> bool:
        """Say whether any of the lists changes its tensor."""
        return any(infer_all(steps, [one])[1] for steps, one in zip(self.transforms, types, strict=True))

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return one array for each."""
        self._check(len(arrays))
        return [apply_all(steps, [array]) for steps, array in zip(self.transforms, arrays, strict=True)]

    def _check(self, count: int) -> None:
        if count != len(self.transforms):
            raise TransformError(
                f"each has {len(self.transforms)} lists of transforms for {count} tensors: give one list, which may "
                "be empty, for each tensor"
            )

    def to_json(self) -> dict[str, Any]:
        """Return {"op": "each", "transforms": [[...], ...]}."""
        return {"op": self.op, "transforms": [[one.to_json() for one in steps] for steps in self.transforms]}
