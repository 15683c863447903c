"""Finding engines."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased, undefer

from app.bindings.tables import Binding
from app.database import Database
from app.engines.facts import EngineFacts, read_facts
from app.engines.fingerprint import recipe as recipe_of
from app.engines.lineage import Lineage, Relative, arrange
from app.engines.tables import Engine
from app.errors import NotFound
from app.heavy import check_size
from app.http.pagination import PageQuery, Rows, list_rows
from app.weights.diff import diff
from app.weights.manifest import Manifest
from app.weights.service import load_rows
from app.weights.tables import WeightVersion

INPUTS = (Engine.profiles, Engine.options, Engine.rules)
MAX_EQUAL = 16  # of as many equal engines it is looked up how they were verified
DETAIL = (
    Engine.profiles,
    Engine.options,
    Engine.verification,
    Engine.facts,
    Engine.timings,
    Engine.device_fingerprint,
)


def get_engine(
    session: Session, model_id: int, number: int, *, load: Collection[InstrumentedAttribute[object]] = ()
) -> Engine:
    """Return an engine with the deferred columns that `load` names; raises NotFound if the model has no such engine."""
    engine = session.scalar(_by_number(tuple(load)), {"model": model_id, "number": number})
    if engine is None:
        raise NotFound(
            f"This model has no engine {number}. GET its …/engines lists them; POST …/builds makes one.",
            code="engine_not_found",
        )
    return engine


@cache
def _by_number(load: tuple[InstrumentedAttribute[object], ...]) -> Select[Engine]:
    same = (Engine.model_id == bindparam("model"), Engine.number == bindparam("number"))
    return select(Engine).where(*same).options(*map(undefer, load))


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


@dataclass(frozen=True, slots=True)
class Served:
    """The engines that the workers alive can use: their backend version and their platform are among these.

    If there are no versions, no worker alive offers the backend, and every engine counts.
    """

    versions: Collection[str] = ()
    platforms: Collection[str] = ()

    def narrow(self, statement: Select[Any]) -> Select[Any]:
        """Return the query narrowed to these engines."""
        if not self.versions:
            return statement
        return statement.where(
            Engine.backend_version.in_(sorted(self.versions)), Engine.platform.in_(sorted(self.platforms))
        )


def find_equal(session: Session, model_id: int, fingerprint: str, served: Served) -> Sequence[Engine]:
    """Return the newest engines with this fingerprint, the newest first, each with its verification."""
    statement = served.narrow(_of(model_id).where(Engine.fingerprint == fingerprint))
    newest = statement.order_by(Engine.number.desc()).limit(MAX_EQUAL)
    return session.scalars(newest.options(undefer(Engine.verification))).all()


def find_parent(
    session: Session, model_id: int, recipe: str, served: Served, root_plans: Collection[str] | None = None
) -> Engine | None:
    """Return the newest refittable engine of a recipe, among those with one of `root_plans` if these are given."""
    statement = served.narrow(_of(model_id).where(Engine.recipe == recipe, Engine.refittable))
    if root_plans is not None:
        statement = statement.where(Engine.root_plan.in_(sorted(root_plans)))
    return _newest(session, statement)


def find_versions(session: Session, model_id: int, recipe: str) -> frozenset[str]:
    """Return the versions of the backend that have compiled a recipe."""
    statement = select(Engine.backend_version).where(Engine.model_id == model_id, Engine.recipe == recipe).distinct()
    return frozenset(session.scalars(statement))


@dataclass(frozen=True, slots=True)
class Values:
    """The values of an engine's parameters: its binding report and the rows of its weights' manifest, as JSON.

    `facts` name the parameters that the compiled engine has not kept as weights.
    """

    engine_id: int
    root_plan: str
    binding: dict[str, Any]
    rows: list[Any]
    facts: EngineFacts


def find_roots(
    session: Session, model_id: int, recipe: str, served: Served, *, limit: int
) -> list[tuple[int, EngineFacts]]:
    """Return the id and facts of the newest refittable engine of each root plan, for the `limit` newest root plans."""
    newest = func.max(Engine.id)
    refittable = select(newest).where(Engine.model_id == model_id, Engine.recipe == recipe, Engine.refittable)
    roots = served.narrow(refittable).group_by(Engine.root_plan)
    found = session.scalars(roots.order_by(newest.desc()).limit(limit)).all()
    rows = session.execute(select(Engine.id, Engine.facts).where(Engine.id.in_(found)).order_by(Engine.id.desc()))
    return [(engine_id, read_facts(facts)) for engine_id, facts in rows]


def load_values(session: Session, engine_id: int) -> Values:
    """Load the values of an engine's parameters; raises Heavy if they are too many for this process."""
    weights = select(Engine.weights_id).where(Engine.id == engine_id).scalar_subquery()
    check_size(session, select(WeightVersion.tensor_count).where(WeightVersion.id == weights))
    statement = (
        select(Engine.id, Engine.root_plan, Binding.report, WeightVersion.manifest, Engine.facts)
        .join(Binding, Binding.id == Engine.binding_id)
        .join(WeightVersion, WeightVersion.id == Engine.weights_id)
        .where(Engine.id == engine_id)
    )
    engine_id, root_plan, binding, rows, facts = session.execute(statement).one()
    return Values(engine_id, root_plan, binding, rows, read_facts(facts))


def find_verification(
    session: Session,
    model_id: int,
    *,
    definition_digest: str,
    backend: str,
    profiles: Sequence[Any],
    options: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Return the figures of the newest engine that differs in its weights at most, None if there is none."""
    same = recipe_of(definition_digest=definition_digest, backend=backend, profiles=profiles, options=options)
    statement = select(Engine.verification).where(Engine.model_id == model_id, Engine.recipe == same)
    return session.scalar(statement.order_by(Engine.number.desc()).limit(1))


def find_example(session: Session, model_id: int, definition: int, backend: str) -> Engine | None:
    """Return the newest engine of a definition and backend, with its profiles, options and rules."""
    statement = _of(model_id).where(Engine.definition == definition, Engine.backend == backend)
    return _newest(session, statement.options(*map(undefer, INPUTS)))


def load_lineage(session: Session, model_id: int, number: int, *, ancestors: int, descendants: int) -> Lineage:
    """Return an engine with at most so many ancestors and descendants; raises NotFound if there is no such engine."""
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


def _newest(session: Session, statement: Select[Engine]) -> Engine | None:
    return session.scalar(statement.order_by(Engine.number.desc()).limit(1))


def _ancestors(session: Session, engine: Engine, limit: int) -> list[int]:
    """Return the numbers of the ancestors; each generation is one row, so LIMIT ends the recursion itself."""
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
    """Return the numbers of the descendants, level by level; both databases stop the recursion at the limit."""
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


def count_changed_tensors(database: Database, lineage: Lineage) -> dict[int, int]:
    """Count, by engine number, the tensors that differ from the weights of the engine's parent.

    Added, removed and changed tensors count alike. This loads one manifest at a time, each in a session of its own,
    and keeps only the one before. So along a chain of refits no manifest is loaded twice.
    """
    counts: dict[tuple[int, int], int] = {}
    held: tuple[int, Manifest] | None = None
    steps = lineage.weight_steps
    for older, newer in sorted(set(steps.values())):
        before = held[1] if held is not None and held[0] == older else _load(database, older)
        after = before if newer == older else _load(database, newer)
        held = (newer, after)
        counts[older, newer] = len(diff(before, after).changes)
    return {number: counts[step] for number, step in steps.items()}


def _load(database: Database, weights_id: int) -> Manifest:
    with database.reading() as session:
        rows = load_rows(session, weights_id)
    return Manifest.from_json(rows)
