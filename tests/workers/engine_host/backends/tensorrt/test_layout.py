"""Layouts: the graph that is compiled computes what the definition does, and only what changed is set again."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper

from app.definitions.parameter import InputSpec
from app.weights.dtypes import numpy_dtype
from tests.workers.engine_host.backends.tensorrt.compiled_graphs import (
    definition_of,
    from_family,
    ocr_networks,
    operators,
    outputs_of_definition,
    outputs_of_layout,
    stored,
)
from tests.workers.networks import Network, attention, convolution, from_onnx, network_of
from workers.channel.messages import BackendError
from workers.engine_host import onnx_graph
from workers.engine_host.backends.tensorrt.layout import LAYOUTS, Layout, changed_slots, lay_out, slot_value
from workers.engine_host.backends.tensorrt.slots import PackedSlot
from workers.engine_host.tensors import MappedFiles, StoredValue, write_tensors

TOLERANCES = {"F64": 1e-12, "F32": 1e-5, "F16": 1e-2}
BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 80}
Parameters = dict[str, tuple[str, tuple[int, ...]]]


def normalization(source: str, target: str, prefix: str = "bn", **attributes: Any) -> NodeProto:  # noqa: ANN401 - ONNX attributes
    four = [f"{prefix}.{part}" for part in ("scale", "bias", "mean", "var")]
    return helper.make_node("BatchNormalization", [source, *four], [target], **attributes)


def normalized(channels: int, dtype: str = "F32", prefix: str = "bn") -> Parameters:
    return {f"{prefix}.{part}": (dtype, (channels,)) for part in ("scale", "bias", "mean", "var")}


def image_network(path: Path, nodes: list[NodeProto], parameters: Parameters, dtype: str = "F32") -> Network:
    image = InputSpec("x", dtype, ("batch", 4, "height", "width"))
    return network_of(path, nodes, parameters, (image,), {"y": dtype})


def assert_same_outputs(network: Network, layout: Layout, values: Mapping[str, StoredValue], within: float) -> None:
    wanted, got = outputs_of_definition(network, values), outputs_of_layout(network, layout, values)
    assert wanted.keys() == got.keys()
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype
        assert np.isfinite(array.astype(np.float64)).all()
        np.testing.assert_allclose(got[name].astype(np.float64), array.astype(np.float64), rtol=within, atol=within)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("config", [BERT, GPT2], ids=["bert", "gpt2"])
def test_transformers_compute_the_same_in_every_layout(
    config: dict[str, Any], precision: str, layout: str, tmp_path: Path
) -> None:
    network = from_family(config, precision, tmp_path / "graph.onnx")
    laid_out = lay_out(definition_of(network), layout)

    # Nothing is computed but moved; onnxruntime widens F16 at other places of another graph, so it rounds elsewhere.
    assert_same_outputs(network, laid_out, stored(network), within=0 if precision == "fp32" else 2e-2)
    assert (len(laid_out.slots) < len(network.parameters)) == (layout != "plain")
    assert laid_out.readers.keys() == network.parameters.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("file", ocr_networks(), ids=lambda file: file.stem)
def test_convolutional_networks_compute_the_same_without_batch_normalization(
    file: Path, layout: str, tmp_path: Path
) -> None:
    network = from_onnx(file, tmp_path / "graph.onnx")
    laid_out = lay_out(definition_of(network), layout)

    assert_same_outputs(network, laid_out, stored(network), within=1e-5)
    assert "BatchNormalization" in onnx_graph.operators(definition_of(network).graph)
    assert "BatchNormalization" not in operators(laid_out)
    assert laid_out.readers.keys() == network.parameters.keys()


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("bias", ["b", None])
@pytest.mark.parametrize(
    ("operator", "groups", "shape"),
    [
        ("Conv", 1, (6, 4, 3, 3)),
        ("Conv", 2, (6, 2, 3, 3)),
        ("Conv", 4, (4, 1, 3, 3)),
        ("ConvTranspose", 1, (4, 6, 2, 2)),
        ("ConvTranspose", 2, (4, 3, 2, 2)),
    ],
)
def test_normalization_behind_a_convolution_goes_into_its_weight_and_bias(
    operator: str, groups: int, shape: tuple[int, ...], bias: str | None, dtype: str, tmp_path: Path
) -> None:
    channels = shape[0] if operator == "Conv" else shape[1] * groups
    inputs = ["x", "w", bias] if bias else ["x", "w"]
    nodes = [helper.make_node(operator, inputs, ["c"], group=groups), normalization("c", "y", epsilon=1e-3)]
    parameters: Parameters = {"w": (dtype, shape), **normalized(channels, dtype)}
    if bias:
        parameters[bias] = (dtype, (channels,))
    network = image_network(tmp_path / "graph.onnx", nodes, parameters, dtype)
    laid_out = lay_out(definition_of(network))

    assert operators(laid_out) == {operator: 1}
    assert [(slot.dtype, slot.shape) for slot in laid_out.slots] == [(dtype, shape), (dtype, (channels,))]
    assert_same_outputs(network, laid_out, stored(network), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", ["F64", "F32"])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (1, 5)])
def test_normalization_behind_a_gemm_goes_into_its_weight_and_bias(
    bias: tuple[int, ...] | None, transposed: int, dtype: str, tmp_path: Path
) -> None:
    parameters: Parameters = {"w": (dtype, (5, 4) if transposed else (4, 5)), **normalized(5, dtype)}
    if bias:
        parameters["b"] = (dtype, bias)
    gemm = helper.make_node("Gemm", ["x", "w", "b"] if bias else ["x", "w"], ["g"], transB=transposed, alpha=0.5)
    rows = InputSpec("x", dtype, ("rows", 4))
    nodes = [gemm, normalization("g", "y")]
    network = network_of(tmp_path / "graph.onnx", nodes, parameters, (rows,), {"y": dtype})
    laid_out = lay_out(definition_of(network))

    assert operators(laid_out) == {"Gemm": 1}
    assert_same_outputs(network, laid_out, stored(network), TOLERANCES[dtype])


def scaled_gemm() -> tuple[list[NodeProto], Parameters]:
    gemm = helper.make_node("Gemm", ["flat", "w", "b"], ["g"], beta=0.5)
    nodes = [helper.make_node("ReduceMean", ["x"], ["flat"], axes=[2, 3], keepdims=0), gemm, normalization("g", "y")]
    return nodes, {"w": ("F32", (4, 5)), "b": ("F32", (5,)), **normalized(5)}


def shared_weight() -> tuple[list[NodeProto], Parameters]:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        normalization("c", "n"),
        helper.make_node("Conv", ["n", "w"], ["y"]),
    ]
    return nodes, {"w": ("F32", (4, 4, 1, 1)), **normalized(4)}


def shared_output() -> tuple[list[NodeProto], Parameters]:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        normalization("c", "n"),
        helper.make_node("Add", ["n", "c"], ["y"]),
    ]
    return nodes, {"w": ("F32", (4, 4, 1, 1)), **normalized(4)}


def behind_another() -> tuple[list[NodeProto], Parameters]:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        normalization("c", "n"),
        normalization("n", "y", "second"),
    ]
    return nodes, {"w": ("F32", (4, 4, 1, 1)), **normalized(4), **normalized(4, prefix="second")}


def alone() -> tuple[list[NodeProto], Parameters]:
    return [helper.make_node("Relu", ["x"], ["r"]), normalization("r", "y")], normalized(4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("made", [alone, behind_another, scaled_gemm, shared_output, shared_weight])
def test_normalization_elsewhere_becomes_a_scale_and_a_shift(
    made: Callable[[], tuple[list[NodeProto], Parameters]], layout: str, tmp_path: Path
) -> None:
    network = image_network(tmp_path / "graph.onnx", *made())
    laid_out = lay_out(definition_of(network), layout)

    assert "BatchNormalization" not in operators(laid_out)
    assert operators(laid_out)["Mul"] == 1
    assert_same_outputs(network, laid_out, stored(network), 1e-5)


def test_two_normalizations_of_the_same_tensors_have_slots_of_their_own(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        normalization("c", "n"),
        helper.make_node("Relu", ["n"], ["r"]),
        normalization("r", "y"),
    ]
    network = image_network(tmp_path / "graph.onnx", nodes, {"w": ("F32", (4, 4, 1, 1)), **normalized(4)})
    laid_out = lay_out(definition_of(network))

    assert len({slot.name for slot in laid_out.slots}) == len(laid_out.slots) == 4
    assert_same_outputs(network, laid_out, stored(network), 1e-5)


def test_a_new_name_is_never_one_the_graph_has(tmp_path: Path) -> None:
    nodes = [normalization("x", "y.scale"), helper.make_node("Mul", ["y.scale", "y.scale.scale"], ["y"])]
    network = image_network(tmp_path / "graph.onnx", nodes, {"y.scale.scale": ("F32", (4, 1, 1)), **normalized(4)})
    laid_out = lay_out(definition_of(network))

    assert [slot.name for slot in laid_out.slots] == ["y.scale.scale", "y.scale.scale'", "y.scale.shift"]
    assert_same_outputs(network, laid_out, stored(network), 1e-5)


def test_training_normalization_is_left_as_it_is(tmp_path: Path) -> None:
    network = image_network(tmp_path / "graph.onnx", [normalization("x", "y", training_mode=1)], normalized(4))
    laid_out = lay_out(definition_of(network))

    assert operators(laid_out) == {"BatchNormalization": 1}
    assert not any(slot.is_computed for slot in laid_out.slots)


def test_normalization_of_a_value_of_unknown_rank_is_left_as_it_is(tmp_path: Path) -> None:
    inputs = InputSpec("x", "F32", ("batch", 4, "length")), InputSpec("shape", "I64", ("rank",))
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["r"]), normalization("r", "y")]
    network = network_of(tmp_path / "graph.onnx", nodes, normalized(4), inputs, {"y": "F32"})

    assert operators(lay_out(definition_of(network))) == {"BatchNormalization": 1, "Reshape": 1}


def test_a_scale_has_the_dtype_of_what_it_scales(tmp_path: Path) -> None:
    nodes = [normalization("x", "y")]
    network = image_network(tmp_path / "graph.onnx", nodes, normalized(4, "F32"), "F16")
    laid_out, values = lay_out(definition_of(network)), stored(network)

    assert [(slot.dtype, slot.shape) for slot in laid_out.slots] == [("F16", (4, 1, 1))] * 2
    assert all(slot_value(slot, values, MappedFiles()).dtype == np.float16 for slot in laid_out.slots)


def test_a_negative_variance_gives_values_that_are_not_finite_and_no_warning(tmp_path: Path) -> None:
    network = convolution(tmp_path / "graph.onnx")
    weights = network.weights(1) | {"bn.var": np.full(4, -1, np.float32)}
    write_tensors(str(tmp_path / "graph.safetensors"), weights)
    (folded,) = [slot for slot in lay_out(definition_of(network)).slots if slot.name == "n.weight"]

    assert np.isnan(slot_value(folded, stored(network), MappedFiles())).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_convolutions_bias_and_a_slope_stay_weights(layout: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"]),
        helper.make_node("Identity", ["b1"], ["same"]),
        helper.make_node("Conv", ["c0", "w1", "same"], ["c1"]),
        helper.make_node("PRelu", ["c1", "slope"], ["y"]),
    ]
    parameters: Parameters = {"slope": ("F32", (4, 1, 1))}
    for index in "01":
        parameters |= {f"w{index}": ("F32", (4, 4, 1, 1)), f"b{index}": ("F32", (4,))}
    laid_out = lay_out(definition_of(image_network(tmp_path / "graph.onnx", nodes, parameters)), layout)

    assert {slot.name for slot in laid_out.slots} == parameters.keys()


def test_a_parameter_read_inside_a_branch_is_not_packed(tmp_path: Path) -> None:
    def branch(kind: str) -> Any:  # noqa: ANN401 - onnx.GraphProto
        result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(kind, ["sum", "b"], ["r"])], kind, [], [result])

    condition = helper.make_tensor("", TensorProto.BOOL, [1], [True])
    nodes = [
        helper.make_node("Add", ["x", "a"], ["first"]),
        helper.make_node("Add", ["first", "b"], ["second"]),
        helper.make_node("Add", ["second", "c"], ["sum"]),
        helper.make_node("Constant", [], ["yes"], value=condition),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch("Add"), else_branch=branch("Sub")),
    ]
    network = image_network(tmp_path / "graph.onnx", nodes, dict.fromkeys("abc", ("F32", (4, 1, 1))))
    laid_out = lay_out(definition_of(network), "packed")

    assert {slot.sources for slot in laid_out.slots} == {("b",), ("a", "c")}
    assert_same_outputs(network, laid_out, stored(network), 0)


def test_matrices_are_not_packed(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "m1"], ["a"]), helper.make_node("Mul", ["a", "m2"], ["y"])]
    parameters: Parameters = {"m1": ("F32", (32, 64)), "m2": ("F32", (32, 64))}
    network = image_network(tmp_path / "graph.onnx", nodes, parameters)
    assert {slot.name for slot in lay_out(definition_of(network), "packed").slots} == {"m1", "m2"}


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_parameters_are_cut_out_as_the_opset_has_it(opset: int, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "a"], ["s"]),
        helper.make_node("Mul", ["s", "b"], ["m"]),
        helper.make_node("Sub", ["m", "c"], ["y"]),
    ]
    parameters: Parameters = {"a": ("F32", (4, 1, 1)), "b": ("F32", (64,)), "c": ("F32", (64,))}
    network = image_network(tmp_path / "graph.onnx", nodes, parameters)
    model = definition_of(network)
    model.opset_import[0].version = opset
    network.path.write_bytes(onnx_graph.serialize(model))

    assert_same_outputs(network, lay_out(model, "packed"), stored(network), 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_slots_made_of_changed_parameters_have_changed(layout: str, tmp_path: Path) -> None:
    network = convolution(tmp_path / "graph.onnx")
    laid_out = lay_out(definition_of(network), layout)
    before = dict.fromkeys(network.parameters, "old")

    def changed(*names: str) -> list[str]:
        return [slot.name for slot in changed_slots(laid_out, before, before | dict.fromkeys(names, "new"))]

    assert changed() == []
    assert changed("conv.weight") == ["n.weight"]
    assert changed("bn.var") == changed("bn.scale") == ["n.weight", "n.bias"]
    assert changed("bn.bias") == changed("bn.mean") == ["n.bias"]
    assert changed("out.weight") == ["out.weight"]
    shift = ["out.shift"] if layout == "plain" else [slot.name for slot in laid_out.slots if len(slot.sources) == 2]
    assert changed("out.shift") == shift
    assert changed_slots(laid_out, {}, before) == laid_out.slots


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_a_slot_has_changed_exactly_if_its_value_has(data: st.DataObject, layout: str, tmp_path: Path) -> None:
    network = convolution(tmp_path / "graph.onnx")
    touched = data.draw(st.sets(st.sampled_from(sorted(network.parameters))))
    one = network.weights(1)
    other = {name: value + np.float32(1) if name in touched else value for name, value in one.items()}
    values = {}
    for label, weights in (("one", one), ("other", other)):
        path = tmp_path / f"{label}.safetensors"
        path.unlink(missing_ok=True)
        write_tensors(str(path), weights)
        values[label] = stored(Network(tmp_path / f"{label}.onnx", network.inputs, network.parameters))
    laid_out = lay_out(definition_of(network), layout)
    contents = [{name: value.tobytes() for name, value in weights.items()} for weights in (one, other)]

    changed = changed_slots(laid_out, *contents)
    for slot in laid_out.slots:
        before, after = (slot_value(slot, values[label], MappedFiles()) for label in ("one", "other"))
        assert (slot in changed) == (not np.array_equal(before, after))


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    gaps=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    dtype=st.sampled_from(["F32", "F16", "BF16", "I8"]),
)
def test_packed_values_lie_at_their_offsets_and_gaps_are_zero(sizes: list[int], gaps: list[int], dtype: str) -> None:
    pieces = [np.arange(1, size + 1).astype(numpy_dtype(dtype)) for size in sizes]
    offsets, end = [], 0
    for piece, gap in zip(pieces, gaps, strict=False):
        offsets.append(end + gap)
        end += gap + piece.size
    names = tuple(map(str, range(len(sizes))))
    types = tuple((dtype, (size,)) for size in sizes)
    value = PackedSlot("packed", dtype, (end,), names, types, tuple(offsets)).value(pieces)

    assert value.dtype == numpy_dtype(dtype)
    for offset, piece in zip(offsets, pieces, strict=True):
        np.testing.assert_array_equal(value[offset : offset + piece.size], piece)
    assert np.count_nonzero(value) == sum(sizes)


def test_a_slot_that_is_a_parameter_shares_the_files_pages(tmp_path: Path) -> None:
    network = from_family(BERT, "fp32", tmp_path / "graph.onnx")
    values, mapped = stored(network), MappedFiles()
    laid_out = lay_out(definition_of(network), "packed")

    whole = np.frombuffer(mapped._mapped(str(tmp_path / "graph.safetensors")), np.uint8)
    shared = [slot for slot in laid_out.slots if np.shares_memory(slot_value(slot, values, mapped), whole)]
    assert shared == [slot for slot in laid_out.slots if not slot.is_computed] != []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_definition_has_the_same_layout_each_time(layout: str, tmp_path: Path) -> None:
    file = ocr_networks()[0]
    network = from_onnx(file, tmp_path / "graph.onnx")
    definition = definition_of(network)
    before = onnx_graph.serialize(definition)
    one, other = lay_out(definition, layout), lay_out(definition_of(network), layout)

    assert one.slots == other.slots
    assert onnx_graph.serialize(one.model) == onnx_graph.serialize(other.model)
    assert onnx_graph.serialize(definition) == before


def test_parameters_keep_their_initializers_and_names(tmp_path: Path) -> None:
    definition = definition_of(attention(tmp_path / "graph.onnx"))
    for node in definition.graph.node:
        if node.op_type == "Transpose" and node.input[0].endswith(".weight"):
            node.op_type = "Relu"  # what nothing turns
            del node.attribute[:]
    laid_out = lay_out(definition)

    assert onnx_graph.parameters_of(laid_out.model) == onnx_graph.parameters_of(definition)
    assert list(onnx_graph.parameters_of(laid_out.model)) == [slot.name for slot in laid_out.slots]


def test_slots_are_found_by_the_names_and_patterns_of_parameters(tmp_path: Path) -> None:
    laid_out = lay_out(definition_of(convolution(tmp_path / "graph.onnx")))

    assert laid_out.slots_of(["conv.weight"]) == ("n.weight",)
    assert laid_out.slots_of([r"bn\..*", "out.gain"]) == ("out.gain", "n.weight", "n.bias")
    assert laid_out.slots_of([]) == ()
    with pytest.raises(BackendError, match="fits no parameter"):
        laid_out.slots_of(["conv"])
    with pytest.raises(BackendError, match=r"bad_option: options\.refit, pattern 1: .* not a regular expression"):
        laid_out.slots_of(["out.gain", "("])


def test_an_unknown_layout_is_refused_with_those_there_are(tmp_path: Path) -> None:
    definition = definition_of(convolution(tmp_path / "graph.onnx"))
    with pytest.raises(BackendError, match="one of plain, packed"):
        lay_out(definition, "dense")


def test_values_of_another_dtype_or_shape_are_refused(tmp_path: Path) -> None:
    values = stored(convolution(tmp_path / "graph.onnx"))
    packed = lay_out(definition_of(convolution(tmp_path / "graph.onnx")), "packed")
    gain = values["out.gain"]
    (slot,) = [slot for slot in packed.slots if "out.gain" in slot.sources]

    for wrong in (replace(gain, dtype="I32"), replace(gain, shape=(2,)), replace(gain, nbytes=4, shape=(1, 1, 1))):
        with pytest.raises(BackendError, match=r"wrong_weights: out\.gain is F32\[2, 1, 1\], its weights are"):
            slot_value(slot, values | {"out.gain": wrong}, MappedFiles())
    with pytest.raises(BackendError, match=r"missing_weights: No weights for out\.gain"):
        slot_value(slot, {"out.shift": gain}, MappedFiles())
