"""What decides whether a compiler takes a node, and no more: nodes of which it is the same are described alike."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from app.definitions.graph_walk import attribute_graphs
from app.definitions.tensor_data import DTYPE_NAMES
from workers.engine_host import onnx_graph

Origin = Literal["absent", "computed", "constant", "input", "parameter"]


@dataclass(frozen=True, slots=True)
class Value:
    """An input of a node: dtype (a safetensors name, or ONNX's own) and rank as far as they are known.

    `zero` says whether all elements of a constant are 0.
    """

    origin: Origin
    dtype: str | None = None
    rank: int | None = None
    zero: bool = False


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node: its operator, its inputs, the dtypes of its outputs, and those attributes that are watched."""

    operator: str
    domain: str
    inputs: tuple[Value, ...]
    outputs: tuple[str | None, ...]
    attributes: tuple[tuple[str, Any], ...] = ()

    def input(self, position: int) -> Value:
        """Return an input; one that is not given is "absent"."""
        return self.inputs[position] if position < len(self.inputs) else Value("absent")

    def attribute(self, name: str) -> Any | None:  # noqa: ANN401 - whatever ONNX allows
        """Return the value of a watched attribute, None if the node does not have it."""
        return dict(self.attributes).get(name)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {
            "operator": self.operator,
            "domain": self.domain,
            "inputs": [[one.origin, one.dtype, one.rank, one.zero] for one in self.inputs],
            "outputs": list(self.outputs),
            "attributes": dict(self.attributes),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(
            row["operator"],
            row["domain"],
            tuple(Value(*one) for one in row["inputs"]),
            tuple(row["outputs"]),
            tuple((name, _frozen(value)) for name, value in row["attributes"].items()),
        )


def facts_of(model: ModelProto, attributes: Collection[str]) -> Iterator[tuple[str, NodeFacts]]:
    """Yield the name and the facts of each node, those of inner graphs as well.

    `attributes` are the names of those that are watched. Dtypes and ranks are those that onnx infers; what it does not
    know is unknown.
    """
    bare = onnx_graph.with_parameters_as_inputs(model)
    with suppress(RuntimeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)  # else fewer dtypes and ranks are known
    yield from _nodes(bare.graph, {}, frozenset(onnx_graph.parameters_of(model)), frozenset(attributes))


Scope = Mapping[str, Value]


def _nodes(
    graph: GraphProto, outer: Scope, parameters: Collection[str], attributes: Collection[str]
) -> Iterator[tuple[str, NodeFacts]]:
    scope = {**outer, **_values(graph, parameters)}
    for node in graph.node:
        facts = NodeFacts(
            node.op_type,
            "" if node.domain == "ai.onnx" else node.domain,
            tuple(scope.get(name, Value("computed")) if name else Value("absent") for name in node.input),
            tuple(scope[name].dtype if name in scope else None for name in node.output),
            tuple(sorted((one.name, _attribute(one)) for one in node.attribute if one.name in attributes)),
        )
        yield node.name or next(iter(node.output), node.op_type), facts
        for attribute in node.attribute:
            for inner in attribute_graphs(attribute):
                yield from _nodes(inner, scope, parameters, attributes)


def _values(graph: GraphProto, parameters: Collection[str]) -> dict[str, Value]:
    values = {one.name: _typed("computed", one) for one in (*graph.value_info, *graph.output)}
    values |= {one.name: _typed("parameter" if one.name in parameters else "input", one) for one in graph.input}
    values |= {one.name: _constant(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = _of_constant(node, values.get(node.output[0]))
    return values


def _of_constant(node: NodeProto, known: Value | None) -> Value:
    tensor = next((one.t for one in node.attribute if one.name == "value"), None)
    if tensor is not None:
        return _constant(tensor)
    return Value("constant") if known is None else Value("constant", known.dtype, known.rank)


def _constant(tensor: TensorProto) -> Value:
    is_zero = tensor.data_type != TensorProto.STRING and not np.any(numpy_helper.to_array(tensor))
    return Value("constant", _dtype(tensor.data_type), len(tensor.dims), is_zero)


def _typed(origin: Origin, value: ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.elem_type:
        return Value(origin)
    return Value(origin, _dtype(tensor.elem_type), len(tensor.shape.dim) if tensor.HasField("shape") else None)


def _dtype(code: int) -> str:
    return DTYPE_NAMES.get(code) or str(TensorProto.DataType.Name(code))


def _attribute(attribute: AttributeProto) -> Any:  # noqa: ANN401 - whatever ONNX allows
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode(errors="replace") if isinstance(value, bytes) else _frozen(value)


def _frozen(value: Any) -> Any:  # noqa: ANN401 - JSON
    return tuple(value) if isinstance(value, list) else value
