"""Which engine of a sweep is the fastest, and which one is named the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Measured:
    """An engine as far as it is ranked: seconds of its median run, None if it was not measured, and its error."""

    median: float | None
    error: float | None


def ranks(measured: Sequence[Measured]) -> list[int | None]:
    """Return the rank of each engine, 1 for the fastest; None for one that was not measured."""
    fastest_first = sorted((one.median, index) for index, one in enumerate(measured) if one.median is not None)
    rank_of = {index: rank for rank, (_, index) in enumerate(fastest_first, 1)}
    return [rank_of.get(index) for index in range(len(measured))]


def best_of(measured: Sequence[Measured], tolerance: float | None) -> int | None:
    """Return the index of the fastest engine whose error is within the tolerance; None if there is none."""
    able = [
        (one.median, index)
        for index, one in enumerate(measured)
        if one.median is not None and (tolerance is None or (one.error is not None and one.error <= tolerance))
    ]
    return min(able)[1] if able else None


def error_of(verification: Mapping[str, Any]) -> float | None:
    """Return the relative error of an engine's worst output, None if its verification says nothing of it.

    An output with values that are not finite, or not where they should be, has an infinite error, which is None too.
    """
    outputs = verification.get("outputs") or {}
    errors = [one.get("relative_l2") for one in outputs.values()]
    return None if not errors or None in errors else max(errors)
