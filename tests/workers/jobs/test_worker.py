import signal
from pathlib import Path
from typing import Any

import pytest

from app.errors import ServiceError
from app.fleet.backend_offer import BackendOffer
from app.settings import Settings
from workers.channel import host
from workers.channel.host import EngineHostNotStarted
from workers.channel.process import EngineHostProcess
from workers.jobs import worker as module
from workers.jobs.worker import Worker, open_worker

H100 = "8.6.1/NVIDIA H100 80GB HBM3"


@pytest.fixture
def gpu_worker(worker: Worker) -> Worker:
    made_elsewhere = BackendOffer(version="1.7.1", makes=("1.7.1/SM80",))
    tensorrt = BackendOffer(version="8.6.1", makes=(H100, "8.6.1/ampere_plus"), loads=(H100,))
    worker.offered = {"tensorrt": tensorrt, "tensorrt_rtx": made_elsewhere}
    return worker


def test_a_worker_has_a_queue_for_each_backend_and_for_each_platform_it_loads_or_for_loading_none(
    gpu_worker: Worker,
) -> None:
    assert gpu_worker.queues == (
        "enginesmith.tensorrt",
        "enginesmith.tensorrt.8.6.1-nvidia-h100-80gb-hbm3",
        "enginesmith.tensorrt_rtx",
        "enginesmith.tensorrt_rtx.build-only",
    )


def test_a_worker_serves_engines_of_every_platform_it_makes_or_loads(gpu_worker: Worker) -> None:
    tensorrt, rtx = gpu_worker.served("tensorrt"), gpu_worker.served("tensorrt_rtx")
    assert (set(tensorrt.versions), set(tensorrt.platforms)) == ({"8.6.1"}, {H100, "8.6.1/ampere_plus"})
    assert (set(rtx.versions), set(rtx.platforms)) == ({"1.7.1"}, {"1.7.1/SM80"})


def test_a_worker_serves_no_engine_of_a_backend_it_does_not_offer(gpu_worker: Worker) -> None:
    with pytest.raises(ServiceError) as caught:
        gpu_worker.served("onnxruntime")
    assert caught.value.code == "backend_not_offered"


class Ended(EngineHostProcess):
    """An engine host that is at its end as soon as it starts, as often as the test says."""

    left = 0
    number = signal.SIGKILL

    def __init__(self, *args: Any) -> None:  # noqa: ANN401 - as the host calls it
        super().__init__(*args)
        if Ended.left:
            Ended.left -= 1
            self._process.send_signal(self.number)


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_engine_host_that_is_killed_while_it_starts_ends_no_worker(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(host, "EngineHostProcess", Ended)
    Ended.left = 3
    with open_worker(settings, "cpu") as worker:
        assert worker.report().device["kind"] == "cpu"
        assert worker.device_fingerprint == worker.report().device["fingerprint"]
    assert Ended.left == 0


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_engine_host_that_ends_by_itself_is_a_broken_installation(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho cannot import >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(broken))
    with pytest.raises(EngineHostNotStarted, match="ended with status 3") as caught, open_worker(settings, "cpu"):
        pass
    assert caught.value.log == ["cannot import"]
