"""Transposes weights that an operator reads transposed, because TensorRT 8 cannot refit these.

TensorRT 8's parser transposes such a weight at once, and gives the result the weight's name ("Weight ... has been
transposed! If you plan on overwriting this weight with the Refitter API, the new weights must be pre-transposed").
Behind an Identity its compiler does much the same: a refit of such a weight gave wrong outputs. So the slot is the
transposed weight itself. Every release takes it as it is, and multiplies by it faster.

A weight that other operators read as it stands, such as tied embeddings, would then be in the engine twice. The
operators that transpose such a weight read it through an Identity instead, which makes the parser leave it alone.
"""

from collections import Counter
from collections.abc import Iterator

from onnx import NodeProto
from onnx.helper import make_node

from app.definitions.graph_walk import reads, with_subgraphs
from workers.engine_host.backends.tensorrt.graph_rewrite import Draft
from workers.engine_host.backends.tensorrt.slots import TransposedSlot

Axes = tuple[int, ...]


def turn_weights(draft: Draft) -> None:
    """Give each operator that transposes a slot the transposed slot, or the slot as a tensor that it may transpose."""
    turning = _Turning(draft)
    draft.replace_nodes([new for node in draft.graph.node for new in turning.replaced(node)])


class _Turning:
    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._reads = reads(draft.graph)
        nodes = with_subgraphs(draft.graph.node)
        self._turned = Counter(node.input[index] for node in nodes for index in _turned_inputs(node))
        self._names: dict[tuple[str, Axes | None], str] = {}

    def replaced(self, node: NodeProto) -> Iterator[NodeProto]:
        """Yield the nodes that take a node's place. The nodes in its bodies are changed where they stand."""
        for reader in with_subgraphs([node]):
            for index in _turned_inputs(reader):
                name = reader.input[index]
                if name not in self._draft.slots:
                    continue
                if self._reads[name] == self._turned[name]:
                    self._read_transposed(reader, index)
                else:
                    yield from self._as_tensor(name)
                    reader.input[index] = self._names[name, None]
        yield node

    def _read_transposed(self, node: NodeProto, index: int) -> None:
        """Let a node read the transposed slot: a Gemm no longer transposes it, a Transpose becomes an Identity."""
        slot, axes = self._draft.slots[node.input[index]], _axes(node, len(self._draft.slots[node.input[index]].shape))
        key = slot.name, axes
        if key not in self._names:
            name = self._draft.new_name(f"{slot.name}.transposed")
            self._names[key] = self._draft.declare(TransposedSlot.of(slot, name, axes))
        node.input[index] = self._names[key]
        if node.op_type == "Gemm":
            _forget(node, ("transA", "transB")[index])
        else:
            node.op_type = "Identity"
            _forget(node, "perm")

    def _as_tensor(self, name: str) -> Iterator[NodeProto]:
        if (name, None) not in self._names:
            tensor = self._names[name, None] = self._draft.new_name(f"{name}.tensor")
            yield make_node("Identity", [name], [tensor], name=tensor)


def _turned_inputs(node: NodeProto) -> Iterator[int]:
    """Yield the index of each input that a node reads transposed."""
    if node.op_type == "Transpose":
        yield 0
    elif node.op_type == "Gemm":
        turned = {attribute.name for attribute in node.attribute if attribute.i}
        yield from (index for index, name in enumerate(("transA", "transB")) if name in turned)


def _axes(node: NodeProto, rank: int) -> Axes:
    given = next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
    return given or tuple(reversed(range(rank)))


def _forget(node: NodeProto, attribute: str) -> None:
    kept = [one for one in node.attribute if one.name != attribute]
    del node.attribute[:]
    node.attribute.extend(kept)
