"""How much a child may use that reads checkpoints."""

from typing import Final

from app.children.limits import PATIENCE, ChildLimits

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
SLOWEST: Final = 2 * MIB  # bytes a second that a disk gives


def index_limits(file_bytes: int) -> ChildLimits:
    """Return the limits for one checkpoint file. Only its header is held in memory, and that has limits of its own."""
    seconds = 60 + file_bytes // (32 * MIB)
    return ChildLimits(
        address_space=3 * GIB,
        file_size=256 * MIB,
        cpu_s=seconds,
        wall_s=PATIENCE * seconds + file_bytes / SLOWEST,
    )


def combine_limits() -> ChildLimits:
    """Return the limits for putting indexes together, each of at most 100,000 tensors."""
    seconds = 300
    return ChildLimits(address_space=3 * GIB, file_size=256 * MIB, cpu_s=seconds, wall_s=PATIENCE * seconds)
