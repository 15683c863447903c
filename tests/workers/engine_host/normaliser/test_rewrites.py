import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tests.workers.engine_host.normaliser.graphs import OPSET_17, computed, graph, operators, profile
from workers.engine_host.normaliser.normalise import normalise

X = np.random.default_rng(5).standard_normal((1, 4, 1)).astype(np.float32)


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_a_squeeze_names_the_axes_that_are_one_in_every_shape(opset: int) -> None:
    model = graph("agraph (float[a, n, c] x) => (float[m] y) { y = Squeeze(x) }", opset=opset)
    normal = normalise(model, [profile(x=([1, 2, 1], [1, 9, 1]))], OPSET_17)
    (node,) = ir.from_proto(normal.model).graph.all_nodes() if opset < 13 else [None]

    assert [one.kind for one in normal.rewrites] == ["axes_named"]
    if node is not None:
        assert node.attributes["axes"].value == (0, 2)
    np.testing.assert_array_equal(computed(normal.model, {"x": X}), computed(model, {"x": X}))


def test_a_squeeze_whose_axes_depend_on_the_run_is_left_alone() -> None:
    model = graph("agraph (float[a, n] x) => (float[m] y) { y = Squeeze(x) }")

    assert normalise(model, [profile(x=([1, 1], [1, 9]))], OPSET_17).rewrites == ()


@pytest.mark.parametrize(
    ("low", "high", "kept"), [(-np.inf, np.inf, 1), (0, np.inf, 2), (-np.inf, 6, 3), (np.finfo(np.float32).min, 6, 3)]
)
def test_a_bound_that_bounds_nothing_is_left_out(low: float, high: float, kept: int) -> None:
    model = graph("agraph (float[n, c, d] x) => (float[n, c, d] y) { y = Clip(x, low, high) }")
    for name, value in (("low", low), ("high", high)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    normal = normalise(model, [], OPSET_17)
    (clip,) = normal.model.graph.node

    assert [one.kind for one in normal.rewrites] == ["bound_dropped"]
    assert len(clip.input) == kept
    np.testing.assert_array_equal(computed(normal.model, {"x": X}), computed(model, {"x": X}))


def test_finite_bounds_stay() -> None:
    model = graph("agraph (float[n] x) => (float[n] y) { y = Clip<min = 0.0, max = 6.0>(x) }", opset=10)

    assert normalise(model, [], OPSET_17).rewrites == ()


def test_a_bound_among_attributes_is_left_out() -> None:
    model = graph(
        "agraph (float[n, c, d] x) => (float[n, c, d] y) { y = Clip<min = 0.0, max = 3.4028235e38>(x) }", opset=10
    )
    normal = normalise(model, [], OPSET_17)

    assert [one.name for one in normal.model.graph.node[0].attribute] == ["min"]
    assert operators(normal.model) == ["Clip"]
    np.testing.assert_array_equal(computed(normal.model, {"x": X}), computed(model, {"x": X}))


@pytest.mark.parametrize("part", ["start = 1", "start = -2, end = 3", "end = 2", "start = 1, end = -1"])
def test_a_part_of_a_shape_is_sliced_from_the_whole(part: str) -> None:
    model = graph(f"agraph (float[n, c, d] x) => (int64[k] y) {{ y = Shape<{part}>(x) }}")
    normal = normalise(model, [], OPSET_17)

    assert operators(normal.model) == ["Shape", "Slice"]
    assert not any(node.attribute for node in normal.model.graph.node if node.op_type == "Shape")
    np.testing.assert_array_equal(computed(normal.model, {"x": X}), computed(model, {"x": X}))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("pads", [[0, 1, 0, 0, -1, 0], [0, -1, 1, 0, -2, 1], [0, 2, 0, 0, -1, 0]])
def test_a_pad_that_takes_away_is_a_pad_and_a_slice(mode: str, pads: list[int]) -> None:
    model = graph(f'agraph (float[n, c, d] x) => (float[a, b, e] y) {{ y = Pad<mode = "{mode}">(x, pads) }}')
    model.graph.initializer.append(numpy_helper.from_array(np.array(pads), "pads"))
    x = np.random.default_rng(6).random((1, 4, 3)).astype(np.float32)
    normal = normalise(model, [], OPSET_17)

    assert operators(normal.model) == ["Pad", "Slice"]
    np.testing.assert_array_equal(computed(normal.model, {"x": x}), computed(model, {"x": x}))


def test_an_exponent_has_the_type_of_its_base() -> None:
    model = graph("agraph (float[n, c, d] x) => (float[n, c, d] y) { y = Pow(x, two) }")
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.int64), "two"))
    normal = normalise(model, [], OPSET_17)

    assert [one.kind for one in normal.rewrites] == ["exponent_typed"]
    np.testing.assert_array_equal(computed(normal.model, {"x": X}), computed(model, {"x": X}))


def test_constants_of_branches_stay_in_their_branches_as_nodes() -> None:
    text = """
    agraph (bool b, float[n] x) => (float[n] y) {
        two = Add(one, one)
        y = If(b) <
            then_branch = yes () => (p) { c = Constant<value = float {3.0}>() d = Add(c, two) p = Mul(x, d) },
            else_branch = no () => (q) { q = Identity(x) }
        >
    }"""
    model = graph(text)
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "one"))
    normal = normalise(model, [], OPSET_17)
    (branching,) = [node for node in normal.model.graph.node if node.op_type == "If"]
    inputs = {"b": np.ones((), np.bool_), "x": np.ones(3, np.float32)}

    assert not any(attribute.g.initializer for attribute in branching.attribute)
    np.testing.assert_array_equal(computed(normal.model, inputs), computed(model, inputs))


def test_an_output_that_nothing_reads_has_a_name_again() -> None:
    text = """agraph (float[n, b, 2] x) => (float[a, c, d] h) {
        two = Add(one, one) scaled = Mul(x, two) y, h, c = LSTM<hidden_size = 1>(scaled, w, r, , , , )
    }"""
    model = graph(text)
    weights = {"w": np.ones((1, 4, 2)), "r": np.ones((1, 4, 1)), "one": np.ones(())}
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    normal = normalise(model, [], OPSET_17)
    x = np.ones((3, 1, 2), np.float32)

    assert all(node.output[index] for node in normal.model.graph.node for index in range(len(node.output)))
    np.testing.assert_array_equal(computed(normal.model, {"x": x}), computed(model, {"x": x}))
