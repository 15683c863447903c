"""Uploading over the loopback, against a bare loop that reads, digests and writes the same bytes.

python -m benchmarks.upload [--large]     1 GiB five times; with --large also 10 GiB once, for the memory

Both sides end when the bytes are synced to the disk. Neither counts the removal of its file. The two sides take
turns. Before each turn a file of the same size is written and removed: a virtual machine gives free memory back
to its host within seconds, and the first side to use that memory again would pay for it.
"""

import hashlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.service import Service, forget_peak, memory_bytes, running_service

MIB = 2**20
GIB = 2**30
ROUNDS = 5
LARGE = 10 * GIB


def measure(*, rounds: int = ROUNDS, nbytes: int = GIB, large: int | None = LARGE) -> dict[str, Any]:
    """Return the medians in seconds, their ratio, and how much the API process's peak memory grew in MiB."""
    with tempfile.TemporaryDirectory(prefix="enginesmith-upload-") as folder:
        scratch = Path(folder)
        with running_service(scratch) as service:
            return compare(service, _api_process(service), scratch, rounds=rounds, nbytes=nbytes, large=large)


def compare(
    service: Service, api: int, scratch: Path, *, rounds: int, nbytes: int, large: int | None
) -> dict[str, Any]:
    """Measure against a running service whose API is the process `api` and whose disk holds `scratch`."""
    source = scratch / "source"
    _write_random(source, nbytes)
    bare, uploads, growth = [], [], []
    for number in range(rounds):
        digest = _renumber(source, number)
        _warm_memory(scratch / "warm", nbytes)
        bare.append(_bare(source, scratch / "copy"))
        _warm_memory(scratch / "warm", nbytes)
        seconds, grown = _watched(api, partial(upload, service.url, source, digest))
        uploads.append(seconds)
        growth.append(grown)
        _artifact(service, digest).unlink()
    figures = {
        "nbytes": nbytes,
        "bare_s": _median(bare),
        "upload_s": _median(uploads),
        "ratio": round(statistics.median(uploads) / statistics.median(bare), 3),
        "ratios": [round(mine / theirs, 3) for mine, theirs in zip(uploads, bare, strict=True)],
        "growth_mib": round(max(growth) / MIB, 1),
    }
    source.unlink()
    return figures if large is None else figures | _large(service, api, scratch, large)


def upload(url: str, source: Path, digest: str) -> float:
    """PUT a file through a plain socket and return the seconds until the answer 201 has arrived."""
    address = urlsplit(url)
    size = source.stat().st_size
    started = time.perf_counter()
    with socket.create_connection((address.hostname, address.port)) as connection, source.open("rb") as file:
        head = f"PUT /v1/blobs/{digest} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {size}\r\n\r\n"
        connection.sendall(head.encode())
        connection.sendfile(file)
        status = connection.recv(4096).split(b"\r\n", 1)[0]
        seconds = time.perf_counter() - started
    if b" 201 " not in status:
        raise RuntimeError(f"the upload was answered {status.decode()}")
    return seconds


def _large(service: Service, api: int, scratch: Path, nbytes: int) -> dict[str, Any]:
    source = scratch / "large"
    _write_random(source, nbytes)
    digest = _renumber(source, 0)
    seconds, grown = _watched(api, partial(upload, service.url, source, digest))
    source.unlink()
    _artifact(service, digest).unlink()
    return {"large_nbytes": nbytes, "large_s": round(seconds, 3), "large_growth_mib": round(grown / MIB, 1)}


def _bare(source: Path, target: Path) -> float:
    buffer = memoryview(bytearray(MIB))
    sha256 = hashlib.sha256()
    started = time.perf_counter()
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while size := reader.readinto(buffer):
            sha256.update(buffer[:size])
            writer.write(buffer[:size])
        os.fsync(writer.fileno())
        seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def _watched(pid: int, action: Callable[[], float]) -> tuple[float, int]:
    before = memory_bytes(pid, "VmRSS")
    forget_peak(pid)
    seconds = action()
    return seconds, memory_bytes(pid, "VmHWM") - before


def _warm_memory(path: Path, nbytes: int) -> None:
    _write_random(path, nbytes)
    path.unlink()


def _write_random(path: Path, nbytes: int) -> None:
    block = os.urandom(16 * MIB)
    with path.open("wb") as file:
        for start in range(0, nbytes, len(block)):
            file.write(block[: nbytes - start])


def _renumber(path: Path, number: int) -> str:
    """Give the file other content, read it into the page cache and return its digest."""
    with path.open("r+b") as file:
        file.write(number.to_bytes(8, "big"))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _artifact(service: Service, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return service.data_dir / "artifacts" / "sha256" / name[:2] / name


def _api_process(service: Service) -> int:
    return service.find("app.cli", " api ")


def _median(seconds: list[float]) -> float:
    return round(statistics.median(seconds), 3)


if __name__ == "__main__":
    print(json.dumps(measure(large=LARGE if "--large" in sys.argv else None), indent=2))
