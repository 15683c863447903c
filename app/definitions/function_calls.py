"""Inlines a model's local functions, after checking that the result stays within the limits."""

from collections.abc import Iterable, Iterator, Mapping

from onnx import FunctionProto, ModelProto, NodeProto
from onnx.inliner import inline_local_functions

from app.definitions.graph_walk import with_subgraphs
from app.definitions.limits import MAX_FUNCTION_DEPTH, MAX_NODES
from app.definitions.rejection import Rejected

Key = tuple[str, str, str]  # domain, name, overload


def inline_functions(model: ModelProto) -> ModelProto:
    """Replace every call of a local function by its nodes, converted to the model's opset if theirs is another.

    Raises:
        Rejected: functions call each other in a circle, too deeply, or would become too many nodes: forty functions
            that each call the one before twice are a small file and a trillion nodes.
    """
    if not model.functions:
        return model
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    if len(functions) < len(model.functions):
        raise Rejected("bad_functions", "Two local functions have the same name. Export the model again.")
    if sum(_sizes(model.graph.node, functions, {}, depth=0)) > MAX_NODES:
        raise Rejected(
            "too_large_graph",
            f"With its functions inlined the graph has more than {MAX_NODES} nodes. Split the model up.",
        )
    return inline_local_functions(model, convert_version=True)


def _sizes(
    nodes: Iterable[NodeProto], functions: Mapping[Key, FunctionProto], known: dict[Key, int], *, depth: int
) -> Iterator[int]:
    """Yield how many nodes each node becomes."""
    if depth > MAX_FUNCTION_DEPTH:
        raise Rejected(
            "bad_functions",
            f"Local functions call each other in a circle or more than {MAX_FUNCTION_DEPTH} deep. "
            "Inline them with onnx.inliner.inline_local_functions, or export the model without functions.",
        )
    for node in with_subgraphs(nodes):
        key = (node.domain, node.op_type, node.overload)
        if key not in functions:
            yield 1
            continue
        if key not in known:
            known[key] = sum(_sizes(functions[key].node, functions, known, depth=depth + 1))
        yield known[key]
