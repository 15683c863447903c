"""Which parameters a refit may change.

The build option "refit" is "all", "none", or a list of the parameters that refits shall be able to change: names,
and regular expressions (RE2) over whole names. A shorter list leaves the compiler more to optimise.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.bindings.rules import Pattern, parse_pattern

MAX_PATTERNS = 256


class RefitPatternError(ValueError):
    """A list that cannot be used; `index` counts from 0."""

    def __init__(self, index: int, detail: str) -> None:
        super().__init__(f"pattern {index}: {detail}")
        self.index = index
        self.detail = detail


@dataclass(frozen=True, slots=True)
class RefitPatterns:
    """The parameters that refits may change, where the option "refit" is a list."""

    patterns: tuple[Pattern, ...]

    @classmethod
    def parse(cls, values: Sequence[object]) -> "RefitPatterns":
        """Read the option's list; RefitPatternError names the first pattern that is wrong."""
        if len(values) > MAX_PATTERNS:
            raise RefitPatternError(MAX_PATTERNS, f"there are {len(values)} patterns; give at most {MAX_PATTERNS}")
        return cls(tuple(_parse(index, value) for index, value in enumerate(values)))

    @staticmethod
    def given(options: Mapping[str, Any]) -> bool:
        """Whether an engine's options have patterns."""
        return isinstance(options.get("refit"), list)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "RefitPatterns | None":
        """Return the patterns of an engine's options; None where "refit" is not a list."""
        return cls.parse(options["refit"]) if cls.given(options) else None

    def match(self, parameter: str) -> bool:
        """Whether refits may change this parameter."""
        return any(_matches(pattern, parameter) for pattern in self.patterns)

    def idle(self, parameters: Collection[str]) -> list[str]:
        """Return the patterns that match none of these parameters."""
        names = frozenset(parameters)  # most patterns are one of them
        regular = (one for one in self.patterns if one.text not in names)
        return [one.text for one in regular if not any(one.match(name) for name in names)]


def _matches(pattern: Pattern, parameter: str) -> bool:
    return pattern.text == parameter or pattern.match(parameter) is not None


def _parse(index: int, value: object) -> Pattern:
    try:
        return parse_pattern(value)
    except ValueError as error:
        raise RefitPatternError(index, str(error)) from error
