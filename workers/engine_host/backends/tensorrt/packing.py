"""Packs small parameters into few initializers, which the graph takes apart again.

TensorRT 8.6 takes 3.5 ms to refit a weight, however small it is, unless the device's attributes are remembered (see
`accelerate/device_attributes.c`). The graph cuts each parameter out of the packed initializer under the parameter's
name, so the nodes that read it stay as they are. A parameter is packed only if all operators that read it take a
computed tensor in its place. A convolution's bias, for example, has to be a weight.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Final

import numpy as np
from onnx import NodeProto, TensorProto
from onnx.helper import make_node

from app.definitions.graph_walk import attribute_graphs, reads
from workers.engine_host.backends.tensorrt.graph_rewrite import Draft
from workers.engine_host.backends.tensorrt.slots import PackedSlot, Slot

# The inputs of each operator that may be computed, in TensorRT 8.6 to 11.
COMPUTABLE: Final[Mapping[str, frozenset[int]]] = MappingProxyType(
    {
        "Add": frozenset({0, 1}),
        "Div": frozenset({0, 1}),
        "Gemm": frozenset({2}),
        "LayerNormalization": frozenset({1, 2}),
        "Mul": frozenset({0, 1}),
        "RMSNormalization": frozenset({1}),
        "Sub": frozenset({0, 1}),
        "Where": frozenset({1, 2}),
    }
)
# These operators take a computed input wherever their output may be computed. If the input is a weight, some parsers
# compute the output themselves.
CARRIERS: Final = frozenset({"Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def pack(draft: Draft) -> None:
    """Pack vectors into one initializer for each dtype, which a Split takes apart.

    A vector that is the only one of its dtype stays as it is.
    """
    groups: dict[str, list[Slot]] = {}
    for slot in _packable(draft):
        groups.setdefault(slot.dtype, []).append(slot)
    nodes: list[NodeProto] = []
    for dtype, members in groups.items():
        if len(members) > 1:
            nodes += _split(draft, draft.new_name(f"packed.{dtype}"), members)
            for slot in members:
                del draft.slots[slot.name]
    draft.replace_nodes([*nodes, *draft.graph.node])


def _packable(draft: Draft) -> list[Slot]:
    uses = _Uses(draft)
    return [
        slot
        for name, slot in draft.slots.items()
        if not slot.is_computed and _is_vector(slot) and uses.may_be_computed(name)
    ]


def _is_vector(slot: Slot) -> bool:
    """Whether at most one axis is longer than one."""
    return bool(slot.nbytes and slot.shape) and prod(slot.shape) == max(slot.shape)


class _Uses:
    """Which operators read a name, and at which input."""

    def __init__(self, draft: Draft) -> None:
        self._uses: defaultdict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        self._elsewhere = Counter(output.name for output in draft.graph.output)
        for node in draft.graph.node:
            for position, name in enumerate(node.input):
                self._uses[name].append((node, position))
            for attribute in node.attribute:
                for inner in attribute_graphs(attribute):
                    self._elsewhere.update(reads(inner))

    def may_be_computed(self, name: str) -> bool:
        """Whether some node reads a name, and every node that reads it takes a computed tensor there."""
        if name in self._elsewhere or name not in self._uses:
            return False
        return all(self._takes_computed(node, position) for node, position in self._uses[name])

    def _takes_computed(self, node: NodeProto, position: int) -> bool:
        if node.op_type in CARRIERS and position == 0:
            return self.may_be_computed(node.output[0])
        return position in COMPUTABLE.get(node.op_type, ())


def _split(draft: Draft, name: str, members: Sequence[Slot]) -> list[NodeProto]:
    sizes = [prod(slot.shape) for slot in members]
    offsets = [0, *np.cumsum(sizes).tolist()]
    sources = tuple(slot.name for slot in members)
    packed = PackedSlot(name, members[0].dtype, (offsets[-1],), sources, draft.types(sources), tuple(offsets[:-1]))
    flat = draft.declare(packed)
    flats, reshapes = _reshaped(draft, members)
    if draft.opset < 13:
        return [make_node("Split", [flat], flats, name=f"{name}.split", axis=0, split=sizes), *reshapes]
    constant = _integers(draft, f"{name}.sizes", sizes)
    return [make_node("Split", [flat, constant], flats, name=f"{name}.split", axis=0), *reshapes]


def _reshaped(draft: Draft, members: Sequence[Slot]) -> tuple[list[str], list[NodeProto]]:
    """Return the names of the flat pieces, and the nodes that reshape the pieces of parameters that are not flat."""
    flats, nodes = [], []
    for slot in members:
        if len(slot.shape) == 1:
            flats.append(slot.name)
            continue
        flats.append(draft.new_name(f"{slot.name}.flat"))
        shape = _integers(draft, f"{slot.name}.shape", slot.shape)
        nodes.append(make_node("Reshape", [flats[-1], shape], [slot.name], name=f"{slot.name}.reshape"))
    return flats, nodes


def _integers(draft: Draft, name: str, values: Sequence[int]) -> str:
    tensor = TensorProto(
        name=draft.new_name(name),
        data_type=TensorProto.INT64,
        dims=[len(values)],
        raw_data=np.array(values, np.int64).tobytes(),
    )
    draft.constants.append(tensor)
    return tensor.name
