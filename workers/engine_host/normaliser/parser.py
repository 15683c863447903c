"""What a graph is normalised for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parser:
    """What is known of the parser that is to take a graph.

    `opset` is the newest version of ONNX's own operators that it knows, and `lacks` are those that it does not know. If
    it takes `single_branches` only, it may mix up the outputs of an If that has several. If it is not
    `dequantises_i32`, its DequantizeLinear takes 8 bits only.
    """

    opset: int
    lacks: frozenset[str] = frozenset()
    single_branches: bool = False
    dequantises_i32: bool = True
