"""Verify jobs, and the verification every new engine goes through before it is published."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.engines.against import Against
from app.engines.work import VerifyWork
from app.jobs.lease import Claim
from workers.channel.messages import Verified, Verify
from workers.jobs.faults import VerificationFailed
from workers.jobs.steps import Steps
from workers.jobs.stored import StoredEngine, engine_file, load_engine
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker


@dataclass(frozen=True, slots=True)
class VerifyInput:
    """The engine to verify, and against what."""

    engine: StoredEngine
    against: Against


@dataclass(frozen=True, slots=True)
class Figures:
    """How far the engine's outputs lie from the reference."""

    figures: dict[str, Any]

    @property
    def blobs(self) -> Mapping[str, int]:
        """Nothing: figures go into the job's row."""
        return {}


def passed(verification: Verified | None) -> dict[str, Any]:
    """Return the figures of a verification that passed; raises VerificationFailed with those of one that did not."""
    if verification is None:
        return {"ok": None, "against": "none"}
    figures = _figures(verification)
    if not figures["ok"]:
        detail = figures["detail"] or "the outputs are out of tolerance"
        raise VerificationFailed(
            f"The engine was not published, because its verification failed: {detail}. Compare its figures with "
            'the tolerance: a lower precision or a wrong binding are usual causes. {"against": "none"} skips this.',
            figures,
        )
    return figures


def load(session: Session, _held: Claim, work: VerifyWork, _worker: Worker) -> VerifyInput:
    """Read the engine."""
    engine = load_engine(session, work.engine_id)
    return VerifyInput(engine, work.verify.against)


def compute(job: VerifyInput, worker: Worker, watch: Watch) -> Figures:
    """Have the engine host compare; figures out of tolerance are a result here, not a failure."""
    engine = watch.during(engine_file, job.engine, worker.sources, worker.plans)
    return Figures(_figures(watch.ask(Verify(engine, job.against), Verified)))


def publish(_session: Session, _held: Claim, _job: VerifyInput, made: Figures) -> dict[str, Any]:
    """Return the figures; an engine's own verification stays the one it was published with."""
    return made.figures


def _figures(verification: Verified) -> dict[str, Any]:
    figures = asdict(verification)
    figures["seconds"] = sum(figures.pop("timings").values())
    return figures


STEPS = Steps(VerifyWork, load, compute, publish)
