"""Says of each constant tensor of a model whether it is a weight, by where its value is consumed.

A tensor is a parameter unless a reason below keeps it in the graph. The reasons, in the order in which they are asked:

1. "unused": nothing reads it. "output": it is an output of the graph, so its name is taken.
2. "setting": an operator takes it as a shape, size, axis, bound, scale factor of a size, or the like
   (`argument_positions.SETTINGS`), directly or through arithmetic on such values (`SETTING_ARITHMETIC`). A compiler
   wants these values when it compiles.
3. "integer": it holds integers of more than 8 bits, or booleans, and no operator takes it as a quantised weight, bias
   or zero point (`INTEGER_WEIGHTS`) or makes the sums that it is added to (`INTEGER_PRODUCTS`): such tensors are
   indices, sizes and masks.
4. "empty": it has no elements.

A tensor of one element is a weight if an operator has a weight at that position (`WEIGHTS`): a bias of one channel, a
slope of PRelu, the scale and the zero point of a quantised tensor. At any other position an integer stays, and of a
float it is asked further:

5. "formula": it makes a mask or is what a mask fills in (`SCALAR_SETTINGS`), or is an epsilon under a root.
6. "literal": it is a number that the model's code wrote, as 0.5 in GELU. An exporter names such a number after the
   operator or the Constant node it made for it ("/encoder/Constant_3_output_0"), whereas a learnt scalar keeps the name
   of its parameter ("logit_scale"). `LITERAL_NAMES` are the names that exporters make up.

The same names tell of zeros that a recurrent layer starts from (`INITIAL_STATES`): a learnt
state has a name of its own.

Everything else of one element is a learnt scalar: a temperature, an alpha of ReZero, the exponent of a pooling. Size
alone never decides.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, Literal

from onnx import GraphProto, NodeProto, TensorProto

from app.definitions.argument_positions import (
    EPSILON_ARITHMETIC,
    INITIAL_STATES,
    INTEGER_PRODUCTS,
    INTEGER_WEIGHTS,
    NEEDS_EPSILON,
    SCALAR_SETTINGS,
    SETTING_ARITHMETIC,
    SETTINGS,
    STATE_SPREADING,
    WEIGHTS,
)
from app.definitions.external_data import is_external
from app.definitions.graph_walk import attribute_graphs, with_subgraphs
from app.definitions.tensor_data import DTYPE_NAMES, tensor_bytes
from app.weights.dtypes import DTYPES

Reason = Literal["unused", "output", "setting", "integer", "empty", "formula", "literal"]
Origin = Literal["initializer", "node"]

# Made up by PyTorch ("/encoder/Constant_3_output_0", "val_12"), PaddlePaddle ("Constant@3", "p2o.helper.constant.3")
# and tf2onnx ("const_fold_opt__7", "Mul__8", "gelu/mul/x:0").
LITERAL_NAMES: Final = re.compile(
    r"((^|[/._])[Cc]onst(ant)?([_@.]*\d+)?(_output_\d+)?|(^|/)const_fold_opt\w*|(^|/)[A-Z]\w*__\d+|/[xy]|(^|/)val_\d+)"
    r"(:\d+)?$"
)
# Older exporters of PyTorch number the outputs of nodes. An initializer of such a name was folded from weights.
LITERAL_NODE_NAMES: Final = re.compile(r"(^|/)_?v?\d+$|(^|[/_])onnx::\w+$|_output_\d+$")


@dataclass(frozen=True, slots=True)
class Use:
    """One place that reads a value: the operator, the position of its input, and what it makes."""

    operator: str
    position: int
    outputs: tuple[str, ...]

    def is_in(self, table: Mapping[str, frozenset[int]]) -> bool:
        """Whether the table lists this position."""
        return self.position in table.get(self.operator, ())


class WeightRule:
    """The rule for one graph, whose names are unique (`unique_names`)."""

    def __init__(self, graph: GraphProto) -> None:
        self._uses = _uses(graph.node)
        self._outputs = {value.name for value in graph.output}
        self._branch_outputs = set(_branch_outputs(graph.node))
        self._settings = _settings(graph.node)
        self._integer_biases = set(_integer_biases(graph.node))

    def is_read(self, name: str) -> bool:
        """Whether any node or graph output has a use for the value."""
        return name in self._uses or name in self._outputs or name in self._branch_outputs

    def reason_to_keep(self, tensor: TensorProto, name: str, origin: Origin) -> Reason | None:
        """Return why a tensor stays in the graph as a constant; None for a weight."""
        if not self.is_read(name):
            return "unused"
        if name in self._outputs:
            return "output"
        if name in self._settings:
            return "setting"
        uses = self._uses.get(name, [])
        if name in self._integer_biases:
            return None
        return self._value_reason(tensor, name, origin) if _is_numeric(tensor, uses) else "integer"

    def _value_reason(self, tensor: TensorProto, name: str, origin: Origin) -> Reason | None:
        elements = prod(tensor.dims)
        if elements == 1:
            return self._single_reason(tensor, name, origin)
        is_state = LITERAL_NAMES.search(name) and self._is_state(name) and _is_zero(tensor)
        return ("literal" if is_state else None) if elements else "empty"

    def _is_state(self, name: str) -> bool:
        """Whether a value is only ever what recurrent layers start from, spread over a batch or not."""
        uses = self._uses.get(name, [])
        return bool(uses) and all(use.is_in(INITIAL_STATES) or self._spreads_state(use) for use in uses)

    def _spreads_state(self, use: Use) -> bool:
        return use.operator in STATE_SPREADING and use.position == 0 and self._is_state(use.outputs[0])

    def _single_reason(self, tensor: TensorProto, name: str, origin: Origin) -> Reason | None:
        uses = self._uses.get(name, [])
        if any(use.is_in(WEIGHTS) for use in uses):
            return None
        if DTYPES[DTYPE_NAMES[tensor.data_type]].kind != "float":
            return "integer"
        if any(use.is_in(SCALAR_SETTINGS) or self._is_epsilon(use) for use in uses):
            return "formula"
        if LITERAL_NAMES.search(name) or (origin == "node" and LITERAL_NODE_NAMES.search(name)):
            return "literal"
        return None

    def _is_epsilon(self, use: Use) -> bool:
        if use.operator not in EPSILON_ARITHMETIC:
            return False
        return any(
            after.operator in NEEDS_EPSILON and after.position == 0 for after in self._uses.get(use.outputs[0], [])
        )


def _is_zero(tensor: TensorProto) -> bool:
    """Whether all elements are zeros; not known, and so not, of those that lie in a file of their own."""
    return not is_external(tensor) and not any(tensor_bytes(tensor))


def _uses(nodes: Iterable[NodeProto]) -> Mapping[str, list[Use]]:
    uses: defaultdict[str, list[Use]] = defaultdict(list)
    for node in with_subgraphs(nodes):
        for position, name in enumerate(node.input):
            if name:
                uses[name].append(Use(node.op_type, position, tuple(node.output)))
    return uses


def _branch_outputs(nodes: Iterable[NodeProto]) -> Iterable[str]:
    for node in with_subgraphs(nodes):
        for attribute in node.attribute:
            for graph in attribute_graphs(attribute):
                yield from (value.name for value in graph.output)


def _integer_biases(nodes: Iterable[NodeProto]) -> Iterable[str]:
    """Yield what is added to the sums of a quantised product before they are scaled."""
    found = list(with_subgraphs(nodes))
    sums = {node.output[0] for node in found if node.op_type in INTEGER_PRODUCTS}
    for node in found:
        if node.op_type == "Add" and sums.intersection(node.input):
            yield from set(node.input) - sums


def _settings(nodes: Iterable[NodeProto]) -> set[str]:
    """Return every name that stands at a setting's position or is computed into one."""
    producers: dict[str, NodeProto] = {}
    pending: list[str] = []
    for node in with_subgraphs(nodes):
        if node.op_type in SETTING_ARITHMETIC:
            producers.update(dict.fromkeys(node.output, node))
        positions = SETTINGS.get(node.op_type, frozenset())
        pending.extend(name for position, name in enumerate(node.input) if position in positions and name)
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        if name in producers:
            pending.extend(producers[name].input)
    return found


def _is_numeric(tensor: TensorProto, uses: Iterable[Use]) -> bool:
    """Whether the elements may be those of a weight: floats, 8-bit integers, wider ones only if they are quantised."""
    dtype = DTYPES[DTYPE_NAMES[tensor.data_type]]
    if dtype.kind == "float" or (dtype.bits == 8 and dtype.kind in {"int", "uint"}):
        return True
    return dtype.kind in {"int", "uint"} and any(use.is_in(INTEGER_WEIGHTS) for use in uses)
