"""Making an engine known."""

from importlib.metadata import version
from typing import Any, Literal, TypedDict, Unpack

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts.service import keep
from app.definitions.tables import Definition
from app.engines.fingerprint import recipe
from app.engines.tables import Engine
from app.registry.service import next_number
from app.weights.tables import WeightVersion


class NewEngine(TypedDict):
    """What a worker knows of the engine it made.

    `parent` is the number of the engine it was refitted from. `profiles`, `options`, `rules` and `binding` are
    those of the job's request, where it has them not those of the parent. `facts["refittable"]` says whether it
    can be refitted in its turn, and counts as true where it is missing; `timings` are seconds by phase.
    """

    model_id: int
    method: Literal["build", "refit"]
    parent: int | None
    definition_id: int
    weights_id: int
    backend: str
    backend_version: str
    device: str
    profiles: list[Any]
    options: dict[str, Any]
    rules: list[Any]
    binding: dict[str, Any]
    fingerprint: str
    plan_digest: str
    plan_bytes: int
    plan_signature: str
    verification: dict[str, Any]
    facts: dict[str, Any]
    timings: dict[str, Any]
    job_id: str


def publish_engine(session: Session, **made: Unpack[NewEngine]) -> Engine:
    """Insert an engine under its model's next number and keep its plan.

    For the transaction that also finishes the job; the plan's blob must be recorded already.
    """
    statement = select(Definition.version, Definition.digest).where(Definition.id == made["definition_id"])
    definition, digest = session.execute(statement).one()
    made["facts"] = {**made["facts"], "service_version": version("enginesmith")}
    engine = Engine(
        **made,
        number=next_number(session, made["model_id"], "engine"),
        definition=definition,
        weights=session.get_one(WeightVersion, made["weights_id"]).version,
        recipe=recipe(
            definition_digest=digest,
            backend=made["backend"],
            profiles=made["profiles"],
            options=made["options"],
            rules=made["rules"],
        ),
        refittable=bool(made["facts"].get("refittable", True)),
    )
    session.add(engine)
    session.flush()
    keep(session, made["plan_digest"], f"engine:{engine.id}")
    return engine
