"""A placement makes the job of one request whose checks and computing are done.

It only looks for rows and inserts some, in one transaction. If the transaction is rolled back, the same placement makes
the job in another one.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from sqlalchemy.orm import Session

from app.artifacts.service import keep, require
from app.bindings import service as bindings
from app.engines.checks import Order
from app.engines.queries import Served, find_equal, find_parent
from app.engines.stages import no_time
from app.engines.strength import choose_equal, suffices
from app.engines.tables import Engine
from app.engines.verifications import keep_blobs, require_blobs
from app.engines.work import (
    BuildWork,
    MakeEngine,
    Materialise,
    MaterialiseWork,
    RefitWork,
    RunWork,
    UseEngine,
    Verification,
    VerifyWork,
    Work,
)
from app.errors import Conflict
from app.fleet.offers import Offer, fleet_offers
from app.jobs import events
from app.jobs import service as jobs
from app.jobs.queue import queue_of
from app.jobs.sharing import find_leader
from app.jobs.state import State
from app.jobs.tables import Job
from app.registry.service import lock_model
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class WorkPlacement:
    """Makes a job for one of the workers that listen to `queue`; all of them have the backend.

    `offer` is what the workers alive offer of the backend. `recipe` is the recipe of the engine that the job makes or
    uses. If the job uses an engine that exists, `platform` is the platform on which the engine must be loaded, and
    `version` is the version of the backend that made it.
    """

    work: Work
    model_id: int
    backend: str
    offer: Offer
    queue: str
    recipe: str
    platform: str | None = None
    version: str | None = None

    def place(self, session: Session, after: Collection[str] = ()) -> Job:
        """Queue the job, which waits for the jobs `after`, and for one under way that makes the same engine.

        If no worker alive can do it, an event of the job says so.
        The event is "no_worker" if no worker alive offers the backend, or none loads the engine's platform. It is
        "other_backend_version" if workers do, but with other versions of the backend than the engine's.
        """
        makes, first = self._same(session)
        job = jobs.create(
            session,
            kind=self.work.kind,
            model_id=self.model_id,
            queue=self.queue,
            request=self.work.to_json(),
            likeness=self.work.likeness(model_id=self.model_id, queue=self.queue, recipe=self.recipe),
            makes=makes,
            after=[*after, first] if first is not None else after,
        )
        about = {"backend": self.backend, "platform": self.platform}
        if self.platform is not None and self.platform not in self.offer.loads:
            events.append(session, job.id, "no_worker", about | {"detail": self._nobody_of_platform()})
        elif not self.offer.versions:
            events.append(session, job.id, "no_worker", about | {"detail": self._nobody()})
        elif self.version is not None and self.version not in self.offer.versions:
            alive = ", ".join(sorted(self.offer.versions))
            detail = f"The engine is of {self.backend} {self.version}; alive are {alive}."
            events.append(session, job.id, "other_backend_version", about | {"detail": detail})
        return job

    def _same(self, session: Session) -> tuple[str | None, str | None]:
        """Return what the job makes, and the job under way that makes the same, if this one may take its engine."""
        if not isinstance(self.work, MakeEngine):
            return None, None
        makes = self.work.makes(model_id=self.model_id, queue=self.queue)
        lock_model(session, self.model_id)  # of equal requests at the same moment one is first
        return makes, find_leader(session, makes) if self.work.reuse else None

    def _nobody(self) -> str:
        return (
            f"No worker alive offers '{self.backend}'; the job waits for one.{self._unavailable()} "
            "GET /v1/workers lists those alive."
        )

    def _nobody_of_platform(self) -> str:
        alive = ", ".join(f"'{platform}'" for platform in self.offer.loads) or "none"
        return (
            f"The engine works on the platform '{self.platform}' of '{self.backend}'; the job waits for a worker of "
            f"it. Platforms alive: {alive}.{self._unavailable()} Start a worker of that version on such a device, or "
            "build an engine for one that is alive. GET /v1/workers lists them."
        )

    def _unavailable(self) -> str:
        return "".join(f" A worker has it installed but cannot use it: {reason}" for reason in self.offer.unavailable)


def on_engine(work: UseEngine | RefitWork, engine: Engine, offer: Offer) -> WorkPlacement:
    """Return the placement of work on an engine that exists; its job goes to the workers that can load the engine."""
    return WorkPlacement(
        work,
        engine.model_id,
        engine.backend,
        offer,
        queue_of(engine.backend, engine.platform),
        engine.recipe,
        platform=engine.platform,
        version=engine.backend_version,
    )


@dataclass(frozen=True, slots=True)
class RunPlacement:
    """Makes the job that runs an engine on the uploaded file that the work names."""

    work: RunWork
    engine: Engine
    offer: Offer

    def place(self, session: Session) -> Job:
        """Queue the run, and keep its inputs as long as the job; the worker does the same with the outputs."""
        require(session, self.work.inputs, "/inputs")
        job = on_engine(self.work, self.engine, self.offer).place(session)
        keep(session, self.work.inputs, f"job:{job.id}")
        return job


@dataclass(frozen=True, slots=True)
class VerifyPlacement:
    """Makes the job that verifies a published engine once more."""

    work: VerifyWork
    engine: Engine
    offer: Offer

    def place(self, session: Session) -> Job:
        """Queue the job and keep the inputs that its work names for as long as the job."""
        require_blobs(session, self.work.verify, "")
        job = on_engine(self.work, self.engine, self.offer).place(session)
        keep_blobs(session, self.work.verify, job)
        return job


@dataclass(frozen=True, slots=True)
class EnginePlacement:
    """Makes the job that gives an order its engine: an equal engine if there is one and `reuse` is set, else a new one.

    A new engine is a refit of `parent`, or a build if there is no parent. `materialise` says whether the engine's plan
    is written at once ("eager") or when it is first asked for ("lazy"). `crash` is the error if the compiler crashes at
    a build, unless `retry_crashed` is set.
    """

    order: Order
    verify: Verification
    parent: Engine | None = None
    materialise: Materialise = "eager"
    reuse: bool = True
    crash: Conflict | None = None
    retry_crashed: bool = False

    def place(self, session: Session) -> Job:
        """Queue the job, or record a finished job that names the equal engine.

        If that engine has been verified less strongly than asked, a job is queued, which verifies it.
        """
        require_blobs(session, self.verify, "/verify")
        equal = self.equal(session) if self.reuse else None
        return self.queue(session) if equal is None else self.reused(session, equal)

    def equal(self, session: Session) -> Engine | None:
        """Return the newest engine that is the order's, is verified as asked, and is usable by workers of its target.

        Its backend version and platform are among those that the target's offer has. If no worker alive offers the
        backend, every engine with the fingerprint counts (`Served`).
        """
        order, offer = self.order, self.order.target.offer
        served = Served(offer.versions, offer.platforms)
        equal = choose_equal(find_equal(session, order.model_id, order.fingerprint, served), self.verify)
        return equal if equal is not None and suffices(equal.verification, self.verify) else None

    def queue(self, session: Session) -> Job:
        """Queue the job that makes the engine, and keep what it is verified with for as long as the job.

        What the binding warns of are events "binding_warning" of the job. Raises Conflict "compiler_crashes".
        """
        if self.parent is None and self.crash is not None:
            raise self.crash
        job = self._placement(session).place(session)
        keep_blobs(session, self.verify, job)
        for warning in self.order.warnings:
            events.append(session, job.id, "binding_warning", {"rule": warning.rule, "detail": warning.detail})
        return job

    def reused(self, session: Session, equal: Engine) -> Job:
        """Record a finished job whose result is the equal engine.

        If the plan of that engine is wanted but not written yet, a job that writes it is queued as well. The result's
        `materialising` names that job.
        """
        placement = self._placement(session)
        result: dict[str, Any] = {"engine": equal.number, "reused": True, "method": "reuse"}
        if self.materialise == "eager" and not equal.materialised:
            result["materialising"] = MaterialisePlacement(equal.model_id, equal.id, placement.offer).place(session).id
        return jobs.create_finished(
            session,
            kind=placement.work.kind,
            model_id=placement.model_id,
            queue=placement.queue,
            request=placement.work.to_json(),
            result=result,
        )

    def _placement(self, session: Session) -> WorkPlacement:
        order, target = self.order, self.order.target
        common: _MakeFields = {
            "weights_id": order.weights_id,
            "binding_id": bindings.record(session, order.binding),
            "rules": list(order.rules),
            "fingerprint": order.fingerprint,
            "verify": self.verify,
            "reuse": self.reuse,
        }
        if self.parent is not None:
            refit = RefitWork(parent_id=self.parent.id, materialise=self.materialise, **common)
            return on_engine(refit, self.parent, target.offer)
        build = BuildWork(
            definition_id=order.definition_id,
            backend=target.backend,
            profiles=list(order.profiles),
            options=dict(order.options),
            retry_crashed=self.retry_crashed,
            **common,
        )
        queue = queue_of(target.backend, target.platform)
        return WorkPlacement(build, order.model_id, target.backend, target.offer, queue, order.recipe)


class _MakeFields(TypedDict):
    """The fields that the works of builds and refits share (`MakeEngine`)."""

    weights_id: int
    binding_id: int
    rules: list[Any]
    fingerprint: str
    verify: Verification
    reuse: bool


@dataclass(frozen=True, slots=True)
class CheapestPlacement:
    """Makes the job that gives an order its engine with as little work as the existing engines allow.

    `root_plans` are the compiled plans whose engines can be refitted with the order's weights. None stands for all
    plans of the order's recipe. `crash` and `retry_crashed` are as in `EnginePlacement`.
    """

    order: Order
    verify: Verification
    materialise: Materialise
    root_plans: Collection[str] | None = None
    crash: Conflict | None = None
    retry_crashed: bool = False

    def place(self, session: Session) -> Job:
        """Reuse an equal engine, else refit the newest engine that can become the order's, else build.

        If an equal engine has been verified less strongly than asked, that job verifies it instead.

        The engine to refit is of the order's recipe, has one of `root_plans`, and is loadable by workers of the target.
        The result's `method` is "reuse", "refit" or "build". A job that refits or builds has that kind and an event
        "chosen". A job that reuses is a finished one of kind "build" without that event.
        """
        order = self.order
        require_blobs(session, self.verify, "/verify")
        wanted = EnginePlacement(
            order, self.verify, materialise=self.materialise, crash=self.crash, retry_crashed=self.retry_crashed
        )
        equal = wanted.equal(session)
        if equal is not None:
            return wanted.reused(session, equal)
        parent = find_parent(session, order.model_id, order.recipe, loadable_engines(order), self.root_plans)
        job = replace(wanted, parent=parent).queue(session)
        events.append(session, job.id, "chosen", {"method": job.kind, "parent": parent.number if parent else None})
        return job


@dataclass(frozen=True, slots=True)
class MaterialisePlacement:
    """Makes the job that writes the plan of a lazily refitted engine.

    `offer` is what the workers alive offer of the engine's backend.
    """

    model_id: int
    engine_id: int
    offer: Offer

    def place(self, session: Session) -> Job:
        """Return the job that writes the plan or has written it.

        If the engine has its plan, return the earlier job if it succeeded, else record a finished one. If the engine
        has no plan, return the earlier job if it is queued or running, else queue one.
        """
        lock_model(session, self.model_id)  # one call at a time; moving an alias locks this row first too
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
        return on_engine(MaterialiseWork(engine_id=engine.id), engine, self.offer).place(session)

    def _finished(self, session: Session, engine: Engine) -> Job:
        return jobs.create_finished(
            session,
            kind=MaterialiseWork.kind,
            model_id=engine.model_id,
            queue=queue_of(engine.backend, engine.platform),
            request=MaterialiseWork(engine_id=engine.id).to_json(),
            result={"engine": engine.number, "plan_digest": engine.plan_digest} | no_time(),
        )


def loadable_engines(order: Order) -> Served:
    """Return which engines the workers of an order's target can load, and so refit."""
    return Served(order.target.offer.versions, order.target.offer.loads)


def materialise(session: Session, settings: Settings, engine: Engine) -> None:
    """Queue a job that writes the plan of an engine, unless the plan is written already.

    Call it in the transaction that gives the engine to a client. `jobs.service.bind_dispatch` must have been called for
    the session.
    """
    if not engine.materialised:
        offer = fleet_offers(session, settings).offer(engine.backend)
        MaterialisePlacement(engine.model_id, engine.id, offer).place(session)
