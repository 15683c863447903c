"""What a request asks for, checked and settled as far as that goes without a device.

Nothing here needs a session: binding alone may take seconds, and the database is not to wait for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.bindings.report import BindingReport
from app.bindings.service import Pair
from app.definitions.profiles import parse_profiles, to_json
from app.definitions.service import inputs_of
from app.engines import fingerprint as digests
from app.engines.offers import Fleet, settle_options, versions_alive
from app.engines.tables import Engine
from app.errors import FieldError, Invalid
from app.registry.tables import Model

MAX_FAULTS = 1000


@dataclass(frozen=True, slots=True)
class Order:
    """An engine that can be made as far as can be told: every part exists and the weights bind.

    `versions` are those of the backend that are alive and `binding` is the binding report. The fingerprint is
    equal for engines that compute the same, the recipe for engines that differ in their weights at most.
    """

    model_id: int
    definition_id: int
    weights_id: int
    backend: str
    versions: frozenset[str]
    profiles: Sequence[Any]
    options: Mapping[str, Any]
    rules: Sequence[Any]
    binding: Mapping[str, Any]
    fingerprint: str
    recipe: str


def settle(
    model: Model,
    pair: Pair,
    fleet: Fleet,
    *,
    backend: str,
    profiles: Sequence[Any],
    options: Mapping[str, Any],
    rules: Sequence[Any],
) -> Order:
    """Check everything a build needs; Invalid with a pointer to each fault."""
    settled = settle_options(fleet, backend, options)
    shapes = to_json(parse_profiles(profiles, inputs_of(pair.definition)))
    return _bound(model, pair, fleet, backend=backend, profiles=shapes, options=settled, rules=rules)


def settle_refit(model: Model, pair: Pair, fleet: Fleet, parent: Engine) -> Order:
    """Check everything a refit needs; Invalid where it cannot be done.

    The parent was loaded with its profiles, options and rules, and what was accepted for it is not checked again.
    """
    if not parent.refittable:
        raise Invalid(
            f"Engine {parent.number} cannot be refitted. Build one that can with POST …/builds, or let the "
            "service choose the way with POST …/engines.",
            code="engine_not_refittable",
            errors=[FieldError("/engine", "not refittable")],
        )
    return _bound(
        model,
        pair,
        fleet,
        backend=parent.backend,
        profiles=parent.profiles,
        options=parent.options,
        rules=parent.rules,
    )


def _bound(
    model: Model,
    pair: Pair,
    fleet: Fleet,
    *,
    backend: str,
    profiles: Sequence[Any],
    options: Mapping[str, Any],
    rules: Sequence[Any],
) -> Order:
    report = pair.bind(rules)
    if not report.ok:
        raise _binding_failed(model, pair, report)
    digest = pair.definition.digest
    return Order(
        model_id=model.id,
        definition_id=pair.definition.id,
        weights_id=pair.weights.id,
        backend=backend,
        versions=versions_alive(fleet, backend),
        profiles=profiles,
        options=options,
        rules=rules,
        binding=report.to_json(),
        fingerprint=digests.fingerprint(
            definition_digest=digest,
            weights_digest=pair.weights.digest,
            binding_digest=report.digest,
            backend=backend,
            profiles=profiles,
            options=options,
        ),
        recipe=digests.recipe(
            definition_digest=digest, backend=backend, profiles=profiles, options=options, rules=rules
        ),
    )


def _binding_failed(model: Model, pair: Pair, report: BindingReport) -> Invalid:
    count = len(report.problems)
    shown = f"; the first {MAX_FAULTS} are listed" if count > MAX_FAULTS else ""
    return Invalid(
        f"Weights {pair.weights.version} do not bind to definition {pair.definition.version}: {count} "
        f"problem{'' if count == 1 else 's'}{shown}. POST /v1/models/{model.name}/bindings/check answers the whole "
        "report and lets you try rules until it is ok.",
        code="binding_failed",
        errors=[FieldError("/weights", problem.detail) for problem in report.problems[:MAX_FAULTS]],
    )
