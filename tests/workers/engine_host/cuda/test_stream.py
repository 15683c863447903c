from typing import TYPE_CHECKING

import pytest

from workers.engine_host.cuda import CudaError, CudaEvent, Stream

if TYPE_CHECKING:
    from tests.workers.engine_host.cuda.conftest import FakeCudart


def test_the_time_between_two_events_is_in_seconds(cuda: "FakeCudart") -> None:
    with Stream() as stream:
        start, end = CudaEvent(), CudaEvent()
        start.record(stream)
        end.record(stream)
        assert end.seconds_since(start) == pytest.approx(0.0025)
    start.close()
    end.close()
    assert not cuda.events


def test_streams_and_events_are_given_back_when_nothing_refers_to_them(cuda: "FakeCudart") -> None:
    stream, event = Stream(), CudaEvent()
    assert cuda.streams == {stream.handle}
    del stream, event
    assert not cuda.streams
    assert not cuda.events


def test_what_failed_on_the_device_is_raised_where_it_is_waited_for(cuda: "FakeCudart") -> None:
    cuda.fails["cudaStreamSynchronize"] = 700
    with Stream() as stream, pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
        stream.synchronize()
