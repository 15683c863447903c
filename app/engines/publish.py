"""Writing the rows of a new engine and of its plan."""

from functools import cache
from importlib.metadata import version
from typing import Any, Literal, NotRequired, TypedDict, Unpack

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session, undefer

from app.artifacts.service import keep
from app.artifacts.signing import FORM
from app.definitions.tables import Definition
from app.engines.facts import EngineFacts
from app.engines.fingerprint import recipe
from app.engines.strength import is_worth_keeping
from app.engines.tables import Engine
from app.registry.service import next_number
from app.remembered import remembered
from app.weights.tables import WeightVersion

INSERT = insert(Engine).returning(Engine.id)


class EngineRow(TypedDict):
    """The facts of the engine that a worker has made.

    `parent` is the number of the engine it was refitted from. `platform` names the machines on which its plan works.
    `root_plan` is the digest of the compiled plan: the engine's own, or that of its first ancestor. Either the plan
    is given, or `base_id`: until the engine has a plan of its own, it is loaded from the plan of that materialised
    engine. `profiles`, `options`, `rules` and `binding_id` come from the job's work, or from the parent if the work
    has none. `timings` are seconds by stage. `device_fingerprint` is {"digest", "facts", "to_load"} of the device for
    which it was compiled.
    """

    model_id: int
    method: Literal["build", "refit"]
    parent: int | None
    definition_id: int
    weights_id: int
    backend: str
    backend_version: str
    device: str
    platform: str
    profiles: list[Any]
    options: dict[str, Any]
    rules: list[Any]
    binding_id: int
    fingerprint: str
    root_plan: str
    plan_digest: NotRequired[str | None]
    plan_bytes: NotRequired[int | None]
    plan_signature: NotRequired[str | None]
    base_id: NotRequired[int | None]
    verification: dict[str, Any]
    facts: EngineFacts
    timings: dict[str, Any]
    device_fingerprint: NotRequired[dict[str, Any] | None]
    job_id: str


def publish_engine(session: Session, **made: Unpack[EngineRow]) -> int:
    """Insert an engine under its model's next number, keep its plan if it has one, and return the number.

    For the transaction that also finishes the job. The plan's blob must be recorded already.
    """
    definition, digest = _definition(session, made["definition_id"])
    number = next_number(session, made["model_id"], "engine")
    row = {
        **made,
        "facts": made["facts"].told(service_version=_service_version()).to_json(),
        "number": number,
        "definition": definition,
        "weights": _weights(session, made["weights_id"]),
        "recipe": recipe(
            definition_digest=digest,
            backend=made["backend"],
            profiles=made["profiles"],
            options=made["options"],
        ),
        "refittable": made["facts"].refittable,
        "signature_form": FORM,
    }
    engine_id = session.connection().execute(INSERT, row).scalar_one()
    plan = made.get("plan_digest")
    if plan is not None:
        keep(session, plan, _owner(engine_id))
    return number


def publish_plan(session: Session, engine_id: int, *, digest: str, nbytes: int, signature: str) -> Engine:
    """Give an engine its plan, and return the engine; if it has a plan by now, it stays as it is.

    For the transaction that also finishes the job. The plan's blob must be recorded already.
    """
    statement = (
        update(Engine)
        .where(Engine.id == engine_id, Engine.plan_digest.is_(None))
        .values(plan_digest=digest, plan_bytes=nbytes, plan_signature=signature, signature_form=FORM, base_id=None)
        .returning(Engine.id)
        .execution_options(synchronize_session=False)
    )
    if session.scalar(statement) is not None:
        keep(session, digest, _owner(engine_id))
    return session.get_one(Engine, engine_id, populate_existing=True)


def record_verification(session: Session, engine_id: int, figures: dict[str, Any]) -> None:
    """Have an engine's row tell of a verification that it failed, or that is as strong as the one the row tells of."""
    statement = select(Engine).where(Engine.id == engine_id).options(undefer(Engine.verification)).with_for_update()
    engine = session.scalars(statement.execution_options(populate_existing=True)).one()
    if is_worth_keeping(figures, engine.verification):
        engine.verification = figures


def _definition(session: Session, definition_id: int) -> tuple[int, str]:
    """Return a definition's number and digest."""

    def read() -> tuple[int, str]:
        row = select(Definition.version, Definition.digest).where(Definition.id == definition_id)
        version, digest = session.execute(row).one()
        return version, digest

    return remembered(session, "definition's number", definition_id, read)


def _weights(session: Session, weights_id: int) -> int:
    """Return a weight version's number."""

    def read() -> int:
        return session.scalars(select(WeightVersion.version).where(WeightVersion.id == weights_id)).one()

    return remembered(session, "weights' number", weights_id, read)


@cache
def _service_version() -> str:
    return version("enginesmith")


def _owner(engine_id: int) -> str:
    return f"engine:{engine_id}"
