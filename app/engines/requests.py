"""Turning a request into a job: whatever can be refused without a device is refused here.

Each of these reads what it needs in a short session of its own, checks and computes with none open, and returns
what is left to do in the transaction that makes the job.
"""

from typing import Any

from sqlalchemy.orm import Session

from app.bindings import service as bindings
from app.database import Database
from app.engines.catalogue import INPUTS, find_example, get_engine
from app.engines.offers import choose_backend, fleet_offers, versions_alive
from app.engines.orders import settle, settle_refit
from app.engines.placements import CheapestWay, QueuedJob, ReuseFirst, RunOnBlob, build_job, refit_job
from app.engines.schemas import BuildRequest, EngineRequest, RefitRequest, RunRequest, VerifyRequest
from app.engines.tables import Engine
from app.errors import NotFound
from app.jobs.service import Place
from app.registry.service import get_model
from app.registry.tables import Model
from app.settings import Settings


def request_build(database: Database, settings: Settings, model: str, body: BuildRequest) -> Place:
    """Queue a build, or answer with a finished job where an equal engine exists and may be reused."""
    with database.reading() as session:
        owner = get_model(session, model)
        fleet = fleet_offers(session, settings)
        pair = bindings.load(session, owner.id, body.definition, body.weights)
    order = settle(
        owner,
        pair,
        fleet,
        backend=choose_backend(fleet, body.backend),
        profiles=body.profiles,
        options=body.options,
        rules=body.rules,
    )
    job = build_job(order, body.verify, reuse=body.reuse)
    return ReuseFirst(order, job) if body.reuse else job


def request_refit(database: Database, settings: Settings, model: str, body: RefitRequest) -> Place:
    """Queue a refit, or answer with a finished job where an equal engine exists and may be reused."""
    with database.reading() as session:
        owner = get_model(session, model)
        fleet = fleet_offers(session, settings)
        parent = get_engine(session, owner.id, body.engine, load=INPUTS)
        pair = bindings.load(session, owner.id, parent.definition, body.weights)
    order = settle_refit(owner, pair, fleet, parent)
    job = refit_job(order, parent, body.verify, reuse=body.reuse)
    return ReuseFirst(order, job) if body.reuse else job


def request_engine(database: Database, settings: Settings, model: str, body: EngineRequest) -> Place:
    """Get an engine for these weights by the cheapest way there is.

    What the request leaves out is as in the newest engine of the same definition and backend.
    """
    with database.reading() as session:
        owner = get_model(session, model)
        fleet = fleet_offers(session, settings)
        backend = choose_backend(fleet, body.backend)
        definition = body.definition or _newest_definition(owner)
        example = find_example(session, owner.id, definition, backend)
        pair = bindings.load(session, owner.id, definition, body.weights)
    order = settle(
        owner,
        pair,
        fleet,
        backend=backend,
        profiles=_given(body.profiles, example.profiles if example else []),
        options=_given(body.options, example.options if example else {}),
        rules=_given(body.rules, example.rules if example else []),
    )
    return CheapestWay(order, body.verify)


def request_run(database: Database, settings: Settings, model: str, body: RunRequest) -> Place:
    """Queue a run of an engine on an uploaded safetensors file."""
    with database.reading() as session:
        engine, versions = _engine(session, settings, model, body.engine)
    request = {"engine_id": engine.id, "inputs": body.inputs, "backend": engine.backend}
    job = QueuedJob("run", engine.model_id, engine.backend, versions, request, engine.backend_version)
    return RunOnBlob(job, body.inputs)


def request_verify(database: Database, settings: Settings, model: str, number: int, body: VerifyRequest) -> Place:
    """Queue another verification of an engine that is published already."""
    with database.reading() as session:
        engine, versions = _engine(session, settings, model, number)
    request = {"engine_id": engine.id, "verify": {"against": body.against}}
    return QueuedJob("verify", engine.model_id, engine.backend, versions, request, engine.backend_version)


def _engine(session: Session, settings: Settings, model: str, number: int) -> tuple[Engine, frozenset[str]]:
    """Return an engine and the versions of its backend that are alive."""
    engine = get_engine(session, get_model(session, model).id, number)
    return engine, versions_alive(fleet_offers(session, settings), engine.backend)


def _newest_definition(model: Model) -> int:
    if model.last_definition == 0:
        raise NotFound(
            f"Model '{model.name}' has no definition yet. Make one with POST /v1/models/{model.name}/definitions.",
            code="definition_not_found",
        )
    return model.last_definition


def _given(value: Any | None, otherwise: Any) -> Any:  # noqa: ANN401 - whatever JSON the field holds
    return otherwise if value is None else value
