import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from app.definitions.weight_split import split_weights
from tests.workers.engine_host.normaliser.graphs import OPSET_17, Array, computed, graph, operators, profile
from workers.engine_host import onnx_graph
from workers.engine_host.normaliser.normalise import normalise

RANDOM = np.random.default_rng(3)
BRANCHES = """
agraph (float[batch, length] x) => (float y) {
    shape = Shape(x)
    last = Gather(shape, index)
    alone = Equal(last, one)
    flat = If(alone) <
        then_branch = yes () => (squeezed) { axes = Constant<value_ints = [1]>() squeezed = Squeeze(x, axes) },
        else_branch = no () => (same) { same = MatMul(x, weight) }
    >
    y = ReduceSum<keepdims = 0>(flat)
}
"""


def with_constants(model: ModelProto, **values: Array) -> ModelProto:
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return model


@pytest.fixture
def branches() -> ModelProto:
    return with_constants(
        graph(BRANCHES, parameters={"weight": [4, 4]}), index=np.array(1, np.int64), one=np.array(1, np.int64)
    )


def test_the_branch_that_is_always_taken_replaces_its_if(branches: ModelProto) -> None:
    normal = normalise(branches, [profile(x=([1, 4], [8, 4]))], OPSET_17)
    inputs = {"x": RANDOM.random((3, 4), np.float32), "weight": RANDOM.random((4, 4), np.float32)}

    assert operators(normal.model) == ["MatMul", "ReduceSum"]
    assert "branch_taken" in {one.kind for one in normal.rewrites}
    np.testing.assert_array_equal(computed(normal.model, inputs), computed(branches, inputs))


def test_a_dimension_that_is_never_one_decides_a_branch_though_its_size_is_not_known() -> None:
    model = with_constants(
        graph(BRANCHES.replace("MatMul(x, weight)", "Mul(x, weight)"), parameters={"weight": [1, 1]}),
        index=np.array(1, np.int64),
        one=np.array(1, np.int64),
    )

    assert operators(normalise(model, [profile(x=([1, 2], [8, 9]))], OPSET_17).model) == ["Mul", "ReduceSum"]
    undecided = normalise(model, [profile(x=([1, 1], [8, 9]))], OPSET_17).model
    assert "If" in operators(undecided)


def test_one_profile_of_several_keeps_a_branch(branches: ModelProto) -> None:
    profiles = [profile(x=([1, 4], [8, 4])), profile(x=([1, 1], [8, 1]))]

    assert "If" in operators(normalise(branches, profiles, OPSET_17).model)


def test_parameters_keep_their_names_shapes_and_order_and_are_never_folded() -> None:
    text = "agraph (float[n] x) => (float[n] y) { sum = Add(a, b) two = Add(one, one) s = Mul(sum, two) y = Mul(x, s) }"
    model = with_constants(graph(text, parameters={"b": [1], "a": [1]}), one=np.array([1], np.float32))
    normal = normalise(model, [], OPSET_17)

    assert list(onnx_graph.parameters_of(normal.model)) == ["b", "a"]
    assert operators(normal.model) == ["Add", "Mul", "Mul"]
    assert [(one.kind, one.count) for one in normal.rewrites] == [("folded", 1)]


def test_what_needs_no_rewriting_is_returned_as_it_is() -> None:
    model = graph("agraph (float[n] x) => (float[n] y) { y = Mul(x, a) }", parameters={"a": [1]})

    normal = normalise(model, [profile(x=([1], [4]))], OPSET_17)

    assert normal.model is model
    assert normal.rewrites == ()


def test_the_definition_stays_as_it_is(branches: ModelProto) -> None:
    before = branches.SerializeToString(deterministic=True)

    normalise(branches, [profile(x=([1, 4], [8, 4]))], OPSET_17)

    assert branches.SerializeToString(deterministic=True) == before


def test_shapes_that_the_file_declares_wrongly_decide_nothing() -> None:
    text = BRANCHES.replace("agraph (float[batch, length] x) => (float y)", "agraph (float[b, l] x) => (float y)")
    model = with_constants(
        graph(text, parameters={"weight": [4, 4]}), index=np.array(1, np.int64), one=np.array(1, np.int64)
    )
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [7]))

    normal = normalise(model, [profile(x=([1, 4], [8, 4]))], OPSET_17)

    assert operators(normal.model) == ["MatMul", "ReduceSum"]


def test_a_published_network_computes_the_same() -> None:
    """Its exporter left shape arithmetic in the graph."""
    import rapidocr_onnxruntime  # noqa: PLC0415 - it opens sessions when it is imported

    folder = next(iter(rapidocr_onnxruntime.__path__))
    model = onnx.load(f"{folder}/models/ch_PP-OCRv4_rec_infer.onnx")
    split = split_weights(model, {})
    weights = {name: numpy_helper.to_array(tensor) for name, tensor in split.weights.items()}
    inputs = {"x": RANDOM.random((1, 3, 48, 64), np.float32), **weights}

    normal = normalise(split.model, [profile(x=([1, 3, 48, 64], [1, 3, 48, 64]))], OPSET_17)

    assert len(operators(normal.model)) <= len(operators(split.model)) - 30
    assert onnx_graph.parameters_of(normal.model).keys() == onnx_graph.parameters_of(split.model).keys()
    np.testing.assert_array_equal(computed(normal.model, inputs), computed(split.model, inputs))
