"""Everything here needs an NVIDIA GPU, and nearly all of it TensorRT."""

from functools import cache
from pathlib import Path

import pytest

from app.backends import installed_version
from tests.gpu.card import Card
from workers.channel.messages import BackendError
from workers.engine_host.device import describe_device

WITHOUT_TENSORRT = "test_cuda.py"
NO_TENSORRT = "TensorRT is not installed (TensorRT-RTX does not stand in for it here)"


class Unimportable(pytest.Module):
    """A module that imports the adapter where there is nothing that it could import."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        pytest.skip("neither tensorrt nor tensorrt_rtx is installed", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Skip the modules that could not be imported, with the reason."""
    is_importable = any(map(installed_version, ("tensorrt", "tensorrt_rtx")))
    if is_importable or module_path.name == WITHOUT_TENSORRT:
        return None
    module: pytest.Module = Unimportable.from_parent(parent, path=module_path)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them where what they need is not there."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)
            if not _has_gpu():
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))
            elif item.path.name != WITHOUT_TENSORRT and not installed_version("tensorrt"):
                item.add_marker(pytest.mark.skip(reason=NO_TENSORRT))


@cache
def _has_gpu() -> bool:
    try:
        describe_device("cuda:0")
    except BackendError:
        return False
    return True


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return Card(tmp_path)
