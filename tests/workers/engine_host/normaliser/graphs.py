"""Graphs in ONNX's text form, and what they compute."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto
from onnx.parser import parse_model

from app.definitions.graph_walk import with_subgraphs
from app.definitions.profiles import Profile, Range
from workers.engine_host import onnx_graph
from workers.engine_host.normaliser.parser import Parser

OPSET_17 = Parser(17)
Array = np.ndarray[Any, np.dtype[Any]]


def graph(text: str, *, opset: int = 17, parameters: Mapping[str, list[int]] | None = None) -> ModelProto:
    """A model of the graph in `text`, with these F32 parameters as a definition declares them."""
    model: ModelProto = parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    for name, shape in (parameters or {}).items():
        model.graph.initializer.append(
            TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        )
    return model


def profile(**sizes: tuple[list[int], list[int]]) -> Profile:
    """A profile of the smallest and the largest shape of each input."""
    return {name: Range(tuple(low), tuple(low), tuple(high)) for name, (low, high) in sizes.items()}


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in with_subgraphs(model.graph.node) if node.op_type != "Constant"]


def computed(model: ModelProto, inputs: Mapping[str, Array]) -> list[Array]:
    """What a plain session of the graph gives, with none of its operators fused."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    bare = onnx_graph.serialize(onnx_graph.with_parameters_as_inputs(model))
    session = ort.InferenceSession(bare, options, providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}
    outputs: list[Array] = session.run(None, {name: value for name, value in inputs.items() if name in known})
    return outputs
