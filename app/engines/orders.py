"""What a request asks for, checked and settled as far as that goes without a device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.bindings import service as bindings
from app.bindings.report import BindingReport
from app.definitions import service as definitions
from app.definitions.profiles import parse_profiles, to_json
from app.definitions.tables import Definition
from app.engines import fingerprint as digests
from app.engines.offers import Fleet, choose_backend, settle_options
from app.engines.tables import Engine
from app.errors import FieldError, Invalid
from app.registry.tables import Model
from app.weights.tables import WeightVersion

MAX_FAULTS = 1000


@dataclass(frozen=True, slots=True)
class Order:
    """An engine that can be made as far as can be told: every part exists and the weights bind."""

    model: Model
    definition: Definition
    weights: WeightVersion
    backend: str
    profiles: list[Any]
    options: Mapping[str, Any]
    rules: Sequence[Any]
    report: BindingReport

    @property
    def fingerprint(self) -> str:
        """Equal for orders of engines that compute the same."""
        return digests.fingerprint(
            definition_digest=self.definition.digest,
            weights_digest=self.weights.digest,
            binding_digest=self.report.digest,
            backend=self.backend,
            profiles=self.profiles,
            options=self.options,
        )

    @property
    def recipe(self) -> str:
        """Equal for orders that differ in their weights at most."""
        return digests.recipe(
            definition_digest=self.definition.digest,
            backend=self.backend,
            profiles=self.profiles,
            options=self.options,
            rules=self.rules,
        )


def settle(
    session: Session,
    model: Model,
    fleet: Fleet,
    *,
    definition: int,
    weights: int,
    backend: str | None,
    profiles: Sequence[Any],
    options: Mapping[str, Any],
    rules: Sequence[Any],
) -> Order:
    """Check everything a build needs; NotFound, or Invalid with a pointer to each fault."""
    pair = bindings.load(session, model.id, definition, weights)
    chosen = choose_backend(fleet, backend)
    settled = settle_options(fleet, chosen, options)
    shapes = to_json(parse_profiles(profiles, definitions.inputs_of(pair.definition)))
    return _bound(model, pair, chosen, shapes, settled, rules)


def settle_refit(session: Session, model: Model, parent: Engine, weights: int) -> Order:
    """Check everything a refit needs; NotFound for the weights, Invalid where it cannot be done.

    The parent was loaded with its profiles, options and rules, and what was accepted for it is not checked again.
    """
    if not parent.refittable:
        raise Invalid(
            f"Engine {parent.number} cannot be refitted. Build one that can with POST …/builds, or let the "
            "service choose the way with POST …/engines.",
            code="engine_not_refittable",
            errors=[FieldError("/engine", "not refittable")],
        )
    pair = bindings.load(session, model.id, parent.definition, weights)
    return _bound(model, pair, parent.backend, parent.profiles, parent.options, parent.rules)


def _bound(
    model: Model,
    pair: bindings.Pair,
    backend: str,
    profiles: list[Any],
    options: Mapping[str, Any],
    rules: Sequence[Any],
) -> Order:
    report = pair.bind(rules)
    if not report.ok:
        raise _binding_failed(model, pair, report)
    return Order(model, pair.definition, pair.weights, backend, profiles, options, rules, report)


def _binding_failed(model: Model, pair: bindings.Pair, report: BindingReport) -> Invalid:
    count = len(report.problems)
    shown = f"; the first {MAX_FAULTS} are listed" if count > MAX_FAULTS else ""
    return Invalid(
        f"Weights {pair.weights.version} do not bind to definition {pair.definition.version}: {count} "
        f"problem{'' if count == 1 else 's'}{shown}. POST /v1/models/{model.name}/bindings/check answers the whole "
        "report and lets you try rules until it is ok.",
        code="binding_failed",
        errors=[FieldError("/weights", problem.detail) for problem in report.problems[:MAX_FAULTS]],
    )
