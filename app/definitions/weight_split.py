"""Splits a checked ONNX model into a weightless graph and its weights.

One rule decides which initializers, and which tensors of Constant nodes, are weights. A tensor is a weight if

1. its elements are floating point or 8-bit integers, and
2. it has more than one element, or is an argument that only weights can be (`argument_positions.WEIGHTS`), and
3. no operator takes it as a setting: a shape, size, scale factor, bound or axis (`argument_positions.SETTINGS`),
   neither directly nor through arithmetic on settings (`SETTING_ARITHMETIC`), and
4. it is used at all, belongs to the main graph, and is no output of it.

Everything else stays embedded as a constant. So do tensors inside the bodies of If, Loop and Scan. The four tensors
of a BatchNormalization are ordinary weights here.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.helper import make_tensor

from app.definitions.argument_positions import SETTING_ARITHMETIC, SETTINGS, WEIGHTS
from app.definitions.canonical_graph import canonical_model
from app.definitions.graph_walk import with_subgraphs
from app.definitions.limits import MAX_CONSTANT_BYTES
from app.definitions.onnx_file import opset_of
from app.definitions.rejection import Rejected
from app.definitions.tensor_data import DTYPE_NAMES, byte_count, external_tensor
from app.weights.dtypes import DTYPES

Use = tuple[str, int]  # operator and input position


@dataclass(frozen=True, slots=True)
class SplitModel:
    """A weightless model in canonical form, and the tensors that were taken out of it, by name."""

    model: ModelProto
    weights: Mapping[str, TensorProto]


def split_weights(model: ModelProto) -> SplitModel:
    """Take the weights out of a checked model, which is left unchanged but for redundant graph inputs."""
    graph = model.graph
    _drop_inputs_that_are_initializers(graph)
    uses = _uses(graph)
    constants = _constants(graph)
    settings = _settings(graph)
    outputs = {value.name for value in graph.output}
    weights = {
        name: tensor
        for name, tensor in sorted(constants.items())
        if name not in outputs and name not in settings and _is_weight(tensor, uses[name])
    }
    embedded = [
        tensor
        for tensor in graph.initializer
        if tensor.name not in weights and (uses[tensor.name] or tensor.name in outputs)
    ]
    _check_embedded(constants, weights)
    nodes = [node for node in graph.node if not _is_removed(node, weights, uses, outputs)]
    parameters = [external_tensor(name, DTYPE_NAMES[t.data_type], t.dims) for name, t in weights.items()]
    return SplitModel(canonical_model(model, opset_of(model), nodes, [*parameters, *embedded]), weights)


def _drop_inputs_that_are_initializers(graph: GraphProto) -> None:
    """Before IR version 4 every initializer had to be listed as an input, too."""
    names = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in names]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)


def _uses(graph: GraphProto) -> Mapping[str, set[Use]]:
    uses: defaultdict[str, set[Use]] = defaultdict(set)
    for node in with_subgraphs(graph.node):
        for position, name in enumerate(node.input):
            uses[name].add((node.op_type, position))
    return uses


def _constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the tensors of the main graph's initializers and Constant nodes by name."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.output) == 1 and len(node.attribute) == 1:
            tensor = _tensor_of(node.attribute[0])
            if tensor is None:
                continue
            if node.output[0] in constants:
                raise Rejected("bad_name", f"The name {node.output[0]!r} is given twice. Export the model again.")
            constants[node.output[0]] = tensor
    return constants


def _tensor_of(attribute: AttributeProto) -> TensorProto | None:
    if attribute.name == "value":
        return attribute.t
    if attribute.name == "value_floats":
        return make_tensor("", TensorProto.FLOAT, [len(attribute.floats)], list(attribute.floats))
    return None


def _settings(graph: GraphProto) -> set[str]:
    """Return every name that stands at a setting's position or is computed into one."""
    producers: dict[str, NodeProto] = {}
    pending: list[str] = []
    for node in with_subgraphs(graph.node):
        if node.op_type in SETTING_ARITHMETIC:
            producers.update(dict.fromkeys(node.output, node))
        positions = SETTINGS.get(node.op_type, frozenset())
        pending.extend(name for position, name in enumerate(node.input) if position in positions and name)
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        if name in producers:
            pending.extend(producers[name].input)
    return found


def _is_weight(tensor: TensorProto, uses: Iterable[Use]) -> bool:
    dtype = DTYPES[DTYPE_NAMES[tensor.data_type]]
    is_numeric = dtype.kind == "float" or (dtype.bits == 8 and dtype.kind in {"int", "uint"})
    if not is_numeric or not uses:
        return False
    elements = prod(tensor.dims)
    return elements > 1 or (elements == 1 and any(at in WEIGHTS.get(op, ()) for op, at in uses))


def _check_embedded(constants: Mapping[str, TensorProto], weights: Mapping[str, TensorProto]) -> None:
    total = sum(byte_count(tensor) for name, tensor in constants.items() if name not in weights)
    if total > MAX_CONSTANT_BYTES:
        raise Rejected(
            "constants_too_large",
            f"The graph keeps {total} bytes of constants that are not weights; at most {MAX_CONSTANT_BYTES} are "
            "allowed. Make large tables inputs of the graph, or floating point.",
        )


def _is_removed(
    node: NodeProto, weights: Mapping[str, TensorProto], uses: Mapping[str, set[Use]], outputs: set[str]
) -> bool:
    """Whether a node is a Constant that became a weight or that nothing needs."""
    if node.op_type != "Constant" or len(node.output) != 1:
        return False
    name = node.output[0]
    return name in weights or not (uses.get(name) or name in outputs)
