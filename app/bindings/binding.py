"""Binding: which checkpoint tensors feed which parameter of a definition."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.bindings.remedies import (
    SimilarNames,
    cast_remedy,
    missing_remedy,
    shape_remedy,
    unexpected_remedy,
    unused_remedy,
)
from app.bindings.report import BindingProblem, BindingReport, ParameterBinding, ProblemKind, UnusedRule
from app.bindings.rules import BindingRuleError, FeedRule, IgnoreRule, Rule
from app.bindings.steps import TensorType, Transform, TransformError, infer_all
from app.bindings.transforms import Cast
from app.definitions.parameter import Parameter
from app.weights.dtypes import DTYPES, is_lossless_cast, is_widening

MATCHING_S = 10.0
_CASTS = {name: Cast(name) for name in DTYPES}


class TensorLike(Protocol):
    """The part of a checkpoint tensor that binding looks at."""

    @property
    def name(self) -> str: ...  # noqa: D102 - the protocol's members speak for themselves
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102


def bind(
    parameters: Sequence[Parameter],
    tensors: Mapping[str, TensorLike],
    rules: Sequence[Rule],
    defaults: Sequence[Rule] = (),
) -> BindingReport:
    """Bind every parameter and report every problem at once.

    The first rule whose pattern matches a parameter decides what feeds it. Without such a rule it is the tensor of the
    same name. A tensor may feed several parameters.

    `defaults` come after `rules` and may go unused without a warning. They may name alternatives: of those that match
    a parameter, the first whose tensors are all there counts.

    If dtypes differ, a cast that only widens is added. Any other difference is a problem. So is a tensor that feeds
    nothing, unless a rule ignores it. Transforms that change nothing about the tensors at hand are left out.

    Raises BindingRuleError if matching the patterns takes more than MATCHING_S seconds.
    """
    return _Binder(tensors, [*rules, *defaults], given=len(rules)).report(parameters)


@dataclass
class _Choice:
    """What shall feed a parameter, before anything is checked."""

    parameter: Parameter
    tensors: tuple[str, ...]
    transforms: tuple[Transform, ...]


@dataclass
class _Binder:
    """One run of `bind`: what it has found so far."""

    tensors: Mapping[str, TensorLike]
    rules: Sequence[Rule]
    given: int  # how many of the rules are the client's
    bindings: list[ParameterBinding] = field(default_factory=list)
    problems: list[BindingProblem] = field(default_factory=list)
    applied: set[int] = field(default_factory=set)
    deadline: float = field(default_factory=lambda: time.monotonic() + MATCHING_S)

    def report(self, parameters: Sequence[Parameter]) -> BindingReport:
        choices = [self._choose(parameter) for parameter in parameters]
        fed = {tensor for choice in choices for tensor in choice.tensors}
        left = [name for name in self.tensors if name not in fed]
        ignored = tuple(name for name in left if self._ignores(name))
        unexpected = sorted(set(left).difference(ignored))
        similar = SimilarNames(unexpected)
        for choice in choices:
            self._check(choice, similar)
        self.problems += [BindingProblem("unexpected", None, (name,), unexpected_remedy(name)) for name in unexpected]
        unused = sorted(set(range(self.given)) - self.applied)
        warnings = tuple(UnusedRule(index, unused_remedy(self.rules[index])) for index in unused)
        return BindingReport(tuple(self.bindings), tuple(self.problems), ignored, warnings)

    def _choose(self, parameter: Parameter) -> _Choice:
        self._check_time()
        absent: _Choice | None = None
        for index, rule in enumerate(self.rules):
            if isinstance(rule, FeedRule) and (groups := rule.parameter.match(parameter.name)):
                choice = _Choice(parameter, tuple(one.expand(groups) for one in rule.tensors), rule.transforms)
                if index < self.given or all(name in self.tensors for name in choice.tensors):
                    self.applied.add(index)
                    return choice
                absent = absent or choice
        return absent or _Choice(parameter, (parameter.name,), ())

    def _ignores(self, tensor: str) -> bool:
        self._check_time()
        for index, rule in enumerate(self.rules):
            if isinstance(rule, IgnoreRule) and rule.tensors.match(tensor):
                self.applied.add(index)
                return True
        return False

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise BindingRuleError(
                0, f"matching all patterns took longer than {MATCHING_S:.0f} s: use fewer or simpler patterns"
            )

    def _check(self, choice: _Choice, similar: SimilarNames) -> None:
        parameter, names = choice.parameter, choice.tensors
        expected = TensorType(parameter.dtype, parameter.shape)
        missing = [name for name in names if name not in self.tensors]
        if missing:
            detail = missing_remedy(parameter.name, missing, similar)
            self.problems.append(BindingProblem("missing", parameter.name, names, detail, expected))
            return
        types = [TensorType(tensor.dtype, tensor.shape) for tensor in map(self.tensors.__getitem__, names)]
        try:
            actual, needed = infer_all(choice.transforms, types)
        except TransformError as error:
            self.problems.append(BindingProblem("bad_transform", parameter.name, names, str(error), expected))
            return
        if actual == expected:
            self._bind(choice, needed)
        else:
            self._reconcile(choice, expected, actual, needed)

    def _reconcile(
        self, choice: _Choice, expected: TensorType, actual: TensorType, needed: tuple[Transform, ...]
    ) -> None:
        name, tensors = choice.parameter.name, choice.tensors
        fits = expected.shape == actual.shape
        if not fits:
            detail = shape_remedy(name, expected, actual)
            self.problems.append(BindingProblem("wrong_shape", name, tensors, detail, expected, actual))
        if expected.dtype != actual.dtype and not is_widening(actual.dtype, expected.dtype):
            kind: ProblemKind = "wrong_dtype" if is_lossless_cast(actual.dtype, expected.dtype) else "lossy_cast"
            detail = cast_remedy(name, expected, actual)
            self.problems.append(BindingProblem(kind, name, tensors, detail, expected, actual))
        elif fits:
            self._bind(choice, (*needed, _CASTS[expected.dtype]))

    def _bind(self, choice: _Choice, transforms: tuple[Transform, ...]) -> None:
        parameter = choice.parameter
        self.bindings.append(
            ParameterBinding(parameter.name, parameter.dtype, parameter.shape, choice.tensors, transforms)
        )
