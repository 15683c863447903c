"""Which jobs do like work, so that earlier ones say how long the next takes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from app.engines.tables import Engine
from app.remembered import remembered

VALUES = frozenset({"weights_id", "fingerprint", "inputs", "reuse"})  # change no work, only what it is done with
ENGINES = frozenset({"parent_id", "engine_id"})  # the engine to work on
RECIPE = select(Engine.recipe).where(Engine.id == bindparam("engine"))


def likeness(session: Session, *, kind: str, model_id: int, queue: str, request: Mapping[str, Any]) -> str | None:
    """Return a digest that jobs of like work have in common; None for one on an engine that is not there.

    The queue says the backend and, where it is settled, the platform. An engine to work on counts by its recipe, as
    engines that differ in their weights alone take equally long. Whatever else a request says counts too: where like
    work is taken for unlike its duration is unknown, the other way round it would be wrong.
    """
    work = {name: value for name, value in request.items() if name not in VALUES | ENGINES}
    for name in ENGINES & request.keys():
        work[name] = _recipe(session, request[name])
        if work[name] is None:
            return None
    canonical = json.dumps([kind, model_id, queue, work], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def was_there(result: Mapping[str, Any]) -> bool:
    """Tell whether a job found its result: an equal engine, or a plan that another job wrote."""
    return bool(result.get("reused")) or result.get("seconds") == {"total": 0.0}


def _recipe(session: Session, engine_id: int) -> str | None:
    def read() -> str | None:
        return session.connection().execute(RECIPE, {"engine": engine_id}).scalar_one_or_none()

    return remembered(session, "recipe", engine_id, read)
