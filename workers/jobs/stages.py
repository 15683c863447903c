"""The stages of a job, as its result tells of them.

Every refit has the same ten, whatever the backend; a build has more of them. Stages may overlap: a plan is written
while its engine is verified. So their seconds may add up to more than the job took.
"""

from collections.abc import Mapping
from typing import Any, Final

from workers.channel.messages import Spent

REFIT: Final = (
    "queue",  # from the request until a worker took the job; in later attempts, all that came before
    "bind",  # reading what the job is about, fetching the files it needs, checking the signatures of plans
    "load",  # making an engine of the plan, if none was resident
    "transform",  # finding the parameters' bytes, and computing those that have transforms
    "read",  # waiting until weights are where the device or the runtime reads them
    "refit",  # putting the weights into the engine
    "check",  # waiting until the stored bytes are digested that nobody had digested before
    "verify",
    "serialize",  # making a plan of the engine
    "write",  # waiting until the plan is written, and in the store
)


def merged(*several: Mapping[str, Spent]) -> dict[str, Spent]:
    """Return all stages, each with the sum of its seconds and bytes; those of a refit are there in any case."""
    total = dict.fromkeys(REFIT, Spent(0.0))
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
