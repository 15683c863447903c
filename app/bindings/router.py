"""Calls on bindings."""

from typing import Any

from fastapi import APIRouter

from app.bindings import service
from app.bindings.schemas import BindingRequest, ReportAnswer
from app.http.dependencies import DatabaseDep
from app.http.problems import problems
from app.registry import service as registry

router = APIRouter(prefix="/models/{model}/bindings", tags=["bindings"])


@router.post("/check", summary="Check a binding", response_model=ReportAnswer, responses=problems(404, 422))
def check_binding(model: str, body: BindingRequest, database: DatabaseDep) -> Any:
    """Say which tensors would feed which parameter, and list every problem at once. Nothing is built or kept."""
    with database.reading() as session:
        model_id = registry.get_model(session, model).id
        pair = service.load(session, model_id, body.definition, body.weights)
    report = pair.bind(body.rules)
    return {**report.to_json(), "definition": body.definition, "weights": body.weights}
