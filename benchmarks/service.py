"""A service of the benchmark's own, and the memory of its processes."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.service import running


@dataclass(frozen=True, slots=True)
class Service:
    """A running service: its URL, its data directory and the supervisor's process id."""

    url: str
    data_dir: Path
    pid: int

    def processes(self) -> dict[int, str]:
        """Return the command line of each process the service runs."""
        return descendants(self.pid)

    def find(self, *words: str) -> int:
        """Return the one process whose command line has all these words."""
        found = [pid for pid, line in self.processes().items() if all(word in line for word in words)]
        if len(found) != 1:
            raise LookupError(f"{len(found)} processes have {words}: {self.processes()}")
        return found[0]


@contextmanager
def running_service(parent: Path | None = None, environment: Mapping[str, str] | None = None) -> Iterator[Service]:
    """Start a service on a free port in a fresh directory, and stop it at the end."""
    environ = {"ENGINESMITH_LOG_LEVEL": "WARNING"} | dict(environment or {})
    with (
        tempfile.TemporaryDirectory(prefix="enginesmith-bench-", dir=parent) as folder,
        running(Path(folder) / "data", environ) as (url, pid),
    ):
        yield Service(url, Path(folder) / "data", pid)


def memory_bytes(pid: int | str, field: str) -> int:
    """Return a field of /proc/PID/status, such as VmRSS, VmHWM or RssAnon, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def forget_peak(pid: int) -> None:
    """Start VmHWM anew from the present (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines by process id of a process's children, of their children, and so on."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found |= descendants(child)
    return found
