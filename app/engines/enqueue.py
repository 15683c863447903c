"""What is left of a request for the transaction that makes its job.

Each placement is called once with that transaction's session, or again with another one where the first was
rolled back. By then everything is computed: there are only rows to look for and to insert.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.orm import Session

from app.artifacts.service import keep, require
from app.bindings import service as bindings
from app.engines.checks import Order
from app.engines.queries import Served, find_equal, find_parent
from app.engines.schemas import Materialise, VerifyChoice
from app.engines.tables import Engine
from app.fleet.offers import Offer
from app.jobs import events
from app.jobs import service as jobs
from app.jobs.queue import queue_of
from app.jobs.state import State
from app.jobs.tables import Job
from app.registry.service import lock_model

Kind = Literal["build", "refit", "materialise", "run", "verify", "benchmark"]


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job that a worker of a backend is to do, one of those that listen to `queue`.

    `offer` is what is alive of the backend. `platform` and `needs` are those of the engine to work on where there
    is one: the platform it has to be loaded on, and the version it is of. `recipe` is that of the engine to work on or
    to be made, `binding` that of the engine to be made.
    """

    kind: Kind
    model_id: int
    backend: str
    offer: Offer
    request: dict[str, Any]
    queue: str
    recipe: str
    platform: str | None = None
    needs: str | None = None
    binding: bindings.Draft | None = None

    def __call__(self, session: Session) -> Job:
        """Queue it; where the fleet of the moment does not have what it needs, an event says so."""
        request = self.asked(session)
        job = jobs.create(
            session, kind=self.kind, model_id=self.model_id, queue=self.queue, request=request, recipe=self.recipe
        )
        about = {"backend": self.backend, "platform": self.platform}
        if self.platform is not None and self.platform not in self.offer.loads:
            events.append(session, job.id, "no_worker", about | {"detail": self._nobody_of_platform()})
        elif not self.offer.versions:
            events.append(session, job.id, "no_worker", about | {"detail": self._nobody()})
        elif self.needs is not None and self.needs not in self.offer.versions:
            alive = ", ".join(sorted(self.offer.versions))
            detail = f"The engine is of {self.backend} {self.needs}; alive are {alive}."
            events.append(session, job.id, "other_backend_version", about | {"detail": detail})
        return job

    def asked(self, session: Session) -> dict[str, Any]:
        """Return the request as the job has it, with its binding stored and named by its id."""
        if self.binding is None:
            return self.request
        return self.request | {"binding_id": bindings.record(session, self.binding)}

    def _nobody(self) -> str:
        return (
            f"No worker alive offers '{self.backend}'; the job waits for one.{self._unavailable()} "
            "GET /v1/workers lists those alive."
        )

    def _nobody_of_platform(self) -> str:
        alive = ", ".join(f"'{one}'" for one in self.offer.loads) or "none"
        return (
            f"The engine works on the platform '{self.platform}' of '{self.backend}'; the job waits for a worker of "
            f"it. Platforms alive: {alive}.{self._unavailable()} Start a worker of that version on such a device, or "
            "build an engine for one that is alive. GET /v1/workers lists them."
        )

    def _unavailable(self) -> str:
        return "".join(f" A worker has it installed but cannot use it: {one}" for one in self.offer.unavailable)


def engine_job(
    kind: Kind, engine: Engine, offer: Offer, request: dict[str, Any], binding: bindings.Draft | None = None
) -> QueuedJob:
    """Return a job on an engine that there is, for those who can load it."""
    queue = queue_of(engine.backend, engine.platform)
    return QueuedJob(
        kind,
        engine.model_id,
        engine.backend,
        offer,
        request,
        queue,
        engine.recipe,
        platform=engine.platform,
        needs=engine.backend_version,
        binding=binding,
    )


def build_job(order: Order, verify: VerifyChoice, *, reuse: bool) -> QueuedJob:
    """Return the build that fulfils an order."""
    request = {
        "definition_id": order.definition_id,
        "backend": order.target.backend,
        "profiles": order.profiles,
        "options": order.options,
        **_common(order, verify, reuse=reuse),
    }
    target = order.target
    queue = queue_of(target.backend, target.platform)
    return QueuedJob(
        "build", order.model_id, target.backend, target.offer, request, queue, order.recipe, binding=order.binding
    )


def refit_job(
    order: Order, parent: Engine, verify: VerifyChoice, materialise: Materialise, *, reuse: bool
) -> QueuedJob:
    """Return the refit that fulfils an order."""
    request = {"parent_id": parent.id, "materialise": materialise, **_common(order, verify, reuse=reuse)}
    return engine_job("refit", parent, order.target.offer, request, order.binding)


def _common(order: Order, verify: VerifyChoice, *, reuse: bool) -> dict[str, Any]:
    return {
        "weights_id": order.weights_id,
        "rules": order.rules,
        "fingerprint": order.fingerprint,
        "verify": verify.model_dump(),
        "reuse": reuse,
    }


@dataclass(frozen=True, slots=True)
class ReuseFirst:
    """An engine equal to the order, or else the job that makes one; `materialise` says when its plan is wanted."""

    order: Order
    job: QueuedJob
    materialise: Materialise = "eager"

    def __call__(self, session: Session) -> Job:
        """Record a finished job that names an equal engine where there is one, else queue `job`."""
        equal = _equal(session, self.order)
        return self.job(session) if equal is None else _reused(session, self.job, equal, self.materialise)


@dataclass(frozen=True, slots=True)
class CheapestWay:
    """An order to be fulfilled with as little work as the engines there are allow.

    `root_plans` are those whose engines can be given its weights; None where any of its recipe can.
    """

    order: Order
    verify: VerifyChoice
    materialise: Materialise
    root_plans: Collection[str] | None = None

    def __call__(self, session: Session) -> Job:
        """Reuse an equal engine, else refit the newest one of the recipe that the fleet can load, else build.

        The job's kind, its event "chosen" and its result's `method` say which.
        """
        order = self.order
        build = build_job(order, self.verify, reuse=True)
        equal = _equal(session, order)
        if equal is not None:
            return _reused(session, build, equal, self.materialise)
        parent = find_parent(session, order.model_id, order.recipe, refits(order), self.root_plans)
        chosen = build if parent is None else refit_job(order, parent, self.verify, self.materialise, reuse=True)
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


@dataclass(frozen=True, slots=True)
class MaterialiseJob:
    """The plan of an engine that was refitted lazily, as a file; `offer` is as in `QueuedJob`."""

    model_id: int
    engine_id: int
    offer: Offer

    def __call__(self, session: Session) -> Job:
        """Return the job that is at it, or that did it, and queue one where there is none or it came to nothing.

        An engine whose plan was there from the beginning gets a finished job.
        """
        lock_model(session, self.model_id)  # one after the other, and in the order in which an alias is moved
        engine = session.get_one(Engine, self.engine_id, populate_existing=True)
        earlier = session.get(Job, engine.materialise_job_id) if engine.materialise_job_id is not None else None
        useful = {State.SUCCEEDED} if engine.materialised else {State.QUEUED, State.RUNNING}
        if earlier is not None and earlier.state in useful:
            return earlier
        job = self._finished(session, engine) if engine.materialised else self._queued(session, engine)
        engine.materialise_job_id = job.id
        session.flush()
        return job

    def _queued(self, session: Session, engine: Engine) -> Job:
        return engine_job("materialise", engine, self.offer, {"engine_id": engine.id})(session)

    def _finished(self, session: Session, engine: Engine) -> Job:
        return jobs.create_finished(
            session,
            kind="materialise",
            model_id=engine.model_id,
            queue=queue_of(engine.backend, engine.platform),
            request={"engine_id": engine.id},
            result={"engine": engine.number, "plan_digest": engine.plan_digest, "seconds": {"total": 0.0}},
        )


def refits(order: Order) -> Served:
    """Return which engines somebody alive can load, and so refit, for an order."""
    return Served(order.target.offer.versions, order.target.offer.loads)


def _equal(session: Session, order: Order) -> Engine | None:
    offer = order.target.offer
    return find_equal(session, order.model_id, order.fingerprint, Served(offer.versions, offer.platforms))


def _reused(session: Session, job: QueuedJob, equal: Engine, materialise: Materialise) -> Job:
    """Record a job that is finished by an equal engine; where its plan is wanted and missing, that is queued as well.

    The result's `materialising` names the job that writes it.
    """
    result: dict[str, Any] = {"engine": equal.number, "reused": True, "method": "reuse"}
    if materialise == "eager" and not equal.materialised:
        result["materialising"] = MaterialiseJob(equal.model_id, equal.id, job.offer)(session).id
    return jobs.create_finished(
        session, kind=job.kind, model_id=job.model_id, queue=job.queue, request=job.asked(session), result=result
    )
