"""The worker's side of the engine host."""

import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from workers.backends import catalog
from workers.backends.base import BackendError, Message, Outcome, Request
from workers.device import describe_device
from workers.engine_host.process import EngineHostProcess
from workers.engine_host.wire import Reply
from workers.resident import Residency


class EngineHostDied(Exception):
    """The child ended in the middle of a request; `log` holds the last lines it wrote."""

    code = "engine_host_died"

    def __init__(self, detail: str, log: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.log = list(log)


class EngineHost:
    """Sends requests to the child that owns `device` ("cpu", "cuda:0") and spawns it when there is none.

    One request at a time. The child keeps up to `resident_bytes` of engines loaded and its files below `scratch`.
    It dies with the thread that made the call that spawned it (Linux ties a death signal to a thread), so
    call from the thread that lives as long as the worker.
    """

    def __init__(self, device: str, resident_bytes: int, scratch: Path) -> None:
        self._device = device
        self._resident_bytes = resident_bytes
        self._scratch = scratch
        self._process: EngineHostProcess | None = None
        self._residency = Residency()

    @property
    def pid(self) -> int | None:
        """The child's process id, or None where none runs."""
        return self._process.pid if self._process is not None and self._process.is_alive else None

    def start(self) -> EngineHostProcess:
        """Return the child, spawned if there is none; called ahead of the first request, it spares that its imports."""
        if self._process is not None and not self._process.is_alive:
            self.close()
        if self._process is None:
            self._process = EngineHostProcess(self._device, self._resident_bytes, self._scratch)
        return self._process

    def call(
        self,
        request: Request,
        *,
        on_message: Callable[[Message], None],
        tick: Callable[[], None],
        tick_s: float = 0.5,
    ) -> Outcome:
        """Have the child do something and return what came of it.

        `on_message` gets progress and log lines as they come; `tick` is called at least every `tick_s` seconds.
        If either raises, the child is killed and the exception passes through. Raises BackendError, after
        which the child goes on as before, and EngineHostDied, after which the next call spawns another.
        """
        process = self.start()
        try:
            reply = _Conversation(process, on_message, tick, tick_s).hold(request)
        except BaseException:
            self.close()
            raise
        self._residency = reply.residency
        if isinstance(reply.result, BackendError):
            raise reply.result
        return reply.result

    def describe(self) -> dict[str, Any]:
        """Return {"device", "backends", "resident"} as the fleet shows them; asks no child and imports no backend."""
        kept = self._residency
        return {
            "device": describe_device(self._device),
            "backends": catalog.installed(self._device),
            "resident": {"engines": kept.engines, "bytes": kept.nbytes, "limit": self._resident_bytes},
        }

    def close(self) -> None:
        """Kill the child, if there is one; the next call spawns another."""
        if self._process is not None:
            self._process.kill()
        self._process = None
        self._residency = Residency()


class _Conversation:
    """One request to one child."""

    def __init__(
        self,
        process: EngineHostProcess,
        on_message: Callable[[Message], None],
        tick: Callable[[], None],
        tick_s: float,
    ) -> None:
        self._process = process
        self._on_message = on_message
        self._tick = tick
        self._tick_s = tick_s
        self._tick_at = time.monotonic() + tick_s

    def hold(self, request: Request) -> Reply:
        try:
            self._process.connection.send(request)
            return self._listen()
        except (EOFError, ConnectionError) as error:
            how = self._process.end()
            self._pass_on_log()
            tail = self._process.log.tail
            last = f" Its last line was: {tail[-1]}" if tail else ""
            raise EngineHostDied(f"The engine host {how}.{last}", tail) from error

    def _listen(self) -> Reply:
        while True:
            ready = self._wait()
            if self._process.log in ready:
                for line in self._process.log.read():
                    self._on_message(line)
            if self._process.connection in ready:
                received = self._process.connection.recv()
                if isinstance(received, Reply):
                    self._pass_on_log()
                    return received
                self._on_message(received)
            self._tick_when_due()

    def _wait(self) -> list[Any]:
        sources: list[Any] = [self._process.connection]
        if not self._process.log.ended:
            sources.append(self._process.log)
        return wait(sources, max(0.0, self._tick_at - time.monotonic()))

    def _tick_when_due(self) -> None:
        if time.monotonic() >= self._tick_at:
            self._tick()
            self._tick_at = time.monotonic() + self._tick_s

    def _pass_on_log(self) -> None:
        for line in self._process.log.drain():
            self._on_message(line)
