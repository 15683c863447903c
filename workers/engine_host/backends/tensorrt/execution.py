"""Runs an engine on its device: shapes, buffers, copies, times.

Source: TensorRT's named-tensor API (`execute_async_v3`), which is the same from 8.5 to 11.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from app.weights.dtypes import numpy_dtype
from workers.channel.messages import DEVICE_OUT_OF_MEMORY, BackendError
from workers.engine_host.backends.base import Arrays
from workers.engine_host.backends.tensorrt.library import NAME, extents, trt
from workers.engine_host.backends.tensorrt.log import Log
from workers.engine_host.cuda import (
    CudaError,
    CudaEvent,
    DeviceBuffer,
    Stream,
    copy_to_device,
    copy_to_host,
    page_locked,
)
from workers.engine_host.tensors import Array

DTYPES: Mapping[str, str] = {
    "FLOAT": "F32",
    "HALF": "F16",
    "BF16": "BF16",
    "FP8": "F8_E4M3",
    "INT64": "I64",
    "INT32": "I32",
    "INT8": "I8",
    "UINT8": "U8",
    "BOOL": "BOOL",
}
MAX_LANDING_BYTES = 32 << 20  # the largest output that is kept page-locked: no other process can have that memory
FITTING = "Send inputs of a shape within one of the engine's profiles."
REBUILD = "Build the engine again; if that fails too, report it with the job's events."


class Execution:
    """An engine's execution context, with the buffers of its inputs and outputs, which grow as needed.

    Outputs are copied to page-locked memory that is kept. The pages of a fresh array would cost more than the copy.

    There is one context at a time, because before TensorRT 9 two contexts cannot share an optimization profile.
    `outputs` are the dtypes of the definition's outputs. The engine's own may differ: TensorRT 8.6 computes I64 as I32
    and F64 as F32.
    """

    def __init__(self, engine: trt.ICudaEngine, outputs: Mapping[str, "np.dtype[Any]"], log: Log) -> None:
        self._engine = engine
        self._outputs = outputs
        self._log = log
        self._stream = Stream()
        self._made: trt.IExecutionContext | None = None
        self._profile = 0
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self._input_names = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._output_names = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        self._dtypes = {name: numpy_dtype(DTYPES[engine.get_tensor_dtype(name).name]) for name in names}
        self._on_host = {name for name in names if engine.get_tensor_location(name) == trt.TensorLocation.HOST}
        self._buffers = {name: DeviceBuffer() for name in names if name not in self._on_host}
        self._landing: dict[str, Array] = {}
        self._host_outputs: dict[str, Array] = {}
        self._allocators: dict[str, _Allocator] = {}

    @property
    def nbytes(self) -> int:
        """Device memory of the inputs and outputs, in bytes: the most that any run so far has needed."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once and return the outputs in the definition's dtypes; the next run may overwrite them.

        Raises BackendError "run_failed", or "bad_inputs" if a value does not fit into the engine's dtype.
        """
        held = self._bind(inputs)
        self._enqueue()
        outputs = {name: self._fetch(name) for name in self._output_names}
        self._stream.synchronize()
        del held  # the copies to the device have read them by now
        return {name: array.astype(self._outputs[name], copy=False) for name, array in outputs.items()}

    def wait(self) -> None:
        """Wait until nothing runs any more; raises CudaError."""
        self._stream.synchronize()

    def measure(self, inputs: Arrays, *, iterations: int, warmup: int) -> Sequence[float]:
        """Return the seconds that each run takes from inputs on the device to outputs on the device."""
        held = self._bind(inputs)
        for _ in range(warmup):
            self._enqueue()
        events = [(CudaEvent(), CudaEvent()) for _ in range(iterations)]
        for begin, end in events:
            begin.record(self._stream)
            self._enqueue()
            end.record(self._stream)
            self._stream.synchronize()
        del held
        return [end.seconds_since(begin) for begin, end in events]

    def layers(self, inputs: Arrays) -> tuple[tuple[str, float], ...]:
        """Return (name, seconds) of each layer of one run; a run before it does not count.

        A context that has had a profiler stays slow, so it is dropped afterwards.
        """
        profiler = _Profiler()
        self._made = None
        try:
            held = self._bind(inputs)
            self._enqueue()
            self._stream.synchronize()
            self._context.profiler = profiler
            self._enqueue()
            self._stream.synchronize()
            del held
        finally:
            self._made = None
        return tuple(profiler.layers)

    @property
    def _context(self) -> trt.IExecutionContext:
        if self._made is None:
            self._made = self._engine.create_execution_context()
            self._profile = 0
        if self._made is None:
            raise self._log.failed("run_failed", f"{NAME} cannot make room to run the engine", REBUILD)
        return self._made

    def _bind(self, inputs: Arrays) -> list[Array]:
        """Copy the inputs to the device and give every tensor its address.

        Returns the arrays that are copied. The caller must keep them until the copies are done.
        """
        self._log.forget()  # an engine that stays loaded may have errors of earlier requests in the log
        self._choose_profile(inputs)
        context = self._context
        arrays = {name: _as_engine_takes(name, inputs[name], self._dtypes[name]) for name in self._input_names}
        for name, array in arrays.items():
            if not context.set_input_shape(name, array.shape):
                shape = list(array.shape)
                raise self._log.failed("run_failed", f"{NAME} refuses the shape {shape} of {name}", FITTING)
            if name in self._on_host:
                self._place(name, array.ctypes.data)
                continue
            buffer = self._buffers[name]
            buffer.reserve(array.nbytes)
            copy_to_device(buffer.pointer, array, self._stream)
            self._place(name, buffer.pointer)
        for name in self._output_names:
            self._place_output(name)
        return list(arrays.values())

    def _choose_profile(self, inputs: Arrays) -> None:
        index = next((index for index in range(self._engine.num_optimization_profiles) if self._fits(inputs, index)), 0)
        context = self._context
        if index == self._profile:
            return
        try:
            is_chosen = context.set_optimization_profile_async(index, self._stream.handle)
        except RuntimeError:  # the Python API raises this if TensorRT returns False
            is_chosen = False
        if not is_chosen:
            raise self._log.failed("run_failed", f"{NAME} cannot use profile {index}", REBUILD)
        self._stream.synchronize()
        self._profile = index

    def _fits(self, inputs: Arrays, profile: int) -> bool:
        for name in self._input_names:
            low, _, high = map(extents, self._engine.get_tensor_profile_shape(name, profile))
            shape = inputs[name].shape
            if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
                return False
        return True

    def _place_output(self, name: str) -> None:
        context, shape = self._context, extents(self._context.get_tensor_shape(name))
        if name in self._on_host:
            self._host_outputs[name] = np.empty(shape, self._dtypes[name])
            self._place(name, self._host_outputs[name].ctypes.data)
            return
        if -1 in shape:  # the shape is known only when the values are
            allocator = self._allocators.setdefault(name, _Allocator(self._buffers[name]))
            if not context.set_output_allocator(name, allocator):
                raise self._log.failed("run_failed", f"{NAME} takes no allocator for {name}", REBUILD)
            return
        self._buffers[name].reserve(prod(shape) * self._dtypes[name].itemsize)
        self._place(name, self._buffers[name].pointer)

    def _place(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise self._log.failed("run_failed", f"{NAME} refuses the address of {name}", REBUILD)

    def _enqueue(self) -> None:
        if self._context.execute_async_v3(self._stream.handle):
            return
        for allocator in self._allocators.values():
            allocator.check()
        raise self._log.failed("run_failed", f"{NAME} could not run the engine", REBUILD)

    def _fetch(self, name: str) -> Array:
        if name in self._on_host:
            return self._host_outputs[name]
        allocator = self._allocators.get(name)
        if allocator is not None:
            self._stream.synchronize()
        shape = extents(self._context.get_tensor_shape(name)) if allocator is None else allocator.shape
        array = self._landed(name, shape)
        copy_to_host(array, self._buffers[name].pointer, self._stream)
        return array

    def _landed(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return host memory for an output: page-locked and kept, unless there is none or the output is large."""
        dtype = self._dtypes[name]
        nbytes = prod(shape) * dtype.itemsize
        if nbytes > MAX_LANDING_BYTES:
            return np.empty(shape, dtype)
        if name not in self._landing or self._landing[name].nbytes < nbytes:
            self._landing.pop(name, None)  # gives the smaller one back first
            try:
                self._landing[name] = page_locked(nbytes)
            except CudaError as error:
                if error.code != DEVICE_OUT_OF_MEMORY:
                    raise
                return np.empty(shape, dtype)
        return self._landing[name][:nbytes].view(dtype).reshape(shape)


class _Allocator(trt.IOutputAllocator):
    """Makes room for an output when TensorRT knows its size."""

    def __init__(self, buffer: DeviceBuffer) -> None:
        super().__init__()
        self._buffer = buffer
        self._error: BackendError | None = None
        self.shape: tuple[int, ...] = ()

    def check(self) -> None:
        """Raise the BackendError of an allocation that failed, once. TensorRT lets no exception through by itself."""
        if self._error is None:
            return
        try:
            raise self._error
        finally:
            self._error = None

    def reallocate_output(self, _name: str, _memory: int, size: int, _alignment: int) -> int:
        try:
            self._buffer.reserve(size)
        except BackendError as error:
            self._error = error
        return self._buffer.pointer

    def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, _stream: int) -> int:
        return self.reallocate_output(name, memory, size, alignment)

    def notify_shape(self, _name: str, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)


class _Profiler(trt.IProfiler):
    """Collects the time of each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[tuple[str, float]] = []

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        self.layers.append((layer_name, ms / 1000))


def _as_engine_takes(name: str, array: Array, dtype: "np.dtype[Any]") -> Array:
    """Return an input in the engine's own dtype; raises BackendError "bad_inputs" if a value does not fit into it."""
    if array.dtype == dtype:
        return np.asarray(array, order="C")  # ascontiguousarray would make a scalar a vector
    if dtype.kind == "i" and array.size:
        bounds = np.iinfo(dtype)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise BackendError("bad_inputs", f"{name} holds values beyond {dtype}, as which this engine computes it.")
    return np.asarray(array, dtype, order="C")
