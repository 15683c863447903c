"""Calls on models and aliases."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response

from app.dependencies import SessionDep, SettingsDep
from app.engines import service as engines
from app.jobs import service as jobs
from app.pagination import Listing, PageDep
from app.problems import problems
from app.registry import aliases, service
from app.registry.schemas import AliasAnswer, AliasMoveAnswer, AliasRequest, ModelAnswer, ModelRequest, Name

router = APIRouter(prefix="/models")

AliasPath = Annotated[Name, Path(description="The alias, such as `production`.")]
IfMatch = Annotated[str | None, Header(description="Move only if the alias still has this ETag.")]
IfNoneMatch = Annotated[str | None, Header(description="`*`: set only if the alias does not exist yet.")]


@router.post(
    "",
    status_code=201,
    summary="Register a model",
    response_model=ModelAnswer,
    responses=problems(409, 422),
    tags=["models"],
)
def create_model(body: ModelRequest, session: SessionDep, response: Response) -> Any:
    """A model groups definitions, weight versions, engines and aliases under one name."""
    response.headers["Location"] = f"/v1/models/{body.name}"
    return service.create_model(session, body.name, body.description, body.labels)


@router.get("", summary="List models", response_model=Listing[ModelAnswer], responses=problems(422), tags=["models"])
def list_models(session: SessionDep, page: PageDep) -> Any:
    """Models in the order of their names."""
    return service.list_models(session, page)


@router.get("/{model}", summary="Read a model", response_model=ModelAnswer, responses=problems(404), tags=["models"])
def read_model(model: str, session: SessionDep) -> Any:
    """The model's description and labels."""
    return service.get_model(session, model)


@router.get(
    "/{model}/aliases",
    summary="List aliases",
    response_model=Listing[AliasAnswer],
    responses=problems(404, 422),
    tags=["aliases"],
)
def list_aliases(model: str, session: SessionDep, page: PageDep) -> Any:
    """The model's aliases in the order of their names."""
    return aliases.list_aliases(session, service.get_model(session, model), page)


@router.put(
    "/{model}/aliases/{alias}",
    summary="Set or move an alias",
    response_model=AliasAnswer,
    responses={201: {"model": AliasAnswer, "description": "The alias is new."}, **problems(404, 412, 422)},
    tags=["aliases"],
)
def move_alias(
    model: str,
    alias: AliasPath,
    body: AliasRequest,
    session: SessionDep,
    settings: SettingsDep,
    request: Request,
    response: Response,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Any:
    """Point the alias at an engine. Send the ETag you last saw in If-Match so as not to undo another's move.

    An engine that was refitted lazily gets its plan written: what has a name is to be downloaded.
    """
    owner = service.get_model(session, model)
    engine = engines.get_engine(session, owner.id, body.engine)
    row, created = aliases.move_alias(
        session, owner, alias, engine.number, if_match=if_match, if_none_match=if_none_match
    )
    jobs.bind_dispatch(session, request.app.state.dispatch)
    engines.materialise(session, settings, engine)
    response.headers["ETag"] = aliases.etag(row)
    response.status_code = 201 if created else 200
    return row


@router.get(
    "/{model}/aliases/{alias}",
    summary="Read an alias",
    response_model=AliasAnswer,
    responses={304: {"description": "If-None-Match names it: the alias has not moved."}, **problems(404)},
    tags=["aliases"],
)
def read_alias(
    model: str,
    alias: AliasPath,
    session: SessionDep,
    response: Response,
    if_none_match: Annotated[str | None, Header(description="The ETag of what the client has already.")] = None,
) -> Any:
    """The engine the alias names; the answer's ETag goes into If-Match of the next move."""
    row = aliases.get_alias(session, service.get_model(session, model), alias)
    if if_none_match is not None and aliases.matches(if_none_match, aliases.etag(row)):
        return Response(status_code=304, headers={"ETag": aliases.etag(row)})
    response.headers["ETag"] = aliases.etag(row)
    return row


@router.delete(
    "/{model}/aliases/{alias}",
    status_code=204,
    summary="Delete an alias",
    responses=problems(404, 412),
    tags=["aliases"],
)
def delete_alias(model: str, alias: AliasPath, session: SessionDep, if_match: IfMatch = None) -> None:
    """The alias goes, its history and the engine stay."""
    aliases.delete_alias(session, service.get_model(session, model), alias, if_match=if_match)


@router.get(
    "/{model}/aliases/{alias}/history",
    summary="Read an alias's history",
    response_model=Listing[AliasMoveAnswer],
    responses=problems(404, 422),
    tags=["aliases"],
)
def read_history(model: str, alias: AliasPath, session: SessionDep, page: PageDep) -> Any:
    """Every move of the alias, newest first; kept also after the alias was deleted."""
    return aliases.list_moves(session, service.get_model(session, model), alias, page)
