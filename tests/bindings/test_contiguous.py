from typing import Any

import ml_dtypes
import numpy as np
import pytest

from app.bindings import contiguous as module
from app.bindings.contiguous import TILE, contiguous

SHAPES = [
    (TILE, TILE),
    (TILE + 1, 3 * TILE - 1),
    (5 * TILE + 7, TILE),
    (2 * module.COLUMNS + 3, 2 * TILE),
    (3, 200),
    (1, 1),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8, np.bool_])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_transposed_matrix_is_copied_as_numpy_does(shape: tuple[int, int], dtype: Any) -> None:  # noqa: ANN401 - dtypes
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype).T
    copy = contiguous(array)
    assert copy.flags.c_contiguous
    assert copy.dtype == array.dtype
    np.testing.assert_array_equal(copy, array)


def test_other_arrays_are_copied_too() -> None:
    cube = np.random.default_rng(0).standard_normal((70, 80, 3)).transpose(2, 0, 1)
    np.testing.assert_array_equal(contiguous(cube), cube)
    stepped = np.arange(200 * 200).reshape(200, 200)[::2, ::-1]
    np.testing.assert_array_equal(contiguous(stepped), stepped)
    unaligned = np.frombuffer(bytearray(8 * TILE * TILE + 1), np.int64, TILE * TILE, offset=1).reshape(TILE, TILE).T
    np.testing.assert_array_equal(contiguous(unaligned), unaligned)


def test_a_nan_keeps_its_bits() -> None:
    array = np.full((TILE, TILE), np.uint32(0x7FC01234)).view(np.float32).T
    assert (contiguous(array).view(np.uint32) == 0x7FC01234).all()
