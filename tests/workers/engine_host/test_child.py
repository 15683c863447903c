from argparse import Namespace
from collections.abc import Iterator

import pytest

from workers.engine_host import child
from workers.engine_host.cuda.page_locked_values import IDLE_S, process_values

GIB = 1 << 30


@pytest.fixture(autouse=True)
def own_values() -> Iterator[None]:
    process_values.cache_clear()
    yield
    process_values.cache_clear()


def test_page_locked_memory_is_what_is_set() -> None:
    child._limit_page_locked(Namespace(page_locked_bytes=5 * GIB, page_locked_idle_s=None))
    assert (process_values().limit, process_values().idle_s) == (5 * GIB, IDLE_S)


def test_it_is_kept_for_as_long_as_is_set() -> None:
    child._limit_page_locked(Namespace(page_locked_bytes=0, page_locked_idle_s=5.0))
    assert process_values().idle_s == 5
