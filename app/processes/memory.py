"""How much memory this machine leaves to a process, and how much a process takes."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
OLD_LIMIT = GROUPS / "memory" / "memory.limit_in_bytes"  # of version 1
OWN_SCORE = Path("/proc/self/oom_score_adj")
FIRST = 500  # as if it took half of the machine's memory more than it does
COUNTED = {"RssAnon:", "RssShmem:", "VmSwap:"}


def machine_bytes() -> int:
    """Return the memory of this machine, or of the control group that this process is in, in bytes."""
    return min([meminfo()["MemTotal"], *_limits()])


def meminfo() -> dict[str, int]:
    """Read /proc/meminfo, whose "kB" are 1024 bytes (man 5 proc_meminfo)."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in lines}


def own_bytes(pid: int) -> int:
    """Return the memory that a process takes for itself, in bytes: what it has written to, or moved to the swap.

    Page-locked memory counts. Files that it maps do not, nor address space that it only reserves, nor memory that CUDA
    manages or that lies on a GPU. Raises OSError if there is no such process.
    """
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words and words[0] in COUNTED)


def go_first_if_memory_runs_out() -> None:
    """Have the kernel, if memory runs out, end this process rather than those beside it.

    Whoever started it goes on and can tell. What this process starts inherits it.
    """
    with suppress(OSError, ValueError):  # a system without it ends whichever it would have ended
        OWN_SCORE.write_text(str(max(FIRST, int(OWN_SCORE.read_text()))))


def _limits() -> Iterator[int]:
    """Yield the limit of each control group around this process, in bytes."""
    for path in (*_limit_files(), OLD_LIMIT):
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            yield int(path.read_text())


def _limit_files() -> Iterator[Path]:
    with suppress(OSError):
        names = [line[3:] for line in OWN_GROUP.read_text().splitlines() if line.startswith("0::/")]
        for name in names:
            group = GROUPS / name.lstrip("/")
            yield from (one / "memory.max" for one in (group, *group.parents) if one.is_relative_to(GROUPS))
