"""One spawned child: its socket, its log, its end."""

import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

from app.processes.environment import python_environment
from workers.channel.device_environment import device_environment
from workers.channel.hearing import Frames
from workers.channel.messages import Request
from workers.channel.native_log import NativeLog
from workers.channel.wire import RequestWriter

NUMPY_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}  # numpy's own threads would only get in the way
PASSED_ON = {"PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES"}
PASSED_ON_PREFIXES = ("LC_", "PYTHON", "CUDA_", "NVIDIA_", "ORT_", "OMP_", "MKL_", "OPENBLAS_", "MALLOC_", "TRT_")
LAST_WORDS_S = 5.0  # how long a child that closed its socket may take to be gone


@dataclass(frozen=True, slots=True)
class Reach:
    """The folders that a child may read, and write, besides its scratch folders; `private` ones it never sees.

    What is listed as readable or writable stays so, even if it lies in a private folder. `job_bytes` is the memory that
    one request may take, None for an estimate. `page_locked_bytes` may be page-locked on a GPU's machine, and are given
    back when they were not used for `page_locked_idle_s` seconds.
    """

    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    private: tuple[Path, ...] = ()
    job_bytes: int | None = None
    page_locked_bytes: int = 0
    page_locked_idle_s: float | None = None


NO_MORE = Reach()


class EngineHostProcess:
    """A child with a scratch folder of its own in `scratch`; `kill` removes the folder with the child.

    The child writes there and where `reach` says. `greeted` says whether the child has sent its `Hello`. Raises
    BackendError if `device` does not exist.
    """

    def __init__(self, device: str, resident_bytes: int | None, scratch: Path, reach: Reach = NO_MORE) -> None:
        seen = device_environment(device)
        scratch.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="engine-host-", dir=scratch))
        environment = host_environment(self.folder) | seen | NUMPY_ENVIRONMENT
        ours, theirs = socket.socketpair()
        log, native = os.pipe()
        arguments: dict[str, object] = {
            "socket": theirs.fileno(),
            "parent": os.getpid(),
            "device": device,
            "scratch": self.folder.absolute(),
        }
        limits = {
            "resident-bytes": resident_bytes,
            "job-bytes": reach.job_bytes,
            "page-locked-bytes": reach.page_locked_bytes,
            "page-locked-idle-s": reach.page_locked_idle_s,
        }
        arguments |= {key: value for key, value in limits.items() if value is not None}
        flags = [f"--{key}={value}" for key, value in arguments.items()]
        flags += [f"--readable={folder.absolute()}" for folder in reach.readable]
        flags += [f"--writable={folder.absolute()}" for folder in reach.writable]
        flags += [f"--private={folder.absolute()}" for folder in reach.private]
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
        self.frames = Frames(self.connection.fileno())
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

    def strike(self) -> None:
        """Kill the child and leave the rest to `kill`, from any thread; whoever hears the child sees its socket end."""
        self._process.kill()

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


def host_environment(folder: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a child: what its runtimes read, and no other variable of this process's.

    So it gets neither the signing key, nor the URL of the database, nor a cloud's secret. `folder` is its home, because
    libraries keep files there.
    """
    kept = {name: value for name, value in environment.items() if _is_passed_on(name)}
    own = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONUSERBASE": site.getuserbase()}
    return python_environment(kept | own)


def _is_passed_on(name: str) -> bool:
    return name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
