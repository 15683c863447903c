"""Calls that say whether this process is alive, whether it can serve, and what it has counted."""

from typing import Any

import redis
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily
from pydantic import BaseModel, ConfigDict
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.artifacts.damage import count_damaged, oldest_check_s
from app.artifacts.dependencies import StoreDep
from app.disks import fault_of_disks
from app.errors import ServiceError, Unavailable
from app.fleet import service as fleet
from app.http.dependencies import DatabaseDep, SettingsDep
from app.jobs import service as jobs
from app.redaction import public_json

router = APIRouter(tags=["health"])
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
    """Looks at the database, the broker, the store and the disks it writes to. No worker alive is no fault."""
    checks = {"database": "ok", "broker": "ok", "store": "ok", "disk": "ok"}
    workers = 0
    try:
        with database.reading() as session:
            session.execute(text("SELECT 1"))
            workers = len(fleet.alive(session, settings))
    except SQLAlchemyError as error:
        checks["database"] = _reason("database", error)
    try:
        request.app.state.announcer.ping()
    except redis.RedisError as error:
        checks["broker"] = _reason("broker", error)
    try:
        store.check()
    except Unavailable as error:
        log.warning("not ready", what="store", error=error.detail)
        checks["store"] = error.detail
    except (ServiceError, OSError) as error:
        checks["store"] = _reason("store", error)
    try:
        checks["disk"] = fault_of_disks(settings, store) or "ok"
    except OSError as error:
        checks["disk"] = _reason("disk", error)
    ready = all(state == "ok" for state in checks.values())
    return JSONResponse({"ready": ready, "checks": public_json(checks), "workers": workers}, 200 if ready else 503)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": 'enginesmith_jobs{kind="build",state="queued"} 2.0'}}}},
)
def metrics(request: Request, database: DatabaseDep, settings: SettingsDep) -> Response:
    """This process's requests, and the jobs, workers and damaged artifacts of the whole service."""
    with database.reading() as session:
        counts = jobs.count_by_state(session)
        workers = fleet.alive(session, settings)
        damaged, oldest_s = count_damaged(session), oldest_check_s(session)
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
        _Families([job_gauge, worker_gauge, damage_gauge, age_gauge])
    )
    return Response(families, media_type=CONTENT_TYPE_LATEST)


def _reason(what: str, error: Exception) -> str:
    log.warning("not ready", what=what, error=str(error))
    return f"does not answer ({type(error).__name__}); see the log"


class _Families:
    """Metric families that are read when Prometheus scrapes, as the collector that `generate_latest` takes."""

    def __init__(self, families: list[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> list[GaugeMetricFamily]:
        return self._families
