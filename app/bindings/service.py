"""Checking bindings against stored definitions and weight versions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.bindings.binding import bind
from app.bindings.report import BindingReport
from app.bindings.rules import BindingRuleError, parse_rules
from app.definitions import service as definitions
from app.definitions.parameter import Parameter
from app.definitions.tables import Definition
from app.errors import FieldError, Invalid
from app.weights import service as weights
from app.weights.manifest import Manifest
from app.weights.tables import WeightVersion


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
        """Bind by these rules, then by the definition's own; Invalid "bad_rule" for one that cannot be used."""
        try:
            tensors = Manifest.from_json(self.tensors).tensors
            return bind(self.parameters, tensors, parse_rules(rules), parse_rules(self.defaults))
        except BindingRuleError as error:
            fault = FieldError(f"/rules/{error.index}", error.detail)
            raise Invalid(
                f"Rule {error.index} cannot be used: {error.detail}.", code="bad_rule", errors=[fault]
            ) from error


def load(session: Session, model_id: int, definition: int, version: int) -> Pair:
    """Load what binding needs; NotFound for the definition or the weight version."""
    found = definitions.get_definition(session, model_id, definition, load=definitions.BINDING)
    weight_version = weights.get_weights(session, model_id, version, load=weights.MANIFEST)
    return Pair(found, weight_version, definitions.parameters_of(found), weight_version.manifest, tuple(found.rules))
