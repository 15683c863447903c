"""Every kind of job that a worker does. The module `workers.jobs.<kind>` has the steps of a kind as `STEPS`."""

from importlib import import_module
from typing import Any, get_args

from app.engines.work import unknown_work
from app.jobs.kinds import Kind
from workers.jobs.steps import Steps

KINDS: dict[str, Steps[Any, Any, Any]] = {kind: import_module(f"workers.jobs.{kind}").STEPS for kind in get_args(Kind)}


def steps_of(kind: str) -> Steps[Any, Any, Any]:
    """Return the steps of a kind of job; raises ServiceError "unknown_work" if this release does not have it."""
    if kind not in KINDS:
        raise unknown_work(f"its kind is '{kind}', and this worker knows {', '.join(KINDS)}")
    return KINDS[kind]
