"""Everything here needs an NVIDIA GPU."""

from functools import cache
from pathlib import Path

import pytest

from workers.backends.base import BackendError
from workers.device import describe_device


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them where there is no GPU."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)
            if not _has_gpu():
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@cache
def _has_gpu() -> bool:
    try:
        describe_device("cuda:0")
    except BackendError:
        return False
    return True
