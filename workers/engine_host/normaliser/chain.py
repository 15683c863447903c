"""Nodes that take the place of one."""

from collections.abc import Sequence

import onnx_ir as ir

from workers.engine_host.normaliser.rewrites import copy_type, name_of


class Chain:
    """Nodes that are put in front of one in its graph, until the value of one of them replaces its only output."""

    def __init__(self, node: ir.Node) -> None:
        """Raises ValueError if the node is in no graph."""
        if node.graph is None:
            raise ValueError(f"{name_of(node)} is in no graph")
        self._node = node
        self._graph = node.graph
        self._count = 0

    def add(self, operator: str, *inputs: ir.Value, **attributes: int | Sequence[int]) -> ir.Value:
        """Put a node of this operator in front, and return what it gives."""
        self._count += 1
        made = ir.node(operator, inputs, attributes, name=f"{name_of(self._node)}.{operator}.{self._count}")
        made.outputs[0].name = f"{self._node.outputs[0].name}.{operator}.{self._count}"
        self._graph.insert_before(self._node, [made])
        return made.outputs[0]

    def replace_by(self, value: ir.Value) -> None:
        """Let the value of a node that was added be what the replaced one gave, under its name."""
        output = self._node.outputs[0]
        copy_type(output, value)
        ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
        value.name, output.name = output.name, f"{output.name}.replaced"
        self._graph.remove(self._node, safe=True)
