"""The API's composition root."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry

from app import health
from app.aliases.router import router as aliases_router
from app.artifacts.damage import noting
from app.artifacts.router import router as artifacts_router
from app.artifacts.store import open_store
from app.backends import backend_names
from app.bindings.router import router as bindings_router
from app.bounded_checks import BoundedChecks
from app.children.children import MODULES, Children
from app.children.fork_server import ForkServer
from app.database import Database
from app.definitions.router import router as definitions_router
from app.definitions.weights_router import router as new_weights_router
from app.engines.check_router import router as check_router
from app.engines.damaged_router import router as damaged_router
from app.engines.preflight import Preflights
from app.engines.router import router as engines_router
from app.engines.verification_router import router as verification_router
from app.fleet.router import router as fleet_router
from app.heavy import MOST_ROWS
from app.http import openapi, problems
from app.http.beginning import Beginning
from app.http.body_budget import BodyBudget
from app.http.browsers import BrowserGuard
from app.http.pools import Pools
from app.http.request_body import check_address
from app.jobs.dispatch import Dispatch
from app.jobs.notices import Announcer
from app.jobs.queue import JobQueue, redis_url
from app.jobs.router import router as jobs_router
from app.jobs.watching import Watching
from app.observability import Metrics, RequestObserver, note_route
from app.office.office import Office
from app.redaction import learn
from app.registry.router import router as registry_router
from app.scratch import remove_abandoned
from app.settings import Settings
from app.sweeps.router import router as sweeps_router
from app.weights.recognition import checkpoint_formats
from app.weights.router import router as weights_router

ROUTERS = (
    registry_router,
    aliases_router,
    artifacts_router,
    damaged_router,
    definitions_router,
    new_weights_router,
    weights_router,
    bindings_router,
    check_router,
    engines_router,
    verification_router,
    sweeps_router,
    jobs_router,
    fleet_router,
)
DESCRIPTION = """
Turns trained weights into inference engines and keeps them current: register a model **definition**, upload
**weight versions**, **build** an engine from both, and **refit** it whenever there are newer weights.
""".strip()


def create_app(settings: Settings) -> FastAPI:
    """Build the API; it connects to nothing before it starts."""
    app: FastAPI = FastAPIOffline(
        redoc_url=None,
        title="Enginesmith",
        version=version("enginesmith"),
        description=DESCRIPTION,
        lifespan=_lifespan,
        dependencies=[Depends(note_route)],
    )
    _compose(app, settings)
    problems.install(app)
    openapi.install(app)
    app.add_middleware(BodyBudget, limit=settings.max_buffered_bytes // 2)
    app.add_middleware(BrowserGuard, allowed_hosts=settings.host_names)
    app.add_middleware(Beginning)
    app.add_middleware(
        RequestObserver, metrics=app.state.metrics, on_fault=problems.unexpected, on_stop=problems.stopping
    )
    app.include_router(health.router)
    for router in ROUTERS:
        app.include_router(router, prefix="/v1", dependencies=[Depends(check_address)])
    return app


def _compose(app: FastAPI, settings: Settings) -> None:
    state = app.state
    url = redis_url(settings.broker_url)
    learn(settings)
    state.settings = settings
    state.pools = Pools()
    state.database = Database(settings.database, most_rows=MOST_ROWS)
    state.store = open_store(settings, noting(state.database, "api"))
    state.office = Office(settings, state.database, state.store)
    state.children = Children(ForkServer(MODULES), settings.scratch_dir)
    state.preflights = Preflights(state.database, state.store, state.children)
    state.announcer = Announcer(url)
    state.watching = Watching(state.database, url, max_streams=settings.max_streams)
    state.dispatch = Dispatch(JobQueue(settings.broker_url), state.announcer)
    state.metrics = Metrics(CollectorRegistry())
    state.checks = BoundedChecks(health.READY_S)
    checkpoint_formats()  # a broken format stops the start, not an upload
    backend_names()  # two backends of one name stop the start


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    remove_abandoned(app.state.settings.scratch_dir)
    async with app.state.watching.running():
        yield
    app.state.dispatch.close()
    app.state.announcer.close()
    app.state.database.dispose()
