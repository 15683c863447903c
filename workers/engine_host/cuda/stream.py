"""Queues of work on the device, and marks in them."""

from typing import Any, Self
from weakref import finalize

from workers.engine_host.cuda.runtime import check, cudart


class Stream:
    """A queue of work on the device, which does not wait for the default stream."""

    def __init__(self) -> None:
        """Make a stream; raises CudaError."""
        self._stream = check(cudart().cudaStreamCreateWithFlags(cudart().cudaStreamNonBlocking))
        self._give_back = finalize(self, _destroy, "cudaStreamDestroy", self._stream)
        self._give_back.atexit = False

    @property
    def handle(self) -> int:
        """The stream's address, as TensorRT takes it."""
        return int(self._stream)

    def synchronize(self) -> None:
        """Wait until all queued work is done; raises CudaError if some of it failed."""
        check(cudart().cudaStreamSynchronize(self._stream))

    def close(self) -> None:
        """Give the stream back once its work is done."""
        self._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CudaEvent:
    """A mark in a stream, which tells when the device came to it."""

    def __init__(self) -> None:
        """Make an event; raises CudaError."""
        self._event = check(cudart().cudaEventCreate())
        self._give_back = finalize(self, _destroy, "cudaEventDestroy", self._event)
        self._give_back.atexit = False

    def record(self, stream: Stream) -> None:
        """Put the mark behind the work that is queued so far; raises CudaError."""
        check(cudart().cudaEventRecord(self._event, stream.handle))

    def wait(self) -> None:
        """Wait until the device has come to the mark; return at once if `record` was never called. Raises CudaError."""
        check(cudart().cudaEventSynchronize(self._event))

    def seconds_since(self, earlier: "CudaEvent") -> float:
        """Wait for this mark and return the seconds that the device took from `earlier`, to half a microsecond."""
        self.wait()
        return float(check(cudart().cudaEventElapsedTime(earlier._event, self._event))) / 1000  # noqa: SLF001 - another event's own field

    def close(self) -> None:
        """Give the event back."""
        self._give_back()


def _destroy(function: str, handle: Any) -> None:  # noqa: ANN401 - a stream or an event
    getattr(cudart(), function)(handle)  # fails only if an earlier call has failed and said so
