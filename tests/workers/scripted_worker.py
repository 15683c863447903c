"""A worker process like any other, but for its run jobs: they do nothing, or hold on as their request says."""

from dataclasses import dataclass, field
from typing import Any

import typer
from sqlalchemy.orm import Session

from app.jobs.lease import Claim
from workers import __main__ as program
from workers.jobs import kinds
from workers.jobs.kind import Kind
from workers.jobs.watch import Watch
from workers.worker import Worker


@dataclass(frozen=True)
class Nothing:
    blobs: dict[str, int] = field(default_factory=dict)


def load(_session: Session, held: Claim, _worker: Worker) -> Claim:
    return held


def compute(held: Claim, worker: Worker, watch: Watch) -> Nothing:
    """Hold on in the first attempt, until the worker is stopped, killed, or the job canceled."""
    while held.request.get("hold") and held.attempt == 1:
        watch.tick()
        worker.stopping.wait(0.02)
    return Nothing()


def publish(_session: Session, _held: Claim, _job: Claim, _made: Nothing) -> dict[str, Any]:
    return {}


if __name__ == "__main__":
    kinds.KINDS["run"] = Kind(load, compute, publish)
    typer.run(program.main)
