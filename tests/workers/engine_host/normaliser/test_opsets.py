import numpy as np
import pytest
from onnx import numpy_helper

from tests.workers.engine_host.normaliser.graphs import OPSET_17, computed, graph, operators, profile
from workers.engine_host import onnx_graph
from workers.engine_host.normaliser.normalise import normalise

X = np.random.default_rng(7).random((2, 6, 5, 4)).astype(np.float32)
SHAPE = profile(x=([2, 6, 5, 4], [2, 6, 5, 4]))


@pytest.mark.parametrize(
    ("opset", "text", "constants"),
    [
        (18, "y = ReduceMean(x, k)", {"k": [1, -1]}),
        (18, "y = ReduceMax<keepdims = 0>(x, k)", {"k": [0]}),
        (18, "y = ReduceL2(x)", {}),
        (18, "y = ReduceProd<noop_with_empty_axes = 0>(x)", {}),
        (18, "a, b = Split<axis = 1, num_outputs = 2>(x) y = Sub(a, b)", {}),
        (18, "a, b, c = Split<axis = 2, num_outputs = 3>(x) y = Concat<axis = 2>(c, a, b)", {}),
        (18, "y = Pad(x, p, v, k)", {"p": [1, 2, 0, 3], "v": np.float32(7), "k": [-1, 1]}),
        (18, 'y = Resize<axes = [3, 2], mode = "nearest">(x, , s)', {"s": np.array([2, 3], np.float32)}),
        (18, "y = Mish(x)", {}),
        (20, "y = Gelu(x)", {}),
        (20, 'y = Gelu<approximate = "tanh">(x)', {}),
        (21, "y = GroupNormalization<num_groups = 3>(x, w, w)", {"w": np.array([1, 2, 3, 4, 5, 6], np.float32)}),
        (22, "s = Sqrt(x) y = Relu(s)", {}),
        (23, "y = RMSNormalization(x, w)", {"w": np.array([1, 2, 3, 4], np.float32)}),
    ],
)
def test_newer_operators_become_older_ones(opset: int, text: str, constants: dict[str, object]) -> None:
    model = graph(f"agraph (float[n, c, h, w] x) => (float y) {{ {text} }}", opset=opset)
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v), name) for name, v in constants.items())
    model.graph.output[0].type.tensor_type.ClearField("shape")

    normal = normalise(model, [SHAPE], OPSET_17)

    assert onnx_graph.opset_of(normal.model) == 17
    np.testing.assert_allclose(computed(normal.model, {"x": X})[0], computed(model, {"x": X})[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        'y = Pad<mode = "wrap">(x, p)',  # the older opset pads in no such way
        "i = Cast<to = 6>(x) b = BitwiseAnd(i, i) y = Cast<to = 1>(b)",  # it has no such operator
    ],
)
def test_a_graph_that_cannot_be_brought_back_stays_in_its_opset(text: str) -> None:
    model = graph(f"agraph (float[n, c, h, w] x) => (float[a, b, d, e] y) {{ m = ReduceMean(x, k) {text} }}", opset=19)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "k"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1] * 8), "p"))

    normal = normalise(model, [SHAPE], OPSET_17)

    assert onnx_graph.opset_of(normal.model) == 19
    assert "ReduceMean" not in operators(normal.model) or len(normal.model.graph.node[0].input) == 2


def test_an_older_opset_stays() -> None:
    model = graph("agraph (float[n] x) => (float[n] y) { y = Relu(x) }", opset=11)

    assert normalise(model, [], OPSET_17).model is model
