"""What a build is likely to need, told from the engines that were built of like graphs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log
from statistics import median
from typing import Any, Literal

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from app.engines.checks import Order
from app.engines.facts import read_facts
from app.engines.tables import Engine
from app.weights.tables import WeightVersion

MAX_ROWS = 500  # the newest builds of the backend that are looked at
MAX_ALIKE = 20
MAX_FACTOR = 4.0  # between the sizes of weights that are alike
MAX_FIXED = 100

Basis = Literal["same_recipe", "same_definition", "similar_size", "none"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What like builds took. `basis` says what they have in common with this one, and `builds` how many they are.

    `seconds` and `plan_bytes` are medians, the latter scaled by the bytes of the weights if only the sizes are similar.
    `fixed_parameters` are those of the newest engine of the same recipe that refits cannot change.
    """

    basis: Basis
    builds: int
    weights_bytes: int
    seconds: float | None = None
    plan_bytes: int | None = None
    fixed_parameters: tuple[str, ...] = ()


def estimate(session: Session, order: Order) -> Estimate:
    """Return what the build of an order is likely to need."""
    nbytes = session.scalars(select(WeightVersion.bytes).where(WeightVersion.id == order.weights_id)).one()
    rows = session.execute(
        select(Engine.id, Engine.recipe, Engine.definition_id, Engine.timings, Engine.plan_bytes, WeightVersion.bytes)
        .join(WeightVersion, WeightVersion.id == Engine.weights_id)
        .where(Engine.backend == order.target.backend, Engine.method == "build")
        .order_by(Engine.id.desc())
        .limit(MAX_ROWS)
    ).all()
    same_recipe = [row for row in rows if row.recipe == order.recipe]
    if same_recipe:
        return _told("same_recipe", same_recipe, nbytes, _fixed(session, same_recipe[0].id))
    same_definition = [row for row in rows if row.definition_id == order.definition_id]
    if same_definition:
        return _told("same_definition", same_definition, nbytes)
    similar = sorted(
        (row for row in rows if _apart(row, nbytes) <= log(MAX_FACTOR)), key=lambda row: _apart(row, nbytes)
    )
    return _told("similar_size", similar, nbytes) if similar else Estimate("none", 0, nbytes)


def _told(basis: Basis, rows: Sequence[Row[Any]], nbytes: int, fixed: tuple[str, ...] = ()) -> Estimate:
    alike = rows[:MAX_ALIKE]
    plans = _median(row.plan_bytes * _scale(basis, row, nbytes) for row in alike if row.plan_bytes is not None)
    seconds = _median(row.timings["total"] for row in alike if "total" in row.timings)
    return Estimate(basis, len(alike), nbytes, seconds, None if plans is None else round(plans), fixed)


def _scale(basis: Basis, row: Row[Any], nbytes: int) -> float:
    return nbytes / row.bytes if basis == "similar_size" and row.bytes else 1.0


def _apart(row: Row[Any], nbytes: int) -> float:
    return abs(log(max(nbytes, 1) / max(row.bytes, 1)))


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return median(found) if found else None


def _fixed(session: Session, engine_id: int) -> tuple[str, ...]:
    facts = session.scalars(select(Engine.facts).where(Engine.id == engine_id)).one()
    return read_facts(facts).fixed_parameters[:MAX_FIXED]
