"""Rewrites of single nodes: what is left to the shape of a value, or has no bound, is said outright.

Each function changes a graph where it stands and yields the names of the nodes that it changed.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from workers.engine_host.normaliser.ranges import Ranges
from workers.engine_host.tensors import Array

AXES_AS_INPUT = 13  # the opset from which Squeeze takes its axes as an input
FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}


def name_squeezed_axes(graph: ir.Graph, ranges: Ranges, opset: int) -> Iterator[str]:
    """Give each Squeeze without axes those that are 1 in every shape; one that may or may not be 1 is left to run."""
    for node in nodes_of(graph, "Squeeze"):
        if node.attributes.get_ints("axes", None) is not None or given(node, 1) is not None:
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
    for node in nodes_of(graph, "Clip"):
        dropped = False
        for position, name, sign in ((1, "min", -1), (2, "max", 1)):
            value, attribute = given(node, position), node.attributes.get_float(name, None)
            if value is not None and _bounds_nothing(value, sign):
                node.replace_input_with(position, None)
                dropped = True
            elif attribute is not None and sign * attribute >= np.finfo(np.float32).max:
                del node.attributes[name]
                dropped = True
        if dropped:
            yield name_of(node)


def slice_whole_shapes(graph: ir.Graph) -> Iterator[str]:
    """Take a part of a shape by a Slice of the whole: not every parser knows the attributes that name the part."""
    for node in nodes_of(graph, "Shape"):
        start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
        if not start and end is None:
            continue
        node.attributes.pop("start", None)
        node.attributes.pop("end", None)
        bounds = (start or 0, np.iinfo(np.int64).max if end is None else end)
        _slice_behind(node, [0], [bounds[0]], [bounds[1]])
        yield name_of(node)


def crop_by_slices(graph: ir.Graph) -> Iterator[str]:
    """Let a Pad only add, and a Slice behind it take away what negative pads would."""
    for node in nodes_of(graph, "Pad"):
        pads = constant_of(node, 1)
        if pads is None or given(node, 3) is not None or not (pads < 0).any():
            continue
        before, after = pads.reshape(2, -1)
        axes = [axis for axis in range(before.size) if before[axis] < 0 or after[axis] < 0]
        node.replace_input_with(1, constant_before(node, "pads", np.maximum(pads, 0)))
        starts = [max(-int(before[axis]), 0) for axis in axes]
        ends = [int(after[axis]) if after[axis] < 0 else np.iinfo(np.int64).max for axis in axes]
        _slice_behind(node, axes, starts, ends)
        yield name_of(node)


def type_exponents(graph: ir.Graph) -> Iterator[str]:
    """Give a Pow a constant exponent of its base's own type, if that says the same."""
    for node in nodes_of(graph, "Pow"):
        base, exponent = node.inputs[0], constant_of(node, 1)
        if base is None or base.dtype is None or exponent is None or base.dtype not in FLOATS:
            continue
        typed = exponent.astype(base.dtype.numpy())
        if typed.dtype != exponent.dtype and (typed.astype(exponent.dtype) == exponent).all():
            node.replace_input_with(1, constant_before(node, "exponent", typed))
            yield name_of(node)


def name_kernel_shapes(graph: ir.Graph) -> Iterator[str]:
    """Let each Conv whose kernel is computed name the kernel's shape, if it is known."""
    for node in [*nodes_of(graph, "Conv"), *nodes_of(graph, "ConvTranspose")]:
        kernel = node.inputs[1]
        if "kernel_shape" in node.attributes or kernel is None or kernel.producer() is None or kernel.shape is None:
            continue
        sizes = [size for size in kernel.shape[2:] if isinstance(size, int)]
        if kernel.const_value is None and len(sizes) == len(kernel.shape) - 2:
            node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", sizes)
            yield name_of(node)


def keep_constants_in_branches(graph: ir.Graph) -> None:
    """Make the initializers of branches Constant nodes again: not every parser reads initializers of inner graphs."""
    for inner in list(graph.subgraphs()):
        for name, value in list(inner.initializers.items()):
            tensor = value.const_value
            if tensor is None:
                continue
            constant = ir.node("Constant", [], {"value": tensor}, name=f"{name}.constant")
            made = constant.outputs[0]
            inner.initializers.pop(name)
            made.name, made.const_value, made.dtype, made.shape = name, tensor, tensor.dtype, value.shape
            first = next(iter(inner), None)
            if first is None:
                inner.append(constant)
            else:
                inner.insert_before(first, [constant])
            ir.convenience.replace_all_uses_with(value, made, replace_graph_outputs=True)


def name_unused_outputs(graph: ir.Graph) -> None:
    """Name the outputs that nothing reads: a parser may take one without a name for the input that has none either."""
    for node in graph.all_nodes():
        for index, output in enumerate(node.outputs):
            if not output.name:
                output.name = f"{name_of(node)}.unused.{index}"


def _slice_behind(node: ir.Node, axes: list[int], starts: list[int], ends: list[int]) -> None:
    """Put a Slice behind a node, whose output becomes the Slice's."""
    whole = node.outputs[0]
    bounds = [
        constant_before(node, what, np.array(values, np.int64))
        for what, values in (("starts", starts), ("ends", ends), ("axes", axes))
    ]
    part = ir.node("Slice", [whole, *bounds], name=f"{name_of(node)}.part")
    sliced = part.outputs[0]
    copy_type(whole, sliced)
    graph = node.graph
    if graph is None:
        raise ValueError(f"{name_of(node)} is in no graph")
    ir.convenience.replace_all_uses_with(whole, sliced, replace_graph_outputs=True)
    part.replace_input_with(0, whole)
    sliced.name, whole.name = whole.name, f"{whole.name}.whole"
    whole.shape = None
    graph.insert_after(node, [part])


def constant_before(node: ir.Node, what: str, array: Array) -> ir.Value:
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


def constant_of(node: ir.Node, position: int) -> Array | None:
    """Return the value of an input that is a constant, else None."""
    value = given(node, position)
    return None if value is None or value.const_value is None else value.const_value.numpy()


def copy_type(value: ir.Value, to: ir.Value) -> None:
    """Give another value the dtype and the shape of this one, as far as they are known."""
    to.shape = value.shape
    if value.dtype is not None:
        to.dtype = value.dtype


def name_of(node: ir.Node) -> str:
    """Return the node's name, or that of its first output if it has none."""
    return node.name or node.outputs[0].name or node.op_type


def nodes_of(graph: ir.Graph, operator: str) -> Iterator[ir.Node]:
    """Yield the nodes of one of ONNX's own operators, those of inner graphs as well; they may be removed meanwhile."""
    for node in list(graph.all_nodes()):
        if node.op_type == operator and node.domain in {"", "ai.onnx"}:
            yield node


def given(node: ir.Node, position: int) -> ir.Value | None:
    """Return an input, None if the node does not have it."""
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
