"""Reads a Hugging Face config.json and gathers everything that is wrong with it."""

from collections.abc import Collection, Mapping
from typing import Any

from app.definitions.rejection import Rejected
from app.errors import FieldError


class ConfigReader:
    """Values of a config, defaults where keys are missing, and the faults met on the way.

    A faulty key reads as its default, so that reading goes on and all faults are reported together by `finish`.
    `used` holds every key asked for, with the value in force.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._faults: list[FieldError] = []
        self.used: dict[str, Any] = {}

    def size(self, key: str, default: int, *, most: int) -> int:
        """Read a whole number from 1 to `most`."""
        value = self._config.get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            self.fault(key, f"{value!r} is no whole number from 1 to {most}")
            value = default
        self.used[key] = value
        return value

    def small_positive(self, key: str, default: float) -> float:
        """Read a number above 0 and below 1, such as an epsilon."""
        value = self._config.get(key, default)
        if not isinstance(value, float) or not 0 < value < 1:
            self.fault(key, f"{value!r} is no number between 0 and 1")
            value = default
        self.used[key] = value
        return value

    def choice(self, key: str, default: str, choices: Collection[str]) -> str:
        """Read one of several words."""
        value = self._config.get(key, default)
        if not isinstance(value, str) or value not in choices:
            self.fault(key, f"{value!r} is not supported; {', '.join(sorted(choices))} are")
            value = default
        self.used[key] = value
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Read true or false."""
        value = self._config.get(key, default)
        if not isinstance(value, bool):
            self.fault(key, f"{value!r} is neither true nor false")
            value = default
        self.used[key] = value
        return value

    def refuse(self, key: str, reason: str) -> None:
        """Refuse a key that is set to anything but null, false or nothing."""
        if self._config.get(key):
            self.fault(key, f"{self._config[key]!r} is not supported: {reason}"[:400])

    def fault(self, key: str, detail: str) -> None:
        """Note a fault."""
        self._faults.append(FieldError(f"/config/{key}", detail))

    def finish(self) -> None:
        """Raise Rejected with every fault, if there was any."""
        if self._faults:
            listed = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in self._faults)
            raise Rejected(
                "unsupported_config",
                f"The config cannot be built: {listed}. Correct it, or export the model to ONNX and upload that.",
                self._faults,
            )
