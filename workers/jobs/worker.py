"""The composition root of a worker process: one device, one engine host, one job at a time."""

import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import structlog

from app.artifacts import service as artifacts
from app.artifacts.damage import noting
from app.artifacts.digest import file_digest
from app.artifacts.signing import PlanSigner, open_signer
from app.artifacts.store import ArtifactStore, open_store
from app.database import Database
from app.engines.queries import Served
from app.errors import ServiceError, Unavailable
from app.fleet.backend_offer import BackendOffer
from app.fleet.offers import BUILD_ONLY
from app.fleet.service import WorkerReport
from app.jobs.notices import Announcer
from app.jobs.queue import queue_of, redis_url
from app.jobs.transition import Notify
from app.scratch import remove_abandoned, scratch_folder
from app.settings import Settings
from workers.channel.host import EngineHost, EngineHostNotStarted, HostDescription
from workers.channel.process import Reach
from workers.identity import new_identity
from workers.jobs.faults import ShuttingDown, is_outage
from workers.jobs.fitness import Fitness
from workers.jobs.stored import Sources

IO_THREADS = 4  # several, so that an upload that a cancel left behind does not hold up the next job
START_PAUSES_S = (
    0.5,
    30.0,
)  # between two starts of an engine host that is killed while it starts: the first, the longest
OUTAGE_PAUSES_S = (0.2, 5.0)  # between two tries to write what a compile of minutes has made: the first, the longest
PUT_OUTAGE_S = 60.0  # for a thread beside the job, which may lose its lease meanwhile
log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass
class Worker:
    """What the jobs of one process work with.

    `device` is the device's name as engines record it, and `device_fingerprint` its facts and their digest. `offered`
    maps the name of each backend that can be used here to what it offers. `stopping` is set once the process has been
    told to stop. `job_id` is the job at hand.
    """

    id: str
    settings: Settings
    database: Database
    store: ArtifactStore
    signer: PlanSigner
    host: EngineHost
    announce: Notify
    io: ThreadPoolExecutor
    scratch: Path
    device: str
    offered: Mapping[str, BackendOffer]
    device_fingerprint: Mapping[str, Any] | None = None
    sources: Sources = field(init=False)
    fitness: Fitness = field(init=False)
    stopping: Event = field(default_factory=Event)
    job_id: str | None = None

    def __post_init__(self) -> None:
        self.sources = Sources(self.store)
        self.fitness = Fitness(self.store, self.host, self.io, self.stop_if_told)

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that this worker takes jobs from.

        Each backend on this device has a queue, and one more queue for each platform whose engines it loads here. If it
        loads none, because it compiles for other devices only, the second queue is that of all such workers.
        """
        return tuple(
            queue_of(backend, platform)
            for backend, offer in sorted(self.offered.items())
            for platform in (None, *(offer.loads or [BUILD_ONLY]))
        )

    def served(self, backend: str) -> Served:
        """Return which engines of a backend this device makes or loads; raises ServiceError if it offers none."""
        if backend not in self.offered:
            raise ServiceError(
                f"This worker's device does not offer the backend {backend!r}. Restart a worker whose device does.",
                code="backend_not_offered",
            )
        offer = self.offered[backend]
        return Served([offer.version], {*offer.makes, *offer.loads})

    def put(self, path: Path, *, digest: str | None = None) -> tuple[str, int]:
        """Put a file into the store as `ArtifactStore.put_file` does, and return its digest and its size in bytes.

        If no job comes to use the file, it is collected. `digest` is what the engine host says. If there is such an
        artifact already, the file is digested, so that a host that was taken over replaces no right bytes by wrong
        ones. Raises ServiceError "wrong_digest".
        """

        def put() -> tuple[str, int]:
            if digest is not None and self.store.size(digest) is not None:
                _require_said(digest, file_digest(path))
            used_within_s = self.settings.job_deadline_s
            return artifacts.put_file(self.database, self.store, path, digest=digest, used_within_s=used_within_s)

        return self.through_outage(put, PUT_OUTAGE_S)

    def through_outage(self, write: Callable[[], T], limit_s: float | None = None) -> T:
        """Return what `write` returns; as long as the database or the store does not answer, try again.

        The last fault is raised after `limit_s` seconds (None: the setting `outage_limit_s`), or once the worker stops.
        """
        left = self.settings.outage_limit_s if limit_s is None else limit_s
        lost_store = False
        for pause in pauses(*OUTAGE_PAUSES_S):
            try:
                written = write()
            except Exception as error:
                if not is_outage(error) or left < pause or self.stopping.is_set():
                    raise
                if isinstance(error, Unavailable) and self.fitness.trouble is None:
                    self.fitness.lost_store(error.detail)  # so that the job at hand says what it waits for
                    lost_store = True
                log.warning("not written yet", error=str(error), again_in_s=round(pause, 3))
                left -= pause
                self.stopping.wait(pause)
            else:
                if lost_store:
                    self.fitness.found_store()
                return written
        return write()

    def stop_if_told(self) -> None:
        """Raise ShuttingDown if the worker has been told to stop."""
        if self.stopping.is_set():
            raise ShuttingDown

    def report(self) -> WorkerReport:
        """Return what the fleet shows of this worker."""
        described = self.host.describe()
        return WorkerReport(
            id=self.id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            device=described.device,
            backends=described.backends,
            queues=self.queues,
            job_id=self.job_id,
            trouble=self.fitness.trouble,
            confinement=described.confinement,
        )


def _require_said(said: str, found: str) -> None:
    if said != found:
        raise ServiceError(
            f"The engine host wrote a file with the digest {found} and said that it is {said}, which is another "
            "artifact's; nothing of it was kept. What it was given may have taken it over: look at the files of this "
            "job, and restart the worker.",
            code="wrong_digest",
        )


def pauses(first_s: float, longest_s: float) -> Iterator[float]:
    """Yield pauses without end, each about twice as long as the one before; a random part sets workers apart."""
    longest = first_s
    while True:
        yield longest * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
        longest = min(2 * longest, longest_s)


def usable_backends(device: str, backends: Mapping[str, BackendOffer], installable: str) -> dict[str, BackendOffer]:
    """Return the backends of a host that can be used; raises ServiceError "no_backend" if none can."""
    usable = {name: offer for name, offer in backends.items() if offer.available}
    if usable:
        return usable
    reasons = [f"{name}: {offer.unavailable}" for name, offer in sorted(backends.items())]
    remedies = [f"Install one with {installable}."] if installable else []
    raise ServiceError(" ".join([f"No backend can be used on {device}.", *reasons, *remedies]), code="no_backend")


def reach_of(settings: Settings, store: ArtifactStore, jobs: Path) -> Reach:
    """Return what an engine host sees of the data directory: `jobs`, and artifacts or this machine's copies of them."""
    folder = store.directory or settings.cache_dir or settings.data_dir / "cache"
    return Reach(
        (folder,),
        (jobs,),
        private=(settings.data_dir,),
        job_bytes=settings.job_memory_bytes,
        page_locked_bytes=settings.page_locked_bytes,
        page_locked_idle_s=settings.page_locked_idle_s,
    )


@contextmanager
def open_worker(settings: Settings, device: str) -> Iterator[Worker]:
    """Make a worker for `device` ("cpu", "cuda:0"), and close all that it holds when the block ends.

    An engine host that is killed while it starts is started again. Raises ServiceError if no backend can be used on the
    device, BackendError if the device does not exist, and EngineHostNotStarted if the engine host ends by itself.
    """
    remove_abandoned(settings.scratch_dir)
    database = Database(settings.database)
    store = open_store(settings, noting(database, "worker"))
    signer = open_signer(settings)
    announce = Announcer(redis_url(settings.broker_url))
    with (
        scratch_folder(settings.scratch_dir, "worker") as scratch,
        ThreadPoolExecutor(IO_THREADS, thread_name_prefix="io") as io,
    ):
        jobs = scratch / "jobs"
        jobs.mkdir()
        host = EngineHost(device, settings.resident_bytes, scratch / "hosts", reach_of(settings, store, jobs))
        try:
            described = _described(host)
            usable = usable_backends(device, described.backends, described.installable)
            yield Worker(
                id=new_identity(),
                settings=settings,
                database=database,
                store=store,
                signer=signer,
                host=host,
                announce=announce,
                io=io,
                scratch=jobs,
                device=described.device["name"],
                offered=usable,
                device_fingerprint=described.device.get("fingerprint"),
            )
        finally:
            host.close()
            announce.close()
            database.dispose()


def _described(host: EngineHost) -> HostDescription:
    """Return what the host says of itself; one that a signal ends while it starts is started again, however often."""
    for pause in pauses(*START_PAUSES_S):
        try:
            return host.describe()
        except EngineHostNotStarted as error:
            if error.status is None or error.status >= 0:
                raise
            log.warning("the engine host was killed while it started", error=error.detail, again_in_s=round(pause, 3))
            time.sleep(pause)
    return host.describe()
