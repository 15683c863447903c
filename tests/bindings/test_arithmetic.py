from typing import Any

import ml_dtypes
import numpy as np
import pytest

from app.bindings import arithmetic
from app.bindings.arithmetic import AddScaled, Dequantize, MergeLora, Pad
from app.bindings.steps import TensorType, Transform, TransformError, apply_all
from app.bindings.transforms import Cast, Concat, Each, Reorder, Reshape, Transpose
from app.weights.dtypes import DTYPES, numpy_dtype

Array = np.ndarray[Any, np.dtype[Any]]
NAMES = {numpy_dtype(name): name for name in DTYPES}
F8 = ml_dtypes.float8_e4m3fn


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small tensors are worked through in several."""
    monkeypatch.setattr(arithmetic, "PIECE", 6)


def typed(array: Array) -> TensorType:
    return TensorType(NAMES[array.dtype], array.shape)


def computed(transform: Transform, *arrays: Array) -> Array:
    """What a transform gives, which is of the type that it said beforehand."""
    (got,) = transform.apply(arrays)
    assert transform.infer([typed(array) for array in arrays]) == (typed(got),)
    assert transform.changes([typed(array) for array in arrays])
    return got


def random(*shape: int, dtype: Any = np.float32) -> Array:  # noqa: ANN401 - whatever numpy takes for a dtype
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def test_padding_lengthens_a_vocabulary() -> None:
    table = random(5, 4)
    padded = computed(Pad(0, 8, -1.5), table)
    np.testing.assert_array_equal(padded[:5], table)
    assert (padded[5:] == -1.5).all()
    assert not Pad(0, 5).changes([typed(table)])


@pytest.mark.parametrize("dtype", [F8, ml_dtypes.float8_e5m2, np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("scale_dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_one_scale_for_a_whole_tensor(dtype: Any, scale_dtype: Any) -> None:  # noqa: ANN401 - numpy dtypes
    numbers = np.arange(28).reshape(7, 4).astype(dtype)
    scale = np.array(0.125, scale_dtype)
    expected = numbers.astype(np.float64) / 8
    np.testing.assert_array_equal(computed(Dequantize(), numbers, scale), expected)
    np.testing.assert_array_equal(computed(Dequantize(), numbers, scale.reshape(1)), expected)


def test_a_scale_per_channel_of_either_axis() -> None:
    numbers = np.arange(-14, 14, dtype=np.int8).reshape(7, 4)
    rows, columns = random(7), random(4)
    by_rows = (numbers.astype(np.float64) * rows[:, None]).astype(np.float32)
    np.testing.assert_array_equal(computed(Dequantize(), numbers, rows), by_rows)
    np.testing.assert_array_equal(computed(Dequantize(), numbers, rows.reshape(7, 1)), by_rows)
    by_columns = (numbers.astype(np.float64) * columns).astype(np.float32)
    np.testing.assert_array_equal(computed(Dequantize(1), numbers, columns), by_columns)
    np.testing.assert_array_equal(computed(Dequantize(-1), numbers, columns), by_columns)


def test_a_scale_per_block_whose_last_ones_are_shorter() -> None:
    """As DeepSeek keeps them: weight_scale_inv [ceil(out / 128), ceil(in / 128)], here with blocks of 3 by 2."""
    numbers = random(7, 5).astype(F8)
    scale = random(3, 3)
    expected = np.empty((7, 5), np.float32)
    for i in range(7):
        for j in range(5):
            expected[i, j] = np.float32(numbers[i, j]) * scale[i // 3, j // 2]
    np.testing.assert_array_equal(computed(Dequantize(block=(3, 2)), numbers, scale), expected)


def test_groups_of_a_row_with_their_zero_points() -> None:
    numbers = np.arange(48, dtype=np.uint8).reshape(6, 8)
    scale, zero = random(6, 2), np.arange(12, dtype=np.uint8).reshape(6, 2)
    expected = (
        (numbers.reshape(6, 2, 4).astype(np.float64) - zero[..., None]) * scale[..., None].astype(np.float64)
    ).astype(np.float32)
    got = computed(Dequantize(block=(1, 4)), numbers, scale, zero)
    np.testing.assert_array_equal(got, expected.reshape(6, 8))


def test_scalars_and_convolutions_are_dequantised_too() -> None:
    assert computed(Dequantize(), np.array(3, np.int8), np.array([0.5], np.float32)) == 1.5
    kernel = np.arange(-8, 8, dtype=np.int8).reshape(2, 2, 2, 2)
    scale = np.array([1, 2], np.float32)
    expected = kernel * scale.reshape(2, 1, 1, 1)
    np.testing.assert_array_equal(computed(Dequantize(), kernel, scale), expected)


@pytest.mark.parametrize(
    ("transform", "types", "match"),
    [
        (Dequantize(), [("F8_E4M3", (4, 4))], "got 1 tensors"),
        (Dequantize(), [("F32", (4, 4)), ("F32", ())], "takes 8-bit floats"),
        (Dequantize(), [("I32", (4, 4)), ("F32", ())], "at most 16 bits"),
        (Dequantize(), [("I8", (4, 4)), ("I8", ())], "scale second"),
        (Dequantize(), [("I8", (4, 4)), ("F32", (4,)), ("I8", ())], "shape of the scale"),
        (Dequantize(), [("I8", (256, 256)), ("F32", (2, 2))], "extents of a block"),
        (Dequantize(block=(128, 128)), [("I8", (256, 256)), ("F32", (2, 3))], "which numbers"),
        (Dequantize(block=(128,)), [("I8", (256, 256)), ("F32", (2,))], "which numbers"),
        (Dequantize(2), [("I8", (4, 4)), ("F32", (4,))], "which numbers"),
        (AddScaled(1.0), [("F32", (2,)), ("F32", (3,))], "one shape"),
        (AddScaled(1.0), [("F8_E4M3", (2,)), ("F32", (2,))], "of floats"),
        (MergeLora(1.0), [("F32", (6, 4)), ("F32", (6, 2)), ("F32", (2, 4))], "in this order"),
        (MergeLora(1.0), [("F32", (4, 6)), ("F32", (2, 4)), ("F32", (6, 2))], "Transpose a weight"),
        (MergeLora(1.0), [("F8_E4M3", (6, 4)), ("F32", (2, 4)), ("F32", (6, 2))], "merge_lora takes"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_value_is_read(
    transform: Transform, types: list[tuple[str, tuple[int, ...]]], match: str
) -> None:
    with pytest.raises(TransformError, match=match):
        transform.infer([TensorType(*one) for one in types])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_adding_a_scaled_tensor_rounds_once(dtype: Any) -> None:  # noqa: ANN401 - numpy dtypes
    base, change = random(7, 3, dtype=dtype), random(7, 3)[::-1].astype(np.float32)
    exact: Any = np.float64 if dtype is np.float64 else np.float32
    expected = (base.astype(exact) + exact(0.3) * change.astype(exact)).astype(dtype)
    np.testing.assert_array_equal(computed(AddScaled(0.3), base, change), expected)
    assert computed(AddScaled(2.0), np.array(1, dtype), np.array(0.25, dtype)) == 1.5


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_merging_an_adapter_adds_the_product_of_its_factors_and_rounds_once(dtype: Any) -> None:  # noqa: ANN401 - dtypes
    integers = np.random.default_rng(0)
    weight = integers.integers(-9, 9, (7, 5)).astype(dtype)
    down, up = integers.integers(-3, 4, (2, 5)).astype(dtype), integers.integers(-3, 4, (7, 2)).astype(np.float32)
    expected = (weight.astype(np.float64) + 0.5 * (up @ down.astype(np.float64))).astype(dtype)
    np.testing.assert_array_equal(computed(MergeLora(0.5), weight, down, up), expected)


def test_merging_the_adapter_of_a_convolution() -> None:
    weight, down, up = random(6, 4, 3, 3), random(2, 4, 3, 3), random(6, 2, 1, 1)
    product = np.einsum("or,rihw->oihw", up[:, :, 0, 0].astype(np.float64), down.astype(np.float64))
    np.testing.assert_allclose(computed(MergeLora(2.0), weight, down, up), weight + 2 * product, rtol=1e-5, atol=1e-6)


def test_merging_into_a_weight_that_is_kept_the_other_way_round() -> None:
    weight, down, up = random(4, 6), random(2, 4), random(6, 2)
    turn = Transpose((1, 0))
    steps = (Each(((turn,), (), ())), MergeLora(0.5), turn)
    expected = weight + 0.5 * (up.astype(np.float64) @ down).T
    np.testing.assert_allclose(apply_all(steps, [weight, down, up]), expected, rtol=1e-6, atol=1e-6)


def test_an_lstm_of_pytorch_becomes_one_of_onnx() -> None:
    """W [1, 4h, in] with the gates i, o, f, c, and B [1, 8h] with both biases behind each other."""
    hidden, features = 3, 2
    weight, bias_ih, bias_hh = random(4 * hidden, features), random(4 * hidden), random(4 * hidden) + 1
    gates = Reorder(0, (0, 3, 1, 2))
    as_onnx = apply_all((gates, Reshape((1, 4 * hidden, features))), [weight])
    i, f, c, o = np.split(weight, 4)
    np.testing.assert_array_equal(as_onnx[0], np.concatenate([i, o, f, c]))
    biases = apply_all((gates, Concat(0), Reshape((1, 8 * hidden))), [bias_ih, bias_hh])
    for got, bias in zip(np.split(biases[0], 2), (bias_ih, bias_hh), strict=True):
        i, f, c, o = np.split(bias, 4)
        np.testing.assert_array_equal(got, np.concatenate([i, o, f, c]))


def test_what_is_dequantised_is_cast_once_more_if_it_is_asked() -> None:
    numbers, scale = np.arange(6, dtype=np.int8).reshape(2, 3), np.array(0.5, np.float32)
    got = apply_all((Dequantize(), Cast("F16")), [numbers, scale])
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, numbers / 2)
