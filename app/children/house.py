"""Room for requests that need children."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any, Final, TypeVar

from app.children.channel import Answerer, no_answers
from app.children.fork_server import ForkServer
from app.children.limits import ChildLimits
from app.children.room import Room
from app.scratch import scratch_folder

CHILDREN: Final = 2  # of one house at a time
WAITING: Final = 30  # requests of one house that may wait for a child

T = TypeVar("T")


class House(Room):
    """Requests that need children, of which so many run at a time."""

    def __init__(self, server: ForkServer, scratch: Path, *, children: int = CHILDREN, waiting: int = WAITING) -> None:
        super().__init__(running=children, waiting=waiting, what="uploads are being read")
        self._server = server
        self._scratch = scratch
        self._slots = BoundedSemaphore(children)
        self._lock = Lock()
        self._shared: dict[Hashable, Future[Any]] = {}

    @contextmanager
    def folder(self, kind: str) -> Iterator[Path]:
        """Make a folder for one child, give its absolute path, and remove it when the block ends."""
        with scratch_folder(self._scratch, kind) as folder:
            yield folder.resolve()

    def child(
        self,
        function: str,
        task: Mapping[str, Any],
        limits: ChildLimits,
        directory: Path,
        answers: Answerer = no_answers,
    ) -> dict[str, Any]:
        """Run a function in a child once one may be started; see `ForkServer.run`."""
        with self._slots:
            return self._server.run(function, task, limits, directory, answers)

    def share(self, key: Hashable, work: Callable[[], T]) -> T:
        """Return what `work` returns or raises; calls with one key at one time share a single call of it."""
        with self._lock:
            running: Future[T] | None = self._shared.get(key)
            mine: Future[T] = Future()
            if running is None:
                self._shared[key] = mine
        if running is not None:
            return running.result()
        try:
            mine.set_result(work())
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._shared[key]
        return mine.result()
