"""Binding: which checkpoint tensors feed which parameter of a definition."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol

from app.bindings.companions import companion
from app.bindings.folded_norms import Norms, folded_norms, folded_remedy, ignored_norm, is_product, product_remedy
from app.bindings.proposals import KnownValues, Wanted, propose
from app.bindings.proposed import NO_TWINS, Proposed, Twin, Unclear, named
from app.bindings.remedies import (
    cast_remedy,
    constant_remedy,
    foreign_remedy,
    ignored_companion,
    missing_remedy,
    shape_remedy,
    square_warning,
    unexpected_remedy,
    unused_remedy,
)
from app.bindings.report import NO_RULE, BindingProblem, BindingReport, BindingWarning, ParameterBinding, ProblemKind
from app.bindings.rule_sets import Fed
from app.bindings.rules import BindingRuleError, FeedRule, IgnoreRule, Pattern, Rule
from app.bindings.steps import TensorType, Transform, TransformError, infer_all
from app.bindings.transforms import Cast
from app.definitions.parameter import Parameter
from app.weights.dtypes import DTYPES, is_foreign, is_lossless_cast, is_widening

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


class Constants(NamedTuple):
    """The names of tensors that a definition holds itself, and of those whose values the weights have as well."""

    names: frozenset[str] = frozenset()
    equal: frozenset[str] = frozenset()


NO_CONSTANTS: Final = Constants()


def bind(
    parameters: Sequence[Parameter],
    tensors: Mapping[str, TensorLike],
    rules: Sequence[Rule],
    defaults: Sequence[Rule] = (),
    constants: Constants = NO_CONSTANTS,
    twins: Mapping[str, Sequence[Twin]] = NO_TWINS,
) -> BindingReport:
    """Bind every parameter and report every problem at once.

    The first rule whose pattern matches a parameter decides what feeds it. Without such a rule it is the tensor of the
    same name. A tensor may feed several parameters.

    `defaults` come after `rules` and may go unused without a warning. They may name alternatives: of those that match
    a parameter, the first whose tensors are all there counts.

    If dtypes differ, a cast that only widens is added. Any other difference is a problem. So is a tensor that feeds
    nothing, unless a rule ignores it. Transforms that change nothing about the tensors at hand are left out.

    `constants` are the tensors that the definition holds itself, which no weights change. `twins` are the parameters
    that others were tied to.

    Raises BindingRuleError if matching the patterns takes more than MATCHING_S seconds.
    """
    return _Binder(tensors, [*rules, *defaults], constants, given=len(rules), twins=twins).report(parameters)


def propose_for(
    report: BindingReport,
    parameters: Sequence[Parameter],
    tensors: Mapping[str, TensorLike],
    rules: Sequence[Rule],
    constants: Constants,
    values: KnownValues,
    twins: Mapping[str, Sequence[Twin]],
) -> Proposed:
    """Propose rules for what a report, made by `rules`, could not bind, by what is known of values as well."""
    known = _Binder(tensors, rules, constants, given=len(rules), twins=twins)
    found = _fed(report.bindings)
    outcomes = [known.outcome(parameter) for parameter in parameters if parameter.name not in found]
    unexpected = [one.tensors[0] for one in report.problems if one.kind == "unexpected"]
    return known.propose(parameters, outcomes, found, unexpected, values)


@dataclass
class _Choice:
    """What shall feed a parameter, before anything is checked."""

    parameter: Parameter
    tensors: tuple[str, ...]
    transforms: tuple[Transform, ...]

    @property
    def expected(self) -> TensorType:
        return TensorType(self.parameter.dtype, self.parameter.shape)


@dataclass
class _Outcome:
    """What came of a choice: the binding, or what is wrong."""

    choice: _Choice
    binding: ParameterBinding | None = None
    missing: tuple[str, ...] = ()
    actual: TensorType | None = None
    foreign: Sequence[str] = ()  # its tensors of types that nothing is computed with
    error: str = ""

    @property
    def wanted(self) -> Wanted:
        choice = self.choice
        return Wanted(choice.parameter) if self.missing else Wanted(choice.parameter, choice.tensors, choice.transforms)


@dataclass(frozen=True)
class _Index:
    """The places of rules, by the only name that they match, and of those that match others as well."""

    literal: Mapping[str, list[int]]
    general: list[int]

    @classmethod
    def of(cls, patterns: Iterable[tuple[int, Pattern]]) -> "_Index":
        literal: dict[str, list[int]] = defaultdict(list)
        general: list[int] = []
        for at, pattern in patterns:
            (general if pattern.literal is None else literal[pattern.literal]).append(at)
        return cls(dict(literal), general)

    def near(self, name: str) -> list[int]:
        """Return the places of the rules that may match a name, in their order."""
        exact = self.literal.get(name)
        return self.general if exact is None else sorted(exact + self.general)


@dataclass
class _Binder:
    """One run of `bind`: what it has found so far."""

    tensors: Mapping[str, TensorLike]
    rules: Sequence[Rule]
    constants: Constants
    given: int  # how many of the rules are the client's
    twins: Mapping[str, Sequence[Twin]]
    problems: list[BindingProblem] = field(default_factory=list)
    warnings: list[BindingWarning] = field(default_factory=list)
    applied: set[int] = field(default_factory=set)
    ignored_by: dict[str, int] = field(default_factory=dict)  # the client's rule that ignores a tensor
    deadline: float = field(default_factory=lambda: time.monotonic() + MATCHING_S)

    def __post_init__(self) -> None:
        self.feeding = _Index.of(
            (at, rule.parameter) for at, rule in enumerate(self.rules) if isinstance(rule, FeedRule)
        )
        self.ignoring = _Index.of(
            (at, rule.tensors) for at, rule in enumerate(self.rules) if isinstance(rule, IgnoreRule)
        )

    def report(self, parameters: Sequence[Parameter]) -> BindingReport:
        choices = [self._choose(parameter) for parameter in parameters]
        fed = {tensor for choice in choices for tensor in choice.tensors}
        left = [name for name in self.tensors if name not in fed]
        ignored = tuple(name for name in left if self._ignores(name))
        unexpected = sorted(set(left).difference(ignored))
        outcomes = [self._outcome(choice) for choice in choices]
        bindings = tuple([one.binding for one in outcomes if one.binding is not None])
        proposed = self.propose(parameters, outcomes, _fed(bindings), unexpected)
        for one in outcomes:
            if one.binding is None:
                self._tell(one, proposed)
        norms = self._norms(outcomes, left)
        self.problems += [self._unexpected(name, proposed, norms.get(name)) for name in unexpected]
        ignored_norms = {(self.ignored_by[name], norms[name]) for name in norms.keys() & self.ignored_by.keys()}
        self.warnings += [BindingWarning(rule, ignored_norm(layer)) for rule, layer in sorted(ignored_norms)]
        unused = {rule.index: rule for rule in self.rules[: self.given] if rule.index not in self.applied}
        self.warnings += [BindingWarning(index, unused_remedy(rule)) for index, rule in unused.items()]
        self.warnings += [BindingWarning(NO_RULE, detail) for detail in square_warning(bindings)]
        return BindingReport(bindings, tuple(self.problems), ignored, tuple(self.warnings), proposed)

    def outcome(self, parameter: Parameter) -> _Outcome:
        return self._outcome(self._choose(parameter))

    def propose(
        self,
        parameters: Sequence[Parameter],
        outcomes: Sequence[_Outcome],
        bound: Mapping[str, Fed],
        unexpected: Sequence[str],
        values: KnownValues | None = None,
    ) -> Proposed:
        wanted = [one.wanted for one in outcomes if one.binding is None]
        if not wanted and values is None:
            return Proposed()
        norms = self._norms(outcomes, unexpected)
        spare = [
            name
            for name in unexpected
            if name not in self.constants.names and name not in norms and companion(name, self.tensors) is None
        ]
        products = self._products(wanted, norms)
        wanted = [one for one in wanted if one.parameter.name not in products]
        proposed = propose(wanted, bound, parameters, self.tensors, spare, values, self.twins)
        if not products:
            return proposed
        detail = product_remedy(named(products), named(list(dict.fromkeys(norms.values()))))
        return replace(proposed, unclear=(*proposed.unclear, Unclear(products, tuple(norms), detail)))

    def _norms(self, outcomes: Sequence[_Outcome], left: Sequence[str]) -> Norms:
        return folded_norms(left, self.tensors, [one.choice.expected.shape for one in outcomes if one.missing])

    def _products(self, wanted: Sequence[Wanted], norms: Norms) -> tuple[str, ...]:
        """Return the parameters that nothing feeds and that the layers were folded into, by all that is known."""
        shapes = {self.tensors[name].shape for name in norms}
        missing = [one.parameter for one in wanted if not one.tensors and norms]
        return tuple(one.name for one in missing if is_product(one.name, one.shape, shapes))

    def _choose(self, parameter: Parameter) -> _Choice:
        self._check_time()
        absent: _Choice | None = None
        for at in self.feeding.near(parameter.name):
            rule = self.rules[at]
            if isinstance(rule, FeedRule) and (groups := rule.parameter.match(parameter.name)):
                choice = _Choice(parameter, tuple(one.expand(groups) for one in rule.tensors), rule.transforms)
                is_strict = at < self.given and not rule.is_preset
                if is_strict or all(name in self.tensors for name in choice.tensors):
                    self._apply(at)
                    return choice
                absent = absent or (None if rule.is_preset else choice)
        return absent or _Choice(parameter, (parameter.name,), ())

    def _ignores(self, tensor: str) -> bool:
        self._check_time()
        for at in self.ignoring.near(tensor):
            rule = self.rules[at]
            if isinstance(rule, IgnoreRule) and rule.tensors.match(tensor):
                self._apply(at)
                if at < self.given and not rule.is_preset:
                    self.ignored_by[tensor] = rule.index
                known = companion(tensor, self.tensors) if at < self.given else None
                if known is not None and known.role != "activation scale":
                    self.warnings.append(BindingWarning(rule.index, ignored_companion(tensor, known)))
                return True
        return False

    def _apply(self, at: int) -> None:
        if at < self.given:
            self.applied.add(self.rules[at].index)

    def _unexpected(self, name: str, proposed: Proposed, norm: str | None) -> BindingProblem:
        known = companion(name, self.tensors)
        if norm is not None:
            return BindingProblem("unexpected", None, (name,), f"{name} feeds no parameter. {folded_remedy(norm)}")
        if known is None and name in self.constants.names:
            detail = constant_remedy(name, is_equal=name in self.constants.equal)
            return BindingProblem("unexpected", None, (name,), detail)
        return BindingProblem("unexpected", None, (name,), unexpected_remedy(name, known, proposed, self.tensors))

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise BindingRuleError(
                0, f"matching all patterns took longer than {MATCHING_S:.0f} s: use fewer or simpler patterns"
            )

    def _outcome(self, choice: _Choice) -> _Outcome:
        missing = tuple(name for name in choice.tensors if name not in self.tensors)
        if missing:
            return _Outcome(choice, missing=missing)
        types = [TensorType(tensor.dtype, tensor.shape) for tensor in map(self.tensors.__getitem__, choice.tensors)]
        foreign = [
            f"{name} is {one.dtype}" for name, one in zip(choice.tensors, types, strict=True) if is_foreign(one.dtype)
        ]
        if foreign:
            return _Outcome(choice, foreign=foreign)
        try:
            actual, needed = infer_all(choice.transforms, types)
        except TransformError as error:
            return _Outcome(choice, error=str(error))
        expected = choice.expected
        if actual.shape == expected.shape and actual.dtype == expected.dtype:
            return _Outcome(choice, _bound(choice, needed))
        if actual.shape == expected.shape and is_widening(actual.dtype, expected.dtype):
            return _Outcome(choice, _bound(choice, (*needed, _CASTS[expected.dtype])))
        return _Outcome(choice, actual=actual)

    def _tell(self, outcome: _Outcome, proposed: Proposed) -> None:
        name, tensors, expected = outcome.choice.parameter.name, outcome.choice.tensors, outcome.choice.expected
        actual = outcome.actual
        if outcome.missing:
            detail = missing_remedy(name, outcome.missing, proposed)
            self.problems.append(BindingProblem("missing", name, tensors, detail, expected))
        elif outcome.foreign:
            detail = foreign_remedy(name, outcome.foreign)
            self.problems.append(BindingProblem("foreign_dtype", name, tensors, detail, expected))
        elif actual is None:
            self.problems.append(BindingProblem("bad_transform", name, tensors, outcome.error, expected))
        else:
            self._differ(name, tensors, expected, actual, proposed)

    def _differ(
        self, name: str, tensors: tuple[str, ...], expected: TensorType, actual: TensorType, proposed: Proposed
    ) -> None:
        if expected.shape != actual.shape:
            detail = shape_remedy(name, tensors, expected, actual, self.tensors)
            self.problems.append(BindingProblem("wrong_shape", name, tensors, detail, expected, actual))
        if expected.dtype != actual.dtype and not is_widening(actual.dtype, expected.dtype):
            kind: ProblemKind = "wrong_dtype" if is_lossless_cast(actual.dtype, expected.dtype) else "lossy_cast"
            detail = cast_remedy(name, tensors, expected, actual, self.tensors, proposed)
            self.problems.append(BindingProblem(kind, name, tensors, detail, expected, actual))


def _fed(bindings: Sequence[ParameterBinding]) -> dict[str, Fed]:
    return {one.parameter: Fed(one.parameter, one.tensors, one.transforms, ()) for one in bindings}


def _bound(choice: _Choice, transforms: tuple[Transform, ...]) -> ParameterBinding:
    parameter = choice.parameter
    return ParameterBinding(parameter.name, parameter.dtype, parameter.shape, choice.tensors, transforms)
