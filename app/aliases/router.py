"""Calls on aliases."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response

from app.aliases import service
from app.aliases.schemas import AliasAnswer, AliasMoveAnswer, AliasRequest
from app.engines.enqueue import materialise
from app.engines.queries import get_engine
from app.http.dependencies import SessionDep, SettingsDep
from app.http.pagination import Listing, PageDep
from app.http.problems import problems
from app.http.routes import Route
from app.jobs import service as jobs
from app.registry.schemas import Name
from app.registry.service import get_model

router = APIRouter(prefix="/models/{model}/aliases", tags=["aliases"], route_class=Route)

AliasPath = Annotated[Name, Path(description="The alias, such as `production`.")]


IfMatch = Annotated[str | None, Header(description="Move only if the alias still has this ETag.")]


IfNoneMatch = Annotated[str | None, Header(description="`*`: set only if the alias does not exist yet.")]


@router.get(
    "",
    summary="List aliases",
    response_model=Listing[AliasAnswer],
    responses=problems(404, 422),
)
def list_aliases(model: str, session: SessionDep, page: PageDep) -> Any:
    """The model's aliases in the order of their names."""
    return service.list_aliases(session, get_model(session, model), page)


@router.put(
    "/{alias}",
    summary="Set or move an alias",
    response_model=AliasAnswer,
    responses={201: {"model": AliasAnswer, "description": "The alias is new."}, **problems(404, 412, 422)},
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
    owner = get_model(session, model)
    engine = get_engine(session, owner.id, body.engine)
    row, created = service.move_alias(
        session, owner, alias, engine.number, if_match=if_match, if_none_match=if_none_match
    )
    jobs.bind_dispatch(session, request.app.state.dispatch)
    materialise(session, settings, engine)
    response.headers["ETag"] = service.etag(row)
    response.status_code = 201 if created else 200
    return row


@router.get(
    "/{alias}",
    summary="Read an alias",
    response_model=AliasAnswer,
    responses={304: {"description": "If-None-Match names it: the alias has not moved."}, **problems(404)},
)
def read_alias(
    model: str,
    alias: AliasPath,
    session: SessionDep,
    response: Response,
    if_none_match: Annotated[str | None, Header(description="The ETag of what the client has already.")] = None,
) -> Any:
    """The engine the alias names; the answer's ETag goes into If-Match of the next move."""
    row = service.get_alias(session, get_model(session, model), alias)
    if if_none_match is not None and service.matches(if_none_match, service.etag(row)):
        return Response(status_code=304, headers={"ETag": service.etag(row)})
    response.headers["ETag"] = service.etag(row)
    return row


@router.delete(
    "/{alias}",
    status_code=204,
    summary="Delete an alias",
    responses=problems(404, 412),
)
def delete_alias(model: str, alias: AliasPath, session: SessionDep, if_match: IfMatch = None) -> None:
    """The alias goes, its history and the engine stay."""
    service.delete_alias(session, get_model(session, model), alias, if_match=if_match)


@router.get(
    "/{alias}/history",
    summary="Read an alias's history",
    response_model=Listing[AliasMoveAnswer],
    responses=problems(404, 422),
)
def read_history(model: str, alias: AliasPath, session: SessionDep, page: PageDep) -> Any:
    """Every move of the alias, newest first; kept also after the alias was deleted."""
    return service.list_moves(session, get_model(session, model), alias, page)
