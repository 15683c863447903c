"""Verify jobs, and the verification every new engine goes through before it is published."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.store import ArtifactStore
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
    figures = _figures(verification, asked)
    if earlier and figures["sees"] is None and asked.coverage == "auto" and _alike(figures, earlier):
        figures["sees"] = earlier.get("sees")
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
    engine = watch.during(engine_file, job.engine, worker.sources, worker.signer)
    check = watch.during(partial(check_of, earlier=job.engine.verification), job.verify, worker.store)
    check = replace(check, if_impossible="publish")  # it is published already, and why is a result like any other
    return Figures(_figures(watch.ask(Verify(engine, check), Verified), job.verify))


def publish(_session: Session, _held: Claim, _job: VerifyInput, made: Figures) -> dict[str, Any]:
    """Return the figures; an engine's own verification stays the one it was published with."""
    return made.figures


def _figures(verification: Verified, asked: Verification) -> dict[str, Any]:
    figures: dict[str, Any] = public_json(asdict(verification))
    figures["seconds"] = figures.pop("stages").get("verify", {}).get("seconds", 0.0)
    return figures | {"asked": _inputs_of(asked)}


def _inputs_of(asked: Verification) -> dict[str, Any]:
    return asked.model_dump(mode="json", exclude={"coverage", "if_impossible"})


def _alike(figures: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    return all(figures[name] == earlier.get(name) for name in ("against", "inputs", "tolerance"))


STEPS = Steps(VerifyWork, load, compute, publish)
