import gc
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.workers.engine_host.cuda.conftest import NOT_SUPPORTED, OUT_OF_MEMORY
from workers.engine_host.cuda import (
    CudaError,
    DeviceBuffer,
    Stream,
    copy_to_device,
    copy_to_host,
    memory_info,
    page_locked,
)
from workers.engine_host.cuda.memory import LARGE_PAGE

if TYPE_CHECKING:
    from tests.workers.engine_host.cuda.conftest import FakeCudart


def test_a_buffer_is_given_back_when_it_is_closed_and_only_once(cuda: "FakeCudart") -> None:
    buffer = DeviceBuffer(100)
    assert (list(cuda.memory), buffer.nbytes) == ([buffer.pointer], 100)
    buffer.close()
    assert not cuda.memory
    assert (buffer.pointer, buffer.nbytes) == (0, 0)
    buffer.close()
    del buffer
    assert cuda.calls.count("cudaFree") == 1


def test_page_locked_memory_is_given_back_with_the_last_view_of_it(cuda: "FakeCudart") -> None:
    memory = page_locked(100)
    assert (memory.shape, memory.dtype.name) == ((100,), "uint8")
    view = memory[:8].view(np.float32).reshape(2, 1)
    del memory
    view[:] = 3
    assert len(cuda.page_locked) == 1
    del view
    assert not cuda.page_locked


def test_no_page_locked_memory_at_all_is_memory_too(cuda: "FakeCudart") -> None:
    assert page_locked(0).nbytes == 0
    assert not cuda.page_locked


@pytest.mark.usefixtures("cuda")
def test_what_is_copied_into_page_locked_memory_is_there_once_the_stream_has_come_so_far() -> None:
    sent, received = np.arange(4, dtype=np.uint8), page_locked(4)
    received[:] = 0
    with DeviceBuffer(4) as buffer, Stream() as stream:
        copy_to_device(buffer.pointer, sent, stream)
        copy_to_host(received, buffer.pointer, stream)
        assert not received.any()
        stream.synchronize()
        np.testing.assert_array_equal(received, sent)


def test_a_buffer_nothing_refers_to_is_given_back(cuda: "FakeCudart") -> None:
    buffer = DeviceBuffer(100)
    assert cuda.memory
    del buffer
    assert not cuda.memory


def test_a_buffer_grows_on_demand_and_never_shrinks(cuda: "FakeCudart") -> None:
    with DeviceBuffer(100) as buffer:
        first = buffer.pointer
        buffer.reserve(50)
        assert (buffer.pointer, buffer.nbytes) == (first, 100)
        buffer.reserve(1000)
        assert list(cuda.memory) == [buffer.pointer]
        assert buffer.nbytes == 1000
    assert not cuda.memory


def test_the_old_memory_is_given_back_before_more_is_asked_for(cuda: "FakeCudart") -> None:
    with DeviceBuffer(100) as buffer:
        buffer.reserve(1000)
        assert cuda.calls == ["cudaMalloc", "cudaFree", "cudaMalloc"]


def test_an_empty_tensor_has_an_address_too(cuda: "FakeCudart") -> None:
    with DeviceBuffer(0) as buffer:
        assert list(cuda.memory) == [buffer.pointer]


def test_too_little_memory_is_an_error_of_its_own_that_names_the_remedy(cuda: "FakeCudart") -> None:
    buffer = DeviceBuffer(100)
    cuda.fails["cudaMalloc"] = 2
    with pytest.raises(CudaError) as caught:
        buffer.reserve(1000)
    assert (caught.value.code, caught.value.name) == ("device_out_of_memory", "cudaErrorMemoryAllocation")
    assert "out of memory" in caught.value.detail
    assert "ENGINESMITH_RESIDENT_BYTES" in caught.value.detail
    assert "max shapes" in caught.value.detail
    assert (buffer.pointer, buffer.nbytes) == (0, 0)
    del cuda.fails["cudaMalloc"]
    buffer.reserve(1000)
    assert buffer.nbytes == 1000
    buffer.close()


def test_any_other_failure_has_cudas_own_name_and_words_and_survives_a_socket(cuda: "FakeCudart") -> None:
    cuda.fails["cudaMemGetInfo"] = 700
    with pytest.raises(CudaError) as caught:
        memory_info()
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert (error.code, error.name) == ("device_failed", "cudaErrorIllegalAddress")
    assert "an illegal memory access was encountered" in error.detail


def test_a_failure_that_was_told_is_not_left_for_others_to_find(cuda: "FakeCudart") -> None:
    cuda.fails["cudaMalloc"] = 2
    with pytest.raises(CudaError):
        DeviceBuffer(100)
    assert cuda.last_error == 0


@pytest.mark.usefixtures("cuda")
def test_arrays_travel_to_the_device_and_back() -> None:
    sent = np.arange(12, dtype=np.float16).reshape(3, 4)
    received = np.zeros_like(sent)
    with Stream() as stream, DeviceBuffer(sent.nbytes) as buffer:
        copy_to_device(buffer.pointer, sent, stream)
        copy_to_host(received, buffer.pointer, stream)
        stream.synchronize()
    assert np.array_equal(sent, received)


@pytest.mark.usefixtures("cuda")
def test_an_array_with_gaps_is_refused() -> None:
    with Stream() as stream, DeviceBuffer(64) as buffer, pytest.raises(ValueError, match="not contiguous"):
        copy_to_device(buffer.pointer, np.zeros((4, 4))[:, ::2], stream)


@pytest.mark.parametrize("nbytes", [LARGE_PAGE, LARGE_PAGE + 5])
def test_large_memory_is_ours_and_locked_for_as_long_as_a_view_of_it_is_there(cuda: "FakeCudart", nbytes: int) -> None:
    memory = page_locked(nbytes)
    assert "cudaHostAlloc" not in cuda.calls
    assert {start: len(block) for start, block in cuda.page_locked.items()} == {memory.ctypes.data: nbytes}
    view = memory[-3:]
    del memory
    gc.collect()
    view[:] = 7
    assert cuda.page_locked
    del view
    gc.collect()
    assert not cuda.page_locked
    assert cuda.calls.count("cudaHostUnregister") == 1


def test_large_memory_is_cudas_own_where_ours_cannot_be_locked(cuda: "FakeCudart") -> None:
    cuda.fails["cudaHostRegister"] = NOT_SUPPORTED[0]
    memory = page_locked(LARGE_PAGE)
    assert {start: len(block) for start, block in cuda.page_locked.items()} == {memory.ctypes.data: LARGE_PAGE}
    del memory
    gc.collect()
    assert not cuda.page_locked
    assert "cudaHostUnregister" not in cuda.calls


def test_large_memory_that_cannot_be_locked_is_an_error(cuda: "FakeCudart") -> None:
    cuda.fails |= dict.fromkeys(("cudaHostRegister", "cudaHostAlloc"), OUT_OF_MEMORY[0])
    with pytest.raises(CudaError) as caught:
        page_locked(LARGE_PAGE)
    assert caught.value.code == "device_out_of_memory"
