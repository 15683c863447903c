"""The backend on a machine without a GPU: it compiles, and says plainly what it cannot do."""

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.workers.networks import Network, bound, checkpoint, perceptron
from tests.workers.tensorrt.cpu_compilation import Workshop, needs_rtx, rows
from workers.backends import tensorrt
from workers.backends.base import BackendError, Build, Built, EngineFile, LoadedEngine, Materialise, Refit
from workers.backends.tensorrt import open_backend
from workers.backends.tensorrt.backend import Gpu, TensorrtBackend
from workers.backends.tensorrt.library import NAME, trt
from workers.tensors import ParameterFiles

pytestmark = needs_rtx


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "net.onnx")


@pytest.fixture
def request_(workshop: Workshop, network: Network) -> Build:
    return workshop.request(network, [rows(network)])


def engine_of(request: Build, built: Built, **options: Any) -> EngineFile:  # noqa: ANN401 - JSON
    return EngineFile(
        backend=request.backend,
        plan=built.plan,
        root_plan=built.plan_digest,
        definition=request.definition,
        parameters=request.parameters,
        inputs=request.inputs,
        profiles=request.profiles,
        options={**request.options, **options},
    )


def test_a_build_writes_a_plan_and_tells_what_it_is(workshop: Workshop, request_: Build) -> None:
    built = workshop.carry_out(request_)

    plan = Path(built.plan).read_bytes()
    assert (built.plan_digest, built.nbytes) == (f"sha256:{hashlib.sha256(plan).hexdigest()}", len(plan))
    assert (built.backend_version, built.platform) == (trt.__version__, f"{trt.__version__}/SM80")
    assert built.facts == {
        "library": NAME,
        "plan_holds_weights": True,
        "refit_layout": "plain",
        "slots": 4,
        "refittable": False,
    }
    assert set(built.timings) == {"map", "compile", "write"}


def test_nothing_but_the_plan_is_left_behind(workshop: Workshop, request_: Build) -> None:
    before = set(workshop.folder.rglob("*"))
    workshop.carry_out(request_)
    assert set(workshop.folder.rglob("*")) - before == {Path(request_.plan)}


def test_nothing_at_all_is_left_behind_by_a_build_that_fails(workshop: Workshop, request_: Build) -> None:
    before = set(workshop.folder.rglob("*"))
    with pytest.raises(BackendError):
        workshop.carry_out(replace(request_, profiles=()))
    assert set(workshop.folder.rglob("*")) == before


def test_the_plan_holds_the_weights_it_was_built_with(workshop: Workshop, network: Network) -> None:
    plans = []
    for seed in (1, 2):
        tensors = checkpoint(workshop.folder / f"{seed}.safetensors", network.weights(seed))
        plans.append(Path(workshop.build(network, [rows(network)], tensors).plan).read_bytes())
    assert plans[0] != plans[1]
    assert network.weights(1)["1.bias"].tobytes() in plans[0]
    assert network.weights(2)["1.bias"].tobytes() in plans[1]


def test_running_and_refitting_are_refused_for_want_of_a_gpu(workshop: Workshop, request_: Build) -> None:
    engine = engine_of(request_, workshop.carry_out(request_))
    backend = workshop.backend
    refit = Refit(engine, request_.parameters, str(workshop.folder / "refitted.plan"))
    for attempt in (
        lambda: backend.load(engine, workshop.messages.append),
        lambda: backend.refit(refit, None, workshop.messages.append),
    ):
        with pytest.raises(BackendError, match="this worker has no GPU") as error:
            attempt()
        assert error.value.code == "no_gpu"
    assert not Path(refit.plan).exists()


def test_an_engine_of_another_backend_is_not_serialized(workshop: Workshop, request_: Build) -> None:
    engine = engine_of(request_, workshop.carry_out(request_))
    other: Any = SimpleNamespace(nbytes=1)
    foreign: LoadedEngine = other
    with pytest.raises(TypeError, match="not an engine of this backend"):
        workshop.backend.materialise(Materialise(engine, "x.plan"), foreign, workshop.messages.append)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"refit": "all"}, "refit='all': .*without a GPU"),
        ({"refit": ["0.weight"]}, "refit=.*without a GPU"),
        ({"strip_weights": True}, "strip_weights=True: .*without a GPU"),
        ({"precision": "fp16"}, "make a definition with precision fp16"),
        ({"hardware_compatibility": "ampere_plus"}, "ignores it; engines are compiled for a compute_capability"),
        ({"timing_cache": True}, "times nothing while it compiles"),
        ({"compute_capability": "SM90"}, "compute_capability='SM90': bad value"),
        ({"optimization_level": 6}, "optimization_level=6: bad value"),
        ({"fast": True}, "fast=True: unknown option"),
    ],
)
def test_an_option_it_lacks_is_refused_with_the_reason(
    workshop: Workshop, network: Network, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BackendError, match=reason) as error:
        workshop.build(network, [rows(network)], **options)
    assert error.value.code == "bad_option"
    assert not workshop.seen


def test_weights_that_were_lost_are_told_before_anything_is_compiled(workshop: Workshop, request_: Build) -> None:
    (workshop.folder / "weights.safetensors").unlink()
    with pytest.raises(BackendError) as error:
        workshop.carry_out(request_)
    assert error.value.code == "weights_unreadable"
    assert not workshop.seen


def test_without_a_gpu_the_backend_opens_for_building_only(tmp_path: Path) -> None:
    backend = open_backend(NAME, "cpu", tmp_path, ParameterFiles(tmp_path))
    assert backend.refits_in_place
    assert backend.offered.loads == ()
    assert backend.offered.capabilities["run"] is False


def test_the_library_that_this_process_does_not_use_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"{NAME} is installed as well") as error:
        open_backend("tensorrt", "cpu", tmp_path, ParameterFiles(tmp_path))
    assert error.value.code == "other_library"


# With a GPU that is a stand-in


class Deserialized:
    """In place of `trt.ICudaEngine`; every parameter of the perceptron is a weight of it."""

    refittable = True
    num_layers = 3
    device_memory_size_v2 = 100
    streamable_weights_size = 1000
    weight_streaming_budget_v2 = 1000


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Deserialized]:
    """The engines that a runtime in place of `trt.Runtime` deserialized."""
    made: list[Deserialized] = []

    def deserialize(_plan: object) -> Deserialized:
        made.append(Deserialized())
        return made[-1]

    runtime = SimpleNamespace(deserialize_cuda_engine=deserialize)
    monkeypatch.setattr("workers.backends.tensorrt.backend.trt", SimpleNamespace(Runtime=lambda _log: runtime))
    monkeypatch.setattr("workers.backends.tensorrt.engine.refittable_weights", lambda _engine, _log: frozenset())
    return made


def with_gpu(workshop: Workshop) -> TensorrtBackend:
    return TensorrtBackend(Gpu("NVIDIA RTX 4090", "8.9"), workshop.folder, workshop.files)


def test_an_engine_streams_no_more_weights_than_its_budget_says(
    workshop: Workshop, request_: Build, engines: list[Deserialized]
) -> None:
    built = workshop.carry_out(request_)
    backend = with_gpu(workshop)
    for budget in (None, 300, 5000):
        options = {} if budget is None else {"weight_streaming_budget": budget}
        backend.load(engine_of(request_, built, refit="none", **options), workshop.messages.append)
    assert [one.weight_streaming_budget_v2 for one in engines] == [1000, 300, 1000]


def test_a_plan_that_cannot_be_loaded_is_told_with_the_remedy(
    workshop: Workshop, request_: Build, engines: list[Deserialized], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = workshop.carry_out(request_)
    backend = with_gpu(workshop)
    monkeypatch.setattr(backend._runtime, "deserialize_cuda_engine", lambda _plan: None)
    with pytest.raises(BackendError, match="Build the engine again here") as error:
        backend.load(engine_of(request_, built), workshop.messages.append)
    assert error.value.code == "load_failed"
    assert engines == []


@pytest.mark.usefixtures("engines")
def test_a_lazy_refit_writes_no_plan(workshop: Workshop, network: Network, request_: Build) -> None:
    engine = engine_of(request_, workshop.carry_out(request_))
    plan = workshop.folder / "refitted.plan"
    backend = with_gpu(workshop)
    same = Refit(engine, request_.parameters, str(plan), materialise=False)

    refitted, resident = backend.refit(same, None, workshop.messages.append)
    again, _ = backend.refit(same, resident, workshop.messages.append)

    assert (refitted.plan, refitted.plan_digest, refitted.changed, refitted.warm) == (None, None, 0, False)
    assert again.warm
    assert refitted.facts["fixed_parameters"] == sorted(network.parameters)  # as of the engine it was made from
    assert not plan.exists()
    other = bound(network, checkpoint(workshop.folder / "other.safetensors", network.weights(2)))
    with pytest.raises(BackendError, match="has not kept"):
        backend.refit(replace(same, parameters=other), resident, workshop.messages.append)


@pytest.mark.usefixtures("engines")
def test_the_gpu_of_the_device_is_the_one_compiled_for(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "describe_device", lambda _device: {"name": "L4", "compute_capability": "8.9"})
    backend = open_backend(NAME, "cuda:0", workshop.folder, workshop.files)
    assert backend.offered.makes == backend.offered.loads == (f"{trt.__version__}/L4",)
    assert "compute_capability" not in backend.offered.capabilities["options"]
