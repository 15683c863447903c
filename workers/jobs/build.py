"""Build jobs: compile a definition with one weight version."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.definitions.profiles import parse_profiles
from app.engines.crashes import forget, require_no_crash, take_down
from app.engines.queries import find_verification
from app.engines.work import BuildWork
from app.errors import ServiceError
from app.jobs.lease import Claim
from workers.channel.messages import Build, Built
from workers.jobs import timing_cache
from workers.jobs.crashes import Crash
from workers.jobs.publication import EngineSpec, Origin, VerifiedEngine, new_engine, plan_put, publish_as
from workers.jobs.reuse import ReusedEngine, equal_engine, publish_reused, reused, verify_equal
from workers.jobs.steps import Ready, Steps
from workers.jobs.stored import Sources, StoredEngine, load_definition, load_weights
from workers.jobs.timing_cache import NewTimings, PlatformTimings
from workers.jobs.verify import check_of, is_known
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

COVERAGE_S = 10.0  # what a verification sees is measured once, beside the writing of the plan


@dataclass(frozen=True, slots=True)
class BuildInput:
    """What is compiled, and the timing cache of this device's platform; None if no timing cache is used.

    `earlier` is what the verification of an engine found that differs in its weights at most, if there is one. `equal`
    is an engine that only lacks the verification that is asked for.
    `retried` is the work if the compiler may have crashed at it before. `verbose` says whether it has in this job.
    """

    spec: EngineSpec
    earlier: Mapping[str, Any] | None
    timings: PlatformTimings | None
    equal: StoredEngine | None
    retried: BuildWork | None
    verbose: bool


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A verified engine, and the timing cache that its compilation left; None if that is not a new one."""

    engine: VerifiedEngine
    timings: NewTimings | None

    @property
    def blobs(self) -> Mapping[str, int]:
        """The plan and the timing cache."""
        return {**self.engine.blobs, **(self.timings.blobs if self.timings is not None else {})}


def load(session: Session, held: Claim, work: BuildWork, worker: Worker) -> BuildInput | Ready:
    """Read what is to be compiled, unless an equal engine is there that is verified as asked.

    Raises ServiceError "cannot_verify" if a verification is asked for and this device cannot run the engine.
    """
    equal = equal_engine(session, held, work, worker.served(work.backend))
    if isinstance(equal, Ready):
        return equal
    _check_verifiable(work, worker)
    require_no_crash(session, worker.settings, work, worker.offered[work.backend].version, held.queue)
    spec = _spec(session, work)
    earlier = find_verification(
        session,
        held.model_id,
        definition_digest=spec.definition.digest,
        backend=spec.backend,
        profiles=spec.profiles,
        options=spec.options,
    )
    timings = timing_cache.find(session, worker, work.backend, spec.options)
    return BuildInput(spec, earlier, timings, equal, work if work.retry_crashed else None, verbose=held.strikes > 0)


def compute(job: BuildInput, worker: Worker, watch: Watch) -> BuiltEngine | ReusedEngine:
    """Compile and verify, or only verify if there is an equal engine."""
    verified = verify_equal(job.equal, job.spec.verify, worker, watch, job.earlier, coverage_s=COVERAGE_S)
    if verified is not None:
        return verified
    cache = timing_cache.fetch(job.timings, worker, watch)
    request = watch.during(_request, job, worker.sources, str(watch.folder / "plan"), cache)
    with plan_put(worker, watch) as put:
        built = watch.ask(request, Built, put.begin)
        plan, origin = put.end(built.plan_digest), Origin(built.platform, built.plan_digest)
        engine = new_engine(worker, watch, built, plan, origin, job.spec, job.earlier)
        return BuiltEngine(engine, timing_cache.put(job.timings, built.timing_cache, worker, watch))


def publish(session: Session, held: Claim, job: BuildInput, made: BuiltEngine | ReusedEngine) -> dict[str, Any]:
    """Insert the engine, and keep its timing cache for the next build."""
    if isinstance(made, ReusedEngine):
        return publish_reused(session, made)
    if made.timings is not None:
        timing_cache.publish(session, made.timings)
    if job.retried is not None:
        forget(session, job.retried, made.engine.backend_version)
    return publish_as(session, held, job.spec, made.engine, method="build")


def crashed(session: Session, held: Claim, work: BuildWork, worker: Worker, crash: Crash) -> None:
    """Mark what is compiled, so that no later build has this version of the backend crash again."""
    version = worker.offered[work.backend].version
    take_down(session, work, version, job_id=held.job_id, layer=crash.layer, detail=crash.detail)


def _check_verifiable(work: BuildWork, worker: Worker) -> None:
    backend, against = work.backend, work.verify.against
    if against != "none" and not worker.offered[backend].loads:
        raise ServiceError(
            f"{worker.device} compiles '{backend}' for other devices and cannot run the engine, which a verification "
            f'against "{against}" needs. Ask with "verify": {{"against": "none"}}, and verify it where it runs.',
            code="cannot_verify",
        )


def _spec(session: Session, work: BuildWork) -> EngineSpec:
    return EngineSpec(
        definition=load_definition(session, work.definition_id),
        weights=load_weights(session, work.weights_id, work.binding_id),
        backend=work.backend,
        profiles=work.profiles,
        options=work.options,
        rules=work.rules,
        fingerprint=work.fingerprint,
        verify=work.verify,
    )


def _request(job: BuildInput, sources: Sources, plan: str, cache: str | None) -> Build:
    spec, earlier = job.spec, job.earlier
    seconds = 0.0 if is_known(spec.verify, earlier) else COVERAGE_S
    return Build(
        backend=spec.backend,
        definition=str(sources.store.local_path(spec.definition.digest)),
        parameters=sources.of(spec.weights),
        inputs=spec.definition.inputs,
        plan=plan,
        profiles=parse_profiles(spec.profiles, spec.definition.inputs),
        options=spec.options,
        timing_cache=cache,
        check=check_of(spec.verify, sources.store, coverage_s=seconds, earlier=earlier),
        verbose=job.verbose,
    )


STEPS = Steps(BuildWork, load, compute, publish, shared=reused, crashed=crashed)
