"""What a job has measured, with the report that it wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy.orm import Session

from app.artifacts import service as artifacts
from app.jobs.lease import Claim
from workers.channel.messages import Benchmark, Benchmarked, Compare, Compared, Spent
from workers.jobs.stages import merged, stages_json
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

FoundT = TypeVar("FoundT", Benchmarked, Compared)


@dataclass(frozen=True, slots=True)
class Measurements(Generic[FoundT]):
    """What was measured, and the job's seconds and stages.

    `digest` and `size` in bytes are those of the report in the store.
    """

    found: FoundT
    digest: str
    size: int
    seconds: float
    stages: Mapping[str, Spent]

    @property
    def blobs(self) -> Mapping[str, int]:
        """The report."""
        return {self.digest: self.size}


def measure(request: Benchmark | Compare, expected: type[FoundT], worker: Worker, watch: Watch) -> Measurements[FoundT]:
    """Have the engine host measure, and put its report into the store."""
    found = watch.ask(request, expected)
    digest, size = watch.during(worker.put, Path(found.report))
    return Measurements(found, digest, size, watch.seconds, merged(watch.stages, found.stages))


def keep_report(session: Session, held: Claim, made: Measurements[Any]) -> dict[str, Any]:
    """Keep the report for as long as the job is kept, and return what every job that measures tells."""
    artifacts.keep(session, made.digest, f"job:{held.job_id}")
    return {
        "shapes": {name: list(shape) for name, shape in made.found.shapes.items()},
        "report": made.digest,
        "seconds": made.seconds,
        "stages": stages_json(made.stages),
    }
