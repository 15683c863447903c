"""Reads an uploaded ONNX file under limits. Nothing in the file is trusted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from app.definitions.external_data import check_locations, check_range, is_external
from app.definitions.function_calls import inline_functions
from app.definitions.graph_walk import attribute_graphs, attribute_tensors, with_subgraphs
from app.definitions.limits import MAX_NODES, MAX_OPSET, MAX_SUBGRAPH_DEPTH, MAX_TENSORS, MIN_OPSET
from app.definitions.rejection import Rejected
from app.definitions.tensor_data import check_tensor
from app.weights.checkpoint import MAX_NAME_LENGTH, START_BYTES, is_safe_name
from app.weights.foreign_files import explain

DEFAULT_DOMAINS = {"", "ai.onnx"}
MAX_SHOWN = 80  # characters of a refused name


def load_model(path: Path, files: Mapping[str, Path] | None = None) -> ModelProto:
    """Parse a file, check its structure and inline its local functions.

    `files` are the external data files by location.

    Raises:
        Rejected: the file is no ONNX model, uses what is not supported, or asks for more than the limits allow.
    """
    model, data = ModelProto(), path.read_bytes()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        if (what := _other_format(data)) is not None:
            raise Rejected(
                "not_onnx",
                f"The file is no ONNX model but {what}. Upload the .onnx file itself: fetch it with git lfs pull if a "
                "pointer lies in its place, or export the model with torch.onnx.export.",
            ) from error
        raise Rejected(
            "not_onnx",
            "The file is no ONNX model: it is truncated, nested deeper than 100 levels, or something else entirely. "
            "Check it with onnx.checker.check_model and upload it again.",
        ) from error
    model.DiscardUnknownFields()
    if not model.graph.node or not model.graph.output:
        raise Rejected("empty_graph", "The file has a graph without nodes or outputs. Export the whole model.")
    external = files or {}
    check_locations(model, external)
    check_structure(model, external)
    if model.functions:
        model = inline_functions(model)
        check_structure(model, external)
    _check_operators(model)
    return model


def _other_format(data: bytes) -> str | None:
    """Say what a file is that is no ONNX model, if its first bytes tell."""
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return "a safetensors file, which holds weights and no graph"
    told = explain(lambda offset, size: data[offset : offset + size], len(data), data[:START_BYTES])
    return None if told is None or told[0] == "an ONNX model" else told[0]


def opset_of(model: ModelProto) -> int:
    """Return the version of the default operator set.

    Raises:
        Rejected: "bad_opset" if the model imports none or several versions of it, or one that is out of range.
    """
    versions = sorted({entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS})
    if len(versions) != 1:
        found = f"versions {', '.join(map(str, versions))}" if versions else "no version"
        raise Rejected(
            "bad_opset",
            f"The model imports {found} of the operator set ai.onnx, and it takes exactly one. Convert its parts to "
            "one version with onnx.version_converter.convert_version before they are merged, or export it again.",
        )
    if not MIN_OPSET <= versions[0] <= MAX_OPSET:
        raise Rejected(
            "bad_opset",
            f"The model uses opset {versions[0]}; {MIN_OPSET} to {MAX_OPSET} are supported. "
            "Convert it with onnx.version_converter.convert_version, or export it with opset_version=17.",
        )
    return versions[0]


@dataclass(slots=True)
class _Census:
    """Counts the nodes and tensors of a model, and checks its tensors against the external data files."""

    files: Mapping[str, Path] = field(default_factory=dict)
    nodes: int = 0
    tensors: int = 0

    def add(self, nodes: int, tensors: int) -> None:
        self.nodes += nodes
        self.tensors += tensors
        for count, limit, what in ((self.nodes, MAX_NODES, "nodes"), (self.tensors, MAX_TENSORS, "tensors")):
            if count > limit:
                raise Rejected("too_large_graph", f"The graph has more than {limit} {what}. Split the model up.")

    def check(self, tensor: TensorProto, what: str) -> None:
        if is_external(tensor):
            check_range(tensor, what, self.files)
        else:
            check_tensor(tensor, what)


def check_structure(model: ModelProto, files: Mapping[str, Path] | None = None) -> None:
    """Check a model's graphs, the graphs inside them and its local functions.

    The checks are the number of nodes and tensors, the depth of graphs inside graphs, the sizes that tensors declare,
    and the names of values, dimensions, nodes, operators, domains, attributes and functions.

    Raises:
        Rejected: a check fails, the operator set is out of range, or the model has training graphs or sparse tensors.
    """
    if model.training_info:
        raise Rejected("training_info", "The model carries training graphs. Export it for inference only.")
    opset_of(model)
    census = _Census(files or {})
    for function in model.functions:
        _check_names([function.name, function.domain, *function.input, *function.output])
        _check_nodes(function.node, census, depth=0)
    _check_graph(model.graph, census, depth=0)


def _check_graph(graph: GraphProto, census: _Census, *, depth: int) -> None:
    if depth > MAX_SUBGRAPH_DEPTH:
        raise Rejected("too_deep", f"Subgraphs are nested deeper than {MAX_SUBGRAPH_DEPTH} levels. Flatten the model.")
    if graph.sparse_initializer:
        raise _sparse(f"initializer {graph.sparse_initializer[0].values.name[:MAX_SHOWN]!r}")
    census.add(nodes=0, tensors=len(graph.initializer))
    seen: set[str] = set()
    for tensor in graph.initializer:
        _check_names([tensor.name])
        if not tensor.name or tensor.name in seen:
            raise Rejected("bad_name", f"The initializer name {tensor.name!r} is empty or used twice. Export it again.")
        seen.add(tensor.name)
        census.check(tensor, f"initializer {tensor.name!r}")
    for value in (*graph.input, *graph.output):
        _check_names([value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim)])
    _check_nodes(graph.node, census, depth=depth)


def _check_nodes(nodes: Iterable[NodeProto], census: _Census, *, depth: int) -> None:
    for node in nodes:
        census.add(nodes=1, tensors=0)
        _check_names([node.name, node.op_type, node.domain, *node.input, *node.output])
        for attribute in node.attribute:
            _check_names([attribute.name])
            _check_attribute(attribute, node, census, depth=depth)


def _check_attribute(attribute: AttributeProto, node: NodeProto, census: _Census, *, depth: int) -> None:
    what = f"attribute {attribute.name!r} of {node.op_type} node {node.name!r}"
    if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
        raise _sparse(what)
    for tensor in attribute_tensors(attribute):
        census.add(nodes=0, tensors=1)
        census.check(tensor, what)
    for graph in attribute_graphs(attribute):
        _check_graph(graph, census, depth=depth + 1)


def _check_operators(model: ModelProto) -> None:
    foreign = sorted(
        f"{domain}.{operator}"
        for domain, operator in {(node.domain, node.op_type) for node in with_subgraphs(model.graph.node)}
        if domain not in DEFAULT_DOMAINS
    )
    if foreign:
        raise Rejected(
            "unsupported_operators",
            f"The model uses {', '.join(foreign[:10])}; only operators of ai.onnx are supported. "
            "Export the model without custom or runtime-specific operators.",
        )


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not is_safe_name(name):  # an empty name is safe: it stands for an optional input that is not given
            raise Rejected(
                "bad_name",
                f"The name {name[:MAX_SHOWN]!r} is longer than {MAX_NAME_LENGTH} characters, has one that is not "
                "printable, or has '..' as a path part. Rename it and export the model again.",
            )


def _sparse(what: str) -> Rejected:
    return Rejected("sparse_tensor", f"The {what} is sparse, which is not supported. Export it as a dense tensor.")
