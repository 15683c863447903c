"""Weights of every kind that models have them in: a refit changes each, and the engine computes with the new value."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from tests.workers.hosting import Hosting
from tests.workers.networks import bound, checkpoint, constructed

Array = np.ndarray[Any, np.dtype[Any]]
Values = Mapping[str, Array]
FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64


def f32(*values: Any, shape: Sequence[int] | None = None) -> Array:  # noqa: ANN401 - a number or nested lists of them
    array = np.asarray(values[0] if len(values) == 1 else values, np.float32)
    return array if shape is None else array.reshape(shape)


def tensors(values: Values, *names: str) -> list[TensorProto]:
    return [numpy_helper.from_array(values[name], name) for name in names or values]


def graph_of(
    nodes: Sequence[NodeProto],
    initializers: Sequence[TensorProto] = (),
    inputs: Sequence[Any] = (),
    output: str = "y",
) -> GraphProto:
    return make_graph(
        nodes, output, list(inputs), [make_tensor_value_info(output, FLOAT, None)], initializer=list(initializers)
    )


def model_of(nodes: Sequence[NodeProto], initializers: Sequence[TensorProto] = (), *inputs: Any) -> ModelProto:  # noqa: ANN401
    x = make_tensor_value_info("x", FLOAT, ["n", 1, 4, 4])
    return make_model(graph_of(nodes, initializers, [x, *inputs]), opset_imports=[make_opsetid("", 17)], ir_version=8)


def scalar_initializer(values: Values) -> ModelProto:
    return model_of([make_node("Mul", ["x", "alpha"], ["y"])], tensors(values))


def temperature(values: Values) -> ModelProto:
    nodes = [make_node("Exp", ["log_temperature"], ["t"]), make_node("Div", ["x", "t"], ["y"])]
    return model_of(nodes, tensors(values))


def slope(values: Values) -> ModelProto:
    return model_of([make_node("PRelu", ["x", "Constant_slope"], ["y"])], tensors(values))


def transposed_convolution(values: Values) -> ModelProto:
    return model_of([make_node("ConvTranspose", ["x", "w", "b"], ["y"])], tensors(values))


def constant_nodes(values: Values) -> ModelProto:
    nodes = [
        make_node("Constant", [], ["gain"], value_float=float(values["gain"])),
        make_node("Constant", [], ["shift"], value_floats=[float(one) for one in values["shift"]]),
        make_node("Constant", [], ["half"], value=numpy_helper.from_array(values["half"])),
        make_node("Cast", ["half"], ["wide"], to=FLOAT),
        make_node("Mul", ["x", "gain"], ["a"]),
        make_node("Add", ["a", "shift"], ["b"]),
        make_node("Mul", ["b", "wide"], ["y"]),
    ]
    return model_of(nodes)


def quantised_bias(values: Values) -> ModelProto:
    nodes = [
        make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        make_node("DequantizeLinear", ["w", "ws"], ["wd"]),
        make_node("DequantizeLinear", ["b", "bs"], ["bd"]),
        make_node("Conv", ["xd", "wd", "bd"], ["y"]),
    ]
    return model_of(nodes, tensors(values))


def quantised_operators(values: Values) -> ModelProto:
    nodes = [
        make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        make_node("QLinearConv", ["xq", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["yq"]),
        make_node("DequantizeLinear", ["yq", "ys", "yz"], ["d"]),
        make_node("MatMulInteger", ["xq", "m", "xz", "mz"], ["i"]),
        make_node("Cast", ["i"], ["f"], to=FLOAT),
        make_node("Mul", ["f", "ms"], ["s"]),
        make_node("ReduceMean", ["s"], ["r"], keepdims=1),
        make_node("Add", ["d", "r"], ["y"]),
    ]
    return model_of(nodes, tensors(values))


def branches(values: Values) -> ModelProto:
    """Both branches call their weight "w", one has a weight in a Constant node, and one returns a weight as it is."""
    taken = graph_of(
        [make_node("Mul", ["x", "w"], ["m"]), make_node("Add", ["m", "k"], ["t"])],
        [numpy_helper.from_array(values["If_y/then_branch/w"], "w"), numpy_helper.from_array(values["k"], "k")],
        output="t",
    )
    other = graph_of(
        [
            make_node("Constant", [], ["v"], value=numpy_helper.from_array(values["v"])),
            make_node("Mul", ["w", "v"], ["u"]),
            make_node(
                "If",
                ["c"],
                ["e"],
                then_branch=graph_of([make_node("Identity", ["u"], ["g"])], output="g"),
                else_branch=graph_of([], [numpy_helper.from_array(values["returned"], "returned")], output="returned"),
            ),
        ],
        [numpy_helper.from_array(values["If_y/else_branch/w"], "w")],
        output="e",
    )
    nodes = [
        make_node("If", ["c"], ["z"], name="If_y", then_branch=taken, else_branch=other),
        make_node("Add", ["x", "z"], ["y"]),
    ]
    return model_of(nodes, (), make_tensor_value_info("c", BOOL, []))


def loop(values: Values) -> ModelProto:
    """A Loop, in it an If, in it the weight; the Loop's body has a weight of its own."""
    step = [
        make_tensor_value_info("i", INT64, []),
        make_tensor_value_info("on", BOOL, []),
        make_tensor_value_info("s", FLOAT, None),
    ]
    choice = make_node(
        "If",
        ["on"],
        ["r"],
        then_branch=graph_of([make_node("Mul", ["s", "deep"], ["p"])], tensors(values, "deep"), output="p"),
        else_branch=graph_of([make_node("Identity", ["s"], ["q"])], output="q"),
    )
    body = make_graph(
        [choice, make_node("Add", ["r", "shallow"], ["out"]), make_node("Identity", ["on"], ["again"])],
        "body",
        step,
        [make_tensor_value_info("again", BOOL, []), make_tensor_value_info("out", FLOAT, None)],
        initializer=tensors(values, "shallow"),
    )
    start = {"trips": np.array(3, np.int64), "yes": np.array(1, np.bool_)}
    return model_of([make_node("Loop", ["trips", "yes", "x"], ["y"], body=body)], tensors(start))


def scan(values: Values) -> ModelProto:
    body = make_graph(
        [
            make_node("Mul", ["state", "decay"], ["d"]),
            make_node("Add", ["d", "row"], ["next"]),
            make_node("Identity", ["next"], ["seen"]),
        ],
        "body",
        [make_tensor_value_info("state", FLOAT, [1, 4, 4]), make_tensor_value_info("row", FLOAT, [1, 4, 4])],
        [make_tensor_value_info("next", FLOAT, [1, 4, 4]), make_tensor_value_info("seen", FLOAT, [1, 4, 4])],
        initializer=tensors(values, "decay"),
    )
    return model_of(
        [make_node("Scan", ["start", "x"], ["final", "y"], body=body, num_scan_inputs=1)], tensors(values, "start")
    )


RANDOM = np.random.default_rng(7)


def random(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def i8(*shape: int) -> Array:
    return RANDOM.integers(-100, 100, shape).astype(np.int8)


KINDS: dict[str, tuple[Callable[[Values], ModelProto], dict[str, tuple[Array, Array]]]] = {
    "scalar": (scalar_initializer, {"alpha": (f32(0.0), f32(0.7))}),
    "one element": (scalar_initializer, {"alpha": (f32([1.0]), f32([0.3]))}),
    "temperature": (temperature, {"log_temperature": (f32(0.5), f32(1.5))}),
    "slope": (slope, {"Constant_slope": (f32([0.1]), f32([0.4]))}),
    "bias of ConvTranspose": (
        transposed_convolution,
        {"w": (random(1, 1, 2, 2), random(1, 1, 2, 2)), "b": (f32([0.5]), f32([-2.0]))},
    ),
    "Constant": (
        constant_nodes,
        {
            "gain": (f32(0.5), f32(2.0)),
            "shift": (f32([1.0, 2.0, 3.0, 4.0]), f32([0.0, -1.0, 5.0, 2.0])),
            "half": (np.array([2.0, 1.0, 0.5, 4.0], np.float16), np.array([1.0, 3.0, 0.25, 2.0], np.float16)),
        },
    ),
    "quantised bias": (
        quantised_bias,
        {
            "xs": (f32(0.05), f32(0.06)),
            "xz": (np.array(3, np.int8), np.array(0, np.int8)),
            "w": (i8(2, 1, 2, 2), i8(2, 1, 2, 2)),
            "ws": (f32(0.01), f32(0.02)),
            "b": (np.array([10, -300], np.int32), np.array([-700, 41], np.int32)),
            "bs": (f32(0.0005), f32(0.0012)),
        },
    ),
    "quantised operators": (
        quantised_operators,
        {
            "xs": (f32(0.05), f32(0.06)),
            "xz": (np.array(3, np.int8), np.array(0, np.int8)),
            "w": (i8(1, 1, 1, 1), i8(1, 1, 1, 1)),
            "ws": (f32(0.01), f32(0.02)),
            "wz": (np.array(0, np.int8), np.array(0, np.int8)),
            "ys": (f32(0.1), f32(0.2)),
            "yz": (np.array(0, np.int8), np.array(-9, np.int8)),
            "b": (np.array([10], np.int32), np.array([-700], np.int32)),
            "m": (i8(4, 4), i8(4, 4)),
            "mz": (np.array(0, np.int8), np.array(5, np.int8)),
            "ms": (f32(0.001), f32(0.002)),
        },
    ),
    "branches": (
        branches,
        {
            "If_y/then_branch/w": (random(4), random(4)),
            "k": (f32([0.5]), f32([1.5])),
            "If_y/else_branch/w": (random(4), random(4)),
            "v": (random(4), random(4)),
            "returned": (random(4), random(4)),
        },
    ),
    "loop": (loop, {"deep": (random(4), random(4)), "shallow": (f32(0.1), f32(0.9))}),
    "scan": (scan, {"decay": (f32([0.5]), f32([0.9])), "start": (random(1, 4, 4), random(1, 4, 4))}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_refit_changes_every_weight(hosting: Hosting, tmp_path: Path, kind: str) -> None:
    make, pairs = KINDS[kind]
    old, new = ({name: pair[which] for name, pair in pairs.items()} for which in (0, 1))
    (tmp_path / "model.onnx").write_bytes(make(old).SerializeToString())
    network = constructed({"file": str(tmp_path / "model.onnx")}, tmp_path / "definition.onnx")
    assert network.parameters.keys() == pairs.keys()

    _, built = hosting.build(network, bound(network, checkpoint(tmp_path / "old", old)))
    _, refitted = hosting.refit(network, built, bound(network, checkpoint(tmp_path / "new", new)))

    for inputs in feeds(make(old)):
        for engine, values in ((built, old), (refitted, new)):
            outputs = hosting.run(engine, inputs)
            for name, expected in computed(make(values), inputs).items():
                np.testing.assert_allclose(outputs[name], expected, rtol=1e-4, atol=1e-5)


def feeds(model: ModelProto) -> list[dict[str, Array]]:
    """Inputs that take every branch."""
    x = np.random.default_rng(3).standard_normal((2, 1, 4, 4)).astype(np.float32)
    if len(model.graph.input) == 1:
        return [{"x": x}]
    return [{"x": x, "c": np.array(taken)} for taken in (True, False)]


def computed(model: ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What onnxruntime makes of the model as it was uploaded."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {"y": session.run(["y"], dict(inputs))[0]}


def test_a_graph_without_weights_is_built_from_nothing(hosting: Hosting, tmp_path: Path) -> None:
    model = model_of([make_node("Relu", ["x"], ["y"])])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    network = constructed({"file": str(tmp_path / "model.onnx")}, tmp_path / "definition.onnx")
    assert not network.parameters
    _, engine = hosting.build(network, ())
    (inputs,) = feeds(model)
    np.testing.assert_array_equal(hosting.run(engine, inputs)["y"], np.maximum(inputs["x"], 0))
