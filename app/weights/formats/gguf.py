"""Reading GGUF files, as llama.cpp and its relatives write them.

The format is described in ggml's `docs/gguf.md`: a magic number, a version, key-value pairs, what the tensors are, and
their bytes from the next multiple of `general.alignment` on. Dimensions are listed from the innermost to the outermost.
Block sizes are those of `ggml/src/ggml-common.h`. Quantised tensors keep ggml's name of their type as their dtype.
"""

import struct
from math import prod
from typing import Final, NamedTuple

from app.weights.checkpoint import MAX_RANK, MAX_TENSORS, CheckpointError, Read, TensorSlot
from app.weights.format_parts.seekable import RangeStream

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_PAIRS: Final = 100_000
MAX_HEADER_BYTES: Final = 64 * 1024 * 1024
DEFAULT_ALIGNMENT: Final = 32
ALIGNMENT_KEY: Final = b"general.alignment"
STRING, ARRAY, UINT32 = 8, 9, 4
SCALAR_BYTES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class _Type(NamedTuple):
    """A type of ggml: its name, and how many elements a block has in how many bytes."""

    dtype: str
    elements: int
    nbytes: int


TYPES: Final = {
    0: _Type("F32", 1, 4), 1: _Type("F16", 1, 2), 2: _Type("Q4_0", 32, 18), 3: _Type("Q4_1", 32, 20),
    6: _Type("Q5_0", 32, 22), 7: _Type("Q5_1", 32, 24), 8: _Type("Q8_0", 32, 34), 9: _Type("Q8_1", 32, 36),
    10: _Type("Q2_K", 256, 84), 11: _Type("Q3_K", 256, 110), 12: _Type("Q4_K", 256, 144), 13: _Type("Q5_K", 256, 176),
    14: _Type("Q6_K", 256, 210), 15: _Type("Q8_K", 256, 292), 16: _Type("IQ2_XXS", 256, 66),
    17: _Type("IQ2_XS", 256, 74), 18: _Type("IQ3_XXS", 256, 98), 19: _Type("IQ1_S", 256, 50),
    20: _Type("IQ4_NL", 32, 18), 21: _Type("IQ3_S", 256, 110), 22: _Type("IQ2_S", 256, 82),
    23: _Type("IQ4_XS", 256, 136), 24: _Type("I8", 1, 1), 25: _Type("I16", 1, 2), 26: _Type("I32", 1, 4),
    27: _Type("I64", 1, 8), 28: _Type("F64", 1, 8), 29: _Type("IQ1_M", 256, 56), 30: _Type("BF16", 1, 2),
    34: _Type("TQ1_0", 256, 54), 35: _Type("TQ2_0", 256, 66),
}  # fmt: skip


def recognises(start: bytes) -> bool:
    """Whether the file begins as a GGUF file does."""
    return start.startswith(MAGIC)


def read_slots(read: Read, size: int) -> list[TensorSlot]:
    """Return the tensors of a file of `size` bytes, in the order of their bytes; only what stands before is read."""
    with RangeStream(read, size) as file:
        fields = _Fields(file)
        version = fields.number("<4xI")
        if version not in VERSIONS:
            raise CheckpointError(
                "bad_header",
                f"The file is GGUF of version {version}; {VERSIONS[0]} and {VERSIONS[1]} in little endian are read. "
                "Write it again with a current converter.",
            )
        tensors, pairs = fields.number("<Q"), fields.number("<Q")
        if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
            raise CheckpointError(
                "too_many_tensors", f"The file has {tensors} tensors and {pairs} pairs; {MAX_TENSORS} of each fit."
            )
        alignment = _alignment(fields, pairs)
        infos = [_info(fields) for _ in range(tensors)]
        start = -(-file.tell() // alignment) * alignment
    slots = [
        TensorSlot.checked(name, kind, shape, start + offset, nbytes) for name, kind, shape, offset, nbytes in infos
    ]
    return sorted(slots, key=lambda slot: (slot.offset, slot.nbytes, slot.name))


class _Fields:
    """The fields at the start of a file, one after the other."""

    def __init__(self, file: RangeStream) -> None:
        self._file = file
        self._left = MAX_HEADER_BYTES

    def number(self, layout: str) -> int:
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return int(value)

    def text(self) -> bytes:
        return self.take(self.number("<Q"))

    def take(self, length: int) -> bytes:
        self._left -= length
        if self._left < 0:
            raise CheckpointError(
                "header_too_large",
                f"More than {MAX_HEADER_BYTES} bytes stand before the tensors. Write it with fewer pairs.",
            )
        data = self._file.read(length)
        if len(data) < length:
            raise CheckpointError("truncated_file", "The file ends before its tensors. Upload the whole file.")
        return data


def _alignment(fields: _Fields, pairs: int) -> int:
    alignment = DEFAULT_ALIGNMENT
    for _ in range(pairs):
        key, kind = fields.text(), fields.number("<I")
        if key == ALIGNMENT_KEY and kind == UINT32:
            alignment = fields.number("<I")
        else:
            _skip(fields, kind)
    if alignment <= 0 or alignment & (alignment - 1):
        raise CheckpointError("bad_header", f"The file's alignment is {alignment}, no power of two. Write it again.")
    return alignment


def _skip(fields: _Fields, kind: int) -> None:
    if kind == STRING:
        fields.text()
    elif kind == ARRAY:
        inner, count = fields.number("<I"), fields.number("<Q")
        if inner == STRING:
            for _ in range(count):
                fields.text()
        else:
            fields.take(count * _scalar_bytes(inner))
    else:
        fields.take(_scalar_bytes(kind))


def _scalar_bytes(kind: int) -> int:
    if kind not in SCALAR_BYTES:
        raise CheckpointError("bad_header", f"The file has a value of type {kind}, which is not known. Write it again.")
    return SCALAR_BYTES[kind]


def _info(fields: _Fields) -> tuple[str, str, list[int], int, int]:
    name = fields.text().decode("utf-8", "replace")
    rank = fields.number("<I")
    if rank > MAX_RANK:
        raise CheckpointError("bad_shape", f"{name!r:.200} has {rank} dimensions; at most {MAX_RANK} are read.")
    extents = [fields.number("<Q") for _ in range(rank)]
    number, offset = fields.number("<I"), fields.number("<Q")
    kind = TYPES.get(number)
    if kind is None:
        raise CheckpointError(
            "unsupported_dtype", f"{name!r:.200} is of type {number} of ggml, which is not known here."
        )
    if extents and extents[0] % kind.elements:
        raise CheckpointError("bad_shape", f"The rows of {name!r:.200} are no whole blocks of {kind.elements}.")
    return name, kind.dtype, extents[::-1], offset, prod(extents) // kind.elements * kind.nbytes
