import pytest

from app.errors import ServiceError
from app.fleet.backend_offer import BackendOffer
from workers.jobs.worker import Worker

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
