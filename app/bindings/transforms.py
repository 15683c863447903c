"""What may happen to checkpoint tensors on their way to a parameter.

Each transform takes a list of tensors and gives a list of tensors: `Concat` joins them into one, every other one works
on each. `infer` returns the resulting dtypes and shapes without computing values. `apply` computes the values as numpy
does. Only `Concat`, a reshape of a strided view and a cast copy.

`infer_all` leaves out a transform that changes nothing for the given tensors, such as a cast to their own dtype. If no
transform is left, the values need no memory of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from app.weights.dtypes import DTYPES, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

MAX_RANK = 16
MAX_EXTENT = 2**48


class TransformError(ValueError):
    """A transform is malformed, or does not fit its tensors. The text says what would fit."""


class TensorType(NamedTuple):
    """The dtype and shape of a tensor, as in "F32[384, 1536]"."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Transform(Protocol):
    """One step from checkpoint tensors to a parameter."""

    op: ClassVar[str]

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the dtypes and shapes that `apply` gives; raises TransformError if it would fail."""

    def changes(self, types: Sequence[TensorType]) -> bool:
        """Say whether `apply` changes anything about tensors of these types.

        `types` must be ones that `infer` accepts.
        """

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return the transformed arrays, as views where possible."""

    def to_json(self) -> dict[str, Any]:
        """Return {"op": ..., and the fields}."""


class _Step:
    """What transforms share; their fields carry the names they have in JSON."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]  # the names of the fields, by `dataclass`
    op: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Return {"op": ..., and the fields}."""
        values = ((name, getattr(self, name)) for name in self.__match_args__)
        return {"op": self.op, **{name: list(value) if isinstance(value, tuple) else value for name, value in values}}

    def changes(self: Transform, types: Sequence[TensorType]) -> bool:
        """Say whether `apply` changes anything about tensors of these types.

        `types` must be ones that `infer` accepts. This is right only for a step that keeps the order of elements. Other
        steps override it.
        """
        return self.infer(types) != tuple(types)


@dataclass(frozen=True, slots=True)
class Transpose(_Step):
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
class Reshape(_Step):
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
class Slice(_Step):
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
        axis = _axis(self.op, self.axis, one)
        extent = len(range(*self._range.indices(one.shape[axis])))
        return TensorType(one.dtype, _replaced(one.shape, axis, extent))

    def changes(self, types: Sequence[TensorType]) -> bool:
        """Say whether anything is left out or the axis is reversed, even if it has one element."""
        return self.step < 0 or _Step.changes(self, types)

    @property
    def _range(self) -> slice:
        return slice(self.start, self.stop, self.step)

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return sliced views."""
        return [array[_along(self.axis, array.ndim, self._range)] for array in arrays]


@dataclass(frozen=True, slots=True)
class Split(_Step):
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
        axis = _axis(self.op, self.axis, one)
        if one.shape[axis] % self.sections:
            raise TransformError(
                f"split cannot cut axis {axis} of {one} into {self.sections} equal parts: "
                "choose a divisor of its extent, or take unequal parts with slice"
            )
        return TensorType(one.dtype, _replaced(one.shape, axis, one.shape[axis] // self.sections))

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return views of the chosen part."""
        parts = []
        for array in arrays:
            extent = array.shape[self.axis] // self.sections
            chosen = slice(self.index * extent, (self.index + 1) * extent)
            parts.append(array[_along(self.axis, array.ndim, chosen)])
        return parts


@dataclass(frozen=True, slots=True)
class Concat(_Step):
    """Join all tensors, in the order in which the rule names them, along an axis they have."""

    op: ClassVar[str] = "concat"
    axis: int

    def infer(self, types: Sequence[TensorType]) -> tuple[TensorType, ...]:
        """Return the one joined type."""
        if not types:
            raise TransformError("concat has no tensors to join: name at least one in the rule")
        first = types[0]
        axis = _axis(self.op, self.axis, first)
        for other in types[1:]:
            if _replaced(other.shape, axis, 0) != _replaced(first.shape, axis, 0) or other.dtype != first.dtype:
                raise TransformError(
                    f"concat on axis {axis} cannot join {first} and {other}: dtypes and all other axes must "
                    "be equal; put a cast, reshape or transpose before it"
                )
        return (TensorType(first.dtype, _replaced(first.shape, axis, sum(one.shape[axis] for one in types))),)

    def apply(self, arrays: "Sequence[Array]") -> "list[Array]":
        """Return the joined tensors as one new array; one tensor is returned as it is."""
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        return [arrays[0]] if len(arrays) == 1 else [np.concatenate(arrays, axis=self.axis)]


@dataclass(frozen=True, slots=True)
class Cast(_Step):
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
        """Return converted arrays; one that has the dtype and lies in row-major order is returned as it is."""
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        with np.errstate(all="ignore"):  # a lossy cast was asked for in so many words
            return [array.astype(numpy_dtype(self.dtype), order="C", copy=False) for array in arrays]


def infer_all(transforms: Sequence[Transform], types: Sequence[TensorType]) -> tuple[TensorType, tuple[Transform, ...]]:
    """Return the one dtype and shape that `transforms` give, and those of them that change anything.

    Raises TransformError if they do not give exactly one tensor.
    """
    needed = []
    for transform in transforms:
        before, types = types, transform.infer(types)
        if transform.changes(before):
            needed.append(transform)
    if len(types) != 1:
        raise TransformError(f"{len(types)} tensors feed one parameter: join them with a concat transform")
    return types[0], tuple(needed)


def apply_all(transforms: Sequence[Transform], arrays: "Sequence[Array]") -> "Array":
    """Return what `transforms` make of these arrays; raises TransformError if more or less than one is left."""
    for transform in transforms:
        arrays = transform.apply(arrays)
    if len(arrays) != 1:
        raise TransformError(f"{len(arrays)} tensors feed one parameter: join them with a concat transform")
    return arrays[0]


def _axis(op: str, axis: int, tensor: TensorType) -> int:
    rank = len(tensor.shape)
    if not -rank <= axis < rank:
        axes = f"its axes are 0 to {rank - 1}" if rank else "a scalar has no axes"
        raise TransformError(f"{op} axis {axis} does not exist in {tensor}: {axes}")
    return axis % rank


def _replaced(shape: tuple[int, ...], axis: int, extent: int) -> tuple[int, ...]:
    return (*shape[:axis], extent, *shape[axis + 1 :])


def _along(axis: int, rank: int, chosen: slice) -> tuple[slice, ...]:
    whole = [slice(None)] * rank
    whole[axis] = chosen
    return tuple(whole)
