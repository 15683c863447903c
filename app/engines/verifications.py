"""What engines are verified with: as a request says, or as was settled for their definition."""

from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.service import keep, release, require
from app.database import insert_into, now
from app.definitions.tables import Definition
from app.engines.schemas import DefaultVerification, ToleranceChoice, VerifyChoice, VerifyRequest
from app.engines.tables import VerificationDefault
from app.engines.work import Verification
from app.errors import FieldError, Invalid, NotFound
from app.jobs.tables import Job


def settle_verification(asked: VerifyChoice | VerifyRequest, default: VerificationDefault | None) -> Verification:
    """Return how an engine is verified; raises Invalid "invalid_verify" if what is asked for does not go together.

    The default of the definition stands in for inputs that are not given, and for the tolerance.
    """
    _check(asked)
    inputs, tolerance = asked.inputs, _bounds(asked.tolerance)
    if default is not None and inputs is None and asked.against != "none":
        inputs = default.inputs
        tolerance = default.tolerance | tolerance
    return Verification(
        against=asked.against,
        inputs=inputs,
        expected=asked.expected,
        tolerance=tolerance,
        if_impossible=asked.if_impossible if isinstance(asked, VerifyChoice) else "fail",
        coverage=asked.coverage,
    )


def find_default(session: Session, definition_id: int) -> VerificationDefault | None:
    """Return what is kept for a definition, if anything is."""
    return session.get(VerificationDefault, definition_id)


def get_default(session: Session, definition: Definition) -> VerificationDefault:
    """Return what is kept for a definition; raises NotFound if nothing is."""
    found = find_default(session, definition.id)
    if found is None:
        raise NotFound(
            f"Nothing is kept to verify the engines of definition {definition.version} with, so inputs are made up. "
            "PUT it here.",
            code="verification_not_found",
        )
    return found


def keep_default(session: Session, definition: Definition, body: DefaultVerification) -> None:
    """Keep what the engines of a definition are verified with if a request says nothing."""
    require(session, body.inputs, "/inputs")
    values: dict[str, Any] = {"inputs": body.inputs, "tolerance": _bounds(body.tolerance), "updated_at": now()}
    session.execute(
        insert_into(session, VerificationDefault)
        .values(definition_id=definition.id, **values)
        .on_conflict_do_update(index_elements=["definition_id"], set_=values)
    )
    release(session, _owner(definition))
    keep(session, body.inputs, _owner(definition))


def drop_default(session: Session, definition: Definition) -> None:
    """Have inputs made up again; raises NotFound if nothing is kept."""
    session.delete(get_default(session, definition))
    session.flush()
    release(session, _owner(definition))


def require_blobs(session: Session, verification: Verification, pointer: str) -> None:
    """Keep the blobs of a verification for another grace period; raises Invalid if one is not there."""
    for name, digest in verification.blobs.items():
        require(session, digest, f"{pointer}/{name}")


def keep_blobs(session: Session, verification: Verification, job: Job) -> None:
    """Keep the blobs of a verification for as long as the job."""
    for digest in verification.blobs.values():
        keep(session, digest, f"job:{job.id}")


def _bounds(asked: ToleranceChoice | None) -> dict[str, float]:
    return {} if asked is None else asked.model_dump(exclude_none=True)


def _check(asked: VerifyChoice | VerifyRequest) -> None:
    at = "/verify" if isinstance(asked, VerifyChoice) else ""
    faults = []
    if asked.expected is not None and asked.inputs is None:
        faults.append(FieldError(f"{at}/expected", "outputs are expected of inputs: give `inputs` as well"))
    if asked.expected is not None and asked.against != "reference":
        faults.append(FieldError(f"{at}/expected", f'stands for the reference: leave out "against": "{asked.against}"'))
    if asked.against == "none" and (asked.inputs is not None or asked.tolerance is not None):
        faults.append(FieldError(f"{at}/against", "none verifies nothing: leave it out, or leave out all else"))
    if not faults:
        return
    raise Invalid(
        "The verification does not go together: " + "; ".join(f"{one.pointer}: {one.detail}" for one in faults) + ".",
        code="invalid_verify",
        errors=faults,
    )


def _owner(definition: Definition) -> str:
    return f"verification:{definition.id}"
