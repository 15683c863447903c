"""The office's process: `python -P -m app.office.process DESCRIPTOR PARENT`.

It takes functions and their arguments from the socket, calls them one after the other, and sends back what they return
or raise. All of it was written by this service's own API process, so it is pickled. It ends with that process, PARENT.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import structlog
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from app.artifacts.damage import noting
from app.artifacts.store import ArtifactStore, open_store
from app.database import DATABASE_DOWN, Database
from app.errors import ServiceError
from app.observability import configure_logging
from app.office.own import Own
from app.processes.lifeline import end_with_parent
from app.settings import Settings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Means:
    database: Database
    store: ArtifactStore
    settings: Settings

    def of(self, argument: Any) -> Any:  # noqa: ANN401 - whatever a function takes
        return getattr(self, argument.value) if isinstance(argument, Own) else argument


def main() -> None:
    """Work until the socket ends."""
    end_with_parent(int(sys.argv[2]))
    connection = Connection(int(sys.argv[1]))
    settings: Settings = connection.recv()
    configure_logging(settings)
    database = Database(settings.database)
    means = _Means(database, open_store(settings, noting(database, "api")), settings)
    while True:
        try:
            function, arguments = connection.recv()
            connection.send(_result(function, [means.of(one) for one in arguments]))
        except (EOFError, ConnectionError):
            return


def _result(function: Callable[..., Any], arguments: list[Any]) -> tuple[bool, Any]:
    try:
        return True, function(*arguments)
    except ServiceError as error:
        return False, error
    except DATABASE_DOWN as error:
        return False, NoConnectionFree(str(error))  # of the same sort, and nothing in it that cannot be pickled
    except OSError as error:
        log.exception("the office failed")
        return False, OSError(error.errno, error.strerror)  # a disk's fault is told by its number
    except Exception as error:  # the caller is told, and the process goes on
        log.exception("the office failed")
        return False, RuntimeError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
