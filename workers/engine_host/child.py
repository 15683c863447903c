"""The child's side of the engine host: `python -m workers.engine_host.child`, spawned by `EngineHost` only."""

import ctypes
import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from threading import RLock

from app.backends import remedies
from app.processes.confinement import Measure
from app.processes.lifeline import die_with_parent
from app.processes.memory import go_first_if_memory_runs_out
from workers.channel.messages import BackendError, Benchmark, Build, Compare, Outcome, Refit, Request, Verify
from workers.channel.replies import Hello, Reply, Said, frame_of
from workers.channel.wire import RequestReader
from workers.engine_host.confined import confine_host
from workers.engine_host.device import describe_device, memory_free, resident_limit
from workers.engine_host.engines import Engines
from workers.engine_host.memory_limit import MemoryLimit, memory_limit
from workers.engine_host.offers import offers

CONFINED = (
    "It reaches the files of its work, of the system and of installed packages, and no network: see `confinement` in "
    "GET /v1/workers. Keep what the backend reads where packages are installed, or set LD_LIBRARY_PATH."
)
Send = Callable[[Said], None]
log = logging.getLogger(__name__)


def main() -> None:
    """Serve requests until the parent closes the socket or dies."""
    arguments = _arguments()
    die_with_parent(arguments.parent)
    go_first_if_memory_runs_out()
    measures = confine_host(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    with Connection(arguments.socket) as connection:
        send = one_at_a_time(connection)
        try:
            engines, memory = _greet(send, arguments, measures)
        except BackendError as error:
            send(error)
            return
        try:
            reader = RequestReader()
            while True:
                _answer(reader.read(connection.recv_bytes()), send, engines, memory, arguments.device)
        except (EOFError, ConnectionError):
            return


def one_at_a_time(connection: Connection) -> Send:
    """Return a function that sends one message after the other, from any thread.

    A thread may call it again while it encodes: that may collect garbage, and TensorRT's objects log lines when
    they are freed. So the lock is one that a thread can take twice.
    """
    sending = RLock()

    def send(message: Said) -> None:
        with sending:
            connection.send_bytes(frame_of(message))

    return send


def _greet(send: Send, arguments: Namespace, measures: Mapping[str, Measure]) -> tuple[Engines, MemoryLimit]:
    """Open everything before the first request, and send the `Hello`.

    Raises BackendError if the device does not exist.
    """
    device = describe_device(arguments.device)
    limit = resident_limit(device) if arguments.resident_bytes is None else arguments.resident_bytes
    memory = memory_limit(device, arguments.job_bytes)
    if device["kind"] != "cpu":
        _limit_page_locked(arguments)
    engines = Engines(arguments.device, limit, arguments.scratch, send, memory.bytes_with)
    backends = offers(arguments.device, engines.backend)
    confinement = {name: asdict(one) for name, one in {**measures, "memory": memory.measure}.items()}
    _flush()
    send(Hello(device, backends, limit, remedies(arguments.device), confinement))
    return engines, memory


def _limit_page_locked(arguments: Namespace) -> None:
    """Say how much memory may be page-locked on this machine, and for how long it is kept."""
    from workers.engine_host.cuda.page_locked_values import (  # noqa: PLC0415 - CUDA is loaded in the engine host of a GPU only
        process_values,
    )

    values = process_values()
    values.limit = arguments.page_locked_bytes
    if arguments.page_locked_idle_s is not None:
        values.idle_s = arguments.page_locked_idle_s


def _answer(request: Request, send: Send, engines: Engines, memory: MemoryLimit, device: str) -> None:
    with memory.of(request):
        result = _result(engines, request, memory)
    _flush()
    send(Reply(result, engines.residency, _memory_free(device)))
    if _takes_much_memory(request):
        _return_memory()


def _memory_free(device: str) -> int:
    """Return the device's free memory in bytes, or 0 if the device has failed; the result tells of that fault."""
    try:
        return memory_free(device)
    except BackendError:
        return 0


def _takes_much_memory(request: Request) -> bool:
    """Whether the request may have run a compiler or the reference."""
    return isinstance(request, Build | Verify | Benchmark | Compare) or (
        isinstance(request, Refit) and request.check.against in {"reference", "rebuild"}
    )


def _return_memory() -> None:
    """Give the system the freed memory that the allocator keeps for later: after a compiler, that is gigabytes."""
    with suppress(AttributeError):  # only glibc has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def _flush() -> None:
    """Write out Python's and native code's buffers, so that the log of a request ends before its reply."""
    sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)


def _result(engines: Engines, request: Request, memory: MemoryLimit) -> Outcome | BackendError:
    try:
        return engines.do(request)
    except BackendError as error:
        return memory.explained(error)
    except ConnectionError:
        raise
    except Exception as error:
        log.exception("%s failed", type(request).__name__)
        return memory.explained(_unforeseen(error))


def _unforeseen(error: Exception) -> BackendError:
    if isinstance(error, MemoryError):
        return BackendError("out_of_memory", "The engine host ran out of memory. Lower ENGINESMITH_RESIDENT_BYTES.")
    if isinstance(error, PermissionError):
        return BackendError("file_failed", f"The engine host was refused what its work needs: {error}. {CONFINED}")
    if isinstance(error, OSError):
        return BackendError("file_failed", f"Reading or writing a file failed: {error}. Check the worker's disk.")
    return BackendError(
        "internal_error", f"The engine host failed ({type(error).__name__}); the log has the traceback."
    )


def _arguments() -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--resident-bytes", type=int)
    parser.add_argument("--job-bytes", type=int)
    parser.add_argument("--page-locked-bytes", type=int, default=0)
    parser.add_argument("--page-locked-idle-s", type=float)
    parser.add_argument("--scratch", type=Path, required=True)
    for kind in ("readable", "writable", "private"):
        parser.add_argument(f"--{kind}", type=Path, action="append", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
