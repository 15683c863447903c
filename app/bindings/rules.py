r"""The rules a client gives for binding, and how their patterns and templates are read.

    {"parameter": PATTERN, "tensors": [TEMPLATE, ...], "transforms": [...]}   what feeds the parameters
    {"ignore": PATTERN, "equal_to": PARAMETER}                                tensors that feed nothing
    {"preset": NAME}                                                          rules of `presets`, by name

With `equal_to`, a tensor that is ignored because a parameter has its values is warned of if it has others.

A pattern is a regular expression that must match the whole name. RE2 matches it, in time linear in the
name, so no pattern can hang the service; RE2 has neither look-around nor back-references. A template is
a tensor name in which \1 or \g<name> stand for groups of the pattern and \\ for a backslash.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import re2

from app.bindings.presets import PRESETS
from app.bindings.steps import Transform, TransformError
from app.bindings.transform_json import transform_from_json

MAX_RULES = 4096
MAX_PATTERN = 512
MAX_TENSORS_PER_RULE = 128
MAX_TRANSFORMS_PER_RULE = 32
PATTERN_MEMORY = 1024 * 1024

_ESCAPED = re.compile(r"\\(.)")
_LITERAL = re.compile(r"(?:[^\\.+*?()|\[\]{}^$]|\\[^A-Za-z0-9])*")
_REFERENCE = re.compile(r"\\(?:([1-9][0-9]?)|g<(\w{1,64})>|(\\)|(.?))")


class BindingRuleError(ValueError):
    """A rule that cannot be used; `index` counts from 0."""

    def __init__(self, index: int, detail: str) -> None:
        super().__init__(f"rule {index}: {detail}")
        self.index = index
        self.detail = detail


@dataclass(frozen=True)
class Pattern:
    """A regular expression over whole names."""

    text: str

    @cached_property
    def _compiled(self) -> Any:  # noqa: ANN401 - re2 ships no type information
        options = re2.Options()
        options.log_errors = False
        options.max_mem = PATTERN_MEMORY
        return re2.compile(self.text.encode(), options)

    @cached_property
    def literal(self) -> str | None:
        """The only name that it matches, or None if it is more than a name with special characters escaped."""
        return _ESCAPED.sub(r"\1", self.text) if _LITERAL.fullmatch(self.text) else None

    def match(self, name: str) -> tuple[str, ...] | None:
        """Return the text of each group, the whole first and "" for one that took no part, or None."""
        if self.literal is not None:
            return (name,) if name == self.literal else None
        found = self._compiled.fullmatch(name.encode())
        if found is None:
            return None
        return (name, *(group.decode(errors="replace") for group in found.groups(b"")))

    @property
    def groups(self) -> Mapping[str, int]:
        """The number of each group by its name and by its number in decimal."""
        if self.literal is not None:
            return {"0": 0}
        named = {name.decode(): number for name, number in self._compiled.groupindex.items()}
        return {**named, **{str(number): number for number in range(self._compiled.groups + 1)}}


@dataclass(frozen=True, slots=True)
class Template:
    """A tensor name made of literal text and of numbers of groups."""

    parts: tuple[str | int, ...]

    def expand(self, groups: Sequence[str]) -> str:
        """Put the text of the groups in."""
        return "".join([part if isinstance(part, str) else groups[part] for part in self.parts])


@dataclass(frozen=True, slots=True)
class FeedRule:
    """The tensors and transforms that feed each parameter whose name matches.

    `index` is the rule's place in the list that it was read from. All rules of a preset have the preset's.
    """

    parameter: Pattern
    tensors: tuple[Template, ...]
    transforms: tuple[Transform, ...] = ()
    index: int = field(default=0, compare=False)
    is_preset: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class IgnoreRule:
    """Tensors that may feed nothing without being a problem, as they hold what feeds the parameter `equal_to`."""

    tensors: Pattern
    equal_to: str | None = None
    index: int = field(default=0, compare=False)
    is_preset: bool = field(default=False, compare=False)


Rule = FeedRule | IgnoreRule


def parse_rules(values: Sequence[Any]) -> tuple[Rule, ...]:
    """Read a client's rules; BindingRuleError names the first that is wrong and what it should be."""
    if len(values) > MAX_RULES:
        raise BindingRuleError(MAX_RULES, f"there are {len(values)} rules; give at most {MAX_RULES}")
    return tuple(rule for index, value in enumerate(values) for rule in _rules(index, value))


def _rules(index: int, value: object) -> Iterator[Rule]:
    if not isinstance(value, Mapping) or value.keys() != {"preset"}:
        yield replace(_rule(index, value), index=index)
        return
    name = value["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise BindingRuleError(index, f"there is no preset {name!r:.60}; there is {', '.join(PRESETS)}")
    for one in PRESETS[name]:
        yield replace(_rule(index, one), index=index, is_preset=True)


def _rule(index: int, value: object) -> Rule:
    try:
        if isinstance(value, Mapping) and {"ignore"} <= value.keys() <= {"ignore", "equal_to"}:
            return IgnoreRule(parse_pattern(value["ignore"]), _text(value["equal_to"]) if "equal_to" in value else None)
        if isinstance(value, Mapping) and {"parameter", "tensors"} <= value.keys() <= _FEED_KEYS:
            return _feed_rule(value)
    except (TransformError, _RuleFaultError) as error:
        raise BindingRuleError(index, str(error)) from error
    raise BindingRuleError(
        index,
        'a rule is {"parameter": PATTERN, "tensors": [TEMPLATE, ...], "transforms": [...]}, {"ignore": PATTERN} or '
        '{"preset": NAME}',
    )


_FEED_KEYS = {"parameter", "tensors", "transforms"}


class _RuleFaultError(ValueError):
    """What is wrong with a rule whose index the caller knows."""


def _feed_rule(value: Mapping[str, Any]) -> FeedRule:
    tensors, transforms = value["tensors"], value.get("transforms", [])
    if not isinstance(tensors, list) or not 1 <= len(tensors) <= MAX_TENSORS_PER_RULE:
        raise _RuleFaultError(f"tensors must be a list of 1 to {MAX_TENSORS_PER_RULE} templates")
    if not isinstance(transforms, list) or len(transforms) > MAX_TRANSFORMS_PER_RULE:
        raise _RuleFaultError(f"transforms must be a list of at most {MAX_TRANSFORMS_PER_RULE} transforms")
    pattern = parse_pattern(value["parameter"])
    return FeedRule(
        pattern,
        tuple(_template(text, pattern) for text in tensors),
        tuple(transform_from_json(one) for one in transforms),
    )


def parse_pattern(text: object) -> Pattern:
    """Read one pattern; ValueError says why it cannot be used."""
    pattern = Pattern(_text(text))
    try:
        _ = pattern.groups
    except re2.error as error:
        reason = error.args[0].decode(errors="replace")
        raise _RuleFaultError(f"the pattern {text!r:.120} is not a regular expression of RE2: {reason}") from error
    return pattern


def _template(text: object, pattern: Pattern) -> Template:
    parts: list[str | int] = []
    end = 0
    known = pattern.groups
    template = _text(text)
    for found in _REFERENCE.finditer(template):
        parts.append(template[end : found.start()])
        end = found.end()
        number, name, backslash, _ = found.groups()
        if not backslash and (number or name) not in known:
            raise _RuleFaultError(
                f"{found[0]} in the template {template!r:.120} is no group of the pattern {pattern.text!r:.120}: "
                r"use \1 or \g<name> for its groups and \\ for a backslash"
            )
        parts.append(backslash or known[number or name])
    return Template((*parts, template[end:]))


def _text(text: object) -> str:
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_PATTERN or not text.isprintable():
        raise _RuleFaultError(
            f"patterns and templates are text of 1 to {MAX_PATTERN} printable characters; got {text!r:.80}"
        )
    return text
