import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from app.bindings.arithmetic import AddScaled, Dequantize, MergeLora, Pad
from app.bindings.steps import TensorType, Transform, TransformError, apply_all, infer_all
from app.bindings.transform_json import transform_from_json
from app.bindings.transforms import Cast, Concat, Divide, Each, Reorder, Reshape, Slice, Split, Transpose
from app.weights.dtypes import DTYPES, numpy_dtype

Array = np.ndarray[Any, np.dtype[Any]]
NAMES = {numpy_dtype(name): name for name in DTYPES}
shapes = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
tensors = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(-100, 100, width=16)))


def _type(array: Array) -> TensorType:
    return TensorType(NAMES[array.dtype], array.shape)


def _check(transform: Transform, given_arrays: list[Array], expected: list[Array]) -> None:
    """The transform must give what numpy gives, and say so beforehand, and whether that is what it is given."""
    got = transform.apply(given_arrays)
    types = [_type(array) for array in given_arrays]
    assert transform.infer(types) == tuple(_type(array) for array in expected)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    if not transform.changes(types):
        assert [_type(array) for array in got] == types
        for one, other in zip(got, given_arrays, strict=True):
            np.testing.assert_array_equal(one, other)


@given(st.data(), tensors)
def test_transpose_is_numpys(data: st.DataObject, array: Array) -> None:
    perm = tuple(data.draw(st.permutations(range(array.ndim))))
    _check(Transpose(perm), [array, array], [np.transpose(array, perm)] * 2)


@given(tensors, st.lists(st.integers(-1, 12), max_size=4))
def test_reshape_is_numpys_or_refused_as_numpy_refuses(array: Array, shape: list[int]) -> None:
    assume(shape.count(-1) < 2)
    transform = Reshape(tuple(shape))
    try:
        expected = array.reshape(shape)
    except ValueError:
        with pytest.raises(TransformError, match="reshape"):
            transform.infer([_type(array)])
    else:
        _check(transform, [array], [expected])


bounds = st.none() | st.integers(-8, 8)


@given(st.data(), tensors, bounds, bounds, st.integers(-3, 3).filter(bool))
def test_slice_is_numpys(data: st.DataObject, array: Array, start: int | None, stop: int | None, step: int) -> None:
    assume(array.ndim > 0)
    axis = data.draw(st.integers(-array.ndim, array.ndim - 1))
    index = [slice(None)] * array.ndim
    index[axis] = slice(start, stop, step)
    _check(Slice(axis, start, stop, step), [array], [array[tuple(index)]])


@given(st.data(), tensors, st.integers(1, 4))
def test_split_is_numpys_or_refused_as_numpy_refuses(data: st.DataObject, array: Array, sections: int) -> None:
    assume(array.ndim > 0)
    axis = data.draw(st.integers(-array.ndim, array.ndim - 1))
    index = data.draw(st.integers(0, sections - 1))
    transform = Split(axis, sections, index)
    try:
        expected = np.split(array, sections, axis)[index]
    except ValueError:
        with pytest.raises(TransformError, match="equal parts"):
            transform.infer([_type(array)])
    else:
        _check(transform, [array], [expected])


@given(st.data(), shapes, st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_concat_is_numpys(data: st.DataObject, shape: tuple[int, ...], extents: list[int]) -> None:
    assume(shape)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts: list[Array] = []
    for extent in extents:
        sides = list(shape)
        sides[axis] = extent
        parts.append(np.random.default_rng(extent).random(sides, np.float32))
    _check(Concat(axis), parts, [np.concatenate(parts, axis)])


@pytest.mark.parametrize(("source", "target"), list(itertools.product(DTYPES, DTYPES)))
def test_cast_is_numpys(source: str, target: str) -> None:
    values = np.array([[0, 1, 2], [3, 100, 7]]).astype(numpy_dtype(source))
    with np.errstate(all="ignore"):
        _check(Cast(target), [values], [values.astype(numpy_dtype(target))])


def test_cast_rounds_to_the_nearest_bfloat16_with_ties_to_even() -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1.0], np.float32)
    (got,) = Cast("BF16").apply([values])
    np.testing.assert_array_equal(got.astype(np.float32), [1.0, 1 + 2**-6, -1.0])


def test_a_chain_infers_what_it_computes() -> None:
    query, key, value = (np.full((4, 6), number, np.float16) for number in range(3))
    chain: tuple[Transform, ...] = (Concat(0), Transpose((1, 0)), Slice(1, 2, None), Reshape((-1, 5)), Cast("F32"))
    result = apply_all(chain, [query, key, value])
    expected = np.concatenate([query, key, value]).T[:, 2:].reshape(-1, 5).astype(np.float32)
    np.testing.assert_array_equal(result, expected)
    assert infer_all(chain, [_type(query)] * 3) == (_type(expected), chain)


@pytest.mark.parametrize(
    "transform",
    [Transpose((0, 1)), Reshape((-1, 3)), Slice(0), Slice(1, 0, 9), Split(0, 1, 0), Concat(1), Cast("F64")],
)
def test_what_changes_nothing_is_left_out(transform: Transform) -> None:
    turn = Transpose((1, 0))
    types = [TensorType("F64", (4, 3))]
    assert not transform.changes(types)
    assert infer_all((transform, turn), types) == (TensorType("F64", (3, 4)), (turn,))


@pytest.mark.parametrize("transform", [Transpose((1, 0)), Slice(0, step=-1), Slice(0, None, 2), Concat(0)])
def test_what_keeps_the_type_may_still_change_something(transform: Transform) -> None:
    square = TensorType("F64", (3, 3))
    types = [square, square] if isinstance(transform, Concat) else [square]
    assert transform.changes(types)


@pytest.mark.parametrize("transform", [Transpose((1, 0)), Slice(0, 1, 3), Split(1, 2, 1), Reshape((6, 2)), Concat(0)])
def test_a_single_array_is_not_copied(transform: Transform) -> None:
    array = np.arange(12.0).reshape(3, 4)
    (got,) = transform.apply([array])
    assert np.shares_memory(got, array)


@pytest.mark.parametrize(
    ("transform", "types", "match"),
    [
        (Transpose((1, 0)), [(2, 2, 2)], "transpose perm"),
        (Reshape((5,)), [(2, 3)], "6 elements"),
        (Slice(2, 0, 1), [(2, 3)], "axes are 0 to 1"),
        (Split(0, 3, 0), [(4,)], "choose a divisor"),
        (Concat(0), [(2, 3), (2, 4)], "cannot join"),
        (Concat(0), [(2, 3), (2,)], "cannot join"),
        (Concat(0), [()], "axis 0 does not exist in F32.*a scalar has no axes"),
        (Reorder(0, (1, 0)), [(3,)], "2 equal sections"),
        (Divide(0, (1, 1)), [(3,)], "make their sum 3"),
        (Each(((), ())), [(3,)], "2 lists of transforms for 1 tensors"),
        (Pad(0, 2), [(3,)], "shorter than axis 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_value_is_read(
    transform: Transform, types: list[tuple[int, ...]], match: str
) -> None:
    with pytest.raises(TransformError, match=match):
        transform.infer([TensorType("F32", shape) for shape in types])


def test_transforms_within_each_are_read_a_few_levels_deep() -> None:
    value: dict[str, Any] = {"op": "cast", "dtype": "F32"}
    for _ in range(4):
        value = {"op": "each", "transforms": [[value]]}
    assert transform_from_json(value).to_json() == value
    with pytest.raises(TransformError, match="deep"):
        transform_from_json({"op": "each", "transforms": [[value]]})


@given(st.data(), st.integers(1, 4), st.integers(0, 1))
def test_reorder_takes_sections_in_another_order(data: st.DataObject, count: int, axis: int) -> None:
    order = tuple(data.draw(st.permutations(range(count))))
    array = np.arange(count * count * 2, dtype=np.float32).reshape(count, -1) if axis else np.arange(count * 2.0)
    axis = min(axis, array.ndim - 1) if array.shape[-1] % count == 0 else 0
    parts = np.split(array.astype(np.float32), count, axis=axis)
    _check(Reorder(axis, order), [array.astype(np.float32)], [np.concatenate([parts[i] for i in order], axis=axis)])


def test_gates_are_told_by_letters() -> None:
    """PyTorch keeps an LSTM's gates as input, forget, cell, output; ONNX as input, output, forget, cell."""
    torch = np.repeat(np.arange(4, dtype=np.float32), 3)
    transform = transform_from_json({"op": "reorder", "axis": 0, "order": "ifco->iofc"})
    (onnx,) = transform.apply([torch])
    assert onnx[::3].tolist() == [0, 3, 1, 2]


def test_parts_of_a_tensor_may_each_be_treated_differently() -> None:
    """A fused [q, k, v] of unlike heads becomes [v, k, q transposed twice], as numpy would have it."""
    fused = np.arange(32, dtype=np.float32).reshape(8, 4)
    turned = (Transpose((1, 0)),)
    steps = (Divide(0, (4, 2, 2)), Each((turned, (), (Slice(0, None, None, -1),))), Concat(0))
    actual, needed = infer_all(steps, [_type(fused)])
    expected = np.concatenate([fused[:4].T, fused[4:6], fused[6:][::-1]])
    assert (actual, needed) == (_type(expected), steps)
    np.testing.assert_array_equal(apply_all(steps, [fused]), expected)


def test_what_makes_a_tensor_many_times_as_large_is_refused() -> None:
    with pytest.raises(TransformError, match="pad by less"):
        infer_all([Pad(0, 2**40)], [TensorType("F32", (4,))])
    with pytest.raises(TransformError, match="pad by less"):
        infer_all([Each(((Pad(0, 2**40), Slice(0, 0, 4)),))], [TensorType("F32", (4,))])


def test_concat_refuses_mixed_dtypes() -> None:
    with pytest.raises(TransformError, match="put a cast"):
        Concat(0).infer([TensorType("F32", (1,)), TensorType("F16", (1,))])


def test_several_tensors_need_a_concat() -> None:
    with pytest.raises(TransformError, match="join them with a concat"):
        infer_all((), [TensorType("F32", (1,))] * 2)
    with pytest.raises(TransformError, match="join them with a concat"):
        apply_all((), [np.zeros(1)] * 2)


ALL = [
    Transpose((1, 0)), Reshape((2, -1)), Slice(0, 1), Slice(-1, None, 4, 2), Split(0, 3, 1), Concat(1), Cast("F16"),
    Reorder(0, (0, 2, 3, 1)), Divide(-1, (1, 2)), Each(((Transpose((1, 0)), Cast("F32")), ())), Pad(0, 8, 0.5),
    Dequantize(), Dequantize(1), Dequantize(0, (128, 128)), AddScaled(0.5), MergeLora(2.0),
]  # fmt: skip


@pytest.mark.parametrize("transform", ALL)
def test_comes_back_from_json(transform: Transform) -> None:
    assert transform_from_json(transform.to_json()) == transform


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (1, "a transform is an object"),
        ({"op": "rotate"}, "transpose, reshape, slice"),
        ({"op": ["cast"]}, "a transform is an object"),
        ({"op": "cast"}, "missing or unknown: dtype"),
        ({"op": "cast", "dtype": "float32"}, "not one of F64"),
        ({"op": "cast", "dtype": 32}, "a dtype's name"),
        ({"op": "slice", "axis": 0, "stpo": 1}, "missing or unknown: stpo"),
        ({"op": "slice", "axis": True}, "must be an integer"),
        ({"op": "slice", "axis": 0, "step": None}, "must be an integer"),
        ({"op": "slice", "axis": 0, "step": 0}, "step must not be 0"),
        ({"op": "slice", "axis": 2**63}, "must be an integer"),
        ({"op": "transpose", "perm": [0, 0]}, "once each"),
        ({"op": "transpose", "perm": list(range(17))}, "at most 16 axes"),
        ({"op": "transpose", "perm": "10"}, "a list of integers"),
        ({"op": "reshape", "shape": [-1, -1]}, "one of them may be -1"),
        ({"op": "reshape", "shape": [-2]}, "extents of 0 to 281474976710656"),
        ({"op": "split", "axis": 0, "sections": 0, "index": 0}, "sections must be 1 or more"),
        ({"op": "split", "axis": 0, "sections": 2, "index": 2}, "index from 0"),
        ({"op": "reorder", "axis": 0, "order": [0, 2]}, "0 to n-1 once each"),
        ({"op": "reorder", "axis": 0, "order": "ifco"}, "letters as in"),
        ({"op": "reorder", "axis": 0, "order": "ifco->iofx"}, "letters as in"),
        ({"op": "divide", "axis": 0, "sizes": []}, "extents of 1 or more"),
        ({"op": "each", "transforms": [{"op": "cast", "dtype": "F32"}]}, "list of lists"),
        ({"op": "each", "transforms": [[{"op": "turn"}]]}, "op is one of"),
        ({"op": "each", "transforms": [[]] * 200}, "use fewer"),
        ({"op": "pad", "axis": 0, "size": -1}, "0 or more"),
        ({"op": "pad", "axis": 0, "size": 1, "value": float("nan")}, "finite"),
        ({"op": "dequantize", "block": [0, 1]}, "extents of 1 or more"),
        ({"op": "merge_lora", "scale": float("inf")}, "finite"),
        ({"op": "add_scaled", "scale": True}, "a number"),
    ],
)
def test_a_transform_that_cannot_be_read_says_what_is_wrong(value: object, match: str) -> None:
    with pytest.raises(TransformError, match=match):
        transform_from_json(value)
