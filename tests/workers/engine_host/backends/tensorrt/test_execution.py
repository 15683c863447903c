"""How an engine is run; the engine and CUDA are stand-ins whose device memory lies on the host."""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tests.workers.engine_host.cuda.conftest import ILLEGAL_ADDRESS, OUT_OF_MEMORY, FakeCudart
from workers.channel.messages import BackendError
from workers.engine_host.backends.tensorrt.execution import Execution, _as_engine_takes
from workers.engine_host.backends.tensorrt.library import trt
from workers.engine_host.backends.tensorrt.log import Log
from workers.engine_host.tensors import Array

INPUT, OUTPUT = trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT
DEVICE, HOST = trt.TensorLocation.DEVICE, trt.TensorLocation.HOST
TENSORS = {  # name: mode, dtype, location
    "x": (INPUT, trt.float32, DEVICE),
    "y": (OUTPUT, trt.float32, DEVICE),
    "size": (OUTPUT, trt.int32, HOST),
    "found": (OUTPUT, trt.int32, DEVICE),
}
PROFILES = (((1,), (4,), (4,)), ((5,), (8,), (16,)))
OUTPUTS = {"y": np.float32, "size": np.int64, "found": np.int64}


class Engine:
    """y = 2 x, size = the length of x on the host, and found = where x is positive, of a length that depends on it."""

    num_io_tensors = len(TENSORS)
    num_optimization_profiles = len(PROFILES)

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.fault: Callable[[Context], bool] = lambda _context: True

    def get_tensor_name(self, index: int) -> str:
        return list(TENSORS)[index]

    def get_tensor_mode(self, name: str) -> Any:  # noqa: ANN401 - trt.TensorIOMode
        return TENSORS[name][0]

    def get_tensor_dtype(self, name: str) -> Any:  # noqa: ANN401 - trt.DataType
        return TENSORS[name][1]

    def get_tensor_location(self, name: str) -> Any:  # noqa: ANN401 - trt.TensorLocation
        return TENSORS[name][2]

    def get_tensor_profile_shape(self, _name: str, profile: int) -> Sequence[tuple[int, ...]]:
        return PROFILES[profile]

    def create_execution_context(self) -> "Context":
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    """Computes at once what it is asked to."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile = 0
        self.profiler: Any = None
        self.runs: list[tuple[int, bool]] = []
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.allocator: Any = None

    def set_optimization_profile_async(self, index: int, _stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = PROFILES[self.profile]
        self.shape = shape
        return low <= shape <= high

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"x": self.shape, "y": self.shape, "size": (1,), "found": (-1,)}[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:  # noqa: ANN401 - trt.IOutputAllocator
        assert name == "found"
        self.allocator = allocator
        return True

    def execute_async_v3(self, _stream: int) -> bool:
        if not self.engine.fault(self):
            return False
        self.runs.append((self.profile, self.profiler is not None))
        x = at(self.addresses["x"], np.float32, self.shape[0])
        at(self.addresses["y"], np.float32, self.shape[0])[:] = 2 * x
        at(self.addresses["size"], np.int32, 1)[:] = self.shape[0]
        found = np.flatnonzero(x > 0).astype(np.int32)
        memory = self.allocator.reallocate_output("found", 0, found.nbytes, 256)
        if not memory:
            return False
        at(memory, np.int32, found.size)[:] = found
        self.allocator.notify_shape("found", (found.size,))
        if self.profiler is not None:
            self.profiler.report_layer_time(f"double [profile {self.profile}]", 2.0)
        return True


def at(address: int, dtype: type, size: int) -> Array:
    return np.asarray((ctypes.c_uint8 * (size * np.dtype(dtype).itemsize)).from_address(address)).view(dtype)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCudart:
    fake = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def execution(cuda: FakeCudart, engine: Engine, log: Log) -> Iterator[Execution]:
    stand_in: Any = engine
    execution = Execution(stand_in, {name: np.dtype(one) for name, one in OUTPUTS.items()}, log)
    yield execution
    cuda.fails.clear()
    engine.contexts.clear()
    vars(execution).clear()
    gc.collect()  # so that all memory is given back while the stand-in is there


def numbers(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, np.float32)}


def test_outputs_come_in_the_dtypes_of_the_definition(execution: Execution) -> None:
    outputs = execution.run(numbers(1, -1, 3))
    np.testing.assert_array_equal(outputs["y"], np.array([2, -2, 6], np.float32))
    np.testing.assert_array_equal(outputs["found"], [0, 2])
    assert {name: array.dtype for name, array in outputs.items()} == OUTPUTS


def test_the_buffers_grow_with_runs_and_are_counted_on_the_device_alone(execution: Execution, cuda: FakeCudart) -> None:
    sizes = []
    for values in ([1, -1], [1, 1, 1, 1], [-1]):  # x and y have a value each, found has as many as are positive
        execution.run(numbers(*values))
        sizes.append(execution.nbytes)
    assert sizes == [4 * (2 + 2 + 1), 4 * (4 + 4 + 4), 4 * (4 + 4 + 4)]
    assert sizes[-1] == sum(len(block) for block in cuda.memory.values())


def test_outputs_land_in_page_locked_memory_that_is_kept(execution: Execution, cuda: FakeCudart) -> None:
    landed = []
    for values in ([1, -1, 3, 4], [5, 6], range(9)):
        y = execution.run(numbers(*values))["y"]
        np.testing.assert_array_equal(y, 2 * np.array(values))
        landed.append(y.ctypes.data)
        assert landed[-1] in cuda.page_locked
    assert landed[0] == landed[1]
    assert landed[2] != landed[1]  # there was not room for it
    assert [len(block) for block in cuda.page_locked.values() if len(block) == y.nbytes]


def test_where_no_memory_can_be_page_locked_outputs_come_all_the_same(execution: Execution, cuda: FakeCudart) -> None:
    cuda.fails["cudaHostAlloc"] = OUT_OF_MEMORY[0]
    np.testing.assert_array_equal(execution.run(numbers(1, 2))["y"], [2, 4])
    cuda.fails["cudaHostAlloc"] = ILLEGAL_ADDRESS[0]
    with pytest.raises(BackendError) as error:
        execution.run(numbers(1, 2))
    assert error.value.code == "device_failed"


def test_large_outputs_are_not_kept_on_the_host(
    execution: Execution, cuda: FakeCudart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engine_host.backends.tensorrt.execution.MAX_LANDING_BYTES", 8)
    large = execution.run(numbers(1, 2, 3))["y"]
    small = execution.run(numbers(4, 5))["y"]
    np.testing.assert_array_equal(large, [2, 4, 6])
    np.testing.assert_array_equal(small, [8, 10])
    assert {len(block) for block in cuda.page_locked.values()} == {8}


def test_outputs_outlive_their_engine(cuda: FakeCudart, engine: Engine, log: Log) -> None:
    stand_in: Any = engine
    outputs = Execution(stand_in, {name: np.dtype(one) for name, one in OUTPUTS.items()}, log).run(numbers(1, 2))
    engine.contexts.clear()
    gc.collect()
    assert not cuda.memory
    np.testing.assert_array_equal(outputs["y"], [2, 4])
    assert cuda.page_locked
    del outputs
    assert not cuda.page_locked


def test_a_tensor_that_tensorrt_keeps_on_the_host_is_given_memory_of_the_host(
    execution: Execution, engine: Engine, cuda: FakeCudart
) -> None:
    outputs = [execution.run(numbers(*range(size)))["size"] for size in (3, 2, 9)]
    assert engine.contexts[0].addresses["size"] not in cuda.memory
    assert engine.contexts[0].addresses["y"] in cuda.memory
    np.testing.assert_array_equal(outputs, [[3], [2], [9]])  # each run has its own


def test_the_profile_that_the_shapes_fit_is_chosen(execution: Execution, engine: Engine) -> None:
    for size in (3, 9, 2, 5):
        np.testing.assert_array_equal(execution.run(numbers(*range(size)))["y"], 2 * np.arange(size))
    assert [profile for profile, _ in engine.contexts[0].runs] == [0, 1, 0, 1]


def test_a_profile_that_tensorrt_refuses_is_told(
    execution: Execution, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_context: Context, _index: int, _stream: int) -> bool:
        raise RuntimeError("Error in set optimization profile async.")

    monkeypatch.setattr(Context, "set_optimization_profile_async", refuse)
    with pytest.raises(BackendError, match="cannot use profile 1") as error:
        execution.run(numbers(*range(9)))
    assert error.value.code == "run_failed"
    assert engine.contexts[0].runs == []


def test_layers_are_timed_in_the_profile_that_runs_and_later_runs_are_free_of_the_profiler(
    execution: Execution, engine: Engine
) -> None:
    execution.run(numbers(1))
    assert execution.layers(numbers(*range(9))) == (("double [profile 1]", 0.002),)
    np.testing.assert_array_equal(execution.run(numbers(*range(9)))["y"], 2 * np.arange(9))
    assert [context.runs for context in engine.contexts] == [[(0, False)], [(1, False), (1, True)], [(1, False)]]


def test_a_context_whose_profiled_run_fails_is_given_up(execution: Execution, engine: Engine) -> None:
    engine.fault = lambda context: context.profiler is None
    with pytest.raises(BackendError, match="could not run"):
        execution.layers(numbers(1))
    engine.fault = lambda _context: True
    execution.run(numbers(1))
    assert engine.contexts[-1].runs == [(0, False)]


def test_shapes_that_no_profile_takes_are_refused_with_the_remedy(execution: Execution) -> None:
    with pytest.raises(BackendError, match=r"refuses the shape \[17\] of x.*profile") as error:
        execution.run(numbers(*range(17)))
    assert error.value.code == "run_failed"


def test_a_run_is_not_blamed_for_what_an_earlier_request_said(execution: Execution, log: Log, engine: Engine) -> None:
    log.log(trt.ILogger.Severity.ERROR, "Requested size was too large: out of memory")
    engine.fault = lambda _context: False
    with pytest.raises(BackendError) as error:
        execution.run(numbers(1))
    assert error.value.code == "run_failed"
    assert "out of memory" not in error.value.detail


def test_a_device_too_full_for_an_output_of_unknown_size_is_told_as_that(
    execution: Execution, cuda: FakeCudart
) -> None:
    execution.run(numbers(0, 0))
    cuda.fails["cudaMalloc"] = OUT_OF_MEMORY[0]
    with pytest.raises(BackendError) as error:
        execution.run(numbers(1, 1))
    assert error.value.code == "device_out_of_memory"
    cuda.fails.clear()
    np.testing.assert_array_equal(execution.run(numbers(1, 1))["found"], [0, 1])


def test_measuring_counts_only_the_runs_after_the_warmup(execution: Execution, engine: Engine) -> None:
    assert len(execution.measure(numbers(1), iterations=4, warmup=2)) == 4
    assert len(engine.contexts[0].runs) == 6


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize("value", [np.array(16_000), np.arange(6).reshape(2, 3).T])
def test_an_input_keeps_its_shape_also_if_it_is_a_single_number(dtype: type, value: Array) -> None:
    taken = _as_engine_takes("x", value, np.dtype(dtype))

    assert taken.flags.c_contiguous
    assert taken.shape == value.shape
    assert taken.dtype == dtype
    np.testing.assert_array_equal(taken, value)
