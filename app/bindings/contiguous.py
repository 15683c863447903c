"""Copying an array into row-major order, quickly if it is a matrix that was transposed.

Element by element, a transposed copy reads each cache line as often as it has elements, and large powers of two as
extents make it worse. Here tiles that stay in the cache are turned, as in Frigo et al., "Cache-Oblivious Algorithms"
(1999), with one size of tile.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from app.bindings.steps import Array

TILE: Final = 64
COLUMNS: Final = 256  # turned at a time, so that what is made on the way is small


def contiguous(array: "Array") -> "Array":
    """Return a C-contiguous copy of an array."""
    import numpy as np  # noqa: PLC0415 - the API starts without numpy

    is_turned = array.ndim == 2 and array.flags.f_contiguous and array.flags.aligned and min(array.shape) >= TILE
    if not is_turned or array.itemsize not in {1, 2, 4, 8}:
        return array.copy(order="C")
    result = np.empty(array.shape, array.dtype)
    plain = np.dtype(f"u{array.itemsize}")  # the bits alone: other types are copied more slowly
    source, target = array.T.view(plain), result.view(plain)
    for start in range(0, source.shape[1], COLUMNS):
        _turn(source[:, start : start + COLUMNS], target[start : start + COLUMNS])
    return result


def _turn(source: "Array", target: "Array") -> None:
    """Write `source` transposed into `target`."""
    rows, columns = (extent // TILE * TILE for extent in source.shape)
    tiles = source[:rows, :columns].reshape(rows // TILE, TILE, columns // TILE, TILE).transpose(0, 2, 1, 3).copy()
    turned = tiles.swapaxes(2, 3).copy()
    target[:columns, :rows].reshape(columns // TILE, TILE, rows // TILE, TILE)[...] = turned.transpose(1, 2, 0, 3)
    target[:columns, rows:] = source[rows:, :columns].T
    target[columns:] = source[:, columns:].T
