"""Calls on models."""

from typing import Any

from fastapi import APIRouter, Response

from app.http.dependencies import SessionDep
from app.http.pagination import Listing, PageDep
from app.http.problems import problems
from app.http.routes import Route
from app.registry import service
from app.registry.schemas import ModelAnswer, ModelRequest

router = APIRouter(prefix="/models", tags=["models"], route_class=Route)


@router.post(
    "",
    status_code=201,
    summary="Register a model",
    response_model=ModelAnswer,
    responses=problems(409, 422),
)
def create_model(body: ModelRequest, session: SessionDep, response: Response) -> Any:
    """A model groups definitions, weight versions, engines and aliases under one name."""
    response.headers["Location"] = f"/v1/models/{body.name}"
    return service.create_model(session, body.name, body.description, body.labels)


@router.get("", summary="List models", response_model=Listing[ModelAnswer], responses=problems(422))
def list_models(session: SessionDep, page: PageDep) -> Any:
    """Models in the order of their names."""
    return service.list_models(session, page)


@router.get("/{model}", summary="Read a model", response_model=ModelAnswer, responses=problems(404))
def read_model(model: str, session: SessionDep) -> Any:
    """The model's description and labels."""
    return service.get_model(session, model)
