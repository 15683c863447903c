"""Reading transforms from JSON, as clients and stored reports write them."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from app.bindings.transforms import (
    MAX_EXTENT,
    Cast,
    Concat,
    Reshape,
    Slice,
    Split,
    Transform,
    TransformError,
    Transpose,
)

_OPS: Mapping[str, type[Any]] = {kind.op: kind for kind in (Transpose, Reshape, Slice, Split, Concat, Cast)}


def transform_from_json(value: object) -> Transform:
    """Read {"op": "transpose", "perm": [1, 0]} and its like; raises TransformError, which names the fault."""
    op = value.get("op") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(op, str) or op not in _OPS:
        raise TransformError(f"a transform is an object whose op is one of {', '.join(_OPS)}; got {value!r:.80}")
    kind = _OPS[op]
    given = {name: field for name, field in value.items() if name != "op"}
    known = {field.name: field for field in fields(kind)}
    wrong = sorted(given.keys() - known.keys()) + [
        name for name, field in known.items() if field.default is MISSING and name not in given
    ]
    if wrong:
        raise TransformError(f"{kind.op} takes {', '.join(known)}; missing or unknown: {', '.join(wrong)}")
    transform: Transform = kind(**{name: _typed(kind.op, known[name], field) for name, field in given.items()})
    return transform


def _typed(op: str, field: "Field[Any]", value: object) -> object:
    if field.type == tuple[int, ...] and isinstance(value, list | tuple) and all(map(_is_integer, value)):
        return tuple(value)
    if field.type in {int, int | None} and _is_integer(value):
        return value
    if (field.type == int | None and value is None) or (field.type is str and isinstance(value, str)):
        return value
    wanted = {"perm": "a list of integers", "shape": "a list of integers", "dtype": "a dtype's name"}
    raise TransformError(f"{op} {field.name} must be {wanted.get(field.name, 'an integer')}; got {value!r:.80}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_EXTENT
