"""A definition's graph while it is rewritten into the graph that is compiled."""

from collections.abc import Iterable
from functools import cached_property

from onnx import ModelProto, NodeProto, TensorProto

from app.definitions.graph_walk import reads
from app.definitions.tensor_data import DTYPE_NAMES, external_tensor
from workers.engine_host import onnx_graph
from workers.engine_host.backends.tensorrt.slots import Slot, Type


class Draft:
    """A copy of a definition whose nodes are rewritten while its slots are declared.

    A slot has the name of its initializer. A slot that no node reads in the end is left out.
    """

    def __init__(self, definition: ModelProto) -> None:
        self.definition = definition
        self.model = ModelProto()
        self.model.CopyFrom(definition)
        self.graph = self.model.graph
        self.opset = onnx_graph.opset_of(definition)
        self.parameters: dict[str, TensorProto] = {}
        self.constants: list[TensorProto] = []
        for tensor in self.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                self.parameters[tensor.name] = tensor
            else:
                self.constants.append(tensor)
        self.slots: dict[str, Slot] = {name: _stored(tensor) for name, tensor in self.parameters.items()}

    @cached_property
    def _names(self) -> set[str]:
        """The names of all values of the graph."""
        names = {*reads(self.definition.graph), *self.slots}
        names.update(name for node in self.definition.graph.node for name in node.output)
        return names | {one.name for one in self.constants} | {one.name for one in self.definition.graph.input}

    def new_name(self, wanted: str) -> str:
        """Return a name that no value of the graph has: `wanted`, with apostrophes if it is taken."""
        while wanted in self._names:
            wanted += "'"
        self._names.add(wanted)
        return wanted

    def types(self, parameters: Iterable[str]) -> tuple[Type, ...]:
        """Return the dtype and shape of each of these parameters."""
        tensors = [self.parameters[name] for name in parameters]
        return tuple((DTYPE_NAMES[one.data_type], tuple(one.dims)) for one in tensors)

    def declare(self, slot: Slot) -> str:
        """Add a slot and return its name."""
        self.slots[slot.name] = slot
        return slot.name

    def replace_nodes(self, nodes: Iterable[NodeProto]) -> None:
        """Give the graph these nodes, in topological order, instead of its own."""
        kept = list(nodes)
        del self.graph.node[:]
        self.graph.node.extend(kept)

    def finish(self) -> tuple[ModelProto, tuple[Slot, ...]]:
        """Return the rewritten graph and its slots, which are its initializers without a value, in the same order."""
        read = reads(self.graph)
        slots = tuple(slot for slot in self.slots.values() if slot.name in read)
        initializers = [self.parameters.get(slot.name) or _placeholder(slot) for slot in slots]
        constants = [tensor for tensor in self.constants if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend([*initializers, *constants])
        return self.model, slots


def _stored(parameter: TensorProto) -> Slot:
    dtype, shape = DTYPE_NAMES[parameter.data_type], tuple(parameter.dims)
    return Slot(parameter.name, dtype, shape, (parameter.name,), ((dtype, shape),))


def _placeholder(slot: Slot) -> TensorProto:
    return external_tensor(slot.name, slot.dtype, slot.shape)
