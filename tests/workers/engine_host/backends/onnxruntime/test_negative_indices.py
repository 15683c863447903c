"""Indices that count from the end, as ONNX has them for every operator that takes indices as an input."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from tests.workers.hosting import Hosting
from tests.workers.networks import Network, bound, checkpoint, constructed, tensor_files
from workers.channel.messages import BackendError

Array = np.ndarray[Any, np.dtype[Any]]
DATA = np.arange(20, dtype=np.float32).reshape(5, 4)
ROWS = np.full((2, 4), 7, np.float32)


def network(folder: Path, node: NodeProto, indices: tuple[int, ...]) -> Network:
    """An operator on a table that is a weight, and on rows that are an input, if it takes any."""
    inputs = [make_tensor_value_info("i", TensorProto.INT64, indices)]
    if "rows" in node.input:
        inputs.append(make_tensor_value_info("rows", TensorProto.FLOAT, ROWS.shape))
    outputs = [make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = make_graph([node], "g", inputs, outputs, [numpy_helper.from_array(DATA, "table")])
    model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return constructed({"file": str(folder / "model.onnx")}, folder / "definition.onnx")


def scattered(index: Array) -> Array:
    table = DATA.copy()
    table[index] = ROWS
    return table


@pytest.mark.parametrize(
    ("node", "index", "expected"),
    [
        (make_node("Gather", ["table", "i"], ["y"]), np.array([-1, 0, -5]), DATA[[-1, 0, -5]]),
        (make_node("Gather", ["table", "i"], ["y"], axis=1), np.array([-4, 3]), DATA[:, [0, 3]]),
        (
            make_node("GatherElements", ["table", "i"], ["y"]),
            np.array([[-1, -2, 0, -5]]),
            np.take_along_axis(DATA, np.array([[4, 3, 0, 0]]), 0),
        ),
        (make_node("GatherND", ["table", "i"], ["y"]), np.array([[-1, -1], [0, -4]]), DATA[[-1, 0], [-1, 0]]),
        (
            make_node("ScatterElements", ["table", "i", "rows"], ["y"]),
            np.array([[-1] * 4, [-5] * 4]),
            scattered(np.array([4, 0])),
        ),
        (make_node("ScatterND", ["table", "i", "rows"], ["y"]), np.array([[-1], [-4]]), scattered(np.array([4, 1]))),
    ],
    ids=lambda value: value.op_type if isinstance(value, NodeProto) else "",
)
def test_indices_count_from_the_end(
    hosting: Hosting, tmp_path: Path, node: NodeProto, index: Array, expected: Array
) -> None:
    made = network(tmp_path, node, index.shape)
    _, engine = hosting.build(made, bound(made, tensor_files(tmp_path / "definition.safetensors")))
    assert np.array_equal(hosting.run(engine, feeds(node, index))["y"], expected)


@pytest.mark.parametrize("value", [-6, 5])
def test_an_index_outside_is_refused_with_its_bounds(hosting: Hosting, tmp_path: Path, value: int) -> None:
    made = network(tmp_path, make_node("Gather", ["table", "i"], ["y"]), (1,))
    _, engine = hosting.build(made, bound(made, checkpoint(tmp_path / "w", {"table": DATA})))
    with pytest.raises(BackendError, match=rf"holds {value}; its values must lie in \[-5, 5\)"):
        hosting.run(engine, {"i": np.array([value])})


def feeds(node: NodeProto, index: Array) -> Mapping[str, Array]:
    return {"i": index, "rows": ROWS} if "rows" in node.input else {"i": index}
