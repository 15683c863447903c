from typing import Any

import ml_dtypes
import numpy as np
import pytest

from app.bindings.contiguous import PIECE, ROWS, WIDTH, contiguous_pieces

SHAPES = [
    (ROWS, ROWS),
    (ROWS + 1, 3 * ROWS - 1),
    (5 * ROWS + 7, ROWS),
    (ROWS, 2 * WIDTH + 3),
    (3, 200),
    (1, 1),
]
Array = np.ndarray[Any, np.dtype[Any]]


def _copied(array: Array) -> Array:
    """Return an array made of the pieces' bytes, each taken before the next is asked for."""
    pieces = []
    for piece in contiguous_pieces(array):
        assert piece.flags.c_contiguous
        pieces.append(piece.tobytes())
    return np.frombuffer(b"".join(pieces), array.dtype).reshape(array.shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8, np.bool_])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_transposed_matrix_is_copied_as_numpy_does(shape: tuple[int, int], dtype: Any) -> None:  # noqa: ANN401 - dtypes
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype).T
    np.testing.assert_array_equal(_copied(array), array)


def test_other_arrays_are_copied_too() -> None:
    random = np.random.default_rng(0)
    cube = random.standard_normal((70, 80, 3)).transpose(2, 0, 1)
    np.testing.assert_array_equal(_copied(cube), cube)
    stack = random.standard_normal((3, 70, 80)).transpose(0, 2, 1)
    np.testing.assert_array_equal(_copied(stack), stack)
    stepped = np.arange(200 * 200).reshape(200, 200)[::2, ::-1]
    np.testing.assert_array_equal(_copied(stepped), stepped)
    part = random.standard_normal((100, 3 * ROWS))[:, ROWS : 2 * ROWS].T
    np.testing.assert_array_equal(_copied(part), part)
    large = np.arange(3 * PIECE // 8 + 5).reshape(-1, 1).repeat(2, axis=1)[:, :1]
    np.testing.assert_array_equal(_copied(large), large)
    unaligned = np.frombuffer(bytearray(8 * ROWS * ROWS + 1), np.int64, ROWS * ROWS, offset=1).reshape(ROWS, ROWS).T
    np.testing.assert_array_equal(_copied(unaligned), unaligned)
    for shape in [(), (0, 3), (5, 0)]:
        np.testing.assert_array_equal(_copied(np.zeros(shape).T), np.zeros(shape).T)


def test_an_array_in_order_is_its_own_piece() -> None:
    array = np.zeros((100, 100))
    assert [piece is array for piece in contiguous_pieces(array)] == [True]


def test_a_transposed_matrix_takes_little_memory() -> None:
    array = np.zeros((4 * ROWS, 32 * WIDTH), np.float32).T
    assert max(piece.nbytes for piece in contiguous_pieces(array)) * 16 < array.nbytes
    cut = np.zeros((4 * PIECE // 64, 128), np.int8)[:, ::2]
    assert max(piece.nbytes for piece in contiguous_pieces(cut)) <= PIECE


def test_a_nan_keeps_its_bits() -> None:
    array = np.full((ROWS, ROWS), np.uint32(0x7FC01234)).view(np.float32).T
    assert (_copied(array).view(np.uint32) == 0x7FC01234).all()
