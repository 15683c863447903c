from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.definitions.parameter import InputSpec
from app.definitions.profiles import Range
from tests.workers.networks import Network, attention, network_of, perceptron
from workers.channel.messages import BackendError, Build
from workers.engine_host import onnx_graph
from workers.engine_host.cost import Costs, check_loops, largest_value

GIB = 1 << 30


def doubling(path: Path, times: int) -> Network:
    """x * w, doubled again and again."""
    nodes = [helper.make_node("Mul", ["x", "w"], ["c0"])]
    for number in range(times):
        two = [f"c{number}", f"c{number}"]
        nodes.append(helper.make_node("Concat", two, [f"c{number + 1}"], name=f"double{number}", axis=0))
    nodes.append(helper.make_node("ReduceSum", [f"c{times}"], ["y"], keepdims=0))
    return network_of(path, nodes, {"w": ("F32", (64,))}, (InputSpec("x", "F32", ("n", 64)),), {"y": "F32"})


def test_a_value_that_grows_with_the_profile_is_refused_before_anything_runs(tmp_path: Path) -> None:
    network = doubling(tmp_path / "definition.onnx", 24)
    profile = {"x": Range((1, 64), (1, 64), (4, 64))}
    build = Build("onnxruntime", str(network.path), (), network.inputs, "", profiles=(profile,))
    with pytest.raises(
        BackendError, match=r"x \[4, 64\] .*'c24' \(Concat 'double23'\).*16.0 GiB, and 4.0 GiB"
    ) as caught:
        Costs(lambda _weights: 4 * GIB).check_build(build)
    assert caught.value.code == "too_costly"
    Costs(lambda _weights: 16 * GIB).check_build(build)


def test_the_limit_grows_with_the_weights(tmp_path: Path) -> None:
    network = doubling(tmp_path / "definition.onnx", 10)
    build = Build("", str(network.path), (), (), "", profiles=({"x": Range((1, 64), (1, 64), (1, 64))},))
    asked: list[int] = []

    def limit(weights: int) -> int:
        asked.append(weights)
        return GIB

    Costs(limit).check_build(build)
    assert asked == [0]


def test_the_largest_value_of_a_real_graph_is_found(tmp_path: Path) -> None:
    network = attention(tmp_path / "definition.onnx", width=16, heads=2)
    value = largest_value(onnx_graph.parse(network.path.read_bytes()), {"ids": (2, 128)})
    assert value is not None
    assert value.shape == (2, 2, 128, 128)
    assert value.nbytes == 4 * 2 * 2 * 128 * 128


def test_shapes_that_depend_on_values_are_left_to_the_limits(tmp_path: Path) -> None:
    nodes = [helper.make_node("Expand", ["x", "shape"], ["r"]), helper.make_node("Mul", ["r", "w"], ["y"])]
    inputs = (InputSpec("x", "F32", ("n",)), InputSpec("shape", "I64", (2,)))
    network = network_of(tmp_path / "definition.onnx", nodes, {"w": ("F32", (1,))}, inputs, {"y": "F32"})
    value = largest_value(onnx_graph.parse(network.path.read_bytes()), {"x": (1,), "shape": (2,)})
    assert value is None or value.nbytes < GIB


def looping(condition: str, trips: str) -> onnx.ModelProto:
    """A Loop that begins with the condition "" or "yes"; its body keeps the condition, or computes it."""
    computed = [helper.make_node("ReduceMax", ["b"], ["m"], keepdims=0), helper.make_node("Less", ["m", "ten"], ["co"])]
    kept = [helper.make_node("Identity", ["ci"], ["between"]), helper.make_node("Identity", ["between"], ["co"])]
    body = helper.make_graph(
        [helper.make_node("Add", ["a", "a"], ["b"]), *(computed if condition == "computed" else kept)],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("ci", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("co", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
    )
    first = "" if condition == "none" else "given" if condition == "given" else "yes"
    node = helper.make_node("Loop", [trips, first, "x"], ["y"], body=body, name="again")
    values: dict[str, Any] = {"yes": np.ones((), np.bool_), "ten": np.array(10, np.float32)}
    values |= {"few": np.array(10), "huge": np.array(2**62)}
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph)


@pytest.mark.parametrize(
    ("condition", "trips", "says"),
    [
        ("kept", "", "has neither a bound nor a condition"),
        ("kept", "huge", f"makes {2**62} trips"),
        ("none", "huge", f"makes {2**62} trips"),
    ],
)
def test_a_loop_that_cannot_end_is_refused(condition: str, trips: str, says: str) -> None:
    with pytest.raises(BackendError, match=f"The Loop 'again' {says}") as caught:
        check_loops(looping(condition, trips))
    assert caught.value.code == "too_costly"


@pytest.mark.parametrize(
    ("condition", "trips"),
    [("kept", "few"), ("none", "few"), ("computed", ""), ("computed", "huge"), ("given", "huge"), ("none", "asked")],
)
def test_a_loop_that_may_end_is_left_to_the_deadline(condition: str, trips: str) -> None:
    check_loops(looping(condition, trips))


def test_what_was_told_once_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = perceptron(tmp_path / "definition.onnx")
    build = Build("", str(network.path), (), (), "", profiles=({"x": Range((1, 8), (1, 8), (4, 8))},))
    calls: list[int] = []
    monkeypatch.setattr("workers.engine_host.cost.largest_value", lambda *_: calls.append(1))
    costs = Costs(lambda _weights: 0)
    costs.check_build(build)
    costs.check_build(build)
    assert calls == [1]
