"""The states of a job, and the changes from one to another that are allowed.

    queued ──────> running ──────> succeeded
     │  ^             │ │  └─────> failed
     │  └─────────────┤ │
     │  released,     │ cancel asked
     │  lease expired │ v
     └─────────────> canceling ──> canceled

A queued job is canceled at once. A running one is first `canceling`: its worker has been asked to stop. Whatever
happens after that, success and failure included, the job ends `canceled`.
"""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """A job's state as clients and the database see it."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.CANCELING, State.QUEUED}),
    State.CANCELING: frozenset({State.CANCELED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELED: frozenset(),
}
FINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)
HELD = frozenset({State.RUNNING, State.CANCELING})  # a worker has the job's lease


def before(state: State) -> tuple[State, ...]:
    """Return the states from which a job may enter `state`; the statement that writes `state` is guarded by them."""
    return tuple(earlier for earlier, following in TRANSITIONS.items() if state in following)
