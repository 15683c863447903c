"""Counts the NaN and infinities of a tensor while its bytes pass.

The bit patterns are those of IEEE 754, of bfloat16, and of the two 8-bit floats of Micikevicius et al., "FP8 Formats
for Deep Learning" (2022). numpy is imported on first use only.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

BLOCK_BYTES = 256 * 1024  # counted at a time, so that what is computed of them stays in the processor's cache


class NonFinite(NamedTuple):
    """How many elements of a tensor are NaN, and how many are infinite."""

    nan: int
    inf: int


FINITE = NonFinite(0, 0)


class _Bits(NamedTuple):
    """A float's bits as an unsigned integer of `nbytes` bytes, without the sign: from `first` on it is not finite."""

    nbytes: int
    first: int
    has_infinity: bool = True


_BITS: Mapping[str, _Bits] = {
    "F64": _Bits(8, 0x7FF0_0000_0000_0000),
    "F32": _Bits(4, 0x7F80_0000),
    "F16": _Bits(2, 0x7C00),
    "BF16": _Bits(2, 0x7F80),
    "F8_E5M2": _Bits(1, 0x7C),
    "F8_E4M3": _Bits(1, 0x7F, has_infinity=False),
}


class NonFiniteCounter:
    """Counts in the bytes of one tensor, which come in pieces of any size. Only floats have what is counted."""

    def __init__(self, dtype: str) -> None:
        self._bits = _BITS.get(dtype)
        self._rest = b""  # the beginning of an element whose end has not come yet
        self.found = FINITE

    def update(self, piece: memoryview) -> None:
        """Count in the next bytes."""
        if self._bits is None:
            return
        nbytes = self._bits.nbytes
        if self._rest:
            missing = nbytes - len(self._rest)
            self._rest, piece = self._rest + piece[:missing], piece[missing:]
            if len(self._rest) < nbytes:
                return
            self._count(memoryview(self._rest), self._bits)
        whole = len(piece) - len(piece) % nbytes
        self._count(piece[:whole], self._bits)
        self._rest = bytes(piece[whole:])

    def _count(self, data: memoryview, bits: _Bits) -> None:
        for magnitudes in _magnitudes(data, bits):
            beyond = magnitudes[magnitudes >= bits.first]
            inf = int((beyond == bits.first).sum()) if bits.has_infinity else 0
            self.found = NonFinite(self.found.nan + len(beyond) - inf, self.found.inf + inf)


def _magnitudes(data: memoryview, bits: _Bits) -> "Iterator[np.ndarray[Any, np.dtype[Any]]]":
    """Yield the elements without their signs, in those blocks that have any that is not finite."""
    import numpy as np  # noqa: PLC0415 - the API starts without numpy

    dtype = np.dtype(f"<u{bits.nbytes}")
    mask = dtype.type(2 ** (8 * bits.nbytes - 1) - 1)
    for start in range(0, len(data), BLOCK_BYTES):
        magnitudes = np.frombuffer(data[start : start + BLOCK_BYTES], dtype) & mask
        if magnitudes.max() >= bits.first:
            yield magnitudes
