"""Confines this process to what its work needs, and says which measures hold here.

The process still does all its work. Whatever runs in it, such as a parser or a compiler that a hostile file has taken
over, reaches neither the network, nor the service's secrets, nor the processes beside it.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass

from app.processes.landlock import View, landlock_version, restrict_to
from app.processes.seccomp import has_filter, refuse_network
from app.processes.system_calls import capset, prctl

PR_SET_NO_NEW_PRIVS = 38
CAP_DAC_OVERRIDE = 1 << 1
CAPABILITY_VERSION = 0x20080522


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure: whether it holds, and by what, or why not."""

    holds: bool
    detail: str


def confine(view: View, families: Collection[int] = ()) -> dict[str, Measure]:
    """Confine this thread and all that it starts; return each measure by name.

    "privileges": it gains no privilege, and those of root are gone. "network": it opens no socket, except of the
    families. "files": it sees the files of `view` only, writes only where `view` says, and reaches no other process.

    Call it before any other thread runs, because a thread that runs already is not confined. What this machine cannot
    do is left out and told.
    """
    return {
        "privileges": _tried("no new privileges, no capabilities", lambda: _drop_privileges(view)),
        "network": _network(families),
        "files": _files(view),
    }


def _drop_privileges(view: View) -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    # A folder of another user's, as a mounted volume may be, is open to root only by this one capability.
    kept = 0 if _is_open(view) else CAP_DAC_OVERRIDE & _effective_capabilities()
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)(kept, kept)  # effective, permitted, inheritable, each in two halves
    capset(ctypes.cast(header, ctypes.c_void_p), ctypes.cast(sets, ctypes.c_void_p))


def _is_open(view: View) -> bool:
    """Whether the way to each folder is open to this user without the capabilities of root."""
    ways = {
        folder
        for path in (*view.readable, *view.writable, *view.own)
        for folder in (path, *path.parents)
        if folder.is_dir()
    }
    found = (folder.stat() for folder in ways)
    return all(one.st_uid == os.geteuid() or one.st_mode & stat.S_IXOTH for one in found)


def _effective_capabilities() -> int:
    with open("/proc/self/status") as lines:  # noqa: PTH123 - one line of a file that is read as a stream
        found = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return int(found, 16)


def _network(families: Collection[int]) -> Measure:
    if not has_filter():
        return Measure(holds=False, detail=f"no filter of system calls is known for {os.uname().machine}")
    what = "seccomp: sockets between processes of this machine only" if families else "seccomp: no sockets"
    return _tried(what, lambda: refuse_network(families))


def _files(view: View) -> Measure:
    version = landlock_version()
    if not version:
        return Measure(holds=False, detail="this kernel has no Landlock (Linux 5.13), or has it switched off")
    return _tried(f"Landlock {version}", lambda: restrict_to(view))


def _tried(what: str, measure: Callable[[], None]) -> Measure:
    try:
        measure()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "an error")
        return Measure(holds=False, detail=f"{what}: the system refuses it ({name}: {error.strerror})")
    return Measure(holds=True, detail=what)
