"""A worker process like any other, but for its run jobs: they do nothing, or hold on as their request says."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import typer
from sqlalchemy.orm import Session

from app.engines.work import Work
from app.jobs.kinds import Kind
from app.jobs.lease import Claim
from workers import __main__ as program
from workers.jobs import kinds
from workers.jobs.steps import Steps
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker


@dataclass(frozen=True)
class Nothing:
    blobs: dict[str, int] = field(default_factory=dict)


class Scripted(Work):
    kind: ClassVar[Kind] = "run"

    hold: bool = False


def load(_session: Session, held: Claim, work: Scripted, _worker: Worker) -> Scripted:
    return Scripted(hold=work.hold and held.attempt == 1)


def compute(work: Scripted, worker: Worker, watch: Watch) -> Nothing:
    """Hold on in the first attempt, until the worker is stopped, killed, or the job canceled."""
    while work.hold:
        watch.tick()
        worker.stopping.wait(0.02)
    return Nothing()


def publish(_session: Session, _held: Claim, _work: Scripted, _made: Nothing) -> dict[str, Any]:
    return {}


if __name__ == "__main__":
    kinds.KINDS["run"] = Steps(Scripted, load, compute, publish)
    typer.run(program.main)
