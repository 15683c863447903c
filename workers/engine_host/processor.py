"""What decides how fast this machine's processor is, as far as the system tells."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from app.processes.memory import meminfo

GIB = 1 << 30
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
FASTEST = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")  # in kHz
# The instruction sets for which runtimes have kernels of their own, on x86 and on ARM.
KERNELS = re.compile(r"sse4_[12]|avx\w*|f16c|fma|amx\w*|asimd\w*|sve\w*|i8mm|bf16|sme|sme2|sme_\w+")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def processor_facts() -> dict[str, Any]:
    """Return the facts of this machine's processor; sizes in bytes, the clock in MHz, memory rounded to GiB.

    What the system does not tell is left out, as a virtual machine's clock.
    """
    facts = {
        "name": processor_name(),
        "architecture": os.uname().machine,
        "instruction_sets": _instruction_sets(),
        "cores": len(os.sched_getaffinity(0)),
        **_caches(),
        "memory_bytes": round(meminfo()["MemTotal"] / GIB) * GIB,
        "clock_mhz": _clock_mhz(),
    }
    return {name: value for name, value in facts.items() if value is not None}


@cache
def processor_name() -> str:
    """Return the processor's name, or else its architecture."""
    return _told().get("model name", os.uname().machine)


def _instruction_sets() -> list[str]:
    told = _told()
    flags = told.get("flags", told.get("Features", "")).split()
    return sorted(flag for flag in flags if KERNELS.fullmatch(flag))


@cache
def _told() -> dict[str, str]:
    """Return what /proc/cpuinfo says of the first processor."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _caches() -> dict[str, int]:
    """Return the bytes of the second and third level caches that the first processor uses."""
    found: dict[str, int] = {}
    for folder in sorted(CACHES.glob("index*")):
        level, size = _text(folder / "level"), _text(folder / "size")
        if level in {"2", "3"} and size and size[:-1].isdecimal() and size[-1] in UNITS:
            found[f"l{level}_bytes"] = int(size[:-1]) * UNITS[size[-1]]
    return found


def _clock_mhz() -> int | None:
    khz = _text(FASTEST)
    return int(khz) // 1000 if khz and khz.isdecimal() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:  # this system does not tell it
        return None
