"""Splits a checked ONNX model into a weightless graph and its weights.

`weight_rule` says which tensors are weights: initializers and tensors of Constant nodes, of the main graph and of the
bodies of If, Loop and Scan. All of them become initializers of the main graph, which the bodies read by name. So a
backend replaces them without looking into a body. A weight of a body keeps its name, unless another graph of the model
has that name, too (`unique_names`). The four tensors of a BatchNormalization are ordinary weights here.

Every other tensor that something reads stays embedded as a constant. Initializers and Constant nodes that nothing reads
are dropped.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.helper import make_node, make_tensor

from app.definitions.canonical_graph import canonical_model
from app.definitions.constants import Constant
from app.definitions.external_data import embedded
from app.definitions.graph_walk import attribute_graphs, attribute_tensors
from app.definitions.limits import MAX_CONSTANT_BYTES
from app.definitions.onnx_file import opset_of
from app.definitions.rejection import Rejected
from app.definitions.tensor_data import DTYPE_NAMES, byte_count, external_tensor, tensor_bytes
from app.definitions.unique_names import make_names_unique
from app.definitions.weight_rule import Origin, WeightRule
from app.weights.dtypes import DTYPES


@dataclass(frozen=True, slots=True)
class SplitModel:
    """A weightless model in canonical form, and what was taken out of it and what was not, by name.

    The data of a weight lie in its tensor or in an external file. `constants` are the floating-point tensors that stay.
    `digests` are the BLAKE3 of all tensors that stay, by name.
    """

    model: ModelProto
    weights: Mapping[str, TensorProto]
    constants: tuple[Constant, ...]
    digests: Mapping[str, str]


def split_weights(model: ModelProto, files: Mapping[str, Path] | None = None) -> SplitModel:
    """Take the weights out of a checked model, in place.

    Inputs of the model that are also initializers are removed, and so are initializers and Constant nodes that nothing
    reads. A name that several graphs of the model use becomes unique. `files` are the external data files by location.
    Only constants are read from them.

    Raises:
        Rejected: "constants_too_large" if the graph keeps more than MAX_CONSTANT_BYTES, "bad_name" if a name is given
            twice or becomes too long, "invalid_onnx" if a Constant node has not exactly one value.
    """
    graph = model.graph
    _drop_inputs_that_are_initializers(graph)
    make_names_unique(model)
    found = _Found(WeightRule(graph), files or {})
    found.take_from(graph, is_main=True)
    initializers = [
        external_tensor(name, DTYPE_NAMES[tensor.data_type], tensor.dims) for name, tensor in found.weights.items()
    ]
    split = canonical_model(model, opset_of(model), graph.node, [*initializers, *graph.initializer])
    return SplitModel(split, dict(sorted(found.weights.items())), tuple(found.constants), found.digests)


def _drop_inputs_that_are_initializers(graph: GraphProto) -> None:
    """Before IR version 4 every initializer had to be listed as an input, too."""
    names = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in names]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)


class _Found:
    """The weights and constants found so far."""

    def __init__(self, rule: WeightRule, files: Mapping[str, Path]) -> None:
        self._rule = rule
        self._files = files
        self._constant_bytes = 0
        self.weights: dict[str, TensorProto] = {}
        self.constants: list[Constant] = []
        self.digests: dict[str, str] = {}

    def take_from(self, graph: GraphProto, *, is_main: bool = False) -> None:
        """Take the weights out of a graph and of the graphs inside it; drop constants that nothing reads."""
        arguments = set() if is_main else {value.name for value in graph.input}
        _check_names(graph)
        _replace(
            graph.initializer, [tensor for tensor in graph.initializer if self._keeps_initializer(tensor, arguments)]
        )
        _replace(graph.node, [node for node in graph.node if self._keeps_node(node)])
        if not is_main:
            self._give_back_outputs(graph)
        for node in graph.node:
            for attribute in node.attribute:
                for inner in attribute_graphs(attribute):
                    self.take_from(inner)

    def _keeps_initializer(self, tensor: TensorProto, arguments: set[str]) -> bool:
        if tensor.name in arguments:  # a default for what the body is given
            self._embed(tensor, tensor.name, "argument")
            return True
        return self._keeps(tensor, tensor.name, "initializer")

    def _keeps_node(self, node: NodeProto) -> bool:
        if node.op_type != "Constant" or len(node.output) != 1:
            for attribute in node.attribute:
                for tensor in attribute_tensors(attribute):
                    self._count_bytes(byte_count(tensor))
                    embedded(tensor, self._files)
            return True
        value = constant_tensor(node)
        if value is not None:
            return self._keeps(value, node.output[0], "node")
        is_read = self._rule.is_read(node.output[0])
        if is_read:
            self._count_bytes(node.ByteSize())
        return is_read

    def _keeps(self, tensor: TensorProto, name: str, origin: Origin) -> bool:
        """Whether a tensor stays where it is; otherwise it is a weight, or nothing reads it."""
        reason = self._rule.reason_to_keep(tensor, name, origin)
        if reason is None:
            self.weights[name] = tensor
        elif reason != "unused":
            self._embed(tensor, name, reason)
            return True
        return False

    def _embed(self, tensor: TensorProto, name: str, reason: str) -> None:
        """Keep a tensor as a constant, with its data inside the graph."""
        self._count_bytes(byte_count(tensor))
        self.digests[name] = blake3(tensor_bytes(embedded(tensor, self._files))).hexdigest()
        if DTYPES[DTYPE_NAMES[tensor.data_type]].kind == "float":
            self.constants.append(Constant(name, byte_count(tensor), reason))

    def _count_bytes(self, nbytes: int) -> None:
        """Count what stays in the graph; raises Rejected if it is too much."""
        self._constant_bytes += nbytes
        if self._constant_bytes > MAX_CONSTANT_BYTES:
            raise Rejected(
                "constants_too_large",
                f"The graph keeps more than {MAX_CONSTANT_BYTES} bytes of constants that are not weights. "
                "Make large tables inputs of the graph, or floating point.",
            )

    def _give_back_outputs(self, graph: GraphProto) -> None:
        """Let a body that returns a weight return a copy: a body's output has to be made inside it."""
        for value in graph.output:
            if value.name in self.weights:
                copy = f"{value.name}/output"
                graph.node.append(make_node("Identity", [value.name], [copy], name=copy))
                value.name = copy


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """Return the tensor that a Constant node gives, if it may be a weight; integers given as attributes may not."""
    count = len(node.attribute)
    if count != 1:
        raise Rejected(
            "invalid_onnx",
            f"The Constant node of {node.output[0]!r} has {count} values instead of one. Export the model again.",
        )
    attribute: AttributeProto = node.attribute[0]
    if attribute.name == "value" and attribute.HasField("t"):
        return attribute.t
    if attribute.name == "value_float":
        return make_tensor("", TensorProto.FLOAT, [], [attribute.f])
    if attribute.name == "value_floats":
        return make_tensor("", TensorProto.FLOAT, [len(attribute.floats)], list(attribute.floats))
    return None


def _check_names(graph: GraphProto) -> None:
    """Raise Rejected if an initializer and a node give the same name."""
    names = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        twice = names.intersection(node.output)
        if twice:
            raise Rejected("bad_name", f"The name {min(twice)!r} is given twice. Export the model again.")


def _replace(field: Any, items: Iterable[Any]) -> None:  # noqa: ANN401 - protobuf names no type for it
    """Give a repeated protobuf field other items."""
    kept = list(items)
    del field[:]
    field.extend(kept)
