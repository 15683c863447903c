"""What running a graph costs, as far as the graph tells before it runs: its largest value, and loops that do not end.

Whatever it does not tell is left to the limits of memory and time.
"""

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from cachetools import LRUCache
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper, shape_inference

from app.definitions.graph_walk import attribute_graphs, attribute_tensors, with_subgraphs
from app.definitions.tensor_data import DTYPE_NAMES
from app.weights.dtypes import DTYPES
from workers.channel.messages import BackendError, Build, EngineFile
from workers.channel.weight_bytes import stored_bytes
from workers.engine_host import onnx_graph
from workers.engine_host.backends.base import Arrays

MAX_STEPS = 10**9  # nodes that a loop computes: a minute and more for the smallest of them
CODE = "too_costly"
GIB = 1 << 30
KEPT_ANSWERS = 1000

Shapes = Mapping[str, tuple[int, ...]]


Limit = Callable[[int], int]


def no_limit(_weights: int) -> int:
    """Return a number of bytes that nothing comes to."""
    return sys.maxsize


class Costs:
    """Refuses what costs too much; `limit` returns the most bytes of one value, given the bytes of the weights.

    What a definition's shapes lead to is computed once.
    """

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._told: LRUCache[Hashable, Value | None] = LRUCache(KEPT_ANSWERS)

    def check_build(self, request: Build) -> None:
        """Raise BackendError "too_costly" if a loop cannot end, or if a value is too large in the largest profile."""
        check_loops(onnx_graph.parse(Path(request.definition).read_bytes()))
        for profile in request.profiles:
            shapes = {name: one.max for name, one in profile.items()}
            self._check(request.definition, shapes, stored_bytes(request.parameters))

    def check_run(self, engine: EngineFile, inputs: Arrays) -> None:
        """Raise BackendError "too_costly" if inputs of these shapes lead to a value that is too large."""
        shapes = {name: array.shape for name, array in inputs.items()}
        self._check(engine.definition, shapes, stored_bytes(engine.parameters))

    def _check(self, path: str, shapes: Shapes, weights: int) -> None:
        file = Path(path).stat()
        key = path, file.st_ino, file.st_mtime_ns, file.st_size, tuple(sorted(shapes.items()))
        if key not in self._told:
            self._told[key] = largest_value(onnx_graph.parse(Path(path).read_bytes()), shapes)
        largest, most = self._told[key], self._limit(weights)
        if largest is not None and largest.nbytes > most:
            raise _too_large(largest, shapes, most)


@dataclass(frozen=True, slots=True)
class Value:
    """A value that a graph computes; `node` says what computes it."""

    name: str
    node: str
    shape: tuple[int, ...]
    nbytes: int


def largest_value(definition: ModelProto, shapes: Shapes) -> Value | None:
    """Return the largest value that inputs of these shapes lead to, as far as the graph tells.

    Shapes that depend on what the inputs hold cannot be told and are passed over.
    """
    return max(_values(definition, shapes), key=lambda one: one.nbytes, default=None)


def check_loops(definition: ModelProto) -> None:
    """Raise BackendError "too_costly" if a Loop cannot end, or not within `MAX_STEPS`; constants tell."""
    constants = dict(_constants(definition.graph))
    for node in with_subgraphs(definition.graph.node):
        if node.op_type != "Loop" or not _goes_on(node, constants):
            continue
        trips = _trips(node, constants)
        steps = 0 if trips is None else trips * sum(1 for _ in with_subgraphs(_body(node).node))
        if trips is None or steps > MAX_STEPS:
            how = "has neither a bound nor a condition that can change" if trips is None else f"makes {trips} trips"
            raise BackendError(
                CODE,
                f"The Loop {node.name or node.output[0]!r} {how}. Give it a condition that its body computes, or a "
                f"bound: at most {MAX_STEPS} nodes are computed in one.",
            )


def _values(definition: ModelProto, shapes: Shapes) -> Iterator[Value]:
    model = onnx_graph.with_parameters_as_inputs(definition)
    for value in model.graph.input:
        if value.name in shapes:
            _settle(value, shapes[value.name])
    del model.graph.value_info[:]
    try:
        inferred: ModelProto = shape_inference.infer_shapes(model, data_prop=True)
    except (RuntimeError, ValueError, onnx.checker.ValidationError, shape_inference.InferenceError):
        return  # onnx knows less than the runtimes do
    nodes = {name: f" ({node.op_type} {node.name!r})" for node in inferred.graph.node for name in node.output}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        tensor = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        name = DTYPE_NAMES.get(tensor.elem_type)
        if name is not None and tensor.HasField("shape"):
            shape = tuple(1 if dim is None else dim for dim in dims)  # at least this large
            yield Value(value.name, nodes.get(value.name, ""), shape, prod(shape) * DTYPES[name].itemsize)


def _settle(value: ValueInfoProto, shape: tuple[int, ...]) -> None:
    tensor = value.type.tensor_type
    del tensor.shape.dim[:]
    for size in shape:
        tensor.shape.dim.add(dim_value=size)


def _too_large(largest: Value, shapes: Shapes, most: int) -> BackendError:
    given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    return BackendError(
        CODE,
        f"With {given} the graph computes {largest.name!r}{largest.node} of the shape {list(largest.shape)}: "
        f"{largest.nbytes / GIB:.1f} GiB, and {most / GIB:.1f} GiB is the limit of this job. Give smaller shapes (in "
        "`profiles` or `inputs`), export the model without this growth, or, on a CPU, raise "
        "ENGINESMITH_JOB_MEMORY_BYTES.",
    )


def _constants(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    yield from ((one.name, one) for one in graph.initializer if one.data_location != TensorProto.EXTERNAL)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield from ((node.output[0], tensor) for tensor in attribute_tensors(attribute))
            for inner in attribute_graphs(attribute):
                yield from _constants(inner)


def _trips(node: NodeProto, constants: Mapping[str, TensorProto]) -> int | None:
    """Return how often a Loop that goes on runs; None if nothing ends it, 0 if that cannot be told."""
    bound = node.input[0] if node.input else ""
    if not bound:
        return None
    return int(numpy_helper.to_array(constants[bound]).item()) if bound in constants else 0


def _goes_on(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether the condition of a Loop is true before it and stays so."""
    condition = node.input[1] if len(node.input) > 1 else ""
    if not condition:
        return True
    if not _is_true(condition, constants):
        return False
    body = _body(node)
    names = {one.output[0]: one.input[0] for one in body.node if one.op_type == "Identity"}
    result = body.output[0].name
    while result in names:
        result = names.pop(result)
    return result == body.input[1].name or _is_true(result, constants)


def _is_true(name: str, constants: Mapping[str, TensorProto]) -> bool:
    return name in constants and bool(numpy_helper.to_array(constants[name]).all())


def _body(node: NodeProto) -> GraphProto:
    graph: GraphProto = next(one.g for one in node.attribute if one.name == "body")
    return graph
