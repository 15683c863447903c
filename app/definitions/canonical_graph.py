"""Writes a model so that exporters which say the same in other ways give equal bytes.

Producer, documentation, metadata and inferred shapes (`value_info`) are left out. Initializers and attributes are
sorted by name, and the elements of tensors move to `raw_data`. The order of nodes and all names of values stay. A graph
inside a node keeps more: its name, its inputs and outputs with their documentation, and the order of its initializers.
"""

from collections.abc import Iterable, Sequence

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from app.definitions.graph_walk import attribute_graphs, attribute_tensors
from app.definitions.onnx_file import DEFAULT_DOMAINS
from app.definitions.tensor_data import tensor_bytes

MIN_IR_VERSION = 8
_UNNAMED = {"", "?", "-1", "None", "unk__"}


def canonical_model(
    source: ModelProto, opset: int, nodes: Iterable[NodeProto], initializers: Sequence[TensorProto]
) -> ModelProto:
    """Return a new model with the inputs and outputs of `source`, these nodes and these initializers.

    A dimension of an input or output that has neither a positive extent nor a name of its own gets the name
    "<value>.<axis>". So an extent of 0 or less counts as dynamic: some exporters write that for an unknown extent.
    """
    model = ModelProto(ir_version=max(MIN_IR_VERSION, source.ir_version))
    model.opset_import.add(domain="", version=opset)
    graph = model.graph
    graph.name = "definition"
    for node in nodes:
        _clean_node(graph.node.add(), node)
    for tensor in sorted(initializers, key=lambda tensor: tensor.name):
        _clean_tensor(graph.initializer.add(), tensor)
    for value in source.graph.input:
        _clean_value(graph.input.add(), value)
    for value in source.graph.output:
        _clean_value(graph.output.add(), value)
    return model


def canonical_bytes(model: ModelProto) -> bytes:
    """Return the bytes whose digest is the definition's identity."""
    return model.SerializeToString(deterministic=True)


def is_unnamed(symbol: str) -> bool:
    """Whether a dimension's symbol is one of the exporters' ways to say "unknown"."""
    return symbol in _UNNAMED


def _clean_node(target: NodeProto, source: NodeProto) -> None:
    attributes = sorted(source.attribute, key=lambda attribute: attribute.name)
    target.input.extend(source.input)
    target.output.extend(source.output)
    target.name = source.name
    target.op_type = source.op_type
    target.domain = "" if source.domain in DEFAULT_DOMAINS else source.domain
    for attribute in attributes:
        copy = target.attribute.add()
        copy.CopyFrom(attribute)
        copy.ClearField("doc_string")
        for tensor in attribute_tensors(copy):
            _clean_tensor(tensor, _copy(tensor))
            tensor.ClearField("name")
        for graph in attribute_graphs(copy):
            _clean_subgraph(graph)


def _copy(tensor: TensorProto) -> TensorProto:
    """Return a copy; `_clean_tensor` clears its target before it reads the source."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _clean_subgraph(graph: GraphProto) -> None:
    source = GraphProto()
    source.CopyFrom(graph)
    for field in ("node", "initializer", "doc_string", "value_info", "quantization_annotation", "metadata_props"):
        graph.ClearField(field)
    for node in source.node:
        _clean_node(graph.node.add(), node)
    for tensor in source.initializer:
        _clean_tensor(graph.initializer.add(), tensor)


def _clean_tensor(target: TensorProto, source: TensorProto) -> None:
    """Copy a tensor; embedded values move to `raw_data`, the one form that is the same for every exporter."""
    target.Clear()
    target.name = source.name
    target.data_type = source.data_type
    target.dims.extend(source.dims)
    if source.data_location == TensorProto.EXTERNAL:
        target.data_location = TensorProto.EXTERNAL
        target.external_data.extend(source.external_data)
    else:
        target.raw_data = tensor_bytes(source)


def _clean_value(target: ValueInfoProto, source: ValueInfoProto) -> None:
    target.CopyFrom(source)
    target.ClearField("doc_string")
    target.ClearField("metadata_props")
    target.type.ClearField("denotation")
    if not target.type.HasField("tensor_type"):
        return
    for axis, dim in enumerate(target.type.tensor_type.shape.dim):
        dim.ClearField("denotation")
        if dim.dim_value <= 0 and is_unnamed(dim.dim_param):
            dim.dim_param = f"{source.name}.{axis}"
