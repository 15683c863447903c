"""What a worker does beside its jobs: report itself, sweep, tidy up.

A daemon thread does the chores that have to be in time, one after the other. Another one does those that may take
long, and pauses as often as it works. The scrubber, which reads every artifact, has a thread to itself. A chore that
fails is logged, and is done again when it is next due: no chore may end the worker.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread

import structlog
from sqlalchemy import text

from app.artifacts.scrub import scrub
from app.artifacts.service import collect_orphans
from app.artifacts.store import ArtifactStore, open_store
from app.artifacts.strays import sweep_store
from app.database import DATABASE_DOWN
from app.fleet import service as fleet
from app.jobs.sweep import Swept, let_go, sweep
from app.pace import Pace
from app.pruning import retire
from workers.identity import is_gone
from workers.jobs.worker import Worker

REPORTS_PER_TIMEOUT = 4  # so that a worker does not look gone if one or two reports are late
TIDY_S = 600.0
STRAYS_S = 60.0  # between two looks whether a sweep of the store is due
SCRUB_S = 60.0
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Chore:
    """Something that is done at once, and then every `interval_s` seconds."""

    name: str
    interval_s: float
    action: Callable[[], object]
    due: float = 0.0


def chores(worker: Worker) -> list[Chore]:
    """Return the chores of a worker."""
    settings = worker.settings
    return [
        Chore("bury", math.inf, lambda: bury_the_dead(worker)),
        Chore("report", settings.worker_timeout_s / REPORTS_PER_TIMEOUT, lambda: report(worker)),
        Chore("sweep", settings.sweep_interval_s, sweeping(worker)),
    ]


def tidying(worker: Worker, over: Event) -> list[Chore]:
    """Return the chores that may take long."""
    todo = [
        Chore("retire", TIDY_S, lambda: retire_jobs(worker, Pace(over))),
        Chore("collect", TIDY_S, lambda: collect(worker, Pace(over))),
    ]
    if worker.settings.store_sweep_interval_s:
        todo.append(Chore("strays", STRAYS_S, lambda: remove_strays(worker, Pace(over))))
    return todo


def scrub_chores(worker: Worker, over: Event) -> list[Chore]:
    """Return what the scrubber does; it opens the store anew, so that what it finds is told by itself alone."""
    period_s = worker.settings.scrub_period_s
    if not period_s:
        return []
    store = open_store(worker.settings)
    interval_s = min(SCRUB_S, period_s / 10)
    return [Chore("scrub", interval_s, lambda: scrub_artifacts(worker, store, over), due=time.monotonic() + interval_s)]


@contextmanager
def housekeeping(worker: Worker) -> Iterator[None]:
    """Do the chores for as long as the block lasts; the worker leaves the fleet when the block ends."""
    over = Event()
    todo = {
        "housekeeping": chores(worker),
        "tidying": tidying(worker, over),
        "scrubber": scrub_chores(worker, over),
    }
    threads = [Thread(target=keep_house, args=(each, over), name=name, daemon=True) for name, each in todo.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=worker.settings.worker_timeout_s)
        with suppress(*DATABASE_DOWN):  # the fleet drops a worker whose reports stop
            fleet.forget(worker.database, worker.id)


def keep_house(todo: list[Chore], over: Event) -> None:
    """Do each chore when it is due, until `over` is set."""
    while todo and not over.is_set():
        for chore in todo:
            if chore.due <= time.monotonic():
                _do(chore)
                chore.due = time.monotonic() + chore.interval_s
        over.wait(max(0.0, min(chore.due for chore in todo) - time.monotonic()))


def report(worker: Worker) -> None:
    """Tell the fleet that this worker is alive."""
    fleet.report(worker.database, worker.report())


def bury_the_dead(worker: Worker) -> None:
    """Free at once what killed workers held, if the database is a file: then all workers run on this host."""
    if worker.settings.database_url:
        return

    def dead(identity: str) -> bool:
        return is_gone(identity, worker.id)

    with worker.database.reading() as session:
        seen = [row.id for row in fleet.alive(session, worker.settings)]
    for identity in filter(dead, seen):
        fleet.forget(worker.database, identity)
    if count := let_go(worker.database, dead):
        log.info("jobs of killed workers freed", count=count)


def sweeping(worker: Worker) -> Callable[[], None]:
    """Return the chore that takes back jobs whose lease ran out.

    After an outage of the database every lease has run out, also those of workers that live and are about to renew
    them. So nothing is taken back before the database has answered for as long as a lease lasts.
    """
    answers_since: float | None = None

    def sweep_jobs() -> None:
        nonlocal answers_since
        try:
            with worker.database.reading() as session:
                session.execute(text("SELECT 1"))
            if answers_since is None or time.monotonic() - answers_since >= worker.settings.lease_s:
                take_back(worker)
        except DATABASE_DOWN:
            answers_since = math.inf
            raise
        if answers_since == math.inf:
            answers_since = time.monotonic()

    return sweep_jobs


def take_back(worker: Worker) -> None:
    """Queue the jobs whose lease ran out, or end them."""
    swept = sweep(worker.database, worker.settings, notify=worker.announce)
    if swept != Swept():
        log.info("swept", requeued=swept.requeued, failed=swept.failed, canceled=swept.canceled)


def retire_jobs(worker: Worker, pace: Pace) -> None:
    """Remove jobs, events and idempotency keys that are older than the settings allow."""
    counts = retire(worker.database, worker.settings, pace)
    if any(counts.values()):
        log.info("removed by retention", **{kind.replace(" ", "_"): count for kind, count in counts.items()})


def collect(worker: Worker, pace: Pace) -> None:
    """Delete artifacts that nothing refers to any more."""
    grace_s = worker.settings.orphan_grace_s
    if count := collect_orphans(worker.database, worker.store, older_than_s=grace_s, go_on=pace):
        log.info("orphans collected", count=count)


def remove_strays(worker: Worker, pace: Pace) -> None:
    """Delete files of the store that no row names, if a sweep is due."""
    settings = worker.settings
    count = sweep_store(
        worker.database,
        worker.store,
        older_than_s=settings.orphan_grace_s,
        every_s=settings.store_sweep_interval_s,
        go_on=pace,
    )
    if count:
        log.info("files without a row removed", count=count)


def scrub_artifacts(worker: Worker, store: ArtifactStore, over: Event) -> None:
    """Read the artifacts that are due."""
    done = scrub(worker.database, store, period_s=worker.settings.scrub_period_s, over=over)
    if done.read:
        log.info("artifacts read", read=done.read, damaged=done.damaged, healed=done.healed)


def _do(chore: Chore) -> None:
    try:
        chore.action()
    except DATABASE_DOWN as error:
        log.warning("chore put off", chore=chore.name, error=str(error))
    except Exception:  # whatever is wrong with a chore, the jobs go on
        log.exception("chore failed", chore=chore.name)
