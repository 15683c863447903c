import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.weights import non_finite
from app.weights.dtypes import DTYPES, numpy_dtype
from app.weights.non_finite import FINITE, NonFinite, NonFiniteCounter

FLOATS = [name for name, dtype in DTYPES.items() if dtype.kind == "float"]


def counted(dtype: str, content: bytes, piece: int) -> NonFinite:
    counter = NonFiniteCounter(dtype)
    for start in range(0, len(content), piece):
        counter.update(memoryview(content)[start : start + piece])
    return counter.found


@pytest.mark.parametrize("dtype", FLOATS)
@given(content=st.binary(max_size=64), piece=st.integers(1, 20), special=st.booleans())
def test_as_many_are_counted_as_numpy_finds(dtype: str, content: bytes, piece: int, *, special: bool) -> None:
    content = content[: len(content) // 8 * 8]
    if special:
        values = np.array([np.nan, np.inf, -np.inf, 1, -np.nan]).astype(numpy_dtype(dtype))
        content = values.tobytes() + content
    array = np.frombuffer(content, numpy_dtype(dtype)).astype(np.float64)
    assert counted(dtype, content, piece) == (np.isnan(array).sum(), np.isinf(array).sum())


@pytest.mark.parametrize("dtype", FLOATS)
def test_they_are_found_in_every_block_of_a_large_tensor(dtype: str) -> None:
    array = np.zeros(3 * non_finite.BLOCK_BYTES // DTYPES[dtype].itemsize, numpy_dtype(dtype))
    array[[0, len(array) // 2, -1]] = np.nan
    assert counted(dtype, array.tobytes(), 10**9) == NonFinite(3, 0)


@pytest.mark.parametrize("dtype", ["I64", "U8", "BOOL", "F4", "C64"])
def test_nothing_is_counted_in_what_is_no_float(dtype: str) -> None:
    assert counted(dtype, b"\xff" * 64, 7) == FINITE
