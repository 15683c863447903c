"""The process that forks children: `python -m app.children.forking DESCRIPTOR MODULE…`.

It imports the modules once, so that no child has to, and has one thread, so that it may fork. Each message on its
socket orders one child. It ends when the other end of that socket is closed, and its children end with it.
"""

import gc
import json
import os
import selectors
import signal
import socket
import struct
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Final

from app.children.child import Order, run
from app.children.limits import ChildLimits

MAX_ORDER_BYTES: Final = 64 * 1024
DESCRIPTORS: Final = 4  # of an order: status, channel, answer, log
EXIT_CODE: Final = struct.Struct("<i")
NICENESS: Final = 5  # children must not keep the process that answers reads from the processor


def main() -> None:
    """Fork children until the other end of the socket is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.nice(NICENESS)
    for module in sys.argv[2:]:
        import_module(module)
    gc.collect()
    gc.freeze()  # a child's collections need not touch, and so copy, what all of them share
    _Forks(control).serve()


class _Forks:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid = os.getpid()
        self._running: dict[int, socket.socket] = {}  # status sockets by process id
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()

    def serve(self) -> None:
        self._waker.settimeout(0)
        self._woken.settimeout(0)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for readable in (self._control, self._woken):
            self._selector.register(readable, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    self._reap()
                elif key.fileobj is self._control:
                    if not self._take_order():
                        self._end()
                        return
                elif key.data in self._running:  # whoever ordered this child does not want it any more
                    self._selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _take_order(self) -> bool:
        """Fork the child of the next order; False if there will be no more orders."""
        message, descriptors, _, _ = socket.recv_fds(self._control, MAX_ORDER_BYTES, DESCRIPTORS)
        if not message:
            return False
        status, channel, answer, log = descriptors
        told = socket.socket(fileno=status)
        try:
            pid = os.fork()
        except OSError as error:
            print(f"cannot fork: {error}", file=sys.stderr)  # noqa: T201 - this process has no other log
            told.close()  # without a word: no child was started
        else:
            if pid == 0:
                try:
                    self._become(json.loads(message), channel=channel, answer=answer, log=log)
                finally:
                    os._exit(1)  # whatever happened: this copy of the process takes no orders
            self._running[pid] = told
            self._selector.register(told, selectors.EVENT_READ, pid)
        finally:
            for one in (channel, answer, log):
                os.close(one)
        return True

    def _become(self, order: dict[str, object], *, channel: int, answer: int, log: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        limits = ChildLimits(**order["limits"])  # type: ignore[arg-type]
        run(Order(self._pid, limits, Path(str(order["directory"]))), channel=channel, answer=answer, log=log)

    def _reap(self) -> None:
        """Tell of each child that has ended how it ended."""
        with suppress(BlockingIOError):
            while self._woken.recv(512):
                pass
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            told = self._running.pop(pid)
            with suppress(KeyError):
                self._selector.unregister(told)
            with told, suppress(OSError):
                told.send(EXIT_CODE.pack(os.waitstatus_to_exitcode(status)))

    def _end(self) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
