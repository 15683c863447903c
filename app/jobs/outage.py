"""Outages: what keeps a job from being done although nothing is wrong with the job.

The job goes back to its queue, which costs no attempt, and is not claimed before its pause is over. The pauses grow,
each has a random part, and an outage that lasts too long fails the job.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from app.database import now

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
LEAST_TRIES = 3  # an outage fails no job that met it less often, however long ago the first time was


@dataclass(frozen=True, slots=True)
class Outage:
    """The latest of a job's outages, when the first one was, and how often it was tried in vain since."""

    code: str
    detail: str
    since: str
    times: int

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """Return what `to_json` has made."""
        return cls(**stored)

    def to_json(self) -> dict[str, Any]:
        """Return the value as the job's row stores it."""
        return asdict(self)

    @property
    def since_moment(self) -> datetime:
        """When the first outage was."""
        return datetime.fromisoformat(self.since)


def next_outage(earlier: Mapping[str, Any] | None, code: str, detail: str) -> Outage:
    """Return the outage that a job has met now; `earlier` is what its row says of those before."""
    if earlier is None:
        return Outage(code, detail, now().isoformat(), 1)
    before = Outage.read(earlier)
    return Outage(code, detail, before.since, before.times + 1)


def lasts_too_long(outage: Outage, limit_s: float) -> bool:
    """Tell whether the job has to fail, because its outages have lasted for `limit_s` seconds."""
    return outage.times >= LEAST_TRIES and now() - outage.since_moment >= timedelta(seconds=limit_s)


def again_at(outage: Outage) -> datetime:
    """Return when the job may be claimed again."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(outage.times - 1, 10))
    return now() + timedelta(seconds=longest * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
