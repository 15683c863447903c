"""Reading transforms from JSON, as clients and stored reports write them."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from app.bindings.arithmetic import AddScaled, Dequantize, MergeLora, Pad
from app.bindings.steps import MAX_EXTENT, Transform, TransformError
from app.bindings.transforms import Cast, Concat, Divide, Each, Reorder, Reshape, Slice, Split, Transpose

_KINDS = (
    Transpose,
    Reshape,
    Slice,
    Split,
    Concat,
    Cast,
    Reorder,
    Divide,
    Each,
    Pad,
    Dequantize,
    AddScaled,
    MergeLora,
)
_OPS: Mapping[str, type[Any]] = {kind.op: kind for kind in _KINDS}
MAX_DEPTH = 4  # of `each` within `each`
MAX_LISTED = 128


def transform_from_json(value: object, depth: int = 0) -> Transform:
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
    transform: Transform = kind(**{name: _typed(kind.op, known[name], field, depth) for name, field in given.items()})
    return transform


def _typed(op: str, field: "Field[Any]", value: object, depth: int) -> object:
    if field.name == "transforms":
        return _lists(value, depth)
    if field.name == "order" and isinstance(value, str):
        return _order(value)
    is_right, wanted = _TYPES[field.type]
    if not is_right(value):
        raise TransformError(f"{op} {field.name} must be {wanted}; got {value!r:.80}")
    if isinstance(value, list):
        return tuple(value)
    return float(value) if field.type is float and isinstance(value, int) else value


def _lists(value: object, depth: int) -> tuple[tuple[Transform, ...], ...]:
    if not isinstance(value, list | tuple) or depth == MAX_DEPTH:
        raise _not_lists()
    lists = [steps for steps in value if isinstance(steps, list | tuple)]
    if len(lists) != len(value):
        raise _not_lists()
    if len(value) + sum(map(len, lists)) > MAX_LISTED:
        raise TransformError(f"each has more than {MAX_LISTED} transforms; use fewer")
    return tuple(tuple(transform_from_json(one, depth + 1) for one in steps) for steps in lists)


def _not_lists() -> TransformError:
    return TransformError(
        f"each transforms must be a list of lists of transforms, at most {MAX_DEPTH} deep, as in "
        '[[{"op": "transpose", "perm": [1, 0]}], []]'
    )


def _order(text: str) -> tuple[int, ...]:
    """Read "ifco->iofc": the sections as they are and as they shall be, a letter each."""
    before, arrow, after = text.partition("->")
    if not arrow or len(set(before)) != len(before) or sorted(before) != sorted(after):
        raise TransformError(
            f'reorder order must be a list of integers, or letters as in "ifco->iofc"; got {text!r:.60}'
        )
    return tuple(before.index(letter) for letter in after)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_EXTENT


def _are_integers(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) <= MAX_LISTED and all(map(_is_integer, value))


def _is_number(value: object) -> bool:
    return _is_integer(value) or isinstance(value, float)


_TYPES: Mapping[Any, tuple[Callable[[object], bool], str]] = {
    tuple[int, ...]: (_are_integers, "a list of integers"),
    int: (_is_integer, "an integer"),
    int | None: (lambda value: value is None or _is_integer(value), "an integer"),
    float: (_is_number, "a number"),
    str: (lambda value: isinstance(value, str), "a dtype's name"),
}
