"""Turns a request into a placement.

Each function reads the rows in short sessions of its own. With no session open it calls the checks (checks.py,
benchmarks.py). It returns the placement (enqueue.py), which later makes the job in one transaction.
"""

from dataclasses import replace
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.store import ArtifactStore
from app.bindings import service as bindings
from app.bindings.report import BindingReport
from app.bindings.service import Pair
from app.database import Database
from app.definitions.service import get_definition, inputs_of, newest_definition
from app.engines.benchmarks import settle_benchmark
from app.engines.checks import Order, parameters_out_of_reach, settle, settle_refit, settle_verify
from app.engines.crashes import avoid_crashes
from app.engines.enqueue import (
    CheapestPlacement,
    EnginePlacement,
    MaterialisePlacement,
    RunPlacement,
    VerifyPlacement,
    loadable_engines,
    on_engine,
)
from app.engines.facts import read_facts
from app.engines.own_weights import weights_of_definition
from app.engines.queries import INPUTS, find_example, find_roots, get_engine, load_values
from app.engines.schemas import BenchmarkRequest, BuildRequest, EngineRequest, RefitRequest, RunRequest, VerifyRequest
from app.engines.tables import Engine, VerificationDefault
from app.engines.targets import Target, choose_target
from app.engines.verifications import find_default, settle_verification
from app.engines.work import RunWork, VerifyWork
from app.errors import Conflict
from app.fleet.offers import Offer, fleet_offers
from app.fleet.refit_patterns import RefitPatterns
from app.jobs.submission import Placement
from app.registry.service import get_model
from app.settings import Settings

MAX_ROOTS = 8  # the most root plans that are compared with new weights before an engine is compiled


def request_build(
    database: Database, store: ArtifactStore, settings: Settings, model: str, body: BuildRequest
) -> Placement:
    """Check a request to build.

    Return the placement that queues the build, or that records a finished job if an equal engine may be reused.
    """
    order, default = order_build(database, store, settings, model, body)
    order, crash = spare_crashing(database, order, retry=body.retry_crashed)
    verify = settle_verify(body.verify, order.target, default)
    return EnginePlacement(order, verify, reuse=body.reuse, crash=crash, retry_crashed=body.retry_crashed)


def order_build(
    database: Database, store: ArtifactStore, settings: Settings, model: str, body: BuildRequest
) -> tuple[Order, VerificationDefault | None]:
    """Check all of a request to build but its verification; return its order and the definition's own verification."""
    weights = body.weights or weights_of_definition(database, model, body.definition)
    with database.reading() as session:
        model_row = get_model(session, model)
        fleet = fleet_offers(session, settings)
        pair = bindings.load(session, model_row.id, body.definition, weights)
        default = find_default(session, pair.definition.id)
    target = choose_target(fleet, body.backend, body.device)
    order, _ = settle(
        model_row,
        pair,
        target,
        store,
        profiles=body.profiles,
        options=body.options,
        rules=body.rules,
        allow_non_finite=body.allow_non_finite,
    )
    return order, default


def request_refit(
    database: Database, store: ArtifactStore, settings: Settings, model: str, body: RefitRequest
) -> Placement:
    """Check a request to refit.

    Return the placement that queues the refit, or that records a finished job if an equal engine may be reused.
    """
    with database.reading() as session:
        model_row = get_model(session, model)
        parent = get_engine(session, model_row.id, body.engine, load=(*INPUTS, Engine.facts))
        target = Target(parent.backend, _offer(session, settings, parent))
        pair = bindings.load(session, model_row.id, parent.definition, body.weights)
        may_be_fixed = RefitPatterns.given(parent.options) or read_facts(parent.facts).fixed_parameters
        held = load_values(session, parent.id) if may_be_fixed else None
        default = find_default(session, parent.definition_id)
    order = settle_refit(
        model_row,
        pair,
        target,
        parent,
        store,
        rules=body.rules,
        allow_non_finite=body.allow_non_finite,
        held=held,
    )
    return EnginePlacement(order, settle_verification(body.verify, default), parent, body.materialise, body.reuse)


def request_engine(
    database: Database, store: ArtifactStore, settings: Settings, model: str, body: EngineRequest
) -> Placement:
    """Check a request for an engine with these weights, and return the placement that reuses, refits or builds one.

    Profiles, options and rules that the request leaves out are those of the newest engine of the same definition and
    backend.
    """
    weights = body.weights or weights_of_definition(database, model, body.definition)
    with database.reading() as session:
        model_row = get_model(session, model)
        fleet = fleet_offers(session, settings)
        target = choose_target(fleet, body.backend, body.device)
        definition = body.definition or newest_definition(model_row)
        example = find_example(session, model_row.id, definition, target.backend)
        pair = bindings.load(session, model_row.id, definition, weights)
        default = find_default(session, pair.definition.id)
    order, report = settle(
        model_row,
        pair,
        target,
        store,
        profiles=_given(body.profiles, example.profiles if example else []),
        options=_given(body.options, example.options if example else {}),
        rules=_given(body.rules, example.rules if example else []),
        allow_non_finite=body.allow_non_finite,
    )
    order, crash = spare_crashing(database, order, retry=body.retry_crashed)
    verify = settle_verify(body.verify, order.target, default)
    roots = _root_plans(database, order, report, pair)
    return CheapestPlacement(order, verify, body.materialise, roots, crash, body.retry_crashed)


def request_run(database: Database, settings: Settings, model: str, body: RunRequest) -> Placement:
    """Return the placement that queues a run of an engine on an uploaded safetensors file."""
    with database.reading() as session:
        engine, offer = _engine(session, settings, model, body.engine)
    return RunPlacement(RunWork(engine_id=engine.id, inputs=body.inputs), engine, offer)


def request_verify(database: Database, settings: Settings, model: str, number: int, body: VerifyRequest) -> Placement:
    """Return the placement that queues another verification of a published engine."""
    with database.reading() as session:
        engine, offer = _engine(session, settings, model, number)
        default = find_default(session, engine.definition_id)
    work = VerifyWork(engine_id=engine.id, verify=settle_verification(body, default))
    return VerifyPlacement(work, engine, offer)


def request_benchmark(database: Database, settings: Settings, model: str, body: BenchmarkRequest) -> Placement:
    """Check a request to measure an engine on fixed inputs, and return the placement that queues the benchmark."""
    with database.reading() as session:
        model_row = get_model(session, model)
        engine = get_engine(session, model_row.id, body.engine, load=INPUTS)
        offer = _offer(session, settings, engine)
        inputs = inputs_of(get_definition(session, model_row.id, engine.definition))
    return on_engine(settle_benchmark(engine, inputs, offer, body), engine, offer)


def request_materialise(database: Database, settings: Settings, model: str, number: int) -> Placement:
    """Return the placement of the job that writes an engine's plan; the job may be an earlier one."""
    with database.reading() as session:
        engine, offer = _engine(session, settings, model, number)
    return MaterialisePlacement(engine.model_id, engine.id, offer)


def spare_crashing(database: Database, order: Order, *, retry: bool) -> tuple[Order, Conflict | None]:
    """Have an order done where the compiler does not crash at it; return it with the error if it does everywhere."""
    if retry:
        return order, None
    with database.reading() as session:
        target, crash = avoid_crashes(
            session,
            order.target,
            definition_id=order.definition_id,
            profiles=order.profiles,
            options=order.options,
        )
    return replace(order, target=target), crash


def _engine(session: Session, settings: Settings, model: str, number: int) -> tuple[Engine, Offer]:
    """Return an engine, and what the workers alive offer of its backend."""
    engine = get_engine(session, get_model(session, model).id, number)
    return engine, _offer(session, settings, engine)


def _offer(session: Session, settings: Settings, engine: Engine) -> Offer:
    return fleet_offers(session, settings).offer(engine.backend)


def _root_plans(database: Database, order: Order, report: BindingReport, pair: Pair) -> frozenset[str] | None:
    """Return at most one root plan whose engines a refit can give the order's weights; None if every root plan serves.

    It is the newest such plan among the MAX_ROOTS newest root plans. Every plan serves if refits can change every
    parameter. Engines of one root plan agree in every parameter that refits cannot change, so only the newest engine
    of each plan is compared.
    """
    with database.reading() as session:
        roots = find_roots(session, order.model_id, order.recipe, loadable_engines(order), limit=MAX_ROOTS)
    if not RefitPatterns.given(order.options) and not any(facts.fixed_parameters for _, facts in roots):
        return None
    for engine_id, _ in roots:
        with database.reading() as session:
            held = load_values(session, engine_id)
        if not parameters_out_of_reach(order, report, pair, held):
            return frozenset({held.root_plan})
    return frozenset()


def _given(value: Any | None, otherwise: Any) -> Any:  # noqa: ANN401 - whatever JSON the field holds
    return otherwise if value is None else value
