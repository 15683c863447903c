"""A CUDA runtime that is none: it hands out addresses, remembers what was given back, and fails when told to.

Copies out of page-locked memory and into it are done as late as CUDA may do them: when something waits for them.
"""

import ctypes
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

SUCCESS = (0, "cudaSuccess", "no error")
OUT_OF_MEMORY = (2, "cudaErrorMemoryAllocation", "out of memory")
NO_DRIVER = (35, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version")
NO_DEVICE = (100, "cudaErrorNoDevice", "no CUDA-capable device is detected")
ILLEGAL_ADDRESS = (700, "cudaErrorIllegalAddress", "an illegal memory access was encountered")
NOT_SUPPORTED = (801, "cudaErrorNotSupported", "operation not supported")
STATUSES = {
    status[0]: status for status in (SUCCESS, OUT_OF_MEMORY, NO_DRIVER, NO_DEVICE, ILLEGAL_ADDRESS, NOT_SUPPORTED)
}


@dataclass
class FakeCudart:
    """Device memory lies on the host here. `fails` maps a function to the status it returns."""

    fails: dict[str, int] = field(default_factory=dict)
    memory: dict[int, Any] = field(default_factory=dict)
    page_locked: dict[int, Any] = field(default_factory=dict)
    queue: list[Callable[[], object]] = field(default_factory=list)
    done: int = 0  # of the queue
    marks: dict[int, int] = field(default_factory=dict)  # by event: how much was queued before it
    last_error: int = 0
    streams: set[int] = field(default_factory=set)
    events: dict[int, float] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    handles: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    count: int = 1
    driver: int = 12080

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815 - CUDA's name
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaHostAllocDefault = 0  # noqa: N815
    cudaHostRegisterDefault = 0  # noqa: N815

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any function of CUDA
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:  # noqa: ANN401
            self.calls.append(name)
            if (status := self.fails.get(name, 0)) != 0:
                self.last_error = status
                return (status, None)
            answer = getattr(self, f"_{name}")(*arguments)
            return (0, *(answer if isinstance(answer, tuple) else () if answer is None else (answer,)))

        return call

    def cudaGetErrorName(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, STATUSES[status][1].encode()

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, STATUSES[status][2].encode()

    def catch_up(self, count: int | None = None) -> None:
        """Do what was queued first, up to `count` pieces of work, or all."""
        for work in self.queue[self.done : count]:
            work()
            self.done += 1

    def holds(self, address: int) -> bool:
        """Whether an address is one of device memory that has not been given back."""
        return any(start <= address <= start + len(block) for start, block in self.memory.items())

    def cudaGetLastError(self) -> tuple[int]:  # noqa: N802
        status, self.last_error = self.last_error, 0
        return (status,)

    def _cudaHostAlloc(self, nbytes: int, _flags: int) -> int:  # noqa: N802
        block = (ctypes.c_uint8 * nbytes)()
        pointer = ctypes.addressof(block)
        self.page_locked[pointer] = block
        return pointer

    def _cudaHostRegister(self, pointer: int, nbytes: int, _flags: int) -> None:  # noqa: N802
        ctypes.memset(pointer, 0, nbytes)  # it must be there
        self.page_locked[pointer] = range(nbytes)

    def _cudaHostUnregister(self, pointer: int) -> None:  # noqa: N802
        self.catch_up()
        nbytes = len(self.page_locked.pop(pointer))
        ctypes.memset(pointer, 0, nbytes)  # it must still be there

    def _cudaFreeHost(self, pointer: int) -> None:  # noqa: N802
        self.catch_up()
        del self.page_locked[pointer]

    def _cudaMalloc(self, nbytes: int) -> int:  # noqa: N802
        block = (ctypes.c_uint8 * nbytes)()
        pointer = ctypes.addressof(block)
        self.memory[pointer] = block
        return pointer

    def _cudaFree(self, pointer: int) -> None:  # noqa: N802
        self.catch_up()
        del self.memory[pointer]

    def _cudaMemcpyAsync(self, target: int, source: int, nbytes: int, _kind: int, stream: int) -> None:  # noqa: N802
        assert stream in self.streams
        self.queue.append(partial(ctypes.memmove, target, source, nbytes))
        if not any(self._is_page_locked(address) for address in (target, source)):
            self.catch_up()

    def _is_page_locked(self, address: int) -> bool:
        return any(start <= address < start + len(block) for start, block in self.page_locked.items())

    def _cudaMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return 60 << 30, 80 << 30

    def _cudaGetDeviceCount(self) -> int:  # noqa: N802
        return self.count

    def _cudaGetDeviceProperties(self, _index: int) -> Any:  # noqa: N802, ANN401
        return SimpleNamespace(name=b"NVIDIA H100 80GB HBM3\0\0", major=9, minor=0)

    def _cudaDriverGetVersion(self) -> int:  # noqa: N802
        return self.driver

    def _cudaRuntimeGetVersion(self) -> int:  # noqa: N802
        return 13000

    def _cudaStreamCreateWithFlags(self, _flags: int) -> int:  # noqa: N802
        self.streams.add(handle := next(self.handles))
        return handle

    def _cudaStreamDestroy(self, stream: int) -> None:  # noqa: N802
        self.streams.remove(stream)

    def _cudaStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        assert stream in self.streams
        self.catch_up()

    def _cudaEventCreate(self) -> int:  # noqa: N802
        self.events[handle := next(self.handles)] = 0.0
        return handle

    def _cudaEventRecord(self, event: int, _stream: int) -> None:  # noqa: N802
        self.marks[event] = len(self.queue)
        self.events[event] = 2.5 * sum(call == "cudaEventRecord" for call in self.calls)  # milliseconds

    def _cudaEventSynchronize(self, event: int) -> None:  # noqa: N802
        assert event in self.events
        self.catch_up(self.marks.get(event, 0))

    def _cudaEventElapsedTime(self, start: int, end: int) -> float:  # noqa: N802
        assert self.events[start]
        assert self.events[end]
        return self.events[end] - self.events[start]

    def _cudaEventDestroy(self, event: int) -> None:  # noqa: N802
        del self.events[event]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCudart]:
    """The fake in place of cuda-bindings."""
    fake = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    yield fake
    fake.fails.clear()
