import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bindings.report import BindingProblem, BindingReport, BindingWarning, ParameterBinding
from app.bindings.steps import TensorType, TransformError
from app.bindings.transforms import Cast, Concat, Reshape, Slice, Split, Transpose
from app.weights.dtypes import DTYPES

names = st.text(min_size=1, max_size=20)
extents = st.lists(st.integers(0, 9), max_size=3).map(tuple)
dtypes = st.sampled_from(sorted(DTYPES))
types = st.builds(TensorType, dtypes, extents)
transforms = st.one_of(
    st.permutations(range(3)).map(lambda perm: Transpose(tuple(perm))),
    st.builds(Reshape, extents),
    st.builds(Slice, st.integers(0, 3), st.none() | st.integers(0, 3), st.none() | st.integers(0, 3)),
    st.builds(Split, st.integers(0, 3), st.just(3), st.integers(0, 2)),
    st.builds(Concat, st.integers(0, 3)),
    st.builds(Cast, dtypes),
)
bindings = st.builds(
    ParameterBinding, names, dtypes, extents, st.lists(names, min_size=1).map(tuple), st.lists(transforms).map(tuple)
)
kinds = st.sampled_from(
    ["missing", "unexpected", "wrong_shape", "wrong_dtype", "foreign_dtype", "lossy_cast", "bad_transform"]
)
faults = st.builds(
    BindingProblem,
    kinds,
    st.none() | names,
    st.lists(names).map(tuple),
    st.text(),
    st.none() | types,
    st.none() | types,
)
reports = st.builds(
    BindingReport,
    st.lists(bindings).map(tuple),
    st.lists(faults).map(tuple),
    st.lists(names).map(tuple),
    st.lists(st.builds(BindingWarning, st.integers(0, 9), st.text())).map(tuple),
)


@given(reports)
def test_a_report_comes_back_from_json(report: BindingReport) -> None:
    assert BindingReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def _binding(*transforms: Any, shape: tuple[int, ...] = (2, 3), dtype: str = "F32") -> ParameterBinding:  # noqa: ANN401 - any transform
    return ParameterBinding("w", dtype, shape, ("w",), transforms)


def test_without_transforms_a_view_is_given() -> None:
    buffer = bytearray(64)
    array = np.ndarray((2, 3), np.float32, buffer, 8)
    assert np.shares_memory(_binding().apply([array]), array)


def test_a_transformed_value_is_of_the_parameters_type() -> None:
    array = np.arange(6, dtype=np.float16).reshape(3, 2)
    value = _binding(Transpose((1, 0)), Cast("F32")).apply([array])
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, array.T)


def test_a_transposed_value_is_a_view() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    value = _binding(Transpose((1, 0))).apply([array])
    assert np.shares_memory(value, array)
    np.testing.assert_array_equal(value, [[0, 2, 4], [1, 3, 5]])


def test_a_scalar_keeps_its_rank() -> None:
    assert _binding(shape=()).apply([np.array(1.5, np.float32)]).shape == ()


@pytest.mark.parametrize(
    "arrays", [[], [np.zeros((3, 2), np.float32)], [np.zeros((2, 3))], [np.zeros((2, 3), np.float32)] * 2]
)
def test_other_arrays_than_were_checked_are_refused(arrays: list[Any]) -> None:
    with pytest.raises(TransformError):
        _binding().apply(arrays)


def test_the_digest_is_over_what_feeds_what_alone() -> None:
    one, other = _binding(), _binding(Cast("F32"))
    second = ParameterBinding("b", "F32", (1,), ("b",))
    plain = BindingReport((one, second))
    assert plain.digest == BindingReport((second, one), warnings=(BindingWarning(0, "x"),)).digest
    assert plain.digest != BindingReport((other, second)).digest
    assert plain.digest.startswith("sha256:")
