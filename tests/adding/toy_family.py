"""A family as a third party writes it: y = relu(x weight^T + bias)."""

from collections.abc import Mapping
from typing import Any

from app.definitions.family import FamilyGraph, Precision
from app.definitions.family_parts.config import ConfigReader
from app.definitions.family_parts.graph import GraphBuilder


def build(config: Mapping[str, Any], precision: Precision) -> FamilyGraph:
    """Build the graph of a config with `width`."""
    reader = ConfigReader(config)
    width = reader.size("width", 4, most=1024)
    reader.finish()
    dtype = {"fp32": "F32", "fp16": "F16"}[precision]
    graph = GraphBuilder()
    x = graph.input("x", dtype, ["batch", width])
    with graph.scope("dense"):
        weight, bias = graph.parameter("weight", dtype, [width, width]), graph.parameter("bias", dtype, [width])
    graph.output("y", graph.op("Relu", graph.op("Gemm", x, weight, bias, transB=1)), dtype, ["batch", width])
    rules = [{"parameter": "(.*)", "tensors": [r"toy.\1"]}]
    return FamilyGraph(graph.finish(), rules, reader.used)
