"""Activation functions by the names Hugging Face configs give them, composed of opset-17 operators.

Source: transformers' `activations.py`; Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
"""

from collections.abc import Callable, Mapping
from math import pi, sqrt
from types import MappingProxyType
from typing import Final

from app.definitions.family_parts.graph import GraphBuilder

Activation = Callable[[GraphBuilder, str, str], str]  # graph, value, dtype "F32" or "F16"


def gelu(graph: GraphBuilder, value: str, dtype: str) -> str:
    """X * (1 + erf(x / sqrt 2)) / 2, in the form onnxruntime and TensorRT know as one operator."""
    erf = graph.op("Erf", graph.op("Div", value, graph.scalar(sqrt(2), dtype)))
    doubled = graph.op("Mul", value, graph.op("Add", erf, graph.scalar(1.0, dtype)))
    return graph.op("Mul", doubled, graph.scalar(0.5, dtype))


def gelu_tanh(graph: GraphBuilder, value: str, dtype: str) -> str:
    """X * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2."""
    cube = graph.op("Mul", graph.op("Mul", value, value), value)
    inner = graph.op("Add", value, graph.op("Mul", cube, graph.scalar(0.044715, dtype)))
    tanh = graph.op("Tanh", graph.op("Mul", inner, graph.scalar(sqrt(2 / pi), dtype)))
    half = graph.op("Mul", value, graph.scalar(0.5, dtype))
    return graph.op("Mul", half, graph.op("Add", tanh, graph.scalar(1.0, dtype)))


def quick_gelu(graph: GraphBuilder, value: str, dtype: str) -> str:
    """X * sigmoid(1.702 x)."""
    return graph.op("Mul", value, graph.op("Sigmoid", graph.op("Mul", value, graph.scalar(1.702, dtype))))


def silu(graph: GraphBuilder, value: str, dtype: str) -> str:  # noqa: ARG001 - needs no constant
    """X * sigmoid(x)."""
    return graph.op("Mul", value, graph.op("Sigmoid", value))


def relu(graph: GraphBuilder, value: str, dtype: str) -> str:  # noqa: ARG001 - needs no constant
    """max(x, 0)."""
    return graph.op("Relu", value)


def tanh(graph: GraphBuilder, value: str, dtype: str) -> str:  # noqa: ARG001 - needs no constant
    """The hyperbolic tangent."""
    return graph.op("Tanh", value)


ACTIVATIONS: Final[Mapping[str, Activation]] = MappingProxyType(
    {
        "gelu": gelu,
        "gelu_python": gelu,
        "gelu_fast": gelu_tanh,
        "gelu_new": gelu_tanh,
        "gelu_pytorch_tanh": gelu_tanh,
        "quick_gelu": quick_gelu,
        "relu": relu,
        "silu": silu,
        "swish": silu,
        "tanh": tanh,
    }
)
