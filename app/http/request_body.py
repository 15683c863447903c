"""Checks of every request: its content can be stored, and the call knows each of its fields and query parameters.

PostgreSQL refuses NUL in text. UTF-8 has no lone surrogates. JSON (RFC 8259) has neither NaN nor infinities, though
Python's parser reads them. All of these are refused here, so that both databases take the same requests. A misspelt
field or query parameter is refused because it would have no effect, and the caller would not notice.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

from fastapi import Request
from fastapi.dependencies.models import Dependant
from pydantic import BaseModel, ConfigDict, model_validator

from app.errors import FieldError, Invalid, json_pointer

MAX_DEPTH = 64
MAX_FAULTS = 20


class RequestBody(BaseModel):
    """A JSON request body: a misspelt field is a fault, and a number in quotes is no number."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_surplus(cls, body: object) -> object:
        """Leave out most members that are no fields, since no more than MAX_FAULTS of them are told of anyway."""
        if not isinstance(body, dict) or len(body) <= len(cls.model_fields) + MAX_FAULTS:
            return body
        unknown = [name for name in body if name not in cls.model_fields][:MAX_FAULTS]
        return {name: body[name] for name in (*cls.model_fields, *unknown) if name in body}


def check_content(body: object) -> None:
    """Raise Invalid "bad_content", with a pointer to each fault, if the JSON holds values that cannot be stored."""
    faults = [fault for _, fault in zip(range(MAX_FAULTS), _faults(body), strict=False)]
    if faults:
        raise bad_content(faults)


async def check_address(request: Request) -> None:
    """Check the values of the path and of the query, and the names of the query's parameters.

    Raises Invalid "bad_content" if a value cannot be stored, and "invalid_request" if the route has no such parameter.
    """
    _check_values(request)
    _check_names(request)


def _check_values(request: Request) -> None:
    named = [("path", *pair) for pair in request.path_params.items()]
    named += [("query", *pair) for pair in request.query_params.multi_items()]
    faults = [
        FieldError(_pointer(place, name), fault)
        for place, name, value in named
        if (fault := text_fault(str(value))) is not None
    ]
    if faults:
        raise bad_content(faults[:MAX_FAULTS])


def _check_names(request: Request) -> None:
    if not request.query_params:
        return
    known = frozenset(_declared(request.scope["route"].dependant))
    unknown = [name for name in request.query_params if name not in known]
    if not unknown:
        return
    remedy = f"It takes {', '.join(sorted(known))}" if known else "It takes none"
    faults = [FieldError(_pointer("query", name), "not a parameter of this call") for name in unknown[:MAX_FAULTS]]
    listed = ", ".join(f"'{fault.pointer.removeprefix('/query/')}'" for fault in faults[:5])
    raise Invalid(
        f"The call has no query parameter {listed}. {remedy}. See /docs for what each does.",
        code="invalid_request",
        errors=faults,
    )


def _declared(dependant: Dependant) -> Iterator[str]:
    """Yield the names of the query parameters of a route and of all it depends on."""
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _declared(inner)


def text_fault(text: str) -> str | None:
    """Return why a text cannot be stored, None if it can."""
    if "\0" in text:
        return "has a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "has half of a surrogate pair, which is no character"
    return None


def _faults(body: object) -> Iterator[FieldError]:
    """Yield the faults of a JSON value, outer ones first; no recursion, so its depth costs no stack."""
    waiting: list[tuple[str, int, object]] = [("", 0, body)]
    while waiting:
        pointer, depth, value = waiting.pop()
        if isinstance(value, dict | list) and depth == MAX_DEPTH:
            yield FieldError(pointer, f"is nested deeper than {MAX_DEPTH} levels")
            continue
        fault = _value_fault(value)
        if fault is not None:
            yield FieldError(pointer, fault)
        waiting += [(pointer + _pointer(name), depth + 1, item) for name, item in _items(value)]


def _items(value: object) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return [(str(index), item) for index, item in enumerate(value)] if isinstance(value, list) else []


def _value_fault(value: object) -> str | None:
    if isinstance(value, str):
        return text_fault(value)
    if isinstance(value, dict):
        return next((f"has a name that {fault}" for fault in map(text_fault, value) if fault), None)
    if isinstance(value, float) and not math.isfinite(value):
        return "is no finite number"
    return None


def bad_content(faults: list[FieldError]) -> Invalid:
    """Return the error of a request that holds what cannot be stored."""
    listed = "; ".join(f"{fault.pointer or '/'} {fault.detail}" for fault in faults[:5])
    return Invalid(
        f"The request holds what cannot be kept: {listed}. Send it without.", code="bad_content", errors=faults
    )


def _pointer(*names: str) -> str:
    """Return the JSON Pointer to a member, in characters that an answer can hold."""
    return json_pointer(*names).encode(errors="replace").decode()
