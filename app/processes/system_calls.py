"""Calls of the C library and the kernel that Python has no functions for."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *arguments: int | ctypes.c_void_p) -> None:
    """Change how the kernel treats this process (man 2 prctl); raises OSError."""
    values = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in arguments]
    values += [ctypes.c_ulong(0)] * (4 - len(values))
    _checked(_libc.prctl(ctypes.c_int(option), *values))


def syscall(number: int, *arguments: int | ctypes.c_void_p) -> int:
    """Make a system call by its number and return its result; raises OSError."""
    values = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *values))


def capset(header: ctypes.c_void_p, data: ctypes.c_void_p) -> None:
    """Set this thread's capabilities (man 2 capset); raises OSError."""
    _checked(_libc.capset(header, data))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
