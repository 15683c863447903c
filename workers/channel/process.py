"""One spawned child: its socket, its log, its end."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

from app.processes.environment import python_environment
from workers.channel.device_environment import device_environment
from workers.channel.messages import Request
from workers.channel.native_log import NativeLog
from workers.channel.wire import RequestWriter

NUMPY_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}  # numpy's own threads would only get in the way
LAST_WORDS_S = 5.0  # how long a child that closed its socket may take to be gone


class EngineHostProcess:
    """A child with a scratch folder of its own; `kill` removes the folder with the child.

    `greeted` says whether the child has sent its `Hello`. Raises BackendError if `device` does not exist.
    """

    def __init__(self, device: str, resident_bytes: int | None, scratch: Path) -> None:
        environment = python_environment() | device_environment(device) | NUMPY_ENVIRONMENT
        scratch.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="engine-host-", dir=scratch))
        ours, theirs = socket.socketpair()
        log, native = os.pipe()
        arguments: dict[str, object] = {
            "socket": theirs.fileno(),
            "parent": os.getpid(),
            "device": device,
            "scratch": self.folder,
        }
        if resident_bytes is not None:
            arguments["resident-bytes"] = resident_bytes
        flags = [f"--{key}={value}" for key, value in arguments.items()]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, arguments of ours
                [sys.executable, "-m", "workers.engine_host.child", *flags],
                stdin=subprocess.DEVNULL,
                stdout=native,
                stderr=native,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the worker, which then decides about its child
            )
        except OSError:
            ours.close()
            os.close(log)
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            os.close(native)
            theirs.close()
        self.connection = Connection(ours.detach())
        self.log = NativeLog(log)
        self.greeted = False
        self._writer = RequestWriter()
        self._sender: Thread | None = None

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the child runs."""
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        """How the child ended, as `subprocess` tells it (negative for a signal); None while it runs."""
        return self._process.poll()

    def send(self, request: Request) -> None:
        """Send a request without waiting for the child to read it; if the child dies, its socket ends."""
        self._sender = Thread(target=self._send, args=(self._writer.write(request),), name="request", daemon=True)
        self._sender.start()

    def end(self) -> str:
        """Wait for a child that closed its socket, and say how it ended."""
        try:
            code = self._process.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code >= 0:
            return f"ended with status {code}"
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory, possibly)" if name == "SIGKILL" else "")

    def kill(self) -> None:
        """Kill the child, whatever it is at, and remove what it leaves."""
        self._process.kill()
        self._process.wait()
        if self._sender is not None:
            self._sender.join()  # it ends: its write fails, because nobody reads any more
        self.connection.close()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _send(self, pickled: bytes) -> None:
        with suppress(ConnectionError):  # whoever listens sees the socket end
            self.connection.send_bytes(pickled)
