"""`enginesmith serve`: starts the parts of an embedded service, and says when the service is ready."""

import http.client
import json
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import typer

from app.serve import programs
from app.serve.answers import get
from app.serve.child import Child
from app.serve.data_directory import DataDirectory
from app.serve.errors import CannotStart
from app.serve.listening import listen, url_of
from app.serve.signals import Signals, StopRequested
from app.serve.supervisor import Supervisor, notice
from app.settings import Settings

ANSWER_S = 1.0  # the longest wait for one answer: an API that is starting may not answer, and is asked again


def serve(settings: Settings, host: str, port: int, devices: Sequence[str], *, allow_anonymous: bool) -> int:
    """Run the service until a signal stops it; return the exit status, which is 0 if no child had to be killed.

    Each of `devices` ("cpu", "cuda:0") has a worker of its own. Raises CannotStart if the service cannot start, or
    cannot go on because a child keeps dying.
    """
    with (
        DataDirectory(settings.data_dir) as data,
        listen(host, port, allow_anonymous=allow_anonymous) as listener,
        Signals() as signals,
    ):
        supervisor = Supervisor(data.logs, signals)
        try:
            notice(f"Starting with workers on {', '.join(devices)}; the logs are in {data.logs}")
            _start(supervisor, settings, data, listener, devices)
            typer.echo(f"Enginesmith is ready at {url_of(listener)} (data in {data.path})")
            supervisor.watch()
        except StopRequested:
            return supervisor.stop()
        finally:
            supervisor.kill()


def _start(
    supervisor: Supervisor, settings: Settings, data: DataDirectory, listener: socket.socket, devices: Sequence[str]
) -> None:
    environment = programs.environment(settings, data, _broker(supervisor, settings, data))
    supervisor.run(programs.migration(environment, data.logs))
    since, url = datetime.now(UTC), url_of(listener)
    workers = [programs.worker(environment, data.logs, device) for device in devices]
    for child in (*workers, programs.api(environment, data.logs, listener.fileno())):
        supervisor.start(child)
    supervisor.wait_until(lambda: unready(url, workers, since=since))


def _broker(supervisor: Supervisor, settings: Settings, data: DataDirectory) -> str:
    """Return the broker's URL: the configured one, else that of a bundled Valkey started here."""
    if "broker_url" in settings.model_fields_set and settings.broker_url:
        return settings.broker_url
    path = programs.socket_of(data.runtime)
    supervisor.start(programs.valkey(data.runtime, data.logs))
    supervisor.wait_until(lambda: _deaf(path))
    return f"redis+socket://{path}"


def _deaf(path: Path) -> str | None:
    """Return the text that the bundled broker does not listen yet, None once it does."""
    with socket.socket(socket.AF_UNIX) as client:
        return None if client.connect_ex(str(path)) == 0 else "the bundled broker does not accept connections"


def unready(url: str, workers: Sequence[Child], *, since: datetime) -> str | None:
    """Say why the service is not ready; None once the API reaches all it needs and each of `workers` has reported.

    The default backend of a build depends on the workers alive, so the service is not ready before all of them are.
    Workers of an earlier run may have had the same process ids, as in a container. So only those that started after
    `since` count. Raises CannotStart "disk_unusable".
    """
    try:
        readiness, fleet = (json.loads(get(url, path, ANSWER_S)[1]) for path in ("/readyz", "/v1/workers?limit=200"))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"the API does not answer ({error})"
    if (disk := readiness["checks"].get("disk", "ok")) != "ok":
        raise CannotStart("disk_unusable", disk)  # a longer wait frees no space
    if not readiness["ready"]:
        return f"the API is not ready: {readiness['checks']}"
    reported = {
        worker["pid"]
        for worker in fleet.get("data", ())
        if worker["hostname"] == socket.gethostname() and datetime.fromisoformat(worker["started_at"]) >= since
    }
    silent = [child.name for child in workers if child.pid not in reported]
    return f"there is no sign of {' and '.join(silent)} yet" if silent else None
