"""What a binding problem means and what to do about it, in words and in rules a client can paste."""

import json
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import re2

from app.bindings.rules import FeedRule, Rule
from app.bindings.steps import TensorType
from app.weights.dtypes import is_lossless_cast


class SimilarNames:
    """Finds, among tensors that feed nothing, one that a parameter may mean under another prefix."""

    def __init__(self, tensors: Iterable[str]) -> None:
        self._names = list(tensors)
        self._by_tail: dict[str, str] | None = None

    def of(self, name: str) -> str | None:
        """Return the tensor whose dotted parts end with those of `name`, or the other way round."""
        if self._by_tail is None:
            self._by_tail = {tail: tensor for tensor in reversed(self._names) for tail in _tails(tensor)}
        if name in self._by_tail:
            return self._by_tail[name]
        whole = set(self._names)
        return next((tail for tail in _tails(name) if tail in whole), None)


def missing_remedy(parameter: str, missing: Sequence[str], similar: SimilarNames) -> str:
    """Say which tensors a parameter lacks, and which rule would find them under another prefix."""
    what = f"{parameter} is fed by {_listed(missing)}, which the weights do not have."
    tensor = similar.of(missing[0])
    if tensor is None:
        return f"{what} Upload a checkpoint that has it, or add a rule that names the tensor to use."
    if missing[0] != parameter:
        return f"{what} They have {tensor}: name that in the rule that matches {parameter}."
    return f"{what} They have {tensor}: add the rule {_json(_rename(parameter, tensor))}."


def shape_remedy(parameter: str, expected: TensorType, actual: TensorType) -> str:
    """Say how the shapes differ, and which transform would make them equal if one may."""
    what = f"{parameter} has shape {list(expected.shape)}, but its tensors make {list(actual.shape)}."
    if expected.shape == actual.shape[::-1] and len(expected.shape) > 1:
        perm = list(reversed(range(len(actual.shape))))
        return f"{what} If they are stored transposed, add {_json({'op': 'transpose', 'perm': perm})} to its rule."
    if prod(expected.shape) == prod(actual.shape):
        reshape = {"op": "reshape", "shape": list(expected.shape)}
        return f"{what} If only the shape differs, add {_json(reshape)} to its rule."
    return (
        f"{what} Take a part of them with slice or split, join several with concat, "
        "or use weights trained for this definition."
    )


def cast_remedy(parameter: str, expected: TensorType, actual: TensorType) -> str:
    """Say why a cast is not made unasked, and how to ask for it."""
    what = f"{parameter} is {expected.dtype}, but its tensors make {actual.dtype}"
    why = (
        "and such numbers usually want a scale first"
        if is_lossless_cast(actual.dtype, expected.dtype)
        else "and that cast loses precision or range"
    )
    cast = _json({"op": "cast", "dtype": expected.dtype})
    return f"{what}, {why}. If it is meant, add {cast} to its rule."


def unexpected_remedy(tensor: str) -> str:
    """Say that a tensor feeds nothing, and how to ignore it."""
    ignore = _json({"ignore": re2.escape(tensor)})
    return f"{tensor} feeds no parameter. If it is not needed, add the rule {ignore}."


def unused_remedy(rule: Rule) -> str:
    """Say what a rule that applied to nothing was meant to match."""
    if isinstance(rule, FeedRule):
        return f"No parameter is fed by the pattern {rule.parameter.text!r}: none matches, or earlier rules took them."
    return f"No unused tensor matches the pattern {rule.tensors.text!r}, or earlier rules took them."


def _rename(parameter: str, tensor: str) -> dict[str, Any]:
    """Return the rule that adds or drops the prefix in which the two names differ, for all parameters."""
    if tensor.endswith(parameter):
        prefix = tensor.removesuffix(parameter)
        return {"parameter": "(.*)", "tensors": [prefix.replace("\\", "\\\\") + r"\1"]}
    prefix = parameter.removesuffix(tensor)
    return {"parameter": re2.escape(prefix) + "(.*)", "tensors": [r"\1"]}


def _tails(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(1, len(parts))]


def _listed(names: Sequence[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _json(value: object) -> str:
    return json.dumps(value)
