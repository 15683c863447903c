"""Counts what casts lose: values that become infinite or another number, and values that become zero.

Rounding is no loss of this kind, as every shorter type rounds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any, Final

from app.weights.dtypes import DTYPES, is_lossless_cast, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

PIECE: Final = 2**18  # elements looked at at a time, so that they stay in the processor's cache


class CastLosses:
    """The elements that overflowed in casts, and those that vanished: they were not zero and became zero."""

    def __init__(self) -> None:
        self.overflowed = 0
        self.vanished = 0

    def __bool__(self) -> bool:
        return bool(self.overflowed or self.vanished)

    def count(self, before: "Array", after: "Array", target: str) -> None:
        """Count in an array and what a cast to the dtype `target` made of it."""
        if DTYPES[target].kind == "bool" or is_lossless_cast(_names()[before.dtype], target):
            return
        rows = max(1, PIECE // max(1, prod(before.shape[1:])))
        before, after = (one.reshape(1) if one.ndim == 0 else one for one in (before, after))
        count = self._count_floats if DTYPES[target].kind == "float" else self._count_integers
        for start in range(0, len(before), rows):
            count(before[start : start + rows], after[start : start + rows])

    def _count_floats(self, before: "Array", after: "Array") -> None:
        """Count by differences: no cast makes something of zero, or something finite of what is not."""
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        self.vanished += int(np.count_nonzero(before) - np.count_nonzero(after))
        self.overflowed += int(np.count_nonzero(np.isfinite(before)) - np.count_nonzero(np.isfinite(after)))

    def _count_integers(self, before: "Array", after: "Array") -> None:
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        bounds = np.iinfo(after.dtype)
        values = before if before.dtype.kind in "iu" else before.astype(np.float64)
        fits = (values > bounds.min - 1) & (values < bounds.max + 1)
        self.overflowed += int(np.count_nonzero(~fits))
        self.vanished += int(np.count_nonzero(fits & (before != 0) & (after == 0)))


_counting: ContextVar[CastLosses | None] = ContextVar("counting", default=None)


@contextmanager
def counting_losses() -> Iterator[CastLosses]:
    """Count what the casts of a block lose, however deep in other transforms they are."""
    losses = CastLosses()
    token = _counting.set(losses)
    try:
        yield losses
    finally:
        _counting.reset(token)


def counting() -> CastLosses | None:
    """Return what counts at the moment; None if nobody wants to know."""
    return _counting.get()


def store(target: "Array", values: "Array") -> None:
    """Write values into an array of their shape, rounded to its dtype, and count what that loses."""
    import numpy as np  # noqa: PLC0415 - the API starts without numpy

    with np.errstate(all="ignore"):  # a loss is counted, not warned of
        target[...] = values
    if (losses := counting()) is not None:
        losses.count(values, target, _names()[target.dtype])


@cache
def _names() -> "dict[np.dtype[Any], str]":
    return {numpy_dtype(name): name for name in DTYPES}
