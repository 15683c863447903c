"""Timing caches: fetched from the store before a build, and put back after it.

A timing cache belongs to the platform of the device that measured, whatever other devices the engine works on. If
another worker has put one into the store during a build, it is merged with what this worker measured. A timing cache
only saves time. So if one cannot be fetched, merged or kept, that is only a warning among the job's events.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.database import DATABASE_DOWN
from app.engines.timing_caches import find_timing_cache, replace_timing_cache
from app.errors import ServiceError
from workers.channel.host import EngineHostDied
from workers.channel.messages import BackendError, LogLine, MergeTimings, TimingsMerged
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker


@dataclass(frozen=True, slots=True)
class PlatformTimings:
    """The timing cache that a backend fills for a platform; `digest` is None if there is none yet."""

    backend: str
    platform: str
    digest: str | None


@dataclass(frozen=True, slots=True)
class NewTimings:
    """A timing cache of `nbytes` bytes in the store; `publish` makes it the one of its platform."""

    platform: str
    digest: str
    nbytes: int

    @property
    def blobs(self) -> Mapping[str, int]:
        """The cache."""
        return {self.digest: self.nbytes}


def find(session: Session, worker: Worker, backend: str, options: Mapping[str, Any]) -> PlatformTimings | None:
    """Return the timing cache of a worker's own device.

    None if the backend cannot read one back, or if a build with these options uses none.
    """
    offer = worker.offered[backend]
    if not offer.keeps_timings or not options.get("timing_cache", True):
        return None
    platform = offer.makes[0]
    return PlatformTimings(backend, platform, find_timing_cache(session, platform))


def fetch(cache: PlatformTimings | None, worker: Worker, watch: Watch) -> str | None:
    """Get a timing cache onto this machine and return its path; None if there is none, or if it cannot be read."""
    if cache is None or cache.digest is None:
        return None
    try:
        return str(watch.during(worker.store.local_path, cache.digest))
    except (ServiceError, OSError) as error:
        _warn(watch, f"the timing cache of '{cache.platform}' cannot be read and is begun anew: {error}")
        return None


def put(cache: PlatformTimings | None, written: str | None, worker: Worker, watch: Watch) -> NewTimings | None:
    """Put what a build wrote into the store, merged with what is there by now.

    None if the build wrote nothing new, or if the result cannot be put into the store.
    """
    if cache is None or written is None:
        return None
    path = _with_others(cache, written, worker, watch)
    try:
        digest, nbytes = watch.during(worker.put, Path(path))
    except (ServiceError, OSError, *DATABASE_DOWN) as error:
        _warn(watch, f"the timing cache of '{cache.platform}' is not kept for later builds: {error}")
        return None
    return None if digest == cache.digest else NewTimings(cache.platform, digest, nbytes)


def publish(session: Session, made: NewTimings) -> None:
    """Make this the timing cache of its platform; its blob is recorded already."""
    replace_timing_cache(session, made.platform, digest=made.digest, nbytes=made.nbytes)


def _with_others(cache: PlatformTimings, written: str, worker: Worker, watch: Watch) -> str:
    """Return the path of what a build wrote, merged with what another worker has stored since the build began."""
    try:
        with worker.database.reading() as session:
            newest = replace(cache, digest=find_timing_cache(session, cache.platform))
        theirs = fetch(newest, worker, watch) if newest != cache else None
        if theirs is None:
            return written
        request = MergeTimings(cache.backend, (theirs, written), f"{written}.merged")
        return watch.ask(request, TimingsMerged).merged
    except (BackendError, EngineHostDied, *DATABASE_DOWN) as error:
        _warn(watch, f"the timing cache of '{cache.platform}' is kept without what others have timed since: {error}")
        return written


def _warn(watch: Watch, text: str) -> None:
    watch.news.hear(LogLine("warning", text))
