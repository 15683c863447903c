"""The engines kept loaded between jobs."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

from workers.channel.messages import DEVICE_OUT_OF_MEMORY, BackendError, Residency
from workers.engine_host.backends.base import LoadedEngine

T = TypeVar("T")
MAX_ENGINES = 32  # each has threads and files of its own; engines so small that more would fit load in no time


@dataclass(frozen=True, slots=True)
class _Resident:
    engine: LoadedEngine
    root_plan: str


class ResidentEngines:
    """Engines by key, the least recently used given up first when they keep more than `limit` bytes, or are too many.

    The engine used last is never given up, however large it is: a job is working with it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._engines: OrderedDict[Hashable, _Resident] = OrderedDict()
        self._is_one_out = False  # taken, and nothing put back since

    def get(self, key: Hashable) -> LoadedEngine | None:
        """Return an engine and count it as used, or None where it is not resident."""
        resident = self._engines.get(key)
        if resident is None:
            return None
        self._engines.move_to_end(key)
        return resident.engine

    def take(self, key: Hashable, root_plan: str) -> LoadedEngine | None:
        """Give up the engine of this key, or else the one used last of the same compiled plan, and return it."""
        if key not in self._engines:
            kin = [other for other, resident in self._engines.items() if resident.root_plan == root_plan]
            if not kin:
                return None
            key = kin[-1]
        self._is_one_out = True
        return self._engines.pop(key).engine

    def drop(self, key: Hashable) -> None:
        """Give up an engine, where there is one of this key."""
        self._engines.pop(key, None)

    def put(self, key: Hashable, engine: LoadedEngine, root_plan: str) -> None:
        """Keep an engine in place of whatever had its key, and give up others until all fit."""
        self._is_one_out = False
        self._engines[key] = _Resident(engine, root_plan)
        self._engines.move_to_end(key)
        while len(self._engines) > 1 and (len(self._engines) > MAX_ENGINES or self.residency.nbytes > self._limit):
            self._engines.popitem(last=False)

    def make_room(self, nbytes: int) -> None:
        """Give up engines before one of about `nbytes` is loaded, so that old and new do not add up beyond the limit.

        No engine is in use at that moment, so any may go.
        """
        self._is_one_out = False
        while self._engines and self.residency.nbytes + nbytes > self._limit:
            self._engines.popitem(last=False)

    def with_room(self, attempt: Callable[[], T]) -> T:
        """Return what an attempt does; where the device's memory does not suffice, give up all engines and try again.

        It is made twice at most. One within another leaves nothing to be given up when it fails, so the other one
        is not made again for it.
        """
        try:
            return attempt()
        except BackendError as error:
            if error.code != DEVICE_OUT_OF_MEMORY or not self.clear():
                raise
        return attempt()  # with the error gone, and with it whatever the failed attempt still held

    def clear(self) -> bool:
        """Give up all engines and say whether there were any, one that was taken and is lost included."""
        were_any = self._is_one_out or bool(self._engines)
        self._is_one_out = False
        self._engines.clear()
        return were_any

    @property
    def residency(self) -> Residency:
        """What is kept now."""
        return Residency(len(self._engines), sum(resident.engine.nbytes for resident in self._engines.values()))
