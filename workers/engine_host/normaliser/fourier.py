"""Fourier transforms as products with a constant matrix, for a parser that lacks their operators.

A transform of a constant length is linear, so it is a MatMul. The frames of a short-time transform are a Conv whose
kernels have a single 1 each. The window is multiplied separately: it may be a parameter.
Source: https://onnx.ai/onnx/operators/onnx__DFT.html and https://onnx.ai/onnx/operators/onnx__STFT.html.
"""

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from workers.engine_host.normaliser.chain import Chain
from workers.engine_host.normaliser.rewrites import (
    FLOATS,
    constant_before,
    constant_of,
    given,
    name_of,
    nodes_of,
)
from workers.engine_host.tensors import Array

AXIS_AS_INPUT = 20  # the opset from which DFT takes its axis as an input
MAX_LENGTH = 2048  # the matrix of a complex transform of that length takes 64 MB in F32


def say_sides(graph: ir.Graph) -> None:
    """Let each STFT say that it is one-sided, if it is so by default: onnx infers the shape of a two-sided one then."""
    for node in nodes_of(graph, "STFT"):
        node.attributes.setdefault("onesided", ir.AttrInt64("onesided", 1))


def multiply_out(graph: ir.Graph, lacking: Collection[str], opset: int) -> Iterator[str]:
    """Replace the transforms of which the lengths are known; yield the names of their nodes."""
    if "STFT" in lacking:
        yield from filter(None, map(_replace_stft, nodes_of(graph, "STFT")))
    if "DFT" in lacking:
        yield from (name for node in nodes_of(graph, "DFT") if (name := _replace_dft(node, opset)))


def _replace_stft(node: ir.Node) -> str:
    """Replace an STFT: frames of the signal, times the window, times the matrix. Returns "" if it has to stay."""
    signal, window, step = node.inputs[0], given(node, 2), constant_of(node, 1)
    length = _stft_length(node)
    if signal is None or signal.shape is None or signal.dtype not in FLOATS or step is None or length is None:
        return ""
    rank, dtype = len(signal.shape), signal.dtype.numpy()
    if rank not in {2, 3} or (rank == 3 and signal.shape[2] != 1):
        return ""
    chain = Chain(node)
    if rank == 2:
        channel = chain.add("Unsqueeze", signal, constant_before(node, "channel", np.array([1])))
    else:
        channel = chain.add("Transpose", signal, perm=[0, 2, 1])
    ones = constant_before(node, "ones", np.eye(length, dtype=dtype)[:, None, :])
    frames = chain.add("Conv", channel, ones, kernel_shape=[length], strides=[int(step.reshape(-1)[0])])
    frames = chain.add("Transpose", frames, perm=[0, 2, 1])
    if window is not None:
        frames = chain.add("Mul", frames, window)
    onesided = bool(node.attributes.get_int("onesided", 1))
    matrix = transform(length, length, length // 2 + 1 if onesided else length, is_complex=False)
    return _finish(chain, node, frames, matrix.astype(dtype), rank=3)


def _stft_length(node: ir.Node) -> int | None:
    window, given_length = given(node, 2), constant_of(node, 3)
    length = None if given_length is None else int(given_length.reshape(-1)[0])
    if window is not None:
        size = window.shape[0] if window.shape is not None and len(window.shape) == 1 else None
        if not isinstance(size, int) or (length is not None and size != length):
            return None
        length = size
    return length if length is not None and 0 < length <= MAX_LENGTH else None


def _replace_dft(node: ir.Node, opset: int) -> str:
    """Replace a DFT along the last axis before the parts of its numbers. Returns "" if it has to stay."""
    values = node.inputs[0]
    if values is None or values.shape is None or values.dtype not in FLOATS:
        return ""
    rank = len(values.shape)
    count, parts = values.shape[-2], values.shape[-1]
    axis = _axis(node, opset)
    known = constant_of(node, 1)
    length = count if given(node, 1) is None else None if known is None else int(known.reshape(-1)[0])
    inverse, onesided = (bool(node.attributes.get_int(name, 0)) for name in ("inverse", "onesided"))
    if axis is None or axis % rank != rank - 2 or parts not in {1, 2} or (onesided and (inverse or parts == 2)):
        return ""
    if not isinstance(count, int) or not isinstance(length, int) or not 0 < max(count, length) <= MAX_LENGTH:
        return ""
    bins = length // 2 + 1 if onesided else length
    matrix = transform(count, length, bins, is_complex=parts == 2, inverse=inverse)
    chain = Chain(node)
    flat = constant_before(node, "flat", np.array([0] * (rank - 2) + [matrix.shape[0]]))
    return _finish(chain, node, chain.add("Reshape", values, flat), matrix.astype(values.dtype.numpy()), rank=rank - 1)


def _axis(node: ir.Node, opset: int) -> int | None:
    if opset < AXIS_AS_INPUT:
        return node.attributes.get_int("axis", 1)
    axis = constant_of(node, 2)
    if axis is None:
        return -2 if given(node, 2) is None else None
    return int(axis.reshape(-1)[0])


def transform(count: int, length: int, bins: int, *, is_complex: bool, inverse: bool = False) -> Array:
    """Return the float64 matrix of a transform of `length`: what is missing of `count` values is 0, the rest is left.

    The shape is [count, 2 bins], or [2 count, 2 bins] if the values are complex: real and imaginary parts alternate.
    """
    used = np.arange(count) < length
    turns = np.outer(np.arange(count), np.arange(bins)) % length  # exact in integers
    angles = (2 if inverse else -2) * np.pi * turns / length
    scale = used[:, None] / (length if inverse else 1)
    real, imaginary = np.cos(angles) * scale, np.sin(angles) * scale
    of_real = np.stack([real, imaginary], -1)
    if not is_complex:
        return of_real.reshape(count, 2 * bins)
    of_imaginary = np.stack([-imaginary, real], -1)
    return np.stack([of_real, of_imaginary], 1).reshape(2 * count, 2 * bins)


def _finish(chain: Chain, node: ir.Node, values: ir.Value, matrix: Array, rank: int) -> str:
    """Multiply by the matrix, and give real and imaginary parts an axis; returns the name of the node replaced."""
    product = chain.add("MatMul", values, constant_before(node, "transform", matrix))
    pairs = np.array([0] * (rank - 1) + [matrix.shape[1] // 2, 2])
    chain.replace_by(chain.add("Reshape", product, constant_before(node, "pairs", pairs)))
    return name_of(node)
