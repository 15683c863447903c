import sys
from typing import TYPE_CHECKING

import pytest

from workers.channel.messages import BackendError
from workers.engine_host.device import describe_device, memory_free, resident_limit

if TYPE_CHECKING:
    from tests.workers.engine_host.cuda.conftest import FakeCudart


@pytest.mark.usefixtures("cuda")
def test_a_gpu_is_described_by_its_name_memory_capability_and_driver() -> None:
    device = describe_device("cuda:3")
    assert device == {
        "kind": "cuda",
        "name": "NVIDIA H100 80GB HBM3",
        "memory_total": 80 << 30,
        "memory_free": 60 << 30,
        "compute_capability": "9.0",
        "driver": "12.8",
        "device_attributes_remembered": False,
        "fingerprint": device["fingerprint"],
    }
    assert device["fingerprint"]["facts"]["compute_capability"] == "9.0"
    assert memory_free("cuda:3") == 60 << 30
    assert resident_limit(device) == 40 << 30


def test_without_a_driver_that_is_what_is_said(cuda: "FakeCudart") -> None:
    cuda.fails["cudaGetDeviceCount"], cuda.driver = 35, 0
    with pytest.raises(BackendError, match="cuda:0: no NVIDIA driver") as caught:
        describe_device("cuda:0")
    assert caught.value.code == "no_driver"
    assert "--gpus all" in caught.value.detail


def test_a_driver_that_is_too_old_is_named_with_both_remedies(cuda: "FakeCudart") -> None:
    cuda.fails["cudaGetDeviceCount"] = 35
    with pytest.raises(BackendError, match=r"takes CUDA up to 12\.8.*'cuda-bindings<13'"):
        describe_device("cuda:0")


@pytest.mark.parametrize("status", [0, 100])
def test_a_driver_without_a_gpu_is_another_error(cuda: "FakeCudart", status: int) -> None:
    cuda.fails["cudaGetDeviceCount"], cuda.count = status, 0
    with pytest.raises(BackendError, match="shows no such GPU") as caught:
        describe_device("cuda:0")
    assert caught.value.code == "no_gpu"


def test_where_cuda_bindings_is_missing_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError, match="pip install 'enginesmith") as caught:
        describe_device("cuda:0")
    assert caught.value.code == "cuda_not_installed"
