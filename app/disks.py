"""Checks that the disks which the API writes to have room."""

import os
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import make_url

from app.artifacts.store import ArtifactStore
from app.settings import MIB, Settings

INODES = 16  # an upload needs a temporary file, a directory in the store and a file in it


def fault_of_disks(settings: Settings, store: ArtifactStore) -> str | None:
    """Say which disk is too full to serve requests, and the remedy; None if each has room.

    Raises OSError if a disk does not answer.
    """
    faults = [fault for what, path in _written(settings, store) if (fault := _fault(what, path, settings))]
    return faults[0] if faults else None


def _written(settings: Settings, store: ArtifactStore) -> Iterator[tuple[str, Path]]:
    """Yield what the API writes to disks of this machine, and where; a remote database or store needs none."""
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and url.database:
        yield "database", Path(url.database).parent
    if store.directory is not None:
        yield "artifact store", store.directory
    yield "scratch files", settings.scratch_dir


def _fault(what: str, path: Path, settings: Settings) -> str | None:
    disk = os.statvfs(_existing(path.absolute()))
    free = disk.f_bavail * disk.f_frsize
    if free < settings.min_free_bytes:
        return (
            f"{free // MIB} MiB are free where the {what} lies, less than {settings.min_free_bytes // MIB} MiB. Free "
            "space there, or lower ENGINESMITH_MIN_FREE_BYTES."
        )
    if disk.f_files and disk.f_favail < INODES:  # f_files is 0 on filesystems that do not count inodes
        return f"No more files can be made where the {what} lies: its inodes are used up. Remove files there."
    return None


def _existing(path: Path) -> Path:
    """Return the nearest directory that exists; the scratch directory is missing as long as nothing was put there."""
    return next(place for place in (path, *path.parents) if place.exists())
