"""The worker's side of the engine host."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from threading import Lock
from typing import Any

import structlog

from app.fleet.backend_offer import BackendOffer, read_offers
from workers.channel.device_environment import asks_again_and_again, device_attributes_library
from workers.channel.hearing import BadReply, read_frame
from workers.channel.memory_watch import MemoryWatch
from workers.channel.messages import DEVICE_FAILED, BackendError, LogLine, Message, Outcome, Request, Residency
from workers.channel.paths import check_paths
from workers.channel.process import NO_MORE, EngineHostProcess, Reach
from workers.channel.replies import Hello, Reply

HELLO_S = 120.0  # a driver that starts up after a reboot takes half a minute, a runtime's import several seconds
TICK_S = 0.5
LAST_LINE = " Its last line was: "
REINSTALL = "install a C compiler and Enginesmith again, on a path without spaces, with nothing in /etc/ld.so.preload"
log = structlog.get_logger(__name__)


class EngineHostDied(Exception):
    """The child ended in the middle of a request; `log` holds the last lines it wrote.

    `status` is how it ended, negative for a signal; None if the worker killed it.
    """

    code = "engine_host_died"

    def __init__(self, detail: str, log: Sequence[str] = (), status: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.log = list(log)
        self.status = status


class EngineHostNotStarted(EngineHostDied):
    """The child ended before it had taken a request, so no request is to blame."""

    code = "engine_host_not_started"


@dataclass(frozen=True, slots=True)
class HostDescription:
    """What an engine host says of itself.

    `device` is as in `Hello`. `backends` has by name what each installed backend offers. `resident` is what the host
    keeps loaded now, of at most `resident_limit` bytes. `installable` and `confinement` are as in `Hello`.
    """

    device: Mapping[str, Any]
    backends: Mapping[str, BackendOffer]
    resident: Residency
    resident_limit: int
    installable: str
    confinement: Mapping[str, Mapping[str, Any]]


class EngineHost:
    """Sends requests to the child that owns `device` ("cpu", "cuda:0") and spawns it when there is none.

    It sends one request at a time. The child keeps up to `resident_bytes` of engines loaded (None: as much as suits the
    device), and its files below `scratch`. Besides these it sees the files that `reach` names. The child dies with the
    thread that spawned it, because Linux ties a death signal to a thread. So make every call from a thread that lives
    as long as the worker.
    """

    def __init__(self, device: str, resident_bytes: int | None, scratch: Path, reach: Reach = NO_MORE) -> None:
        self._device = device
        self._resident_bytes = resident_bytes
        self._scratch = scratch
        self._reach = reach
        self._process: EngineHostProcess | None = None
        self._hello: Hello | None = None
        self._residency = Residency()
        self._conversing = Lock()

    @property
    def pid(self) -> int | None:
        """The child's process id, or None if no child runs."""
        return self._process.pid if self._process is not None and self._process.is_alive else None

    def start(self) -> EngineHostProcess:
        """Return the child, after spawning it if there is none; call this early to hide the child's import time.

        Raises BackendError "unknown_device".
        """
        if self._process is not None and not self._process.is_alive:
            self.close()
        if self._process is None:
            if self._device != "cpu" and asks_again_and_again() and device_attributes_library() is None:
                log.warning("device attributes are not remembered: TensorRT 8 will be slow", remedy=REINSTALL)
            self._process = EngineHostProcess(self._device, self._resident_bytes, self._scratch, self._reach)
        return self._process

    def call(
        self,
        request: Request,
        *,
        on_message: Callable[[Message], None],
        tick: Callable[[], None],
        tick_s: float = TICK_S,
    ) -> Outcome:
        """Have the child do something and return what came of it.

        `on_message` gets each message and log line as it comes. `tick` is called at least every `tick_s` seconds. If
        either raises, the child is killed and the exception passes through. Raises BackendError if the request fails:
        the child goes on as before, unless the code is DEVICE_FAILED. If it takes too much memory, the child
        is killed and the code is "too_much_memory". Raises EngineHostDied if the child ends, and
        EngineHostNotStarted if it ends while it starts. If the child is gone, the next call spawns another.
        """
        with self._conversing:
            process = self.start()
            try:
                conversation = _Conversation(process, on_message, tick, tick_s)
                self._greet(process, conversation)
                reply = self._within_memory(process, conversation, request)
            except BaseException:
                self.close()
                raise
            self._learn(reply)
            if isinstance(reply.result, BackendError) and reply.result.code == DEVICE_FAILED:
                self.close()
        if isinstance(reply.result, BackendError):
            raise reply.result
        return reply.result

    def describe(self, tick: Callable[[], None] = lambda: None) -> HostDescription:
        """Return what a child last said of itself, whether it still runs or not.

        The first call spawns a child, waits for its greeting and calls `tick` meanwhile. Raises BackendError if the
        device does not exist, and EngineHostNotStarted.
        """
        hello, kept = self._hello or self.greet(tick), self._residency
        return HostDescription(
            device=dict(hello.device),
            backends=read_offers(hello.backends),
            resident=kept,
            resident_limit=hello.resident_bytes,
            installable=hello.installable,
            confinement=hello.confinement,
        )

    def close(self) -> None:
        """Kill the child, if there is one; the next call spawns another."""
        if self._process is not None:
            self._process.kill()
        self._process = None
        self._residency = Residency()

    def greet(self, tick: Callable[[], None] = lambda: None) -> Hello:
        """Return what the child says of itself, after spawning it if there is none; `tick` is called meanwhile.

        Raises BackendError if the device does not exist, and EngineHostNotStarted.
        """
        deadline = time.monotonic() + HELLO_S

        def tick_in_time() -> None:
            tick()
            if time.monotonic() > deadline:
                raise EngineHostNotStarted(
                    f"The engine host of {self._device} did not start within {HELLO_S:.0f} s and was killed. "
                    "Look whether the device answers (`nvidia-smi`) and what its log says."
                )

        with self._conversing:
            process = self.start()
            try:
                return self._greet(process, _Conversation(process, _log_message, tick_in_time, TICK_S))
            except BaseException:
                self.close()
                raise

    def _within_memory(self, process: EngineHostProcess, conversation: "_Conversation", request: Request) -> Reply:
        with MemoryWatch(process, request, self._reach.job_bytes, gpu=self._device != "cpu") as watch:
            try:
                return conversation.ask(request)
            except EngineHostDied as error:
                if watch.took is None:
                    raise
                raise watch.error() from error

    def _greet(self, process: EngineHostProcess, conversation: "_Conversation") -> Hello:
        """Return what the newest child said of itself; wait for this child's greeting if it has not come yet."""
        if self._hello is None or not process.greeted:
            self._hello = conversation.hello()
            process.greeted = True
        return self._hello

    def _learn(self, reply: Reply) -> None:
        self._residency = reply.residency
        if self._hello is not None:
            self._hello = replace(self._hello, device={**self._hello.device, "memory_free": reply.memory_free})


class _Conversation:
    """Sends to one child and hears it, on behalf of one caller."""

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
        self._request: Request | None = None

    def hello(self) -> Hello:
        """Wait for the first thing a child says; raises its BackendError if it cannot start.

        Raises EngineHostNotStarted if it ends instead.
        """
        try:
            said = self._listen()
        except EngineHostDied as error:
            raise EngineHostNotStarted(error.detail, error.log, error.status) from error
        if isinstance(said, BackendError):
            raise said
        if not isinstance(said, Hello):
            raise _misspoken(said, self._process)
        return said

    def ask(self, request: Request) -> Reply:
        """Send a request and wait for the reply that ends it."""
        self._request = request
        self._process.send(request)
        said = self._listen()
        if not isinstance(said, Reply):
            raise _misspoken(said, self._process)
        return said

    def _listen(self) -> Hello | BackendError | Reply:
        try:
            return self._next()
        except BadReply as error:  # whoever called kills the child
            raise EngineHostDied(f"The engine host sent {error}, and was killed.", self._process.log.tail) from error
        except (EOFError, ConnectionError) as error:
            how = self._process.end()
            self._pass_on_log()
            tail = self._process.log.tail
            last = f"{LAST_LINE}{tail[-1]}" if tail else ""
            raise EngineHostDied(f"The engine host {how}.{last}", tail, self._process.status) from error

    def _next(self) -> Hello | BackendError | Reply:
        """Return the next greeting, error or reply; messages and log lines before it are passed on."""
        while True:
            ready = self._wait()
            if self._process.log in ready:
                for line in self._process.log.read():
                    self._on_message(line)
            if self._process.connection in ready:
                received = self._heard()
                if isinstance(received, Hello | BackendError | Reply):
                    self._pass_on_log()
                    return received
                if received is not None:
                    self._on_message(received)
            self._tick_when_due()

    def _heard(self) -> Hello | BackendError | Reply | Message | None:
        frame = self._process.frames.next()
        if frame is None:
            return None
        said = read_frame(frame)
        if self._request is not None:
            check_paths(said, self._request)
        return said

    def _wait(self) -> list[Any]:
        if self._process.frames.waiting:
            return [self._process.connection]
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


def _misspoken(said: object, process: EngineHostProcess) -> EngineHostDied:
    return EngineHostDied(
        f"The engine host sent {type(said).__name__} where it may not, and was killed.", process.log.tail
    )


def _log_message(message: Message) -> None:
    if isinstance(message, LogLine):
        level = "debug" if message.level == "verbose" else message.level
        getattr(log, level)("engine host", line=message.text)
