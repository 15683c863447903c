"""The ways in which a tensor of a checkpoint can become what a parameter wants."""

from collections.abc import Mapping, Sequence
from typing import Final

from app.bindings.arithmetic import Dequantize
from app.bindings.companions import TypedTensor, is_quantised, is_recurrent, scales_of
from app.bindings.steps import TensorType, Transform, TransformError, infer_all
from app.bindings.transforms import Cast, Reshape, Transpose
from app.weights.dtypes import DTYPES

TURN: Final = Transpose((1, 0))
Fit = tuple[tuple[str, ...], tuple[Transform, ...], tuple[str, ...]]  # tensors, transforms, and what speaks for them
Move = tuple[tuple[Transform, ...], tuple[str, ...]]


def then_turned(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
    """Return the transforms and a transposition; two of them are none."""
    return transforms[:-1] if transforms[-1:] == (TURN,) else (*transforms, TURN)


class Fits:
    """Finds them, and remembers those of each type."""

    def __init__(self, tensors: Mapping[str, TypedTensor]) -> None:
        self._tensors = tensors
        self._known: dict[tuple[TensorType, str, tuple[int, ...]], list[Fit]] = {}

    def of(self, wanted: TensorType, tensor: str) -> list[Fit]:
        """Return one way, none, or two if the tensor is square: as it lies first, then transposed."""
        one = self._tensors[tensor]
        if one.dtype not in DTYPES or (is_recurrent(tensor) and one.shape != wanted.shape):
            return []
        if is_quantised(tensor, one) and one.dtype != wanted.dtype:
            scaled = self._dequantised(tensor, one)
            return [] if scaled is None else [_joined(scaled, fit) for fit in _conversions("F32", one.shape, wanted)]
        key = wanted, one.dtype, one.shape
        if key not in self._known:
            self._known[key] = _conversions(one.dtype, one.shape, wanted)
        return [((tensor,), steps, told) for _, steps, told in self._known[key]]

    def _dequantised(self, name: str, one: TypedTensor) -> Fit | None:
        found = scales_of(name, self._tensors)
        if found is None:
            return None
        scale, zero = found
        names = (name, scale) if zero is None else (name, scale, zero)
        step = dequantisation(one, [self._tensors[other] for other in names[1:]])
        return None if step is None else (names, (step,), (f"{scale} is the scale of {name} by its name",))


def dequantisation(numbers: TypedTensor, others: Sequence[TypedTensor]) -> Dequantize | None:
    """Return the dequantisation that takes a scale of this shape, or None if there is none or more than one."""
    types = [TensorType(one.dtype, one.shape) for one in (numbers, *others)]
    if any(one.dtype not in DTYPES for one in types):
        return None
    shape, scales = numbers.shape, others[0].shape
    steps = [Dequantize()]
    if len(scales) == 1 and len(shape) > 1:
        steps = [Dequantize(axis) for axis, extent in enumerate(shape) if extent == scales[0]] or steps
    if len(scales) == len(shape) == 2:
        if all(-(-extent // 128) == count for extent, count in zip(shape, scales, strict=True)):
            steps.append(Dequantize(block=(128, 128)))
        elif shape[0] == scales[0] and 1 < scales[1] < shape[1] and shape[1] % scales[1] == 0:
            steps.append(Dequantize(block=(1, shape[1] // scales[1])))
    fitting = [step for step in steps if _takes(step, types)]
    return fitting[0] if len(fitting) == 1 else None


def _takes(step: Transform, types: Sequence[TensorType]) -> bool:
    try:
        infer_all([step], types)
    except TransformError:
        return False
    return True


def _conversions(dtype: str, shape: tuple[int, ...], wanted: TensorType) -> list[Fit]:
    last, cast = _cast(dtype, wanted.dtype)
    if last is None:
        return []
    return [((), (*move, *last), (*told, *cast)) for move, told in _moves(shape, wanted.shape)]


def _joined(first: Fit, then: Fit) -> Fit:
    return first[0] + then[0], first[1] + then[1], first[2] + then[2]


def extents(shape: Sequence[int]) -> tuple[int, ...]:
    """Return what shapes have in common that may be made of each other, but for extents of 1."""
    return tuple(sorted(extent for extent in shape if extent != 1))


def _moves(shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[Move]:
    moves: list[Move] = []
    if shape == wanted:
        moves.append(((), ()))
    if len(shape) == 2 and shape[::-1] == wanted and min(shape) > 1:
        moves.append(((TURN,), (f"its shape {list(shape)} is {list(wanted)} transposed",)))
    if not moves and _without_ones(shape) == _without_ones(wanted):
        moves.append(((Reshape(wanted),), (f"its shape {list(shape)} is {list(wanted)} but for extents of 1",)))
    return moves


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [extent for extent in shape if extent != 1]


def _cast(dtype: str, wanted: str) -> tuple[tuple[Transform, ...] | None, tuple[str, ...]]:
    """Return the cast between two dtypes, which is None if one is no float, and what it does."""
    if dtype == wanted:
        return (), ()
    if DTYPES[dtype].kind != DTYPES[wanted].kind:
        return None, ()
    return (Cast(wanted),), (f"its {dtype} is rounded to {wanted}",)
