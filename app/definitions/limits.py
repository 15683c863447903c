"""How much an uploaded graph may ask for. Generous for real models, far below what would hurt the service."""

from app.children.limits import PATIENCE, ChildLimits

MIB = 1024 * 1024
GIB = 1024 * MIB

MIN_OPSET = 7  # the oldest whose operators onnxruntime guarantees
MAX_OPSET = 26  # the newest that onnxruntime 1.32 runs completely
MAX_CONVERTED_OPSET = 24  # the newest that a graph is converted to
MAX_NODES = 100_000  # subgraphs and functions included
MAX_TENSORS = 100_000
MAX_INPUTS = 500  # and as many outputs: each read of a definition tells of them, and a decoder has two for each layer
MAX_SUBGRAPH_DEPTH = 8
MAX_FUNCTION_DEPTH = 100  # calls of local functions inside each other
MAX_VALUE_BYTES = 4 * GIB  # of any value whose shape the graph itself fixes
MAX_CONSTANT_BYTES = 64 * MIB  # of all values that stay embedded once the weights are split off, subgraphs included


def child_limits(file_bytes: int) -> ChildLimits:
    """Return the limits for one file.

    Parsing holds the bytes once and the parsed message once; inlining functions holds two more copies.
    """
    seconds = 60 + file_bytes // (32 * MIB)
    return ChildLimits(
        address_space=2 * GIB + 5 * file_bytes,
        file_size=file_bytes + 256 * MIB,
        cpu_s=seconds,
        wall_s=PATIENCE * seconds,
    )
