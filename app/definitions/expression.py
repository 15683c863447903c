"""A weightless graph as an expression: what it computes of which parameters, whatever its values and nodes are called.

A term is an operator with its attributes and the terms that it reads. Equal terms are one term, and Identity is none.
A body of If, Loop or Scan belongs to the term of its node: its outputs are read by that term, and an argument of it is
known by its position and by how deep the body is nested. So two graphs compute the same if their outputs are the same
terms, once it is said which parameter is which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from typing import Final

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.defs import get_schema

from app.definitions.external_data import is_external
from app.definitions.graph_walk import attribute_graphs
from app.definitions.onnx_file import opset_of
from app.definitions.rejection import Rejected
from app.definitions.tensor_data import DTYPE_NAMES, element_count, tensor_bytes
from app.definitions.weight_split import constant_tensor
from app.weights.dtypes import DTYPES

# Two inputs may change places without any change to the result, bit by bit.
COMMUTATIVE: Final = frozenset({"Add", "Mul"})


@dataclass(frozen=True, slots=True)
class Term:
    """`key` tells what is computed, `reads` are the numbers of earlier terms.

    `shown` is for messages. `parameter` is the name of the parameter that the term is, if it is one.
    """

    key: tuple[object, ...]
    reads: tuple[int, ...] = ()
    shown: str = ""
    parameter: str | None = None

    @property
    def is_commutative(self) -> bool:
        """Whether the order of what the term reads means nothing."""
        return self.key[0] in COMMUTATIVE and len(self.reads) == 2


@dataclass(frozen=True, slots=True)
class Expression:
    """The terms of a graph, each behind those that it reads, and the numbers of its outputs by name.

    `scalars` are the constants that are taken for parameters, by name.
    """

    terms: Sequence[Term]
    outputs: Mapping[str, int]
    scalars: Mapping[str, TensorProto] = field(default_factory=dict)

    def colours(self, labels: Mapping[str, str] | None = None) -> list[bytes]:
        """Return for each term a digest of all that it is computed of.

        Parameters of equal dtype and shape are the same to it, unless `labels` tells them apart.
        """
        marks, colours = labels or {}, list[bytes]()
        for term in self.terms:
            reads = [colours[number] for number in term.reads]
            if term.is_commutative:
                reads.sort()
            start = repr((term.key, marks.get(term.parameter or ""))).encode()
            colours.append(blake2b(b"".join([*reads, start]), digest_size=16).digest())
        return colours

    def told_apart_by(self, numbers: Sequence[int]) -> list[str]:
        """Return the names of the parameters that not all inputs of one of these terms are computed of, sorted."""
        names = set[str]()
        for number in numbers:
            first, *others = [self.parameters_of([one]) for one in self.terms[number].reads]
            names.update(*(set(first) ^ set(one) for one in others))
        return sorted(names)

    def parameters_of(self, numbers: Sequence[int]) -> list[str]:
        """Return the names of the parameters that these terms are computed of, sorted."""
        seen, pending = set(numbers), list(numbers)
        while pending:
            for number in self.terms[pending.pop()].reads:
                if number not in seen:
                    seen.add(number)
                    pending.append(number)
        return sorted(name for number in seen if (name := self.terms[number].parameter) is not None)


def expression_of(model: ModelProto, *, scalars_are_parameters: bool = False) -> Expression:
    """Return what a canonical model computes; its names must be unique over all of its graphs (`unique_names`).

    Floating-point constants of one element are values of the graph, or `scalars` that count as parameters.
    """
    made = _Terms(opset_of(model), scalars_are_parameters)
    for value in model.graph.input:
        tensor = value.type.tensor_type
        sizes = tuple(dim.dim_value or "?" for dim in tensor.shape.dim)
        kind = f"{DTYPE_NAMES.get(tensor.elem_type)} [{', '.join(map(str, sizes))}]"
        shown = f"the input {value.name!r:.80}, {kind}"
        made.add(value.name, Term(("input", value.name, tensor.elem_type, sizes), shown=shown))
    made.take(model.graph, depth=0)
    outputs = {value.name: made.number(value.name) for value in model.graph.output}
    return Expression(made.terms, outputs, made.scalars)


@dataclass(slots=True)
class _Terms:
    opset: int
    scalars_are_parameters: bool
    scalars: dict[str, TensorProto] = field(default_factory=dict)
    terms: list[Term] = field(default_factory=list)
    _numbers: dict[tuple[object, ...], int] = field(default_factory=dict)
    _by_name: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, term: Term) -> None:
        """Give a value its term, which may be there already."""
        reads = tuple(sorted(term.reads)) if term.is_commutative else term.reads
        number = self._numbers.setdefault((term.key, reads, term.parameter), len(self.terms))
        if number == len(self.terms):
            self.terms.append(term)
        self._by_name[name] = number

    def number(self, name: str) -> int:
        if name not in self._by_name:
            raise Rejected(
                "graph_differs",
                f"The value {name[:80]!r} is read before it is computed. Sort the nodes, as exporters do.",
            )
        return self._by_name[name]

    def take(self, graph: GraphProto, *, depth: int) -> None:
        """Add the initializers and the nodes of a graph."""
        for tensor in graph.initializer:
            self._take_tensor(tensor, tensor.name)
        for node in graph.node:
            self._take_node(node, depth)

    def _take_node(self, node: NodeProto, depth: int) -> None:
        if node.op_type == "Identity":
            self._by_name[node.output[0]] = self.number(node.input[0])
        elif node.op_type == "Constant" and (tensor := constant_tensor(node)) is not None:
            self._take_tensor(tensor, node.output[0])
        else:
            self._take_operator(node, depth)

    def _take_tensor(self, tensor: TensorProto, name: str) -> None:
        is_scalar = self.scalars_are_parameters and _is_scalar(tensor)
        if is_scalar:
            self.scalars[name] = tensor
        self.add(name, _parameter(tensor, name) if is_scalar or is_external(tensor) else _constant(tensor, name))

    def _take_operator(self, node: NodeProto, depth: int) -> None:
        reads = [self._read(name) for name in _without_trailing(node.input)]
        outputs = _without_trailing(node.output)
        attributes: list[object] = []
        defaults = _defaults(node.op_type, self.opset)
        for attribute in node.attribute:
            if defaults.get(attribute.name) == attribute.SerializeToString(deterministic=True):
                continue
            bodies = list(attribute_graphs(attribute))
            attributes.append(_attribute_key(attribute, bodies))
            for number, body in enumerate(bodies):
                reads += self._body(body, f"{attribute.name}.{number}", depth + 1)
        shown = f"{node.op_type} {node.name or outputs[0]!r:.80}"
        key = (node.op_type, node.domain, tuple(attributes), len(outputs))
        self.add(outputs[0], Term(key, tuple(reads), shown))
        first = self._by_name[outputs[0]]
        for position, name in enumerate(outputs[1:], 1):
            self.add(name, Term(("output", position), (first,), f"output {position} of {shown}"))

    def _body(self, graph: GraphProto, place: str, depth: int) -> list[int]:
        for position, value in enumerate(graph.input):
            argument = Term(("argument", depth, place, position), shown=f"the argument {value.name!r:.80}")
            self.add(value.name, argument)
        self.take(graph, depth=depth)
        return [self.number(value.name) for value in graph.output]

    def _read(self, name: str) -> int:
        if not name:
            self.add("", Term(("absent",), shown="no input"))
        return self.number(name)


@cache
def _defaults(operator: str, opset: int) -> Mapping[str, bytes]:
    """Return the attributes that an operator has if they are left out, as some exporters do."""
    attributes = get_schema(operator, opset, "").attributes.values()
    return {one.name: one.default_value.SerializeToString(deterministic=True) for one in attributes}


def _is_scalar(tensor: TensorProto) -> bool:
    is_float = DTYPES[DTYPE_NAMES[tensor.data_type]].kind == "float"
    return is_float and element_count(tensor) == 1 and not is_external(tensor)


def _parameter(tensor: TensorProto, name: str) -> Term:
    key = ("parameter", tensor.data_type, tuple(tensor.dims))
    return Term(key, shown=f"the parameter {name!r:.200}, {_kind(tensor)}", parameter=name)


def _constant(tensor: TensorProto, name: str) -> Term:
    values = blake2b(tensor_bytes(tensor), digest_size=16).hexdigest()
    key = ("constant", tensor.data_type, tuple(tensor.dims), values)
    return Term(key, shown=f"the constant {name!r:.200}, {_kind(tensor)}")


def _kind(tensor: TensorProto) -> str:
    return f"{DTYPE_NAMES[tensor.data_type]} {list(tensor.dims)}"


def _attribute_key(attribute: AttributeProto, bodies: Sequence[GraphProto]) -> object:
    if bodies:
        return attribute.name, tuple((len(one.input), len(one.output)) for one in bodies)
    return attribute.name, blake2b(attribute.SerializeToString(deterministic=True), digest_size=16).hexdigest()


def _without_trailing(names: Sequence[str]) -> list[str]:
    """Return names up to the last one that is given."""
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept
