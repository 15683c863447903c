from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from app.definitions.parameter import InputSpec
from tests.workers.networks import network_of
from workers.engine_host import onnx_graph
from workers.engine_host.backends.tensorrt.layout import Layout, lay_out
from workers.engine_host.backends.tensorrt.slots import Slot, TransposedSlot

SHAPES = {"w": (3, 4), "b": (3,), "big": (1031, 517)}


def laid_out(path: Path, nodes: list[NodeProto], *names: str) -> Layout:
    """The layout of a network that reads x [2, 4] and weights of these names."""
    parameters = {name: ("F32", SHAPES[name]) for name in names}
    network_of(path, nodes, parameters, (InputSpec("x", "F32", (2, 4)),), {"y": "F32"})
    return lay_out(onnx_graph.parse(path.read_bytes()))


def operators(layout: Layout) -> list[str]:
    return [node.op_type for node in layout.model.graph.node]


def run(layout: Layout, weights: dict[str, Any], x: Any) -> Any:  # noqa: ANN401 - arrays
    """Run the graph that is compiled, each slot given the value it makes of the weights."""
    model = ModelProto()
    model.CopyFrom(layout.model)
    slots = {slot.name: slot for slot in layout.slots}
    for one in model.graph.initializer:
        if one.name in slots:
            value = slots[one.name].value([weights[name] for name in slots[one.name].sources])
            one.CopyFrom(numpy_helper.from_array(value, one.name))
    (y,) = list(ReferenceEvaluator(model).run(None, {"x": x}))
    return y


@pytest.fixture
def values() -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_a_weight_that_a_gemm_transposes_is_compiled_transposed(tmp_path: Path, values: dict[str, Any]) -> None:
    layout = laid_out(tmp_path / "net", [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], "w", "b")
    (weight,) = [slot for slot in layout.slots if isinstance(slot, TransposedSlot)]
    assert (weight.sources, weight.shape) == (("w",), (4, 3))
    assert not layout.model.graph.node[0].attribute
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_allclose(run(layout, values, x), x @ values["w"].T + values["b"], rtol=1e-6)


def test_a_transpose_of_a_weight_is_done_before_it_is_compiled(tmp_path: Path, values: dict[str, Any]) -> None:
    nodes = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    layout = laid_out(tmp_path / "net", nodes, "w")
    assert operators(layout) == ["Identity", "MatMul"]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(run(layout, values, x), x @ values["w"].T, rtol=1e-6)


def test_a_weight_also_read_as_it_stands_is_there_once(tmp_path: Path, values: dict[str, Any]) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["m"], transB=1),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    layout = laid_out(tmp_path / "net", nodes, "w")
    assert [(slot.name, type(slot)) for slot in layout.slots] == [("w", Slot)]
    assert operators(layout) == ["Identity", "Gemm", "MatMul"]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(run(layout, values, x), x @ values["w"].T @ values["w"], rtol=1e-5)


def test_readers_that_turn_a_weight_alike_share_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], transB=1),
        helper.make_node("Gemm", ["x", "w"], ["b"], transB=1),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    layout = laid_out(tmp_path / "net", nodes, "w")
    assert [slot.shape for slot in layout.slots] == [(4, 3)]


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_weight_that_a_branch_transposes_is_turned_outside(
    tmp_path: Path, values: dict[str, Any], *, is_tied: bool
) -> None:
    result = [helper.make_tensor_value_info("r", 1, None)]
    turned = helper.make_graph([helper.make_node("Gemm", ["x", "w", "b"], ["r"], transB=1)], "turned", [], result)
    plain = helper.make_graph([helper.make_node("Gemm", ["x", "w", "b"], ["r"], transB=1)], "plain", [], result)
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(1, np.bool_))),
        helper.make_node("If", ["yes"], ["h"], then_branch=turned, else_branch=plain),
        helper.make_node("MatMul", ["h", "w"], ["y"]) if is_tied else helper.make_node("Identity", ["h"], ["y"]),
    ]
    layout = laid_out(tmp_path / "net", nodes, "w", "b")
    kinds = {slot.sources: type(slot) for slot in layout.slots}
    assert kinds == {("w",): Slot if is_tied else TransposedSlot, ("b",): Slot}
    x = np.ones((2, 4), np.float32)
    expected = x @ values["w"].T + values["b"]
    np.testing.assert_allclose(run(layout, values, x), expected @ values["w"] if is_tied else expected, rtol=1e-5)


def test_weights_read_as_they_are_stay_as_they_are(tmp_path: Path) -> None:
    layout = laid_out(tmp_path / "net", [helper.make_node("Gemm", ["x", "w"], ["y"], transB=0)], "w")
    assert operators(layout) == ["Gemm"]
    assert [type(slot) for slot in layout.slots] == [Slot]


def test_a_large_weight_is_transposed_whole(values: dict[str, Any]) -> None:
    base = Slot("big", "F32", SHAPES["big"], ("big",), (("F32", SHAPES["big"]),))
    turned = TransposedSlot.of(base, "turned", (1, 0))
    array = turned.value([values["big"]])
    np.testing.assert_array_equal(array, values["big"].T)
    assert array.flags.c_contiguous
