"""Where a refit's weights lie while TensorRT puts them into the engine: on the host, or on the device.

The refitter keeps only the addresses of weights, so a place must hold them until the refit is done. Source: the
`IRefitter` of TensorRT's Python API. From TensorRT 10 on, weights may lie on the device, and one refit may have weights
in both places.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from workers.channel.messages import DEVICE_OUT_OF_MEMORY, LogLine
from workers.engine_host.backends.tensorrt.library import trt
from workers.engine_host.backends.tensorrt.log import Log
from workers.engine_host.backends.tensorrt.weights_read_back import Given, held_otherwise
from workers.engine_host.cuda import CudaError, DeviceBuffer, Staging, Stream, memory_info
from workers.engine_host.tensors import Array

BY_ADDRESS = ("bfloat16", "float8_e4m3fn")  # ml_dtypes' names of dtypes that numpy itself does not have
TRT_TYPES: Mapping[str, str] = {"float8_e4m3fn": "fp8"}  # the dtypes that TensorRT gives another name
ALIGNMENT = 256  # bytes, as for all memory that CUDA allocates


class OnHost:
    """Leaves weights where they lie, mostly in a mapped file; TensorRT reads them while it refits."""

    def __init__(self, refitter: trt.Refitter) -> None:
        self._refitter = refitter
        self._arrays: list[Array] = []
        self._given: dict[str, Given] = {}

    def set_weights(self, arrays: Mapping[str, Array]) -> list[str]:
        """Give checked weights to the refitter, and return the names of those that it refuses."""
        return [name for name, array in arrays.items() if not self._set(name, array)]

    def held_otherwise(self) -> list[str]:
        """Return the names under which the refitter does not hold what it was given: see `weights_read_back`."""
        return held_otherwise(self._refitter, self._given)

    def refit(self) -> bool:
        """Put the weights into the engine; False if TensorRT could not."""
        return self._refitter.refit_cuda_engine()

    def close(self) -> None:
        """Let go of the weights."""
        self._given.clear()
        self._arrays.clear()

    def _set(self, name: str, array: Array) -> bool:
        by_address = array.dtype.name in BY_ADDRESS
        weights = _weights(array.dtype, array.ctypes.data, array.size) if by_address else trt.Weights(array)
        self._arrays.append(array)
        self._given[name] = Given(weights, trt.TensorLocation.HOST)
        return self._refitter.set_named_weights(name, weights)


class OnDevice:
    """Copies weights to the device, and refits from there; the refit is queued behind the copies.

    If the device has no room for the weights beside the engine, they stay on the host. No engine is given up for them.
    Weights get at most half of the free memory, because TensorRT takes memory for a refit, too.
    """

    def __init__(self, refitter: trt.Refitter, staging: Staging, log: Log) -> None:
        """Make a place for a refitter's weights; raises CudaError."""
        self._refitter = refitter
        self._staging = staging
        self._log = log
        self._stream = Stream()
        self._host = OnHost(refitter)
        self._buffers: list[DeviceBuffer] = []
        self._given: dict[str, Given] = {}

    def set_weights(self, arrays: Mapping[str, Array]) -> list[str]:
        """Give checked weights to the refitter, and return the names of those that it refuses.

        When this returns, the arrays have been read and their copies are queued. If the weights stay on the host, the
        arrays are read by `refit`. Raises CudaError.
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

    def held_otherwise(self) -> list[str]:
        """Return the names under which the refitter does not hold what it was given: see `weights_read_back`."""
        return [*held_otherwise(self._refitter, self._given), *self._host.held_otherwise()]

    def refit(self) -> bool:
        """Put the weights into the engine and wait for that; False if TensorRT could not. Raises CudaError."""
        is_queued = self._refitter.refit_cuda_engine_async(self._stream.handle)
        self._stream.synchronize()
        return is_queued

    def close(self) -> None:
        """Wait until nothing uses the device's memory, and give it back; raises CudaError if that work failed."""
        try:
            self._stream.synchronize()
        finally:
            for name in self._given:
                self._refitter.unset_named_weights(name)  # TensorRT wants that before the memory goes
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
        self._given[name] = Given(weights, trt.TensorLocation.DEVICE)
        return True


@cache
def process_staging() -> Staging:
    """Return the page-locked memory of this process, which has one GPU and refits one engine at a time."""
    return Staging()


def _weights(dtype: "np.dtype[Any]", address: int, count: int) -> trt.Weights:
    return trt.Weights(getattr(trt, TRT_TYPES.get(dtype.name, dtype.name)), address, count)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
