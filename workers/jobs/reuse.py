"""Equal engines that exist already: each is the result of a job if it is verified as strongly as the job asks.

One that is not is verified then, and no new one is made unless it fails.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.orm import Session

from app.engines.publish import record_verification
from app.engines.queries import Served, find_equal
from app.engines.strength import choose_equal, suffices
from app.engines.work import MakeEngine, Verification
from app.jobs.lease import Claim
from workers.jobs.steps import Ready
from workers.jobs.stored import StoredEngine, load_engine
from workers.jobs.verify import verified_figures
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReusedEngine:
    """An equal engine and what its verification found just now."""

    engine: StoredEngine
    figures: dict[str, Any]

    @property
    def blobs(self) -> Mapping[str, int]:
        """Nothing: the engine is there already."""
        return {}


def equal_engine(session: Session, held: Claim, work: MakeEngine, served: Served) -> Ready | StoredEngine | None:
    """Return the job's result if an equal engine is served here, or the engine if it has to be verified first.

    If the job is to write a plan, an engine without a plan of its own is not equal to what it makes.
    """
    if not work.reuse:
        return None
    engines = find_equal(session, held.model_id, work.fingerprint, served)
    equal = choose_equal([one for one in engines if one.materialised or not work.writes_plan], work.verify)
    if equal is None:
        return None
    if suffices(equal.verification, work.verify):
        return Ready(reused({"engine": equal.number}))
    return load_engine(session, equal.id)


def verify_equal(
    engine: StoredEngine | None,
    asked: Verification,
    worker: Worker,
    watch: Watch,
    earlier: Mapping[str, Any] | None,
    *,
    coverage_s: float = 0.0,
) -> ReusedEngine | None:
    """Verify an equal engine instead of making one; None if there is none, or if it fails, which its row tells then.

    `earlier` and `coverage_s` are as in `check_of`.
    """
    if engine is None:
        return None
    figures = verified_figures(engine, asked, worker, watch, earlier, coverage_s=coverage_s)
    if figures["ok"] is not False:
        return ReusedEngine(engine, figures)
    log.warning("an equal engine failed its verification, another is made", engine=engine.number)
    with worker.database.transaction() as session:
        record_verification(session, engine.id, figures)
    return None


def publish_reused(session: Session, made: ReusedEngine) -> dict[str, Any]:
    """Record the verification with the engine; returns the job's result."""
    record_verification(session, made.engine.id, made.figures)
    return reused({"engine": made.engine.number}) | {"verified": made.figures["ok"]}


def reused(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a job that takes the engine of this result, which it has not made itself."""
    return {"engine": result["engine"], "reused": True, "method": "reuse"}
