"""Checking bindings against stored definitions and weight versions, and keeping those that engines are made by."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Text, cast, func, select
from sqlalchemy.orm import Session

from app.bindings.binding import Constants, bind, propose_for
from app.bindings.embedded import EmbeddedWeights, Read, Samples, ValuesOfEmbedded
from app.bindings.layouts import turned_squares
from app.bindings.proposed import Proposed, Twin
from app.bindings.remedies import ignored_constants, non_finite_warning, unequal_warning
from app.bindings.report import NO_RULE, BindingReport, BindingWarning, ParameterBinding
from app.bindings.rules import BindingRuleError, IgnoreRule, Rule, parse_rules
from app.bindings.tables import Binding
from app.bindings.ties import broken_mirrors, broken_ties, twins_of
from app.database import JsonText, insert_into
from app.definitions import service as definitions
from app.definitions.constants import digests_of
from app.definitions.parameter import Parameter
from app.definitions.tables import Definition
from app.errors import FieldError, Invalid
from app.heavy import MOST_BYTES, check_size
from app.remembered import remembered
from app.weights import service as weights
from app.weights.manifest import TensorEntry, entries_from_json
from app.weights.non_finite import NonFinite
from app.weights.tables import WeightVersion

KEPT_REPORTS = 16
NONE_EMBEDDED = EmbeddedWeights({})
MAX_KEPT_TENSORS = 10_000  # of a weight version whose report is kept: some megabytes


class TensorOutline(NamedTuple):
    """The part of a checkpoint tensor that binding looks at."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """A definition and the weights to bind to it, loaded, so that binding needs no session.

    `tensors` are rows for `Manifest.from_json`. `embedded` are the weights that the definition came with, if any,
    and `constants` are the digests of the tensors that it keeps for itself, None if they are not known.
    """

    definition: Definition
    weights: WeightVersion
    parameters: tuple[Parameter, ...]
    tensors: list[Any]
    defaults: tuple[Any, ...]
    embedded: EmbeddedWeights = NONE_EMBEDDED
    constants: Mapping[str, str | None] = field(default_factory=dict)

    def bind(self, rules: Sequence[Any]) -> BindingReport:
        """Bind by these rules, then by the definition's own, and warn of values that do not go together.

        Invalid "bad_rule" for a rule that cannot be used. Two versions of one model rarely differ in what binding looks
        at, so the last reports are kept.
        """
        report = self._bind(rules)
        warnings = (
            *self._unequal(report, rules),
            *self._other_constants(report),
            *self._broken_ties(report),
            *self._non_finite(report),
        )
        return replace(report, warnings=report.warnings + warnings) if warnings else report

    def check(self, rules: Sequence[Any], read: Read) -> BindingReport:
        """Bind, and look at some values as well, for matrices that were tied and for square ones that lie otherwise.

        If tensors are missing, the report proposes those of the parameters that theirs were tied to.
        """
        samples, report = Samples.to_check(read), self.bind(rules)
        if not report.ok:
            return self._with_twins(report, rules, samples)
        return _warned(report, self._by_values(report, samples)) if self.embedded else report

    def _by_values(self, report: BindingReport, samples: Samples) -> Iterator[str]:
        yield from broken_mirrors(self.embedded, report.bindings, self._entries, samples)
        values = ValuesOfEmbedded(self.embedded, self._entries, samples)
        yield from turned_squares(self.embedded, report.bindings, values)

    def propose(self, rules: Sequence[Any], read: Read) -> tuple[list[Any], Proposed, BindingReport]:
        """Return a whole rule set, what speaks for the proposed ones of them, and the report it leads to."""
        report, samples = self.bind(rules), Samples.to_propose(read)
        values, twins = ValuesOfEmbedded(self.embedded, self._entries, samples), self._twins(report, samples)
        proposed = propose_for(
            report, self.parameters, self._by_name, self._parsed(rules), self._settled, values, twins
        )
        whole = [*(dict(one.rule) for one in proposed.proposals), *rules]
        return whole, proposed, self.check(whole, read)

    def _with_twins(self, report: BindingReport, rules: Sequence[Any], samples: Samples) -> BindingReport:
        twins = self._twins(report, samples)
        if not twins:
            return report
        known = bind(
            self.parameters, self._by_name, parse_rules(rules), parse_rules(self.defaults), self._settled, twins
        )
        return replace(report, problems=known.problems, proposed=known.proposed)

    def _twins(self, report: BindingReport, samples: Samples) -> dict[str, tuple[Twin, ...]]:
        missing = [one.parameter for one in report.problems if one.kind == "missing" and one.parameter is not None]
        return twins_of(self.embedded, missing, samples)

    def non_finite(self, report: BindingReport) -> dict[str, bool]:
        """Return the tensors that feed parameters and hold NaN or infinities, as far as that was counted.

        Each is True if its infinities are meant, as a mask's are: it has no NaN, and the parameter has as many
        infinities in the definition's own weights.
        """
        counts = {name: NonFinite(nan, inf) for name, nan, inf in self.weights.non_finite or ()}
        found: dict[str, bool] = {}
        for one in report.bindings if counts else ():
            held = {name: counts[name] for name in one.tensors if name in counts}
            own = self.embedded.entries.get(one.parameter)
            own_inf = own.non_finite.inf if own is not None and own.non_finite is not None else 0
            meant = not any(each.nan for each in held.values()) and sum(each.inf for each in held.values()) <= own_inf
            found |= {name: meant and found.get(name, True) for name in held}
        return dict(sorted(found.items()))

    def _non_finite(self, report: BindingReport) -> Iterator[BindingWarning]:
        found = self.non_finite(report)
        for meant in (False, True):
            rows = [row for row in self.weights.non_finite or () if found.get(row[0]) is meant]
            if rows:
                yield BindingWarning(NO_RULE, non_finite_warning(rows, meant=meant))

    @cached_property
    def _entries(self) -> Mapping[str, TensorEntry]:
        return {entry.name: entry for entry in entries_from_json(self.tensors)}

    @cached_property
    def _outlines(self) -> tuple[TensorOutline, ...]:
        return tuple([TensorOutline(row[0], row[1], tuple(row[2])) for row in self.tensors])

    @cached_property
    def _by_name(self) -> Mapping[str, TensorOutline]:
        return {tensor.name: tensor for tensor in self._outlines}

    @cached_property
    def _settled(self) -> Constants:
        equal = [row[0] for row in self.tensors if self.constants.get(row[0]) == row[3]] if self.constants else ()
        return Constants(frozenset(self.constants), frozenset(equal))

    def _parsed(self, rules: Sequence[Any]) -> tuple[Rule, ...]:
        return (*parse_rules(rules), *parse_rules(self.defaults))

    def _unequal(self, report: BindingReport, rules: Sequence[Any]) -> Iterator[BindingWarning]:
        """Yield a warning for each tensor that is ignored as a copy of another and is none."""
        if not report.ignored or not any("equal_to" in rule for rule in (*rules, *self.defaults)):
            return
        entries, fed = self._entries, {one.parameter: one.tensors for one in report.bindings}
        given = len(parse_rules(rules))
        for at, rule in enumerate(self._parsed(rules)):
            if not isinstance(rule, IgnoreRule) or rule.equal_to is None:
                continue
            for name in report.ignored:
                used = fed.get(rule.equal_to, ())
                if rule.tensors.match(name) and len(used) == 1 and entries[name].blake3 != entries[used[0]].blake3:
                    index = rule.index if at < given else NO_RULE
                    yield BindingWarning(index, unequal_warning(name, used[0]))

    def _other_constants(self, report: BindingReport) -> Iterator[BindingWarning]:
        """Yield a warning if tensors are ignored that the definition has as constants of other values."""
        ignored = [name for name in report.ignored if self.constants.get(name) is not None] if self.constants else []
        if differing := [name for name in ignored if name not in self._settled.equal]:
            yield BindingWarning(NO_RULE, ignored_constants(differing))

    def _broken_ties(self, report: BindingReport) -> Iterator[BindingWarning]:
        if report.ok and self.embedded.ties:
            for detail in broken_ties(self.embedded, report.bindings, self._entries):
                yield BindingWarning(NO_RULE, detail)

    def _bind(self, rules: Sequence[Any]) -> BindingReport:
        tensors = self._outlines
        binding = _bound_before if len(tensors) <= MAX_KEPT_TENSORS else _bound
        try:
            return binding(self.parameters, tensors, json.dumps(rules), json.dumps(self.defaults), self._settled)
        except BindingRuleError as error:
            fault = FieldError(f"/rules/{error.index}", error.detail)
            raise Invalid(
                f"Rule {error.index} cannot be used: {error.detail}.", code="bad_rule", errors=[fault]
            ) from error


def _warned(report: BindingReport, details: Iterable[str]) -> BindingReport:
    warnings = tuple([BindingWarning(NO_RULE, detail) for detail in details])
    return replace(report, warnings=report.warnings + warnings) if warnings else report


def load(session: Session, model_id: int, definition: int, version: int) -> Pair:
    """Load what binding needs; NotFound for the definition or the weight version."""
    found = definitions.get_definition(session, model_id, definition)
    weight_version = weights.get_weights(session, model_id, version)
    parameters, rows = definitions.load_parameters(session, found.id), weights.load_rows(session, weight_version.id)
    session.refresh(weight_version, ["non_finite"])  # now that it is known not to be too long
    return Pair(
        found,
        weight_version,
        parameters,
        rows,
        definitions.load_rules(session, found.id),
        _embedded(session, model_id, found),
        digests_of(found.constants),
    )


def _embedded(session: Session, model_id: int, definition: Definition) -> EmbeddedWeights:
    number = definition.weights

    def read() -> EmbeddedWeights:
        if number is None:
            return NONE_EMBEDDED
        version = weights.get_weights(session, model_id, number)
        entries = entries_from_json(weights.load_rows(session, version.id), version.non_finite)
        return EmbeddedWeights({entry.name: entry for entry in entries})

    return remembered(session, "embedded", definition.id, read)


@dataclass(frozen=True, slots=True)
class UnsavedReport:
    """The columns of a binding report, computed before the transaction that records it."""

    digest: str
    text: JsonText

    @classmethod
    def of(cls, report: BindingReport) -> "UnsavedReport":
        """Serialize a report, which takes a while for 100,000 parameters."""
        return cls("sha256:" + hashlib.sha256(report.text.encode()).hexdigest(), JsonText(report.text))


def record(session: Session, unsaved: UnsavedReport) -> int:
    """Return the id of a report's row, which is inserted if there is none of the same text yet."""
    same = select(Binding.id).where(Binding.digest == unsaved.digest)
    found = session.scalar(same)
    if found is None:
        row = {"digest": unsaved.digest, "report": unsaved.text}
        session.execute(insert_into(session, Binding).values(row).on_conflict_do_nothing())  # a twin may be faster
        found = session.scalars(same).one()
    return found


def load_report(session: Session, binding_id: int) -> dict[str, Any]:
    """Return a report as JSON. Give it to `BindingReport.from_json` when the session is over.

    Raises Heavy if it is too long for this process.
    """
    length: ColumnElement[int] = func.length(cast(Binding.report, Text))
    check_size(session, select(length).where(Binding.id == binding_id), MOST_BYTES)
    report: dict[str, Any] = session.execute(select(Binding.report).where(Binding.id == binding_id)).scalar_one()
    return report


class StoredBinding:
    """Which tensors feed which parameter. Use it when the session is over: the first use reads the whole report."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self._bindings = report["bindings"]

    def __len__(self) -> int:
        return len(self._bindings)

    @cached_property
    def parameters(self) -> tuple[ParameterBinding, ...]:
        """The bindings, in the order of the report."""
        return tuple([ParameterBinding.from_json(one) for one in self._bindings])


def load_binding(session: Session, binding_id: int) -> StoredBinding:
    """Return the binding that an engine is made by."""
    return remembered(session, "binding", binding_id, lambda: StoredBinding(load_report(session, binding_id)))


def _bound(
    parameters: tuple[Parameter, ...],
    tensors: tuple[TensorOutline, ...],
    rules: str,
    defaults: str,
    constants: Constants,
) -> BindingReport:
    by_name = {tensor.name: tensor for tensor in tensors}
    return bind(parameters, by_name, parse_rules(json.loads(rules)), parse_rules(json.loads(defaults)), constants)


_bound_before = lru_cache(KEPT_REPORTS)(_bound)
