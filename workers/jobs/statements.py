"""What the rows of engines say of their plans, to be compared with what was signed when they were published."""

from dataclasses import dataclass

from app.artifacts.signing import PlanStatement
from app.engines.tables import Engine


@dataclass(frozen=True, slots=True)
class Signed:
    """What an engine's row says of its plan, and the signature that the row holds."""

    statement: PlanStatement
    signature: str
    form: int


def statement_of(engine: Engine, definition: str, weights: str, binding: str) -> PlanStatement:
    """Return the statement of an engine's row, given the digests of what the row refers to."""
    return PlanStatement(
        digest=engine.plan_digest,
        model_id=engine.model_id,
        job_id=engine.job_id,
        method=engine.method,
        parent=engine.parent,
        backend=engine.backend,
        backend_version=engine.backend_version,
        platform=engine.platform,
        device=engine.device,
        definition=definition,
        weights=weights,
        binding=binding,
        profiles=engine.profiles,
        options=engine.options,
        root_plan=engine.root_plan,
    )


def signed_of(engine: Engine, statement: PlanStatement) -> tuple[Signed, ...]:
    """Return what is signed of an engine. An engine without a plan that an earlier release made has no signature."""
    if engine.plan_digest is None and engine.signature_form == 1:
        return ()
    return (Signed(statement, engine.plan_signature or "", engine.signature_form),)
