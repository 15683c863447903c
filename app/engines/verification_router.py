"""Calls on what the engines of a definition are verified with."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from app.definitions.service import get_definition
from app.definitions.tables import Definition
from app.engines import verifications
from app.engines.schemas import DefaultVerification
from app.http.dependencies import SessionDep
from app.http.fields import Number
from app.http.problems import problems
from app.http.routes import Route
from app.registry.service import get_model

router = APIRouter(prefix="/models/{model}/definitions/{version}/verification", tags=["definitions"], route_class=Route)

Version = Annotated[Number, Path(description="The number of the definition.")]


@router.put(
    "",
    summary="Settle what the engines of a definition are verified with",
    responses=problems(404, 422),
)
def put_verification(
    model: str, version: Version, body: DefaultVerification, session: SessionDep
) -> DefaultVerification:
    """Inputs for all builds, refits and verifications that say nothing.

    Without this, inputs are made up from the names, types and shapes of the definition's inputs.
    """
    definition = _definition(session, model, version)
    verifications.keep_default(session, definition, body)
    return body


@router.get(
    "",
    summary="Read what the engines of a definition are verified with",
    responses=problems(404, 422),
)
def read_verification(model: str, version: Version, session: SessionDep) -> DefaultVerification:
    """What was settled; 404 if inputs are made up."""
    kept = verifications.get_default(session, _definition(session, model, version))
    return DefaultVerification.model_validate(kept, strict=False)


@router.delete(
    "", status_code=204, summary="Have the inputs of verifications made up again", responses=problems(404, 422)
)
def delete_verification(model: str, version: Version, session: SessionDep) -> Response:
    """Forget what was settled; engines stay as they are."""
    verifications.drop_default(session, _definition(session, model, version))
    return Response(status_code=204)


def _definition(session: SessionDep, model: str, version: int) -> Definition:
    return get_definition(session, get_model(session, model).id, version)
