import numpy as np
import pytest
from onnx import numpy_helper

from tests.workers.engine_host.normaliser.graphs import computed, graph, operators, profile
from workers.engine_host import onnx_graph
from workers.engine_host.normaliser.normalise import normalise
from workers.engine_host.normaliser.parser import Parser

LACKING = Parser(17, frozenset({"DFT", "STFT"}))
RANDOM = np.random.default_rng(9)
SIGNAL = RANDOM.standard_normal((2, 100)).astype(np.float32)
WINDOW = np.hanning(16).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "bins"),
    [
        ("y = STFT(x, step, w)", 9),
        ("y = STFT<onesided = 0>(x, step, w)", 16),
        ("y = STFT(x, step, w, length)", 9),
        ("y = STFT(x, step, , length)", 9),
        ("k = Constant<value_ints = [2]>() s = Unsqueeze(x, k) y = STFT(s, step, w)", 9),
    ],
)
def test_a_short_time_transform_is_frames_times_a_window_times_a_matrix(text: str, bins: int) -> None:
    model = graph(f"agraph (float[b, n] x) => (float[b, frames, bins, 2] y) {{ {text} }}", parameters={"w": [16]})
    model.graph.initializer.append(numpy_helper.from_array(np.array(5), "step"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(16), "length"))
    inputs = {"x": SIGNAL, "w": WINDOW}
    normal = normalise(model, [profile(x=([1, 50], [2, 100]))], LACKING)
    (found,) = computed(normal.model, inputs)
    window = np.ones(16) if ", w" not in text else WINDOW.astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(SIGNAL.astype(np.float64), 16, axis=1)[:, ::5] * window
    exact = np.fft.fft(frames)[..., :bins]

    assert [one.kind for one in normal.rewrites] == ["transform_multiplied"]
    assert not {"STFT", "DFT"} & set(operators(normal.model))
    assert list(onnx_graph.parameters_of(normal.model)) == (["w"] if ", w" in text else [])
    np.testing.assert_allclose(found, np.stack([exact.real, exact.imag], -1), atol=1e-5)
    np.testing.assert_allclose(found, computed(model, inputs)[0], atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("attributes", "length"),
    [("axis = 1", None), ("axis = -2", 5), ("axis = 1", 20), ("axis = 1, inverse = 1", None), ("axis = 1", 12)],
)
def test_a_transform_is_a_product_with_a_matrix(attributes: str, length: int | None, parts: int) -> None:
    x = RANDOM.standard_normal((3, 12, parts)).astype(np.float32)
    given = "" if length is None else ", length"
    model = graph(f"agraph (float[n, 12, {parts}] x) => (float[n, k, 2] y) {{ y = DFT<{attributes}>(x{given}) }}")
    model.graph.initializer.append(numpy_helper.from_array(np.array(length or 0), "length"))
    normal = normalise(model, [], LACKING)
    transform = np.fft.ifft if "inverse" in attributes else np.fft.fft
    exact = transform(x[..., 0] + 1j * (x[..., 1] if parts == 2 else 0), length)

    assert operators(normal.model) == ["Reshape", "MatMul", "Reshape"]
    found = computed(normal.model, {"x": x})[0]
    np.testing.assert_allclose(found, np.stack([exact.real, exact.imag], -1), atol=1e-5)


def test_a_one_sided_transform_leaves_out_the_mirrored_half() -> None:
    x = RANDOM.standard_normal((3, 12, 1)).astype(np.float32)
    model = graph("agraph (float[n, 12, 1] x) => (float[n, k, 2] y) { y = DFT<axis = 1, onesided = 1>(x) }")
    normal = normalise(model, [], LACKING)

    np.testing.assert_allclose(computed(normal.model, {"x": x})[0], computed(model, {"x": x})[0], atol=1e-5)


def test_a_transform_behind_a_loop_is_found_to_have_a_constant_length() -> None:
    model = graph("""agraph (float[1, 4] first, float[6, 4] x) => (float[6, k, 2] y) {
        last, frames = Scan<num_scan_inputs = 1, body = inner (float[1, 4] state, float[4] row) => (float[1, 4] next,
            float[4] frame) { next = Add(state, row) z = Constant<value_ints = [0]>() frame = Squeeze(next, z) }
        >(first, x)
        k = Constant<value_ints = [-1]>()
        same = Cast<to = 1>(frames)
        parts = Unsqueeze(same, k)
        y = DFT<axis = 1>(parts)
    }""")
    inputs = {"first": RANDOM.random((1, 4), np.float32), "x": RANDOM.random((6, 4), np.float32)}
    normal = normalise(model, [], LACKING)

    assert "DFT" not in operators(normal.model)
    np.testing.assert_allclose(computed(normal.model, inputs)[0], computed(model, inputs)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("y = DFT<axis = 1>(x)", "n, k, 1"),  # of a length that is not known
        ("y = DFT<axis = 0>(x)", "12, 3, 1"),  # along another axis
    ],
)
def test_a_transform_that_is_no_such_product_stays(text: str, shape: str) -> None:
    model = graph(f"agraph (float[{shape}] x) => (float[a, b, 2] y) {{ {text} }}")

    assert normalise(model, [], LACKING).model is model


def test_a_parser_that_knows_the_operators_gets_them() -> None:
    model = graph("agraph (float[n, 12, 1] x) => (float[n, k, 2] y) { y = DFT<axis = 1>(x) }")

    assert normalise(model, [], Parser(17)).model is model


@pytest.mark.parametrize("parser", [LACKING, Parser(17)])
def test_numbers_that_depend_on_the_shape_of_a_transform_are_right(parser: Parser) -> None:
    text = "t = STFT(x, step, w) s = Shape(t) k = Constant<value_ints = [2]>() y = Gather(s, k)"
    model = graph(f"agraph (float[b, n] x) => (int64[1] y) {{ {text} }}", parameters={"w": [16]})
    model.graph.initializer.append(numpy_helper.from_array(np.array(5), "step"))
    normal = normalise(model, [profile(x=([2, 100], [2, 100]))], parser)

    assert computed(normal.model, {"x": SIGNAL, "w": WINDOW})[0] == [9]
