import mmap
from pathlib import Path

import pytest

from workers.engine_host.accelerate.large_pages import small_pages

MIB = 1 << 20


@pytest.fixture(autouse=True)
def needs_large_pages() -> None:
    try:
        found = large_bytes_of_filled_memory()
    except OSError as error:
        pytest.skip(f"this kernel tells of no large pages: {error}")
    if found < 32 * MIB:
        pytest.skip("this system gives no large pages")


def large_bytes_of_filled_memory() -> int:
    """Fill 64 MiB that ask for large pages, and return how much more of these the process has."""
    before = large_bytes()
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, len(memory), mmap.PAGESIZE):
            memory[offset] = 1
        return large_bytes() - before


def large_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))


def test_memory_filled_within_has_small_pages_and_afterwards_large_ones() -> None:
    with small_pages():
        assert large_bytes_of_filled_memory() == 0
    assert large_bytes_of_filled_memory() >= 32 * MIB


def test_one_block_within_another_leaves_that_one_as_it_was() -> None:
    with small_pages():
        with small_pages():
            pass
        assert large_bytes_of_filled_memory() == 0


def test_they_are_back_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), small_pages():
        1 / 0  # noqa: B018
    assert large_bytes_of_filled_memory() >= 32 * MIB
