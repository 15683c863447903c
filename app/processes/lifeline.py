"""Makes a child process end when the process that started it ends, for whatever reason."""

import ctypes
import os
import signal
import sys
import time
from threading import Thread

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOK_EVERY_S = 0.5


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, the process that started it, ends.

    Raises SystemExit if `parent` has ended already. Only Linux has such a signal: elsewhere this process lives on.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the line above
        raise SystemExit(1)


def end_with_parent(parent: int) -> None:
    """Have this process end when `parent`, the process that started it, ends, whichever of its threads did so.

    The kernel's signal (`die_with_parent`) is of the thread: it would come when that thread ends.
    """

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
        os._exit(1)

    Thread(target=look, name="lifeline", daemon=True).start()
