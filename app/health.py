"""Calls that say whether this process is alive, whether it can serve, and what it has counted."""

from typing import Any

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel, ConfigDict
from sqlalchemy import text

from app.artifacts.damage import count_damaged, oldest_check_s
from app.artifacts.dependencies import StoreDep
from app.artifacts.strays import Sweeps, sweeps_so_far
from app.bounded_checks import Hangs
from app.database import Database
from app.disks import fault_of_disks
from app.errors import Unavailable
from app.fleet import service as fleet
from app.http.dependencies import DatabaseDep, SettingsDep
from app.jobs import service as jobs
from app.redaction import public_json
from app.settings import Settings

router = APIRouter(tags=["health"])
READY_S = 3.0  # what asks whether a process is ready seldom waits longer than five seconds
log = structlog.get_logger()


class Health(BaseModel):
    """A process that answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: str


class Readiness(BaseModel):
    """Each thing the API needs: "ok" or what is wrong with it; and how many workers are alive."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ready": True,
                    "checks": {"database": "ok", "broker": "ok", "store": "ok", "disk": "ok"},
                    "workers": 1,
                }
            ]
        }
    )

    ready: bool
    checks: dict[str, str]
    workers: int


@router.get("/healthz", summary="Is the process alive?", response_model=Health)
async def healthz() -> Any:
    """Answers as long as the process does."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Can requests be served?",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Something does not answer, or is full."}},
)
def readyz(request: Request, database: DatabaseDep, store: StoreDep, settings: SettingsDep) -> Response:
    """Looks at the database, the broker, the store and the disks it writes to. No worker alive is no fault.

    What does not answer within three seconds "hangs".
    """
    found = request.app.state.checks.run(
        {
            "database": lambda: _workers(database, settings),
            "broker": request.app.state.announcer.ping,
            "store": store.check,
            "disk": lambda: fault_of_disks(settings, store),
        }
    )
    workers = found["database"] if isinstance(found["database"], int) else 0
    checks = {name: _state(name, outcome) for name, outcome in found.items()}
    ready = all(state == "ok" for state in checks.values())
    return JSONResponse({"ready": ready, "checks": public_json(checks), "workers": workers}, 200 if ready else 503)


def _workers(database: Database, settings: Settings) -> int:
    with database.reading() as session:
        session.execute(text("SELECT 1"))
        return len(fleet.alive(session, settings))


def _state(what: str, outcome: object) -> str:
    """Return "ok", or what is wrong: a check returns or raises it."""
    match outcome:
        case str():
            return outcome
        case Hangs():
            log.warning("not ready", what=what, error="hangs")
            return f"hangs: no answer within {READY_S:g} s"
        case Unavailable():
            log.warning("not ready", what=what, error=outcome.detail)
            return outcome.detail
        case Exception():
            log.warning("not ready", what=what, error=str(outcome))
            return f"does not answer ({type(outcome).__name__}); see the log"
    return "ok"


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": 'enginesmith_jobs{kind="build",state="queued"} 2.0'}}}},
)
def metrics(request: Request, database: DatabaseDep, settings: SettingsDep) -> Response:
    """This process's requests; the jobs, workers, damaged artifacts and sweeps of the store of the whole service."""
    with database.reading() as session:
        counts = jobs.count_by_state(session)
        workers = fleet.alive(session, settings)
        damaged, oldest_s = count_damaged(session), oldest_check_s(session)
        sweeps = sweeps_so_far(session)
    job_gauge = GaugeMetricFamily("enginesmith_jobs", "Jobs by kind and state.", labels=["kind", "state"])
    for (kind, state), count in sorted(counts.items()):
        job_gauge.add_metric([kind, state], count)
    worker_gauge = GaugeMetricFamily("enginesmith_workers", "Workers alive.", value=len(workers))
    damage_gauge = GaugeMetricFamily("enginesmith_artifacts_damaged", "Damaged artifacts.", labels=["damage"])
    for damage, count in damaged.items():
        damage_gauge.add_metric([damage], count)
    age_gauge = GaugeMetricFamily(
        "enginesmith_artifacts_oldest_check_seconds", "Age of the oldest check of an artifact.", value=oldest_s
    )
    registry = request.app.state.metrics.registry
    families = generate_latest(registry) + generate_latest(
        _Families([job_gauge, worker_gauge, damage_gauge, age_gauge, *_of_sweeps(sweeps)])
    )
    return Response(families, media_type=CONTENT_TYPE_LATEST)


def _of_sweeps(sweeps: Sweeps) -> list[Metric]:
    removed = CounterMetricFamily(
        "enginesmith_store_sweep_removed", "What sweeps of the store have removed.", labels=["what"]
    )
    removed.add_metric(["file"], sweeps.files)
    removed.add_metric(["upload"], sweeps.uploads)
    if sweeps.age_s is None:
        return [removed]
    help_text = "Time since a sweep of the store last came to its end."
    return [removed, GaugeMetricFamily("enginesmith_store_sweep_age_seconds", help_text, value=sweeps.age_s)]


class _Families:
    """Metric families that are read when Prometheus scrapes, as the collector that `generate_latest` takes."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
