"""Folders for files that do not outlive the process that works on them.

The owner holds a lock on its folder (flock(2)). The kernel releases the lock, however the process ends. If nobody
holds a folder's lock, a killed process has left it behind, on this machine or on another one with the same volume.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)


@contextmanager
def scratch_folder(parent: Path, kind: str) -> Iterator[Path]:
    """Make a folder `kind`-… in `parent`, and remove it when the block ends."""
    folder, held = _held_folder(parent, kind)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _held_folder(parent: Path, kind: str) -> tuple[Path, int]:
    """Make a folder and lock it.

    If another process takes the folder for abandoned before it is locked, and removes it, another folder is made.
    """
    while True:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=parent))
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(held, fcntl.LOCK_EX)
        if os.fstat(held).st_nlink:
            return folder, held
        os.close(held)


def remove_abandoned(parent: Path) -> int:
    """Remove the folders in `parent` whose owner is gone, and return how many were removed."""
    folders = [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    return sum(_remove_if_abandoned(folder) for folder in folders)


def _remove_if_abandoned(folder: Path) -> bool:
    try:
        found = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        shutil.rmtree(folder, ignore_errors=True)
        log.info("removed an abandoned scratch folder", folder=str(folder))
        return True
    finally:
        os.close(found)
