"""What came of binding checkpoint tensors to parameters."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from app.bindings.proposed import Proposed
from app.bindings.steps import TensorType, Transform, TransformError, apply_all
from app.bindings.transform_json import transform_from_json
from app.json_digest import json_digest
from app.weights.dtypes import numpy_dtype

if TYPE_CHECKING:
    from app.bindings.steps import Array

NO_RULE: Final = -1  # of a warning
ProblemKind = Literal[
    "missing", "unexpected", "wrong_shape", "wrong_dtype", "foreign_dtype", "lossy_cast", "bad_transform"
]


@dataclass(frozen=True, slots=True)
class ParameterBinding:
    """Which tensors feed one parameter, in order, and through which transforms."""

    parameter: str
    dtype: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    transforms: tuple[Transform, ...] = ()

    def apply(self, arrays: "Sequence[Array]") -> "Array":
        """Return the parameter's value from the values of `tensors`, as a view of them where the transforms allow it.

        It may lie in memory in any order, see `contiguous_pieces`. TransformError if the arrays are not those the
        binding was checked with.
        """
        if len(arrays) != len(self.tensors):
            raise TransformError(f"{self.parameter} is fed by {len(self.tensors)} tensors; got {len(arrays)}")
        array = apply_all(self.transforms, arrays)
        if array.shape != self.shape or array.dtype != numpy_dtype(self.dtype):
            raise TransformError(
                f"{self.parameter} is {TensorType(self.dtype, self.shape)}, but its tensors make "
                f"{array.dtype}{list(array.shape)}: check the binding against these weights again"
            )
        return array

    def to_json(self) -> dict[str, Any]:
        """Return {parameter, dtype, shape, tensors, transforms}."""
        return {
            "parameter": self.parameter,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "tensors": list(self.tensors),
            "transforms": [transform.to_json() for transform in self.transforms],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ParameterBinding":
        """Read what `to_json` wrote."""
        return cls(
            value["parameter"],
            value["dtype"],
            tuple(value["shape"]),
            tuple(value["tensors"]),
            tuple(transform_from_json(one) for one in value["transforms"]),
        )


@dataclass(frozen=True, slots=True)
class BindingProblem:
    """One reason why the weights cannot be bound; `detail` says what to do about it.

    `parameter` is None for an unexpected tensor. `expected` is the type that the parameter wants. `actual` is the one
    that its tensors give, or None if that is not known.
    """

    kind: ProblemKind
    parameter: str | None
    tensors: tuple[str, ...]
    detail: str
    expected: TensorType | None = None
    actual: TensorType | None = None

    def to_json(self) -> dict[str, Any]:
        """Return {kind, parameter, tensors, expected, actual, detail}."""
        return {
            "kind": self.kind,
            "parameter": self.parameter,
            "tensors": list(self.tensors),
            "expected": _type_to_json(self.expected),
            "actual": _type_to_json(self.actual),
            "detail": self.detail,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "BindingProblem":
        """Read what `to_json` wrote."""
        return cls(
            value["kind"],
            value["parameter"],
            tuple(value["tensors"]),
            value["detail"],
            _type_from_json(value["expected"]),
            _type_from_json(value["actual"]),
        )


@dataclass(frozen=True, slots=True)
class BindingWarning:
    """What may be wrong although the weights bind, and what to do about it.

    `rule` counts from 0. It is NO_RULE if no rule of the request is the cause.
    """

    rule: int
    detail: str


@dataclass(frozen=True)
class BindingReport:
    """The bindings of all parameters that can be bound, and every problem there is.

    `proposed` are the rules that would help. They are for whoever asked, and not kept with the report.
    """

    bindings: tuple[ParameterBinding, ...]
    problems: tuple[BindingProblem, ...] = ()
    ignored: tuple[str, ...] = ()
    warnings: tuple[BindingWarning, ...] = ()
    proposed: Proposed = field(default=Proposed(), compare=False)

    @property
    def ok(self) -> bool:
        """Whether an engine can be built with this binding."""
        return not self.problems

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what feeds each parameter; other rules that come to the same give the same digest."""
        return json_digest(sorted(self._bindings_json, key=lambda one: str(one["parameter"])))

    def to_json(self) -> dict[str, Any]:
        """Return {ok, digest, problems, warnings, ignored, bindings}."""
        return {
            "ok": self.ok,
            "digest": self.digest,
            "problems": [problem.to_json() for problem in self.problems],
            "warnings": [{"rule": warning.rule, "detail": warning.detail} for warning in self.warnings],
            "ignored": list(self.ignored),
            "bindings": list(self._bindings_json),
        }

    @cached_property
    def _bindings_json(self) -> tuple[dict[str, Any], ...]:
        return tuple([binding.to_json() for binding in self.bindings])

    @cached_property
    def text(self) -> str:
        """What `to_json` returns, as JSON; the same for equal reports."""
        return json.dumps(self.to_json())

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "BindingReport":
        """Read what `to_json` wrote."""
        return cls(
            tuple(ParameterBinding.from_json(one) for one in value["bindings"]),
            tuple(BindingProblem.from_json(one) for one in value["problems"]),
            tuple(value["ignored"]),
            tuple(BindingWarning(one["rule"], one["detail"]) for one in value["warnings"]),
        )


def _type_to_json(one: TensorType | None) -> dict[str, Any] | None:
    return None if one is None else {"dtype": one.dtype, "shape": list(one.shape)}


def _type_from_json(value: Mapping[str, Any] | None) -> TensorType | None:
    return None if value is None else TensorType(value["dtype"], tuple(value["shape"]))
