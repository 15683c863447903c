"""A scaled-out service: API processes and workers, on servers of its own."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from app.processes.environment import python_environment
from app.settings import MIB, Settings
from benchmarks.chaos.programs import Program, kept
from benchmarks.chaos.servers import Broker, ObjectStore, Postgres, free_port, postgres, wait_until
from migrations import upgrade

LEASE_S = 4.0
APIS, WORKERS = 2, 3
SETTINGS = {
    "LEASE_S": str(LEASE_S),
    "SWEEP_INTERVAL_S": "1",
    "WORKER_TIMEOUT_S": "6",
    "MAX_ATTEMPTS": "20",  # here faults come thousands of times as often as in life, so one job may meet many
    "ORPHAN_GRACE_S": "600",
    "CACHE_BYTES": str(2 * MIB),  # so that files are fetched again and again
    "SIGNING_KEY": "42" * 32,
    "LOG_LEVEL": "INFO",
    "MIN_FREE_BYTES": "0",
}


@dataclass(frozen=True, slots=True)
class Fleet:
    """The service's processes and servers; `settings` are those that its processes have."""

    urls: list[str]
    apis: list[Program]
    workers: list[Program]
    database: Postgres
    broker: Broker
    store: ObjectStore
    settings: Settings
    host_kills: list[float] = field(default_factory=list)  # when engine hosts alone were killed

    def busy(self) -> list[Program]:
        """The workers that are in the middle of a job."""
        return [worker for worker in self.workers if worker.pid in self.database.pids_at_work()]

    def heal(self) -> None:
        """Begin anew after something was broken for good: with an empty broker and new processes."""
        self.broker.client.flushall()
        for program in (*self.apis, *self.workers):
            program.kill()
        self.wait()

    def wait(self) -> None:
        """Wait until every API answers and a worker has reported."""
        for url in self.urls:
            wait_until(partial(_ready, url), f"the API at {url}", tries=600)

    def deaths(self) -> int:
        """How often an API or a worker ended by itself."""
        return sum(program.deaths for program in (*self.apis, *self.workers))


@contextmanager
def fleet(folder: Path) -> Iterator[Fleet]:
    """Start a service whose data lie in `folder`, and stop it at the end."""
    logs = folder / "logs"
    logs.mkdir()
    with postgres() as database, ExitStack() as programs:

        def start(name: str, arguments: list[str], **variables: str) -> Program:
            program = Program(name, arguments, environment | variables, logs)
            programs.enter_context(kept([program]))
            return program

        broker = Broker(folder, logs)
        programs.enter_context(kept([broker.program]))
        store = ObjectStore(logs)
        programs.enter_context(kept([store.program]))
        store.make_bucket()
        given = {f"ENGINESMITH_{name}": value for name, value in SETTINGS.items()}
        given |= {"ENGINESMITH_DATABASE_URL": database.url, "ENGINESMITH_BROKER_URL": broker.url} | store.environment
        environment = python_environment() | given | {"OMP_NUM_THREADS": "1"}
        upgrade(database.url)
        ports = [free_port() for _ in range(APIS)]
        apis = [start(f"api-{port}", _api(port), ENGINESMITH_DATA_DIR=str(folder / "api")) for port in ports]
        workers = [
            start(f"worker-{number}", _worker(), ENGINESMITH_DATA_DIR=str(folder / f"worker-{number}"))
            for number in range(WORKERS)
        ]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        settings = Settings(
            data_dir=folder / "api",
            database_url=database.url,
            broker_url=broker.url,
            store_url=given["ENGINESMITH_STORE_URL"],
            lease_s=LEASE_S,
        )
        os.environ |= store.environment  # the audit reads the store as the service does
        whole = Fleet(urls, apis, workers, database, broker, store, settings)
        whole.wait()
        yield whole


def _api(port: int) -> list[str]:
    return [sys.executable, "-P", "-m", "app.cli", "api", "--port", str(port)]


def _worker() -> list[str]:
    return [sys.executable, "-P", "-m", "workers", "--device", "cpu"]


def _ready(url: str) -> bool:
    with suppress(URLError, OSError), urlopen(f"{url}/readyz", timeout=5) as answer:  # noqa: S310 - our own server
        return b'"workers":0' not in answer.read()
    return False
