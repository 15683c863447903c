from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from app.children.children import Children
from app.children.house import House

Tensors = Mapping[str, np.ndarray[Any, Any]]
OpenSession = Callable[[Path, Tensors], ort.InferenceSession]


@pytest.fixture
def house(children: Children) -> House:
    return children.definitions


@pytest.fixture
def open_session() -> OpenSession:
    """Opens a weightless graph with the weights it is given; no optimisation, so results compare exactly."""

    def open_(graph: Path, weights: Tensors) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        values = [ort.OrtValue.ortvalue_from_numpy(tensor) for tensor in weights.values()]
        options.add_external_initializers(list(weights), values)
        return ort.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])

    return open_


@pytest.fixture
def tiny_model() -> Callable[..., ModelProto]:
    """Makes a model x [n, 4] -> y of these nodes and initializers."""

    def make(nodes: Sequence[Any] = (), initializers: Sequence[Any] = (), *, opset: int = 17) -> ModelProto:
        graph = make_graph(
            list(nodes) or [make_node("Relu", ["x"], ["y"])],
            "tiny",
            [make_tensor_value_info("x", 1, ["n", 4])],
            [make_tensor_value_info("y", 1, None)],
            list(initializers),
        )
        return make_model(graph, opset_imports=[make_opsetid("", opset)], ir_version=8)

    return make
