"""What a worker says of its device."""

import os
from functools import cache
from pathlib import Path
from typing import Any

from workers.backends.base import BackendError


def describe_device(device: str) -> dict[str, Any]:
    """Return {"kind", "name", "memory_total", "memory_free"}, memory in bytes; BackendError "unknown_device"."""
    if device != "cpu":
        raise BackendError("unknown_device", f"No backend of this installation runs on {device!r}; use cpu.")
    memory = _memory()
    return {
        "kind": "cpu",
        "name": f"{_processor()} ({len(os.sched_getaffinity(0))} cores)",
        "memory_total": memory.get("MemTotal", 0),
        "memory_free": memory.get("MemAvailable", 0),
    }


def _memory() -> dict[str, int]:
    """Read /proc/meminfo, whose "kB" are 1024 bytes (man 5 proc_meminfo)."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in lines}


@cache
def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return os.uname().machine
