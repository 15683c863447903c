"""What TensorRT says while it works, passed on as messages."""

from functools import cache
from threading import RLock

from workers.channel.messages import DEVICE_FAILED, DEVICE_OUT_OF_MEMORY, BackendError, LogLine, Progress, Report
from workers.engine_host.backends.tensorrt.library import trt

SEVERITIES = trt.ILogger.Severity
LEVELS = {
    int(SEVERITIES.INTERNAL_ERROR): "error",
    int(SEVERITIES.ERROR): "error",
    int(SEVERITIES.WARNING): "warning",
    int(SEVERITIES.INFO): "info",
}
KEPT_ERRORS = 20
OUT_OF_MEMORY = ("out of memory", "outofmemory", "out_of_memory", "memory allocation")
BROKEN = ("illegal memory access", "launch failure", "misaligned address", "device-side assert", "invalid program")


class Log(trt.ILogger):
    """TensorRT's logger: it hands each line to the request at hand, from any thread. See `process_log`."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = RLock()  # passing a line on may collect garbage, and TensorRT's objects say lines as they go
        self._report: Report | None = None
        self.errors: list[str] = []

    def attach(self, report: Report) -> None:
        """Pass lines on to the request that begins; errors of earlier ones are forgotten."""
        with self._lock:
            self._report, self.errors = report, []

    def forget(self) -> None:
        """Forget the errors so far: what fails from now on is not their doing."""
        with self._lock:
            self.errors = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take one line; verbose ones are dropped.

        They are many, and a severity's name takes several microseconds, ten times what its number does.
        """
        level = LEVELS.get(int(severity))
        if level is None:
            return
        if level == "error":
            self.errors = [*self.errors, msg][:KEPT_ERRORS]
        self.tell(LogLine(level, msg))

    def tell(self, message: LogLine | Progress) -> None:
        """Send a message; several threads of TensorRT may do so at once."""
        with self._lock:
            report = self._report
        if report is not None:
            report(message)  # which has a lock of its own, that another thread may hold as it comes here

    def failed(self, code: str, what: str, remedy: str = "") -> BackendError:
        """Return the error of a call that failed, with what was said: `code`, or that of a full or broken device."""
        if any(word in self.reason.lower() for word in OUT_OF_MEMORY):
            return BackendError(
                DEVICE_OUT_OF_MEMORY,
                f"{what}: the GPU's memory does not suffice ({self.reason}). Lower ENGINESMITH_RESIDENT_BYTES, so that "
                "fewer engines stay loaded, or the max shapes of the engine's profiles.",
            )
        if any(word in self.reason.lower() for word in BROKEN):
            restart = "The engine host starts anew with the next job."
            return BackendError(DEVICE_FAILED, f"{what}: {self.reason}. {restart}")
        return BackendError(code, f"{what}: {self.reason}. {remedy}".rstrip())

    @property
    def blames_device(self) -> bool:
        """Whether this request's errors are those of a full or broken device."""
        return any(word in self.reason.lower() for word in (*OUT_OF_MEMORY, *BROKEN))

    @property
    def reason(self) -> str:
        """The errors of this request, in words."""
        return "; ".join(self.errors) or "TensorRT gave no reason"


@cache
def process_log() -> Log:
    """Return the one logger of this process.

    TensorRT keeps the first logger it was given, without owning it, and uses it for every later object: a second
    one would hear nothing, and the first must never go away.
    """
    return Log()
