"""Takes from this process the network and a few system calls, by a filter of the kernel's (man 2 seccomp).

Whatever the filter refuses fails with EACCES, as if a permission were missing. The filter is some twenty instructions,
so it needs no library.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Collection, Mapping
from types import MappingProxyType

from app.processes.system_calls import prctl

PR_SET_SECCOMP, MODE_FILTER = 22, 2
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
LOAD, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # where they lie in struct seccomp_data, little-endian
FOREIGN = 0x40000000  # system calls of x32, which has numbers of its own for sockets

# Another process's memory and files; rings, which open sockets without a system call; owners and modes of files, which
# Landlock does not guard.
X86_64 = MappingProxyType(
    {
        "socket": 41,
        "ptrace": 101,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "pidfd_getfd": 438,
        "io_uring_setup": 425,
        "chmod": 90,
        "fchmod": 91,
        "fchmodat": 268,
        "fchmodat2": 452,
        "chown": 92,
        "fchown": 93,
        "lchown": 94,
        "fchownat": 260,
    }
)
AARCH64 = MappingProxyType(
    {
        "socket": 198,
        "ptrace": 117,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "pidfd_getfd": 438,
        "io_uring_setup": 425,
        "fchmod": 52,
        "fchmodat": 53,
        "fchmodat2": 452,
        "fchown": 55,
        "fchownat": 54,
    }
)
PROCESSORS: Mapping[str, tuple[int, Mapping[str, int]]] = MappingProxyType(
    {"x86_64": (0xC000003E, X86_64), "aarch64": (0xC00000B7, AARCH64)}
)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def has_filter() -> bool:
    """Whether a filter is known for this processor."""
    return os.uname().machine in PROCESSORS


def refuse_network(families: Collection[int] = ()) -> None:
    """Have the kernel refuse this thread, and those that it starts, any socket that is not of these families.

    A socket that is open already stays open, and pairs of sockets can still be made. There must be no new privileges
    (PR_SET_NO_NEW_PRIVS). Raises OSError.
    """
    architecture, numbers = PROCESSORS[os.uname().machine]
    code = _instructions(architecture, numbers, sorted(families))
    program = _Program(len(code) // 8, code)
    prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.cast(ctypes.pointer(program), ctypes.c_void_p))


def _instructions(architecture: int, numbers: Mapping[str, int], families: Collection[int]) -> bytes:
    """Return the filter; a jump counts the instructions that it leaves out."""
    refused = [number for name, number in numbers.items() if name != "socket"]
    last = 5 + len(refused) + 2 + len(families) + 1  # the last instruction refuses, the one before it allows
    code: list[tuple[int, int, int, int]] = []

    def add(operation: int, value: int, *, then: int | None = None, otherwise: int | None = None) -> None:
        ahead = [0 if goal is None else goal - len(code) - 1 for goal in (then, otherwise)]
        code.append((operation, ahead[0], ahead[1], value))

    add(LOAD, ARCHITECTURE)
    add(IF_EQUAL, architecture, otherwise=last)
    add(LOAD, NUMBER)
    add(IF_AT_LEAST, FOREIGN, then=last)
    for number in refused:
        add(IF_EQUAL, number, then=last)
    add(IF_EQUAL, numbers["socket"], otherwise=last - 1)
    add(LOAD, FIRST_ARGUMENT)
    for family in families:
        add(IF_EQUAL, family, then=last - 1)
    add(RETURN, REFUSE)
    add(RETURN, ALLOW)
    add(RETURN, REFUSE)
    return b"".join(struct.pack("HBBI", *one) for one in code)
