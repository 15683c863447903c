"""How far an engine's outputs lie from what is expected, and how far they may."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.weights.dtypes import DTYPES
from workers.channel.messages import BackendError, OutputDifference, ParameterSource
from workers.engine_host.tensors import Array, dtype_name

INFINITIES = {"float16": 0x7C00, "bfloat16": 0x7F80}  # as bits, by dtype
SIGN = 0x8000
UNIT = 2.0**-600  # makes the squares of the largest float64 finite
# Below these a probability has too few digits for its logarithm, by the lowest precision that is computed in. Their
# squares stand for zeros, so they are not zeros.
LEAST_PROBABILITY = {"F64": 1e-150, "F32": 1e-36, "BF16": 1e-36, "F16": 1e-3}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far outputs may lie from what is expected, by the lowest precision that is computed in.

    `max_abs` decides alone where outputs are all but zero, so that a relative error means nothing. Each bound is
    some tens of units in the last place of that dtype, as fused operators round less often and in other order.
    """

    dtype: str
    relative_l2: float
    cosine: float
    max_abs: float

    def given(self, bounds: Mapping[str, float]) -> "Tolerance":
        """Return it with those bounds that a client has chosen."""
        return replace(self, **dict[str, Any](bounds))


@dataclass(frozen=True, slots=True)
class Comparison:
    """How outputs are compared: by which tolerance, and which of them by their logarithms as well.

    `probabilities` are the outputs behind a softmax. Its largest values drown all others, and a difference of logits
    hardly shows in a probability near one or zero. Their logarithms are the logits, but for one number.
    """

    tolerance: Tolerance
    probabilities: frozenset[str] = frozenset()

    def difference(self, name: str, actual: Array, expected: Array | None) -> OutputDifference:
        """Return how far an output lies from what is expected; see the function of this name."""
        found = difference(actual, expected)
        if name not in self.probabilities or expected is None or found.max_abs is None:
            return found
        return replace(found, logarithm=_logarithmic(actual, expected, self.tolerance))

    def fault(self, name: str, one: OutputDifference) -> str:
        """Say why an output is out of tolerance, or nothing if it is not."""
        fault = fault_of(name, one, self.tolerance)
        if fault or one.logarithm is None or one.logarithm <= self.tolerance.relative_l2:
            return fault
        return (
            f"the logarithms of output {name} differ by {one.logarithm} in relative L2, {self.tolerance.relative_l2} "
            "is allowed"
        )


TOLERANCES = (
    Tolerance("F8_E5M2", 2.5e-1, 0.97, 1e-2),
    Tolerance("F8_E4M3", 1.5e-1, 0.98, 1e-2),
    Tolerance("I8", 1e-1, 0.995, 1e-6),  # one step more or less, at every value that lies between two
    Tolerance("BF16", 5e-2, 0.998, 1e-3),
    Tolerance("F16", 1e-2, 0.9999, 1e-4),
    Tolerance("F32", 1e-4, 0.999999, 1e-6),
    Tolerance("F64", 1e-9, 0.999999999, 1e-12),
)


def tolerance_of(
    parameters: Sequence[ParameterSource], options: Mapping[str, Any], *, is_quantised: bool = False
) -> Tolerance:
    """Return the tolerance for the lowest precision that is computed in; that of F32 where no parameter is a float.

    It is that of the parameters, unless the build options let the compiler choose F16, or TF32, whose mantissa has
    no more bits than that of F16. If the graph quantises what it computes (`is_quantised`), it is that of I8.
    """
    dtypes = {one.binding.dtype for one in parameters if DTYPES[one.binding.dtype].kind == "float"} or {"F32"}
    if options.get("precision") == "fp16" or options.get("tf32"):
        dtypes.add("F16")
    if is_quantised:
        dtypes.add("I8")
    return next(one for one in TOLERANCES if one.dtype in dtypes)


def difference(actual: Array, expected: Array | None) -> OutputDifference:
    """Return how far `actual` lies from `expected`; None compares with nothing and only looks for NaN and infinity.

    A NaN equals a NaN at the same place, and an infinity one of its sign. `unequal` counts the places where one of
    the two is not finite and they differ. The other figures are of the places where both are finite.
    """
    finite = is_finite(actual)
    if expected is None:
        return OutputDifference(None, None, None, finite)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise BackendError(
            "outputs_differ",
            f"The engine gives {_type(actual)} where {_type(expected)} is expected. Build it again, or correct "
            "the outputs that you expect.",
        )
    a, b = (array.astype(np.float64).ravel() for array in (actual, expected))
    if finite and is_finite(expected):
        return _distance(a, b)
    both = np.isfinite(a) & np.isfinite(b)
    equal = both | (a == b) | (np.isnan(a) & np.isnan(b))
    unequal = int(a.size - np.count_nonzero(equal))
    if unequal or not both.any():
        return OutputDifference(None, None, None, finite=False, unequal=unequal)
    return replace(_distance(a[both], b[both]), finite=False)


def is_finite(array: Array) -> bool:
    """Return whether an array holds neither NaN nor infinity.

    Floats of 16 bits are looked at as integers, as numpy has vector code for these only: NaN and infinity have the
    largest magnitudes, of either sign.
    """
    infinity = INFINITIES.get(array.dtype.name)
    if infinity is None or not array.size:
        return bool(np.isfinite(array).all())
    return bool(array.view(np.int16).max() < infinity and array.view(np.uint16).max() < infinity + SIGN)


def says_something(outputs: Mapping[str, Array]) -> bool:
    """Return whether outputs hold a number at all, which another weight could change."""
    return any(np.isfinite(array.astype(np.float64)).any() for array in outputs.values())


def finiteness_fault(name: str, one: OutputDifference) -> str:
    """Say that an output holds NaN or infinity, or nothing if it does not."""
    return "" if one.finite else f"output {name} holds NaN or infinity"


def fault_of(name: str, one: OutputDifference, tolerance: Tolerance) -> str:
    """Say why an output is out of tolerance of what is expected, or nothing if it is not."""
    if one.unequal:
        return f"output {name} holds NaN or infinity, or ought to, at {one.unequal} places and not as expected"
    if one.max_abs is None or one.max_abs <= tolerance.max_abs:
        return ""
    if one.relative_l2 is None:
        return (
            f"output {name} differs by {one.max_abs} from the zeros that are expected, {tolerance.max_abs} is allowed"
        )
    if one.relative_l2 > tolerance.relative_l2:
        return f"output {name} differs by {one.relative_l2} in relative L2, {tolerance.relative_l2} is allowed"
    if one.cosine is None or one.cosine < tolerance.cosine:
        return f"output {name} has cosine {one.cosine}, {tolerance.cosine} is needed"
    return ""


def _logarithmic(actual: Array, expected: Array, tolerance: Tolerance) -> float | None:
    """Return the root mean square of the differences of logarithms, over that of the expected ones if it exceeds 1."""
    least = LEAST_PROBABILITY.get(tolerance.dtype)
    if least is None or DTYPES[dtype_name(actual)].kind != "float":
        return None
    a, b = (array.astype(np.float64).ravel() for array in (actual, expected))
    known = b >= least
    if not known.any():
        return None
    a, b = np.log(np.maximum(a[known], least * least)), np.log(b[known])
    return float(np.sqrt(np.square(a - b).mean()) / max(1.0, np.sqrt(np.square(b).mean())))


def _type(array: Array) -> str:
    return f"{dtype_name(array)}{list(array.shape)}"


def _distance(
    a: "np.ndarray[Any, np.dtype[np.float64]]", b: "np.ndarray[Any, np.dtype[np.float64]]"
) -> OutputDifference:
    max_abs = float(np.abs(a - b).max(initial=0.0))
    if not max_abs:
        return OutputDifference(0.0, 0.0, 1.0, finite=True)
    norm_a, norm_b = _norm(a), _norm(b)
    if np.isinf(norm_a + norm_b):  # the squares exceed float64; the figures but for `max_abs` are the same in any unit
        return replace(_distance(a * UNIT, b * UNIT), max_abs=max_abs)
    relative = _norm(a - b) / norm_b if norm_b else None
    cosine = float((a * b).sum()) / (norm_a * norm_b) if norm_a and norm_b else None
    return OutputDifference(max_abs, relative, cosine, finite=True)


def _norm(a: Array) -> float:
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.square(a).sum()))
