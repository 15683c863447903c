"""Compare jobs: the engines of a sweep, measured in turns on one device."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.engines.tables import Engine
from app.engines.work import CompareWork
from app.errors import ServiceError
from app.jobs.lease import Claim
from app.jobs.state import State
from app.jobs.tables import Job
from app.sweeps.tables import SweepVariant
from workers.channel.messages import Compare, Compared
from workers.jobs.measurements import Measurements, keep_report, measure
from workers.jobs.steps import Steps
from workers.jobs.stored import StoredEngine, engine_file, load_engine
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker


@dataclass(frozen=True, slots=True)
class CompareInput:
    """The engines to measure by the position of their variant, why others are left out, and how it is measured."""

    engines: Mapping[int, StoredEngine]
    left_out: Mapping[int, str]
    work: CompareWork


def load(session: Session, held: Claim, work: CompareWork, worker: Worker) -> CompareInput:
    """Read the engines of the builds that have succeeded; raises ServiceError "nothing_to_compare" if none has."""
    engines: dict[int, StoredEngine] = {}
    left_out: dict[int, str] = {}
    builds = select(SweepVariant.position, Job.state, Job.result).join(Job, Job.id == SweepVariant.job_id)
    for position, state, result in session.execute(builds.where(SweepVariant.sweep_id == work.sweep_id)):
        if state != State.SUCCEEDED:
            left_out[position] = f"its build {'was canceled' if state == State.CANCELED else state}"
            continue
        same = (Engine.model_id == held.model_id, Engine.number == result["engine"])
        engine = session.scalars(select(Engine).where(*same)).one()
        if engine.platform in worker.offered[engine.backend].loads:
            engines[position] = load_engine(session, engine.id)
        else:
            left_out[position] = f"it works on '{engine.platform}', which the worker that measured does not load"
    if not engines:
        raise ServiceError(
            "None of the sweep's builds has made an engine that can be measured here. GET the sweep: `left_out` of "
            "each variant says why.",
            code="nothing_to_compare",
        )
    return CompareInput(engines, left_out, work)


def compute(job: CompareInput, worker: Worker, watch: Watch) -> Measurements[Compared]:
    """Have the engine host measure, and put its report into the store."""
    request = watch.during(_request, job, worker, str(watch.folder / "comparison.json"))
    return measure(request, Compared, worker, watch)


def publish(session: Session, held: Claim, job: CompareInput, made: Measurements[Compared]) -> dict[str, Any]:
    """Keep the report for as long as the job is kept, and return the figures of each variant."""
    found = made.found
    measured = zip(job.engines, found.latencies, found.faults, strict=True)
    rows: list[dict[str, Any]] = [
        {"position": position, "latency": None if latency is None else asdict(latency), "left_out": fault}
        for position, latency, fault in measured
    ]
    rows += [{"position": position, "latency": None, "left_out": reason} for position, reason in job.left_out.items()]
    return {"variants": sorted(rows, key=lambda row: row["position"])} | keep_report(session, held, made)


def _request(job: CompareInput, worker: Worker, report: str) -> Compare:
    work, sources = job.work, worker.sources
    return Compare(
        engines=tuple(engine_file(engine, sources, worker.signer) for engine in job.engines.values()),
        iterations=work.iterations,
        warmup=work.warmup,
        repeats=work.repeats,
        report=report,
        shapes=work.shapes,
        inputs=None if work.inputs is None else str(sources.store.local_path(work.inputs)),
    )


STEPS = Steps(CompareWork, load, compute, publish)
