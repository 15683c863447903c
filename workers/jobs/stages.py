"""The stages of a job, as its result tells of them."""

from collections.abc import Mapping
from typing import Any

from app.engines.stages import STAGES
from workers.channel.messages import Spent


def merged(*several: Mapping[str, Spent]) -> dict[str, Spent]:
    """Return all stages, each with the sum of its seconds and bytes; those that every job has are there in any case."""
    total = dict.fromkeys(STAGES, Spent(0.0))
    for stages in several:
        for name, one in stages.items():
            before = total.get(name, Spent(0.0))
            total[name] = Spent(before.seconds + one.seconds, before.nbytes + one.nbytes)
    return total


def stages_json(stages: Mapping[str, Spent]) -> dict[str, Any]:
    """Return stages as a job's result has them: {name: {"seconds", "bytes"}}."""
    return {name: {"seconds": one.seconds, "bytes": one.nbytes} for name, one in stages.items()}


def timings_json(stages: Mapping[str, Spent], seconds: float) -> dict[str, float]:
    """Return the seconds by stage that an engine keeps; "total" is the whole job's."""
    return {name: one.seconds for name, one in stages.items()} | {"total": seconds}
