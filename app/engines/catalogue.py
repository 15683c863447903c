"""Finding engines."""

from collections.abc import Collection

from sqlalchemy import Select, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased, undefer

from app.engines.lineage import Family, Relative, arrange
from app.engines.tables import Engine
from app.errors import NotFound
from app.pagination import PageQuery, Rows, list_rows
from app.weights.tables import WeightVersion

INPUTS = (Engine.profiles, Engine.options, Engine.rules)
DETAIL = (Engine.profiles, Engine.options, Engine.verification, Engine.facts, Engine.timings)


def get_engine(
    session: Session, model_id: int, number: int, *, load: Collection[InstrumentedAttribute[object]] = ()
) -> Engine:
    """Return an engine, with those deferred columns that `load` names; NotFound."""
    engine = session.scalar(_of(model_id).where(Engine.number == number).options(*map(undefer, load)))
    if engine is None:
        raise NotFound(
            f"This model has no engine {number}. GET its …/engines lists them; POST …/builds makes one.",
            code="engine_not_found",
        )
    return engine


def list_engines(
    session: Session,
    model_id: int,
    page: PageQuery,
    *,
    definition: int | None = None,
    weights: int | None = None,
    backend: str | None = None,
) -> Rows[Engine]:
    """Return one page of a model's engines, newest first."""
    statement = _of(model_id)
    filters = {Engine.definition: definition, Engine.weights: weights, Engine.backend: backend}
    for column, value in filters.items():
        if value is not None:
            statement = statement.where(column == value)
    return list_rows(session, statement, Engine.number, page)


def find_equal(
    session: Session, model_id: int, fingerprint: str, *, backend_versions: Collection[str] = ()
) -> Engine | None:
    """Return the newest engine of this fingerprint; of one of these backend versions where any are given."""
    statement = _of(model_id).where(Engine.fingerprint == fingerprint)
    return _newest(session, _served(statement, backend_versions))


def find_parent(session: Session, model_id: int, recipe: str, backend_versions: Collection[str]) -> Engine | None:
    """Return the newest engine that can be refitted into another of its recipe."""
    statement = _of(model_id).where(Engine.recipe == recipe, Engine.refittable)
    return _newest(session, _served(statement, backend_versions))


def find_example(session: Session, model_id: int, definition: int, backend: str) -> Engine | None:
    """Return the newest engine of a definition and backend, with its profiles, options and rules."""
    statement = _of(model_id).where(Engine.definition == definition, Engine.backend == backend)
    return _newest(session, statement.options(*map(undefer, INPUTS)))


def load_family(session: Session, model_id: int, number: int, *, ancestors: int, descendants: int) -> Family:
    """Return an engine with at most so many ancestors and descendants; NotFound."""
    engine = get_engine(session, model_id, number)
    found = {number, *_ancestors(session, engine, ancestors), *_descendants(session, engine, descendants + 1)}
    statement = (
        select(
            Engine.number,
            Engine.method,
            Engine.parent,
            Engine.weights,
            Engine.weights_id,
            WeightVersion.label,
            Engine.created_at,
        )
        .join(WeightVersion, WeightVersion.id == Engine.weights_id)
        .where(Engine.model_id == model_id, Engine.number.in_(found))
    )
    return arrange(
        (Relative(*row) for row in session.execute(statement)), number, ancestors=ancestors, descendants=descendants
    )


def _of(model_id: int) -> Select[Engine]:
    return select(Engine).where(Engine.model_id == model_id)


def _served(statement: Select[Engine], backend_versions: Collection[str]) -> Select[Engine]:
    if not backend_versions:
        return statement
    return statement.where(Engine.backend_version.in_(sorted(backend_versions)))


def _newest(session: Session, statement: Select[Engine]) -> Engine | None:
    return session.scalar(statement.order_by(Engine.number.desc()).limit(1))


def _ancestors(session: Session, engine: Engine, limit: int) -> list[int]:
    """Follow the parents up, one row a generation, so that the limit ends the recursion itself."""
    chain = (
        select(Engine.parent.label("number"))
        .where(Engine.model_id == engine.model_id, Engine.number == engine.number, Engine.parent.is_not(None))
        .cte("ancestors", recursive=True)
    )
    chain = chain.union_all(
        select(Engine.parent)
        .join(chain, Engine.number == chain.c.number)
        .where(Engine.model_id == engine.model_id, Engine.parent.is_not(None))
    )
    return [number for number in session.scalars(select(chain.c.number).limit(limit)) if number is not None]


def _descendants(session: Session, engine: Engine, limit: int) -> list[int]:
    """Follow the children down, level by level; both databases stop the recursion at the limit."""
    tree = (
        select(Engine.number.label("number"))
        .where(Engine.model_id == engine.model_id, Engine.parent == engine.number)
        .cte("descendants", recursive=True)
    )
    child = aliased(Engine)
    tree = tree.union_all(
        select(child.number).join(tree, child.parent == tree.c.number).where(child.model_id == engine.model_id)
    )
    return list(session.scalars(select(tree.c.number).limit(limit)))
