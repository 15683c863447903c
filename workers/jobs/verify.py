"""Verify jobs, and the verification every new engine goes through before it is published."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.store import ArtifactStore
from app.engines.publish import record_verification
from app.engines.work import Verification, VerifyWork
from app.jobs.lease import Claim
from app.redaction import public_json
from workers.channel.messages import Check, Verified, Verify
from workers.jobs.faults import VerificationFailed
from workers.jobs.steps import Steps
from workers.jobs.stored import StoredEngine, engine_file, load_engine
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

UNLIMITED_S = 1e9  # a job has a deadline of its own


@dataclass(frozen=True, slots=True)
class VerifyInput:
    """The engine to verify, and how."""

    engine: StoredEngine
    verify: Verification


@dataclass(frozen=True, slots=True)
class Figures:
    """How far the engine's outputs lie from the reference."""

    figures: dict[str, Any]

    @property
    def blobs(self) -> Mapping[str, int]:
        """Nothing: figures go into the job's row."""
        return {}


def check_of(
    asked: Verification, store: ArtifactStore, *, coverage_s: float = 0.0, earlier: Mapping[str, Any] | None = None
) -> Check:
    """Get the files of a verification onto this machine and say what the engine host is to do.

    `coverage_s` are the seconds to measure what it sees unless more or less is asked for. `earlier` are the figures
    of an engine of the same definition, which is verified with the same made-up inputs.
    """
    seconds = {"auto": coverage_s, "full": UNLIMITED_S, "none": 0.0}[asked.coverage]
    return Check(
        against=asked.against,
        inputs=None if asked.inputs is None else str(store.local_path(asked.inputs)),
        expected=None if asked.expected is None else str(store.local_path(asked.expected)),
        tolerance=asked.tolerance,
        if_impossible=asked.if_impossible,
        coverage_s=seconds,
        made_up=(earlier or {}).get("made_up"),
        inner=tuple(earlier["sees"].get("inner", ())) if earlier and is_known(asked, earlier) else (),
    )


def is_known(asked: Verification, earlier: Mapping[str, Any] | None) -> bool:
    """Return whether it was measured before, with other weights, what such a verification sees."""
    return bool(earlier and earlier.get("sees") and earlier.get("asked") == _inputs_of(asked))


def passed(
    verification: Verified | None, asked: Verification, earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the figures of a verification that did not fail; raises VerificationFailed with those of one that did.

    `earlier` are the figures of an engine of other weights. If it was verified with the same inputs, what that one saw
    is what this one sees.
    """
    if verification is None:
        return {"ok": None, "against": "none"}
    figures = _with_sight(_figures(verification, asked), asked, earlier)
    if figures["ok"] is False:
        detail = figures["detail"] or "the outputs are out of tolerance"
        raise VerificationFailed(
            f"The engine was not published, because its verification failed: {detail}. Compare its figures with "
            'the tolerance: a lower precision or a wrong binding are usual causes. {"against": "none"} skips this.',
            figures,
        )
    return figures


def load(session: Session, _held: Claim, work: VerifyWork, _worker: Worker) -> VerifyInput:
    """Read the engine."""
    engine = load_engine(session, work.engine_id)
    return VerifyInput(engine, work.verify)


def compute(job: VerifyInput, worker: Worker, watch: Watch) -> Figures:
    """Have the engine host compare; figures out of tolerance are a result here, not a failure."""
    # It is published already, and why a verification is impossible is a result like any other.
    asked = job.verify.model_copy(update={"if_impossible": "publish"})
    return Figures(verified_figures(job.engine, asked, worker, watch, job.engine.verification))


def verified_figures(
    stored: StoredEngine,
    asked: Verification,
    worker: Worker,
    watch: Watch,
    earlier: Mapping[str, Any] | None,
    *,
    coverage_s: float = 0.0,
) -> dict[str, Any]:
    """Verify a published engine and return the figures.

    `earlier` and `coverage_s` are as in `check_of`; nothing is measured that is known already.
    """
    seconds = 0.0 if is_known(asked, earlier) else coverage_s
    engine = watch.during(engine_file, stored, worker.sources, worker.signer)
    check = watch.during(partial(check_of, coverage_s=seconds, earlier=earlier), asked, worker.store)
    return _with_sight(_figures(watch.ask(Verify(engine, check), Verified), asked), asked, earlier)


def publish(session: Session, _held: Claim, job: VerifyInput, made: Figures) -> dict[str, Any]:
    """Return the figures; the engine's own stay those that it was published with, unless it was not verified then."""
    if job.engine.verification.get("ok") is None:
        record_verification(session, job.engine.id, made.figures)
    return made.figures


def _figures(verification: Verified, asked: Verification) -> dict[str, Any]:
    figures: dict[str, Any] = public_json(asdict(verification))
    figures["seconds"] = figures.pop("stages").get("verify", {}).get("seconds", 0.0)
    return figures | {"asked": _inputs_of(asked)}


def _with_sight(figures: dict[str, Any], asked: Verification, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """Add what an earlier verification saw, with other weights or of the same engine, if it was of the same inputs."""
    if earlier and figures["sees"] is None and asked.coverage == "auto" and _alike(figures, earlier):
        return figures | {"sees": earlier.get("sees")}
    return figures


def _inputs_of(asked: Verification) -> dict[str, Any]:
    return asked.model_dump(mode="json", exclude={"coverage", "if_impossible"})


def _alike(figures: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Return whether the same was compared, of inputs and of inner values."""
    inner = (earlier.get("sees") or {}).get("inner", [])
    same = all(figures[name] == earlier.get(name) for name in ("against", "inputs", "tolerance"))
    return same and figures["inner"].keys() == set(inner)


STEPS = Steps(VerifyWork, load, compute, publish)
