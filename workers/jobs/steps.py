"""The three steps of a job: load, compute, publish. Only the middle one takes long."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy.orm import Session

from app.engines.work import Work
from app.jobs.lease import Claim
from workers.jobs.crashes import Crash
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ready:
    """The job's result is there already, so nothing is computed."""

    result: Result


class Product(Protocol):
    """What a job has made."""

    @property
    def blobs(self) -> Mapping[str, int]:
        """The artifacts put into the store: digest to size in bytes."""


WorkT = TypeVar("WorkT", bound=Work)
InputT = TypeVar("InputT")
ProductT = TypeVar("ProductT", bound=Product)


@dataclass(frozen=True, slots=True)
class Steps(Generic[WorkT, InputT, ProductT]):
    """The steps of one kind of job, whose work is of the class `work`.

    `load` reads all that the job needs in one short session. `compute` asks the engine host and moves artifacts, with
    no session open. `publish` writes what was made and returns the job's result, in the transaction that finishes the
    job. `shared` returns, of that result, the result of the jobs that make the same and waited for this one; it is None
    if the kind has no such jobs. `crashed` takes down that the compiler crashed twice on the work, in the transaction
    that fails the job.
    """

    work: type[WorkT]
    load: Callable[[Session, Claim, WorkT, Worker], InputT | Ready]
    compute: Callable[[InputT, Worker, Watch], ProductT]
    publish: Callable[[Session, Claim, InputT, ProductT], Result]
    shared: Callable[[Result], Result] | None = None
    crashed: Callable[[Session, Claim, WorkT, Worker, Crash], None] | None = None
