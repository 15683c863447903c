"""Turns off large pages of memory for a while; `channel.device_environment` asks the C library for them."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_THP_DISABLE = 41  # linux/prctl.h
PR_GET_THP_DISABLE = 42
_prctl = ctypes.CDLL(None).prctl


@contextmanager
def small_pages() -> Iterator[None]:
    """Give this process no new large pages within a block, whoever asks for them; memory that it has stays as it is.

    Memory that is filled whole, such as a plan's, is there sooner in large pages. Memory that is used in parts, such as
    a compiler's, takes more space in large pages.
    """
    before = _prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0)
    _prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        _prctl(PR_SET_THP_DISABLE, before, 0, 0, 0)
