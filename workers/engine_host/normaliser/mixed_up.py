"""Tells the branches that a parser may mix up that finds their outputs by address, as `branches` describes."""

from onnx import GraphProto, ModelProto

from app.definitions.graph_walk import with_subgraphs

BRANCHES = ("then_branch", "else_branch")


def mixed_up(model: ModelProto) -> list[str]:
    """Return the names of the Ifs of which such a parser may give one output for another."""
    found = []
    for node in with_subgraphs(model.graph.node):
        branches = [one.g for one in node.attribute if one.name in BRANCHES] if node.op_type == "If" else []
        if branches and (len(node.output) > 1 or not all(map(_is_apart, branches))):
            found.append(node.name or node.output[0])
    return found


def _is_apart(branch: GraphProto) -> bool:
    nodes = list(with_subgraphs(branch.node))
    output = branch.output[0].name
    is_read = any(output in node.input for node in nodes)
    return not is_read and not any(
        name != output and name.startswith(output)
        for node in nodes
        if node.op_type != "Constant"
        for name in node.output
    )
