"""What the whole numbers that a graph computes from shapes can be, under the shapes that an engine is compiled for.

Exporters compute shapes at run time: a branch is taken if a dimension is 1, an axis is a number of dimensions less one.
With the bounds of each dimension most of these numbers have one possible value. Arithmetic on intervals finds it:
https://en.wikipedia.org/wiki/Interval_arithmetic. A tensor is known here by the interval of each element, if it has at
most one axis and MAX_ELEMENTS elements.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import onnx_ir as ir

MAX_ELEMENTS = 64
INTEGERS: Final = {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL}


@dataclass(frozen=True, slots=True)
class Interval:
    """The numbers from `low` to `high`, both included; either may be infinite. A boolean is 0 or 1."""

    low: float
    high: float

    @property
    def value(self) -> int | None:
        """The only number in the interval, or None if there are several."""
        return int(self.low) if self.low == self.high and math.isfinite(self.low) else None


ANY_SIZE = Interval(0, math.inf)
EITHER = Interval(0, 1)
Elements = tuple[Interval, ...]
Sizes = Mapping[str, Interval]  # of the dimensions that have a name


class Ranges:
    """Looks up what a graph's whole numbers can be; `sizes` has the bounds of each named dimension of an input."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._known: dict[ir.Value, Elements | None] = {}

    def of(self, value: ir.Value | None) -> Elements | None:
        """Return the interval of each element; None if nothing is known, not even how many elements there are."""
        if value is None:
            return None
        if value not in self._known:
            self._known[value] = None  # a value that depends on itself stays unknown
            self._known[value] = self._computed(value)
        return self._known[value]

    def size(self, dim: int | ir.SymbolicDim) -> Interval:
        """Return the bounds of a dimension."""
        if isinstance(dim, int):
            return Interval(dim, dim)
        return self._sizes.get(dim.value or "", ANY_SIZE)

    def _computed(self, value: ir.Value) -> Elements | None:
        if value.const_value is not None:
            return _elements(value.const_value)
        node = value.producer()
        if node is None or node.domain not in {"", "ai.onnx"} or node.outputs[0] is not value:
            return None
        rule = _RULES.get(node.op_type)
        if rule is None or value.shape is None or len(value.shape) > 1:
            return None
        found = rule(self, node)
        return found if found is not None and len(found) <= MAX_ELEMENTS else None


def _elements(tensor: ir.TensorProtocol) -> Elements | None:
    if tensor.dtype not in INTEGERS or len(tensor.shape) > 1 or tensor.size > MAX_ELEMENTS:
        return None
    return tuple(Interval(int(one), int(one)) for one in tensor.numpy().reshape(-1))


def _fixed(elements: Elements | None) -> list[int] | None:
    """Return the elements as numbers, or None if one of them is not known."""
    if elements is None:
        return None
    values = [one.value for one in elements]
    return None if None in values else [one for one in values if one is not None]


def _shape(ranges: Ranges, node: ir.Node) -> Elements | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return None
    start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
    return tuple(ranges.size(dim) for dim in list(shape)[start:end])


def _size(ranges: Ranges, node: ir.Node) -> Elements | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return None
    total = Interval(1, 1)
    for dim in shape:
        total = _product(total, ranges.size(dim))
    return (total,)


def _gather(ranges: Ranges, node: ir.Node) -> Elements | None:
    elements, indices = ranges.of(node.inputs[0]), _fixed(ranges.of(node.inputs[1]))
    if elements is None or indices is None or not all(-len(elements) <= index < len(elements) for index in indices):
        return None
    return tuple(elements[index] for index in indices)


def _slice(ranges: Ranges, node: ir.Node) -> Elements | None:
    elements = ranges.of(node.inputs[0])
    given = [_fixed(ranges.of(one)) for one in node.inputs[1:]]
    if elements is None or len(given) < 2 or any(one is None or len(one) != 1 for one in given):
        return None
    bounds = [one[0] for one in given if one is not None]
    return elements[bounds[0] : bounds[1] : bounds[3] if len(bounds) > 3 else None]


def _concatenated(ranges: Ranges, node: ir.Node) -> Elements | None:
    parts = [ranges.of(one) for one in node.inputs]
    return None if None in parts else tuple(element for part in parts if part is not None for element in part)


def _unchanged(ranges: Ranges, node: ir.Node) -> Elements | None:
    return ranges.of(node.inputs[0])


def _cast(ranges: Ranges, node: ir.Node) -> Elements | None:
    elements, wanted = ranges.of(node.inputs[0]), node.attributes.get_int("to", None)
    if elements is None or wanted not in {int(one) for one in INTEGERS}:
        return None
    if wanted != int(ir.DataType.BOOL):
        return elements
    return tuple(_truth(certain=one.low > 0 or one.high < 0, excluded=one.value == 0) for one in elements)


def _where(ranges: Ranges, node: ir.Node) -> Elements | None:
    found = _broadcast([ranges.of(one) for one in node.inputs])
    if found is None:
        return None
    return tuple(
        _union(yes, no) if condition.value is None else yes if condition.value else no for condition, yes, no in found
    )


def _broadcast(operands: Sequence[Elements | None]) -> list[tuple[Interval, ...]] | None:
    known = [one for one in operands if one is not None]
    count = max(map(len, known), default=0)
    if len(known) < len(operands) or not all(len(one) in {1, count} for one in known):
        return None
    return list(zip(*(one * count if len(one) == 1 else one for one in known), strict=True))


def _pairwise(rule: Callable[[Interval, Interval], Interval]) -> "Rule":
    def apply(ranges: Ranges, node: ir.Node) -> Elements | None:
        found = _broadcast([ranges.of(one) for one in node.inputs])
        return None if found is None or len(node.inputs) != 2 else tuple(rule(a, b) for a, b in found)

    return apply


def _over_all(rule: Callable[[Interval, Interval], Interval]) -> "Rule":
    """Return the rule of a reduction of a whole tensor, which has at most one axis."""

    def apply(ranges: Ranges, node: ir.Node) -> Elements | None:
        elements = ranges.of(node.inputs[0])
        if not elements or bool(node.attributes.get_int("noop_with_empty_axes", None)):
            return None
        total = elements[0]
        for one in elements[1:]:
            total = rule(total, one)
        return (total,)

    return apply


def _sum(a: Interval, b: Interval) -> Interval:
    return Interval(a.low + b.low, a.high + b.high)


def _difference(a: Interval, b: Interval) -> Interval:
    return Interval(a.low - b.high, a.high - b.low)


def _product(a: Interval, b: Interval) -> Interval:
    corners = [0.0 if 0 in {x, y} else x * y for x, y in product((a.low, a.high), (b.low, b.high))]
    return Interval(min(corners), max(corners))


def _quotient(a: Interval, b: Interval) -> Interval:
    """Divide, if both are no less than 0: onnx does not say how it rounds the quotient of negative numbers."""
    if a.low < 0 or b.low < 1:
        return Interval(-math.inf, math.inf)
    high = a.high if math.isinf(a.high) else a.high // b.low
    return Interval(0 if math.isinf(b.high) else a.low // b.high, high)


def _least(a: Interval, b: Interval) -> Interval:
    return Interval(min(a.low, b.low), min(a.high, b.high))


def _most(a: Interval, b: Interval) -> Interval:
    return Interval(max(a.low, b.low), max(a.high, b.high))


def _union(a: Interval, b: Interval) -> Interval:
    return Interval(min(a.low, b.low), max(a.high, b.high))


def _truth(*, certain: bool, excluded: bool) -> Interval:
    return Interval(1, 1) if certain else Interval(0, 0) if excluded else EITHER


def _equal(a: Interval, b: Interval) -> Interval:
    return _truth(certain=a.value is not None and a.value == b.value, excluded=a.high < b.low or b.high < a.low)


def _less(a: Interval, b: Interval) -> Interval:
    return _truth(certain=a.high < b.low, excluded=a.low >= b.high)


def _at_most(a: Interval, b: Interval) -> Interval:
    return _truth(certain=a.high <= b.low, excluded=a.low > b.high)


def _not(ranges: Ranges, node: ir.Node) -> Elements | None:
    elements = ranges.of(node.inputs[0])
    return None if elements is None else tuple(Interval(1 - one.high, 1 - one.low) for one in elements)


Rule = Callable[[Ranges, ir.Node], Elements | None]
_RULES: Mapping[str, Rule] = {
    "Add": _pairwise(_sum),
    "And": _pairwise(_least),
    "Cast": _cast,
    "Concat": _concatenated,
    "Div": _pairwise(_quotient),
    "Equal": _pairwise(_equal),
    "Gather": _gather,
    "Greater": _pairwise(lambda a, b: _less(b, a)),
    "GreaterOrEqual": _pairwise(lambda a, b: _at_most(b, a)),
    "Identity": _unchanged,
    "Less": _pairwise(_less),
    "LessOrEqual": _pairwise(_at_most),
    "Max": _pairwise(_most),
    "Min": _pairwise(_least),
    "Mul": _pairwise(_product),
    "Not": _not,
    "Or": _pairwise(_most),
    "ReduceMax": _over_all(_most),
    "ReduceMin": _over_all(_least),
    "ReduceProd": _over_all(_product),
    "ReduceSum": _over_all(_sum),
    "Reshape": _unchanged,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _unchanged,
    "Sub": _pairwise(_difference),
    "Unsqueeze": _unchanged,
    "Where": _where,
}


def fix_known_numbers(graph: ir.Graph, ranges: Ranges) -> Iterator[str]:
    """Replace each whole number that has one possible value by a constant, and yield the names of its nodes.

    What is a constant already, or computed from constants alone, is left to constant folding.
    """
    for node in list(graph.all_nodes()):
        if node.op_type == "Constant" or len(node.outputs) != 1 or not node.outputs[0].uses():
            continue
        (output,) = node.outputs
        values = _fixed(ranges.of(output))
        if values is None or output.shape is None or output.dtype not in INTEGERS or len(output.shape) > 1:
            continue
        array = np.array(values, output.dtype.numpy()).reshape([-1] if len(output.shape) else [])
        constant = ir.node("Constant", [], {"value": ir.tensor(array)}, name=f"{node.name}.known")
        constant.outputs[0].name = f"{output.name}.known"
        constant.outputs[0].const_value = ir.tensor(array)
        constant.outputs[0].dtype, constant.outputs[0].shape = output.dtype, ir.Shape(array.shape)
        owner = node.graph
        if owner is None or output.is_graph_output():
            continue
        owner.insert_before(node, [constant])
        ir.convenience.replace_all_uses_with(output, constant.outputs[0])
        yield node.name or output.name or ""
