"""Health checks for containers."""

import http.client
import socket

from app.database import Database
from app.fleet import service as fleet
from app.serve.answers import get
from app.serve.database import require_database
from app.serve.errors import CannotStart
from app.settings import Settings

TIMEOUT_S = 5.0


def check_api(url: str) -> None:
    """Ask an API whether it is alive; raises CannotStart "unhealthy" if it is not."""
    try:
        status, _ = get(url, "/healthz", TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        raise CannotStart("unhealthy", f"{url}/healthz does not answer: {error}. See the log of the API.") from error
    if status != http.client.OK:
        raise CannotStart("unhealthy", f"{url}/healthz answers {status}. See the log of the API.")


def check_worker(settings: Settings) -> None:
    """Look for a worker of this host that has reported lately; raises CannotStart "unhealthy" if there is none."""
    require_database(settings)
    database = Database(settings.database)
    try:
        with database.reading() as session:
            alive = {worker.hostname for worker in fleet.alive(session, settings)}
    finally:
        database.dispose()
    if socket.gethostname() not in alive:
        raise CannotStart(
            "unhealthy", f"No worker of this host reported in the last {settings.worker_timeout_s:.0f} s. See its log."
        )
