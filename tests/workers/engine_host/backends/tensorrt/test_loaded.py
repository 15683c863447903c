"""What is asked of an engine on the device, by the names that each release has for it. The engine is a stand-in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workers.engine_host.backends.tensorrt.releases import RELEASES
from tests.workers.engine_host.backends.tensorrt.stand_ins import PLAN, Bench, SerializationConfig
from tests.workers.networks import perceptron
from workers.channel.messages import BackendError, Built
from workers.engine_host.backends.tensorrt.engine import TensorrtEngine


@pytest.fixture
def build_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Built, TensorrtEngine]]:
    network = perceptron(tmp_path / "net.onnx")
    return lambda release: Bench(RELEASES[release](), tmp_path, monkeypatch).build(network)


@pytest.mark.parametrize(
    ("release", "how"),
    [
        ("8.6", "without a configuration"),
        ("9.3", "with []"),
        ("10.13", "with []"),
        ("10.14", "with ['INCLUDE_REFIT']"),
        ("11.2", "with ['INCLUDE_REFIT']"),
    ],
)
def test_an_engine_is_serialized_with_its_weights_and_stays_refittable(
    build_with: Callable[[str], tuple[Built, TensorrtEngine]], release: str, how: str
) -> None:
    _, engine = build_with(release)
    plan: Any = engine.serialize()  # which says how it was made
    assert plan == how


@pytest.mark.parametrize(("release", "nbytes"), [("8.6", 100), ("9.3", 100), ("10.13", 200), ("11.2", 200)])
def test_memory_of_a_run_is_the_one_the_release_tells(
    build_with: Callable[[str], tuple[Built, TensorrtEngine]], release: str, nbytes: int
) -> None:
    built, engine = build_with(release)
    assert built.facts["run_bytes"] == nbytes
    assert engine.nbytes == len(PLAN) + nbytes


@pytest.mark.parametrize("refused", ["clear_flag", "set_flag"])
def test_a_plan_without_what_a_refit_needs_is_not_written(
    build_with: Callable[[str], tuple[Built, TensorrtEngine]], monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    _, engine = build_with("10.14")
    monkeypatch.setattr(SerializationConfig, refused, lambda _config, _flag: False)
    with pytest.raises(BackendError) as error:
        engine.serialize()
    assert error.value.code == "serialize_failed"
