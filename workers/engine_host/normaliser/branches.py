"""Branches as the parsers of TensorRT before 9.0 GA take them: those find the outputs of an If by their addresses.

So the outputs of an If with several come out in any order, which may be another one in each branch. One that its own
branch reads is not found, and one whose name begins that of another value is taken for both (`getSubgraphTensors` and
`addIfOutputLayers` in `ConditionalHelpers.cpp` of onnx-tensorrt, branch 8.6-GA). Here each If gives one output, whose
name begins no other, and which nothing in its branch reads. A Loop needs none of this: its outputs are found by their
names.
"""

from collections.abc import Iterator

import onnx_ir as ir

from workers.engine_host.normaliser.mixed_up import BRANCHES
from workers.engine_host.normaliser.rewrites import copy_type, name_of


def split_branches(graph: ir.Graph) -> Iterator[str]:
    """Replace each If of several outputs by one If for each that is read; yield the names of those that were split.

    What the outputs of a branch share is computed for each of them. Branches must not have initializers.
    """
    for node in reversed([one for one in graph.all_nodes() if one.op_type == "If"]):  # the inner ones first
        if len(node.outputs) > 1:
            _split(node)
            yield name_of(node)


def set_outputs_apart(graph: ir.Graph) -> Iterator[str]:
    """Let an Identity give the output of each branch in which another name begins as the output's does.

    Yields the names of the Ifs that were changed. Each has one output, and no branch has nodes that nothing reads.
    """
    for node in [one for one in graph.all_nodes() if one.op_type == "If"]:
        changed = [_set_apart(branch) for branch in _branches(node)]
        if any(changed):
            yield name_of(node)


def _split(node: ir.Node) -> None:
    parent, name = node.graph, name_of(node)
    if parent is None:
        raise ValueError(f"{name} is in no graph")
    for position, output in enumerate(node.outputs):
        if not output.uses() and not output.is_graph_output():
            continue
        attributes = [
            ir.AttrGraph(which, _branch_of_one(branch, position))
            for which, branch in zip(BRANCHES, _branches(node), strict=True)
        ]
        single = ir.Node("", "If", node.inputs, attributes, num_outputs=1, name=f"{name}.{position}")
        made = single.outputs[0]
        copy_type(output, made)
        parent.insert_before(node, [single])
        ir.convenience.replace_all_uses_with(output, made, replace_graph_outputs=True)
        made.name, output.name = output.name, f"{output.name}.of_all"
    parent.remove(node, safe=True)


def _branch_of_one(branch: ir.Graph, position: int) -> ir.Graph:
    """Return a copy of a branch that gives one of its outputs, with what no other output needs left out."""
    single = branch.clone(allow_outer_scope_values=True)
    for inner in (single, *single.subgraphs()):
        for value in inner.inputs:
            value.name = f"{value.name}.{position}"
    for node in single.all_nodes():
        node.name = f"{name_of(node)}.{position}"
        for value in node.outputs:
            value.name = f"{value.name}.{position}" if value.name else None
    kept = single.outputs[position]
    single.outputs.clear()
    single.outputs.append(kept)
    for node in reversed(single):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            single.remove(node, safe=True)
    return single


def _set_apart(branch: ir.Graph) -> bool:
    """Return whether the branch gets an output of its own instead of the one that it has."""
    (output,) = branch.outputs
    others = [one for node in branch.all_nodes() if node.op_type != "Constant" for one in node.outputs]
    if not any(one is not output and (one.name or "").startswith(output.name or "") for one in others):
        return False
    identity = ir.node("Identity", [output], name=f"{output.name}.apart")
    made = identity.outputs[0]
    made.name = f"{output.name}.apart"
    copy_type(output, made)
    branch.append(identity)
    branch.outputs[0] = made
    return True


def _branches(node: ir.Node) -> list[ir.Graph]:
    return [node.attributes[which].as_graph() for which in BRANCHES]
