"""The API process."""

import socket
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.errors import ServiceError
from app.main import create_app
from app.observability import configure_logging
from app.serve.data_directory import make_private
from app.serve.database import require_database_file
from app.serve.errors import CannotStart
from app.settings import Settings

GRACEFUL_SHUTDOWN_S = 5


def run(settings: Settings, listener: socket.socket) -> None:
    """Answer HTTP on a listening socket until SIGINT or SIGTERM.

    Requests in progress then have GRACEFUL_SHUTDOWN_S to end. The application itself logs each request with its id,
    so the server's own access log is off. Raises CannotStart if there is no database file, or if the data
    directory or the store is unusable.
    """
    require_database_file(settings)
    make_private(settings.data_dir)
    configure_logging(settings)
    try:
        app = create_app(settings)
        app.state.children.server.start()  # now, so that the first upload need not wait for its imports
    except ServiceError as error:  # the store cannot be used, or no process can be started
        raise CannotStart(error.code, error.detail) from error
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
    )
    with suppress(KeyboardInterrupt):  # after it has shut down, uvicorn raises this once more
        Server(config, app).run(sockets=[listener])


class Server(uvicorn.Server):
    """Answers the clients that wait for a job when it is told to stop, so that only transfers use up the grace."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT or SIGTERM."""
        self._app.state.watching.ending = True
        super().handle_exit(sig, frame)
