"""What becomes of resident engines that are refitted in place when something goes wrong; the backend is a stand-in."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.workers.networks import Network, bound, checkpoint, perceptron
from tests.workers.weight_holding import HeldWeights, WeightHolding
from workers.backends import catalog
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
    Room,
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


@dataclass
class Compiling(WeightHolding):
    """Builds in two steps, each of which fails with a fault of its own list first, one for each time it is tried."""

    scratch: Path
    room: Room
    compile_faults: list[BackendError] = field(default_factory=list)
    load_faults: list[BackendError] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.scratch)

    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine]:
        self._step("compile", self.compile_faults)
        built, engine = super().build(request, report)
        self.room(lambda: self._step("load", self.load_faults))
        return built, engine

    def _step(self, name: str, faults: list[BackendError]) -> None:
        self.steps.append(name)
        if faults:
            raise faults.pop(0)


@pytest.fixture
def compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Engines, Compiling]:
    """A backend that the engines opened, with the room they make."""
    opened: list[Compiling] = []

    def open_backend(_name: str, _device: str, scratch: Path, _files: object, room: Room) -> Compiling:
        opened.append(Compiling(scratch, room))
        return opened[0]

    monkeypatch.setattr(catalog, "open_backend", open_backend)
    engines = Engines("cpu", 1 << 30, tmp_path / "scratch", lambda _message: None)
    engines.backend("tensorrt")
    return engines, opened[0]


@pytest.mark.parametrize(
    ("compile_faults", "load_faults", "steps"),
    [
        (0, 1, ["compile", "load", "load"]),
        (1, 0, ["compile", "compile", "load"]),
        (0, 2, ["compile", "load", "load"]),
        (1, 1, ["compile", "compile", "load"]),
        (2, 0, ["compile", "compile"]),
    ],
)
def test_where_the_device_is_full_a_build_is_tried_again_from_the_step_that_had_no_room(
    compiling: tuple[Engines, Compiling],
    network: Network,
    versions: list[Sources],
    tmp_path: Path,
    compile_faults: int,
    load_faults: int,
    steps: list[str],
) -> None:
    engines, backend = compiling
    first, second = (
        Build("tensorrt", str(network.path), sources, network.inputs, str(tmp_path / f"{number}.plan"))
        for number, sources in enumerate(versions)
    )
    engines.do(first)
    backend.steps.clear()
    backend.compile_faults = [full() for _ in range(compile_faults)]
    backend.load_faults = [full() for _ in range(load_faults)]

    if compile_faults + load_faults > 1:
        with pytest.raises(BackendError, match="device_out_of_memory"):
            engines.do(second)
    else:
        engines.do(second)

    assert backend.steps == steps
    assert engines.residency.engines == (compile_faults + load_faults == 1)


def test_a_load_that_fails_for_another_reason_is_not_tried_again(
    compiling: tuple[Engines, Compiling], network: Network, versions: list[Sources], tmp_path: Path
) -> None:
    engines, backend = compiling
    request = Build("tensorrt", str(network.path), versions[0], network.inputs, str(tmp_path / "plan"))
    engines.do(request)
    backend.load_faults = [BackendError("load_failed", "as if")]
    with pytest.raises(BackendError, match="load_failed"):
        engines.do(request)
    assert backend.steps == ["compile", "load"] * 2
    assert engines.residency.engines == 1
