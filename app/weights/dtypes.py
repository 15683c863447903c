"""The element types of tensors, named as safetensors names them, and which casts lose nothing.

The numeric facts are those of IEEE 754, of bfloat16, and of the two 8-bit floats of Micikevicius et al.,
"FP8 Formats for Deep Learning" (2022). numpy and ml_dtypes are imported on first use only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mmap import mmap

    import numpy as np

NumberKind = Literal["float", "int", "uint", "bool"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    `digits` counts the binary digits of the significand (floats, the implicit one included) or of the
    magnitude (integers). Floats hold multiples of 2**`lowest` below 2**(`highest` + 1).
    """

    name: str
    bits: int
    kind: NumberKind
    numpy: str
    digits: int
    lowest: int = 0
    highest: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.bits // 8


DTYPES: Mapping[str, DType] = MappingProxyType(
    {
        dtype.name: dtype
        for dtype in (
            DType("F64", 64, "float", "float64", 53, -1074, 1023),
            DType("F32", 32, "float", "float32", 24, -149, 127),
            DType("F16", 16, "float", "float16", 11, -24, 15),
            DType("BF16", 16, "float", "bfloat16", 8, -133, 127),
            DType("F8_E4M3", 8, "float", "float8_e4m3fn", 4, -9, 8),
            DType("F8_E5M2", 8, "float", "float8_e5m2", 3, -16, 15),
            DType("I64", 64, "int", "int64", 63),
            DType("I32", 32, "int", "int32", 31),
            DType("I16", 16, "int", "int16", 15),
            DType("I8", 8, "int", "int8", 7),
            DType("U64", 64, "uint", "uint64", 64),
            DType("U32", 32, "uint", "uint32", 32),
            DType("U16", 16, "uint", "uint16", 16),
            DType("U8", 8, "uint", "uint8", 8),
            DType("BOOL", 8, "bool", "bool", 1),
        )
    }
)

# A file may hold tensors of other types, too. The bits per element are known here or told by the file. A binding that
# uses such a tensor is refused.
FOREIGN_BITS: Mapping[str, int] = MappingProxyType(
    {
        "C64": 64,
        "C128": 128,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "F4": 4,
        "I4": 4,
        "U4": 4,
    }
)
_FOREIGN_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,31}")

_FROM_ML_DTYPES = {"bfloat16", "float8_e4m3fn", "float8_e5m2"}


def is_foreign(name: str) -> bool:
    """Whether a dtype of this name can be kept in a weight version, though nothing is computed with it."""
    return name not in DTYPES and _FOREIGN_NAME.fullmatch(name) is not None


def byte_count(name: str, elements: int) -> int | None:
    """Return how many bytes so many elements take; None for a foreign dtype of unknown size.

    Elements of less than a byte lie next to each other, and the last byte may be used in part.
    """
    bits = DTYPES[name].bits if name in DTYPES else FOREIGN_BITS.get(name)
    return None if bits is None else -(-elements * bits // 8)


@lru_cache
def numpy_dtype(name: str) -> "np.dtype[Any]":
    """Return the numpy dtype of a safetensors dtype name; raises KeyError if there is none."""
    import numpy as np  # noqa: PLC0415 - the API starts without numpy

    wanted = DTYPES[name].numpy
    return np.dtype(getattr(import_module("ml_dtypes"), wanted) if wanted in _FROM_ML_DTYPES else wanted)


def view(
    buffer: "bytes | memoryview | mmap", dtype: str, shape: tuple[int, ...], offset: int = 0
) -> "np.ndarray[Any, np.dtype[Any]]":
    """Return a tensor inside `buffer`, such as a mapped file, as an array that shares its memory."""
    import numpy as np  # noqa: PLC0415 - the API starts without numpy

    return np.ndarray(shape, numpy_dtype(dtype), buffer, offset)


@lru_cache
def is_lossless_cast(source: str, target: str) -> bool:
    """Whether every finite value of dtype `source` is also a value of dtype `target`; never for a foreign one."""
    if source not in DTYPES:
        return False
    a, b = DTYPES[source], DTYPES[target]
    if a.kind == "bool" or a == b:
        return True
    if b.kind == "float":
        return _fits_float(a, b)
    if a.kind == "float" or b.kind == "bool":
        return False
    return a.digits <= b.digits and (a.kind == "uint" or b.kind == "int")


@lru_cache
def is_widening(source: str, target: str) -> bool:
    """Whether a cast is lossless and keeps the kind of number.

    An 8-bit integer read as a float loses nothing but nearly always wants a scale, so it is no widening. Neither is an
    8-bit float read as a longer one.
    """
    if not is_lossless_cast(source, target):
        return False
    if DTYPES[source].kind == "float" and DTYPES[source].bits == 8 and source != target:
        return False
    kinds = {DTYPES[source].kind, DTYPES[target].kind}
    return len(kinds) == 1 or kinds == {"int", "uint"}


def _fits_float(a: DType, b: DType) -> bool:
    if a.kind == "float":
        return a.digits <= b.digits and a.lowest >= b.lowest and a.highest <= b.highest
    return a.digits <= b.digits and a.digits <= b.highest
