"""Memory on the device, page-locked memory of the host, and copies between them."""

import ctypes
import mmap
from contextlib import suppress
from typing import Any, Self
from weakref import finalize

import numpy as np

from workers.engine_host.cuda.runtime import CudaError, check, cudart
from workers.engine_host.cuda.stream import Stream

LARGE_PAGE = 2 << 20  # bytes
Array = np.ndarray[Any, np.dtype[Any]]


class DeviceBuffer:
    """Memory on the device that can grow: `nbytes` bytes at the address `pointer`.

    The memory is given back by `close`, or when nothing refers to the buffer any more.
    """

    def __init__(self, nbytes: int = 0) -> None:
        """Allocate at least `nbytes`; raises CudaError "device_out_of_memory" if that fails."""
        self.pointer = 0
        self.nbytes = 0
        self._give_back: finalize[[int], DeviceBuffer] | None = None
        self.reserve(nbytes)

    def reserve(self, nbytes: int) -> None:
        """Make sure that the buffer has room for `nbytes`. If it grows, its content is lost and `pointer` changes.

        Raises CudaError "device_out_of_memory"; the buffer is empty then.
        """
        wanted = max(nbytes, 1)  # so that an empty tensor has an address as well
        if wanted <= self.nbytes:
            return
        self.close()
        self.pointer = int(check(cudart().cudaMalloc(wanted)))
        self.nbytes = wanted
        self._give_back = finalize(self, _free, self.pointer)
        self._give_back.atexit = False  # the driver frees what a process leaves

    def close(self) -> None:
        """Give the memory back; `reserve` may be called again."""
        if self._give_back is not None:
            self._give_back()
        self._give_back = None
        self.pointer = self.nbytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def page_locked(nbytes: int) -> Array:
    """Return page-locked memory of the host, U8 [nbytes], which the device reads and writes at its link's full speed.

    The memory is given back when neither the array nor a view of it is left. Raises CudaError "device_out_of_memory" if
    there is none.
    """
    if nbytes >= LARGE_PAGE:
        with suppress(CudaError, OSError):  # a system that locks CUDA's own memory only
            return _locked_in_large_pages(nbytes)
    pointer = int(check(cudart().cudaHostAlloc(max(nbytes, 1), cudart().cudaHostAllocDefault)))
    memory = (ctypes.c_uint8 * nbytes).from_address(pointer)
    finalize(memory, _free_page_locked, pointer).atexit = False  # the driver frees what a process leaves
    return np.ctypeslib.as_array(memory)


def _locked_in_large_pages(nbytes: int) -> Array:
    """Lock memory of ours, whose pages are there already: that takes a tenth of the time that CUDA's own takes."""
    mapped = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    memory = (ctypes.c_uint8 * nbytes).from_buffer(mapped)
    array = np.ctypeslib.as_array(memory)
    array[:: mmap.PAGESIZE] = 0
    pointer = ctypes.addressof(memory)
    check(cudart().cudaHostRegister(pointer, nbytes, cudart().cudaHostRegisterDefault))
    finalize(memory, _unregister, pointer).atexit = False
    return array


def copy_to_device(target: int, source: Array, stream: Stream) -> None:
    """Queue a copy to the device address `target`.

    When this returns, the array has been read. An array in page-locked memory is an exception: the device reads it when
    the stream comes to the copy. Raises CudaError, and ValueError if the array is not contiguous.
    """
    kind = cudart().cudaMemcpyKind.cudaMemcpyHostToDevice
    check(cudart().cudaMemcpyAsync(target, bytes_of(source).ctypes.data, source.nbytes, kind, stream.handle))


def copy_to_host(target: Array, source: int, stream: Stream) -> None:
    """Queue a copy from the device address `source`; the array is filled when the stream has come to the copy.

    The device writes into page-locked memory by itself. Into any other memory the driver copies, and the caller waits.

    Raises CudaError, and ValueError if the array is not contiguous.
    """
    kind = cudart().cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(cudart().cudaMemcpyAsync(bytes_of(target).ctypes.data, source, target.nbytes, kind, stream.handle))


def bytes_of(array: Array) -> Array:
    """Return an array's own bytes as a flat U8 array; raises ValueError if the array is not contiguous."""
    if not array.flags.c_contiguous:
        raise ValueError(f"an array of strides {array.strides} is not contiguous: copy it first")
    return array.reshape(-1).view(np.uint8)


def _free(pointer: int) -> None:
    cudart().cudaFree(pointer)  # fails only if an earlier call has failed and said so


def _unregister(pointer: int) -> None:
    cudart().cudaHostUnregister(pointer)  # fails only if an earlier call has failed and said so


def _free_page_locked(pointer: int) -> None:
    cudart().cudaFreeHost(pointer)  # fails only if an earlier call has failed and said so
