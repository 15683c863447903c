"""Normalises the graph of a build. The parameters keep their names, their shapes and their order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx import ModelProto
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants_ir

from app.definitions.graph_walk import with_subgraphs
from app.definitions.profiles import Profile
from workers.engine_host import onnx_graph
from workers.engine_host.normaliser import opsets
from workers.engine_host.normaliser.branches import set_outputs_apart, split_branches
from workers.engine_host.normaliser.dequantised import multiply_biases
from workers.engine_host.normaliser.fourier import multiply_out, say_sides
from workers.engine_host.normaliser.mixed_up import mixed_up
from workers.engine_host.normaliser.parser import Parser
from workers.engine_host.normaliser.ranges import Interval, Ranges, fix_known_numbers
from workers.engine_host.normaliser.rewrites import (
    constant_of,
    crop_by_slices,
    drop_infinite_bounds,
    keep_constants_in_branches,
    name_kernel_shapes,
    name_of,
    name_squeezed_axes,
    name_unused_outputs,
    slice_whole_shapes,
    type_exponents,
)

MAX_ROUNDS = 8  # a branch that is taken may hold the next one
MAX_FOLDED_ELEMENTS = 1 << 18
MAX_NAMED = 20
MEANINGS = {  # of the kinds of rewrites
    "spelled_out": "spelled out in operators of an older opset",
    "folded": "computed before the build",
    "branch_taken": "replaced by the branch that is always taken",
    "number_known": "is the same for all shapes of the profiles",
    "axes_named": "names the axes that it squeezes",
    "bound_dropped": "lost a bound that bounds nothing",
    "exponent_typed": "has an exponent of its base's type",
    "opset_lowered": "brought back to an older opset",
    "shape_sliced": "takes its part of a shape by a Slice",
    "crop_sliced": "crops by a Slice",
    "kernel_shape_named": "names the shape of its kernel",
    "bias_multiplied": "is the product of a quantised bias and its scale",
    "transform_multiplied": "multiplies by the matrix of its Fourier transform",
    "branches_split": "became an If for each of its outputs",
    "output_set_apart": "gives the output of a branch by an Identity of another name",
    "branches_cleared": "lost what nothing reads from its branches",
}
LOOPS = {"Loop", "Scan"}
_INFERENCE = passes.ShapeInferencePass(check_type=False, strict_mode=False)
_LIFTING = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One kind of change: how many nodes of the definition it changed, and the names of the first of them."""

    kind: str
    count: int
    nodes: tuple[str, ...]

    @property
    def meaning(self) -> str:
        """What became of the nodes, as the predicate of a sentence."""
        return MEANINGS[self.kind]

    @property
    def text(self) -> str:
        """Return the rewrite as words for a log."""
        more = f" and {self.count - len(self.nodes)} more" if self.count > len(self.nodes) else ""
        return f"{self.meaning}: {', '.join(self.nodes)}{more}"

    def to_json(self) -> dict[str, Any]:
        """Return what an engine's facts list."""
        return {"rewrite": self.kind, "count": self.count, "nodes": list(self.nodes)}


@dataclass(frozen=True, slots=True)
class Normalised:
    """A graph that says the same, for the shapes of the build's profiles, and what was changed."""

    model: ModelProto
    rewrites: tuple[Rewrite, ...]


def normalise(definition: ModelProto, profiles: Sequence[Profile], parser: Parser) -> Normalised:
    """Return a definition's graph as this parser takes it best; the definition stays as it is.

    What depends on neither parameters nor inputs is computed. Numbers that are the same for all shapes of the profiles
    become constants, and the branch that is always taken replaces its If. A Squeeze names its axes. A Clip loses bounds
    that bound nothing. Operators of newer opsets become older ones. What this parser is known to lack is said in other
    words. What cannot be rewritten stays as it is: the compiler then says what it does not take.
    """
    bare = onnx_graph.with_parameters_as_inputs(definition)
    spelled = opsets.spell_out(bare, parser.opset)
    model = ir.from_proto(spelled)
    notes = _Notes()
    if spelled is not bare:
        notes.take("spelled_out", _lost(bare, spelled))
    sizes = _bound_inputs(model.graph, profiles)
    _forget_shapes(model.graph)
    say_sides(model.graph)
    passes.NameFixPass()(model)
    for _ in range(MAX_ROUNDS):
        before = len(notes)
        modified = _fold(model, notes)
        notes.take("number_known", fix_known_numbers(model.graph, Ranges(sizes)))
        notes.take("axes_named", name_squeezed_axes(model.graph, Ranges(sizes), opsets.opset_of(model)))
        notes.take("bound_dropped", drop_infinite_bounds(model.graph))
        notes.take("exponent_typed", type_exponents(model.graph))
        if not modified and len(notes) == before:
            break
    notes.take("kernel_shape_named", name_kernel_shapes(model.graph))
    if not parser.dequantises_i32:
        notes.take("bias_multiplied", multiply_biases(model.graph))
    notes.take("transform_multiplied", multiply_out(model.graph, parser.lacks, opsets.opset_of(model)))
    model, lowered = opsets.lower(model, parser.opset, Ranges(sizes))
    notes.take("opset_lowered", lowered)
    notes.take("shape_sliced", slice_whole_shapes(model.graph))
    notes.take("crop_sliced", crop_by_slices(model.graph))
    keep_constants_in_branches(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    name_unused_outputs(model.graph)
    if parser.single_branches:
        notes.take("branches_split", split_branches(model.graph))
        notes.take("output_set_apart", set_outputs_apart(model.graph))
        if not notes:
            notes.take("branches_cleared", mixed_up(definition))
    if not notes and opsets.opset_of(model) == onnx_graph.opset_of(definition):
        return Normalised(definition, ())
    return Normalised(_restored(ir.to_proto(model), definition), notes.rewrites)


def _restored(model: ModelProto, definition: ModelProto) -> ModelProto:
    """Return the graph with its parameters as initializers again, in the definition's order, before its constants."""
    restored = onnx_graph.with_inputs_as_parameters(model, definition)
    order = {name: place for place, name in enumerate(onnx_graph.parameters_of(definition))}
    initializers = sorted(restored.graph.initializer, key=lambda one: order.get(one.name, len(order)))
    del restored.graph.initializer[:]
    restored.graph.initializer.extend(initializers)
    return restored


def _bound_inputs(graph: ir.Graph, profiles: Sequence[Profile]) -> dict[str, Interval]:
    """Fix each dimension of an input that has one size in all profiles; return the bounds of the others, by name."""
    sizes: dict[str, Interval] = {}
    for value in graph.inputs:
        name = value.name or ""
        if value.shape is None or not profiles or name not in profiles[0]:
            continue
        ranges = [profile[name] for profile in profiles]
        dims = list(value.shape)
        for axis, dim in enumerate(dims):
            if isinstance(dim, int):
                continue
            low, high = min(one.min[axis] for one in ranges), max(one.max[axis] for one in ranges)
            symbol = dim.value or f"{name}.{axis}"
            known = sizes.setdefault(symbol, Interval(low, high))
            sizes[symbol] = Interval(max(low, known.low), min(high, known.high))
            dims[axis] = low if low == high else ir.SymbolicDim(symbol)
        value.shape = ir.Shape(dims)
    return sizes


def _forget_shapes(graph: ir.Graph) -> None:
    """Forget the shapes that the file declares of what is computed: exporters are not always right about them."""
    for node in graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output() or value.graph is not graph:
                value.shape = None


def _fold(model: ir.Model, notes: "_Notes") -> bool:
    """Compute what is constant, and put the branch that is always taken in the place of its If; True if any."""
    before = {name_of(node): node.op_type for node in model.graph}
    if LOOPS & {node.op_type for node in model.graph.all_nodes()}:
        _INFERENCE(model)  # the folding infers the shapes of all other nodes
    folded = fold_constants_ir(
        model,
        onnx_shape_inference=True,
        input_size_limit=MAX_FOLDED_ELEMENTS,
        output_size_limit=MAX_FOLDED_ELEMENTS,
        should_fold=_should_fold,
    )
    for one in (passes.RemoveUnusedNodesPass(), _LIFTING, passes.NameFixPass()):
        one(model)
    after = {name_of(node) for node in model.graph}
    gone = [name for name in before if name not in after and before[name] != "Constant"]
    notes.take("branch_taken", (name for name in gone if before[name] == "If"))
    notes.take("folded", (name for name in gone if before[name] != "If"))
    return folded.modified


def _should_fold(node: ir.Node) -> bool | None:
    """Fold small tensors of one value, too: paddings are put together from them. None leaves it to the library."""
    if node.op_type != "ConstantOfShape":
        return None
    shape = constant_of(node, 0)
    return shape is not None and bool(shape.prod() <= MAX_FOLDED_ELEMENTS)


def _lost(before: ModelProto, after: ModelProto) -> list[str]:
    kept = {node.output[0] for node in with_subgraphs(after.graph.node) if node.output}
    names = {node.op_type for node in with_subgraphs(after.graph.node)}
    return [
        node.name or node.output[0]
        for node in with_subgraphs(before.graph.node)
        if node.op_type not in names or node.output[0] not in kept
    ]


class _Notes:
    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._names.values()))

    def take(self, kind: str, names: Iterable[str]) -> None:
        self._names.setdefault(kind, []).extend(names)

    @property
    def rewrites(self) -> tuple[Rewrite, ...]:
        return tuple(
            Rewrite(kind, len(names), tuple(names[:MAX_NAMED])) for kind, names in self._names.items() if names
        )
