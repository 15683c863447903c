"""Registering and finding models, and numbering their definitions, weight versions and engines."""

from collections.abc import Mapping
from typing import Literal

from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.errors import Conflict, NotFound, shown
from app.http.pagination import PageQuery, Rows, list_rows
from app.registry.tables import Model

BY_NAME = select(Model).where(Model.name == bindparam("name"))
NEXT = {
    name: update(Model).where(Model.id == bindparam("model")).values({column: column + 1}).returning(column)
    for name, column in (
        ("definition", Model.last_definition),
        ("weights", Model.last_weights),
        ("engine", Model.last_engine),
        ("sweep", Model.last_sweep),
    )
}


def create_model(session: Session, name: str, description: str, labels: Mapping[str, str]) -> Model:
    """Register a model; raises Conflict "model_exists" if the name is taken."""
    model = Model(name=name, description=description, labels=dict(labels))
    session.add(model)
    try:
        session.flush()
    except IntegrityError as error:
        raise Conflict(
            f"There already is a model '{name}'. Use it, or choose another name.", code="model_exists"
        ) from error
    return model


def get_model(session: Session, name: str) -> Model:
    """Return a model by its name; raises NotFound "model_not_found"."""
    model = session.scalar(BY_NAME, {"name": name})
    if model is None:
        raise NotFound(
            f"There is no model '{shown(name)}'. Register it with POST /v1/models, or list what there is with "
            "GET /v1/models.",
            code="model_not_found",
        )
    return model


def list_models(session: Session, page: PageQuery) -> Rows[Model]:
    """Return one page of models, by name."""
    return list_rows(session, select(Model), Model.name, page, newest_first=False)


def lock_model(session: Session, model_id: int) -> None:
    """Lock a model's row until the transaction ends; on SQLite every transaction is alone anyway."""
    session.execute(select(Model.id).where(Model.id == model_id).with_for_update())


def next_number(session: Session, model_id: int, counter: Literal["definition", "weights", "engine", "sweep"]) -> int:
    """Take the next number of a model's definitions, weight versions, engines or sweeps.

    The row stays locked until the transaction ends, so numbers have no gap and no duplicate.
    """
    return session.connection().execute(NEXT[counter], {"model": model_id}).scalar_one()
