"""Keeps a job's lease while the job is worked on, and says when the work has to stop."""

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from app.database import DATABASE_DOWN
from app.errors import Unavailable
from app.jobs import lease
from app.jobs.lease import CancelAsked, Claim
from app.jobs.state import State
from workers.channel.host import EngineHostDied
from workers.channel.messages import Build, Computing, DamagedFile, Message, Outcome, PlanWritten, Request, Spent
from workers.channel.weight_bytes import weight_bytes
from workers.jobs.faults import DeadlineExceeded, ShuttingDown, TakesTooLong
from workers.jobs.memory_deaths import as_memory_death, kills
from workers.jobs.news import News
from workers.jobs.worker import Worker

TICK_S = 0.5  # a cancel is noticed within this time
BYTES_A_SECOND = 16 << 20  # of weights that a verification computes with, on few cores
NEWS_S = 1.0  # news are written this often, so a client can follow a job without a row per line
log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
OutcomeT = TypeVar("OutcomeT", bound=Outcome)


class Watch:
    """The clock and the news of one claim. `folder` is scratch space that lasts as long as the job.

    `stages` are those that the worker itself has been through.
    """

    def __init__(self, worker: Worker, held: Claim, folder: Path) -> None:
        self.news = News()
        self.folder = folder
        self.compiling = False  # what crashes otherwise, such as a verification, is not the compiler
        self._worker = worker
        self._held = held
        self._started = time.monotonic()
        self.stages = {"queue": Spent(held.queued_s)}
        self._renew_at = self._started + held.lease_s / 3
        self._tell_at = self._started + NEWS_S
        self._look_at = self._started + TICK_S
        self._computing: tuple[TakesTooLong, float] | None = None  # what is raised, and when

    @property
    def claim(self) -> Claim:
        """The claim that it keeps."""
        return self._held

    @property
    def seconds(self) -> float:
        """Seconds since the claim."""
        return time.monotonic() - self._started

    def ask(
        self,
        request: Request,
        expected: type[OutcomeT],
        on_plan: Callable[[PlanWritten], None] = lambda _written: None,
    ) -> OutcomeT:
        """Have the engine host carry out a request; the host is killed if the job has to stop.

        `on_plan` is called with each plan that the host has written. Raises BackendError, EngineHostDied and what
        `tick` raises.
        """

        def hear(message: Message) -> None:
            if isinstance(message, PlanWritten):
                self.compiling = False
                on_plan(message)
            elif isinstance(message, Computing):
                self._computing = self._deadline(message, request)
            else:
                self.news.hear(message)

        self.compiling = isinstance(request, Build)
        self.stages.setdefault("bind", Spent(self.seconds))
        killed_before = kills()
        try:
            outcome = self._worker.host.call(request, on_message=hear, tick=self.tick, tick_s=TICK_S)
        except DamagedFile as error:
            self._discard(error)
            raise
        except EngineHostDied as error:
            raise as_memory_death(error, killed_before) from error
        finally:
            self._computing = None
        if not isinstance(outcome, expected):
            raise TypeError(f"the engine host answered {type(request).__name__} with {type(outcome).__name__}")
        return outcome

    def _deadline(self, message: Computing, request: Request) -> tuple[TakesTooLong, float] | None:
        settings = self._worker.settings
        match message.what:
            case None:
                return None
            case "verification":
                seconds = settings.verification_deadline_s + weight_bytes(request) / BYTES_A_SECOND
            case "run":
                seconds = settings.run_deadline_s
        return TakesTooLong(message.what, seconds), time.monotonic() + seconds

    def _discard(self, damaged: DamagedFile) -> None:
        """Remove a damaged copy; Unavailable if there was one, because the next attempt fetches it again."""
        digest = f"sha256:{Path(damaged.path).name}"
        if self._worker.store.discard_copy(digest):
            raise Unavailable(
                f"The copy of {digest} on this machine was damaged and is removed. The next attempt fetches it again.",
                code="copy_damaged",
            ) from damaged
        self.during(self._worker.store.recheck, digest)  # which puts it on record

    def during(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an action that moves artifacts, in a thread; if the job has to stop, the thread is left to end by itself.

        Raises what the action raises, and what `tick` raises.
        """
        return self.join(self._worker.io.submit(action, *args, **kwargs))

    def join(self, future: Future[T]) -> T:
        """Wait for a thread's result, and `tick` meanwhile."""
        while not wait([future], timeout=TICK_S).done:
            self.tick()
        return future.result()

    def tick(self) -> None:
        """Renew the lease, write the news and look for a cancel, each if it is due.

        Raises LeaseLost, CancelAsked, DeadlineExceeded, TakesTooLong or ShuttingDown. A database that is down for a
        moment stops no compile. If the lease is lost meanwhile, the fence keeps this attempt from writing anything.
        """
        if self._worker.stopping.is_set():
            raise ShuttingDown
        moment = time.monotonic()
        if moment - self._started >= self._worker.settings.job_deadline_s:
            raise DeadlineExceeded(self._worker.settings.job_deadline_s)
        if self._computing is not None and moment >= self._computing[1]:
            raise self._computing[0]
        try:
            state = self._look(moment)
        except DATABASE_DOWN as error:
            log.warning("lease not renewed", error=str(error))
            return
        if state is State.CANCELING:
            raise CancelAsked(self._held.job_id)

    def _look(self, moment: float) -> State:
        if moment >= self._renew_at or (self.news.pending and moment >= self._tell_at):
            return self._renew(moment)
        if moment >= self._look_at:
            self._look_at = moment + TICK_S
            return lease.state_of(self._worker.database, self._held)
        return State.RUNNING

    def _renew(self, moment: float) -> State:
        state = lease.renew(
            self._worker.database,
            self._held,
            progress=self.news.progress,
            events=self.news.events,
            notify=self._worker.announce,
        )
        self.news.written()
        self._renew_at = moment + self._held.lease_s / 3
        self._tell_at = moment + NEWS_S
        self._look_at = moment + TICK_S
        return state
