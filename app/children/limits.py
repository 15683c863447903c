"""What one child may use."""

import resource
import signal
from dataclasses import dataclass
from typing import Final

PATIENCE: Final = 5  # seconds of wall clock for each of processor time: the machine has other work as well
CPU_GRACE_S: Final = 5  # between the signal of the limit, which tells that it was this limit, and SIGKILL


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What a child may have: bytes of address space and of a file, seconds, open files.

    The kernel holds the child to all of these but `wall_s`, to which its parent holds it. `cpu_s` says what a file may
    cost. `wall_s` is for a machine that is too busy and for storage that hangs, so it is several times as long.
    """

    address_space: int
    file_size: int
    cpu_s: int
    wall_s: float
    open_files: int = 64

    def apply(self) -> None:
        """Limit this process, for good."""
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)  # whoever started the service may have it ignored
        resource.setrlimit(resource.RLIMIT_CPU, (self.cpu_s, self.cpu_s + CPU_GRACE_S))
        for what, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_AS, self.address_space),
            (resource.RLIMIT_FSIZE, self.file_size),
            (resource.RLIMIT_NOFILE, self.open_files),
        ):
            resource.setrlimit(what, (most, most))
