"""Splitting weights off, on graphs made for one question each and on the real networks of rapidocr."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from blake3 import blake3
from onnx import ModelProto, NodeProto, TensorProto, load_model, numpy_helper
from onnx.helper import make_graph, make_node, make_tensor, make_tensor_value_info

from app.definitions.canonical_graph import canonical_bytes
from app.definitions.constants import digests_of, to_json
from app.definitions.interface import read_interface
from app.definitions.parameter import Parameter
from app.definitions.rejection import Rejected
from app.definitions.tensor_data import tensor_bytes
from app.definitions.weight_split import SplitModel, split_weights
from app.definitions.weights_file import write_weights
from app.weights.dtypes import numpy_dtype
from app.weights.formats.safetensors import read_slots
from tests.definitions.conftest import OpenSession, Tensors

Make = Callable[..., ModelProto]
F32 = np.float32


def initializer(name: str, values: object, dtype: object = F32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)  # type: ignore[call-overload]


def rapidocr_models() -> list[Path]:
    spec = find_spec("rapidocr_onnxruntime")
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else Path()
    return sorted(folder.glob("*.onnx"))


def read_weights(path: Path) -> Tensors:
    data = path.read_bytes()
    slots = read_slots(lambda offset, length: data[offset : offset + length], len(data))
    return {
        slot.name: np.frombuffer(data[slot.offset : slot.offset + slot.nbytes], numpy_dtype(slot.dtype)).reshape(
            slot.shape
        )
        for slot in slots
    }


def embedded(split: SplitModel) -> set[str]:
    return {t.name for t in split.model.graph.initializer if t.data_location != TensorProto.EXTERNAL}


def test_rapidocr_brings_its_three_networks() -> None:
    assert len(rapidocr_models()) == 3


@pytest.mark.parametrize("path", rapidocr_models(), ids=lambda path: path.stem)
def test_split_weights_fed_back_give_the_same_outputs(path: Path, open_session: OpenSession, tmp_path: Path) -> None:
    split = split_weights(load_model(path))
    (tmp_path / "graph.onnx").write_bytes(canonical_bytes(split.model))
    write_weights(tmp_path / "weights", split.weights)
    weights = read_weights(tmp_path / "weights")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    whole = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.random.default_rng(3).standard_normal((2, 3, 32, 64)).astype(F32)}
    wanted, got = whole.run(None, feeds), open_session(tmp_path / "graph.onnx", weights).run(None, feeds)
    for one, other in zip(wanted, got, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("path", rapidocr_models(), ids=lambda path: path.stem)
def test_parameters_match_the_weights_and_the_graph_is_light(path: Path) -> None:
    split = split_weights(load_model(path))
    parameters = read_interface(split.model).parameters
    assert [p.name for p in parameters] == list(split.weights) == sorted(split.weights)
    assert {p.dtype for p in parameters} == {"F32"}
    assert len(canonical_bytes(split.model)) < 0.15 * path.stat().st_size


def test_parameter_is_an_external_initializer_without_data(tiny_model: Make) -> None:
    split = split_weights(tiny_model([make_node("MatMul", ["x", "w"], ["y"])], [initializer("w", np.eye(4))]))
    (tensor,) = split.model.graph.initializer
    assert tensor.data_location == TensorProto.EXTERNAL
    assert {e.key: e.value for e in tensor.external_data} == {"location": "weights", "offset": "0", "length": "64"}
    assert not tensor.raw_data
    assert read_interface(split.model).parameters == (Parameter("w", (4, 4), "F32"),)


def test_constant_nodes_that_hold_weights_become_parameters(tiny_model: Make) -> None:
    nodes = [
        make_node("Constant", [], ["w"], value=initializer("", np.eye(4))),
        make_node("Constant", [], ["b"], value_floats=[1.0, 2.0, 3.0, 4.0]),
        make_node("Constant", [], ["gain"], value_float=1.0),
        make_node("Constant", [], ["/layer/Constant_1_output_0"], value_float=0.5),
        make_node("Constant", [], ["unused"], value=initializer("", np.ones(9))),
        make_node("Gemm", ["x", "w", "b"], ["g"]),
        make_node("Mul", ["g", "gain"], ["h"]),
        make_node("Mul", ["h", "/layer/Constant_1_output_0"], ["y"]),
    ]
    split = split_weights(tiny_model(nodes))
    assert list(split.weights) == ["b", "gain", "w"]
    assert [node.op_type for node in split.model.graph.node] == ["Constant", "Gemm", "Mul", "Mul"]


@pytest.mark.parametrize("through", [None, "Cast", "Identity"])
def test_settings_stay_embedded_also_behind_arithmetic(tiny_model: Make, through: str | None) -> None:
    name = "scales" if through is None else "raw"
    nodes = [
        make_node("Unsqueeze", ["x", "axes"], ["image"]),
        make_node("Resize", ["image", "", "scales"], ["y"]),
    ]
    if through:
        cast = make_node("Cast", ["raw"], ["scales"], to=TensorProto.FLOAT)
        nodes.insert(0, cast if through == "Cast" else make_node(through, ["raw"], ["scales"]))
    model = tiny_model(nodes, [initializer("axes", [1, 2], np.int64), initializer(name, [1, 1, 2, 2])])
    assert embedded(split_weights(model)) == {"axes", name}


def test_indices_are_constants_and_scales_of_quantised_weights_are_weights(tiny_model: Make) -> None:
    nodes = [
        make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        make_node("MatMul", ["x", "w"], ["m"]),
        make_node("Gather", ["m", "table"], ["y"]),
    ]
    tensors = [initializer("q", np.eye(4), np.int8), initializer("scale", 0.5), initializer("table", [0, 0], np.int64)]
    split = split_weights(tiny_model(nodes, tensors))
    assert list(split.weights) == ["q", "scale"]
    assert embedded(split) == {"table"}


def test_an_integer_bias_of_a_quantised_product_is_a_weight(tiny_model: Make) -> None:
    nodes = [
        make_node("MatMulInteger", ["q", "w"], ["p"]),
        make_node("Add", ["p", "bias"], ["s"]),
        make_node("Add", ["s", "offset"], ["t"]),
        make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT),
    ]
    tensors = [
        initializer("q", np.eye(4), np.int8),
        initializer("w", np.eye(4), np.int8),
        initializer("bias", [7] * 4, np.int32),
        initializer("offset", [1] * 4, np.int32),
    ]
    split = split_weights(tiny_model(nodes, tensors))
    assert list(split.weights) == ["bias", "q", "w"]
    assert embedded(split) == {"offset"}


def test_a_single_8_bit_integer_is_a_weight_only_if_it_is_quantised(tiny_model: Make) -> None:
    nodes = [
        make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        make_node("Add", ["q", "one"], ["s"]),
        make_node("DequantizeLinear", ["s", "scale", "zero"], ["y"]),
    ]
    tensors = [initializer("scale", 0.5), initializer("zero", 3, np.int8), initializer("one", 1, np.int8)]
    split = split_weights(tiny_model(nodes, tensors))
    assert list(split.weights) == ["scale", "zero"]
    assert embedded(split) == {"one"}


def test_bias_of_a_single_element_is_a_weight(tiny_model: Make) -> None:
    tensors = [initializer("w", np.ones((4, 1))), initializer("b", [0.5])]
    split = split_weights(tiny_model([make_node("Gemm", ["x", "w", "b"], ["y"])], tensors))
    assert list(split.weights) == ["b", "w"]


def test_batch_normalization_tensors_are_weights(tiny_model: Make) -> None:
    tensors = [initializer(name, np.ones(4)) for name in ("scale", "bias", "mean", "var")]
    node = make_node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y"])
    assert list(split_weights(tiny_model([node], tensors)).weights) == ["bias", "mean", "scale", "var"]


def test_unused_initializers_and_inputs_that_repeat_them_are_dropped(tiny_model: Make) -> None:
    model = tiny_model(
        [make_node("MatMul", ["x", "w"], ["y"])], [initializer("w", np.eye(4)), initializer("z", [1, 2])]
    )
    model.graph.input.append(make_tensor_value_info("w", 1, [4, 4]))
    split = split_weights(model)
    assert [value.name for value in split.model.graph.input] == ["x"]
    assert [tensor.name for tensor in split.model.graph.initializer] == ["w"]


def test_weights_used_only_inside_a_branch_are_still_weights(tiny_model: Make) -> None:
    def branch(kind: str) -> object:
        return make_graph([make_node(kind, ["x", "w"], ["r"])], kind, [], [make_tensor_value_info("r", 1, None)])

    nodes = [
        make_node("Constant", [], ["yes"], value=initializer("", [True], np.bool_)),
        make_node("If", ["yes"], ["y"], then_branch=branch("Add"), else_branch=branch("Sub")),
    ]
    assert list(split_weights(tiny_model(nodes, [initializer("w", np.ones(4))])).weights) == ["w"]


def test_branches_keep_the_names_of_their_weights_unless_two_have_the_same(tiny_model: Make) -> None:
    def branch(kind: str, names: list[str]) -> object:
        tensors = [initializer(name, np.full(4, len(kind))) for name in names]
        nodes = [make_node(kind, ["x", names[0]], ["a"]), make_node("Sub", ["a", names[1]], ["r"])]
        return make_graph(nodes, kind, [], [make_tensor_value_info("r", 1, None)], initializer=tensors)

    nodes = [
        make_node("Constant", [], ["yes"], value=initializer("", [True], np.bool_)),
        make_node("Mul", ["x", "both"], ["x2"]),
        make_node(
            "If", ["yes"], ["i"], then_branch=branch("Add", ["w", "one"]), else_branch=branch("Mul", ["w", "both"])
        ),
        make_node("Add", ["x2", "i"], ["y"]),
    ]
    split = split_weights(tiny_model(nodes, [initializer("both", np.ones(4))]))
    assert list(split.weights) == ["both", "i/else_branch/both", "i/else_branch/w", "i/then_branch/w", "one"]
    assert tensor_bytes(split.weights["i/then_branch/w"]) == np.full(4, 3, F32).tobytes()
    assert not embedded(split)


@pytest.mark.parametrize(
    "make",
    [
        lambda name: [make_node("Constant", [], [name], value_ints=[2**40] * 100)],
        lambda name: [make_node("ConstantOfShape", ["x"], [name], value=initializer("", [0] * 100))],
    ],
    ids=["integers of a Constant node", "a tensor of another operator"],
)
def test_all_values_that_stay_count_for_the_limit(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], list[NodeProto]]
) -> None:
    monkeypatch.setattr("app.definitions.weight_split.MAX_CONSTANT_BYTES", 300)
    with pytest.raises(Rejected, match="more than 300 bytes"):
        split_weights(tiny_model([*make("c"), make_node("Reshape", ["x", "c"], ["y"])]))


def test_values_that_nothing_reads_do_not_count_for_the_limit(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.definitions.weight_split.MAX_CONSTANT_BYTES", 300)
    nodes = [make_node("Constant", [], ["c"], value_ints=[2**40] * 100), make_node("Relu", ["x"], ["y"])]
    assert not embedded(split_weights(tiny_model(nodes, [initializer("unused", [0] * 100)])))


def test_a_constant_says_why_it_stayed(tiny_model: Make) -> None:
    nodes = [
        make_node("Clip", ["x", "low"], ["a"]),
        make_node("Pow", ["a", "p"], ["b"]),
        make_node("Add", ["b", "eps"], ["c"]),
        make_node("Sqrt", ["c"], ["d"]),
        make_node("Mul", ["d", "/Constant_output_0"], ["e"]),
        make_node("Where", ["mask", "e", "fill"], ["y"]),
    ]
    tensors = [initializer(name, 0.5) for name in ("low", "p", "eps", "/Constant_output_0", "fill")]
    split = split_weights(
        tiny_model(nodes, [*tensors, initializer("mask", [True] * 4, np.bool_), initializer("z", 1.0)])
    )
    assert list(split.weights) == ["p"]
    assert {(one.name, one.reason) for one in split.constants} == {
        ("low", "setting"),
        ("eps", "formula"),
        ("/Constant_output_0", "literal"),
        ("fill", "formula"),
    }
    assert {one.nbytes for one in split.constants} == {4}


@pytest.mark.parametrize(
    ("name", "is_literal"),
    [
        ("logit_scale", False),
        ("mobile_one_block_0.w_0", False),
        ("alpha.1", False),
        ("layers.0.gamma_1", False),
        ("constraint", False),
        ("const_scale", False),
        ("constant_gain", False),
        ("/encoder/Constant_output_0", True),
        ("p2o.helper.constant.3", True),
        ("model/Const:0", True),
        ("const__23", True),
        ("/layer/Constant_3_output_0", True),
        ("Constant@7", True),
        ("const_fold_opt__12", True),
        ("model/gelu/mul/x:0", True),
        ("Mul__34", True),
        ("val_12", True),
    ],
)
def test_a_number_that_an_exporter_named_is_no_weight(tiny_model: Make, name: str, is_literal: bool) -> None:  # noqa: FBT001 - pytest's way
    for model in (
        tiny_model([make_node("Mul", ["x", name], ["y"])], [initializer(name, 0.5)]),
        tiny_model([make_node("Constant", [], [name], value_float=0.5), make_node("Mul", ["x", name], ["y"])]),
    ):
        assert bool(split_weights(model).weights) != is_literal


@pytest.mark.parametrize(
    "name", ["123", "If_3/then_branch/9", "If_0_then_branch__onnx::Mul_41", "/layer/Sqrt_output_0"]
)
def test_a_numbered_initializer_was_folded_from_weights(tiny_model: Make, name: str) -> None:
    multiplied = make_node("Mul", ["x", name], ["y"])
    assert split_weights(tiny_model([multiplied], [initializer(name, 0.5)])).weights
    assert not split_weights(tiny_model([make_node("Constant", [], [name], value_float=0.5), multiplied])).weights


def test_equal_graphs_have_equal_bytes_whoever_exported_them(tiny_model: Make) -> None:
    def exported(name: str, *, raw: bool) -> ModelProto:
        w = make_tensor("w", 1, [4, 4], np.eye(4, dtype=F32).tobytes() if raw else np.eye(4).ravel().tolist(), raw=raw)
        shape = make_tensor("s", 7, [2], np.array([-1, 2]).tobytes() if raw else [-1, 2], raw=raw)
        nodes = [make_node("MatMul", ["x", "w"], ["m"]), make_node("Reshape", ["m", "s"], ["y"])]
        model = tiny_model(nodes, [w, shape] if raw else [shape, w])
        model.producer_name = model.doc_string = model.graph.name = name
        model.graph.node[0].doc_string = name
        model.metadata_props.add(key="exported by", value=name)
        model.graph.value_info.append(make_tensor_value_info("m", 1, ["n", 4]))
        if not raw:
            del model.graph.value_info[:]
            model.opset_import.add(domain="com.example", version=1)
        return model

    first, second = (canonical_bytes(split_weights(exported(name, raw=name == "a")).model) for name in "ab")
    assert first == second


@pytest.mark.parametrize(
    ("data_type", "name", "values"),
    [
        (TensorProto.FLOAT, "F32", np.array([1.5, -2.0], np.float32)),
        (TensorProto.DOUBLE, "F64", np.array([1.5, 1e300], np.float64)),
        (TensorProto.FLOAT16, "F16", np.array([1.5, -65504], np.float16)),
        (TensorProto.BFLOAT16, "BF16", np.array([1.5, -3e38], ml_dtypes.bfloat16)),
        (TensorProto.FLOAT8E4M3FN, "F8_E4M3", np.array([1.5, -448], ml_dtypes.float8_e4m3fn)),
        (TensorProto.FLOAT8E5M2, "F8_E5M2", np.array([1.5, -57344], ml_dtypes.float8_e5m2)),
        (TensorProto.INT8, "I8", np.array([-128, 127], np.int8)),
        (TensorProto.UINT8, "U8", np.array([0, 255], np.uint8)),
        (TensorProto.UINT16, "U16", np.array([0, 65535], np.uint16)),
        (TensorProto.INT32, "I32", np.array([-(2**31), 7], np.int32)),
        (TensorProto.INT64, "I64", np.array([-(2**63), 7], np.int64)),
        (TensorProto.UINT32, "U32", np.array([2**32 - 1, 7], np.uint32)),
        (TensorProto.UINT64, "U64", np.array([2**64 - 1, 7], np.uint64)),
        (TensorProto.BOOL, "BOOL", np.array([True, False])),
    ],
)
def test_typed_fields_hold_the_same_bytes_as_raw_data(data_type: int, name: str, values: np.ndarray) -> None:
    assert values.dtype == numpy_dtype(name)
    assert tensor_bytes(make_tensor("t", data_type, [2], values)) == values.tobytes()
    assert tensor_bytes(make_tensor("t", data_type, [2], values.tobytes(), raw=True)) == values.tobytes()


def test_high_is_the_smallest_size_that_ids_index(tiny_model: Make) -> None:
    nodes = [
        make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        make_node("Unsqueeze", ["wide", "axis"], ["column"]),
        make_node("Gather", ["large", "column"], ["a"]),
        make_node("Gather", ["small", "ids"], ["b"]),
        make_node("ReduceSum", ["a", "axis"], ["c"], keepdims=0),
        make_node("Add", ["b", "c"], ["d"]),
        make_node("Add", ["x", "d"], ["y"]),
    ]
    tensors = [
        initializer("large", np.ones((90, 4))),
        initializer("small", np.ones((70, 4))),
        initializer("axis", [1], np.int64),
    ]
    model = tiny_model(nodes, tensors)
    model.graph.input.append(make_tensor_value_info("ids", TensorProto.INT32, ["n"]))
    x, ids = read_interface(split_weights(model).model).inputs
    assert (ids.dtype, ids.shape, ids.low, ids.high) == ("I32", ("n",), -70, 70)
    assert x.high is None


def test_a_bound_on_a_part_of_an_input_is_none_on_the_whole(tiny_model: Make) -> None:
    bounds = [initializer(name, [value], np.int64) for name, value in (("begin", 0), ("end", 1))]
    nodes = [
        make_node("Slice", ["ids", "begin", "end"], ["first"]),
        make_node("Gather", ["table", "first"], ["row"]),
        make_node("Add", ["x", "row"], ["y"]),
    ]
    model = tiny_model(nodes, [*bounds, initializer("table", np.ones((5, 4)))])
    model.graph.input.append(make_tensor_value_info("ids", TensorProto.INT64, ["n"]))
    assert read_interface(split_weights(model).model).inputs[1].high is None


def test_unnamed_dimensions_get_a_symbol_each(tiny_model: Make) -> None:
    model = tiny_model()
    del model.graph.input[:]
    model.graph.input.append(make_tensor_value_info("x", 1, [None, -1, "?", 5]))
    interface = read_interface(split_weights(model).model)
    assert interface.inputs[0].shape == ("x.0", "x.1", "x.2", 5)
    assert interface.outputs[0].shape == ("x.0", "x.1", "x.2", 5)


@pytest.mark.parametrize(
    ("name", "start", "reasons"),
    [("/lstm/Constant_output_0", 0, ["literal"]), ("val_45", 0, ["literal"]), ("val_45", 1, []), ("h0", 0, [])],
)
def test_zeros_that_a_recurrent_layer_starts_from_are_a_weight_only_by_a_name_of_their_own(
    tiny_model: Make, name: str, start: int, reasons: list[str]
) -> None:
    node = make_node("LSTM", ["x", "w", "r", "", "", name], ["y"], hidden_size=3)
    tensors = [initializer("w", np.ones((1, 12, 4))), initializer("r", np.ones((1, 12, 3)))]
    split = split_weights(tiny_model([node], [*tensors, initializer(name, np.full((1, 2, 3), start))]))
    assert [one.reason for one in split.constants] == reasons
    assert (name in split.weights) is not bool(reasons)


def test_zeros_that_a_recurrent_layer_starts_from_may_be_spread_over_a_batch_first(tiny_model: Make) -> None:
    nodes = [
        make_node("Expand", ["/lstm/Constant_output_0", "sizes"], ["h0"]),
        make_node("Expand", ["/lstm/Constant_output_0", "sizes"], ["c0"]),
        make_node("LSTM", ["x", "w", "r", "", "", "h0", "c0"], ["y"], hidden_size=3),
    ]
    tensors = [initializer("w", np.ones((1, 12, 4))), initializer("r", np.ones((1, 12, 3)))]
    tensors += [initializer("/lstm/Constant_output_0", np.zeros((1, 2, 3))), initializer("sizes", [1, 2, 3], np.int64)]
    assert list(split_weights(tiny_model(nodes, tensors)).weights) == ["r", "w"]


def test_the_digests_of_all_constants_are_told_but_of_those_with_an_exporters_own_name(tiny_model: Make) -> None:
    nodes = [make_node("Gather", ["x", "rows"], ["picked"]), make_node("Gather", ["picked", "/Constant_1"], ["y"])]
    tables = [initializer("rows", [0, 1], np.int64), initializer("/Constant_1", [1, 0], np.int64)]
    split = split_weights(tiny_model(nodes, tables))

    told = digests_of(to_json(split.constants, split.digests))

    assert embedded(split) == {"rows", "/Constant_1"}
    assert told == {"rows": blake3(np.array([0, 1]).tobytes()).hexdigest()}


def test_a_definition_of_an_earlier_release_has_constants_without_digests() -> None:
    listed = [{"name": "a", "bytes": 4, "reason": "literal"}]
    assert digests_of({"count": 1, "bytes": 4, "listed": listed}) == {"a": None}
    assert digests_of(None) == {}
