"""The API process."""

import socket
from contextlib import suppress

import uvicorn

from app.main import create_app
from app.observability import configure_logging
from app.settings import Settings

GRACEFUL_SHUTDOWN_S = 5


def run(settings: Settings, listener: socket.socket) -> None:
    """Answer HTTP on a listening socket until SIGINT or SIGTERM.

    Requests in progress then have GRACEFUL_SHUTDOWN_S to end. Each request is logged by the application
    itself, with its id, so the server's own access log is off.
    """
    configure_logging(settings)
    config = uvicorn.Config(
        create_app(settings),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises Ctrl-C once more after it has shut down
        uvicorn.Server(config).run(sockets=[listener])
