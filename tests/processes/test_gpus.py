import sys
from pathlib import Path

import pytest

from app.processes import gpus


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs, as its device files tell."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpus, "NODES", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 2),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1, GPU-2"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1),
    ],
)
def test_the_visible_gpus_are_those_the_machine_has_and_the_variable_shows(
    environment: dict[str, str], count: int
) -> None:
    assert gpus.visible_gpus(environment) == count


def test_a_machine_without_a_gpu_has_none_whatever_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "NODES", tmp_path)
    assert gpus.visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}) == 0


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(("tensorrt", "devices"), [(True, ["cpu", "cuda:0", "cuda:1"]), (False, ["cpu"])])
def test_each_gpu_has_a_worker_where_there_is_a_tensorrt_to_use_it(
    monkeypatch: pytest.MonkeyPatch,
    tensorrt: bool,  # noqa: FBT001 - a case
    devices: list[str],
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "has_tensorrt", lambda: tensorrt)
    assert gpus.all_devices() == devices


@pytest.mark.parametrize(("file", "found"), [("__init__.pyi", False), ("__init__.py", True)])
def test_type_stubs_are_no_tensorrt(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    found: bool,  # noqa: FBT001 - a case
) -> None:
    (tmp_path / "trt_of_this_test").mkdir()
    (tmp_path / "trt_of_this_test" / file).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(gpus, "TENSORRT", ("trt_of_this_test", "trt_that_is_not_there"))
    assert gpus.has_tensorrt() is found
