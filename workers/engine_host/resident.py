"""The engines that are kept loaded between jobs."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

from workers.channel.messages import DEVICE_OUT_OF_MEMORY, BackendError, Residency
from workers.engine_host.backends.base import LoadedEngine

T = TypeVar("T")
MAX_ENGINES = 32  # each has threads and files of its own; if more would fit, they are small and load fast


@dataclass(frozen=True, slots=True)
class _Resident:
    engine: LoadedEngine
    root_plan: str


class ResidentEngines:
    """Engines by key. If they keep more than `limit` bytes, or are too many, the least recently used goes first.

    The engine used last is never given up, however large it is, because a job is working with it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._engines: OrderedDict[Hashable, _Resident] = OrderedDict()
        self._is_one_out = False  # an engine was taken, and none was put back since

    def get(self, key: Hashable) -> LoadedEngine | None:
        """Return an engine and count it as used, or None if it is not resident."""
        resident = self._engines.get(key)
        if resident is None:
            return None
        self._engines.move_to_end(key)
        return resident.engine

    def take(self, key: Hashable, root_plan: str) -> LoadedEngine | None:
        """Remove the engine of this key and return it; failing that, the engine of this root plan that was used last.

        None if there is neither.
        """
        if key not in self._engines:
            kin = [other for other, resident in self._engines.items() if resident.root_plan == root_plan]
            if not kin:
                return None
            key = kin[-1]
        self._is_one_out = True
        return self._engines.pop(key).engine

    def drop(self, key: Hashable) -> None:
        """Give up the engine of this key, if there is one."""
        self._engines.pop(key, None)

    def put(self, key: Hashable, engine: LoadedEngine, root_plan: str) -> None:
        """Keep an engine in place of any other with its key, and give up others until all fit."""
        self._is_one_out = False
        self._engines[key] = _Resident(engine, root_plan)
        self._engines.move_to_end(key)
        while len(self._engines) > 1 and (len(self._engines) > MAX_ENGINES or self.residency.nbytes > self._limit):
            self._engines.popitem(last=False)

    def make_room(self, nbytes: int) -> None:
        """Give up engines before one of about `nbytes` is loaded, so that all together stay within the limit.

        No engine is in use at that moment, so any of them may go.
        """
        self._is_one_out = False
        while self._engines and self.residency.nbytes + nbytes > self._limit:
            self._engines.popitem(last=False)

    def with_room(self, attempt: Callable[[], T]) -> T:
        """Return the result of an attempt; if device memory runs out, give up all engines and try once more.

        A nested attempt that fails twice has given up everything already, so the outer attempt is not made again.
        """
        try:
            return attempt()
        except BackendError as error:
            if error.code != DEVICE_OUT_OF_MEMORY or not self.clear():
                raise
        return attempt()  # out here the error is gone, and so is all that the failed attempt still held

    def clear(self) -> bool:
        """Give up all engines, and say whether there were any; an engine that was taken and is lost counts."""
        were_any = self._is_one_out or bool(self._engines)
        self._is_one_out = False
        self._engines.clear()
        return were_any

    @property
    def residency(self) -> Residency:
        """How many engines are kept now, and their memory."""
        return Residency(len(self._engines), sum(resident.engine.nbytes for resident in self._engines.values()))
