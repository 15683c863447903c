"""Calls on definitions."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from sqlalchemy.orm import Session

from app.artifacts.dependencies import StoreDep
from app.children.dependencies import ChildrenDep
from app.database import Database
from app.definitions import service
from app.definitions.parameter import Parameter
from app.definitions.schemas import CrashAnswer, DefinitionAnswer, DefinitionRequest, ParameterAnswer
from app.definitions.tables import Definition
from app.http.dependencies import DatabaseDep, SessionDep, SettingsDep
from app.http.fields import Number
from app.http.pagination import Listing, PageDep, PageQuery, Rows, list_items
from app.http.problems import problems
from app.http.routes import WITH_RULES_BYTES, Route, max_body
from app.office.office import OfficeDep
from app.registry import service as registry

router = APIRouter(prefix="/models/{model}/definitions", tags=["definitions"], route_class=Route)

Version = Annotated[Number, Path(description="The number of the definition.")]


@router.post(
    "",
    status_code=201,
    summary="Make a definition",
    response_model=DefinitionAnswer,
    responses={
        200: {"model": DefinitionAnswer, "description": "The model already has a definition of the same graph."},
        **problems(404, 422, 503),
    },
    openapi_extra=max_body(WITH_RULES_BYTES),  # a config names each of its labels twice
)
async def create_definition(
    model: str,
    body: DefinitionRequest,
    database: DatabaseDep,
    store: StoreDep,
    settings: SettingsDep,
    children: ChildrenDep,
    response: Response,
) -> Any:
    """From a family and its Hugging Face config, or from an ONNX file sent with PUT /v1/blobs/<digest>.

    An ONNX file is checked under limits and its weights are split off: `weights` is the version they became.
    """
    house = children.definitions
    created = await house.fill(service.order_definition, database, store, settings, house, model, body)
    response.status_code = 201 if created.is_new else 200
    response.headers["Location"] = f"/v1/models/{model}/definitions/{created.definition.version}"
    answer = DefinitionAnswer.model_validate(created.definition)
    crashes = [CrashAnswer.model_validate(crash) for crash in created.crashes]
    return answer.model_copy(update={"weights": created.weights, "crashes": crashes})


@router.get("", summary="List definitions", response_model=Listing[DefinitionAnswer], responses=problems(404, 422))
def list_definitions(model: str, session: SessionDep, page: PageDep) -> Any:
    """The model's definitions, newest first."""
    rows = service.list_definitions(session, registry.get_model(session, model).id, page)
    return Rows(_answers(session, rows.data), rows.has_more, rows.next_cursor)


@router.get("/{version}", summary="Read a definition", response_model=DefinitionAnswer, responses=problems(404, 422))
def read_definition(model: str, version: Version, session: SessionDep) -> Any:
    """Where it came from, its inputs and outputs, how many parameters it has, and what compilers crashed at."""
    return _answers(session, [service.get_definition(session, registry.get_model(session, model).id, version)])[0]


@router.get(
    "/{version}/parameters",
    summary="List the parameters of a definition",
    response_model=Listing[ParameterAnswer],
    responses=problems(404, 422, 503),
)
async def list_parameters(model: str, version: Version, database: DatabaseDep, office: OfficeDep, page: PageDep) -> Any:
    """Name, dtype and shape of every parameter, in the order of their names."""
    return await office.where_it_fits(_parameters, database, model, version, page)


def _answers(session: Session, definitions: Sequence[Definition]) -> list[DefinitionAnswer]:
    crashes = service.crashes_of(session, [one.id for one in definitions])
    return [
        DefinitionAnswer.model_validate(one).model_copy(
            update={"crashes": [CrashAnswer.model_validate(crash) for crash in crashes.get(one.id, ())]}
        )
        for one in definitions
    ]


def _parameters(database: Database, model: str, version: int, page: PageQuery) -> Rows[Parameter]:
    with database.reading() as session:
        model_id = registry.get_model(session, model).id
        parameters = service.load_parameters(session, service.get_definition(session, model_id, version).id)
    return list_items(parameters, lambda parameter: parameter.name, page)
