"""Calls on bindings."""

from typing import Any

from fastapi import APIRouter, Response

from app.artifacts.dependencies import StoreDep
from app.artifacts.store import ArtifactStore
from app.bindings import service
from app.bindings.proposed import Proposed
from app.bindings.report import BindingReport
from app.bindings.schemas import BindingRequest, ProposeAnswer, ReportAnswer
from app.bindings.service import Pair
from app.database import Database
from app.http.dependencies import DatabaseDep
from app.http.problems import problems
from app.http.routes import WITH_RULES_BYTES, Route, max_body
from app.office.office import OfficeDep
from app.registry import service as registry

router = APIRouter(prefix="/models/{model}/bindings", tags=["bindings"], route_class=Route)

PROBLEMS = problems(404, 422, 503)
WITH_RULES = max_body(WITH_RULES_BYTES)


@router.post(
    "/check",
    summary="Check a binding",
    response_model=ReportAnswer,
    responses=PROBLEMS,
    openapi_extra=WITH_RULES,
)
async def check_binding(
    model: str, body: BindingRequest, database: DatabaseDep, store: StoreDep, office: OfficeDep
) -> Response:
    """Say which tensors would feed which parameter, and list every problem at once. Nothing is built or kept."""
    return _json(await office.where_it_fits(_checked, database, store, model, body))


@router.post(
    "/propose",
    summary="Propose binding rules",
    response_model=ProposeAnswer,
    responses=PROBLEMS,
    openapi_extra=WITH_RULES,
)
async def propose_rules(
    model: str, body: BindingRequest, database: DatabaseDep, store: StoreDep, office: OfficeDep
) -> Response:
    """Answer the rules that would bind the weights, what speaks for each, and what cannot be told.

    Names, shapes and usual ways of exporters are gone by, and some values: those of the weights that the definition
    came with. Rules of the request stay; the proposed ones stand before them. Nothing is built or kept.
    """
    return _json(await office.where_it_fits(_whole, database, store, model, body))


def _json(answer: bytes) -> Response:
    return Response(answer, media_type="application/json")


def _checked(database: Database, store: ArtifactStore, model: str, body: BindingRequest) -> bytes:
    report = _pair(database, model, body).check(body.rules, store.read)
    return ReportAnswer.model_validate(_answer(report, body)).model_dump_json().encode()


def _whole(database: Database, store: ArtifactStore, model: str, body: BindingRequest) -> bytes:
    rules, proposed, report = _pair(database, model, body).propose(body.rules, store.read)
    answer = {
        "ok": report.ok and not proposed.unclear,
        "rules": rules,
        **_proposed(proposed),
        "report": _answer(report, body),
    }
    return ProposeAnswer.model_validate(answer).model_dump_json().encode()


def _pair(database: Database, model: str, body: BindingRequest) -> Pair:
    with database.reading() as session:
        model_id = registry.get_model(session, model).id
        return service.load(session, model_id, body.definition, body.weights)


def _answer(report: BindingReport, body: BindingRequest) -> dict[str, Any]:
    numbers = {"definition": body.definition, "weights": body.weights}
    return {**report.to_json(), **numbers, **_proposed(report.proposed)}


def _proposed(proposed: Proposed) -> dict[str, Any]:
    return {
        "proposals": [one.to_json() for one in proposed.proposals],
        "unclear": [one.to_json() for one in proposed.unclear],
    }
