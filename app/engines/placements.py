"""What is left of a request for the transaction that makes its job.

Each placement is called once with that transaction's session, or again with another one where the first was
rolled back. By then everything is computed: there are only rows to look for and to insert.
"""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.orm import Session

from app.artifacts.service import keep, require
from app.engines.catalogue import find_equal, find_parent
from app.engines.orders import Order
from app.engines.schemas import VerifyChoice
from app.engines.tables import Engine
from app.jobs import events
from app.jobs import service as jobs
from app.jobs.queue import queue_of
from app.jobs.tables import Job


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that a worker of a backend is to do.

    `versions` are those of the backend that are alive, and `needs` is the one that the engine to work on is of.
    """

    kind: Literal["build", "refit", "run", "verify"]
    model_id: int
    backend: str
    versions: frozenset[str]
    request: dict[str, Any]
    needs: str | None = None

    def __call__(self, session: Session) -> Job:
        """Queue it; where the fleet of the moment does not have what it needs, an event says so."""
        job = jobs.create(
            session, kind=self.kind, model_id=self.model_id, queue=queue_of(self.backend), request=self.request
        )
        backend, alive = self.backend, ", ".join(sorted(self.versions))
        if not alive:
            detail = f"No worker alive offers '{backend}'; the job waits for one. GET /v1/workers lists those alive."
            events.append(session, job.id, "no_worker", {"backend": backend, "detail": detail})
        elif self.needs is not None and self.needs not in self.versions:
            detail = f"The engine is of {backend} {self.needs}; alive are {alive}."
            events.append(session, job.id, "other_backend_version", {"backend": backend, "detail": detail})
        return job


def build_job(order: Order, verify: VerifyChoice, *, reuse: bool) -> QueuedJob:
    """Return the build that fulfils an order."""
    request = {
        "definition_id": order.definition_id,
        "backend": order.backend,
        "profiles": order.profiles,
        "options": order.options,
        **_common(order, verify, reuse=reuse),
    }
    return QueuedJob("build", order.model_id, order.backend, order.versions, request)


def refit_job(order: Order, parent: Engine, verify: VerifyChoice, *, reuse: bool) -> QueuedJob:
    """Return the refit that fulfils an order."""
    request = {"parent_id": parent.id, **_common(order, verify, reuse=reuse)}
    return QueuedJob("refit", order.model_id, order.backend, order.versions, request, parent.backend_version)


def _common(order: Order, verify: VerifyChoice, *, reuse: bool) -> dict[str, Any]:
    return {
        "weights_id": order.weights_id,
        "rules": order.rules,
        "binding": order.binding,
        "fingerprint": order.fingerprint,
        "verify": verify.model_dump(),
        "reuse": reuse,
    }


@dataclass(frozen=True, slots=True)
class ReuseFirst:
    """An engine equal to the order, or else the job that makes one."""

    order: Order
    job: QueuedJob

    def __call__(self, session: Session) -> Job:
        """Record a finished job that names an equal engine where there is one, else queue `job`."""
        equal = _equal(session, self.order)
        return self.job(session) if equal is None else _reused(session, self.job, equal)


@dataclass(frozen=True, slots=True)
class CheapestWay:
    """An order to be fulfilled with as little work as the engines there are allow."""

    order: Order
    verify: VerifyChoice

    def __call__(self, session: Session) -> Job:
        """Reuse an equal engine, else refit the newest one of the recipe that the fleet can load, else build.

        The job's kind, its event "chosen" and its result's `method` say which.
        """
        order = self.order
        build = build_job(order, self.verify, reuse=True)
        equal = _equal(session, order)
        if equal is not None:
            return _reused(session, build, equal)
        parent = find_parent(session, order.model_id, order.recipe, order.versions)
        chosen = build if parent is None else refit_job(order, parent, self.verify, reuse=True)
        job = chosen(session)
        events.append(session, job.id, "chosen", {"method": job.kind, "parent": parent.number if parent else None})
        return job


@dataclass(frozen=True, slots=True)
class RunOnBlob:
    """A run and the digest of the uploaded file it runs on."""

    job: QueuedJob
    inputs: str

    def __call__(self, session: Session) -> Job:
        """Queue the run and keep its inputs for as long as the job, as its worker keeps the outputs."""
        require(session, self.inputs, "/inputs")
        job = self.job(session)
        keep(session, self.inputs, f"job:{job.id}")
        return job


def _equal(session: Session, order: Order) -> Engine | None:
    return find_equal(session, order.model_id, order.fingerprint, backend_versions=order.versions)


def _reused(session: Session, job: QueuedJob, equal: Engine) -> Job:
    return jobs.create_finished(
        session,
        kind=job.kind,
        model_id=job.model_id,
        queue=queue_of(job.backend),
        request=job.request,
        result={"engine": equal.number, "reused": True, "method": "reuse"},
    )
