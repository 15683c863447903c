from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.workers.engine_host.normaliser.graphs import OPSET_17, computed, graph, operators
from workers.engine_host import onnx_graph
from workers.engine_host.normaliser.normalise import normalise
from workers.engine_host.normaliser.parser import Parser

FLOATS_ONLY = Parser(17, dequantises_i32=False)
X = np.random.default_rng(2).standard_normal((2, 3)).astype(np.float32)
BIAS = np.array([2**24 + 1, -7, 2**31 - 1], np.int32)


@pytest.mark.parametrize("scale", [np.array(0.37), np.array([0.37, 2.5, 1e-3])])
def test_a_quantised_bias_is_the_product_of_itself_and_its_scale(scale: np.ndarray) -> None:
    given = "" if scale.ndim else ", zero"
    text = f"b = DequantizeLinear<axis = 0>(q, s{given}) y = Add(x, b)"
    model = graph(f"agraph (float[n, 3] x) => (float[n, 3] y) {{ {text} }}", parameters={"s": list(scale.shape)})
    external = TensorProto(name="q", dims=[3], data_type=TensorProto.INT32, data_location=TensorProto.EXTERNAL)
    model.graph.initializer.append(external)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int32), "zero"))
    inputs = {"x": X, "q": BIAS, "s": scale.astype(np.float32)}
    normal = normalise(model, [], FLOATS_ONLY)

    assert [one.kind for one in normal.rewrites] == ["bias_multiplied"]
    assert "DequantizeLinear" not in operators(normal.model)
    assert list(onnx_graph.parameters_of(normal.model)) == ["s", "q"]
    np.testing.assert_array_equal(computed(normal.model, inputs)[0], computed(model, inputs)[0])


def test_a_bias_beyond_half_precision_keeps_a_product_within_it() -> None:
    text = "agraph (int32[3] q, float16[3] s) => (float16[3] y) { y = DequantizeLinear<axis = 0>(q, s) }"
    model = graph(text, opset=19)
    inputs = {"q": np.array([2**20, -70_000, 3], np.int32), "s": np.array([1e-3, 0.25, 2], np.float16)}
    normal = normalise(model, [], Parser(19, dequantises_i32=False)).model
    outputs: list[Any] = [ReferenceEvaluator(one).run(None, inputs) for one in (normal, model)]
    (found,), (exact,) = outputs

    assert "DequantizeLinear" not in operators(normal)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, exact)


def test_a_bias_of_one_scale_for_each_block_stays() -> None:
    text = "agraph (int32[8] q, float[2] s) => (float[8] y) { y = DequantizeLinear<axis = 0, block_size = 4>(q, s) }"
    model = graph(text, opset=21)

    assert normalise(model, [], Parser(21, dequantises_i32=False)).model is model


def test_activations_are_dequantised_as_before() -> None:
    text = "q = QuantizeLinear(x, s, zero) y = DequantizeLinear(q, s, zero)"
    model = graph(f"agraph (float[n, 3] x) => (float[n, 3] y) {{ {text} }}", parameters={"s": []})
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))

    assert normalise(model, [], FLOATS_ONLY).model is model


def test_a_parser_that_dequantises_biases_gets_them() -> None:
    model = graph("agraph (int32[3] q) => (float[3] y) { y = DequantizeLinear(q, s) }", parameters={"s": []})

    assert normalise(model, [], OPSET_17).model is model


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_a_computed_kernel_has_its_shape_named(operator: str) -> None:
    text = f"k = Mul(w, w) y = {operator}(x, k)"
    model = graph(f"agraph (float[n, 3, a, b] x) => (float[n, d, e, f] y) {{ {text} }}", parameters={"w": [3, 3, 2, 1]})
    inputs = {"x": X.reshape(1, 3, 2, 1), "w": np.random.default_rng(1).random((3, 3, 2, 1), np.float32)}
    normal = normalise(model, [], OPSET_17)
    (named,) = normal.model.graph.node[1].attribute

    assert [one.kind for one in normal.rewrites] == ["kernel_shape_named"]
    assert (named.name, list(named.ints)) == ("kernel_shape", [2, 1])
    np.testing.assert_array_equal(computed(normal.model, inputs)[0], computed(model, inputs)[0])


def test_a_kernel_that_is_a_parameter_needs_no_name() -> None:
    text = "agraph (float[n, 3, a] x) => (float[n, 3, b] y) { y = Conv(x, w) }"
    model = graph(text, parameters={"w": [3, 3, 2]})

    assert normalise(model, [], OPSET_17).model is model
