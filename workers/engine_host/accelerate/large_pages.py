"""Large pages of the C library's memory, which `device.device_environment` asks for, and where they are not wanted."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_THP_DISABLE = 41  # linux/prctl.h
PR_GET_THP_DISABLE = 42
_prctl = ctypes.CDLL(None).prctl


@contextmanager
def small_pages() -> Iterator[None]:
    """Give this process no large pages within a block, whoever asks for them; what it has stays as it is.

    Memory that is filled whole, such as a plan, comes sooner in large ones; of memory that is used in parts, as a
    compiler's, they take more.
    """
    before = _prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0)
    _prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        _prctl(PR_SET_THP_DISABLE, before, 0, 0, 0)
