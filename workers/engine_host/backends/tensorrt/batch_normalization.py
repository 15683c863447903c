"""BatchNormalization as weights that can be refitted.

TensorRT's parser computes a scale and a shift from the operator's four tensors and forgets their names. So both are
computed here, as slots with names. Directly behind a convolution or a Gemm they go into that layer's weight and bias,
and running them costs nothing. Elsewhere they become a Mul and an Add. A BatchNormalization is left as it is if it
trains, if it is inside an If, Loop or Scan, if its tensors are not all parameters, or if its input's rank is unknown.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from onnx import AttributeProto, NodeProto, TensorProto
from onnx.helper import make_node
from onnx.shape_inference import infer_shapes

from app.definitions.graph_walk import reads
from app.definitions.tensor_data import DTYPE_NAMES
from workers.engine_host.backends.tensorrt.graph_rewrite import Draft
from workers.engine_host.backends.tensorrt.slots import FoldedWeightSlot, ScaleSlot, ShiftSlot, Slot

FOLDABLE = frozenset({"F64", "F32", "F16", "BF16"})
DEFAULT_EPSILON = 1e-5

View = tuple[int, int, int, int]


def fold_batch_normalizations(draft: Draft) -> None:
    """Replace each BatchNormalization by slots, if that is possible."""
    if not any(_is_foldable(node, draft.parameters) for node in draft.graph.node):
        return
    folding = _Folding(draft)
    draft.replace_nodes([node for old in draft.graph.node for node in folding.replaced(old)])


@dataclass(frozen=True, slots=True)
class _Tensor:
    """The dtype, a safetensors name, and the rank of a value of the graph."""

    dtype: str
    rank: int


class _Folding:
    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._reads: Counter[str] = reads(draft.graph)
        self._producers = {node.output[0]: node for node in draft.graph.node if node.op_type in _VIEWS}
        self._tensors: dict[str, _Tensor] | None = None

    def replaced(self, node: NodeProto) -> Iterator[NodeProto]:
        """Yield the nodes that take a node's place; for most nodes it is the node itself."""
        if not _is_foldable(node, self._draft.parameters):
            yield node
            return
        layer = self._producers.get(node.input[0])
        if layer is not None and self._fold_into(layer, node):
            return
        yield from self._as_scale_and_shift(node)

    def _fold_into(self, layer: NodeProto, node: NodeProto) -> bool:
        """Give the layer in front the normalization's work and output; False if that layer has to stay as it is."""
        weight, own = layer.input[1], layer.input[2] if len(layer.input) > 2 else ""
        if self._reads[layer.output[0]] != 1 or self._reads[weight] != 1:
            return False
        slot = self._draft.slots.get(weight)
        if slot is None or slot.is_computed or slot.dtype not in FOLDABLE:
            return False
        view = _VIEWS[layer.op_type](layer, slot)
        channels = self._draft.parameters[node.input[1]].dims[0]
        if view is None or view[0] * view[2] != channels or not self._is_bias(own, channels):
            return False
        self._fold(layer, node, slot, view, own)
        return True

    def _is_bias(self, name: str, channels: int) -> bool:
        """Whether a layer has no bias, or one that is a parameter with an element for each channel."""
        bias = self._draft.parameters.get(name)
        return not name or (bias is not None and tuple(bias.dims) in {(channels,), (1, channels)})

    def _fold(self, layer: NodeProto, node: NodeProto, weight: Slot, view: View, own: str) -> None:
        output, epsilon = node.output[0], _attribute(node, "epsilon", DEFAULT_EPSILON)
        scale, bias, mean, variance = node.input[1:]
        draft = self._draft
        first = scale, variance, weight.name
        second = (scale, variance, bias, mean, own) if own else (scale, variance, bias, mean)
        names = [draft.new_name(f"{output}.{part}") for part in ("weight", "bias")]
        folded = FoldedWeightSlot(names[0], weight.dtype, weight.shape, first, draft.types(first), epsilon, view)
        shift = ShiftSlot(names[1], weight.dtype, (view[0] * view[2],), second, draft.types(second), epsilon)
        inputs = [layer.input[0], draft.declare(folded), draft.declare(shift)]
        del layer.input[:]
        layer.input.extend(inputs)
        layer.output[0] = output

    def _as_scale_and_shift(self, node: NodeProto) -> Iterator[NodeProto]:
        tensor = self._tensor(node.input[0])
        if tensor is None or tensor.dtype not in FOLDABLE:
            yield node
            return
        draft, output, epsilon = self._draft, node.output[0], _attribute(node, "epsilon", DEFAULT_EPSILON)
        scale, bias, mean, variance = node.input[1:]
        shape = (draft.parameters[scale].dims[0], *[1] * (tensor.rank - 2))
        names = [draft.new_name(f"{output}.{part}") for part in ("scale", "shift")]
        first, second = (scale, variance), (scale, variance, bias, mean)
        factor = ScaleSlot(names[0], tensor.dtype, shape, first, draft.types(first), epsilon)
        shift = ShiftSlot(names[1], tensor.dtype, shape, second, draft.types(second), epsilon)
        scaled = draft.new_name(f"{output}.scaled")
        yield make_node("Mul", [node.input[0], draft.declare(factor)], [scaled], name=scaled)
        yield make_node("Add", [scaled, draft.declare(shift)], [output], name=node.name)

    def _tensor(self, name: str) -> _Tensor | None:
        if self._tensors is None:
            self._tensors = self._inferred()
        return self._tensors.get(name)

    def _inferred(self) -> dict[str, _Tensor]:
        """Infer dtype and rank of each value of the definition, as far as they can be known."""
        graph = infer_shapes(self._draft.definition).graph
        return {
            value.name: _Tensor(DTYPE_NAMES[value.type.tensor_type.elem_type], len(value.type.tensor_type.shape.dim))
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.HasField("shape") and value.type.tensor_type.elem_type in DTYPE_NAMES
        }


def _is_foldable(node: NodeProto, parameters: Mapping[str, TensorProto]) -> bool:
    """Whether a node is a BatchNormalization for inference whose four tensors are all parameters."""
    if node.op_type != "BatchNormalization" or any(node.output[1:]):
        return False
    is_inference = not _attribute(node, "training_mode", 0) and bool(_attribute(node, "spatial", 1))  # spatial: opset 8
    return is_inference and all(name in parameters for name in node.input[1:])


def _conv_view(_node: NodeProto, weight: Slot) -> View | None:
    """Return the view of a weight [outputs, inputs / groups, ...], in which a channel is a row."""
    return (weight.shape[0], 1, 1, prod(weight.shape[1:]))


def _conv_transpose_view(node: NodeProto, weight: Slot) -> View | None:
    """Return the view of a weight [inputs, outputs / groups, ...], in which the inputs of a group lie side by side."""
    groups = int(_attribute(node, "group", 1))
    return (groups, weight.shape[0] // groups, weight.shape[1], prod(weight.shape[2:]))


def _gemm_view(node: NodeProto, weight: Slot) -> View | None:
    """Return the view of a weight, [outputs, inputs] if transposed, else [inputs, outputs].

    None if the Gemm scales its bias.
    """
    if _attribute(node, "beta", 1.0) != 1.0:
        return None
    rows, columns = weight.shape
    return (rows, 1, 1, columns) if _attribute(node, "transB", 0) else (1, rows, columns, 1)


_VIEWS = {"Conv": _conv_view, "ConvTranspose": _conv_transpose_view, "Gemm": _gemm_view}


def _attribute(node: NodeProto, name: str, default: float) -> float:
    """Return the value of an attribute that is a number."""
    for one in node.attribute:
        if one.name == name:
            return one.f if one.type == AttributeProto.FLOAT else one.i
    return default
