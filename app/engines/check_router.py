"""The call that says what would become of a build, and makes none."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter
from sqlalchemy import select

from app.artifacts.dependencies import StoreDep
from app.artifacts.store import ArtifactStore
from app.database import Database
from app.engines.check_schemas import CheckAnswer, CheckRequest
from app.engines.checks import settle_verify
from app.engines.estimates import Estimate, estimate
from app.engines.preflight import Asked, Looked, PreflightsDep
from app.engines.requests import order_build, spare_crashing
from app.http.dependencies import DatabaseDep, SettingsDep
from app.http.problems import problems
from app.http.routes import WITH_RULES_BYTES, Route, max_body
from app.office.office import OfficeDep
from app.settings import Settings
from app.weights.tables import WeightVersion

router = APIRouter(prefix="/models/{model}/builds", tags=["engines"], route_class=Route)

UNCHECKED = (
    "No worker alive offers '{backend}'. So its options were not looked at, nor whether it needs profiles for the "
    "dynamic inputs; a worker that takes the build looks at both."
)
UNTOLD = "The backend tells nothing before a build here, or looking at the definition took too long. Build it, and see."


@router.post(
    "/check",
    summary="Check a build",
    response_model=CheckAnswer,
    responses=problems(404, 422, 503),
    openapi_extra=max_body(WITH_RULES_BYTES),
)
async def check_build(
    model: str,
    body: CheckRequest,
    database: DatabaseDep,
    store: StoreDep,
    settings: SettingsDep,
    office: OfficeDep,
    preflights: PreflightsDep,
) -> Any:  # noqa: ANN401 - as in the routers
    """Say what a backend would make of a build, without a device. Nothing is queued or kept.

    What POST …/builds would refuse is refused alike: the binding, the profiles and, if a worker alive offers the
    backend, the options are checked. What the compiler of every worker crashes at is a `problem`. The answer has a
    verdict for each version of the backend: which nodes are rewritten and how, which are refused and why, and which
    parameters refits can change. TensorRT is judged by tables of its parsers; onnxruntime is asked itself.
    `estimate` says what like builds took.
    """
    settled = await office.where_it_fits(_settled, database, store, settings, model, body)
    return _answer(settled, await preflights.look(settled.asked))


@dataclass(frozen=True, slots=True)
class _Settled:
    """What is known before the definition is looked at."""

    definition: int
    weights: int
    asked: Asked
    alive: frozenset[str]
    crash: str | None
    estimate: Estimate


def _settled(database: Database, store: ArtifactStore, settings: Settings, model: str, body: CheckRequest) -> _Settled:
    order, default = order_build(database, store, settings, model, body)
    settle_verify(body.verify, order.target, default)  # which a build would refuse
    crash = None if body.versions else spare_crashing(database, order, retry=body.retry_crashed)[1]
    alive = frozenset(member.said.version for member in order.target.members)
    with database.reading() as session:
        weights = session.scalars(select(WeightVersion.version).where(WeightVersion.id == order.weights_id)).one()
        found = estimate(session, order)
    asked = Asked.of(order, tuple(body.versions) or tuple(sorted(alive)), details=True)
    return _Settled(body.definition, weights, asked, alive, None if crash is None else crash.detail, found)


def _answer(settled: _Settled, looked: Looked) -> dict[str, Any]:
    verdicts = [{**one, "alive": one["version"] in settled.alive} for one in looked["verdicts"] or ()]
    problem = settled.crash or looked["endless"]
    return {
        "definition": settled.definition,
        "weights": settled.weights,
        "backend": settled.asked.backend,
        "ok": False if problem else _ok(verdicts),
        "problem": problem or (None if verdicts else UNTOLD),
        "notes": [] if settled.alive else [UNCHECKED.format(backend=settled.asked.backend)],
        "verdicts": verdicts,
        "estimate": _estimated(settled.estimate, looked["largest_value"]),
    }


def _ok(verdicts: Sequence[Mapping[str, Any]]) -> bool | None:
    taken = [one["taken"] for one in verdicts]
    if True in taken:
        return True
    return False if taken and None not in taken else None


def _estimated(found: Estimate, largest: Mapping[str, Any] | None) -> dict[str, Any]:
    parts = (found.weights_bytes, found.plan_bytes or 0, largest["bytes"] if largest is not None else 0)
    return {**asdict(found), "largest_value": largest, "memory_bytes": sum(parts)}
