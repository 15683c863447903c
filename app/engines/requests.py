"""Turning a request into a job: all checks that need no device are done here.

Each function reads rows in a short session of its own, and then checks and computes with no session open. It returns
the placement that makes the job in a transaction.
"""

from typing import Any

from sqlalchemy.orm import Session

from app.bindings import service as bindings
from app.bindings.service import Pair
from app.database import Database
from app.definitions.service import get_definition, inputs_of
from app.engines.benchmarks import settle_benchmark
from app.engines.checks import Order, out_of_reach, settle, settle_refit, settle_verify
from app.engines.enqueue import (
    CheapestPlacement,
    EnginePlacement,
    MaterialisePlacement,
    RunPlacement,
    VerifyPlacement,
    on_engine,
    refits,
)
from app.engines.facts import read_facts
from app.engines.own_weights import newest_definition, weights_of_definition
from app.engines.queries import INPUTS, find_example, find_roots, get_engine, load_values
from app.engines.schemas import BenchmarkRequest, BuildRequest, EngineRequest, RefitRequest, RunRequest, VerifyRequest
from app.engines.tables import Engine
from app.engines.targets import Target, choose_target
from app.engines.verifications import find_default, settle_verification
from app.engines.work import RunWork, VerifyWork
from app.fleet.offers import Offer, fleet_offers
from app.fleet.refit_patterns import RefitPatterns
from app.jobs.submission import Placement
from app.registry.service import get_model
from app.settings import Settings

MAX_ROOTS = 8  # so many compiled engines are compared with new weights before another one is compiled


def request_build(database: Database, settings: Settings, model: str, body: BuildRequest) -> Placement:
    """Queue a build, or answer with a finished job if an equal engine exists and may be reused."""
    weights = body.weights or weights_of_definition(database, model, body.definition)
    with database.reading() as session:
        owner = get_model(session, model)
        fleet = fleet_offers(session, settings)
        pair = bindings.load(session, owner.id, body.definition, weights)
        default = find_default(session, pair.definition.id)
    target = choose_target(fleet, body.backend, body.device)
    order = settle(
        owner,
        pair,
        target,
        profiles=body.profiles,
        options=body.options,
        rules=body.rules,
        allow_non_finite=body.allow_non_finite,
    )
    return EnginePlacement(order, settle_verify(body.verify, order.target, default), reuse=body.reuse)


def request_refit(database: Database, settings: Settings, model: str, body: RefitRequest) -> Placement:
    """Queue a refit, or answer with a finished job if an equal engine exists and may be reused."""
    with database.reading() as session:
        owner = get_model(session, model)
        parent = get_engine(session, owner.id, body.engine, load=(*INPUTS, Engine.facts))
        target = Target(parent.backend, _offer(session, settings, parent))
        pair = bindings.load(session, owner.id, parent.definition, body.weights)
        is_partly = RefitPatterns.given(parent.options) or read_facts(parent.facts).fixed_parameters
        held = load_values(session, parent.id) if is_partly else None
        default = find_default(session, parent.definition_id)
    order = settle_refit(
        owner, pair, target, parent, rules=body.rules, allow_non_finite=body.allow_non_finite, held=held
    )
    return EnginePlacement(order, settle_verification(body.verify, default), parent, body.materialise, body.reuse)


def request_engine(database: Database, settings: Settings, model: str, body: EngineRequest) -> Placement:
    """Get an engine for these weights in the cheapest way: reuse, refit or build.

    Profiles, options and rules that the request leaves out are those of the newest engine of the same definition and
    backend.
    """
    weights = body.weights or weights_of_definition(database, model, body.definition)
    with database.reading() as session:
        owner = get_model(session, model)
        fleet = fleet_offers(session, settings)
        target = choose_target(fleet, body.backend, body.device)
        definition = body.definition or newest_definition(owner)
        example = find_example(session, owner.id, definition, target.backend)
        pair = bindings.load(session, owner.id, definition, weights)
        default = find_default(session, pair.definition.id)
    order = settle(
        owner,
        pair,
        target,
        profiles=_given(body.profiles, example.profiles if example else []),
        options=_given(body.options, example.options if example else {}),
        rules=_given(body.rules, example.rules if example else []),
        allow_non_finite=body.allow_non_finite,
    )
    verify = settle_verify(body.verify, order.target, default)
    return CheapestPlacement(order, verify, body.materialise, _root_plans(database, order, pair))


def request_run(database: Database, settings: Settings, model: str, body: RunRequest) -> Placement:
    """Queue a run of an engine on an uploaded safetensors file."""
    with database.reading() as session:
        engine, offer = _engine(session, settings, model, body.engine)
    return RunPlacement(RunWork(engine_id=engine.id, inputs=body.inputs), engine, offer)


def request_verify(database: Database, settings: Settings, model: str, number: int, body: VerifyRequest) -> Placement:
    """Queue another verification of an engine that is published already."""
    with database.reading() as session:
        engine, offer = _engine(session, settings, model, number)
        default = find_default(session, engine.definition_id)
    work = VerifyWork(engine_id=engine.id, verify=settle_verification(body, default))
    return VerifyPlacement(work, engine, offer)


def request_benchmark(database: Database, settings: Settings, model: str, body: BenchmarkRequest) -> Placement:
    """Queue a measurement of an engine on fixed inputs."""
    with database.reading() as session:
        owner = get_model(session, model)
        engine = get_engine(session, owner.id, body.engine, load=INPUTS)
        offer = _offer(session, settings, engine)
        inputs = inputs_of(get_definition(session, owner.id, engine.definition))
    return on_engine(settle_benchmark(engine, inputs, offer, body), engine, offer)


def request_materialise(database: Database, settings: Settings, model: str, number: int) -> Placement:
    """Queue a job that writes an engine's plan as a file, unless the plan is written already."""
    with database.reading() as session:
        engine, offer = _engine(session, settings, model, number)
    return MaterialisePlacement(engine.model_id, engine.id, offer)


def _engine(session: Session, settings: Settings, model: str, number: int) -> tuple[Engine, Offer]:
    """Return an engine, and what the workers alive offer of its backend."""
    engine = get_engine(session, get_model(session, model).id, number)
    return engine, _offer(session, settings, engine)


def _offer(session: Session, settings: Settings, engine: Engine) -> Offer:
    return fleet_offers(session, settings).offer(engine.backend)


def _root_plans(database: Database, order: Order, pair: Pair) -> frozenset[str] | None:
    """Return the compiled plan of the newest engine that can be refitted with the order's weights; empty if none can.

    None if refits can change every parameter. Engines of one compiled plan agree in every parameter that refits cannot
    change, so only one engine of each plan is compared.
    """
    with database.reading() as session:
        roots = find_roots(session, order.model_id, order.recipe, refits(order), limit=MAX_ROOTS)
    if not RefitPatterns.given(order.options) and not any(facts.fixed_parameters for _, facts in roots):
        return None
    for engine_id, _ in roots:
        with database.reading() as session:
            held = load_values(session, engine_id)
        if not out_of_reach(order, pair, held):
            return frozenset({held.root_plan})
    return frozenset()


def _given(value: Any | None, otherwise: Any) -> Any:  # noqa: ANN401 - whatever JSON the field holds
    return otherwise if value is None else value
