"""Values kept in page-locked memory, by what they are.

The device reads page-locked memory at its link's full speed. To lock pages takes time, so memory is locked in a thread
beside the jobs, kept from one job to the next, and given back once no job has used it for a while.
A value that is still there from an earlier job need not be read again.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from threading import Lock, Thread, Timer

import numpy as np

from workers.channel.messages import BackendError
from workers.engine_host.cuda.memory import Array, page_locked

LEAST_LOCKED = 64 << 10  # bytes; the driver copies less than that at once from any memory
IDLE_S = 600.0


@dataclass(slots=True)
class _Kept:
    memory: Array
    is_busy: bool = True


class PageLockedValues:
    """Up to `limit` bytes of values. If there is no room, the least recently used value that is not busy makes room.

    Values are U8, flat. Nothing here waits for memory to be locked: a value that has no room yet gets none, and
    `grow` locks memory for the next one of its size.
    """

    def __init__(self, limit: int = 0, idle_s: float = IDLE_S) -> None:
        self.limit = limit
        self.idle_s = idle_s
        self._values: defaultdict[int, OrderedDict[Hashable, _Kept]] = defaultdict(OrderedDict)  # by their bytes
        self._free: defaultdict[int, list[Array]] = defaultdict(list)
        self._locked = 0
        self._missed: dict[Hashable, int] = {}  # values for which there was no memory at all, with their bytes
        self._displaced: Counter[int] = Counter()  # sizes for which another value had to go
        self._lock = Lock()
        self._grower: Thread | None = None
        self._timer: Timer | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that are locked now."""
        return self._locked

    def get(self, key: Hashable, nbytes: int) -> Array | None:
        """Return the value of this key and size, which is busy until it is released; None if it is not here."""
        with self._lock:
            kept = self._values[nbytes].get(key)
            if kept is None:
                return None
            kept.is_busy = True
            self._values[nbytes].move_to_end(key)
            return kept.memory

    def reserve(self, key: Hashable, nbytes: int) -> Array | None:
        """Return memory for the value of this key, which is busy until it is released; None if there is none."""
        with self._lock:
            if not self.limit:
                return None
            memory = self._free[nbytes].pop() if self._free[nbytes] else self._taken(nbytes)
            if memory is None:
                self._missed[key] = nbytes
                return None
            self._missed.pop(key, None)
            self._values[nbytes][key] = _Kept(memory)
            return memory

    def release(self, key: Hashable, nbytes: int) -> None:
        """Let the value of this key make room for others."""
        with self._lock:
            if (kept := self._values[nbytes].get(key)) is not None:
                kept.is_busy = False

    def forget_all(self) -> None:
        """Forget all values, of which none may be in use; the memory stays locked for others."""
        with self._lock:
            for nbytes, values in self._values.items():
                self._free[nbytes] += [kept.memory for kept in values.values()]
            self._values.clear()

    def grow(self) -> None:
        """Lock memory, in a thread, for the sizes that found none since the last call. Call it when a job is done."""
        if not self.limit:
            return
        with self._lock:
            missed, displaced = [*self._missed.values()], self._displaced
            self._missed, self._displaced = {}, Counter()
            self._wait_for_idleness()
        if (missed or displaced) and (self._grower is None or not self._grower.is_alive()):
            self._grower = Thread(target=self._grow, args=(missed, displaced), name="page-lock", daemon=True)
            self._grower.start()

    def wait(self) -> None:
        """Wait until no thread locks memory."""
        if self._grower is not None:
            self._grower.join()

    def close(self) -> None:
        """Forget all values and give the memory back."""
        self.wait()
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._give_back()

    def _taken(self, nbytes: int) -> Array | None:
        """Return the memory of the least recently used value of this size."""
        for key, kept in self._values[nbytes].items():
            if not kept.is_busy:
                self._displaced[nbytes] += 1
                del self._values[nbytes][key]
                return kept.memory
        return None

    def _grow(self, missed: list[int], displaced: Counter[int]) -> None:
        """Lock memory: for what was missed even if other values have to go, and once more for all if there is room.

        So the next version of a value need not take the place of this one.
        """
        try:
            for nbytes in missed:
                if self._make_room(nbytes):
                    self._add(nbytes)
            for nbytes in (*missed, *displaced.elements()):
                if self._locked + nbytes <= self.limit:
                    self._add(nbytes)
        except BackendError:
            self.limit = self._locked  # the system has no more for us

    def _add(self, nbytes: int) -> None:
        memory = page_locked(nbytes) if nbytes >= LEAST_LOCKED else np.empty(nbytes, np.uint8)
        with self._lock:
            self._free[nbytes].append(memory)
            self._locked += nbytes

    def _make_room(self, nbytes: int) -> bool:
        """Give memory of other sizes back until `nbytes` fit; False if they do not."""
        with self._lock:
            for size, free in self._free.items():
                while size != nbytes and free and self._locked + nbytes > self.limit:
                    free.pop()
                    self._locked -= size
            for size, values in self._values.items():
                for key in [key for key, kept in values.items() if size != nbytes and not kept.is_busy]:
                    if self._locked + nbytes <= self.limit:
                        return True
                    del values[key]
                    self._locked -= size
            return self._locked + nbytes <= self.limit

    def _wait_for_idleness(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = Timer(self.idle_s, self._idle)
        self._timer.daemon = True
        self._timer.start()

    def _idle(self) -> None:
        with self._lock:
            if not any(kept.is_busy for values in self._values.values() for kept in values.values()):
                self._give_back()

    def _give_back(self) -> None:
        self._values.clear()
        self._free.clear()
        self._locked = 0


@cache
def process_values() -> PageLockedValues:
    """Return those of this process, which has one GPU."""
    return PageLockedValues()
