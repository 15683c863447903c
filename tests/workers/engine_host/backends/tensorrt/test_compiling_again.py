"""A build that fails where the timing cache may be why; the builder is a stand-in."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.workers.engine_host.backends.tensorrt.releases import release_8, release_10
from tests.workers.engine_host.backends.tensorrt.stand_ins import PLAN, Bench, Builder
from tests.workers.networks import Network, perceptron
from workers.channel.messages import BackendError
from workers.engine_host.backends.tensorrt.library import trt

Attempt = Callable[[], bytes | None]


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "net.onnx")


def attempts(monkeypatch: pytest.MonkeyPatch, *outcomes: Attempt) -> Iterator[Attempt]:
    """Have the builder do one after the other."""
    left = iter(outcomes)
    monkeypatch.setattr(Builder, "build_serialized_network", lambda _builder, _network, _config: next(left)())
    return left


def succeeds() -> bytes | None:
    return PLAN


def fails() -> bytes | None:
    return None


@pytest.mark.parametrize("release", [release_8(), release_10()], ids=lambda release: release.__version__)
def test_a_build_that_fails_with_what_earlier_ones_timed_is_made_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network, release: object
) -> None:
    bench = Bench(release, tmp_path, monkeypatch)  # type: ignore[arg-type]  # a module's names
    attempts(monkeypatch, succeeds, fails, succeeds, succeeds)
    bench.build(network)
    bad = bench.config.get_timing_cache()

    bench.build(network)

    fresh = bench.config.get_timing_cache()
    assert fresh is not bad
    bench.build(network)
    assert bench.config.get_timing_cache() is fresh  # and the next one goes on with that


def test_a_build_that_knew_nothing_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    bench = Bench(release_10(), tmp_path, monkeypatch)
    left = attempts(monkeypatch, fails, succeeds)
    with pytest.raises(BackendError) as error:
        bench.build(network)
    assert error.value.code == "build_failed"
    assert list(left) == [succeeds]


def test_a_build_for_which_the_device_has_no_room_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    bench = Bench(release_10(), tmp_path, monkeypatch)

    def is_full() -> bytes | None:
        bench.backend._log.log(trt.ILogger.Severity.ERROR, "Cuda Runtime (out of memory)")
        return None

    left = attempts(monkeypatch, succeeds, is_full, succeeds)
    bench.build(network)
    with pytest.raises(BackendError) as error:
        bench.build(network)
    assert error.value.code == "device_out_of_memory"
    assert list(left) == [succeeds]
