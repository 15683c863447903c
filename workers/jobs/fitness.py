"""Whether this worker can do a job now: its store answers, and its engine host starts.

After a fault that says otherwise the worker claims nothing until a probe succeeds. So a worker that is cut off does not
run through the queue and give each job back.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from app.artifacts.store import ArtifactStore
from app.errors import ServiceError
from workers.channel.host import EngineHost, EngineHostDied
from workers.channel.messages import BackendError

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 5.0
log = structlog.get_logger(__name__)


@dataclass
class Fitness:
    """The trouble of one worker, None if it can do jobs.

    A store is probed in a thread, because one that hangs must not keep the worker from stopping. An engine host is
    started in the caller's thread, with which it would end.
    """

    store: ArtifactStore
    host: EngineHost
    io: ThreadPoolExecutor
    tick: Callable[[], None]
    trouble: str | None = None
    _of_host: bool = False
    _pause_s: float = FIRST_PAUSE_S
    _probe_at: float = 0.0
    _probe: "Future[None] | None" = field(default=None, repr=False)

    def lost_store(self, detail: str) -> None:
        """Claim nothing until the store answers."""
        self._lose(detail, of_host=False)

    def lost_host(self, detail: str) -> None:
        """Claim nothing until an engine host starts."""
        self._lose(detail, of_host=True)

    def found_store(self) -> None:
        """Claim jobs again without a probe, because the store has just taken something."""
        if self.trouble is not None and not self._of_host:
            log.info("the store answers again")
            self.trouble = None

    def regained(self) -> bool:
        """Return whether a job may be claimed; probe if that is due. Raises what `tick` raises."""
        if self.trouble is None:
            return True
        if self._probe is None and time.monotonic() >= self._probe_at:
            self._probe = self._begin()
        if self._probe is None or not self._probe.done():
            return False
        ended, self._probe = self._probe, None
        return self._learn(ended)

    def _lose(self, detail: str, *, of_host: bool) -> None:
        log.warning("no jobs are claimed for now", reason=detail)
        self.trouble, self._of_host = detail, of_host
        self._pause_s = FIRST_PAUSE_S
        self._probe_at = time.monotonic() + FIRST_PAUSE_S

    def _begin(self) -> "Future[None]":
        if not self._of_host:
            return self.io.submit(self.store.check)
        started: Future[None] = Future()
        try:
            self.host.greet(self.tick)
            started.set_result(None)
        except (EngineHostDied, BackendError) as error:
            started.set_exception(error)
        return started

    def _learn(self, ended: "Future[None]") -> bool:
        try:
            ended.result()
        except (ServiceError, OSError, EngineHostDied, BackendError) as error:
            self.trouble = str(error)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._probe_at = time.monotonic() + self._pause_s
            return False
        log.info("jobs are claimed again")
        self.trouble = None
        return True
