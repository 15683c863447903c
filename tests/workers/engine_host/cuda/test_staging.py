import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.workers.engine_host.cuda.conftest import OUT_OF_MEMORY
from workers.engine_host.cuda import CudaError, DeviceBuffer, Staging, Stream, copy_to_host
from workers.engine_host.cuda.staging import CHUNKS, PART_BYTES

if TYPE_CHECKING:
    from tests.workers.engine_host.cuda.conftest import FakeCudart


@pytest.fixture
def stream(cuda: "FakeCudart") -> Iterator[Stream]:
    with Stream() as stream:
        yield stream
    gc.collect()
    assert not cuda.page_locked  # given back when nothing refers to it


@pytest.mark.parametrize("nbytes", [0, 1, 15, 16, 17, 32, 33, 100])
def test_an_array_arrives_whole_however_many_chunks_it_takes(stream: Stream, nbytes: int) -> None:
    sent = np.arange(nbytes, dtype=np.uint8)
    received = np.zeros_like(sent)
    with DeviceBuffer(nbytes) as buffer:
        Staging(chunk_bytes=16).copy_to_device(buffer.pointer, sent, stream)
        copy_to_host(received, buffer.pointer, stream)
    np.testing.assert_array_equal(received, sent)


def test_chunks_that_several_threads_fill_arrive_whole(stream: Stream) -> None:
    sent = np.random.default_rng(0).integers(0, 256, 5 * PART_BYTES + 3, np.uint8)
    received = np.zeros_like(sent)
    with DeviceBuffer(sent.nbytes) as buffer:
        Staging(chunk_bytes=3 * PART_BYTES - 1).copy_to_device(buffer.pointer, sent, stream)
        copy_to_host(received, buffer.pointer, stream)
    assert np.array_equal(received, sent)


def test_a_chunk_is_filled_again_only_after_the_device_has_read_it(cuda: "FakeCudart", stream: Stream) -> None:
    staging = Staging(chunk_bytes=16)
    with DeviceBuffer(64) as buffer:
        staging.copy_to_device(buffer.pointer, np.zeros(CHUNKS * 16, np.uint8), stream)
        assert (len(cuda.queue), cuda.done) == (CHUNKS, 0)  # nobody has waited for the device so far
        staging.copy_to_device(buffer.pointer, np.zeros(16, np.uint8), stream)
        assert (len(cuda.queue), cuda.done) == (CHUNKS + 1, 1)


def test_the_array_may_go_as_soon_as_the_copies_are_queued(cuda: "FakeCudart", stream: Stream) -> None:
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    received = np.zeros_like(sent)
    with DeviceBuffer(sent.nbytes) as buffer:
        staging = Staging(chunk_bytes=16)
        staging.copy_to_device(buffer.pointer, sent, stream)
        sent[:] = -1
        assert cuda.done < len(cuda.queue)
        copy_to_host(received, buffer.pointer, stream)
    np.testing.assert_array_equal(received, np.arange(6, dtype=np.float32).reshape(2, 3))


def test_chunks_are_allocated_when_they_are_needed_and_kept(cuda: "FakeCudart", stream: Stream) -> None:
    staging = Staging(chunk_bytes=16)
    assert "cudaHostAlloc" not in cuda.calls
    with DeviceBuffer(64) as buffer:
        for _ in range(3):
            staging.copy_to_device(buffer.pointer, np.zeros(64, np.uint8), stream)
    assert cuda.calls.count("cudaHostAlloc") == CHUNKS
    assert [len(block) for block in cuda.page_locked.values()] == [16] * CHUNKS


def test_an_array_with_gaps_is_refused(stream: Stream) -> None:
    with pytest.raises(ValueError, match="not contiguous"):
        Staging(chunk_bytes=16).copy_to_device(1, np.zeros((4, 4))[:, ::2], stream)


@pytest.mark.usefixtures("stream")
def test_where_there_is_no_page_locked_memory_that_is_an_error_and_may_be_tried_again(cuda: "FakeCudart") -> None:
    staging = Staging(chunk_bytes=16)
    cuda.fails["cudaHostAlloc"] = OUT_OF_MEMORY[0]
    with pytest.raises(CudaError) as caught:
        staging.reserve()
    assert caught.value.code == "device_out_of_memory"
    del cuda.fails["cudaHostAlloc"]
    staging.reserve()
    assert len(cuda.page_locked) == CHUNKS
