"""Calls on bindings."""

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from app.artifacts.dependencies import StoreDep
from app.bindings import service
from app.bindings.proposals import Proposed
from app.bindings.report import BindingReport
from app.bindings.schemas import BindingRequest, ProposeAnswer, ReportAnswer
from app.http.dependencies import DatabaseDep
from app.http.problems import problems
from app.http.routes import WITH_RULES_BYTES, Route, max_body
from app.registry import service as registry

router = APIRouter(prefix="/models/{model}/bindings", tags=["bindings"], route_class=Route)


@router.post(
    "/check",
    summary="Check a binding",
    response_model=ReportAnswer,
    responses=problems(404, 422, 503),
    openapi_extra=max_body(WITH_RULES_BYTES),
)
def check_binding(model: str, body: BindingRequest, database: DatabaseDep, store: StoreDep) -> Response:
    """Say which tensors would feed which parameter, and list every problem at once. Nothing is built or kept."""
    with database.reading() as session:
        model_id = registry.get_model(session, model).id
        pair = service.load(session, model_id, body.definition, body.weights)
    return _json(ReportAnswer, _answer(pair.check(body.rules, store.read), body))


@router.post(
    "/propose",
    summary="Propose binding rules",
    response_model=ProposeAnswer,
    responses=problems(404, 422, 503),
    openapi_extra=max_body(WITH_RULES_BYTES),
)
def propose_rules(model: str, body: BindingRequest, database: DatabaseDep, store: StoreDep) -> Response:
    """Answer the rules that would bind the weights, what speaks for each, and what cannot be told.

    Names, shapes and usual ways of exporters are gone by, and some values: those of the weights that the definition
    came with. Rules of the request stay; the proposed ones stand before them. Nothing is built or kept.
    """
    with database.reading() as session:
        model_id = registry.get_model(session, model).id
        pair = service.load(session, model_id, body.definition, body.weights)
    rules, proposed, report = pair.propose(body.rules, store.read)
    answer = {
        "ok": report.ok and not proposed.unclear,
        "rules": rules,
        **_proposed(proposed),
        "report": _answer(report, body),
    }
    return _json(ProposeAnswer, answer)


def _json(model: type[BaseModel], answer: dict[str, Any]) -> Response:
    """Put an answer into JSON here, in the endpoint's thread: thousands of bindings take tens of milliseconds."""
    return Response(model.model_validate(answer).model_dump_json(), media_type="application/json")


def _answer(report: BindingReport, body: BindingRequest) -> dict[str, Any]:
    numbers = {"definition": body.definition, "weights": body.weights}
    return {**report.to_json(), **numbers, **_proposed(report.proposed)}


def _proposed(proposed: Proposed) -> dict[str, Any]:
    return {
        "proposals": [one.to_json() for one in proposed.proposals],
        "unclear": [one.to_json() for one in proposed.unclear],
    }
