"""A whole kind of job: how many bytes the plan of an engine has where its worker keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from app.database import Database
from app.engines.enqueue import on_engine
from app.engines.queries import get_engine
from app.engines.work import UseEngine
from app.fleet.offers import fleet_offers
from app.http.dependencies import DatabaseDep, SettingsDep
from app.jobs.kinds import Kind
from app.jobs.lease import Claim
from app.jobs.submission import Placement, SubmitDep
from app.registry.service import get_model
from app.settings import Settings
from workers.jobs.steps import Steps
from workers.jobs.stored import StoredEngine, load_engine
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

router = APIRouter(prefix="/models/{model}", tags=["engines"])


class WeighRequest(BaseModel):
    """The engine to weigh."""

    engine: int


class WeighWork(UseEngine):
    """Weigh an engine's plan."""

    kind: ClassVar[Kind] = cast("Kind", "weigh")


@router.post("/weighings")
async def weigh(
    model: str, body: WeighRequest, database: DatabaseDep, settings: SettingsDep, submit: SubmitDep
) -> Response:
    """Weigh an engine's plan; the answer is a job."""
    return await submit(request_weigh, database, settings, model, body)


def request_weigh(database: Database, settings: Settings, model: str, body: WeighRequest) -> Placement:
    """Check what can be checked without a device."""
    with database.reading() as session:
        engine = get_engine(session, get_model(session, model).id, body.engine)
        offer = fleet_offers(session, settings).offer(engine.backend)
    return on_engine(WeighWork(engine_id=engine.id), engine, offer)


@dataclass(frozen=True, slots=True)
class Weight:
    """What a plan weighs."""

    nbytes: int
    blobs: Mapping[str, int] = field(default_factory=dict)


def load(session: Session, _held: Claim, work: WeighWork, _worker: Worker) -> StoredEngine:
    """Read the engine."""
    return load_engine(session, work.engine_id)


def compute(engine: StoredEngine, worker: Worker, watch: Watch) -> Weight:
    """Look at the file."""
    return Weight(watch.during(worker.store.local_path, engine.plan.digest).stat().st_size)


def publish(_session: Session, _held: Claim, _engine: StoredEngine, made: Weight) -> dict[str, Any]:
    """Return the figure."""
    return {"plan_bytes": made.nbytes}


STEPS = Steps(WeighWork, load, compute, publish)
