"""Tells whether an engine host died for want of memory.

The kernel counts the processes that it kills when memory runs out, for each control group and for the whole machine.
If the host was killed by SIGKILL and a count rose meanwhile, memory was the cause. A host that could not allocate
ends by itself, and says so last.
"""

import signal
from pathlib import Path

from workers.channel.host import EngineHostDied, EngineHostNotStarted

VMSTAT = Path("/proc/vmstat")
CGROUPS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
LAST_WORDS = ("std::bad_alloc", "MemoryError", "Cannot allocate memory", "out of memory", "failed to allocate memory")
REMEDY = (
    "Ask for less (a smaller profile, fewer profiles, a lower workspace option), lower ENGINESMITH_RESIDENT_BYTES, or "
    "use a worker with more memory."
)


class EngineHostOutOfMemory(EngineHostDied):
    """The child died because there was no memory left."""

    code = "out_of_memory"


def kills() -> int:
    """Return how many processes the kernel has killed so far because memory ran out, here and in our control group."""
    return sum(_count(path) for path in (VMSTAT, *CGROUPS))


def as_memory_death(died: EngineHostDied, kills_before: int) -> EngineHostDied:
    """Return what to tell of a host that died, with the remedy if it died for want of memory.

    `kills_before` is what `kills` returned when the host was given its work.
    """
    killed = died.status == -signal.SIGKILL and kills() > kills_before
    if isinstance(died, EngineHostNotStarted):
        return died
    if not killed and not any(words in line for line in died.log[-5:] for words in LAST_WORDS):
        return died
    told = EngineHostOutOfMemory(f"The engine host ran out of memory. {died.detail} {REMEDY}", died.log)
    told.status = died.status
    return told


def _count(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:  # no such control group, or no right to see it
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split()[:1] == ["oom_kill"])
