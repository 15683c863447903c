"""How much a child may use that reads checkpoints."""

from typing import Final

from app.children.limits import ChildLimits

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
SLOWEST: Final = 2 * MIB  # bytes a second that a store gives


def index_limits(file_bytes: int) -> ChildLimits:
    """Return the limits for one checkpoint file. Only its header is held in memory, and that has limits of its own."""
    return ChildLimits(
        address_space=3 * GIB,
        file_size=256 * MIB,
        cpu_s=60 + file_bytes // (32 * MIB),
        wall_s=120.0 + file_bytes / SLOWEST,
    )


def combine_limits() -> ChildLimits:
    """Return the limits for putting indexes together, each of at most 100,000 tensors."""
    return ChildLimits(address_space=3 * GIB, file_size=256 * MIB, cpu_s=300, wall_s=600.0)
