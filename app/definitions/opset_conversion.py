"""Converts a weightless graph to another version of the operator set, with onnx.version_converter.

The library converts the main graph alone. So a graph is refused if an operator inside a body of If, Loop or Scan is
another one in the version wanted.
"""

from collections.abc import Iterator

from onnx import ModelProto, NodeProto, TensorProto
from onnx.defs import SchemaError, get_schema
from onnx.helper import make_node
from onnx.version_converter import ConvertError, convert_version

from app.definitions.canonical_graph import canonical_model
from app.definitions.graph_walk import attribute_graphs, with_subgraphs
from app.definitions.interface import with_parameters_as_inputs
from app.definitions.onnx_file import opset_of
from app.definitions.rejection import Rejected


def convert_opset(model: ModelProto, opset: int) -> ModelProto:
    """Return a weightless model in another opset, with the same parameters.

    Raises Rejected "opset_not_convertible".
    """
    before = opset_of(model)
    if before == opset:
        return model
    _check_bodies(model, before, opset)
    skeleton = with_parameters_as_inputs(model)
    _give_each_use_its_constant(skeleton)
    try:
        converted = convert_version(skeleton, opset)
    except (ConvertError, RuntimeError) as error:
        raise _refused(before, opset, str(error).rpartition("failed: ")[2].rpartition("\n")[2]) from error
    parameters = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    names = {tensor.name for tensor in parameters}
    inputs = [value for value in converted.graph.input if value.name not in names]
    del converted.graph.input[:]
    converted.graph.input.extend(inputs)
    return canonical_model(converted, opset, converted.graph.node, [*parameters, *converted.graph.initializer])


def _check_bodies(model: ModelProto, before: int, after: int) -> None:
    for node in _in_bodies(model):
        if _version_of(node, before) != _version_of(node, after):
            raise _refused(before, after, f"{node.op_type} inside a body of If, Loop or Scan differs between the two")


def _in_bodies(model: ModelProto) -> Iterator[NodeProto]:
    for node in model.graph.node:
        for attribute in node.attribute:
            for graph in attribute_graphs(attribute):
                yield from with_subgraphs(graph.node)


def _version_of(node: NodeProto, opset: int) -> int | None:
    """Return since when an operator is what it is in this opset; None if the opset does not have it."""
    try:
        return get_schema(node.op_type, opset, "").since_version
    except SchemaError:
        return None


def _give_each_use_its_constant(skeleton: ModelProto) -> None:
    """Turn initializers into Constant nodes, one for each use: an adapter takes away the axes it makes an attribute."""
    values = {tensor.name: tensor for tensor in skeleton.graph.initializer}
    outputs = {value.name for value in skeleton.graph.output}
    in_bodies = {name for node in _in_bodies(skeleton) for name in node.input}
    nodes: list[NodeProto] = []
    for number, node in enumerate(skeleton.graph.node):
        for position, name in enumerate(node.input):
            if name in values:
                copy = f"{name}/{number}.{position}"
                nodes.append(make_node("Constant", [], [copy], value=values[name]))
                node.input[position] = copy
        nodes.append(node)
    kept = [tensor for name, tensor in values.items() if name in outputs or name in in_bodies]
    del skeleton.graph.initializer[:], skeleton.graph.node[:]
    skeleton.graph.initializer.extend(kept)
    skeleton.graph.node.extend(nodes)


def _refused(before: int, after: int, reason: str) -> Rejected:
    return Rejected(
        "opset_not_convertible",
        f"The graph cannot be converted from opset {before} to {after}: {reason[:300].strip().rstrip('.')}. "
        f"Export the model with opset_version={after}, or leave `opset` out and use a backend that takes {before}.",
    )
