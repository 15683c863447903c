"""Walks over the nodes, tensors and subgraphs of a graph."""

from collections import Counter
from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto


def with_subgraphs(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes and the nodes of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in attribute_graphs(attribute):
                yield from with_subgraphs(graph.node)


def reads(graph: GraphProto) -> Counter[str]:
    """Count how often nodes and outputs of a graph, and of the graphs inside it, read each name."""
    return Counter(_names_read(graph))


def attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    """Yield every tensor of an attribute."""
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def attribute_graphs(attribute: AttributeProto) -> Iterator[GraphProto]:
    """Yield every subgraph of an attribute."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model: initializers and attributes, of its graphs and its functions."""
    yield from _tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _names_read(graph: GraphProto) -> Iterator[str]:
    for one in graph.output:
        yield one.name
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in attribute_graphs(attribute):
                yield from _names_read(inner)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from attribute_tensors(attribute)
            for graph in attribute_graphs(attribute):
                yield from _tensors(graph)
