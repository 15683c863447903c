import pytest

from app.jobs.queue import queue_of


@pytest.mark.parametrize(
    ("platform", "queue"),
    [
        (None, "enginesmith.tensorrt"),
        ("cpu", "enginesmith.tensorrt.cpu"),
        ("8.6.1/NVIDIA H100 80GB HBM3", "enginesmith.tensorrt.8.6.1-nvidia-h100-80gb-hbm3"),
        ("8.6.1/ampere_plus", "enginesmith.tensorrt.8.6.1-ampere-plus"),
        ("1.7.1.116/SM80", "enginesmith.tensorrt.1.7.1.116-sm80"),
        ("8.6.1/NVIDIA  RTX (TM) é", "enginesmith.tensorrt.8.6.1-nvidia-rtx-tm-"),
    ],
)
def test_a_queue_is_named_for_the_backend_and_the_platform(platform: str | None, queue: str) -> None:
    assert queue_of("tensorrt", platform) == queue
