"""What every transform has, and what runs them one after the other.

Each transform takes a list of tensors and gives a list of tensors. `infer` returns the resulting dtypes and shapes
without computing values. `apply` computes the values as numpy does.

`infer_all` leaves out a transform that changes nothing for the given tensors, such as a cast to their own dtype. If no
transform is left, the values need no memory of their own.
"""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

GROWTH: Final = 4  # times as many elements as there were; only padding adds any
ROOM: Final = 2**20  # elements that small tensors may grow to
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


class Step:
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


def infer_all(transforms: Sequence[Transform], types: Sequence[TensorType]) -> tuple[TensorType, tuple[Transform, ...]]:
    """Return the one dtype and shape that `transforms` give, and those of them that change anything.

    Raises TransformError if they do not give exactly one tensor.
    """
    needed = []
    room = GROWTH * sum(prod(one.shape) for one in types) + ROOM
    for transform in transforms:
        before, types = types, transform.infer(types)
        if sum(prod(one.shape) for one in types) > room:
            raise TransformError(f"{transform.op} makes more than {GROWTH} times the elements there were: pad by less")
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


def axis_of(op: str, axis: int, tensor: TensorType) -> int:
    """Return an axis counted from the front; raises TransformError if the tensor has none of that number."""
    rank = len(tensor.shape)
    if not -rank <= axis < rank:
        axes = f"its axes are 0 to {rank - 1}" if rank else "a scalar has no axes"
        raise TransformError(f"{op} axis {axis} does not exist in {tensor}: {axes}")
    return axis % rank


def replaced(shape: tuple[int, ...], axis: int, extent: int) -> tuple[int, ...]:
    """Return the shape with another extent along an axis."""
    return (*shape[:axis], extent, *shape[axis + 1 :])


def along(axis: int, rank: int, chosen: slice) -> tuple[slice, ...]:
    """Return the index that takes `chosen` along an axis and all along the others."""
    whole = [slice(None)] * rank
    whole[axis] = chosen
    return tuple(whole)
