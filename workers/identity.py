"""The names of worker processes."""

import os
import secrets
import socket


def new_identity() -> str:
    """Return a name for this process that no worker has had before: HOST:PID:RANDOM."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


def is_gone(identity: str, own: str) -> bool:
    """Tell whether a worker is known to be gone: it ran on this host, and its process id is now free or ours.

    `own` is the identity of this process, which is not gone.
    """
    host, _, process = identity.partition(":")
    pid, _, _ = process.partition(":")
    if identity == own or host != socket.gethostname() or not pid.isdecimal():
        return False
    return int(pid) == os.getpid() or not _runs(int(pid))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process is another user's
        return True
    return True
