"""The elements of an array in row-major order, piece by piece, quickly if its matrices were transposed.

Element by element, a transposed copy reads each cache line as often as it has elements, and large powers of two as
extents make it worse. Here tiles that stay in the cache are turned, as in Frigo et al., "Cache-Oblivious Algorithms"
(1999), with one size of tile. A piece is small, so it is in a cache still when it is written to a file.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from app.bindings.steps import Array

ROWS: Final = 64  # of a tile
WIDTH: Final = 512  # bytes of a row of a tile
PIECE: Final = 2**20  # bytes of a piece of other arrays


def contiguous_pieces(array: "Array") -> "Iterator[Array]":
    """Yield C-contiguous arrays whose elements, one after the other, are those of an array in row-major order.

    An array that is C-contiguous is its own piece, and is not copied. Other pieces are valid until the next is asked
    for.
    """
    if array.flags.c_contiguous:
        yield array
    elif _is_turned(array):
        yield from _turned(array)
    elif array.ndim > 2 and _is_turned(array[0]):  # a stack of matrices
        for matrix in array:
            yield from _turned(matrix)
    else:
        rows = max(1, PIECE * len(array) // array.nbytes)
        for start in range(0, len(array), rows):
            yield array[start : start + rows].copy(order="C")


def _is_turned(array: "Array") -> bool:
    """Whether an array is a large matrix of which each column, but not each row, lies in one place."""
    is_matrix = array.ndim == 2 and min(array.shape) >= ROWS and array.flags.aligned
    return is_matrix and array.strides[0] == array.itemsize and array.itemsize in {1, 2, 4, 8}


def _turned(array: "Array") -> "Iterator[Array]":
    """Yield some rows of a matrix at a time, which are columns of what lies in memory."""
    import numpy as np  # noqa: PLC0415 - the API starts without numpy

    source = array.T.view(np.dtype(f"u{array.itemsize}"))  # the bits alone: other types are copied more slowly
    rows, columns = source.shape
    width = WIDTH // array.itemsize
    # Memory of its own for every piece would be mapped and cleared each time, which takes longer than to turn it.
    room, target = np.empty((ROWS, width), source.dtype), np.empty((width, rows), source.dtype)
    for left in range(0, columns, width):
        band = source[:, left : left + width]
        piece = target[: band.shape[1]]
        for top in range(0, rows, ROWS):
            part = band[top : top + ROWS]
            tile = room[: part.shape[0], : part.shape[1]]
            tile[...] = part
            piece[:, top : top + ROWS] = tile.T
        yield piece
