"""Reading and canceling sweeps."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, undefer

from app.engines.tables import Engine
from app.errors import NotFound
from app.http.pagination import PageQuery, Rows, list_rows
from app.jobs import service as jobs
from app.jobs.state import FINAL, State
from app.jobs.tables import Job
from app.sweeps.ranking import Measured, best_of, error_of, ranks
from app.sweeps.schemas import BestAnswer, LatencyAnswer, SweepAnswer, VariantAnswer
from app.sweeps.tables import Sweep, SweepVariant


def get_sweep(session: Session, model_id: int, number: int) -> Sweep:
    """Return a sweep; raises NotFound "sweep_not_found"."""
    sweep = session.scalar(select(Sweep).where(Sweep.model_id == model_id, Sweep.number == number))
    if sweep is None:
        raise NotFound(
            f"This model has no sweep {number}. GET its …/sweeps lists them; POST …/sweeps makes one.",
            code="sweep_not_found",
        )
    return sweep


def sweep_of_job(session: Session, job_id: str) -> Sweep:
    """Return the sweep whose engines a job measures."""
    return session.scalars(select(Sweep).where(Sweep.job_id == job_id)).one()


def list_sweeps(session: Session, model_id: int, page: PageQuery) -> Rows[Sweep]:
    """Return one page of a model's sweeps, newest first."""
    return list_rows(session, select(Sweep).where(Sweep.model_id == model_id), Sweep.number, page)


def cancel(session: Session, sweep: Sweep) -> None:
    """Ask all jobs of a sweep to stop; those that have ended stay as they are."""
    builds = select(SweepVariant.job_id).where(SweepVariant.sweep_id == sweep.id).order_by(SweepVariant.position.desc())
    for job_id in (str(sweep.job_id), *session.scalars(builds)):
        jobs.request_cancel(session, job_id)


def answer_of(session: Session, sweep: Sweep) -> SweepAnswer:
    """Return a sweep as a client sees it, ranked as far as it is measured."""
    job = session.get_one(Job, sweep.job_id, populate_existing=True)
    rows = session.execute(
        select(SweepVariant, Job)
        .join(Job, Job.id == SweepVariant.job_id)
        .where(SweepVariant.sweep_id == sweep.id)
        .order_by(SweepVariant.position)
        .execution_options(populate_existing=True)
    ).all()
    found = _found(job)
    numbers = {variant.position: _engine_of(of) for variant, of in rows}
    errors = _errors(session, sweep.model_id, [number for number in numbers.values() if number is not None])
    latencies = [(found.get(variant.position) or {}).get("latency") for variant, _ in rows]
    measured = [
        Measured(latency["median"] if latency else None, errors.get(numbers[variant.position] or 0))
        for (variant, _), latency in zip(rows, latencies, strict=True)
    ]
    variants = [
        VariantAnswer(
            position=variant.position,
            label=variant.label,
            options=variant.options,
            profiles=variant.profiles,
            job=of.id,
            state=of.state,
            engine=numbers[variant.position],
            error=one.error,
            latency=LatencyAnswer.model_validate(latency) if latency else None,
            rank=rank,
            left_out=_left_out(of, found.get(variant.position)),
        )
        for (variant, of), latency, one, rank in zip(rows, latencies, measured, ranks(measured), strict=True)
    ]
    best = best_of(measured, sweep.tolerance)
    return SweepAnswer(
        number=sweep.number,
        definition=sweep.definition,
        weights=sweep.weights,
        backend=sweep.backend,
        state=job.state,
        job=job.id,
        tolerance=sweep.tolerance,
        measurement=sweep.measurement,
        variants=variants,
        best=None if best is None else _best(variants[best]),
        report=(job.result or {}).get("report"),
        created_at=sweep.created_at,
    )


def _found(job: Job) -> dict[int, Mapping[str, Any]]:
    """Return what was measured, by position."""
    return {one["position"]: one for one in (job.result or {}).get("variants", ())}


def _engine_of(job: Job) -> int | None:
    return job.result["engine"] if job.state == State.SUCCEEDED and job.result is not None else None


def _errors(session: Session, model_id: int, numbers: Sequence[int]) -> dict[int, float | None]:
    same = (Engine.model_id == model_id, Engine.number.in_(numbers))
    engines = session.scalars(select(Engine).where(*same).options(undefer(Engine.verification)))
    return {engine.number: error_of(engine.verification) for engine in engines}


def _left_out(build: Job, found: Mapping[str, Any] | None) -> str | None:
    if build.state in FINAL and build.state != State.SUCCEEDED:
        error = build.error or {}
        return f"{error['code']}: {error['detail']}" if error else f"its build was {build.state}"
    return None if found is None else found.get("left_out")


def _best(variant: VariantAnswer) -> BestAnswer:
    return BestAnswer(position=variant.position, label=variant.label, engine=variant.engine or 0)
