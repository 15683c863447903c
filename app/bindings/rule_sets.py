"""As few rules as possible that feed parameters by given tensors, and feed no other parameter otherwise."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.bindings.steps import Transform

DEPTHS: Final = (0, 1, 2, 3)  # segments of a name, next to where it differs, that a pattern spells out
SPECIAL: Final = re.compile(r"[\\.+*?()|\[\]{}^$]")


@dataclass(frozen=True, slots=True)
class Fed:
    """What shall feed one parameter, and what speaks for it."""

    parameter: str
    tensors: tuple[str, ...]
    transforms: tuple[Transform, ...]
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Shape:
    r"""A rule with a group for what names have in common: a(.+)x is fed by b\1y, for every y."""

    before: str
    after: str
    prefix: str
    suffixes: tuple[str, ...]
    transforms: tuple[Transform, ...]

    def matches(self, parameter: str) -> bool:
        fits = parameter.startswith(self.before) and parameter.endswith(self.after)
        return fits and len(parameter) > len(self.before) + len(self.after)

    def to_json(self) -> dict[str, Any]:
        tensors = [f"{template(self.prefix)}\\1{template(suffix)}" for suffix in self.suffixes]
        return _rule(f"{literal(self.before)}(.+){literal(self.after)}", tensors, self.transforms)


@dataclass(frozen=True, slots=True)
class RuleFor:
    """A rule in JSON, and what it feeds."""

    rule: dict[str, Any]
    members: tuple[Fed, ...]


def rule_set(fed: Sequence[Fed], bound: Collection[str], parameters: Sequence[str]) -> list[RuleFor]:
    """Return rules that feed parameters as `fed` says, those for one parameter first.

    A rule with a group stands only for two or more parameters, and only if it matches no other one.
    """
    left = {one.parameter: one for one in fed}
    common = {one.parameter: _Common.of(one) for one in fed}
    rules: list[RuleFor] = []
    for depth in DEPTHS:
        groups: dict[_Shape, list[Fed]] = defaultdict(list)
        for one in left.values():
            if (shape := common[one.parameter].rule(one, depth)) is not None:
                groups[shape].append(one)
        for shape, members in groups.items():
            names = {one.parameter for one in members}
            if len(members) > 1 and not _takes_others(shape, names, bound, parameters):
                rules.append(RuleFor(shape.to_json(), tuple(members)))
                left = {name: one for name, one in left.items() if name not in names}
    return [RuleFor(_exact(one), (one,)) for one in left.values()] + rules


def _exact(one: Fed) -> dict[str, Any]:
    return _rule(literal(one.parameter), [template(name) for name in one.tensors], one.transforms)


def _takes_others(shape: _Shape, names: set[str], bound: Collection[str], parameters: Sequence[str]) -> bool:
    """Whether a rule would feed a parameter otherwise than it is, or than it shall be."""
    return any(shape.matches(name) and name not in names for name in (*bound, *parameters))


@dataclass(frozen=True, slots=True)
class _Common:
    """The longest run of segments that a parameter and its first tensor share, and where it starts in each."""

    parameter: list[str]
    tensor: list[str]
    start: int
    other: int
    length: int

    @classmethod
    def of(cls, one: Fed) -> "_Common":
        parameter, tensor = one.parameter.split("."), one.tensors[0].split(".")
        return cls(parameter, tensor, *_common_run(parameter, tensor))

    def rule(self, one: Fed, depth: int) -> _Shape | None:
        """Return the rule whose group is what is shared but for `depth` segments at its end; None if it has none."""
        middle = self.length - depth
        if middle < 1:
            return None
        before, prefix = _joined(self.parameter, self.start), _joined(self.tensor, self.other)
        after = "".join([f".{segment}" for segment in self.parameter[self.start + middle :]])
        head = prefix + ".".join(self.tensor[self.other : self.other + middle])
        if not all(name.startswith(head) for name in one.tensors):
            return None
        suffixes = tuple([name.removeprefix(head) for name in one.tensors])
        return _Shape(before, after, prefix, suffixes, one.transforms)


def _joined(names: Sequence[str], count: int) -> str:
    return "".join(f"{segment}." for segment in names[:count])


def _common_run(one: Sequence[str], other: Sequence[str]) -> tuple[int, int, int]:
    """Return where the longest run of equal segments starts in each, and how long it is."""
    best = (0, 0, 0)
    for i in range(len(one)):
        for j in range(len(other)):
            length = 0
            while i + length < len(one) and j + length < len(other) and one[i + length] == other[j + length]:
                length += 1
            if length > best[2]:
                best = (i, j, length)
    return best


def _rule(pattern: str, tensors: Sequence[str], transforms: Sequence[Transform]) -> dict[str, Any]:
    rule: dict[str, Any] = {"parameter": pattern, "tensors": list(tensors)}
    return rule | {"transforms": [one.to_json() for one in transforms]} if transforms else rule


def literal(text: str) -> str:
    """Return the pattern that matches exactly this text."""
    return SPECIAL.sub(lambda found: f"\\{found[0]}", text)


def template(text: str) -> str:
    """Return the template of exactly this text."""
    return text.replace("\\", "\\\\")
