"""Quantised biases in plain operators, for a parser that dequantises activations and kernels only.

A bias of QDQ graphs is a whole number of 32 bits, times a scale: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.
Both may be parameters: a refit sets them as they are, and the product is computed from them.
"""

from collections.abc import Iterator

import onnx_ir as ir

from workers.engine_host.normaliser.chain import Chain
from workers.engine_host.normaliser.rewrites import given, name_of, nodes_of


def multiply_biases(graph: ir.Graph) -> Iterator[str]:
    """Replace each DequantizeLinear of I32 by a Cast and a Mul; yield the names of those that were replaced."""
    for node in nodes_of(graph, "DequantizeLinear"):
        values, scale, zero = node.inputs[0], node.inputs[1], given(node, 2)
        if values is None or scale is None or values.dtype != ir.DataType.INT32 or not _broadcasts(node, values, scale):
            continue
        chain = Chain(node)
        if zero is not None:
            values = chain.add("Sub", values, zero)
        chain.replace_by(_product(chain, values, scale))
        yield name_of(node)


def _product(chain: Chain, values: ir.Value, scale: ir.Value) -> ir.Value:
    """Multiply in F32, as the operator does: F16 may hold the product, but not the whole numbers."""
    wide = chain.add("Cast", values, to=int(ir.DataType.FLOAT))
    if scale.dtype in {None, ir.DataType.FLOAT}:
        return chain.add("Mul", wide, scale)
    product = chain.add("Mul", wide, chain.add("Cast", scale, to=int(ir.DataType.FLOAT)))
    return chain.add("Cast", product, to=int(scale.dtype))


def _broadcasts(node: ir.Node, values: ir.Value, scale: ir.Value) -> bool:
    """Whether there is one scale, or one for each element of the last axis."""
    if values.shape is None or scale.shape is None or len(scale.shape) > 1 or not len(values.shape):
        return False
    if node.attributes.get_int("block_size", 0):
        return False
    rank = len(values.shape)
    return len(scale.shape) == 0 or scale.shape[0] == 1 or node.attributes.get_int("axis", 1) % rank == rank - 1
