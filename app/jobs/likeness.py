"""Which jobs do like work, so that earlier ones say how long the next takes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

VALUES = frozenset({"weights_id", "fingerprint", "reuse"})  # change no work, only what it is done with
ENGINES = frozenset({"parent_id", "engine_id"})  # the engine to work on, which counts by its recipe


def likeness(*, kind: str, model_id: int, queue: str, request: Mapping[str, Any], recipe: str) -> str:
    """Return a digest that jobs of like work have in common.

    The queue says the backend and, where it is settled, the platform. `recipe` is that of the engine to make or to
    work on, as engines that differ in their weights alone take equally long. Whatever else a request says counts too:
    where like work is taken for unlike its duration is unknown, the other way round it would be wrong.
    """
    work = {name: value for name, value in request.items() if name not in VALUES | ENGINES}
    canonical = json.dumps([kind, model_id, queue, recipe, work], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
