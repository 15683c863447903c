"""What one child may use."""

import resource
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What a child may have: bytes of address space and of a file, seconds, open files.

    The kernel holds the child to all of these but `wall_s`, to which its parent holds it.
    """

    address_space: int
    file_size: int
    cpu_s: int
    wall_s: float
    open_files: int = 64

    def apply(self) -> None:
        """Limit this process, for good."""
        for what, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_AS, self.address_space),
            (resource.RLIMIT_FSIZE, self.file_size),
            (resource.RLIMIT_CPU, self.cpu_s),
            (resource.RLIMIT_NOFILE, self.open_files),
        ):
            resource.setrlimit(what, (most, most))
