"""Where a refit's weights lie while TensorRT puts them into the engine: on the host, or on the device.

The refitter keeps their addresses only, so what a place holds must outlive the refit. Source: the `IRefitter` of
TensorRT's Python API, whose weights may lie on the device, and of both kinds at once, from 10 on.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from workers.channel.messages import DEVICE_OUT_OF_MEMORY, LogLine
from workers.engine_host.backends.tensorrt.library import trt
from workers.engine_host.backends.tensorrt.log import Log
from workers.engine_host.cuda import CudaError, DeviceBuffer, Staging, Stream, memory_info
from workers.engine_host.tensors import Array

BY_ADDRESS = ("bfloat16", "float8_e4m3fn")  # dtypes that numpy itself has not, as ml_dtypes calls them
TRT_TYPES: Mapping[str, str] = {"float8_e4m3fn": "fp8"}  # where TensorRT's name is another
ALIGNMENT = 256  # bytes, as of all memory that CUDA gives


class OnHost:
    """Weights where they lie, mostly in a mapped file: TensorRT reads them while it refits."""

    def __init__(self, refitter: trt.Refitter) -> None:
        self._refitter = refitter
        self._held: list[object] = []

    def set_weights(self, arrays: Mapping[str, Array]) -> list[str]:
        """Tell the refitter of weights, which have been checked, and return the names of those it refuses."""
        return [name for name, array in arrays.items() if not self._set(name, array)]

    def refit(self) -> bool:
        """Put them into the engine; False where TensorRT could not."""
        return self._refitter.refit_cuda_engine()

    def close(self) -> None:
        """Let go of them."""
        self._held.clear()

    def _set(self, name: str, array: Array) -> bool:
        by_address = array.dtype.name in BY_ADDRESS
        weights = _weights(array.dtype, array.ctypes.data, array.size) if by_address else trt.Weights(array)
        self._held.append((array, weights))
        return self._refitter.set_named_weights(name, weights)


class OnDevice:
    """Weights brought to the device, from where a refit takes them that is queued behind their copies.

    Where the device has no room for them beside the engine they stay on the host, and no engine is given up for them.
    They get half of what is free at most: TensorRT takes memory for a refit, too.
    """

    def __init__(self, refitter: trt.Refitter, staging: Staging, log: Log) -> None:
        """Take weights for a refitter; raises CudaError."""
        self._refitter = refitter
        self._staging = staging
        self._log = log
        self._stream = Stream()
        self._host = OnHost(refitter)
        self._buffers: list[DeviceBuffer] = []
        self._given: list[str] = []

    def set_weights(self, arrays: Mapping[str, Array]) -> list[str]:
        """Tell the refitter of weights, which have been checked, and return the names of those it refuses.

        Their copies are only queued, but the arrays have been read, unless they stay where they are. Raises CudaError.
        """
        buffer = self._reserved(sum(_aligned(array.nbytes) for array in arrays.values()))
        if buffer is None:
            return self._host.set_weights(arrays)
        address, refused = buffer.pointer, []
        for name, array in arrays.items():
            self._staging.copy_to_device(address, array, self._stream)
            if not self._set(name, array, address):
                refused.append(name)
            address += _aligned(array.nbytes)
        return refused

    def refit(self) -> bool:
        """Put them into the engine and wait until they are; False where TensorRT could not. Raises CudaError."""
        is_queued = self._refitter.refit_cuda_engine_async(self._stream.handle)
        self._stream.synchronize()
        return is_queued

    def close(self) -> None:
        """Give the device's memory back, once nothing uses it; raises the CudaError of what was still going on."""
        try:
            self._stream.synchronize()
        finally:
            for name in self._given:
                self._refitter.unset_named_weights(name)  # TensorRT wants that before they go
            for buffer in self._buffers:
                buffer.close()
            self._stream.close()
            self._host.close()

    def _reserved(self, nbytes: int) -> DeviceBuffer | None:
        try:
            self._staging.reserve()
            if nbytes <= memory_info().free // 2:
                self._buffers.append(DeviceBuffer(nbytes))
                return self._buffers[-1]
        except CudaError as error:
            if error.code != DEVICE_OUT_OF_MEMORY:
                raise
        text = (
            f"the GPU has too little room for {nbytes} bytes of weights beside the engine: they are read from the host"
        )
        self._log.tell(LogLine("info", text))
        return None

    def _set(self, name: str, array: Array, address: int) -> bool:
        weights = _weights(array.dtype, address, array.size)
        if not self._refitter.set_named_weights(name, weights, trt.TensorLocation.DEVICE):
            return False
        self._given.append(name)
        return True


@cache
def process_staging() -> Staging:
    """Return the page-locked memory of this process, which has one GPU and refits one engine at a time."""
    return Staging()


def _weights(dtype: "np.dtype[Any]", address: int, count: int) -> trt.Weights:
    return trt.Weights(getattr(trt, TRT_TYPES.get(dtype.name, dtype.name)), address, count)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
