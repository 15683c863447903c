"""Checking bindings against stored definitions and weight versions, and keeping those that engines are made by."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.bindings.binding import bind
from app.bindings.report import BindingReport, ParameterBinding
from app.bindings.rules import BindingRuleError, parse_rules
from app.bindings.tables import Binding
from app.database import JsonText, insert_into
from app.definitions import service as definitions
from app.definitions.parameter import Parameter
from app.definitions.tables import Definition
from app.errors import FieldError, Invalid
from app.remembered import remembered
from app.weights import service as weights
from app.weights.tables import WeightVersion

KEPT_REPORTS = 16
MAX_KEPT_TENSORS = 10_000  # of a weight version whose report is kept: some megabytes


class TensorOutline(NamedTuple):
    """The part of a checkpoint tensor that binding looks at."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A definition and the weights to bind to it, loaded, so that binding needs no session.

    `tensors` are rows for `Manifest.from_json`.
    """

    definition: Definition
    weights: WeightVersion
    parameters: tuple[Parameter, ...]
    tensors: list[Any]
    defaults: tuple[Any, ...]

    def bind(self, rules: Sequence[Any]) -> BindingReport:
        """Bind by these rules, then by the definition's own; Invalid "bad_rule" for one that cannot be used.

        Two versions of one model rarely differ in what binding looks at, so the last reports are kept.
        """
        tensors = tuple([TensorOutline(row[0], row[1], tuple(row[2])) for row in self.tensors])
        binding = _bound_before if len(tensors) <= MAX_KEPT_TENSORS else _bound
        try:
            return binding(self.parameters, tensors, json.dumps(rules), json.dumps(self.defaults))
        except BindingRuleError as error:
            fault = FieldError(f"/rules/{error.index}", error.detail)
            raise Invalid(
                f"Rule {error.index} cannot be used: {error.detail}.", code="bad_rule", errors=[fault]
            ) from error


def load(session: Session, model_id: int, definition: int, version: int) -> Pair:
    """Load what binding needs; NotFound for the definition or the weight version."""
    found = definitions.get_definition(session, model_id, definition)
    weight_version = weights.get_weights(session, model_id, version)
    return Pair(
        found,
        weight_version,
        definitions.load_parameters(session, found.id),
        weights.load_rows(session, weight_version.id),
        definitions.load_rules(session, found.id),
    )


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
    """Return a report as JSON. Give it to `BindingReport.from_json` when the session is over."""
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
    parameters: tuple[Parameter, ...], tensors: tuple[TensorOutline, ...], rules: str, defaults: str
) -> BindingReport:
    by_name = {tensor.name: tensor for tensor in tensors}
    return bind(parameters, by_name, parse_rules(json.loads(rules)), parse_rules(json.loads(defaults)))


_bound_before = lru_cache(KEPT_REPORTS)(_bound)
