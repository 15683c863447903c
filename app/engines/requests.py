"""Turning a request into a job: whatever can be refused without a device is refused here."""

from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.service import require
from app.engines.catalogue import INPUTS, find_equal, find_example, find_parent, get_engine
from app.engines.offers import Fleet, choose_backend, fleet_offers
from app.engines.orders import Order, settle, settle_refit
from app.engines.schemas import (
    BuildRequest,
    EngineRequest,
    RefitRequest,
    RunRequest,
    VerifyChoice,
    VerifyRequest,
)
from app.engines.tables import Engine
from app.errors import NotFound
from app.jobs import events
from app.jobs import service as jobs
from app.jobs.queue import queue_of
from app.jobs.tables import Job
from app.registry.service import get_model
from app.registry.tables import Model
from app.settings import Settings


def request_build(session: Session, settings: Settings, model: str, body: BuildRequest) -> Job:
    """Queue a build, or answer with a finished job where an equal engine exists and may be reused."""
    owner = get_model(session, model)
    fleet = fleet_offers(session, settings)
    order = settle(
        session,
        owner,
        fleet,
        definition=body.definition,
        weights=body.weights,
        backend=body.backend,
        profiles=body.profiles,
        options=body.options,
        rules=body.rules,
    )
    request = _build_request(order, body.verify, reuse=body.reuse)
    equal = _equal(session, fleet, order) if body.reuse else None
    if equal is not None:
        return _reuse(session, "build", order, request, equal)
    return _queue(session, fleet, "build", owner, order.backend, request)


def request_refit(session: Session, settings: Settings, model: str, body: RefitRequest) -> Job:
    """Queue a refit, or answer with a finished job where an equal engine exists and may be reused."""
    owner = get_model(session, model)
    parent = get_engine(session, owner.id, body.engine, load=INPUTS)
    fleet = fleet_offers(session, settings)
    order = settle_refit(session, owner, parent, body.weights)
    request = _refit_request(order, parent, body.verify, reuse=body.reuse)
    equal = _equal(session, fleet, order) if body.reuse else None
    if equal is not None:
        return _reuse(session, "refit", order, request, equal)
    return _queue(session, fleet, "refit", owner, order.backend, request, needs=parent.backend_version)


def request_engine(session: Session, settings: Settings, model: str, body: EngineRequest) -> Job:
    """Get an engine for these weights by the cheapest way there is.

    An equal engine is reused; else the newest engine of the same recipe that the fleet can load is
    refitted; else one is built. The job's kind, its event "chosen" and its result's `method` say which.
    """
    owner = get_model(session, model)
    fleet = fleet_offers(session, settings)
    order = _wanted(session, owner, fleet, body)
    request = _build_request(order, body.verify, reuse=True)
    equal = _equal(session, fleet, order)
    if equal is not None:
        return _reuse(session, "build", order, request, equal)
    parent = find_parent(session, owner.id, order.recipe, _versions(fleet, order.backend))
    if parent is None:
        job = _queue(session, fleet, "build", owner, order.backend, request)
    else:
        request = _refit_request(order, parent, body.verify, reuse=True)
        job = _queue(session, fleet, "refit", owner, order.backend, request, needs=parent.backend_version)
    events.append(session, job.id, "chosen", {"method": job.kind, "parent": parent.number if parent else None})
    return job


def request_run(session: Session, settings: Settings, model: str, body: RunRequest) -> Job:
    """Queue a run of an engine on an uploaded safetensors file."""
    owner = get_model(session, model)
    engine = get_engine(session, owner.id, body.engine)
    require(session, body.inputs, "/inputs")
    request = {"engine_id": engine.id, "inputs": body.inputs, "backend": engine.backend}
    fleet = fleet_offers(session, settings)
    return _queue(session, fleet, "run", owner, engine.backend, request, needs=engine.backend_version)


def request_verify(session: Session, settings: Settings, model: str, number: int, body: VerifyRequest) -> Job:
    """Queue another verification of an engine that is published already."""
    owner = get_model(session, model)
    engine = get_engine(session, owner.id, number)
    request = {"engine_id": engine.id, "verify": {"against": body.against}}
    fleet = fleet_offers(session, settings)
    return _queue(session, fleet, "verify", owner, engine.backend, request, needs=engine.backend_version)


def _wanted(session: Session, model: Model, fleet: Fleet, body: EngineRequest) -> Order:
    """Settle an order in which what was left out is as in the newest engine of the same definition."""
    definition = body.definition or model.last_definition
    if definition == 0:
        raise NotFound(
            f"Model '{model.name}' has no definition yet. Make one with POST /v1/models/{model.name}/definitions.",
            code="definition_not_found",
        )
    backend = choose_backend(fleet, body.backend)
    example = find_example(session, model.id, definition, backend)
    return settle(
        session,
        model,
        fleet,
        definition=definition,
        weights=body.weights,
        backend=backend,
        profiles=_given(body.profiles, example.profiles if example else []),
        options=_given(body.options, example.options if example else {}),
        rules=_given(body.rules, example.rules if example else []),
    )


def _given(value: Any | None, otherwise: Any) -> Any:  # noqa: ANN401 - whatever JSON the field holds
    return otherwise if value is None else value


def _build_request(order: Order, verify: VerifyChoice, *, reuse: bool) -> dict[str, Any]:
    return {
        "definition_id": order.definition.id,
        "weights_id": order.weights.id,
        "backend": order.backend,
        "profiles": order.profiles,
        "options": dict(order.options),
        "rules": list(order.rules),
        "binding": order.report.to_json(),
        "fingerprint": order.fingerprint,
        "verify": verify.model_dump(),
        "reuse": reuse,
    }


def _refit_request(order: Order, parent: Engine, verify: VerifyChoice, *, reuse: bool) -> dict[str, Any]:
    return {
        "parent_id": parent.id,
        "weights_id": order.weights.id,
        "rules": list(order.rules),
        "binding": order.report.to_json(),
        "fingerprint": order.fingerprint,
        "verify": verify.model_dump(),
        "reuse": reuse,
    }


def _versions(fleet: Fleet, backend: str) -> frozenset[str]:
    return fleet[backend].versions if backend in fleet else frozenset()


def _equal(session: Session, fleet: Fleet, order: Order) -> Engine | None:
    versions = _versions(fleet, order.backend)
    return find_equal(session, order.model.id, order.fingerprint, backend_versions=versions)


def _reuse(session: Session, kind: str, order: Order, request: dict[str, Any], equal: Engine) -> Job:
    return jobs.create_finished(
        session,
        kind=kind,
        model_id=order.model.id,
        queue=queue_of(order.backend),
        request=request,
        result={"engine": equal.number, "reused": True, "method": "reuse"},
    )


def _queue(
    session: Session,
    fleet: Fleet,
    kind: str,
    model: Model,
    backend: str,
    request: dict[str, Any],
    *,
    needs: str | None = None,
) -> Job:
    """Queue the job; where the fleet of the moment does not have what it needs, an event says so."""
    job = jobs.create(session, kind=kind, model_id=model.id, queue=queue_of(backend), request=request)
    versions = _versions(fleet, backend)
    if not versions:
        detail = f"No worker alive offers '{backend}'; the job waits for one. GET /v1/workers lists those alive."
        events.append(session, job.id, "no_worker", {"backend": backend, "detail": detail})
    elif needs is not None and needs not in versions:
        detail = f"The engine is of {backend} {needs}; alive are {', '.join(sorted(versions))}."
        events.append(session, job.id, "other_backend_version", {"backend": backend, "detail": detail})
    return job
