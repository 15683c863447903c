"""What a compiler has timed: a kernel timed once is not timed again in a later build."""

from collections.abc import Sequence
from pathlib import Path

from workers.channel.messages import BackendError, LogLine
from workers.engine_host.backends.tensorrt.capabilities import Capabilities
from workers.engine_host.backends.tensorrt.library import trt
from workers.engine_host.backends.tensorrt.log import Log


class Timings:
    """One timing cache for as long as it lives, also where a serialized one could not be read back.

    It only ever saves time: a bad one is a warning, and costs a build what it would have spared.
    """

    def __init__(self, can: Capabilities, log: Log) -> None:
        self._can = can
        self._log = log
        self._cache: trt.ITimingCache | None = None  # made with the first build's configuration

    def use(self, config: trt.IBuilderConfig, stored: Path | None) -> bool:
        """Have a build use what is known, the stored cache included, and say whether that is anything."""
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
        """Forget what is known; a build that cannot have an empty cache either does without."""
        self._warn(why)
        self._cache = config.create_timing_cache(b"")
        if self._cache is None or not config.set_timing_cache(self._cache, ignore_mismatch=False):
            self._cache = None
            config.set_flag(trt.BuilderFlag.DISABLE_TIMING_CACHE)

    def write(self, path: Path) -> bool:
        """Write everything timed so far; False where that fails, and where it could not be read back anyway."""
        if self._cache is None or not self._can.readable_timing_cache:
            return False
        try:
            path.write_bytes(self._cache.serialize())
        except (OSError, TypeError) as error:  # no room on the disk, or in memory for what TensorRT makes of it
            path.unlink(missing_ok=True)
            self._warn(f"the timing cache is not kept for later builds: {error}")
            return False
        return True

    def merge(self, config: trt.IBuilderConfig, caches: Sequence[str], merged: Path) -> None:
        """Write what stored caches hold; BackendError "timings_unreadable" where one of them is of no use."""
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
        """Add a stored cache to one at hand, or say why that is not possible."""
        try:
            cache = config.create_timing_cache(stored.read_bytes())
            is_added = cache is not None and timings.combine(cache, ignore_mismatch=False)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            return str(error)
        return "" if is_added else self._log.reason

    def _warn(self, text: str) -> None:
        """Say what goes wrong; errors heard on the way are not the reason if the build fails."""
        self._log.tell(LogLine("warning", text))
        self._log.forget()
