"""Rewrites of single nodes: what is left to the shape of a value, or has no bound, is said outright.

Each function changes a graph where it stands and yields the names of the nodes that it changed.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from workers.engine_host.normaliser.ranges import Ranges

AXES_AS_INPUT = 13  # the opset from which Squeeze takes its axes as an input
BOUNDS_AS_INPUTS = 11  # the opset from which Clip takes its bounds as inputs


def name_squeezed_axes(graph: ir.Graph, ranges: Ranges, opset: int) -> Iterator[str]:
    """Give each Squeeze without axes those that are 1 in every shape; one that may or may not be 1 is left to run."""
    for node in _nodes(graph, "Squeeze"):
        if node.attributes.get_ints("axes", None) is not None or _given(node, 1) is not None:
            continue
        squeezed = node.inputs[0]
        if squeezed is None or squeezed.shape is None:
            continue
        sizes = [ranges.size(dim) for dim in squeezed.shape]
        if any(size.value != 1 and size.low <= 1 <= size.high for size in sizes):
            continue
        axes = [axis for axis, size in enumerate(sizes) if size.value == 1]
        if opset < AXES_AS_INPUT:
            node.attributes["axes"] = ir.AttrInt64s("axes", axes)
        else:
            _give(node, 1, constant_before(node, "axes", np.array(axes, np.int64)))
        yield name_of(node)


def drop_infinite_bounds(graph: ir.Graph) -> Iterator[str]:
    """Leave out each bound of a Clip that bounds nothing."""
    for node in _nodes(graph, "Clip"):
        dropped = False
        for position, name, sign in ((1, "min", -1), (2, "max", 1)):
            value, attribute = _given(node, position), node.attributes.get_float(name, None)
            if value is not None and _bounds_nothing(value, sign):
                node.replace_input_with(position, None)
                dropped = True
            elif attribute is not None and sign * attribute >= np.finfo(np.float32).max:
                del node.attributes[name]
                dropped = True
        if dropped:
            yield name_of(node)


def constant_before(node: ir.Node, what: str, array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> ir.Value:
    """Put a Constant in front of a node, and return its value."""
    tensor = ir.tensor(array)
    constant = ir.node("Constant", [], {"value": tensor}, name=f"{name_of(node)}.{what}")
    value = constant.outputs[0]
    value.name, value.const_value = f"{node.outputs[0].name}.{what}", tensor
    value.dtype, value.shape = tensor.dtype, ir.Shape(array.shape)
    graph = node.graph
    if graph is None:
        raise ValueError(f"{name_of(node)} is in no graph")
    graph.insert_before(node, [constant])
    return value


def constant_of(node: ir.Node, position: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None":
    """Return the value of an input that is a constant, else None."""
    value = _given(node, position)
    return None if value is None or value.const_value is None else value.const_value.numpy()


def name_of(node: ir.Node) -> str:
    """Return the node's name, or that of its first output if it has none."""
    return node.name or node.outputs[0].name or node.op_type


def _nodes(graph: ir.Graph, operator: str) -> Iterator[ir.Node]:
    for node in list(graph.all_nodes()):
        if node.op_type == operator and node.domain in {"", "ai.onnx"}:
            yield node


def _given(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if len(node.inputs) > position else None


def _give(node: ir.Node, position: int, value: ir.Value) -> None:
    if len(node.inputs) <= position:
        node.resize_inputs(position + 1)
    node.replace_input_with(position, value)


def _bounds_nothing(value: ir.Value, sign: int) -> bool:
    if value.const_value is None:
        return False
    bound = value.const_value.numpy()
    if bound.size != 1 or not np.issubdtype(bound.dtype, np.floating):
        return False
    return bool(sign * bound.reshape(-1)[0] >= np.finfo(bound.dtype).max)
