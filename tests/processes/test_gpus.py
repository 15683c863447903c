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
@pytest.mark.parametrize(
    ("installed", "devices"), [({"tensorrt": "8.6.1"}, ["cpu", "cuda:0", "cuda:1"]), ({}, ["cpu"])]
)
def test_each_gpu_has_a_worker_if_a_backend_is_installed_that_uses_it(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], devices: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "installed_backends", lambda kind: installed if kind == "cuda" else {"onnxruntime": "1"})
    assert gpus.all_devices() == devices
