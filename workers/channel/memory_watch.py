"""The worker's watch over the memory of an engine host.

On a GPU the kernel can hold no process to a limit of its own, because CUDA reserves far more than it takes. A control
group could, but few are delegated.
"""

from contextlib import suppress
from threading import Event, Thread
from types import TracebackType
from typing import Self

from app.processes.memory import machine_bytes, own_bytes
from workers.channel.job_memory import CODE, GIB, host_bytes, job_bytes
from workers.channel.messages import BackendError, Request
from workers.channel.process import EngineHostProcess
from workers.channel.weight_bytes import weight_bytes

LOOK_EVERY_S = 0.1


class MemoryWatch:
    """Kills an engine host that takes more memory than a request may; `took` are its bytes then, else None.

    What the host has when the block begins does not count. What other programs take that it starts is not seen.
    """

    def __init__(self, process: EngineHostProcess, request: Request, setting: int | None, *, gpu: bool) -> None:
        machine = machine_bytes()
        most = job_bytes(weight_bytes(request), machine, gpu=gpu) if setting is None else setting
        self.took: int | None = None
        self._process = process
        self._most = min(_taken(process) + most, host_bytes(machine))
        self._over = Event()
        self._thread = Thread(target=self._look, name="memory", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        """Watch no longer."""
        self._over.set()
        self._thread.join()

    def error(self) -> BackendError:
        """Return what to tell of a host that was killed."""
        return BackendError(
            CODE,
            f"The job takes more memory of the worker's machine than one with such weights may: with all that is "
            f"loaded, the engine host had {(self.took or 0) / GIB:.1f} GiB, {self._most / GIB:.1f} GiB is the limit, "
            "and it was ended. If the model is meant to, raise ENGINESMITH_JOB_MEMORY_BYTES; else give it a profile "
            "with smaller shapes.",
        )

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            taken = _taken(self._process)
            if taken > self._most:
                self.took = taken
                self._process.strike()
                return


def _taken(process: EngineHostProcess) -> int:
    with suppress(OSError):
        return own_bytes(process.pid)
    return 0
