"""Jobs as clients see them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from app.jobs import service
from app.jobs.state import State
from app.jobs.tables import Job
from app.jobs.waiting import Waiting, waiting_of, waits_of
from app.settings import Settings

JOB: dict[str, Any] = {
    "id": "019c2a3e-7c1e-7d3a-9a44-0f6c5b0f8f11",
    "kind": "build",
    "state": "succeeded",
    "model": "minilm",
    "attempt": 1,
    "progress": {"phase": "done", "step": None, "total": None, "eta_s": None},
    "waiting": None,
    "result": {"engine": 1, "reused": False, "method": "build"},
    "error": None,
    "created_at": "2026-11-22T10:00:00Z",
    "started_at": "2026-11-22T10:00:00.010Z",
    "finished_at": "2026-11-22T10:00:01.250Z",
}
WAITING: dict[str, Any] = {
    "code": "no_worker",
    "detail": "No worker alive offers 'tensorrt'. Start a worker that does, or cancel the job. GET /v1/workers lists "
    "those alive.",
    "again_at": None,
}
EVENT: dict[str, Any] = {
    "seq": 3,
    "type": "log",
    "data": {"lines": ["optimised 412 nodes"]},
    "at": "2026-11-22T10:00:00.500Z",
}


class ProgressAnswer(BaseModel):
    """Where a job is: `phase` is "done" once it has succeeded; `step` of `total` if the phase has steps.

    `eta_s` is the time it is likely to need yet, in seconds, from earlier jobs of like work: of the same model, kind,
    backend, definition and options, and of a run on the same inputs. Null if nobody knows, as of a job that takes
    longer already.
    """

    phase: str | None
    step: int | None
    total: int | None
    eta_s: float | None


class WaitingAnswer(BaseModel):
    """Why a job does not begin or go on, as the fleet is now; `detail` names the remedy."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [WAITING]})

    code: str = Field(
        description="no_worker: no worker alive offers the backend. no_worker_of_platform: some do, but not on the "
        "platform of the engine. workers_busy: all workers that can do it are at other jobs. workers_in_trouble: none "
        "of them begins jobs for now. outage: it was begun, and put off because the store, the database or an engine "
        "host was gone. worker_in_trouble: it was begun, and its worker cannot go on because its store is gone. "
        "same_under_way: another job makes the same, and this one will have its result. jobs_under_way: it begins once "
        "other jobs have ended."
    )
    detail: str
    again_at: datetime | None = Field(None, description="When it begins again after an outage.")


class JobAnswer(BaseModel):
    """One queued piece of work and what became of it."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [JOB]})

    id: str
    kind: str = Field(description="build, refit, materialise, run, verify, benchmark or compare.")
    state: str = Field(description="queued, running, canceling, succeeded, failed or canceled.")
    model: str
    attempt: int = Field(description="How often it was started.")
    progress: ProgressAnswer
    waiting: WaitingAnswer | None = Field(
        description="What a queued job waits for, or what holds up a running one. Null if a worker is free for it "
        "or works on it."
    )
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class EventAnswer(BaseModel):
    """Something that happened to a job; `seq` counts from 1 without a gap."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [EVENT]})

    seq: int
    type: str
    data: dict[str, Any]
    at: datetime


def job_answers(session: Session, settings: Settings, jobs: Sequence[Job]) -> list[JobAnswer]:
    """Return jobs as a client sees them."""
    waits = waits_of(session, settings, jobs)
    return [job_answer(job, waiting_of(settings, job, waits)) for job in jobs]


def job_answer(job: Job, waiting: Waiting | None = None) -> JobAnswer:
    """Return one job as a client sees it; `waiting` says why it does not begin or go on."""
    return JobAnswer(
        id=job.id,
        kind=job.kind,
        state=job.state,
        model=job.model,
        attempt=job.attempt,
        progress=_progress(job),
        waiting=WaitingAnswer.model_validate(waiting) if waiting else None,
        result=job.result,
        error=job.error,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def _progress(job: Job) -> ProgressAnswer:
    """Say how far a job is; after success the phase is "done", after any other end it is the last phase begun."""
    if job.state == State.SUCCEEDED:
        return ProgressAnswer(phase="done", step=job.total, total=job.total, eta_s=None)
    step = None if job.total is None else job.step
    return ProgressAnswer(phase=job.phase, step=step, total=job.total, eta_s=service.eta_seconds(job))
