"""Memory on the device, page-locked memory on the host, and copies between them."""

from typing import Any, Self
from weakref import finalize

import numpy as np

from workers.cuda.runtime import check, cudart
from workers.cuda.stream import Stream

Array = np.ndarray[Any, np.dtype[Any]]
Raw = tuple[int, int]  # an address on the host and a number of bytes


class _Block:
    """A piece of memory that grows, given back by `close` or when nothing refers to it any more."""

    def __init__(self, nbytes: int = 0) -> None:
        """Allocate at least `nbytes`; CudaError "device_out_of_memory" where that fails."""
        self.pointer = 0
        self.nbytes = 0
        self._give_back: finalize[[int], Any] | None = None
        self.reserve(nbytes)

    def reserve(self, nbytes: int) -> None:
        """Have room for `nbytes`. Where there is not enough the content is lost and the address another one.

        Raises CudaError "device_out_of_memory", after which the block is empty.
        """
        wanted = max(nbytes, 1)  # so that an empty tensor has an address as well
        if wanted <= self.nbytes:
            return
        self.close()
        self.pointer = self._allocate(wanted)
        self.nbytes = wanted
        self._give_back = finalize(self, self._free, self.pointer)
        self._give_back.atexit = False  # the driver frees what a process leaves

    def close(self) -> None:
        """Give the memory back; a view of it must not be used any more. It may be reserved again."""
        if self._give_back is not None:
            self._give_back()
        self._give_back = None
        self.pointer = self.nbytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _allocate(nbytes: int) -> int:
        raise NotImplementedError

    @staticmethod
    def _free(pointer: int) -> None:
        raise NotImplementedError


class DeviceBuffer(_Block):
    """Memory on the device: `nbytes` from the address `pointer` on."""

    @staticmethod
    def _allocate(nbytes: int) -> int:
        return int(check(cudart().cudaMalloc(nbytes)))

    @staticmethod
    def _free(pointer: int) -> None:
        cudart().cudaFree(pointer)  # fails only where an earlier call has failed and said so


class HostBuffer(_Block):
    """Page-locked memory on the host, which copies to and from the device at full speed."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The bytes as numpy sees them: an array of them keeps this buffer from being given back."""
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.pointer, False)}

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return the first bytes as an array, enlarged to hold it; valid until `close`, or `reserve` of more."""
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.reserve(length)
        return np.asarray(self)[:length].view(dtype).reshape(shape)

    @staticmethod
    def _allocate(nbytes: int) -> int:
        return int(check(cudart().cudaMallocHost(nbytes)))

    @staticmethod
    def _free(pointer: int) -> None:
        cudart().cudaFreeHost(pointer)


def copy_to_device(target: int, source: Array | Raw, stream: Stream) -> None:
    """Queue a copy to the device address `target`.

    Memory that is not page-locked has been read when this returns; page-locked memory must stay as it is until the
    stream has come so far. Raises CudaError, and ValueError where an array is not contiguous.
    """
    pointer, nbytes = _raw(source)
    kind = cudart().cudaMemcpyKind.cudaMemcpyHostToDevice
    check(cudart().cudaMemcpyAsync(target, pointer, nbytes, kind, stream.handle))


def copy_to_host(target: Array | Raw, source: int, stream: Stream) -> None:
    """Queue a copy from the device address `source`; `target` is filled once the stream has come so far.

    Raises CudaError, and ValueError where an array is not contiguous.
    """
    pointer, nbytes = _raw(target)
    kind = cudart().cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(cudart().cudaMemcpyAsync(pointer, source, nbytes, kind, stream.handle))


def _raw(memory: Array | Raw) -> Raw:
    if isinstance(memory, tuple):
        return memory
    if not memory.flags.c_contiguous:
        raise ValueError(f"an array of strides {memory.strides} is not contiguous: copy it first")
    return memory.ctypes.data, memory.nbytes
