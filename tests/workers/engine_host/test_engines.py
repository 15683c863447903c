"""What becomes of resident engines that are refitted in place when something goes wrong; the backend is a stand-in."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.workers.networks import Network, bound, checkpoint, perceptron
from tests.workers.weight_holding import HeldWeights, WeightHolding
from workers.channel.messages import (
    BackendError,
    Benchmark,
    Build,
    Built,
    Check,
    Computing,
    EngineFile,
    Materialise,
    Materialised,
    MergeTimings,
    Message,
    ParameterSource,
    Progress,
    Refit,
    Refitted,
    Report,
    Request,
    Verified,
    Verify,
)
from workers.engine_host.backends import catalog
from workers.engine_host.backends.base import Arrays, LoadedEngine, Room
from workers.engine_host.engines import Engines

Sources = tuple[ParameterSource, ...]
PATIENCE_S = 20.0


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
    (tmp_path / "scratch").mkdir()
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
    return built_by(engines, network, versions[0], tmp_path / "plan")


def built_by(engines: Engines, network: Network, sources: Sources, plan: Path) -> EngineFile:
    built = engines.do(Build("tensorrt", str(network.path), sources, network.inputs, str(plan)))
    assert isinstance(built, Built)
    return EngineFile("tensorrt", built.plan, built.plan_digest, str(network.path), sources, network.inputs)


def refit(engines: Engines, parent: EngineFile, sources: Sources) -> tuple[Refitted, EngineFile]:
    refitted = engines.do(Refit(parent, sources, plan=None))
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


@pytest.mark.parametrize("kind", ["verify", "benchmark"])
def test_a_plan_to_compare_with_lies_in_the_scratch_folder_and_is_removed(
    engines: Engines, backend: Faulty, parent: EngineFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plans: list[Path] = []

    def build(request: Build, _report: Report) -> Any:  # noqa: ANN401 - it never returns
        plans.append(Path(request.plan))
        plans[0].write_bytes(b"plan")
        raise BackendError("build_failed", "as if")

    monkeypatch.setattr(backend, "build", build)
    report = str(tmp_path / "report.json")
    requests: dict[str, Request] = {
        "verify": Verify(parent, Check("rebuild")),
        "benchmark": Benchmark(parent, iterations=1, warmup=0, report=report, against_not_refittable=True),
    }
    with pytest.raises(BackendError, match="build_failed"):
        engines.do(requests[kind])
    assert [plan.is_relative_to(tmp_path / "scratch") for plan in plans] == [True]
    assert not list((tmp_path / "scratch").iterdir())


def test_a_backend_without_timings_that_could_be_merged_says_so(engines: Engines, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot_merge"):
        engines.do(MergeTimings("tensorrt", (), str(tmp_path / "merged")))


@dataclass
class Writing(WeightHolding):
    """Writes a plan no sooner than its engine is being verified; the first ones to be serialized fail with `faults`."""

    scratch: Path
    faults: list[BackendError] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    serialized: int = 0

    def __post_init__(self) -> None:
        super().__init__(self.scratch)
        self._verifying = Event()

    @contextmanager
    def materialising(self, plan: str, engine: LoadedEngine, report: Report) -> Iterator[Future[Materialised]]:
        self.serialized += 1
        if self.faults:
            raise self.faults.pop(0)
        self._verifying.clear()
        with ThreadPoolExecutor(1) as pool, super().materialising(plan, engine, report) as written:
            yield pool.submit(self._late, written)

    def hear(self, message: Message) -> None:
        if isinstance(message, Computing):
            return
        self.heard.append(message.phase if isinstance(message, Progress) else type(message).__name__)
        if self.heard[-1] == "verify":
            self._verifying.set()

    def _late(self, written: Future[Materialised]) -> Materialised:
        if not self._verifying.wait(PATIENCE_S):
            raise BackendError("too_early", "The plan was waited for before the engine was verified.")
        return written.result()


@pytest.fixture
def writing(tmp_path: Path) -> tuple[Engines, Writing]:
    backend = Writing(tmp_path / "scratch")
    engines = Engines("cpu", 1 << 30, tmp_path / "scratch", backend.hear)
    engines._backends["tensorrt"] = backend
    return engines, backend


def test_an_engine_is_verified_while_its_plan_is_written(
    writing: tuple[Engines, Writing], network: Network, versions: list[Sources], tmp_path: Path
) -> None:
    engines, backend = writing
    parent = built_by(engines, network, versions[0], tmp_path / "plan")
    backend.heard.clear()

    refitted = engines.do(Refit(parent, versions[1], str(tmp_path / "refitted"), Check("reference")))

    assert isinstance(refitted, Refitted)
    assert refitted.verification is not None
    assert refitted.verification.ok
    assert refitted.plan == str(tmp_path / "refitted")
    assert sorted(backend.heard) == ["PlanWritten", "verify", "write"]
    assert set(refitted.stages) == {"refit", "check", "serialize", "write"}
    child = replace(parent, parameters=versions[1], plan=refitted.plan)
    engines.do(Refit(parent, versions[0], plan=None))  # so that it is resident no more
    assert verify(engines, child).ok
    assert backend.loaded == [child.plan]


def test_a_plan_for_which_there_is_no_room_is_made_of_an_engine_loaded_anew(
    writing: tuple[Engines, Writing], network: Network, versions: list[Sources], tmp_path: Path
) -> None:
    engines, backend = writing
    parent = built_by(engines, network, versions[0], tmp_path / "plan")
    backend.faults = [full()]

    refitted = engines.do(Refit(parent, versions[1], str(tmp_path / "refitted"), Check("finite")))

    assert isinstance(refitted, Refitted)
    assert backend.serialized == 2
    assert backend.loaded == [parent.plan]
    engines.do(Refit(parent, versions[0], plan=None))  # so that it is resident no more
    assert verify(engines, replace(parent, parameters=versions[1], plan=str(refitted.plan))).ok
    assert backend.loaded == [parent.plan, refitted.plan]


def test_a_plan_for_which_there_is_never_room_is_tried_twice(
    writing: tuple[Engines, Writing], network: Network, versions: list[Sources], tmp_path: Path
) -> None:
    engines, backend = writing
    parent = built_by(engines, network, versions[0], tmp_path / "plan")
    backend.faults = [full() for _ in range(4)]
    with pytest.raises(BackendError, match="device_out_of_memory"):
        engines.do(Materialise(parent, str(tmp_path / "again")))
    assert backend.serialized == 2


def test_a_plan_is_told_of_though_its_engine_cannot_be_verified(
    writing: tuple[Engines, Writing],
    network: Network,
    versions: list[Sources],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_engine: HeldWeights, _inputs: Arrays) -> dict[str, Any]:
        raise BackendError("run_failed", "It broke.")

    engines, backend = writing
    parent = built_by(engines, network, versions[0], tmp_path / "plan")
    backend.heard.clear()
    monkeypatch.setattr(HeldWeights, "run", broken)
    with pytest.raises(BackendError, match="run_failed"):
        engines.do(Refit(parent, versions[1], str(tmp_path / "refitted"), Check("finite")))
    assert backend.heard == ["verify", "PlanWritten"]  # whoever puts it into the store leaves it to collection
    assert (tmp_path / "refitted").exists()


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


def test_a_verification_without_room_looks_at_the_plan_that_was_written(
    engines: Engines,
    backend: Faulty,
    parent: EngineFile,
    versions: list[Sources],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend.faults = ["1.bias"]  # what is refitted and written holds a wrong weight
    run, rooms = HeldWeights.run, iter([full()])

    def run_once_there_is_room(engine: HeldWeights, inputs: Arrays) -> Any:  # noqa: ANN401 - arrays by name
        for error in rooms:
            raise error
        return run(engine, inputs)

    monkeypatch.setattr(HeldWeights, "run", run_once_there_is_room)
    with pytest.raises(BackendError, match=r"does not hold the 1\.bias"):
        engines.do(Refit(parent, versions[1], str(tmp_path / "refitted"), Check("reference")))
    assert backend.loaded == [str(tmp_path / "refitted")]
