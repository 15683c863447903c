"""Takes from this process all files but some, by Landlock (https://docs.kernel.org/userspace-api/landlock.html).

A process that Landlock holds can neither trace processes outside, nor read their environment or memory. From Linux 6.12
on it cannot send them signals either. Python has no maintained package for it, so it is three system calls here.
"""

import ctypes
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.processes.system_calls import syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on all processors
VERSION, PATH_BENEATH = 1, 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ = EXECUTE | READ_FILE | READ_DIR
OWN = READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM
# No links, sockets or nodes: what a process makes here is read by one that may read more. Nor can any be moved here.
WRITE = OWN & ~MAKE_SYM | REFER
USE = READ | WRITE_FILE | TRUNCATE | IOCTL_DEV | MAKE_REG | REMOVE_FILE  # files too, in folders of shared memory
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many rights a version of Landlock knows; later ones know 16
SCOPE_SIGNALS, SCOPES_FROM = 1 << 1, 6


@dataclass(frozen=True, slots=True)
class View:
    """The files and folders, with all below, that a process may read, write below, and use as devices.

    `own` folders it may write below as well, symbolic links included; nothing that it makes there can be moved out.
    """

    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    own: tuple[Path, ...] = ()


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def landlock_version() -> int:
    """Return the version of Landlock that this kernel has; 0 if it has none or has it switched off."""
    try:
        return syscall(CREATE_RULESET, 0, 0, VERSION)
    except OSError:
        return 0


def restrict_to(view: View) -> None:
    """Leave this thread, and those that it starts, only the files of `view`; what does not exist is left out.

    There must be no new privileges (PR_SET_NO_NEW_PRIVS). Raises OSError.
    """
    version = landlock_version()
    handled = (1 << RIGHTS.get(version, 16)) - 1
    attributes = _Ruleset(handled, 0, SCOPE_SIGNALS if version >= SCOPES_FROM else 0)
    ruleset = syscall(CREATE_RULESET, _address(attributes), ctypes.sizeof(attributes), 0)
    try:
        for rights, paths in ((READ, view.readable), (WRITE, view.writable), (USE, view.devices), (OWN, view.own)):
            _allow(ruleset, rights & handled, paths)
        syscall(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, rights: int, paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            is_folder = stat.S_ISDIR(os.fstat(opened).st_mode)
            rule = _Beneath(rights if is_folder else rights & OF_FILES, opened)
            syscall(ADD_RULE, ruleset, PATH_BENEATH, _address(rule), 0)
        finally:
            os.close(opened)


def _address(structure: ctypes.Structure) -> ctypes.c_void_p:
    return ctypes.cast(ctypes.pointer(structure), ctypes.c_void_p)
