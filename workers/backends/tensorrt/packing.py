"""Small parameters packed into few initializers, which the graph takes apart again.

Unless attributes of the device are remembered, TensorRT 8.6 takes 3.5 ms to refit a weight, however small it is. What
the graph cuts out of a packed initializer has the parameter's name, so nothing that reads it changes. Only parameters
that stand where operators take computed tensors are packed; a convolution's bias, say, has to be a weight.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Final

import numpy as np
from onnx import NodeProto, TensorProto
from onnx.helper import make_node

from app.definitions.graph_walk import attribute_graphs
from app.weights.dtypes import DTYPES
from workers.backends.tensorrt.draft import Draft, reads
from workers.backends.tensorrt.slot_kinds import PackedSlot, Slot

MAX_MATRIX_BYTES = 0  # of tensors with more than one long axis that are packed, too; vectors always are
SLICE_ALIGNMENT: Final = 256  # bytes, what CUDA aligns an allocation to

# Inputs that may be computed, in TensorRT 8.6 to 11.
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
# Their output may be computed wherever it stands; some parsers compute it themselves where the input is a weight.
CARRIERS: Final = frozenset({"Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

Group = tuple[str, list[Slot]]  # a name for the packed initializer, and what goes into it


def pack(draft: Draft, strategy: str) -> None:
    """Pack by one of `STRATEGIES`; a group of one stays as it is.

    "split": one initializer per dtype, one Split. "slices": one per dtype, a Slice for each parameter, which begins at
    a multiple of `SLICE_ALIGNMENT`. "rows": one per dtype and shape, parameters stacked, a Gather for each.
    "layer": as "split", one per dtype and first number in the name, so that a change of one layer leaves the others.
    """
    group, cut = STRATEGIES[strategy]
    nodes: list[NodeProto] = []
    for name, members in group(_packable(draft)):
        if len(members) > 1:
            nodes += cut(draft, draft.new_name(name), members)
            for slot in members:
                del draft.slots[slot.name]
    draft.replace_nodes([*nodes, *draft.graph.node])


def _packable(draft: Draft) -> list[Slot]:
    small = {slot.name: slot for slot in draft.slots.values() if not slot.is_computed and _is_small(slot)}
    uses = _Uses(draft)
    return [slot for name, slot in small.items() if uses.may_be_computed(name)]


def _is_small(slot: Slot) -> bool:
    if not slot.nbytes:
        return False
    is_vector = bool(slot.shape) and prod(slot.shape) == max(slot.shape)
    return is_vector or slot.nbytes <= MAX_MATRIX_BYTES


class _Uses:
    """Which operators read a name, and where."""

    def __init__(self, draft: Draft) -> None:
        self._uses: defaultdict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        self._elsewhere = Counter(one.name for one in draft.graph.output)
        for node in draft.graph.node:
            for position, name in enumerate(node.input):
                self._uses[name].append((node, position))
            for attribute in node.attribute:
                for inner in attribute_graphs(attribute):
                    self._elsewhere.update(reads(inner))

    def may_be_computed(self, name: str) -> bool:
        """Whether something reads it, and everything that does takes a computed tensor."""
        if name in self._elsewhere or name not in self._uses:
            return False
        return all(self._takes_computed(node, position) for node, position in self._uses[name])

    def _takes_computed(self, node: NodeProto, position: int) -> bool:
        if node.op_type in CARRIERS and position == 0:
            return self.may_be_computed(node.output[0])
        return position in COMPUTABLE.get(node.op_type, ())


def _by_dtype(slots: Iterable[Slot]) -> list[Group]:
    return _grouped(slots, lambda slot: f"packed.{slot.dtype}")


def _by_shape(slots: Iterable[Slot]) -> list[Group]:
    return _grouped(slots, lambda slot: f"packed.{slot.dtype}.{'x'.join(map(str, slot.shape))}")


def _by_layer(slots: Iterable[Slot]) -> list[Group]:
    return _grouped(slots, lambda slot: f"packed.{slot.dtype}.{_layer(slot.name)}")


def _layer(name: str) -> str:
    """Return a name up to and including its first number, "" where it has none."""
    found = re.match(r"\D*\d+", name)
    return found[0] if found else ""


def _grouped(slots: Iterable[Slot], name: Callable[[Slot], str]) -> list[Group]:
    groups: dict[str, list[Slot]] = {}
    for slot in slots:
        groups.setdefault(name(slot), []).append(slot)
    return list(groups.items())


def _split(draft: Draft, name: str, members: Sequence[Slot]) -> list[NodeProto]:
    sizes = [prod(slot.shape) for slot in members]
    offsets = [0, *np.cumsum(sizes).tolist()]
    flat = _declare(draft, name, members, offsets[:-1], (offsets[-1],))
    flats, reshapes = _reshaped(draft, members)
    if draft.opset < 13:
        return [make_node("Split", [flat], flats, name=f"{name}.split", axis=0, split=sizes), *reshapes]
    constant = _integers(draft, f"{name}.sizes", sizes)
    return [make_node("Split", [flat, constant], flats, name=f"{name}.split", axis=0), *reshapes]


def _slices(draft: Draft, name: str, members: Sequence[Slot]) -> list[NodeProto]:
    step = SLICE_ALIGNMENT // DTYPES[members[0].dtype].itemsize
    offsets, end = [], 0
    for slot in members:
        offsets.append(-(-end // step) * step)
        end = offsets[-1] + prod(slot.shape)
    flat = _declare(draft, name, members, offsets, (end,))
    flats, reshapes = _reshaped(draft, members)
    starts_ends = [(start, start + prod(slot.shape)) for slot, start in zip(members, offsets, strict=True)]
    if draft.opset < 10:
        cuts = [
            make_node("Slice", [flat], [output], name=f"{output}.slice", axes=[0], starts=[start], ends=[end])
            for output, (start, end) in zip(flats, starts_ends, strict=True)
        ]
        return [*cuts, *reshapes]
    axis = _integers(draft, f"{name}.axis", [0])
    cuts = []
    for output, (start, end) in zip(flats, starts_ends, strict=True):
        bounds = [_integers(draft, f"{output}.{key}", [value]) for key, value in (("start", start), ("end", end))]
        cuts.append(make_node("Slice", [flat, *bounds, axis], [output], name=f"{output}.slice"))
    return [*cuts, *reshapes]


def _rows(draft: Draft, name: str, members: Sequence[Slot]) -> list[NodeProto]:
    shape = members[0].shape
    offsets = [index * prod(shape) for index in range(len(members))]
    stacked = _declare(draft, name, members, offsets, (len(members), *shape))
    nodes = []
    for index, slot in enumerate(members):
        row = _constant(draft, f"{slot.name}.row", np.array(index, np.int64))
        nodes.append(make_node("Gather", [stacked, row], [slot.name], name=f"{slot.name}.gather", axis=0))
    return nodes


def _declare(draft: Draft, name: str, members: Sequence[Slot], offsets: Sequence[int], shape: tuple[int, ...]) -> str:
    sources = tuple(slot.name for slot in members)
    return draft.declare(PackedSlot(name, members[0].dtype, shape, sources, draft.types(sources), tuple(offsets)))


def _reshaped(draft: Draft, members: Sequence[Slot]) -> tuple[list[str], list[NodeProto]]:
    """Return the names to give the flat pieces, and the nodes that give the others their shape."""
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
    return _constant(draft, name, np.array(values, np.int64))


def _constant(draft: Draft, name: str, value: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> str:
    tensor = TensorProto(
        name=draft.new_name(name), data_type=TensorProto.INT64, dims=value.shape, raw_data=value.tobytes()
    )
    draft.constants.append(tensor)
    return tensor.name


Cut = Callable[[Draft, str, Sequence[Slot]], list[NodeProto]]
STRATEGIES: Final[Mapping[str, tuple[Callable[[Iterable[Slot]], list[Group]], Cut]]] = MappingProxyType(
    {
        "split": (_by_dtype, _split),
        "slices": (_by_dtype, _slices),
        "rows": (_by_shape, _rows),
        "layer": (_by_layer, _split),
    }
)
