"""Setting, moving and deleting the names of engines.

An alias's revision grows by one with every move and every deletion. It goes on growing if a deleted alias is set
again, so an ETag that a client holds never comes to mean another state.
"""

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.aliases.tables import Alias, AliasMove
from app.database import now
from app.errors import NotFound, PreconditionFailed
from app.http.pagination import PageQuery, Rows, list_rows
from app.registry.service import lock_model
from app.registry.tables import Model


def get_alias(session: Session, model: Model, name: str) -> Alias:
    """Return an alias; raises NotFound "alias_not_found"."""
    alias = session.get(Alias, (model.id, name))
    if alias is None:
        raise NotFound(
            f"Model '{model.name}' has no alias '{name}'. Set it with "
            f'PUT /v1/models/{model.name}/aliases/{name} {{"engine": N}}.',
            code="alias_not_found",
        )
    return alias


def list_aliases(session: Session, model: Model, page: PageQuery) -> Rows[Alias]:
    """Return one page of a model's aliases, by name."""
    return list_rows(session, select(Alias).where(Alias.model_id == model.id), Alias.name, page, newest_first=False)


def list_moves(session: Session, model: Model, name: str, page: PageQuery) -> Rows[AliasMove]:
    """Return one page of an alias's history, newest first; a deleted alias keeps its history."""
    statement = select(AliasMove).where(AliasMove.model_id == model.id, AliasMove.alias == name)
    return list_rows(session, statement, AliasMove.id, page)


def move_alias(
    session: Session, model: Model, name: str, engine: int, *, if_match: str | None, if_none_match: str | None
) -> tuple[Alias, bool]:
    """Point an alias at an engine, and return it and whether it is new; raises PreconditionFailed if a header fails."""
    lock_model(session, model.id)
    alias = session.get(Alias, (model.id, name), populate_existing=True)
    _check(alias, name, if_match, if_none_match)
    if alias is not None and alias.engine == engine:
        return alias, False
    created = alias is None
    if alias is None:
        alias = Alias(model_id=model.id, name=name, engine=engine, revision=_last_revision(session, model, name) + 1)
        session.add(alias)
    else:
        alias.engine, alias.revision, alias.updated_at = engine, alias.revision + 1, now()
    session.add(AliasMove(model_id=model.id, alias=name, engine=engine, revision=alias.revision))
    session.flush()
    return alias, created


def delete_alias(session: Session, model: Model, name: str, *, if_match: str | None) -> None:
    """Delete an alias and keep its history; raises NotFound "alias_not_found" or PreconditionFailed."""
    lock_model(session, model.id)
    alias = get_alias(session, model, name)
    _check(alias, name, if_match, None)
    session.add(AliasMove(model_id=model.id, alias=name, engine=None, revision=alias.revision + 1))
    session.execute(delete(Alias).where(Alias.model_id == model.id, Alias.name == name))


def etag(alias: Alias) -> str:
    """Return the entity tag of an alias's present state."""
    return f'"{alias.revision}"'


def _check(alias: Alias | None, name: str, if_match: str | None, if_none_match: str | None) -> None:
    present = etag(alias) if alias else None
    if if_match is not None and not matches(if_match, present):
        raise PreconditionFailed(
            f"The alias '{name}' has moved: its ETag is {present}. GET it again, decide anew, and send that ETag in "
            "If-Match."
            if present
            else f"The alias '{name}' does not exist. Leave If-Match out to set it."
        )
    if if_none_match is not None and matches(if_none_match, present):
        raise PreconditionFailed(f"The alias '{name}' already exists. Leave If-None-Match out to move it.")


def matches(header: str, present: str | None) -> bool:
    """Return whether an If-Match or If-None-Match header names the present entity tag; "*" names any that exists."""
    return present is not None and (header.strip() == "*" or present in [tag.strip() for tag in header.split(",")])


def _last_revision(session: Session, model: Model, name: str) -> int:
    statement = select(func.max(AliasMove.revision)).where(AliasMove.model_id == model.id, AliasMove.alias == name)
    return session.scalar(statement) or 0
