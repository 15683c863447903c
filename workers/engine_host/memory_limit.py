"""Holds this process to the memory that one request may take, by a limit of the kernel's where there can be one."""

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.processes.confinement import Measure
from app.processes.memory import machine_bytes
from workers.channel.job_memory import CODE, GIB, host_bytes, job_bytes
from workers.channel.messages import BackendError, Request
from workers.channel.weight_bytes import weight_bytes

WATCHED = "the worker ends a host whose job takes more than it may, {:.1f} GiB at most"
SIGNS = ("bad_alloc", "Failed to allocate memory", "allocate memory", "out_of_memory", "std::length_error")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The memory that requests may take; `machine` are its bytes, `job` those of one request if they are set.

    `by_kernel` says whether the kernel limits the private memory that can be written (RLIMIT_DATA): mapped weights do
    not count. What is resident already does not count either. On a GPU, `machine` are the GPU's bytes.
    """

    machine: int
    job: int | None
    measure: Measure
    by_kernel: bool = True

    @contextmanager
    def of(self, request: Request) -> Iterator[None]:
        """Limit this process until the block ends."""
        if not self.by_kernel:
            yield
            return
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        _set(min(_used() + self.bytes_of(request), most), most)
        try:
            yield
        finally:
            _set(most, most)

    def bytes_of(self, request: Request) -> int:
        """Return the bytes that a request may take."""
        return self.bytes_with(weight_bytes(request))

    def bytes_with(self, weights: int) -> int:
        """Return the bytes that a request with so many bytes of weights may take; on a GPU, all that the GPU has."""
        if not self.by_kernel:
            return self.machine
        if self.job is not None:
            return self.job
        return job_bytes(weights, self.machine, gpu=False)

    def explained(self, error: BackendError) -> BackendError:
        """Return the error, or one that names the limit if it tells of memory that was refused."""
        if not self.by_kernel or not (error.code == "out_of_memory" or any(sign in error.detail for sign in SIGNS)):
            return error
        soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
        return BackendError(
            CODE,
            f"The job takes more memory than one with such weights may (with all that is loaded, "
            f"{soft / GIB:.1f} GiB). If the model is meant to, raise ENGINESMITH_JOB_MEMORY_BYTES; else give it a "
            f"profile with smaller shapes. The runtime said: {error.detail}",
        )


def memory_limit(device: Mapping[str, Any], job: int | None) -> MemoryLimit:
    """Return the limit on a device, after leaving the rest of the machine a share of its memory."""
    machine = machine_bytes()
    whole = host_bytes(machine)
    watched = Measure(holds=True, detail=WATCHED.format(whole / GIB))
    if device["kind"] != "cpu":
        return MemoryLimit(int(device["memory_total"]), job, watched, by_kernel=False)
    try:
        _set(whole, whole)
    except (OSError, ValueError):
        return MemoryLimit(machine, job, watched, by_kernel=False)
    return MemoryLimit(machine, job, Measure(holds=True, detail=f"RLIMIT_DATA by job, {whole / GIB:.1f} GiB at most"))


def _set(soft: int, hard: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _used() -> int:
    """Return what RLIMIT_DATA counts of this process, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "VmData:"), 0)
