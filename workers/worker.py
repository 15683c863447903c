"""The composition root of a worker process: one device, one engine host, one job at a time."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from app.artifacts.signing import PlanSigner, open_signer
from app.artifacts.store import ArtifactStore, open_store
from app.database import Database
from app.errors import ServiceError
from app.fleet.service import WorkerReport
from app.jobs.notices import Announcer
from app.jobs.queue import JobQueue, queue_of, redis_url
from app.jobs.sweep import Backlog, Sender
from app.jobs.transition import Notify
from app.scratch import remove_abandoned, scratch_folder
from app.settings import Settings
from workers.engine_host import EngineHost
from workers.identity import new_identity
from workers.plans import PlanVerifier

IO_THREADS = 4  # an upload that a cancel left behind must not hold up the next job


@dataclass
class Worker:
    """What the jobs of one process work with.

    `device` is its name as engines record it, `versions` those of the backends it offers. `stopping` is set
    once the process is to end; `job_id` is the job at hand.
    """

    id: str
    settings: Settings
    database: Database
    store: ArtifactStore
    plans: PlanVerifier
    signer: PlanSigner
    host: EngineHost
    queue: Sender
    backlog: Callable[[str], int]
    announce: Notify
    io: ThreadPoolExecutor
    scratch: Path
    device: str
    versions: Mapping[str, str]
    stopping: Event = field(default_factory=Event)
    job_id: str | None = None

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues of the backends this device offers."""
        return tuple(queue_of(backend) for backend in sorted(self.versions))

    def version_of(self, backend: str) -> str:
        """Return the version of a backend this device offers; ServiceError where it does not offer it."""
        if backend not in self.versions:
            raise ServiceError(
                f"This worker's device does not offer the backend {backend!r}. Restart a worker whose device does.",
                code="backend_not_offered",
            )
        return self.versions[backend]

    def report(self) -> WorkerReport:
        """Say what the fleet shows of this worker."""
        described = self.host.describe()
        return WorkerReport(
            id=self.id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            device=described["device"],
            backends=described["backends"],
            queues=self.queues,
            job_id=self.job_id,
        )


@contextmanager
def open_worker(settings: Settings, device: str) -> Iterator[Worker]:
    """Make a worker for `device` ("cpu", "cuda:0") and close all it holds at the end."""
    remove_abandoned(settings.scratch_dir)
    database = Database(settings.database)
    store = open_store(settings)
    signer = open_signer(settings)
    queue = JobQueue(settings.broker_url)
    announce = Announcer(redis_url(settings.broker_url))
    with (
        scratch_folder(settings.scratch_dir, "worker") as scratch,
        ThreadPoolExecutor(IO_THREADS, thread_name_prefix="io") as io,
    ):
        host = EngineHost(device, settings.resident_bytes, scratch)
        host.start()  # so that the first job does not wait for a runtime's imports
        described = host.describe()
        try:
            yield Worker(
                id=new_identity(),
                settings=settings,
                database=database,
                store=store,
                plans=PlanVerifier(signer),
                signer=signer,
                host=host,
                queue=queue,
                backlog=Backlog(settings.broker_url),
                announce=announce,
                io=io,
                scratch=scratch,
                device=described["device"]["name"],
                versions={name: offered["version"] for name, offered in described["backends"].items()},
            )
        finally:
            host.close()
            queue.close()
            announce.close()
            database.dispose()
