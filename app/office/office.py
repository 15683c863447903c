"""The API's side of the office."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Final, ParamSpec, TypeVar

import structlog
from fastapi import Depends, Request

import app
from app.artifacts.store import ArtifactStore
from app.database import Database
from app.errors import Unavailable
from app.heavy import Heavy
from app.http.pools import Pool, current_pool
from app.office.own import Own
from app.processes.environment import python_environment
from app.settings import Settings

WAITING: Final = 30
DEADLINE_S: Final = 600
CLOSING_S: Final = 0.1  # between two looks at whether a call has ended

P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger()


class Office:
    """Calls functions in a process of its own, one at a time. That is started when it is first needed."""

    def __init__(self, settings: Settings, database: Database, store: ArtifactStore, *, waiting: int = WAITING) -> None:
        self._settings = settings
        self._own: list[tuple[object, Own]] = [(settings, Own.SETTINGS), (database, Own.DATABASE), (store, Own.STORE)]
        self._pool = Pool("have large weight versions or definitions worked on", places=1, queue=waiting)
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._closed = False

    async def where_it_fits(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` in a thread of the request's pool; or, if it is too heavy for this process, in the office.

        `work` is a function of a module. Arguments that the office has of its own, the database, the store and the
        settings, are replaced there. The others, and what it returns or raises, are pickled. Raises Unavailable "busy"
        at once if too many requests wait for the office.
        """
        try:
            pool = current_pool.get()
            async with pool.place():
                return await pool.thread(work, *args, **kwargs)
        except Heavy:
            return await self.run(partial(self.call, work, *args, **kwargs))

    async def run(self, work: Callable[[], T]) -> T:
        """Call what calls the office, in a thread, once it is this request's turn.

        Raises Unavailable "busy" at once if too many requests wait for the office.
        """
        async with self._pool.place():
            return await self._pool.thread(work)

    def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` in the office, and return what it returns; raises what it raises."""
        if kwargs:
            raise TypeError("the office takes arguments by position only")
        message = (work, tuple(self._replaced(argument) for argument in args))
        with self._lock:
            done, value = self._exchange(message)
        if not done:
            raise value
        result: T = value
        return result

    def close(self) -> None:
        """End the process, whatever it is doing, and start none any more."""
        self._closed = True
        while not self._lock.acquire(timeout=CLOSING_S):
            if (process := self._process) is not None:
                process.kill()
        try:
            self._forget()
        finally:
            self._lock.release()

    def _replaced(self, argument: object) -> object:
        return next((own for one, own in self._own if one is argument), argument)

    def _exchange(self, message: object) -> tuple[bool, Any]:
        for _ in range(2):
            connection = self._started()
            try:
                connection.send(message)
                if not connection.poll(DEADLINE_S):
                    self._forget()
                    raise Unavailable(
                        f"This was given up after {DEADLINE_S} s: it is too much at a time, or the machine is too "
                        "busy. Ask for less at a time, or send the request again later."
                    )
                answer: tuple[bool, Any] = connection.recv()
            except (EOFError, OSError):
                log.warning("the office ended", status=self._process.poll() if self._process else None)
                self._forget()
            else:
                return answer
        raise Unavailable("The process that works on large weight versions does not survive this. Try again later.")

    def _started(self) -> Connection:
        if self._closed:
            raise Unavailable("The service is being stopped. Send the request again in a moment.", code="stopping")
        if self._connection is not None:
            return self._connection
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", "app.office.process", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=python_environment() | _place_of_code(),
                start_new_session=True,  # Ctrl-C is for this process, which then ends that one
            )
        connection = Connection(ours.detach())
        connection.send(self._settings)
        self._connection = connection
        return connection

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _place_of_code() -> dict[str, str]:
    root = str(Path(app.__path__[0]).parent)
    return {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


async def _office(request: Request) -> Office:
    office: Office = request.app.state.office
    return office


OfficeDep = Annotated[Office, Depends(_office)]
