"""TensorRT's timing cache: a kernel that was timed once is not timed again in a later build."""

from collections.abc import Sequence
from pathlib import Path

from workers.channel.messages import BackendError, LogLine
from workers.engine_host.backends.tensorrt.capabilities import Capabilities
from workers.engine_host.backends.tensorrt.library import trt
from workers.engine_host.backends.tensorrt.log import Log


class Timings:
    """One timing cache, kept in memory from build to build, even if a serialized one could not be read back.

    A timing cache only saves time. A bad one is a warning, and the build takes as long as without it.
    """

    def __init__(self, can: Capabilities, log: Log) -> None:
        self._can = can
        self._log = log
        self._cache: trt.ITimingCache | None = None  # made with the first build's configuration

    def use(self, config: trt.IBuilderConfig, stored: Path | None) -> bool:
        """Have a build use all timings known so far and those in `stored`; say whether there are any."""
        is_known = self._cache is not None
        if self._cache is None:
            self._cache = config.create_timing_cache(b"")
        if self._cache is not None and stored is not None and self._can.readable_timing_cache:
            is_known |= self._combine(self._cache, config, stored)
        if self._cache is not None and config.set_timing_cache(self._cache, ignore_mismatch=False):
            return is_known
        self.begin_anew(config, "the timing cache was refused and is begun anew")
        return False

    def begin_anew(self, config: trt.IBuilderConfig, why: str) -> None:
        """Forget all timings; if a build cannot have an empty cache either, it does without a cache."""
        self._warn(why)
        self._cache = config.create_timing_cache(b"")
        if self._cache is None or not config.set_timing_cache(self._cache, ignore_mismatch=False):
            self._cache = None
            config.set_flag(trt.BuilderFlag.DISABLE_TIMING_CACHE)

    def write(self, path: Path) -> bool:
        """Write all timings so far; False if that fails, or if this TensorRT could not read them back."""
        if self._cache is None or not self._can.readable_timing_cache:
            return False
        try:
            path.write_bytes(self._cache.serialize())
        except (OSError, TypeError) as error:  # no room on the disk, or none in memory for the serialized cache
            path.unlink(missing_ok=True)
            self._warn(f"the timing cache is not kept for later builds: {error}")
            return False
        return True

    def merge(self, config: trt.IBuilderConfig, caches: Sequence[str], merged: Path) -> None:
        """Write all that stored caches hold to one file.

        Raises BackendError "timings_unreadable" if one is of no use.
        """
        whole = config.create_timing_cache(b"")
        for cache in caches:
            if fault := self._fault_in(whole, config, Path(cache)):
                raise BackendError("timings_unreadable", f"a timing cache cannot be merged: {fault}")
        merged.write_bytes(whole.serialize())

    def _combine(self, timings: trt.ITimingCache, config: trt.IBuilderConfig, stored: Path) -> bool:
        fault = self._fault_in(timings, config, stored)
        if fault:
            self._warn(f"the stored timing cache is of no use and is begun anew: {fault}")
        return not fault

    def _fault_in(self, timings: trt.ITimingCache, config: trt.IBuilderConfig, stored: Path) -> str:
        """Add a stored cache to `timings` and return "", or the reason why that is not possible."""
        try:
            cache = config.create_timing_cache(stored.read_bytes())
            is_added = cache is not None and timings.combine(cache, ignore_mismatch=False)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            return str(error)
        return "" if is_added else self._log.reason

    def _warn(self, text: str) -> None:
        """Report a warning, and forget the errors that led to it: they are not the reason if the build fails."""
        self._log.tell(LogLine("warning", text))
        self._log.forget()
