"""What a kind of job is: three steps, of which only the middle one takes time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy.orm import Session

from app.jobs.lease import Claim
from workers.jobs.watch import Watch
from workers.worker import Worker

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ready:
    """The job's result was there already, so nothing is computed."""

    result: Result


class Product(Protocol):
    """What a job has made."""

    @property
    def blobs(self) -> Mapping[str, int]:
        """The artifacts put into the store: digest to size in bytes."""


InputT = TypeVar("InputT")
ProductT = TypeVar("ProductT", bound=Product)


@dataclass(frozen=True, slots=True)
class Kind(Generic[InputT, ProductT]):
    """The steps of one kind of job.

    `load` reads everything the job needs in one short session. `compute` asks the engine host and moves
    artifacts, with no session open. `publish` writes what was made, in the transaction that also
    finishes the job, and returns the job's result.
    """

    load: Callable[[Session, Claim, Worker], InputT | Ready]
    compute: Callable[[InputT, Worker, Watch], ProductT]
    publish: Callable[[Session, Claim, InputT, ProductT], Result]
