"""Checking a build option against the JSON Schemas that workers declare for it.

A schema is self-contained. If a reference leads out of it, the schema is unusable; the reference is never fetched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

Schema = Mapping[str, Any]
MAX_DETAIL = 300
_validator = partial(Draft202012Validator, registry=Registry())  # the default registry would fetch references


@dataclass(frozen=True, slots=True)
class OptionConflict:
    """Options that exclude each other: they do if `when`, a JSON Schema of all options and defaults, accepts them."""

    when: Schema
    reason: str


@dataclass(frozen=True, slots=True)
class OptionFault:
    """Why an option is refused; `path` leads from the option's value to the wrong part of it."""

    path: tuple[str | int, ...]
    detail: str


def fault_of(
    name: str, value: object, declared: Mapping[str, Sequence[Schema]], lacks: Mapping[str, str]
) -> OptionFault | None:
    """Return the fault of an option, or None if one of its schemas accepts the value.

    If a worker says why it does not support this option or value (`lacks`), the detail contains the reason.
    """
    if name not in declared:
        known = f"unknown; known are {', '.join(sorted(declared))}" if declared else "it takes none"
        return OptionFault((), _reasoned(known, name, value, lacks))
    faults = [_schema_fault(schema, value) for schema in declared[name]]
    if None in faults:
        return None
    path, detail = next((fault.path, fault.detail) for fault in faults if fault is not None)
    return OptionFault(path, _reasoned(detail, name, value, lacks))


def is_default(value: object, schemas: Sequence[Schema]) -> bool:
    """Whether every schema has this value as its default, so that it may be left out."""
    return bool(schemas) and all("default" in schema and _same(value, schema["default"]) for schema in schemas)


def reasons_against(
    options: Mapping[str, Any], declared: Mapping[str, Sequence[Schema]], conflicts: Sequence[OptionConflict]
) -> list[str]:
    """Return the reasons of the conflicts that these options fall under; a missing option has its default."""
    defaults = {
        name: schemas[0]["default"]
        for name, schemas in declared.items()
        if all("default" in schema for schema in schemas)
    }
    complete = defaults | {name: value for name, value in options.items() if value is not None}
    return [conflict.reason for conflict in conflicts if _schema_fault(conflict.when, complete) is None]


def _schema_fault(schema: Schema, value: object) -> OptionFault | None:
    try:
        Draft202012Validator.check_schema(schema)
        error = best_match(_validator(schema).iter_errors(value))
    except SchemaError as unusable:
        return OptionFault((), f"the worker's schema for it cannot be used: {_shortened(unusable.message)}")
    except Unresolvable as unusable:
        return OptionFault((), f"the worker's schema for it cannot be used: {_shortened(str(unusable))}")
    return None if error is None else OptionFault(tuple(error.absolute_path), _shortened(error.message))


def _shortened(message: str) -> str:
    """Leave out the middle of a long message: it repeats a large value there, and its end says the fault."""
    half = MAX_DETAIL // 2
    return message if len(message) <= MAX_DETAIL else f"{message[:half]} ... {message[-half:]}"


def _reasoned(detail: str, name: str, value: object, lacks: Mapping[str, str]) -> str:
    reason = lacks.get(f"{name}={value}") or lacks.get(name)
    return f"{detail}: {reason}" if reason else detail


def _same(value: object, default: object) -> bool:
    """Whether both are the same JSON value: 1 equals 1.0 and differs from true."""
    return _validator({"const": default}).is_valid(value)
