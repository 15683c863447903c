"""The stages that every job has which makes or measures an engine, whatever the backend.

A build has more of them. Stages may overlap: a plan is written while its engine is verified. So their seconds may add
up to more than the job took.
"""

from typing import Any, Final

STAGES: Final = (
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


def no_time() -> dict[str, Any]:
    """Return the seconds and stages of a result for which nothing had to be done."""
    return {"seconds": 0.0, "stages": {name: {"seconds": 0.0, "bytes": 0} for name in STAGES}}
