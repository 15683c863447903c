"""The API process."""

import asyncio
import ctypes
import gc
import math
import socket
import sys
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.connections.crowd import Crowd
from app.connections.door import Door
from app.connections.limits import Limits
from app.connections.protocol import Crowded, LimitedProtocol
from app.errors import ServiceError
from app.main import create_app
from app.observability import configure_logging
from app.serve.data_directory import make_private
from app.serve.database import require_database_file
from app.serve.errors import CannotStart
from app.settings import Settings

GRACEFUL_SHUTDOWN_S = 5
TICKS_PER_CHECK = 10
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
LARGE_BLOCK = 1024 * 1024  # bytes; parts of uploads are smaller, and are used again at once
KEPT_FREE = 16 * 1024 * 1024  # bytes of each heap, so that every answer need not get its memory anew
HEAPS = 2
SWITCH_S = 0.0005  # after which a thread that computes lets others go on, the event loop among them


def run(settings: Settings, listener: socket.socket) -> None:
    """Answer HTTP on a listening socket until SIGINT or SIGTERM.

    Requests in progress then have GRACEFUL_SHUTDOWN_S to end. The application itself logs each request with its id,
    so the server's own access log is off. Raises CannotStart if there is no database file, or if the data
    directory or the store is unusable.
    """
    _give_memory_back()
    require_database_file(settings)
    make_private(settings.data_dir)
    configure_logging(settings)
    try:
        app = create_app(settings)
        app.state.children.server.start()  # now, so that the first upload need not wait for its imports
    except ServiceError as error:  # the store cannot be used, or no process can be started
        raise CannotStart(error.code, error.detail) from error
    crowd = Crowd(Limits.of(settings), app.state.metrics.registry)
    _spare_the_event_loop()
    with suppress(KeyboardInterrupt):  # after it has shut down, uvicorn raises this once more
        Server(server_config(app, settings), app, crowd).run(sockets=[listener])


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Return what uvicorn is to do; it believes X-Forwarded-For only of the proxies that the settings name."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=LimitedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=math.ceil(settings.keep_alive_s),
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
    )


def _spare_the_event_loop() -> None:
    """Shorten what keeps the event loop waiting: threads that compute, and the search for garbage."""
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()  # a whole search takes 0.1 s, nearly all of it for what stays until the process ends


def _give_memory_back() -> None:
    """Have glibc return large blocks to the kernel once they are freed, and keep few heaps for threads.

    By itself it keeps blocks of up to 32 MiB, such as the text of a manifest, in heaps that never become empty.
    """
    with suppress(AttributeError):  # only glibc has this call
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        mallopt(M_TRIM_THRESHOLD, KEPT_FREE)
        mallopt(M_ARENA_MAX, HEAPS)


class Server(uvicorn.Server):
    """Holds connections to their limits.

    When it is told to stop, it answers the clients that wait for a job, so that only transfers use up the grace.
    """

    server_state: Crowded

    def __init__(self, config: uvicorn.Config, app: FastAPI, crowd: Crowd) -> None:
        super().__init__(config)
        self.server_state = Crowded(crowd)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, and then take connections by doors."""
        await super().startup(sockets=[])
        self.servers = [Door(one, self._protocol, self.server_state.crowd) for one in sockets or ()]  # type: ignore[misc]

    def _protocol(self) -> LimitedProtocol:
        return LimitedProtocol(self.config, self.server_state, self.lifespan.state)

    async def on_tick(self, counter: int) -> bool:
        """Check the connections once a second; uvicorn calls this every 0.1 s."""
        if counter % TICKS_PER_CHECK == 0:
            self.server_state.crowd.check(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the requests end, and then the processes that this one has started, whatever they are doing."""
        await super().shutdown(sockets)
        self._app.state.office.close()
        self._app.state.children.server.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT or SIGTERM."""
        self._app.state.watching.ending = True
        super().handle_exit(sig, frame)
