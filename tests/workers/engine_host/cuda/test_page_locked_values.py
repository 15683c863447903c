"""Values in page-locked memory; the memory is a stand-in's."""

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.workers.engine_host.cuda.conftest import OUT_OF_MEMORY
from workers.engine_host.cuda.page_locked_values import LEAST_LOCKED, PageLockedValues

if TYPE_CHECKING:
    from tests.workers.engine_host.cuda.conftest import FakeCudart

SIZE = LEAST_LOCKED


@pytest.fixture
def values(cuda: "FakeCudart") -> Iterator[PageLockedValues]:
    """Room for three values of `SIZE` bytes."""
    values = PageLockedValues(3 * SIZE)
    yield values
    values.close()
    gc.collect()
    assert not cuda.page_locked


def put(values: PageLockedValues, key: str, nbytes: int = SIZE) -> bool:
    """Put a value that says its key, as a refit does; return whether there was memory for it."""
    memory = values.get(key, nbytes)
    if memory is None and (memory := values.reserve(key, nbytes)) is not None:
        memory[:] = ord(key)
    values.release(key, nbytes)
    values.grow()
    values.wait()
    return memory is not None


def kept(values: PageLockedValues, *keys: str) -> str:
    """Return which of the keys are held, each after a look at its bytes."""
    found = ""
    for key in keys:
        if (memory := values.get(key, SIZE)) is not None:
            assert np.all(memory == ord(key))
            values.release(key, SIZE)
            found += key
    return found


def test_memory_is_locked_beside_the_job_that_found_none(cuda: "FakeCudart", values: PageLockedValues) -> None:
    assert values.reserve("a", SIZE) is None
    assert "cudaHostAlloc" not in cuda.calls
    values.grow()
    values.wait()
    assert [len(block) for block in cuda.page_locked.values()] == [SIZE, SIZE]  # one for the next version
    assert put(values, "a")
    assert kept(values, "a") == "a"


def test_the_value_used_longest_ago_makes_room(values: PageLockedValues) -> None:
    assert [put(values, key) for key in "aabcd"] == [False, True, True, True, True]
    assert values.nbytes == 3 * SIZE
    assert kept(values, *"bcd") == "bcd"
    kept(values, "b")
    assert put(values, "e")
    assert kept(values, *"bcde") == "bde"


def test_a_value_in_use_makes_no_room(values: PageLockedValues) -> None:
    values.limit = SIZE
    put(values, "a")
    put(values, "a")
    assert values.get("a", SIZE) is not None
    assert values.reserve("b", SIZE) is None
    values.release("a", SIZE)
    assert values.reserve("b", SIZE) is not None


def test_values_of_other_sizes_make_room_for_a_size_that_found_none(
    cuda: "FakeCudart", values: PageLockedValues
) -> None:
    for key in "aabc":
        put(values, key)
    put(values, "x", 2 * SIZE)
    gc.collect()
    assert put(values, "x", 2 * SIZE)
    assert values.nbytes == sum(len(block) for block in cuda.page_locked.values()) == 3 * SIZE


def test_what_is_larger_than_the_limit_finds_no_memory(cuda: "FakeCudart", values: PageLockedValues) -> None:
    assert not any(put(values, "x", 4 * SIZE) for _ in range(2))
    assert not cuda.page_locked


def test_without_a_limit_nothing_is_ever_locked(cuda: "FakeCudart") -> None:
    values = PageLockedValues()
    assert not any(put(values, "a") for _ in range(2))
    assert cuda.calls == []


def test_small_values_are_kept_in_ordinary_memory(cuda: "FakeCudart", values: PageLockedValues) -> None:
    assert [put(values, "a", SIZE - 1) for _ in range(2)] == [False, True]
    assert not cuda.page_locked


def test_where_the_system_has_no_more_that_is_the_limit(cuda: "FakeCudart", values: PageLockedValues) -> None:
    put(values, "a")
    cuda.fails["cudaHostAlloc"] = OUT_OF_MEMORY[0]
    assert [put(values, key) for key in "abc"] == [True, True, True]
    assert values.limit == 2 * SIZE
    assert kept(values, *"abc") == "bc"


def test_forgotten_values_leave_their_memory_to_others(cuda: "FakeCudart", values: PageLockedValues) -> None:
    put(values, "a")
    put(values, "a")
    values.forget_all()
    assert kept(values, "a") == ""
    assert values.reserve("b", SIZE) is not None
    assert cuda.calls.count("cudaHostAlloc") == 2


def test_memory_that_nobody_uses_is_given_back(cuda: "FakeCudart", values: PageLockedValues) -> None:
    values.idle_s = 0.01
    put(values, "a")
    assert values._timer is not None
    values._timer.join()
    gc.collect()
    assert not cuda.page_locked
    assert values.nbytes == 0


def test_memory_in_use_is_not_given_back(values: PageLockedValues) -> None:
    put(values, "a")
    values.reserve("a", SIZE)
    values.idle_s = 0.01
    values.grow()
    assert values._timer is not None
    values._timer.join()
    assert values.get("a", SIZE) is not None
