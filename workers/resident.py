"""The engines kept loaded between jobs."""

from collections import OrderedDict
from dataclasses import dataclass

from workers.backends.base import LoadedEngine

MAX_ENGINES = 32  # each has threads and files of its own; engines so small that more would fit load in no time


@dataclass(frozen=True, slots=True)
class Residency:
    """How many engines are kept, and the memory they keep, in bytes."""

    engines: int = 0
    nbytes: int = 0


class ResidentEngines:
    """Engines by key, the least recently used given up first when they keep more than `limit` bytes, or are too many.

    The engine used last is never given up, however large it is: a job is working with it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._engines: OrderedDict[str, LoadedEngine] = OrderedDict()

    def get(self, key: str) -> LoadedEngine | None:
        """Return an engine and count it as used, or None where it is not resident."""
        engine = self._engines.get(key)
        if engine is not None:
            self._engines.move_to_end(key)
        return engine

    def put(self, key: str, engine: LoadedEngine) -> None:
        """Keep an engine in place of whatever had its key, and give up others until all fit."""
        self._engines[key] = engine
        self._engines.move_to_end(key)
        while len(self._engines) > 1 and (len(self._engines) > MAX_ENGINES or self.residency.nbytes > self._limit):
            self._engines.popitem(last=False)

    def make_room(self, nbytes: int) -> None:
        """Give up engines before one of about `nbytes` is loaded, so that old and new do not add up beyond the limit.

        No engine is in use at that moment, so any may go.
        """
        while self._engines and self.residency.nbytes + nbytes > self._limit:
            self._engines.popitem(last=False)

    @property
    def residency(self) -> Residency:
        """What is kept now."""
        return Residency(len(self._engines), sum(engine.nbytes for engine in self._engines.values()))
