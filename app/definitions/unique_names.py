"""Gives every value of a model a name of its own, so that one table of names serves the graph and its branches.

ONNX lets two branches of an `If` use one name for different values. The main graph keeps its names. A name that occurs
in more than one graph becomes "<node>/<attribute>/<name>" in each branch. Equal models get equal names.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto

from app.definitions.graph_walk import attribute_graphs
from app.definitions.rejection import Rejected
from app.weights.checkpoint import MAX_NAME_LENGTH, is_safe_name


def make_names_unique(model: ModelProto) -> None:
    """Rename, in place, what is named in more than one graph; raises Rejected if such a name becomes too long."""
    counts = Counter(name for graph in _graphs(model.graph) for name in _own_names(graph))
    renaming = _Renaming({name for name, count in counts.items() if count > 1}, set(counts))
    renaming.visit(model.graph)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in attribute_graphs(attribute):
                yield from _graphs(inner)


def _own_names(graph: GraphProto) -> set[str]:
    """Return the names of the values that a graph itself makes, takes or holds."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    names.update(name for node in graph.node for name in node.output)
    return names - {""}


@dataclass(slots=True)
class _Renaming:
    repeated: set[str]
    taken: set[str]
    scopes: list[Mapping[str, str]] = field(default_factory=list)

    def visit(self, graph: GraphProto) -> None:
        """Rename the values of the graphs inside this one."""
        for node in graph.node:
            for attribute in sorted(node.attribute, key=lambda one: one.name):
                for number, inner in enumerate(attribute_graphs(attribute)):
                    place = f"{attribute.name}.{number}" if number else attribute.name
                    self._rename(inner, f"{node.name or node.output[0]}/{place}")

    def _rename(self, graph: GraphProto, path: str) -> None:
        own = sorted(_own_names(graph))
        self.scopes.append({name: self._new_name(path, name) if name in self.repeated else name for name in own})
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.name = self._name(value.name)
        for tensor in graph.initializer:
            tensor.name = self._name(tensor.name)
        for node in graph.node:
            self._rename_node(node)
        self.visit(graph)
        self.scopes.pop()

    def _rename_node(self, node: NodeProto) -> None:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = self._name(name)

    def _name(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), name)

    def _new_name(self, path: str, name: str) -> str:
        wanted = new = f"{path}/{name}"
        number = 1
        while new in self.taken:
            new = f"{wanted}.{number}"
            number += 1
        if not is_safe_name(new):
            raise Rejected(
                "bad_name",
                f"The name {name[:80]!r} is given in more than one branch, and with the branch's own name it is longer "
                f"than {MAX_NAME_LENGTH} characters. Rename it and export the model again.",
            )
        self.taken.add(new)
        return new
