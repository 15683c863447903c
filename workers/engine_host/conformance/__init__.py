"""What every backend promises, as checks that the author of a backend can run against it.

`backends.base` says in words what a backend does. Here each promise is a function `check_...(harness)`. It raises
`BrokenPromise` if the backend breaks the promise; an error that the backend should not raise passes through. `PROMISES`
are all checks. `promises_of` returns those that concern the backend at hand: a backend that only compiles promises
nothing about runs. `docs/adding.md` shows a test that uses them.
"""

from workers.engine_host.conformance.building import BUILDING
from workers.engine_host.conformance.harness import BrokenPromise, Check, Harness
from workers.engine_host.conformance.plans import HELD_PLANS, WEIGHTLESS_PLANS
from workers.engine_host.conformance.preflight import PREFLIGHT
from workers.engine_host.conformance.refitting import REFITTING, REFITTING_BESIDE, REFITTING_IN_PLACE
from workers.engine_host.conformance.running import RUNNING

__all__ = [
    "BUILDING",
    "HELD_PLANS",
    "PREFLIGHT",
    "PROMISES",
    "REFITTING",
    "REFITTING_BESIDE",
    "REFITTING_IN_PLACE",
    "RUNNING",
    "WEIGHTLESS_PLANS",
    "BrokenPromise",
    "Check",
    "Harness",
    "promises_of",
]

PROMISES: tuple[Check, ...] = (
    *BUILDING,
    *PREFLIGHT,
    *RUNNING,
    *REFITTING,
    *REFITTING_IN_PLACE,
    *REFITTING_BESIDE,
    *HELD_PLANS,
    *WEIGHTLESS_PLANS,
)


def promises_of(harness: Harness) -> tuple[Check, ...]:
    """Return the checks that concern what this backend offers on this device."""
    checks = [*BUILDING]
    if harness.preflight is not None:
        checks += PREFLIGHT
    if harness.runs:
        checks += RUNNING
    if harness.refits:
        checks += REFITTING
        checks += REFITTING_IN_PLACE if harness.backend.refits_in_place else REFITTING_BESIDE
        checks += HELD_PLANS if harness.plans_hold_weights else WEIGHTLESS_PLANS
    return tuple(checks)
