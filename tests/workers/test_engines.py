"""What becomes of resident engines that are refitted in place when something goes wrong; the backend is a stand-in."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.workers.networks import Network, bound, checkpoint, perceptron
from tests.workers.weight_holding import HeldWeights, WeightHolding
from workers.backends.base import (
    BackendError,
    Build,
    Built,
    EngineFile,
    LoadedEngine,
    ParameterSource,
    Refit,
    Refitted,
    Report,
    Verified,
    Verify,
)
from workers.engine_host.engines import Engines

Sources = tuple[ParameterSource, ...]


@dataclass
class Faulty(WeightHolding):
    """Refits one engine after the other with a fault of `faults`: one that is raised, or a parameter that is left."""

    scratch: Path
    faults: list[BackendError | str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.scratch)

    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, BackendError):
            raise fault
        engine = resident or self.load(request.parent, report)
        assert isinstance(engine, HeldWeights)
        before = dict(engine.values)
        refitted, _ = super().refit(request, engine, report)
        if fault is not None:
            engine.values[fault] = before[fault]
        return replace(refitted, warm=resident is not None), engine


@pytest.fixture
def backend(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path / "scratch")


@pytest.fixture
def engines(backend: Faulty, tmp_path: Path) -> Engines:
    engines = Engines("cpu", 1 << 30, tmp_path / "scratch", lambda _message: None)
    engines._backends["tensorrt"] = backend
    return engines


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "net.onnx")


@pytest.fixture
def versions(network: Network, tmp_path: Path) -> list[Sources]:
    return [bound(network, checkpoint(tmp_path / f"{seed}.safetensors", network.weights(seed))) for seed in (1, 2)]


@pytest.fixture
def parent(engines: Engines, network: Network, versions: list[Sources], tmp_path: Path) -> EngineFile:
    request = Build("tensorrt", str(network.path), versions[0], network.inputs, str(tmp_path / "plan"))
    built = engines.do(request)
    assert isinstance(built, Built)
    return EngineFile("tensorrt", built.plan, built.plan_digest, str(network.path), versions[0], network.inputs)


def refit(engines: Engines, parent: EngineFile, sources: Sources) -> tuple[Refitted, EngineFile]:
    refitted = engines.do(Refit(parent, sources, "", materialise=False))
    assert isinstance(refitted, Refitted)
    return refitted, replace(parent, parameters=sources, plan_parameters=parent.parameters)


def verify(engines: Engines, engine: EngineFile, **options: Any) -> Verified:  # noqa: ANN401 - fields of Verify
    found = engines.do(Verify(engine, **options))
    assert isinstance(found, Verified)
    return found


def full() -> BackendError:
    return BackendError("device_out_of_memory", "The GPU's memory does not suffice.")


def test_a_refit_without_room_for_the_engine_it_took_is_tried_again_with_one_loaded_anew(
    engines: Engines, backend: Faulty, parent: EngineFile, versions: list[Sources]
) -> None:
    backend.faults = [full()]
    refitted, child = refit(engines, parent, versions[1])
    assert not refitted.warm
    assert backend.loaded == [parent.plan]
    assert verify(engines, child).ok


def test_a_refit_that_never_has_room_is_tried_twice(
    engines: Engines, backend: Faulty, parent: EngineFile, versions: list[Sources]
) -> None:
    backend.faults = [full(), full()]
    with pytest.raises(BackendError, match="device_out_of_memory"):
        refit(engines, parent, versions[1])
    assert backend.faults == []
    backend.faults = [full(), full()]
    with pytest.raises(BackendError, match="device_out_of_memory"):  # nothing was resident that could have made way
        refit(engines, parent, versions[1])
    assert len(backend.faults) == 1


def test_a_refit_that_fails_for_another_reason_is_not_tried_again(
    engines: Engines, backend: Faulty, parent: EngineFile, versions: list[Sources]
) -> None:
    backend.faults = [BackendError("refit_failed", "as if"), full()]
    with pytest.raises(BackendError, match="refit_failed"):
        refit(engines, parent, versions[1])
    assert len(backend.faults) == 1
    assert engines.residency.engines == 0


def test_an_engine_that_fails_its_verification_serves_nobody_afterwards(
    engines: Engines, backend: Faulty, parent: EngineFile, versions: list[Sources]
) -> None:
    backend.faults = ["1.bias"]
    _, child = refit(engines, parent, versions[1])

    assert not verify(engines, child).ok

    assert engines.residency.engines == 0
    refitted, child = refit(engines, parent, versions[1])
    assert not refitted.warm
    assert verify(engines, child).ok
