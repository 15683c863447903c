"""The backend on a machine without a GPU: it compiles, and says plainly what it cannot do."""

import ctypes
import gc
import hashlib
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.definitions.parameter import InputSpec
from app.definitions.profiles import Range
from tests.workers.engine_host.backends.tensorrt.cpu_compilation import Workshop, needs_rtx, rows
from tests.workers.engine_host.normaliser.graphs import graph
from tests.workers.networks import Network, bound, checkpoint, perceptron
from workers.channel.messages import BackendError, Build, Built, EngineFile, Progress, Refit
from workers.engine_host import onnx_graph
from workers.engine_host.backends.base import LoadedEngine
from workers.engine_host.backends.tensorrt import opening, plan_file
from workers.engine_host.backends.tensorrt.backend import TensorrtBackend
from workers.engine_host.backends.tensorrt.compiler import Compiler
from workers.engine_host.backends.tensorrt.engine import TensorrtEngine
from workers.engine_host.backends.tensorrt.library import NAME, trt
from workers.engine_host.backends.tensorrt.offer import Gpu
from workers.engine_host.backends.tensorrt.opening import open_backend
from workers.engine_host.normaliser import normalise as normaliser
from workers.engine_host.normaliser.parser import Parser
from workers.engine_host.resident import ResidentEngines
from workers.engine_host.tensors import ParameterFiles

pytestmark = needs_rtx
PR_GET_THP_DISABLE = 42  # linux/prctl.h


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "net.onnx")


@pytest.fixture
def request_(workshop: Workshop, network: Network) -> Build:
    return workshop.request(network, [rows(network)])


def has_small_pages() -> bool:
    return bool(ctypes.CDLL(None).prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0))


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
        "rewrites": [],
    }
    assert set(built.stages) == {"normalise", "transform", "compile", "write"}


def test_the_compiler_gets_small_pages_and_nothing_after_it(
    workshop: Workshop, request_: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    compiled = Compiler.compile

    def compiling(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - as what it stands in for
        seen.append(has_small_pages())
        return compiled(*arguments, **more)

    monkeypatch.setattr(Compiler, "compile", compiling)
    workshop.carry_out(request_)
    assert (seen, has_small_pages()) == ([True], False)


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
    refit = Refit(engine, request_.parameters, plan=None)
    for attempt in (
        lambda: backend.load(engine, workshop.messages.append),
        lambda: backend.refit(refit, None, workshop.messages.append),
    ):
        with pytest.raises(BackendError, match="this worker has no GPU") as error:
            attempt()
        assert error.value.code == "no_gpu"


def test_an_engine_of_another_backend_is_not_serialized(workshop: Workshop) -> None:
    other: Any = SimpleNamespace(nbytes=1)
    foreign: LoadedEngine = other
    with (
        pytest.raises(TypeError, match="not an engine of this backend"),
        workshop.backend.materialising("x.plan", foreign, workshop.messages.append),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"refit": "all"}, "refit: .*without a GPU"),
        ({"refit": ["0.weight"]}, "refit: .*without a GPU"),
        ({"strip_weights": True}, "strip_weights: .*without a GPU"),
        ({"precision": "fp16"}, "make a definition with precision fp16"),
        ({"hardware_compatibility": "ampere_plus"}, "ignores it; engines are compiled for a compute_capability"),
        ({"timing_cache": True}, "times nothing while it compiles"),
        ({"compute_capability": "SM90"}, "compute_capability: 'SM90' is not one of"),
        ({"optimization_level": 6}, "optimization_level: 6 is greater than the maximum of 5"),
        ({"fast": True}, "fast: unknown; known are"),
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
    assert error.value.code == "file_failed"
    assert not workshop.seen


def test_without_a_gpu_the_backend_opens_for_building_only(tmp_path: Path) -> None:
    backend = open_backend(NAME, "cpu", tmp_path, ParameterFiles(tmp_path), ResidentEngines(0).with_room)
    assert backend.refits_in_place
    assert backend.offered.loads == ()
    assert backend.offered.capabilities["run"] is False


def test_the_library_that_this_process_does_not_use_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"{NAME} is installed as well") as error:
        open_backend("tensorrt", "cpu", tmp_path, ParameterFiles(tmp_path), ResidentEngines(0).with_room)
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
    monkeypatch.setattr(
        "workers.engine_host.backends.tensorrt.backend.trt", SimpleNamespace(Runtime=lambda _log: runtime)
    )
    monkeypatch.setattr(
        "workers.engine_host.backends.tensorrt.engine.refittable_weights", lambda _engine, _log: frozenset()
    )
    return made


def with_gpu(workshop: Workshop) -> TensorrtBackend:
    return TensorrtBackend(Gpu("NVIDIA RTX 4090", "8.9"), workshop.folder, workshop.files, workshop.resident.with_room)


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
def test_a_refit_writes_no_plan(workshop: Workshop, network: Network, request_: Build) -> None:
    engine = engine_of(request_, workshop.carry_out(request_))
    plan = workshop.folder / "refitted.plan"
    backend = with_gpu(workshop)
    same = Refit(engine, request_.parameters, str(plan))

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
def test_a_plan_is_serialized_at_once_and_written_beside_what_follows(
    workshop: Workshop, request_: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = with_gpu(workshop)
    engine = backend.load(engine_of(request_, workshop.carry_out(request_)), workshop.messages.append)
    given_up = weakref.ref(engine)
    serialized = np.frombuffer(b"serialized", np.uint8).copy()
    let_go = weakref.ref(serialized)
    monkeypatch.setattr(TensorrtEngine, "serialize", lambda _engine, held=[serialized]: held.pop())
    del serialized
    may_write, write = Event(), plan_file.write_plan

    def slow(plan: Any, path: Path) -> tuple[str, int]:  # noqa: ANN401 - a buffer
        assert may_write.wait(20.0)
        return write(plan, path)

    monkeypatch.setattr("workers.engine_host.backends.tensorrt.backend.write_plan", slow)
    path = workshop.folder / "later.plan"
    with backend.materialising(str(path), engine, workshop.messages.append) as writing:
        assert workshop.messages[-1] == Progress("serialize")
        assert not writing.done()
        del engine
        assert given_up() is None
        may_write.set()
        made = writing.result()
        gc.collect()
        assert let_go() is None
    assert path.read_bytes() == b"serialized"
    assert (made.plan, made.nbytes, list(made.stages)) == (str(path), 10, ["serialize"])
    assert made.plan_digest == f"sha256:{hashlib.sha256(b'serialized').hexdigest()}"


@dataclass
class Loading:
    """A build on a GPU that is a stand-in: what it compiles is loaded, or is not, as `faults` say one by one.

    A fault is what TensorRT says when it loads nothing.
    """

    workshop: Workshop
    monkeypatch: pytest.MonkeyPatch
    request: Build
    faults: list[str] = field(default_factory=list)
    compiled: int = 0
    loads: int = 0

    def __post_init__(self) -> None:
        self.backend = with_gpu(self.workshop)
        self.monkeypatch.setattr(self.backend._compiler, "compile", self._compile)
        self.monkeypatch.setattr(self.backend._runtime, "deserialize_cuda_engine", self._deserialize)

    def build(self) -> tuple[Built, LoadedEngine | None]:
        return self.backend.build(self.request, self.workshop.messages.append)

    def _compile(self, *_given: Any, **_options: Any) -> bytes:  # noqa: ANN401 - as the compiler has it
        self.compiled += 1
        self.backend._log.log(trt.ILogger.Severity.ERROR, "skipping a tactic: out of memory")
        return b"a plan"

    def _deserialize(self, _plan: object) -> Deserialized | None:
        self.loads += 1
        if not self.faults:
            return Deserialized()
        self.backend._log.log(trt.ILogger.Severity.ERROR, self.faults.pop(0))
        return None


FULL = "Error Code 1: Cuda Runtime (out of memory)"


@pytest.fixture
def loading(
    workshop: Workshop, request_: Build, engines: list[Deserialized], monkeypatch: pytest.MonkeyPatch
) -> Loading:
    assert engines == []
    return Loading(workshop, monkeypatch, request_)


def keep_an_engine(workshop: Workshop) -> None:
    idle: Any = SimpleNamespace(nbytes=1)
    workshop.resident.put("idle", idle, "plan")


def test_a_load_that_runs_out_of_memory_is_tried_again_without_another_compilation(
    workshop: Workshop, network: Network, loading: Loading
) -> None:
    keep_an_engine(workshop)
    loading.faults = [FULL]

    built, engine = loading.build()

    assert (loading.compiled, loading.loads) == (1, 2)
    assert workshop.resident.residency.engines == 0
    assert isinstance(engine, TensorrtEngine)
    assert built.facts["fixed_parameters"] == sorted(network.parameters)
    assert Path(built.plan).read_bytes() == b"a plan"
    assert built.plan_digest == f"sha256:{hashlib.sha256(b'a plan').hexdigest()}"


@pytest.mark.parametrize(("kept", "loads"), [(True, 2), (False, 1)])
def test_a_load_that_never_has_room_is_told_and_leaves_nothing_behind(
    workshop: Workshop, loading: Loading, *, kept: bool, loads: int
) -> None:
    if kept:
        keep_an_engine(workshop)
    loading.faults = [FULL, FULL, FULL]
    before = set(workshop.folder.rglob("*"))

    with pytest.raises(BackendError, match="cannot load the plan: the GPU's memory does not suffice") as error:
        workshop.resident.with_room(loading.build)  # as the engine host does with every request

    assert error.value.code == "device_out_of_memory"
    assert "ENGINESMITH_RESIDENT_BYTES" in error.value.detail
    assert "tactic" not in error.value.detail
    assert (loading.compiled, loading.loads) == (1, loads)
    assert set(workshop.folder.rglob("*")) == before


def test_what_an_attempt_without_room_said_is_not_held_against_the_next_one(
    workshop: Workshop, loading: Loading
) -> None:
    keep_an_engine(workshop)
    loading.faults = [FULL, "the plan is damaged"]
    with pytest.raises(BackendError, match="the plan is damaged") as error:
        loading.build()
    assert error.value.code == "load_failed"


def test_giving_a_stripped_engine_its_weights_is_tried_again_with_the_load(
    workshop: Workshop, loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_an_engine(workshop)
    given: list[TensorrtEngine] = []

    def give(engine: TensorrtEngine, *_rest: object) -> int:
        given.append(engine)
        if len(given) == 1:
            raise BackendError("device_out_of_memory", "as if")
        return 0

    monkeypatch.setattr(TensorrtEngine, "set_parameters", give)
    _, engine = loading.build()
    assert (loading.compiled, loading.loads) == (1, 2)
    assert engine is given[1]


def test_a_plan_is_loaded_while_it_is_written(loading: Loading, monkeypatch: pytest.MonkeyPatch) -> None:
    is_loaded = Event()

    def write(_plan: object, path: Path) -> tuple[str, int]:
        assert is_loaded.wait(30)
        path.write_bytes(b"")
        return "sha256:", 0

    def deserialize(_plan: object) -> Deserialized:
        is_loaded.set()
        return Deserialized()

    monkeypatch.setattr("workers.engine_host.backends.tensorrt.plan_file.write_plan", write)
    monkeypatch.setattr(loading.backend._runtime, "deserialize_cuda_engine", deserialize)
    built, _ = loading.build()
    assert built.plan_digest == "sha256:"


@pytest.mark.usefixtures("engines")
def test_the_gpu_of_the_device_is_the_one_compiled_for(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "describe_device", lambda _device: {"name": "L4", "compute_capability": "8.9"})
    backend = open_backend(NAME, "cuda:0", workshop.folder, workshop.files, workshop.resident.with_room)
    assert backend.offered.makes == (f"{trt.__version__}/L4",)
    assert backend.offered.loads == (f"{trt.__version__}/L4", f"{trt.__version__}/SM89")
    assert "compute_capability" not in backend.offered.capabilities["options"]


@pytest.mark.skipif(NAME != "tensorrt_rtx", reason="tensorrt is installed")
def test_a_gpu_without_kernels_opens_no_backend(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "describe_device", lambda _device: {"name": "H100", "compute_capability": "9.0"})
    with pytest.raises(BackendError, match="no kernels for the H100"):
        open_backend(NAME, "cuda:0", workshop.folder, workshop.files, workshop.resident.with_room)


def test_an_if_whose_outputs_the_parser_may_mix_up_is_never_compiled(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """g (bool b, float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
        y, z = If (b) <then_branch = t () => (c, d) { c = Neg (x) d = Sin (x) },
                       else_branch = e () => (f, g) { g = Neg (x) f = Cos (x) }>
    }"""
    definition = workshop.folder / "two.onnx"
    definition.write_bytes(onnx_graph.serialize(graph(text)))
    inputs = (InputSpec("b", "BOOL", ()), InputSpec("x", "F32", ("n", 4)))
    profiles = ({"b": Range((), (), ()), "x": Range((1, 4), (2, 4), (4, 4))},)
    request = Build(NAME, str(definition), (), inputs, str(workshop.folder / "two.plan"), profiles, {})
    backend = workshop.backend
    monkeypatch.setattr(backend, "_can", replace(backend._can, parser=Parser(17, single_branches=True)))
    built, _ = backend.build(request, lambda _message: None)
    monkeypatch.setattr(normaliser, "split_branches", lambda _graph: 1 / 0)

    assert "branches_split" in {one["rewrite"] for one in built.facts["rewrites"]}
    with pytest.raises(BackendError, match="might give one output for another") as refusal:
        backend.build(request, lambda _message: None)
    assert refusal.value.code == "graph_refused"
