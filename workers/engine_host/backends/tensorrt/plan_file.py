"""Plans as files."""

import hashlib
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from app.artifacts.writeback import WRITEBACK, start_writeback


@contextmanager
def writing_plan(plan: Any, path: Path) -> Iterator[Future[tuple[str, int]]]:  # noqa: ANN401 - as below
    """Write a plan as `write_plan` does, in a thread beside the block, and give the future of its result.

    If the writing or the block fails, no file is left.
    """
    try:
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(write_plan, plan, path)
    except Exception:
        path.unlink(missing_ok=True)
        raise


def write_plan(plan: Any, path: Path) -> tuple[str, int]:  # noqa: ANN401 - trt.IHostMemory, a buffer
    """Write a plan to the disk and return its digest ("sha256:<64 hex>") and size in bytes.

    A thread digests the plan meanwhile. The disk begins to store it before the last byte is written. When this returns,
    the file is on the disk, so whoever puts it into the store need not wait for the disk. If writing fails, because the
    disk is full for example, no file is left.
    """
    view = memoryview(plan).cast("B")
    with ThreadPoolExecutor(1) as pool, path.open("wb", buffering=0) as file:
        digest = pool.submit(hashlib.sha256, view)  # digesting and writing both release the interpreter's lock
        try:
            _write(view, file)
        except Exception:
            path.unlink()
            raise
        return f"sha256:{digest.result().hexdigest()}", view.nbytes


def _write(view: memoryview, file: FileIO) -> None:
    written = 0
    while written < view.nbytes:
        count = file.write(view[written : written + WRITEBACK])
        start_writeback(file.fileno(), written, count)
        written += count
    os.fsync(file.fileno())


@contextmanager
def mapped_plan(path: Path) -> Iterator[mmap.mmap]:
    """Give the plan at `path` as a buffer of its pages, so that reading it takes no memory of ours."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped
