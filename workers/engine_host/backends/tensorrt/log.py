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
VERBOSE = {int(SEVERITIES.VERBOSE): "verbose"}
KEPT_ERRORS = 20
OUT_OF_MEMORY = ("out of memory", "outofmemory", "out_of_memory", "memory allocation")
BROKEN = ("illegal memory access", "launch failure", "misaligned address", "device-side assert", "invalid program")


class Log(trt.ILogger):
    """TensorRT's logger. It passes each line to the request at hand, from any thread. See `process_log`."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = RLock()  # a thread may take it twice: collecting garbage inside it makes TensorRT's objects log
        self._report: Report | None = None
        self._levels = LEVELS
        self.errors: list[str] = []

    def attach(self, report: Report, *, verbose: bool = False) -> None:
        """Pass lines on to the request that begins, and forget the errors of earlier requests.

        Verbose lines are passed on only if the request asks for them.
        """
        with self._lock:
            self._report, self.errors = report, []
            self._levels = LEVELS | VERBOSE if verbose else LEVELS

    def forget(self) -> None:
        """Forget the errors so far, because they do not explain a call that fails from now on."""
        with self._lock:
            self.errors = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take one line; verbose ones are dropped unless they are asked for.

        A line is on its way before TensorRT goes on, so the worker has it also if TensorRT crashes next. Verbose lines
        are many, so this looks at the severity's number. The name takes several microseconds, ten times
        as long.
        """
        level = self._levels.get(int(severity))
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
            report(message)  # outside our lock: it takes one of its own, and its holder may call us from another thread

    def failed(self, code: str, what: str, remedy: str = "") -> BackendError:
        """Return the error for a call that failed, with TensorRT's errors in its detail.

        The code is `code`, unless the errors are those of a full or broken device. `what` says what failed.
        """
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

    TensorRT keeps the first logger that it was given, without owning it, and uses it for every later object. So a
    second logger would hear nothing, and the first one must never go away.
    """
    return Log()
