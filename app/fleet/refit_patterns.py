"""Which parameters a refit may change.

The build option "refit" is "all", "none", or a list of the parameters that later refits may change. A member of the
list is a name, or a regular expression (RE2) that matches whole names. The shorter the list, the more the compiler
can optimise.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.bindings.rules import Pattern, parse_pattern

MAX_PATTERNS = 256


class RefitPatternError(ValueError):
    """A list of patterns that cannot be used; `index` is the position of the wrong one, from 0."""

    def __init__(self, index: int, detail: str) -> None:
        super().__init__(f"pattern {index}: {detail}")
        self.index = index
        self.detail = detail


@dataclass(frozen=True, slots=True)
class RefitPatterns:
    """The parameters that refits may change if the option "refit" is a list."""

    patterns: tuple[Pattern, ...]

    @classmethod
    def parse(cls, values: Sequence[object]) -> "RefitPatterns":
        """Read the option's list; raises RefitPatternError, which names the first wrong pattern."""
        if len(values) > MAX_PATTERNS:
            raise RefitPatternError(MAX_PATTERNS, f"there are {len(values)} patterns; give at most {MAX_PATTERNS}")
        return cls(tuple(_parse(index, value) for index, value in enumerate(values)))

    @staticmethod
    def given(options: Mapping[str, Any]) -> bool:
        """Whether the option "refit" of an engine is a list."""
        return isinstance(options.get("refit"), list)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "RefitPatterns | None":
        """Return the patterns of an engine's options, None if "refit" is not a list."""
        return cls.parse(options["refit"]) if cls.given(options) else None

    def match(self, parameter: str) -> bool:
        """Whether refits may change this parameter."""
        return any(_matches(pattern, parameter) for pattern in self.patterns)

    def idle(self, parameters: Collection[str]) -> list[str]:
        """Return the patterns that match none of these parameters."""
        names = frozenset(parameters)  # most patterns are plain names, which a set finds at once
        regular = (one for one in self.patterns if one.text not in names)
        return [one.text for one in regular if not any(one.match(name) for name in names)]


def _matches(pattern: Pattern, parameter: str) -> bool:
    return pattern.text == parameter or pattern.match(parameter) is not None


def _parse(index: int, value: object) -> Pattern:
    try:
        return parse_pattern(value)
    except ValueError as error:
        raise RefitPatternError(index, str(error)) from error
