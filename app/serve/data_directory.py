"""The data directory, which belongs to one running service at a time."""

import fcntl
import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from app.serve.errors import CannotStart

RUNTIME_PREFIX = "enginesmith-"
OWNER_ONLY = 0o700
OTHERS = 0o077
OURS = ("enginesmith.db", "artifacts", "signing.key", "scratch")


class DataDirectory:
    """A data directory held under a lock, and the short-lived runtime directory that goes with it.

    The lock is the kernel's (flock), so it ends with the process, however the process dies. The lock file names the
    holder and the holder's runtime directory. If that directory is left behind, the next holder removes it. The
    runtime directory is not inside the data directory because a socket's path has at most 108 bytes.
    """

    def __init__(self, path: Path) -> None:
        """Create and lock the directory; raises CannotStart "data_dir_unwritable" or "data_dir_in_use"."""
        self.path = path.absolute()
        make_private(self.path)
        try:
            self.logs.mkdir(exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._take_lock()
        self._remove_left_behind()
        self.runtime = Path(tempfile.mkdtemp(prefix=RUNTIME_PREFIX))
        try:
            self._write_holder({"pid": os.getpid(), "runtime": str(self.runtime)})
        except OSError as error:  # the disk is full
            self.close()
            raise unwritable(self.path, error) from error

    @property
    def logs(self) -> Path:
        """The folder of the children's logs."""
        return self.path / "logs"

    def close(self) -> None:
        """Remove the runtime directory and give the lock back."""
        shutil.rmtree(self.runtime, ignore_errors=True)
        with suppress(OSError):  # the disk is full
            self._write_holder({})
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._read_holder().get("pid", "unknown")
            os.close(self._lock)
            raise CannotStart(
                "data_dir_in_use",
                f"The data directory {self.path} is in use by the Enginesmith with process id {holder}. Stop that one, "
                "or choose another directory with --data-dir.",
            ) from error

    def _remove_left_behind(self) -> None:
        runtime = Path(str(self._read_holder().get("runtime", "")))
        if runtime.name.startswith(RUNTIME_PREFIX) and runtime.parent == Path(tempfile.gettempdir()):
            shutil.rmtree(runtime, ignore_errors=True)

    def _read_holder(self) -> dict[str, object]:
        try:
            holder = json.loads(os.pread(self._lock, 4096, 0) or b"{}")
        except ValueError:
            return {}
        return holder if isinstance(holder, dict) else {}

    def _write_holder(self, holder: dict[str, object]) -> None:
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, json.dumps(holder).encode(), 0)


def make_private(path: Path) -> None:
    """Make a data directory that only this user enters; raises CannotStart "data_dir_unwritable".

    One that exists is closed to others if it holds Enginesmith's files. Any other one, such as /tmp, stays as it is.
    """
    try:
        path.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
        mode = path.stat().st_mode
        if mode & OTHERS and any((path / name).exists() for name in OURS):
            with suppress(PermissionError):  # it belongs to another user, who decides
                path.chmod(mode & ~OTHERS)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> CannotStart:
    """Build the error for a data directory that cannot be made or written."""
    reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
    return CannotStart(
        "data_dir_unwritable",
        f"Cannot write to the data directory {path}: {reason}. Choose another with ENGINESMITH_DATA_DIR or the option "
        "--data-dir of `serve`, or make it one with room that your user may write to.",
    )
