"""Benchmark jobs: how long a run of an engine takes, and how much longer for being refittable."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.signing import PlanSigner
from app.engines.work import BenchmarkWork
from app.jobs.lease import Claim
from workers.channel.messages import Benchmark, Benchmarked
from workers.jobs.measurements import Measurements, keep_report, measure
from workers.jobs.steps import Steps
from workers.jobs.stored import Sources, StoredEngine, engine_file, load_engine
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

MAX_LAYERS = 500  # in the job's result; the report has all layers


@dataclass(frozen=True, slots=True)
class BenchmarkInput:
    """The engine to measure, and how."""

    engine: StoredEngine
    work: BenchmarkWork


def load(session: Session, _held: Claim, work: BenchmarkWork, _worker: Worker) -> BenchmarkInput:
    """Read the engine."""
    return BenchmarkInput(load_engine(session, work.engine_id), work)


def compute(job: BenchmarkInput, worker: Worker, watch: Watch) -> Measurements[Benchmarked]:
    """Have the engine host measure, and put its report into the store."""
    request = watch.during(_request, job, worker.sources, worker.signer, str(watch.folder / "benchmark.json"))
    return measure(request, Benchmarked, worker, watch)


def publish(session: Session, held: Claim, _job: BenchmarkInput, made: Measurements[Benchmarked]) -> dict[str, Any]:
    """Keep the report for as long as the job is kept, and return the figures.

    `ratio` is the engine's median divided by the median of the engine compiled without refit support.
    """
    found = made.found
    other = found.not_refittable
    layers = slowest(found.layers, MAX_LAYERS)
    return {
        "latency": asdict(found.engine),
        "not_refittable": None if other is None else asdict(other),
        "ratio": None if other is None else found.engine.median / other.median,
        "layers": [{"name": name, "seconds": seconds} for name, seconds in layers],
        "layers_omitted": len(found.layers) - len(layers),
    } | keep_report(session, held, made)


def slowest(layers: Sequence[tuple[str, float]], count: int) -> list[tuple[str, float]]:
    """Return the `count` layers that take the most time, in order of execution."""
    kept = sorted(range(len(layers)), key=lambda index: -layers[index][1])[:count]
    return [layers[index] for index in sorted(kept)]


def _request(job: BenchmarkInput, sources: Sources, signer: PlanSigner, report: str) -> Benchmark:
    work = job.work
    return Benchmark(
        engine=engine_file(job.engine, sources, signer),
        iterations=work.iterations,
        warmup=work.warmup,
        report=report,
        shapes=work.shapes,
        against_not_refittable=work.against == "not_refittable",
        layers=work.layers,
    )


STEPS = Steps(BenchmarkWork, load, compute, publish)
