"""Weightless ONNX graphs: parameters as declared initializers, as inputs, or pointed at their bytes.

A parameter is an initializer whose data are external (https://onnx.ai/onnx/repo-docs/ExternalData.html); every
other initializer is a constant of the graph and keeps its value inside the file.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from app.definitions.graph_walk import reads, with_subgraphs
from app.definitions.tensor_data import DTYPE_NAMES
from app.weights.dtypes import DTYPES
from workers.channel.messages import BackendError
from workers.engine_host.tensors import StoredValue

QUANTISERS = {"QuantizeLinear", "DynamicQuantizeLinear"}
SHAPERS = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand"}  # they compute no value
ROOT = "/"  # external locations are relative; relative to the root they may name any file of ours


def parse(data: bytes) -> ModelProto:
    """Return the graph in these bytes, without its external data.

    Raises BackendError "damaged_graph" if there is none.
    """
    try:
        model: ModelProto = onnx.load_from_string(data)
    except DecodeError as error:
        raise BackendError(
            "damaged_graph",
            f"{len(data)} bytes that should be an ONNX graph are none ({error}). Build the engine again.",
        ) from error
    return model


def serialize(model: ModelProto) -> bytes:
    """Return the same bytes for the same graph."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def opset_of(model: ModelProto) -> int:
    """Return a definition's version of ONNX's own operators."""
    version: int = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    return version


def parameters_of(model: ModelProto) -> dict[str, TensorProto]:
    """Return the initializers without values, by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL}


def constants_of(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield name and value of the graph's own constants: initializers, and Constants that are given as tensors."""
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            yield tensor.name, tensor
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")


def with_parameters_as_inputs(definition: ModelProto) -> ModelProto:
    """Return a copy of a definition that takes its parameters as inputs, so that it holds no value of any."""
    model = ModelProto()
    model.CopyFrom(definition)
    parameters = parameters_of(model)
    known = {value.name for value in model.graph.input}
    model.graph.input.extend(_as_input(tensor) for name, tensor in parameters.items() if name not in known)
    _replace(model.graph.initializer, [tensor for tensor in model.graph.initializer if tensor.name not in parameters])
    return model


def with_inputs_as_parameters(model: ModelProto, definition: ModelProto) -> ModelProto:
    """Return a graph whose parameter inputs are initializers again, as the definition declares them.

    Parameters that nothing reads any more are left out. The bytes do not depend on the order in which a
    runtime's hash tables gave out names.
    """
    plan = ModelProto()
    plan.CopyFrom(model)
    parameters = parameters_of(definition)
    read = reads(plan.graph)
    kept = [tensor for name, tensor in parameters.items() if name in read]
    _replace(plan.graph.input, [value for value in plan.graph.input if value.name not in parameters])
    _replace(plan.graph.initializer, sorted([*plan.graph.initializer, *kept], key=_name))
    _replace(plan.graph.value_info, [])
    return plan


def computed(graph: GraphProto) -> list[str]:
    """Return the names of all values that a graph computes, but for its outputs, in the order of its nodes."""
    outputs = {one.name for one in graph.output}
    return [name for node in graph.node for name in node.output if name and name not in outputs]


def show(model: ModelProto, names: Iterable[str]) -> tuple[str, ...]:
    """Make values that a graph computes outputs of it, and return their names; others are passed over."""
    known = set(computed(model.graph))
    shown = tuple(name for name in names if name in known)
    model.graph.output.extend(ValueInfoProto(name=name) for name in shown)
    return shown


def point_at(
    plan: bytes, values: Mapping[str, StoredValue], inner: Iterable[str] = ()
) -> tuple[bytes, tuple[str, ...]]:
    """Return a plan with every parameter pointing at its value's bytes, relative to `ROOT`, and their names.

    Those of the values `inner` that it computes are outputs as well.

    Raises BackendError "missing_weights" or "wrong_weights", naming every parameter without a value or
    with one of another dtype, shape or length: no runtime gets to see those.
    """
    model = parse(plan)
    parameters = parameters_of(model)
    check_values(parameters, values)
    for name, parameter in parameters.items():
        point(parameter, values[name], os.path.relpath(values[name].path, ROOT))
    show(model, inner)
    return serialize(model), tuple(parameters)


def point(parameter: TensorProto, value: StoredValue, location: str) -> None:
    """Make a parameter's external data the value's bytes in the file at `location`, a relative path."""
    del parameter.external_data[:]
    if not value.nbytes:  # an empty tensor has no bytes to point at
        parameter.data_location, parameter.raw_data = TensorProto.DEFAULT, b""
        return
    for key, text in (("location", location), ("offset", value.offset), ("length", value.nbytes)):
        parameter.external_data.add(key=key, value=str(text))


def check_values(parameters: Mapping[str, TensorProto], values: Mapping[str, StoredValue]) -> None:
    """Raise BackendError "missing_weights" or "wrong_weights" unless each parameter has a value that fits."""
    missing = sorted(parameters.keys() - values.keys())
    if missing:
        raise BackendError(
            "missing_weights",
            f"{len(missing)} parameters have no weights: {_listed(missing)}. Bind a tensor to each.",
        )
    wrong = [
        f"{name} is {_type_of(tensor)}, its weights are {values[name].dtype}{list(values[name].shape)}"
        for name, tensor in sorted(parameters.items())
        if not _fits(tensor, values[name])
    ]
    if wrong:
        raise BackendError("wrong_weights", f"{_listed(wrong)}. Check the binding against these weights again.")


def quantises(graph: GraphProto) -> bool:
    """Return whether the graph quantises values that it computes, and not only initializers."""
    fixed = {one.name for one in graph.initializer}
    return any(
        node.op_type in QUANTISERS and node.input[0] not in fixed for node in with_subgraphs(graph.node) if node.input
    )


def tables(graph: GraphProto) -> frozenset[str]:
    """Return what the graph only looks rows up in.

    That is by Gather and its kin, by a Slice whose bounds it computes, or by a product with indices that are one-hot.
    """
    fixed = {one.name for one in graph.initializer}
    fixed.update(name for node in graph.node if node.op_type == "Constant" for name in node.output)
    makers = {name: node for node in with_subgraphs(graph.node) for name in node.output}
    looked_up: set[str] = set()
    otherwise: set[str] = {one.name for one in graph.output}
    for node in with_subgraphs(graph.node):
        is_sliced = node.op_type == "Slice" and not fixed.issuperset(node.input[1:3])
        is_lookup = is_sliced or node.op_type in {"Gather", "GatherElements", "GatherND"}
        table = {0} if is_lookup else {1} if _takes_one_hot(node, makers) else set()
        for position, name in enumerate(node.input):
            (looked_up if position in table else otherwise).add(name)
    return frozenset(looked_up - otherwise)


def _takes_one_hot(node: NodeProto, makers: Mapping[str, NodeProto]) -> bool:
    """Whether a MatMul's left side is one-hot: by OneHot, or by a comparison with all indices, as JAX has it."""
    if node.op_type != "MatMul":
        return False
    maker = makers.get(node.input[0])
    while maker is not None and maker.op_type in SHAPERS | {"Cast"}:
        maker = makers.get(maker.input[0])
    return maker is not None and maker.op_type in {"OneHot", "Equal"}


def softmaxes(graph: GraphProto) -> frozenset[str]:
    """Return the outputs that are a softmax, one that is written out too, or that have its values in another shape."""
    makers = {name: node for node in graph.node for name in node.output}

    def origin(name: str) -> str:
        while name in makers and makers[name].op_type in SHAPERS:
            name = makers[name].input[0]
        return name

    def is_softmax(name: str) -> bool:
        node = makers.get(origin(name))
        if node is None or node.op_type != "Div":
            return node is not None and node.op_type == "Softmax"
        above, below = (makers.get(origin(one)) for one in node.input)
        if above is None or below is None or above.op_type != "Exp" or below.op_type != "ReduceSum":
            return False
        return origin(below.input[0]) == above.output[0]

    return frozenset(one.name for one in graph.output if is_softmax(one.name))


def operators(graph: GraphProto) -> dict[str, int]:
    """Count the graph's nodes by operator, in order of name."""
    counts: dict[str, int] = {}
    for node in graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


def all_operators(graph: GraphProto) -> dict[str, int]:
    """Count the nodes by operator, in order of name; those of inner graphs as well."""
    return dict(sorted(Counter(node.op_type for node in with_subgraphs(graph.node)).items()))


def nodes(graph: GraphProto) -> list[dict[str, Any]]:
    """Return name, operator, domain, inputs and outputs of each node, as JSON; not those of inner graphs."""
    return [
        {
            "name": node.name,
            "op_type": node.op_type,
            "domain": node.domain,
            "inputs": list(node.input),
            "outputs": list(node.output),
        }
        for node in graph.node
    ]


def interface(values: Sequence[ValueInfoProto]) -> list[tuple[str, int]]:
    """Return name and element type of inputs or outputs, in order of name."""
    return sorted((one.name, one.type.tensor_type.elem_type) for one in values)


def _as_input(parameter: TensorProto) -> ValueInfoProto:
    return helper.make_tensor_value_info(parameter.name, parameter.data_type, list(parameter.dims))


def _fits(parameter: TensorProto, value: StoredValue) -> bool:
    same = tuple(parameter.dims) == value.shape and DTYPE_NAMES.get(parameter.data_type) == value.dtype
    return same and value.nbytes == prod(value.shape) * DTYPES[value.dtype].itemsize


def _type_of(parameter: TensorProto) -> str:
    return f"{DTYPE_NAMES.get(parameter.data_type, '?')}{list(parameter.dims)}"


def _listed(faults: Sequence[str]) -> str:
    rest = len(faults) - 20
    return "; ".join(faults[:20]) + (f"; and {rest} more" if rest > 0 else "")


def _name(tensor: TensorProto) -> str:
    name: str = tensor.name
    return name


def _replace(field: Any, items: Iterable[Any]) -> None:  # noqa: ANN401 - protobuf names no type for it
    """Give a repeated protobuf field other items."""
    kept = list(items)
    del field[:]
    field.extend(kept)
