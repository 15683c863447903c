"""Real definitions compiled by the real TensorRT-RTX, which needs no GPU for it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from app.bindings.transforms import Cast
from app.definitions.parameter import InputSpec
from app.definitions.profiles import Range
from tests.workers.engine_host.backends.tensorrt.compiled_graphs import from_family, ocr_networks
from tests.workers.engine_host.backends.tensorrt.cpu_compilation import Workshop, needs_rtx, rows
from tests.workers.networks import Network, bound, checkpoint, from_onnx, network_of, perceptron, tensor_files
from workers.channel.messages import BackendError
from workers.engine_host.backends.tensorrt.capabilities import capabilities
from workers.engine_host.backends.tensorrt.library import trt

pytestmark = needs_rtx

GPT2 = {"model_type": "gpt2", "vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 80}
PACKED_SLOTS = 11


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "net.onnx")


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("fp16", 2)])
def test_minilm_becomes_a_plan_that_holds_its_weights(
    workshop: Workshop, minilm: Path, tmp_path: Path, precision: str, width: int
) -> None:
    config = json.loads((minilm / "config.json").read_text())
    network = from_family(config, precision, tmp_path / "definition.onnx")
    transforms = {name: (Cast("F16"),) for name in network.parameters} if precision == "fp16" else {}
    sources = bound(network, tensor_files(minilm / "model.safetensors"), transforms)
    profile = rows(network, 1, 4, 16)

    built = workshop.carry_out(replace(workshop.request(network, [profile]), parameters=sources))

    ids = ("INT64", (-1, -1))
    assert workshop.seen["inputs"] == {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}
    outputs = {"last_hidden_state": ("FLOAT", (-1, -1, 384)), "pooler_output": ("FLOAT", (-1, 384))}
    assert workshop.seen["outputs"] == outputs  # the definition's own, whatever it computes in
    assert workshop.seen["profiles"] == [profile]
    assert Path(built.plan).stat().st_size == built.nbytes
    assert built.nbytes > 22_700_000 * width
    assert b"last_hidden_state" in Path(built.plan).read_bytes()


@pytest.mark.parametrize("file", ocr_networks(), ids=lambda file: file.stem)
def test_published_convolutional_networks_become_plans(workshop: Workshop, tmp_path: Path, file: Path) -> None:
    network = from_onnx(file, tmp_path / "definition.onnx")
    (image,) = network.inputs
    low, best, high = (
        tuple(dim if isinstance(dim, int) else sizes[axis] for axis, dim in enumerate(image.shape))
        for sizes in ((1, 3, 32, 64), (1, 3, 64, 192), (2, 3, 64, 320))
    )
    built = workshop.build(
        network, [{image.name: Range(low, best, high)}], tensor_files(tmp_path / "definition.safetensors")
    )

    assert built.nbytes > 1_000_000
    assert workshop.seen["inputs"][image.name][0] == "FLOAT"
    assert workshop.seen["profiles"] == [{image.name: Range(low, best, high)}]


@pytest.mark.parametrize(("layout", "slots"), [("plain", 28), ("packed", PACKED_SLOTS)])
def test_gpt2_becomes_a_plan_in_either_layout(workshop: Workshop, tmp_path: Path, layout: str, slots: int) -> None:
    network = from_family(GPT2, "fp16", tmp_path / "definition.onnx")

    built = workshop.build(network, [rows(network, 1, 4, 16)], refit_layout=layout)

    assert (built.facts["slots"], built.facts["refit_layout"]) == (slots, layout)
    assert workshop.seen["outputs"] == {"logits": ("FLOAT", (-1, -1, 50))}


@pytest.mark.parametrize(("dtype", "engine"), [("F32", "FLOAT"), ("F16", "HALF"), ("BF16", "BF16"), ("F64", "FLOAT")])
def test_tensors_have_the_definitions_own_types(workshop: Workshop, tmp_path: Path, dtype: str, engine: str) -> None:
    network = perceptron(tmp_path / "net.onnx", dtype)
    workshop.build(network, [rows(network)])
    assert workshop.seen["flags"] == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert workshop.seen["outputs"] == {"y": (engine, (-1, 8))}


def test_every_profile_is_compiled_for(workshop: Workshop, network: Network) -> None:
    profiles = [rows(network, 1, 1, 1), rows(network, 2, 8, 16), rows(network, 32, 64, 64)]
    workshop.build(network, profiles)
    assert workshop.seen["profiles"] == profiles


def test_a_network_without_dynamic_dimensions_needs_no_profile(workshop: Workshop, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    network = network_of(
        tmp_path / "net.onnx", nodes, {"w": ("F32", (8, 8))}, (InputSpec("x", "F32", (2, 8)),), {"y": "F32"}
    )
    assert workshop.build(network).nbytes > 0
    assert workshop.seen["inputs"] == {"x": ("FLOAT", (2, 8))}


# Options


def test_without_options_the_builder_has_the_defaults(workshop: Workshop, network: Network) -> None:
    workshop.build(network, [rows(network)])
    seen = workshop.seen
    assert seen["set"] == set()
    assert (seen["optimization_level"], seen["profiling_verbosity"]) == (3, "LAYER_NAMES_ONLY")
    assert seen["targets"] == ["SM80"]
    assert seen["tactics"] == {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"}


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"optimization_level": 0}, {"optimization_level": 0}),
        ({"optimization_level": 5.0}, {"optimization_level": 5}),
        ({"profiling_verbosity": "detailed"}, {"profiling_verbosity": "DETAILED"}),
        ({"profiling_verbosity": "none"}, {"profiling_verbosity": "NONE"}),
        ({"tf32": True}, {"set": {"TF32"}}),
        ({"workspace_bytes": 1 << 28}, {"workspace": 1 << 28}),
        ({"weight_streaming_budget": 0}, {"set": {"WEIGHT_STREAMING"}}),
        ({"tactic_sources": ["jit_convolutions"]}, {"tactics": {"JIT_CONVOLUTIONS"}}),
        ({"tactic_sources": []}, {"tactics": set()}),
        ({"hardware_compatibility": "none"}, {"set": set()}),
    ],
    ids=lambda value: json.dumps(value, default=sorted),
)
def test_an_option_reaches_the_builder(
    workshop: Workshop, network: Network, options: Mapping[str, Any], seen: Mapping[str, Any]
) -> None:
    workshop.build(network, [rows(network)], **options)
    assert {what: workshop.seen[what] for what in seen} == seen


@pytest.mark.parametrize("target", capabilities().targets)
def test_a_plan_is_for_the_compute_capability_asked_for(workshop: Workshop, tmp_path: Path, target: str) -> None:
    network = perceptron(tmp_path / "net.onnx", "F16")
    built = workshop.build(network, [rows(network)], compute_capability=target)
    assert workshop.seen["targets"] == [target]
    assert built.platform == f"{trt.__version__}/{target}"


def test_room_that_does_not_suffice_is_told_in_tensorrts_words(workshop: Workshop, network: Network) -> None:
    with pytest.raises(BackendError, match="workspace") as error:
        workshop.build(network, [rows(network)], workspace_bytes=1 << 20)
    assert error.value.code == "build_failed"


# Refusals


def test_dynamic_inputs_without_profiles_are_named(workshop: Workshop, network: Network) -> None:
    with pytest.raises(BackendError, match="The inputs x have dynamic dimensions") as error:
        workshop.build(network)
    assert error.value.code == "profiles_required"
    assert '{"min": [1, 1]' in error.value.detail


def test_a_profile_that_tensorrt_refuses_is_told(workshop: Workshop, network: Network) -> None:
    with pytest.raises(BackendError, match="MIN<=OPT<=MAX") as error:
        workshop.build(network, [rows(network, 4, 2, 1)])
    assert error.value.code == "build_failed"


@pytest.mark.parametrize(
    ("operator", "domain"), [("Det", ""), ("Blorp", "my.domain")], ids=["one it lacks", "one nobody knows"]
)
def test_an_operator_that_tensorrt_does_not_know_is_named_with_its_node(
    workshop: Workshop, tmp_path: Path, operator: str, domain: str
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node(operator, ["m"], ["y"], name="the culprit", domain=domain),
    ]
    network = network_of(
        tmp_path / "net.onnx", nodes, {"w": ("F32", (8, 8))}, (InputSpec("x", "F32", (8, 8)),), {"y": "F32"}
    )
    with pytest.raises(BackendError, match=f"{operator} 'the culprit'") as error:
        workshop.build(network)
    assert error.value.code == "graph_refused"
    assert "another backend" in error.value.detail
    assert not Path(workshop.request(network).plan).exists()


def test_weights_that_are_missing_or_do_not_fit_never_reach_the_parser(workshop: Workshop, network: Network) -> None:
    weights = network.weights(1)
    tensors = checkpoint(workshop.folder / "w.safetensors", weights | {"0.bias": weights["0.bias"][:4]})
    request = workshop.request(network, [rows(network)], tensors)
    with pytest.raises(BackendError) as wrong:
        workshop.carry_out(request)
    with pytest.raises(BackendError) as missing:
        workshop.carry_out(replace(request, parameters=request.parameters[:1]))
    assert [wrong.value.code, missing.value.code] == ["transform_failed", "missing_weights"]
    assert workshop.seen == {}


# What is told meanwhile


def test_progress_begins_at_nothing_and_ends_with_everything_done(workshop: Workshop, network: Network) -> None:
    workshop.build(network, [rows(network)])
    compiling = [one for one in workshop.progress if one.phase == "compile" and one.total]
    assert compiling[0].step == 0
    assert compiling[-1].step == compiling[-1].total
    assert [one.step for one in compiling] == sorted(one.step for one in compiling)
    assert {one.phase for one in workshop.progress} == {"normalise", "transform", "compile", "write"}


def test_what_tensorrt_says_is_passed_on_with_its_level(workshop: Workshop, tmp_path: Path) -> None:
    network = from_family(GPT2, "fp16", tmp_path / "definition.onnx")
    workshop.build(network, [rows(network, 1, 4, 16)])
    assert any(line.startswith("Opset version") for line in workshop.log("info"))
    assert workshop.log("warning")
    assert not workshop.log("error")


def test_errors_of_one_build_are_not_the_reason_of_the_next(workshop: Workshop, network: Network) -> None:
    with pytest.raises(BackendError, match="workspace"):
        workshop.build(network, [rows(network)], workspace_bytes=1 << 20)
    with pytest.raises(BackendError) as error:
        workshop.build(network, [rows(network, 4, 2, 1)])
    assert "workspace" not in error.value.detail


# Timing caches


def test_tensorrt_rtx_times_nothing_and_stored_timings_are_no_hindrance(
    workshop: Workshop, network: Network, tmp_path: Path
) -> None:
    (tmp_path / "stored").write_bytes(b"anything")
    request = workshop.request(network, [rows(network)])
    built = workshop.carry_out(replace(request, timing_cache=str(tmp_path / "stored")))
    assert built.timing_cache is None
    assert not workshop.log("warning", "error")
