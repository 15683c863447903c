"""What stands here needs TensorRT or TensorRT-RTX, the latter of which compiles without a GPU."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.workers.engine_host.backends.tensorrt.cpu_compilation import Workshop

INSTALLED = any(find_spec(name) is not None for name in ("tensorrt_rtx", "tensorrt"))


def pytest_pycollect_makemodule() -> None:
    """Skip the folder where there is no TensorRT: the adapter cannot be imported there."""
    if not INSTALLED:
        pytest.skip("neither tensorrt nor tensorrt_rtx is installed", allow_module_level=True)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Workshop":
    """A backend on a machine without a GPU."""
    from tests.workers.engine_host.backends.tensorrt.cpu_compilation import Workshop, watch_builders  # noqa: PLC0415 - needs TensorRT

    workshop = Workshop(tmp_path)
    watch_builders(monkeypatch, workshop.seen)
    return workshop
