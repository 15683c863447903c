"""Files that nobody should have to trust, sent through the real child process. Each ends in a clear 422."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, numpy_helper
from onnx.helper import make_function, make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from safetensors.numpy import save

from app.children.house import House
from app.definitions import limits, sandbox
from app.definitions.onnx_file import load_model
from app.errors import Invalid

Make = Callable[..., ModelProto]
Spoil = Callable[[ModelProto], None]
LONG = "n" * 100_000


def weight(name: str = "w", dims: tuple[int, ...] = (4, 4)) -> TensorProto:
    return numpy_helper.from_array(np.ones(dims, np.float32), name)


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def refusal(data: bytes, house: House) -> Invalid:
    """Send a file to the child and return what a client would be answered."""
    with house.folder("upload") as folder:
        path = folder / "upload.onnx"
        path.write_bytes(data)
        with pytest.raises(Invalid) as raised, sandbox.construct_from_file(house, path):
            pass
    assert raised.value.status == 422
    assert raised.value.detail
    return raised.value


def branches(depth: int) -> GraphProto:
    """Nest If nodes in each other's branches."""
    result = make_tensor_value_info("r", TensorProto.FLOAT, None)
    graph = make_graph([make_node("Identity", ["x"], ["r"])], "leaf", [], [result])
    for _ in range(depth):
        graph = make_graph([make_node("If", ["c"], ["r"], then_branch=graph, else_branch=graph)], "b", [], [result])
    return graph


def nested(levels: int) -> bytes:
    """Write the wire form of attributes and graphs inside each other: node(1) attribute(5) g(6)."""
    inner = b""
    for _ in range(levels):
        for tag in (0x32, 0x2A, 0x0A):
            inner = bytes([tag]) + _varint(len(inner)) + inner
    return b"\x3a" + _varint(len(inner)) + inner


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize("location", ["weights.bin", "../../etc/passwd", "/etc/passwd"])
@pytest.mark.parametrize("place", ["initializer", "constant", "branch"])
def test_refuses_external_data_wherever_it_hides(tiny_model: Make, house: House, location: str, place: str) -> None:
    model = tiny_model([make_node("MatMul", ["x", "w"], ["y"])])
    if place == "initializer":
        model.graph.initializer.append(external(location))
    elif place == "constant":
        model.graph.node.insert(0, make_node("Constant", [], ["w"], value=external(location)))
    else:
        branch = branches(0)
        branch.initializer.append(external(location))
        model.graph.node.append(make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branches(0)))
    assert refusal(model.SerializeToString(), house).code == "external_data"


def test_refuses_external_entries_beside_embedded_data(tiny_model: Make, house: House) -> None:
    tensor = weight()
    tensor.external_data.add(key="location", value="../x")
    model = tiny_model([make_node("MatMul", ["x", "w"], ["y"])], [tensor])
    assert refusal(model.SerializeToString(), house).code == "external_data"


@pytest.mark.parametrize("dims", [[2**40], [2**62, 4], [-1, 4], [4, 5], [0]])
def test_refuses_tensors_that_declare_what_they_do_not_hold(tiny_model: Make, house: House, dims: list[int]) -> None:
    tensor = weight()
    tensor.ClearField("dims")
    tensor.dims.extend(dims)
    model = tiny_model([make_node("MatMul", ["x", "w"], ["y"])], [tensor])
    assert refusal(model.SerializeToString(), house).code == "bad_tensor"


def test_refuses_a_small_file_that_asks_for_16_gigabytes(tiny_model: Make, house: House) -> None:
    shape = numpy_helper.from_array(np.array([2**32], np.int64), "shape")
    data = tiny_model([make_node("ConstantOfShape", ["shape"], ["y"])], [shape]).SerializeToString()
    assert len(data) < 128
    assert refusal(data, house).code == "too_large_value"


def test_the_same_operator_set_imported_twice_counts_once(tiny_model: Make, tmp_path: Path, house: House) -> None:
    model = tiny_model()
    model.opset_import.add(domain="ai.onnx", version=17)
    path = tmp_path / "upload.onnx"
    path.write_bytes(model.SerializeToString())
    with sandbox.construct_from_file(house, path) as made:
        assert made.source["opset"] == 17
    model.opset_import.add(domain="", version=13)
    refused = refusal(model.SerializeToString(), house)
    assert refused.code == "bad_opset"
    assert "13, 17" in refused.detail
    assert "convert_version" in refused.detail


def _sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(weight())


def _sparse_constant(model: ModelProto) -> None:
    node = model.graph.node.add(op_type="Constant", output=["s"])
    node.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR).sparse_tensor.dims.append(4)


def _constant_without_value(model: ModelProto) -> None:
    model.graph.node.insert(0, make_node("Constant", [], ["c"]))
    model.graph.node[1].CopyFrom(make_node("Add", ["x", "c"], ["y"]))


def _constant_without_tensor(model: ModelProto) -> None:
    _constant_without_value(model)
    model.graph.node[0].attribute.add(name="value", type=AttributeProto.TENSOR)


def _constant_of_two_values(model: ModelProto) -> None:
    _constant_without_value(model)
    model.graph.node[0].CopyFrom(make_node("Constant", [], ["c"], value_float=1.0, value_int=1))


def _training(model: ModelProto) -> None:
    model.training_info.add()


def _foreign_operator(model: ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def _unknown_operator(model: ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


def _old_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 6


def _new_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 99


def _no_opset(model: ModelProto) -> None:
    del model.opset_import[:]


def _path_name(model: ModelProto) -> None:
    model.graph.initializer.append(weight("a/../../b"))


def _control_symbol(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch\0"


def _control_name(model: ModelProto) -> None:
    model.graph.node[0].name = "a\x00b"


def _control_domain(model: ModelProto) -> None:
    model.graph.node[0].domain = "com.exa\x00mple"


def _same_name_twice(model: ModelProto) -> None:
    model.graph.initializer.extend([weight(), weight()])


def _four_bits(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.INT4, dims=[2], raw_data=b"\x11"))


def _unknown_type(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="w", data_type=77, dims=[1], raw_data=b"\x11"))


def _strings(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    model.graph.node[0].op_type = "Identity"


def _dangling_input(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def _deep_branches(model: ModelProto) -> None:
    branch = branches(9)
    model.graph.node.append(make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))


def _no_nodes(model: ModelProto) -> None:
    del model.graph.node[:]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_sparse, "sparse_tensor"),
        (_sparse_constant, "sparse_tensor"),
        (_constant_without_value, "invalid_onnx"),
        (_constant_without_tensor, "invalid_onnx"),
        (_constant_of_two_values, "invalid_onnx"),
        (_training, "training_info"),
        (_foreign_operator, "unsupported_operators"),
        (_unknown_operator, "invalid_onnx"),
        (_old_opset, "bad_opset"),
        (_new_opset, "bad_opset"),
        (_no_opset, "bad_opset"),
        (_path_name, "bad_name"),
        (_control_name, "bad_name"),
        (_control_symbol, "bad_name"),
        (_control_domain, "bad_name"),
        (_same_name_twice, "bad_name"),
        (_four_bits, "unsupported_dtype"),
        (_unknown_type, "unsupported_dtype"),
        (_strings, "unsupported_dtype"),
        (_dangling_input, "invalid_onnx"),
        (_deep_branches, "too_deep"),
        (_no_nodes, "empty_graph"),
    ],
)
def test_refuses_what_it_cannot_take(tiny_model: Make, house: House, spoil: Spoil, code: str) -> None:
    model = tiny_model()
    spoil(model)
    assert refusal(model.SerializeToString(), house).code == code


def _long_sparse_name(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().values.name = LONG


def _long_domain(model: ModelProto) -> None:
    model.graph.node[0].domain = LONG


def _long_attribute(model: ModelProto) -> None:
    model.graph.node[0].attribute.add(name=LONG, type=AttributeProto.TENSOR).t.data_type = 77


@pytest.mark.parametrize("spoil", [_long_sparse_name, _long_domain, _long_attribute])
def test_a_name_without_end_does_not_get_into_the_answer(tiny_model: Make, house: House, spoil: Spoil) -> None:
    model = tiny_model()
    spoil(model)
    assert len(refusal(model.SerializeToString(), house).detail) < 1000


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_refuses_a_truncated_file(tiny_model: Make, house: House, cut: int) -> None:
    data = tiny_model([make_node("MatMul", ["x", "w"], ["y"])], [weight("w", (4, 4096))]).SerializeToString()
    assert refusal(data[:-cut], house).code == "not_onnx"


@pytest.mark.parametrize("data", [b"\xff" * 100, b"PK\x03\x04 a zip file", nested(200)])
def test_refuses_what_is_no_onnx_file(house: House, data: bytes) -> None:
    assert refusal(data, house).code == "not_onnx"


def test_refuses_an_empty_file(house: House) -> None:
    assert refusal(b"", house).code == "empty_graph"


@pytest.mark.parametrize("end", ["input", "output"])
def test_refuses_more_inputs_or_outputs_than_the_limit(tiny_model: Make, house: House, end: str) -> None:
    model = tiny_model()
    values = getattr(model.graph, end)
    for number in range(limits.MAX_INPUTS):
        model.graph.node.append(make_node("Identity", ["x"], [f"more{number}"]))
        values.append(make_tensor_value_info(f"more{number}" if end == "output" else f"in{number}", 1, [4]))
    fault = refusal(model.SerializeToString(), house)
    assert fault.code == "too_large_graph"
    assert f"{limits.MAX_INPUTS + 1} {end}s" in fault.detail


def test_refuses_an_input_of_endless_rank(tiny_model: Make, house: House) -> None:
    model = tiny_model()
    model.graph.input.append(make_tensor_value_info("wide", 1, [1] * 10_000))
    assert refusal(model.SerializeToString(), house).code == "bad_tensor"


def test_refuses_more_nodes_than_the_limit(tiny_model: Make, house: House) -> None:
    model = tiny_model()
    node = model.graph.node[0]
    model.graph.node.extend([node] * limits.MAX_NODES)
    assert refusal(model.SerializeToString(), house).code == "too_large_graph"


def test_refuses_constants_that_are_no_weights_beyond_the_limit(tiny_model: Make, house: House) -> None:
    rows = limits.MAX_CONSTANT_BYTES // 32 + 1
    table = numpy_helper.from_array(np.zeros((rows, 4), np.int64), "table")
    nodes = [make_node("Cast", ["table"], ["t"], to=1), make_node("MatMul", ["t", "x"], ["y"])]
    assert refusal(tiny_model(nodes, [table]).SerializeToString(), house).code == "constants_too_large"


def doubling_functions(count: int) -> bytes:
    """Make functions that each call the one before twice: 2**count nodes once inlined."""
    imports = [make_opsetid("", 17), make_opsetid("f", 1)]
    functions = [make_function("f", "f0", ["a"], ["b"], [make_node("Relu", ["a"], ["b"])], imports)]
    for level in range(1, count + 1):
        calls = [
            make_node(f"f{level - 1}", ["a"], ["t"], domain="f"),
            make_node(f"f{level - 1}", ["t"], ["b"], domain="f"),
        ]
        functions.append(make_function("f", f"f{level}", ["a"], ["b"], calls, imports))
    x, y = (make_tensor_value_info(name, 1, [4]) for name in "xy")
    graph = make_graph([make_node(f"f{count}", ["x"], ["y"], domain="f")], "g", [x], [y])
    return make_model(graph, functions=functions, opset_imports=imports).SerializeToString()


def test_refuses_functions_that_grow_beyond_all_bounds(house: House) -> None:
    assert refusal(doubling_functions(40), house).code == "too_large_graph"


def test_refuses_functions_that_call_themselves(house: House) -> None:
    model = ModelProto.FromString(doubling_functions(1))
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "f1", "f"
    assert refusal(model.SerializeToString(), house).code == "bad_functions"


def test_inlines_functions_that_do_not(tmp_path: Path, house: House) -> None:
    path = tmp_path / "upload.onnx"
    path.write_bytes(doubling_functions(3))
    with sandbox.construct_from_file(house, path) as made:
        model = ModelProto.FromString(made.graph.read_bytes())
    assert [node.op_type for node in model.graph.node] == ["Relu"] * 8
    assert not model.functions


def test_functions_of_another_opset_are_converted_to_the_models(tmp_path: Path) -> None:
    squeeze = [make_node("Squeeze", ["a"], ["b"], axes=[0])]
    function = make_function("f", "first", ["a"], ["b"], squeeze, [make_opsetid("", 11)])
    value = make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    graph = make_graph(
        [make_node("first", ["x"], ["y"], domain="f")],
        "g",
        [value],
        [make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    model = make_model(graph, functions=[function], opset_imports=[make_opsetid("", 17), make_opsetid("f", 1)])
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert [node.op_type for node in load_model(path).graph.node if node.op_type != "Constant"] == ["Squeeze"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        (b"<html><body>Not found", "an HTML page"),
        (save({"w": np.zeros(4, np.float32)}), "a safetensors file"),
    ],
)
def test_says_what_a_file_is_that_is_no_model(data: bytes, words: str, house: House) -> None:
    found = refusal(data, house)
    assert found.code == "not_onnx"
    assert words in found.detail
