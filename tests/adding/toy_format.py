"""A checkpoint format as a third party writes it: a magic, the length of a JSON header, the header, aligned tensors."""

import json
import struct

from app.weights.checkpoint import MAX_TENSORS, CheckpointError, Read, TensorSlot

MAGIC = b"TOY1"
PREFIX_BYTES = 8
MAX_HEADER_BYTES = 1024 * 1024
ALIGNMENT = 64


def recognises(start: bytes) -> bool:
    """Whether the file starts with the magic."""
    return start.startswith(MAGIC)


def read_slots(read: Read, size: int) -> list[TensorSlot]:
    """Return the tensors, whose entries are [name, dtype, shape]; each starts at the next multiple of 64 bytes."""
    if size < PREFIX_BYTES:
        raise CheckpointError("truncated_file", "The file ends in its prefix. Upload the whole file.")
    (length,) = struct.unpack("<I", read(len(MAGIC), 4))
    if length > MAX_HEADER_BYTES:
        raise CheckpointError("header_too_large", f"The header has more than {MAX_HEADER_BYTES} bytes. Split the file.")
    entries = json.loads(read(PREFIX_BYTES, length))
    if len(entries) > MAX_TENSORS:
        raise CheckpointError("too_many_tensors", f"At most {MAX_TENSORS} tensors fit. Split the file.")
    slots, end = [], PREFIX_BYTES + length
    for name, dtype, shape in entries:
        slots.append(TensorSlot.checked(name, dtype, shape, -(-end // ALIGNMENT) * ALIGNMENT))
        end = slots[-1].end
    return slots
