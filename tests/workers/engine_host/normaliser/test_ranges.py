from math import inf

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, numpy_helper
from onnx.parser import parse_model

from workers.engine_host.normaliser.ranges import Interval, Ranges

SIZES = {"n": Interval(2, 8), "c": Interval(3, 3)}


def range_of(text: str, **constants: object) -> list[tuple[float, float]] | None:
    """What `y` can be, for an input x of [n, c, unbounded]."""
    interface = "agraph (float[n, c, other] x, int64[3] ids) => (int64[k] y)"
    model: ModelProto = parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {interface} {{ {text} }}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = ir.from_proto(inferred).graph
    (output,) = graph.outputs
    if output.shape is not None and isinstance(output.shape[0], ir.SymbolicDim):
        output.shape = ir.Shape([None])
    found = Ranges(SIZES).of(output)
    return None if found is None else [(one.low, one.high) for one in found]


@pytest.mark.parametrize(
    ("text", "constants", "expected"),
    [
        ("y = Shape(x)", {}, [(2, 8), (3, 3), (0, inf)]),
        ("y = Shape<start = 1, end = 2>(x)", {}, [(3, 3)]),
        ("s = Shape(x) y = Gather(s, i)", {"i": [-2, 0]}, [(3, 3), (2, 8)]),
        ("s = Shape(x) y = Gather(s, i)", {"i": [7]}, None),
        ("s = Shape(x) y = Slice(s, a, b)", {"a": [0], "b": [-1]}, [(2, 8), (3, 3)]),
        (
            "s = Shape(x) y = Slice(s, a, b, z, t)",
            {"a": [-1], "b": [-9], "z": [0], "t": [-1]},
            [(0, inf), (3, 3), (2, 8)],
        ),
        ("s = Shape(x) y = Concat<axis = 0>(s, k)", {"k": [5]}, [(2, 8), (3, 3), (0, inf), (5, 5)]),
        ("s = Shape(x) y = Add(s, k)", {"k": [1]}, [(3, 9), (4, 4), (1, inf)]),
        ("s = Shape(x) y = Sub(k, s)", {"k": [1]}, [(-7, -1), (-2, -2), (-inf, 1)]),
        ("s = Shape(x) y = Mul(s, k)", {"k": [-1, 2, 0]}, [(-8, -2), (6, 6), (0, 0)]),
        ("s = Shape(x) y = Div(s, k)", {"k": [2]}, [(1, 4), (1, 1), (0, inf)]),
        ("s = Shape(x) y = Div(s, k)", {"k": [0]}, [(-inf, inf)] * 3),
        ("s = Shape(x) y = Max(s, k)", {"k": [4]}, [(4, 8), (4, 4), (4, inf)]),
        ("s = Shape(x) y = Min(s, k)", {"k": [4]}, [(2, 4), (3, 3), (0, 4)]),
        ("s = Shape(x) b = Equal(s, k) y = Cast<to = 7>(b)", {"k": [9, 3, 4]}, [(0, 0), (1, 1), (0, 1)]),
        ("s = Shape(x) b = Less(s, k) y = Cast<to = 7>(b)", {"k": [9, 3, 4]}, [(1, 1), (0, 0), (0, 1)]),
        ("s = Shape(x) b = Greater(s, k) y = Cast<to = 7>(b)", {"k": [1, 3, 4]}, [(1, 1), (0, 0), (0, 1)]),
        ("s = Shape(x) b = LessOrEqual(s, k) y = Cast<to = 7>(b)", {"k": [8, 2, 4]}, [(1, 1), (0, 0), (0, 1)]),
        ("s = Shape(x) b = Equal(s, k) n = Not(b) y = Cast<to = 7>(n)", {"k": [9, 3, 4]}, [(1, 1), (0, 0), (0, 1)]),
        ("s = Shape(x) b = Equal(s, k) y = Where(b, s, k)", {"k": [9, 3, 4]}, [(9, 9), (3, 3), (0, inf)]),
        ("s = Shape<end = 2>(x) y = ReduceProd<keepdims = 1>(s)", {}, [(6, 24)]),
        ("s = Shape<end = 2>(x) y = ReduceMax<keepdims = 1>(s)", {}, [(3, 8)]),
        ("y = Identity(ids)", {}, None),
    ],
)
def test_what_a_graph_computes_from_shapes_is_bounded(
    text: str, constants: dict[str, object], expected: list[tuple[float, float]] | None
) -> None:
    assert range_of(text, **constants) == expected


def test_a_size_is_the_product_of_all_dimensions() -> None:
    text = "t = Expand(k, c) s = Size(t) y = Reshape(s, one)"

    assert range_of(text, k=[1.0], c=[3, 4], one=[1]) == [(12, 12)]
