"""TensorRT on a real GPU: what it computes, what a refit changes, and what is left when one goes wrong."""

import gc
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from onnx import helper

from app.bindings.transforms import Cast
from app.definitions.parameter import InputSpec
from app.definitions.profiles import Profile, Range
from app.weights.dtypes import numpy_dtype
from benchmarks.checkpoints import gpt2_config
from benchmarks.service import memory_bytes
from tests.gpu.card import GIB, Array, Card, Sources
from tests.gpu.samples import between, rows, text, weights_of
from tests.workers.hosting import Hosting, direct
from tests.workers.networks import (
    Network,
    attention,
    bound,
    checkpoint,
    constructed,
    convolution,
    image_profile,
    network_of,
    perceptron,
    tensor_files,
)
from workers.channel.host import EngineHost, EngineHostDied
from workers.channel.messages import (
    BackendError,
    Benchmark,
    Benchmarked,
    Built,
    EngineFile,
    Message,
    Progress,
    Refit,
    TensorFile,
)
from workers.channel.process import Reach
from workers.engine_host.backends.tensorrt.capabilities import capabilities
from workers.engine_host.backends.tensorrt.engine import TensorrtEngine
from workers.engine_host.backends.tensorrt.refitting import refit
from workers.engine_host.backends.tensorrt.tensor_location import OnDevice, OnHost
from workers.engine_host.backends.tensorrt.weight_values import Expected
from workers.engine_host.cuda import DeviceBuffer, memory_info
from workers.engine_host.run_inputs import fixed_inputs
from workers.engine_host.tensors import MappedFiles

IMAGE = ((1, 3, 8, 8), (2, 3, 16, 16), (4, 3, 32, 32))
BIAS = "h.0.mlp.c_fc.bias"
BROAD_BYTES = 64 * 2**20
HOST_GROWTH = 64 * 2**20
HALF = pytest.mark.skipif(not capabilities().fp16_flag, reason="types are the definition's own")
OCR = ["ch_ppocr_mobile_v2.0_cls_infer", "ch_PP-OCRv4_det_infer", "ch_PP-OCRv4_rec_infer"]
# In half precision the recognition lies near the bound by rounding alone, and the detection has weights beyond F16.
HALF_OCR = pytest.param(OCR[0], {"precision": "fp16"}, marks=HALF)
NOTHING_KNOWN: Any = SimpleNamespace(named=lambda _names: ())  # of weights that nobody changed


@dataclass(frozen=True)
class Line:
    """A network, three sets of weights for it, and the engine built with the first of them."""

    network: Network
    versions: tuple[Sources, Sources, Sources]
    engine: EngineFile

    @classmethod
    def built(cls, network: Network, profile: Profile, folder: Path) -> Self:
        first, second, third = (bound(network, weights_of(network, folder, seed)) for seed in (1, 2, 3))
        _, engine = Card(folder).build(network, first, (profile,))
        return cls(network, (first, second, third), engine)

    @property
    def inputs(self) -> dict[str, Array]:
        return fixed_inputs(self.network.inputs, self.engine.profiles)


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A small GPT-2 in F16; built once: TensorRT takes tens of seconds, and a built engine is never changed."""
    folder = tmp_path_factory.mktemp("line")
    network = gpt2(folder, "fp16")
    return Line.built(network, text(network), folder)


@pytest.fixture(scope="session")
def broad(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Few weights, far larger than the pieces in which CUDA gives out memory."""
    folder = tmp_path_factory.mktemp("broad")
    network = perceptron(folder / "net.onnx", width=2048, depth=4)
    assert sum(value.nbytes for value in network.weights(1).values()) > BROAD_BYTES
    return Line.built(network, rows(network), folder)


def elementwise(path: Path, dtype: str) -> Network:
    """y = x, beside a parameter that something else reads, so that there is one."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Relu", ["gain"], ["z"])]
    return network_of(path, nodes, {"gain": ("F32", (4,))}, (InputSpec("x", dtype, (1, 4)),), {"y": dtype, "z": "F32"})


def gpt2(folder: Path, precision: str, **config: Any) -> Network:  # noqa: ANN401 - JSON
    small = gpt2_config(2, 128, vocab=512, positions=128) | config
    return constructed({"family": "gpt2", "config": small, "precision": precision}, folder / "gpt2.onnx")


def same(a: dict[str, Array], b: dict[str, Array]) -> bool:
    """Whether the outputs are the same bit for bit."""
    return all(np.array_equal(a[name].view(np.uint8), b[name].view(np.uint8)) for name in a)


def rescaled(stored: dict[str, TensorFile], names: list[str], path: Path) -> dict[str, TensorFile]:
    """The tensors with those named a little larger."""
    mapped = MappedFiles()
    values = {name: (mapped.view(stored[name]) * np.float32(1.05)).astype(np.float32) for name in names}
    return stored | checkpoint(path, values)


# What it computes


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_minilm_agrees_with_its_definition_built_and_refitted(
    card: Card, tmp_path: Path, minilm: Path, precision: str
) -> None:
    config = json.loads((minilm / "config.json").read_text())
    network = constructed({"family": "bert", "config": config, "precision": precision}, tmp_path / "minilm.onnx")
    stored = tensor_files(minilm / "model.safetensors")
    cast = {name: (Cast("F16"),) for name, (dtype, _) in network.parameters.items() if dtype == "F16"}
    other = rescaled(stored, ["encoder.layer.5.output.dense.weight"], tmp_path / "other.safetensors")

    _, engine = card.build(network, bound(network, stored, cast), (text(network),))
    refitted, child = card.refit(engine, bound(network, other, cast))

    for one in (child, engine):
        found = card.verify(one)
        assert found.ok, found.detail
    assert (refitted.changed, refitted.facts["weights_set"]) == (1, 1)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in OCR), HALF_OCR])
def test_published_convolutional_networks_agree_built_and_refitted(
    card: Card, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    spec = find_spec("rapidocr_onnxruntime")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0]) / "models" / f"{name}.onnx"
    network = constructed({"file": str(file)}, tmp_path / "ocr.onnx")
    stored = tensor_files(tmp_path / "ocr.safetensors")
    profile = image_profile(network)
    floats = [name for name, (dtype, _) in network.parameters.items() if dtype == "F32"]
    other = rescaled(stored, floats[::3], tmp_path / "other.safetensors")

    _, engine = card.build(network, bound(network, stored), (profile,), **options)
    refitted, child = card.refit(engine, bound(network, other))

    assert refitted.changed == len(floats[::3])
    for one in (child, engine):
        found = card.verify(one)
        assert found.ok, found.detail
        assert found.tolerance["dtype"] == ("F16" if options else "F32")


@pytest.mark.parametrize(
    ("precision", "layout", "tied"),
    [("fp32", "plain", True), ("fp16", "plain", False), ("fp16", "packed", True), ("fp32", "packed", False)],
)
def test_a_gpt2_agrees_after_refits_of_everything_of_one_vector_and_of_the_embeddings(
    card: Card,
    tmp_path: Path,
    precision: str,
    layout: str,
    tied: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    network = gpt2(tmp_path, precision, tie_word_embeddings=tied)
    first, second = (weights_of(network, tmp_path, seed) for seed in (1, 2))
    bias, table = first | {BIAS: second[BIAS]}, first | {"wte.weight": second["wte.weight"]}
    _, engine = card.build(network, bound(network, first), (text(network),), refit_layout=layout)
    children = [card.refit(engine, bound(network, tensors)) for tensors in (second, bias, table)]

    for one in (engine, *(child for _, child in children)):
        found = card.verify(one)
        assert found.ok, found.detail
    assert [refitted.changed for refitted, _ in children] == [len(network.parameters), 1, 1]


def test_a_batch_of_left_padded_texts_gives_numbers_in_half_precision(card: Card, line: Line) -> None:
    inputs = {name: array.copy() for name, array in line.inputs.items()}
    inputs["attention_mask"][0, :9] = 0

    (logits,) = card.run(line.engine, inputs).values()

    assert np.isfinite(logits).all()


def test_any_shape_within_any_profile_runs(card: Card, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "net.onnx")
    weights = network.weights(1)
    small = between(network, {"batch": 1}, {"batch": 2}, {"batch": 4})
    large = between(network, {"batch": 32}, {"batch": 64}, {"batch": 64})
    _, engine = card.build(network, bound(network, checkpoint(tmp_path / "w.safetensors", weights)), (small, large))
    for batch in (1, 4, 33, 64, 2):
        inputs = {"x": np.random.default_rng(batch).standard_normal((batch, 8)).astype(np.float32)}
        np.testing.assert_allclose(
            card.run(engine, inputs)["y"], direct(network, weights, inputs)["y"], rtol=1e-4, atol=1e-5
        )
    with pytest.raises(BackendError, match="fit none of the engine's profiles"):
        card.run(engine, {"x": np.zeros((16, 8), np.float32)})

    report, shapes = str(tmp_path / "report.json"), {"x": (33, 8)}  # of the second profile
    found = card.engines.do(Benchmark(engine, iterations=3, warmup=1, report=report, shapes=shapes))
    assert isinstance(found, Benchmarked)
    assert found.layers
    assert card.verify(engine).ok  # in the first one


@HALF
@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"tf32": True}])
def test_an_engine_that_may_compute_with_fewer_bits_agrees_within_their_tolerance(
    card: Card, tmp_path: Path, options: dict[str, Any]
) -> None:
    network = perceptron(tmp_path / "net.onnx", width=256)
    first, second = (bound(network, weights_of(network, tmp_path, seed)) for seed in (1, 2))
    _, engine = card.build(network, first, (rows(network),), **options)
    _, child = card.refit(engine, second)
    for one in (child, engine):
        found = card.verify(one)
        assert found.ok, found.detail
        assert found.tolerance["dtype"] == "F16"


@pytest.mark.parametrize("dtype", ["F32", "F16", "I64", "I32", "BOOL", "F64", "I8", "U8"])
def test_inputs_and_outputs_keep_the_definitions_dtypes(card: Card, tmp_path: Path, dtype: str) -> None:
    network = elementwise(tmp_path / "net.onnx", dtype)
    sources = bound(network, checkpoint(tmp_path / "w.safetensors", network.weights(1)))
    if dtype == "I8" and not capabilities().strongly_typed:
        with pytest.raises(BackendError, match="takes I8 for scaled numbers"):
            card.build(network, sources)
        return
    _, engine = card.build(network, sources)
    values = np.array([[0, 1, 0, 5]], numpy_dtype(dtype))

    out = card.run(engine, {"x": values})

    assert out["y"].dtype == values.dtype
    np.testing.assert_array_equal(out["y"], values)


def test_integers_that_the_engine_cannot_hold_are_refused(card: Card, tmp_path: Path) -> None:
    network = elementwise(tmp_path / "net.onnx", "I64")
    _, engine = card.build(network, bound(network, checkpoint(tmp_path / "w.safetensors", network.weights(1))))
    with pytest.raises(BackendError, match="beyond int32"):
        card.run(engine, {"x": np.array([[0, 1, 2**40, 5]])})


def test_outputs_whose_size_depends_on_values_come_whole(card: Card, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["scaled"]),
        helper.make_node("NonZero", ["scaled"], ["where"]),
    ]
    network = network_of(
        tmp_path / "net.onnx",
        nodes,
        {"gain": ("F32", (1,))},
        (InputSpec("x", "F32", ("batch",)),),
        {"where": "I64"},
    )
    gain = checkpoint(tmp_path / "w.safetensors", {"gain": np.ones(1, np.float32)})
    profile = between(network, {"batch": 1}, {"batch": 4}, {"batch": 8})
    _, engine = card.build(network, bound(network, gain), (profile,))
    for values in ([0, 1, 0, 2], [0, 0], [3, 3, 3, 3, 3]):
        out = card.run(engine, {"x": np.array(values, np.float32)})
        np.testing.assert_array_equal(out["where"], [np.flatnonzero(values)])


def test_the_shape_of_an_input_comes_as_an_output(card: Card, tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "gain"], ["y"]), helper.make_node("Shape", ["x"], ["size"])]
    network = network_of(
        tmp_path / "net.onnx",
        nodes,
        {"gain": ("F32", (1,))},
        (InputSpec("x", "F32", ("batch", 3)),),
        {"y": "F32", "size": "I64"},
    )
    gain = checkpoint(tmp_path / "w.safetensors", {"gain": np.full(1, 2, np.float32)})
    profile = between(network, {"batch": 1}, {"batch": 4}, {"batch": 8})
    _, engine = card.build(network, bound(network, gain), (profile,))
    for batch in (1, 8, 2):
        out = card.run(engine, {"x": np.ones((batch, 3), np.float32)})
        np.testing.assert_array_equal(out["size"], [batch, 3])
        np.testing.assert_array_equal(out["y"], np.full((batch, 3), 2))


# What a refit changes


def test_weights_there_and_back_give_the_same_bits(card: Card, line: Line) -> None:
    before = card.run(line.engine, line.inputs)

    _, there = card.refit(line.engine, line.versions[1])
    elsewhere = card.run(there, line.inputs)
    _, back = card.refit(there, line.versions[0])

    assert not same(before, elsewhere)
    assert same(before, card.run(back, line.inputs))


def test_a_plan_made_at_once_one_made_later_and_none_are_the_same_engine(card: Card, line: Line) -> None:
    _, second, third = line.versions
    _, eager = card.refit(line.engine, second)
    refitted, lazy = card.refit(line.engine, second, lazily=True)
    assert (refitted.plan, refitted.plan_digest) == (None, None)
    resident = card.run(lazy, line.inputs)

    card.restart()
    loaded = card.run(lazy, line.inputs)
    card.restart()
    later = card.materialise(lazy)
    card.restart()

    assert same(resident, loaded)
    assert same(resident, card.run(eager, line.inputs))
    assert same(resident, card.run(later, line.inputs))
    for plan in (eager, later):  # both go on as any other
        card.restart()
        _, child = card.refit(plan, third)
        assert card.verify(child).ok


def test_a_normalisation_is_refitted_through_each_of_its_tensors(card: Card, tmp_path: Path) -> None:
    network = convolution(tmp_path / "net.onnx")
    first, second = (weights_of(network, tmp_path, seed) for seed in (1, 2))
    profile = {"image": Range(*IMAGE)}
    built, engine = card.build(network, bound(network, first), (profile,))
    for name in ("bn.scale", "bn.bias", "bn.mean", "bn.var", "conv.weight", "out.gain"):
        refitted, child = card.refit(engine, bound(network, first | {name: second[name]}))
        found = card.verify(child)
        assert found.ok, f"{name}: {found.detail}"
        assert refitted.changed == 1
    assert built.facts["fixed_parameters"] == []


def test_an_engine_built_without_refit_support_says_so(card: Card, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "net.onnx")
    first, second = (bound(network, weights_of(network, tmp_path, seed)) for seed in (1, 2))
    built, engine = card.build(network, first, (rows(network),), refit="none")
    assert not built.facts["refittable"]
    assert card.verify(engine).ok
    with pytest.raises(BackendError) as error:
        card.refit(engine, second)
    assert error.value.code == "not_refittable"


# What TensorRT does not check


@pytest.fixture(scope="session")
def loose(tmp_path_factory: pytest.TempPathFactory) -> TensorrtEngine:
    """An engine whose weight "0.weight" is F16 [8, 8]; built once, as nothing that is tried on it reaches it."""
    folder = tmp_path_factory.mktemp("loose")
    card, network = Card(folder), perceptron(folder / "net.onnx", "F16")
    _, engine = card.build(network, bound(network, weights_of(network, folder, 1)), (rows(network),))
    loaded = card.engines._loaded(engine)
    assert isinstance(loaded, TensorrtEngine)
    return loaded


@pytest.mark.parametrize(
    ("fault", "array"),
    [
        ("not \\[8, 8\\]", np.zeros((8, 4), np.float16)),
        ("not \\[8, 8\\]", np.zeros((63,), np.float16)),
        ("is float32, not float16", np.zeros((8, 8), np.float32)),
        ("not contiguous", np.asfortranarray(np.arange(64, dtype=np.float16).reshape(8, 8))),
    ],
    ids=["another shape", "an element too few", "another dtype", "transposed"],
)
def test_a_weight_that_does_not_fit_never_reaches_tensorrt(loose: TensorrtEngine, fault: str, array: Array) -> None:
    expected = Expected(np.dtype(np.float16), (8, 8))
    with pytest.raises(BackendError, match=fault) as error:
        refit(loose._engine, [("0.weight", array, expected)], loose._can, loose._log, NOTHING_KNOWN)
    assert error.value.code == "wrong_weights"


def test_a_name_that_the_engine_does_not_have_is_refused(loose: TensorrtEngine) -> None:
    array = np.zeros((8, 8), np.float16)
    with pytest.raises(BackendError, match="no weight nobody that could be replaced"):
        refit(loose._engine, [("nobody", array, Expected(array.dtype, (8, 8)))], loose._can, loose._log, NOTHING_KNOWN)


# What is left when something goes wrong


def test_a_refit_that_fails_half_way_leaves_its_parent_as_it_was(
    card: Card, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = card.run(line.engine, line.inputs)

    def failing(place: type[OnHost] | type[OnDevice]) -> Callable[[Any], bool]:
        refit = place.refit
        return lambda one: refit(one) and False  # by then the engine holds other weights

    with monkeypatch.context() as patch:
        for place in (OnHost, OnDevice):
            patch.setattr(place, "refit", failing(place))
        with pytest.raises(BackendError, match="could not refit"):
            card.refit(line.engine, line.versions[1])
    assert card.engines.residency.engines == 0  # whoever comes next loads it anew

    assert same(before, card.run(line.engine, line.inputs))


def test_engines_are_given_up_and_loaded_again_where_there_is_room_for_one(tmp_path: Path, line: Line) -> None:
    card = Card(tmp_path, resident_bytes=1)
    other = perceptron(tmp_path / "net.onnx")
    _, second = card.build(other, bound(other, weights_of(other, tmp_path, 1)), (rows(other),))
    outputs = [card.run(line.engine, line.inputs)]
    assert card.engines.residency.engines == 1
    assert card.verify(second).ok
    outputs.append(card.run(line.engine, line.inputs))
    assert same(*outputs)


def test_resident_engines_make_way_where_the_device_is_full(card: Card, broad: Line) -> None:
    twins = [replace(broad.engine, root_plan=f"sha256:{number}") for number in range(8)]
    before = card.run(broad.engine, broad.inputs)
    with DeviceBuffer(memory_info().free - 3 * BROAD_BYTES):
        for twin in twins:
            assert same(before, card.run(twin, broad.inputs))
        assert card.engines.residency.engines < len(twins)
    assert same(before, card.run(broad.engine, broad.inputs))


def test_a_device_without_memory_is_told_and_works_again_later(card: Card, broad: Line) -> None:
    before = card.run(broad.engine, broad.inputs)  # so that the libraries have their own share
    card.restart()
    gc.collect()
    with DeviceBuffer(memory_info().free - BROAD_BYTES // 2), pytest.raises(BackendError) as error:
        card.run(broad.engine, broad.inputs)
    assert error.value.code == "device_out_of_memory"
    assert "ENGINESMITH_RESIDENT_BYTES" in error.value.detail

    assert same(before, card.run(broad.engine, broad.inputs))


@pytest.fixture
def hosting(tmp_path: Path) -> Iterator[Hosting]:
    host = EngineHost("cuda:0", 8 * GIB, tmp_path / "scratch", Reach(writable=(tmp_path,)))
    yield Hosting(host, tmp_path)
    host.close()


def test_a_build_is_canceled_in_its_middle(hosting: Hosting, card: Card, tmp_path: Path) -> None:
    network = gpt2(tmp_path, "fp16", n_layer=12, n_embd=768, n_head=12)
    request = card.request(network, bound(network, weights_of(network, tmp_path, 1)), (text(network),))
    started = time.monotonic()

    def tick() -> None:
        if time.monotonic() - started > 5:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        hosting.host.call(request, on_message=hosting.messages.append, tick=tick)
    assert hosting.host.pid is None

    small = perceptron(tmp_path / "net.onnx")
    again = card.request(small, bound(small, weights_of(small, tmp_path, 1)), (rows(small),))
    assert hosting.call(again, Built).nbytes > 0


def test_an_engine_host_killed_in_a_refit_takes_nothing_with_it(hosting: Hosting, broad: Line, tmp_path: Path) -> None:
    before = hosting.run(broad.engine, broad.inputs)
    plan, phases = tmp_path / "refitted.plan", []

    def kill(message: Message) -> None:
        if isinstance(message, Progress):
            phases.append(message.phase)
            if message.phase == "refit" and hosting.host.pid:
                os.kill(hosting.host.pid, signal.SIGKILL)

    with pytest.raises(EngineHostDied):
        hosting.host.call(Refit(broad.engine, broad.versions[1], str(plan)), on_message=kill, tick=lambda: None)

    assert phases[-1] == "refit"  # whatever it said before it died has been heard: it did not get to the plan
    assert not plan.exists()
    assert same(before, hosting.run(broad.engine, broad.inputs))


@pytest.mark.parametrize(
    ("name", "plan_every"), [("line", 1), ("broad", 10)], ids=["many small weights", "few large weights"]
)
def test_two_hundred_refits_leave_memory_where_it_was(
    card: Card, request: pytest.FixtureRequest, name: str, plan_every: int
) -> None:
    line: Line = request.getfixturevalue(name)
    plan_bytes = 0

    def refits(count: int) -> tuple[int, int]:
        nonlocal plan_bytes
        for number in range(count):
            lazily = number % plan_every > 0
            refitted, _ = card.refit(line.engine, line.versions[(number + 1) % 2], lazily=lazily)
            if refitted.plan is not None:
                plan_bytes += refitted.nbytes
                Path(refitted.plan).unlink()
        gc.collect()
        return memory_info().free, memory_bytes("self", "RssAnon")

    device, host = refits(20)
    plan_bytes = 0
    device_after, host_after = refits(200)

    assert device - device_after < 16 * 2**20
    assert host_after - host < HOST_GROWTH
    assert plan_bytes > 2 * HOST_GROWTH  # so that plans that were kept would have shown


# What it costs


def test_a_benchmark_times_the_engine_its_layers_and_the_one_without_refit_support(card: Card, tmp_path: Path) -> None:
    network = attention(tmp_path / "net.onnx")
    _, engine = card.build(network, bound(network, weights_of(network, tmp_path, 1)), (text(network),))
    report = tmp_path / "report.json"
    found = card.engines.do(
        Benchmark(engine, iterations=20, warmup=2, report=str(report), against_not_refittable=True, layers=True)
    )

    assert isinstance(found, Benchmarked)
    assert 0 < found.engine.median <= found.engine.p99
    assert found.not_refittable is not None
    assert found.layers
    assert json.loads(report.read_text())["engine"]["inspector"]
