"""Making an engine known."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts.service import keep
from app.definitions.tables import Definition
from app.engines.fingerprint import recipe
from app.engines.tables import Engine
from app.registry.service import next_number
from app.weights.tables import WeightVersion


def publish_engine(
    session: Session,
    *,
    model_id: int,
    method: Literal["build", "refit"],
    parent: int | None,
    definition_id: int,
    weights_id: int,
    backend: str,
    backend_version: str,
    device: str,
    profiles: Sequence[Any],
    options: Mapping[str, Any],
    rules: Sequence[Any],
    binding: Mapping[str, Any],
    fingerprint: str,
    plan_digest: str,
    plan_bytes: int,
    plan_signature: str,
    verification: Mapping[str, Any],
    facts: Mapping[str, Any],
    timings: Mapping[str, Any],
    job_id: str,
) -> Engine:
    """Insert an engine under the model's next number and keep its plan.

    For the transaction that also finishes the job; the plan's blob must be recorded already. `parent` is the
    number of the engine it was refitted from. `facts["refittable"]` says whether it can be refitted in its
    turn, and counts as true where it is missing. `profiles`, `options`, `rules` and `binding` are those of
    the job's request, for a refit those of the parent.
    """
    definition, digest = session.execute(
        select(Definition.version, Definition.digest).where(Definition.id == definition_id)
    ).one()
    weights = session.execute(select(WeightVersion.version).where(WeightVersion.id == weights_id)).scalar_one()
    engine = Engine(
        model_id=model_id,
        number=next_number(session, model_id, "engine"),
        method=method,
        parent=parent,
        definition_id=definition_id,
        definition=definition,
        weights_id=weights_id,
        weights=weights,
        backend=backend,
        backend_version=backend_version,
        device=device,
        fingerprint=fingerprint,
        recipe=recipe(definition_digest=digest, backend=backend, profiles=profiles, options=options, rules=rules),
        refittable=bool(facts.get("refittable", True)),
        plan_digest=plan_digest,
        plan_bytes=plan_bytes,
        plan_signature=plan_signature,
        job_id=job_id,
        profiles=list(profiles),
        options=dict(options),
        rules=list(rules),
        binding=dict(binding),
        verification=dict(verification),
        facts={**facts, "service_version": version("enginesmith")},
        timings=dict(timings),
    )
    session.add(engine)
    session.flush()
    keep(session, plan_digest, f"engine:{engine.id}")
    return engine
