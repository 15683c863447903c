"""This process's side of the process that forks children.

Of this process's environment that one gets only PYTHONPATH and LD_LIBRARY_PATH. It is started when it is first needed,
and again if it was killed. It and its children end when this process ends.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, Final, ParamSpec, TypeVar

import structlog

import app
from app.children.channel import MAX_QUESTION_BYTES, Answerer, Broken, no_answers, receive_json, send_answer, send_json
from app.children.failures import AnswerTooLong, ChildLost, Crashed
from app.children.forking import EXIT_CODE
from app.children.limits import ChildLimits
from app.errors import Unavailable

MAX_ANSWER_BYTES = 128 * 1024 * 1024  # of one file that a child wrote
MAX_THREADS: Final = 8  # of a child that hashes: each takes address space, which is limited
LAST_WORDS: Final = 2000  # bytes of a dead child's log
# The child alone was killed, or the process that forks and the child with it: by somebody, or for want of memory.
KILLED: Final = (-signal.SIGKILL, None)

P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger()


class ForkServer:
    """Runs functions in children that are forked from a process which has imported `modules`. Threads may share it."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process id of the process that forks, None if there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process that forks unless it runs, and do not wait for its imports; raises Unavailable."""
        self._running()

    def close(self) -> None:
        """End the process that forks, and every child with it, and start none any more."""
        with self._lock:
            self._closed = True
            self._forget()

    def run(
        self,
        function: str,
        task: Mapping[str, Any],
        limits: ChildLimits,
        directory: Path,
        answers: Answerer = no_answers,
    ) -> dict[str, Any]:
        """Call `function` ("module:name") with `task` in a child, and return what it returned, as JSON.

        The child works in `directory` and leaves its log and its answer there. `answers` gives the bytes for what it
        asks.

        Raises:
            OutOfTime, Crashed, AnswerTooLong: the child gave no answer, see `app.children.failures`.
            ChildLost: "parsing_stalled" or "parser_killed", the child was lost by no fault of the work.
            Unavailable: "parser_unavailable", no child could be started.
        """
        work = {"function": function, "task": task}
        status = self._run(work, limits, directory, answers)
        if status in KILLED:
            log.warning("a child that reads uploads was killed", with_the_process_that_forks=status is None)
            status = self._run(work, limits, directory, answers)
        if status is None:
            raise _unavailable("it was killed twice")
        if status in KILLED:
            raise _killed()
        if status != 0:
            tail = (directory / "log").read_bytes()[-LAST_WORDS:].decode(errors="replace")
            log.warning("a child that reads uploads died", status=status, log=tail)
            raise Crashed.of(status)
        answer: dict[str, Any] = json.loads(read_written(directory / "answer"))
        return answer

    def _run(self, work: Mapping[str, Any], limits: ChildLimits, directory: Path, answers: Answerer) -> int | None:
        clock = _Clock(limits.wall_s)
        with ExitStack() as stack:
            status, channel = self._order(stack, limits, directory)
            try:
                channel.settimeout(clock.left())
                with suppress(ConnectionError):  # a child that is dead already is told of by its status
                    send_json(channel, work)
                return _attend(status, channel, answers, clock)
            except TimeoutError:
                raise _stalled(limits.wall_s) from None

    def _order(self, stack: ExitStack, limits: ChildLimits, directory: Path) -> tuple[socket.socket, socket.socket]:
        """Order a child and return the socket on which its end is told, and the channel."""
        status, status_theirs = socket.socketpair()
        channel, channel_theirs = socket.socketpair()
        for ours in (status, channel):
            stack.enter_context(ours)
        with (
            status_theirs,
            channel_theirs,
            (directory / "answer").open("wb") as answer,
            (directory / "log").open("wb") as output,
        ):
            theirs = [file.fileno() for file in (status_theirs, channel_theirs, answer, output)]
            order = {"limits": asdict(limits), "directory": str(directory)}
            self._send(json.dumps(order).encode(), theirs)
        return status, channel

    def _send(self, order: bytes, descriptors: Sequence[int]) -> None:
        control = self._running()
        try:
            socket.send_fds(control, [order], descriptors)
        except OSError:  # the process was killed a moment ago
            self._drop(control)
            try:
                socket.send_fds(self._running(), [order], descriptors)
            except OSError as error:
                raise _unavailable(error.strerror or "it ended at once") from error

    def _running(self) -> socket.socket:
        with self._lock:
            if self._closed:
                raise _unavailable("the service is being stopped")
            if self._process is not None and self._process.poll() is not None:
                log.warning("the process that forks children had ended", status=self._process.returncode)
                self._forget()
            if self._control is None:
                self._spawn()
            control = self._control
        if control is None:
            raise AssertionError
        return control

    def _spawn(self) -> None:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "app.children.forking", str(theirs.fileno()), *self._modules]
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment(),
                    start_new_session=True,  # Ctrl-C is for this process, which then ends that one
                )
        except OSError as error:
            control.close()
            raise _unavailable(error.strerror or "it does not start") from error
        self._control = control

    def _drop(self, control: socket.socket) -> None:
        with self._lock:
            if self._control is control:  # else another thread has started a new process already
                self._forget()

    def _forget(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def environment() -> dict[str, str]:
    """Return the environment of children: no secrets, the places of code, and settings against threads."""
    root = str(Path(app.__path__[0]).parent)
    places = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if os.environ.get(name)}
    return places | {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [places.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": str(min(MAX_THREADS, os.cpu_count() or 1)),
        "MALLOC_ARENA_MAX": "2",
    }


def read_written(path: Path) -> str:
    """Return the text of a file that a child wrote; raises AnswerTooLong."""
    if path.stat().st_size > MAX_ANSWER_BYTES:
        raise AnswerTooLong(MAX_ANSWER_BYTES)
    return path.read_text(encoding="utf-8")


class _Clock:
    """How many seconds a child still has. What its parent needs to find an answer does not count."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left; raises TimeoutError if there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def stopped(self, find: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the call returns, with the clock stopped while it lasts."""
        began = time.monotonic()
        found = find(*args, **kwargs)
        self._deadline += time.monotonic() - began
        return found


def _attend(status: socket.socket, channel: socket.socket, answers: Answerer, clock: _Clock) -> int | None:
    """Answer a child's questions until it ends, and return its exit status; raises TimeoutError.

    Returns None if nobody is left to tell the status, or if no child was started.
    """
    poll = select.poll()
    for one in (status, channel):
        poll.register(one, select.POLLIN)
    while True:
        ready = dict(poll.poll(clock.left() * 1000))
        if status.fileno() in ready:
            word = status.recv(EXIT_CODE.size)
            return int(EXIT_CODE.unpack(word)[0]) if word else None
        if channel.fileno() in ready:
            try:
                _answer(channel, answers, clock)
            except TimeoutError:
                raise
            except (Broken, ValueError, OSError):  # it closed its end: the status says the rest
                poll.unregister(channel)
                with suppress(OSError):
                    channel.shutdown(socket.SHUT_RDWR)


def _answer(channel: socket.socket, answers: Answerer, clock: _Clock) -> None:
    question = receive_json(channel, MAX_QUESTION_BYTES, clock.left)
    found = iter(clock.stopped(answers, question))

    def pieces() -> Iterator[bytes]:
        while (piece := clock.stopped(next, found, None)) is not None:
            channel.settimeout(clock.left())
            yield piece

    send_answer(channel, pieces())


def _stalled(seconds: float) -> ChildLost:
    return ChildLost(
        f"Reading the upload was given up after {seconds:.0f} s, though it had not taken the processor time that a "
        "file of its size may. The machine is too busy, or its storage does not answer. Send the request again later.",
        code="parsing_stalled",
    )


def _killed() -> ChildLost:
    return ChildLost(
        "The process that read the upload was killed twice: by somebody, or because the machine has no memory left. "
        "Send the request again later. If this repeats, give the machine more memory.",
        code="parser_killed",
    )


def _unavailable(why: str) -> Unavailable:
    return Unavailable(
        f"The process in which uploads are read could not be started: {why}. Send the request again in a moment.",
        code="parser_unavailable",
    )
