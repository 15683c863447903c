"""Composes ONNX graphs from operators, parameters and constants, with names that never change.

Weights of dense layers stay in the layout of the checkpoint. Gemm takes [in, out] as it is and [out, in] with transB=1.
A Transpose node in front of MatMul would be folded into a second copy under another name, which a refit would miss,
and a transposing binding rule would copy every weight.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.helper import make_attribute, make_node, make_operatorsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from app.definitions.canonical_graph import MIN_IR_VERSION, canonical_model
from app.definitions.tensor_data import ONNX_TYPES, external_tensor

OPSET = 17  # the newest that TensorRT 8.6 parses
Attribute = int | float | str | Sequence[int]


class GraphBuilder:
    """A graph under construction. Values are known by their names."""

    def __init__(self) -> None:
        self._model = ModelProto(ir_version=MIN_IR_VERSION)
        self._model.opset_import.append(make_operatorsetid("", OPSET))
        self._initializers: dict[str, TensorProto] = {}
        self._scope: list[str] = []
        self._counts: dict[str, int] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Put `name.` before the parameters and nodes made in this block."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare an input; a symbol stands for a dynamic dimension."""
        self._model.graph.input.append(make_tensor_value_info(name, ONNX_TYPES[dtype], shape))
        return name

    def output(self, name: str, value: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Give a value out under another name."""
        self._model.graph.node.append(make_node("Identity", [value], [name], name=name))
        self._model.graph.output.append(make_tensor_value_info(name, ONNX_TYPES[dtype], shape))

    def parameter(self, name: str, dtype: str, shape: Sequence[int]) -> str:
        """Declare a parameter of the present scope and return its full name."""
        full = ".".join([*self._scope, name])
        self._initializers[full] = external_tensor(full, dtype, shape)
        return full

    def ints(self, *values: int) -> str:
        """Return a constant of shape [len(values)], I64."""
        return self._constant("ints." + "_".join(map(str, values)), np.array(values, np.int64))

    def index(self, value: int) -> str:
        """Return a constant of shape [], I64."""
        return self._constant(f"index.{value}", np.array(value, np.int64))

    def arange(self, length: int) -> str:
        """Return the constant 0, 1, ..., length - 1, I64 [length]."""
        return self._constant(f"arange.{length}", np.arange(length, dtype=np.int64))

    def scalar(self, value: float, dtype: str) -> str:
        """Return a constant of shape [], F32 or F16."""
        kind = {"F32": np.float32, "F16": np.float16}[dtype]
        return self._constant(f"{dtype}.{value!r}", np.array(value, kind))

    def op(self, kind: str, *inputs: str, **attributes: Attribute) -> str:
        """Add a node with one output and return the output's name."""
        name = self._node_name(kind)
        node = make_node(kind, list(inputs), [name], name=name)
        node.attribute.extend(make_attribute(key, value) for key, value in attributes.items())
        self._model.graph.node.append(node)
        return name

    def split(self, value: str, *sizes: int, axis: int) -> list[str]:
        """Cut a value along an axis into parts of these sizes and return their names."""
        name = self._node_name("Split")
        parts = [f"{name}.{part}" for part in range(len(sizes))]
        self._model.graph.node.append(make_node("Split", [value, self.ints(*sizes)], parts, name=name, axis=axis))
        return parts

    def cast(self, value: str, dtype: str) -> str:
        """Convert a value to another element type."""
        return self.op("Cast", value, to=ONNX_TYPES[dtype])

    def finish(self) -> ModelProto:
        """Return the model in canonical form."""
        graph = self._model.graph
        return canonical_model(self._model, OPSET, graph.node, list(self._initializers.values()))

    def _node_name(self, kind: str) -> str:
        base = "/".join([*self._scope, kind])
        count = self._counts[base] = self._counts.get(base, 0) + 1
        return f"{base}_{count}"

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        full = f"constant.{name}"
        self._initializers.setdefault(full, from_array(values, full))
        return full
