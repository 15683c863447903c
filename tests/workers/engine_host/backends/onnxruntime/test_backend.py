from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from app.bindings.transforms import Cast, Transpose
from app.definitions.parameter import InputSpec
from app.definitions.profiles import Range
from tests.workers.hosting import Hosting, direct
from tests.workers.networks import (
    Network,
    attention,
    bound,
    checkpoint,
    convolution,
    from_config,
    from_onnx,
    image_profile,
    network_of,
    perceptron,
    tensor_files,
)
from workers.channel.messages import BackendError, Ran, Run
from workers.engine_host.run_inputs import fixed_inputs
from workers.engine_host.tensors import MappedFiles

NETWORKS = {"perceptron": perceptron, "convolution": convolution, "attention": attention}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_built_with_other_weights_computes_the_definition(hosting: Hosting, tmp_path: Path, name: str) -> None:
    network = NETWORKS[name](tmp_path / "definition.onnx")
    a, b = network.weights(1), network.weights(2)
    sources_a = bound(network, checkpoint(tmp_path / "a.safetensors", a))
    sources_b = bound(network, checkpoint(tmp_path / "b.safetensors", b))
    built, _ = hosting.build(network, sources_a)
    inputs = fixed_inputs(network.inputs, ())

    outputs = hosting.run(network.engine(built, sources_b), inputs)

    for output, expected in direct(network, b, inputs).items():
        np.testing.assert_allclose(outputs[output], expected, rtol=1e-4, atol=1e-5)
    assert built.facts["optimization"] == "extended"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_holds_no_weights_and_does_not_depend_on_them(hosting: Hosting, tmp_path: Path, name: str) -> None:
    network = NETWORKS[name](tmp_path / "definition.onnx")
    plans = []
    for seed in (1, 2):
        sources = bound(network, checkpoint(tmp_path / f"{seed}.safetensors", network.weights(seed)))
        built, _ = hosting.build(network, sources)
        plans.append(Path(built.plan).read_bytes())

    assert plans[0] == plans[1]
    plan = onnx.load_from_string(plans[0])
    declared = {one.name for one in plan.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
    assert declared == set(network.parameters)
    assert not [one.name for one in plan.graph.initializer if one.name in network.parameters and one.raw_data]


@pytest.mark.parametrize("name", ["ch_ppocr_mobile_v2.0_cls_infer", "ch_PP-OCRv4_det_infer", "ch_PP-OCRv4_rec_infer"])
def test_published_networks_build_and_agree_with_their_definitions(hosting: Hosting, tmp_path: Path, name: str) -> None:
    spec = find_spec("rapidocr_onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    network = from_onnx(Path(spec.origin).parent / "models" / f"{name}.onnx", tmp_path / "definition.onnx")
    tensors = tensor_files(tmp_path / "definition.safetensors")

    built, engine = hosting.build(network, bound(network, tensors), profiles=(image_profile(network),))

    assert built.facts["optimization"] == "extended"
    assert hosting.verify(engine).ok
    name, (_, shape) = next(iter(network.parameters.items()))
    other = checkpoint(tmp_path / "other.safetensors", {name: np.full(shape, 0.25, np.float32)})
    refitted, child = hosting.refit(network, engine, bound(network, tensors | other))
    assert refitted.changed == 1
    assert hosting.verify(child).ok


def test_minilm_builds_refits_one_tensor_and_gives_the_checkpoint_its_own_outputs(
    hosting: Hosting, tmp_path: Path, minilm: Path
) -> None:
    network = from_config(minilm, tmp_path / "definition.onnx")
    tensors = tensor_files(minilm / "model.safetensors")
    built, engine = hosting.build(network, bound(network, tensors))
    name = "encoder.layer.3.output.dense.weight"
    changed = MappedFiles().view(tensors[name]) * np.float32(1.1)
    others = checkpoint(tmp_path / "changed.safetensors", {name: changed})

    refitted, child = hosting.refit(network, engine, bound(network, tensors | others))

    operators = built.facts["operators"]
    assert (operators["Gemm"], operators["FusedGemm"], operators["Gelu"]) == (36, 1, 6)
    assert built.nbytes < 100_000
    assert refitted.changed == 1
    inputs = fixed_inputs(network.inputs, ())
    for one, weights in ((engine, tensors), (child, tensors | others)):
        values = {parameter: MappedFiles().view(weights[parameter]) for parameter in network.parameters}
        outputs = hosting.run(one, inputs)
        for output, expected in direct(network, values, inputs).items():
            np.testing.assert_allclose(outputs[output], expected, rtol=1e-3, atol=1e-5)
        assert hosting.verify(one).ok


def test_extended_optimisation_fuses_around_parameters(hosting: Hosting, tmp_path: Path) -> None:
    network = attention(tmp_path / "definition.onnx")
    sources = bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1)))

    built, _ = hosting.build(network, sources)

    operators = built.facts["operators"]
    assert operators["FusedMatMul"] == 5  # the four transposed weights and the scaled scores
    assert {"BiasGelu", "Gelu"} & operators.keys()
    assert operators["Transpose"] == 4  # those of the heads; none of a weight is left


def test_a_refit_counts_what_changed_and_verifies(hosting: Hosting, tmp_path: Path) -> None:
    network = attention(tmp_path / "definition.onnx")
    a = network.weights(1)
    tensors = checkpoint(tmp_path / "a.safetensors", a)
    _, engine = hosting.build(network, bound(network, tensors))
    changed = checkpoint(tmp_path / "b.safetensors", {"o.weight": a["o.weight"] + 1})

    refitted, child = hosting.refit(network, engine, bound(network, tensors | changed))

    assert (refitted.changed, refitted.warm) == (1, True)
    assert (refitted.plan, refitted.plan_digest) == (engine.plan, engine.root_plan)
    assert hosting.verify(child).ok


def test_a_refit_there_and_back_gives_identical_outputs(hosting: Hosting, tmp_path: Path) -> None:
    network = convolution(tmp_path / "definition.onnx")
    a = bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1)))
    b = bound(network, checkpoint(tmp_path / "b.safetensors", network.weights(2)))
    inputs = fixed_inputs(network.inputs, ())
    _, first = hosting.build(network, a)
    before = hosting.run(first, inputs)["y"].copy()

    _, second = hosting.refit(network, first, b)
    between = hosting.run(second, inputs)["y"].copy()
    hosting.host.close()  # nothing is resident any more: the way back is a cold refit
    refitted, third = hosting.refit(network, second, a)

    assert not refitted.warm
    assert not np.array_equal(before, between)
    np.testing.assert_array_equal(hosting.run(third, inputs)["y"], before)


def test_a_failed_refit_leaves_the_parent_as_it_was(hosting: Hosting, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "definition.onnx")
    a = bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1)))
    _, parent = hosting.build(network, a)
    inputs = fixed_inputs(network.inputs, ())
    before = hosting.run(parent, inputs)["y"].copy()
    short = tmp_path / "short.safetensors"
    b = bound(network, checkpoint(short, network.weights(2)))
    short.write_bytes(short.read_bytes()[:-8])

    with pytest.raises(BackendError) as caught:
        hosting.refit(network, parent, b)

    assert caught.value.code == "weights_unreadable"
    np.testing.assert_array_equal(hosting.run(parent, inputs)["y"], before)
    assert hosting.host.describe().resident.engines == 1


def test_missing_and_misshaped_weights_are_all_named(hosting: Hosting, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "definition.onnx")
    weights = network.weights(1)
    good = bound(network, checkpoint(tmp_path / "a.safetensors", weights))
    _, parent = hosting.build(network, good)

    with pytest.raises(BackendError) as missing:
        hosting.refit(network, parent, good[2:])
    assert missing.value.code == "missing_weights"
    assert "0.bias; 0.weight" in missing.value.detail

    wider = Network(
        network.path, network.inputs, network.parameters | {"0.bias": ("F32", (4,)), "1.bias": ("F16", (8,))}
    )
    wrong = bound(wider, checkpoint(tmp_path / "wrong.safetensors", wider.weights(1)))
    with pytest.raises(BackendError) as misshaped:
        hosting.refit(network, parent, wrong)
    assert misshaped.value.code == "wrong_weights"
    assert "0.bias is F32[8], its weights are F32[4]" in misshaped.value.detail
    assert "1.bias is F32[8], its weights are F16[8]" in misshaped.value.detail


def test_transforms_are_applied_and_made_once_per_content(hosting: Hosting, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "definition.onnx")
    weights = network.weights(1)
    stored = weights | {
        "0.weight": weights["0.weight"].T.astype(np.float16),
        "1.bias": weights["1.bias"].astype(np.float64),
    }
    transforms = {"0.weight": (Transpose((1, 0)), Cast("F32")), "1.bias": (Cast("F32"),)}
    tensors = checkpoint(tmp_path / "a.safetensors", stored)
    inputs = fixed_inputs(network.inputs, ())
    _, engine = hosting.build(network, bound(network, tensors, transforms))

    outputs = hosting.run(engine, inputs)
    changed = checkpoint(tmp_path / "b.safetensors", {"1.bias": stored["1.bias"] + 1})
    hosting.refit(network, engine, bound(network, tensors | changed, transforms))

    rounded = weights | {"0.weight": stored["0.weight"].T.astype(np.float32)}
    np.testing.assert_allclose(outputs["y"], direct(network, rounded, inputs)["y"], rtol=1e-5, atol=1e-6)
    made = sorted(path.stat().st_size for path in (tmp_path / "scratch").rglob("*.bin"))
    assert made == [8 * 4, 8 * 8 * 4 + 8 * 4]  # the refit computed the changed bias and nothing else


def test_bytes_that_are_not_aligned_to_their_elements_still_load(hosting: Hosting, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "definition.onnx")
    weights = network.weights(1)
    tensors = checkpoint(tmp_path / "a.safetensors", weights)
    shifted = tmp_path / "shifted.bin"
    shifted.write_bytes(b"x" + (tmp_path / "a.safetensors").read_bytes())
    moved = {name: replace(one, path=str(shifted), offset=one.offset + 1) for name, one in tensors.items()}
    inputs = fixed_inputs(network.inputs, ())

    _, engine = hosting.build(network, bound(network, moved))

    np.testing.assert_allclose(hosting.run(engine, inputs)["y"], direct(network, weights, inputs)["y"], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["F16", "F64"])
def test_inputs_and_outputs_keep_their_dtype(hosting: Hosting, tmp_path: Path, dtype: str) -> None:
    network = perceptron(tmp_path / "definition.onnx", dtype)
    weights = network.weights(1)
    _, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", weights)))
    inputs = fixed_inputs(network.inputs, ())

    outputs = hosting.run(engine, inputs)

    assert outputs["y"].dtype == inputs["x"].dtype
    np.testing.assert_allclose(outputs["y"], direct(network, weights, inputs)["y"], rtol=1e-2, atol=1e-3)
    assert hosting.verify(engine).tolerance["dtype"] == dtype


def identities(path: Path) -> Network:
    """Hands inputs through; onnxruntime does so with dtypes it computes nothing in."""
    dtypes = ("BF16", "BOOL", "I32", "U8", "F64")
    nodes = [onnx.helper.make_node("Identity", [f"in_{dtype}"], [f"out_{dtype}"]) for dtype in dtypes]
    nodes.append(onnx.helper.make_node("Cast", ["table"], ["out_table"], to=onnx.TensorProto.FLOAT))
    inputs = tuple(InputSpec(f"in_{dtype}", dtype, ("n",)) for dtype in dtypes)
    outputs = {f"out_{dtype}": dtype for dtype in dtypes} | {"out_table": "F32"}
    return network_of(path, nodes, {"table": ("BF16", (3,))}, inputs, outputs)


def test_every_dtype_travels_through_files_and_sessions(hosting: Hosting, tmp_path: Path) -> None:
    network = identities(tmp_path / "definition.onnx")
    weights = network.weights(1)
    _, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", weights)))
    inputs: dict[str, Any] = fixed_inputs(network.inputs, ())

    outputs = hosting.run(engine, inputs)

    for name, given in inputs.items():
        assert outputs[name.replace("in_", "out_")].dtype == given.dtype
        assert outputs[name.replace("in_", "out_")].tobytes() == given.tobytes()
    np.testing.assert_array_equal(outputs["out_table"], weights["table"].astype(np.float32))
    assert hosting.verify(engine).ok


def test_what_onnxruntime_cannot_compute_says_what_to_do(hosting: Hosting, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "definition.onnx", "BF16")
    sources = bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1)))

    with pytest.raises(BackendError) as caught:
        hosting.build(network, sources)

    assert caught.value.code == "not_implemented"
    assert "precision F32" in caught.value.detail
    assert any("trying less" in line for line in hosting.log)


def test_an_option_names_the_level_and_others_are_refused(hosting: Hosting, tmp_path: Path) -> None:
    network = attention(tmp_path / "definition.onnx")
    sources = bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1)))

    built, engine = hosting.build(network, sources, options={"optimization": "none"})

    assert built.facts["optimization"] == "none"
    assert "FusedMatMul" not in built.facts["operators"]
    assert hosting.verify(engine).ok
    for options in ({"optimization": "all"}, {"optimisation": "none"}):
        with pytest.raises(BackendError, match="bad_option"):
            hosting.build(network, sources, options=options)


def test_every_fault_of_the_inputs_is_named(hosting: Hosting, tmp_path: Path) -> None:
    network = attention(tmp_path / "definition.onnx")
    sources = bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1)))
    profile = {"ids": Range((1, 4), (2, 8), (4, 16))}
    _, engine = hosting.build(network, sources, profiles=(profile,))

    def refusal(inputs: dict[str, Any]) -> str:
        with pytest.raises(BackendError) as caught:
            hosting.run(engine, inputs)
        assert caught.value.code == "bad_inputs"
        return caught.value.detail

    both = refusal({"idz": np.zeros(1, np.int32)})
    assert "input ids I64[batch, sequence] is missing" in both
    assert "has no input idz" in both
    dtype = refusal({"ids": np.zeros((2, 8, 1), np.int32)})
    assert "ids is I32, not I64" in dtype
    assert "has 3 dimensions, not 2" in dtype
    assert "holds 32; its values must lie in [-32, 32)" in refusal({"ids": np.full((2, 8), 32)})
    assert "holds -33" in refusal({"ids": np.full((2, 8), -33)})
    assert "[2, 17] is not between [1, 4] and [4, 16]" in refusal({"ids": np.zeros((2, 17), np.int64)})
    assert hosting.run(engine, {"ids": np.zeros((4, 16), np.int64)})["y"].shape == (4, 16, 16)


def test_a_negative_index_counts_from_the_end(hosting: Hosting, tmp_path: Path) -> None:
    network = attention(tmp_path / "definition.onnx")
    sources = bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1)))
    _, engine = hosting.build(network, sources)
    last, first = (hosting.run(engine, {"ids": np.full((1, 2), index)})["y"] for index in (31, 0))
    np.testing.assert_array_equal(hosting.run(engine, {"ids": np.full((1, 2), -1)})["y"], last)
    np.testing.assert_array_equal(hosting.run(engine, {"ids": np.full((1, 2), -32)})["y"], first)


def test_inputs_that_are_no_safetensors_file_are_refused(hosting: Hosting, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "definition.onnx")
    sources = bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1)))
    _, engine = hosting.build(network, sources)
    for content in (b"", b"not a safetensors file, whatever its name says"):
        (tmp_path / "in.safetensors").write_bytes(content)
        with pytest.raises(BackendError, match="bad_inputs"):
            hosting.call(Run(engine, str(tmp_path / "in.safetensors"), str(tmp_path / "out")), Ran)
    assert not (tmp_path / "out").exists()
