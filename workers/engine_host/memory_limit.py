"""How much memory one request may take of the machine's."""

import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.processes.confinement import Measure
from workers.channel.messages import BackendError, Request
from workers.channel.weight_bytes import weight_bytes

GIB = 1 << 30
LEAST_BYTES = 4 * GIB  # for a graph and what it computes, whatever the weights
LEAST_WHOLE = 2 * GIB  # what libraries reserve counts as well, such as the stacks of threads
COPIES = 6  # of the weights: transformed, packed for kernels, widened by the reference, and as much again
SHARE = 8  # of the machine's memory, one part is for what a graph computes, and one is left to others
GROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
NO_LIMIT = "not of a GPU's host: CUDA and its compilers take host memory that no weights tell"
CODE = "too_much_memory"
SIGNS = ("bad_alloc", "Failed to allocate memory", "allocate memory", "out_of_memory", "std::length_error")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The memory that requests may take; `machine` are its bytes, `job` those of one request if they are set.

    The limit is on private memory that can be written (RLIMIT_DATA): mapped weights do not count. What is resident
    already does not count either.
    """

    machine: int
    job: int | None
    measure: Measure

    @contextmanager
    def of(self, request: Request) -> Iterator[None]:
        """Limit this process until the block ends."""
        if not self.measure.holds:
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
        if not self.measure.holds:
            return self.machine
        if self.job is not None:
            return self.job
        return max(LEAST_BYTES, self.machine // SHARE) + COPIES * weights

    def explained(self, error: BackendError) -> BackendError:
        """Return the error, or one that names the limit if it tells of memory that was refused."""
        if not self.measure.holds or not (error.code == "out_of_memory" or any(sign in error.detail for sign in SIGNS)):
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
    if device["kind"] != "cpu":
        return MemoryLimit(int(device["memory_total"]), job, Measure(holds=False, detail=NO_LIMIT))
    machine = min([int(device["memory_total"]), *_groups_limits()])
    whole = max(machine - machine // SHARE, LEAST_WHOLE)
    try:
        _set(whole, whole)
    except (OSError, ValueError) as error:
        return MemoryLimit(machine, job, Measure(holds=False, detail=f"the system refuses the limit ({error})"))
    return MemoryLimit(machine, job, Measure(holds=True, detail=f"RLIMIT_DATA by job, {whole / GIB:.1f} GiB at most"))


def machine_bytes() -> int:
    """Return the memory of this machine, or what this container may have of it, in bytes."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_groups_limits()])


def _groups_limits() -> Iterator[int]:
    """Yield the memory that this container may take, in bytes, if it has a limit."""
    for path in GROUPS:
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            yield int(path.read_text())


def _set(soft: int, hard: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _used() -> int:
    """Return what RLIMIT_DATA counts of this process, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "VmData:"), 0)
