"""What a graph is normalised for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parser:
    """What is known of the parser that is to take a graph.

    `opset` is the newest version of ONNX's own operators that it knows, and `lacks` are operators of it that it does
    not know. If it is `single_branches`, it is to be trusted with an If of one output only.
    If it is not `dequantises_i32`, a quantised bias is none of its own.
    """

    opset: int
    lacks: frozenset[str] = frozenset()
    single_branches: bool = False
    dequantises_i32: bool = True
