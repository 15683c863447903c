"""Reading safetensors files that nobody vouches for.

A file is an 8-byte little-endian header length, a JSON header that maps names to dtype, shape and byte
range, and the bytes of all tensors (https://github.com/huggingface/safetensors, "Format"). The reference
reader takes blank headers of any size, a million empty tensors, repeated keys and any name; this one has
limits, and takes only files whose tensors cover their data exactly once.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod

from app.weights.checkpoint import MAX_TENSORS, CheckpointError, Read, TensorSlot, are_sizes, check_name
from app.weights.dtypes import DTYPES
from app.weights.format_parts.strict_json import parse_object

MAX_HEADER_BYTES = 16 * 1024 * 1024
PREFIX_BYTES = 8
ALIGNMENT = 8  # of the data; no dtype has larger elements


def recognises(start: bytes) -> bool:
    """Whether the file starts with the length of a header that could be read, or has a JSON object behind it.

    A file that is JSON from its first byte on is no checkpoint, whatever stands at that place.
    """
    if int.from_bytes(start[:PREFIX_BYTES], "little") <= MAX_HEADER_BYTES:
        return True
    return start[PREFIX_BYTES:].startswith(b"{") and not start.startswith((b"{", b"["))


def read_slots(read: Read, size: int) -> list[TensorSlot]:
    """Return the tensors of a file of `size` bytes in the order of their bytes.

    Only the header is read. Raises CheckpointError if anything about it is not as it should be.
    """
    header_bytes = _header_length(read, size)
    raw = read(PREFIX_BYTES, header_bytes)
    if not raw.startswith(b"{"):
        raise CheckpointError("bad_header", "The header does not start with '{'. Check that it is a safetensors file.")
    header = parse_object(raw, "The header")
    _check_metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise CheckpointError("too_many_tensors", f"The file has {len(header)} tensors; at most {MAX_TENSORS} fit.")
    start = PREFIX_BYTES + header_bytes
    slots = sorted((_slot(name, entry, start) for name, entry in header.items()), key=_position)
    _check_cover(slots, start, size)
    return slots


def arrange(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> tuple[bytes, list[str]]:
    """Return what a new file of these tensors starts with, and the order in which their bytes follow.

    `tensors` has dtype and shape by name. The same tensors give the same bytes. They lie in the order of falling
    element size, then of name, so that each is aligned to its elements.
    """
    order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name][0]].itemsize, name))
    header: dict[str, object] = {}
    end = 0
    for name in order:
        dtype, shape = tensors[name]
        offsets = [end, end := end + prod(shape) * DTYPES[dtype].itemsize]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, order


def _header_length(read: Read, size: int) -> int:
    if size < PREFIX_BYTES:
        raise CheckpointError(
            "truncated_file",
            f"The file has {size} bytes; a safetensors file starts with {PREFIX_BYTES} bytes of header length. "
            "Upload the whole file.",
        )
    length: int = struct.unpack("<Q", read(0, PREFIX_BYTES))[0]
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            "header_too_large",
            f"The file announces a header of {length} bytes; at most {MAX_HEADER_BYTES} are read. "
            "Check that it is a safetensors file; split a larger checkpoint into several files.",
        )
    if length > size - PREFIX_BYTES:
        raise CheckpointError(
            "truncated_file",
            f"The header alone lacks {length - (size - PREFIX_BYTES)} bytes. Upload the whole file.",
        )
    return length


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("bad_header", "__metadata__ must map text to text. Write the file again.")


def _slot(name: str, entry: object, start: int) -> TensorSlot:
    check_name(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError("bad_header", f"{name} must have exactly dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError("bad_offsets", f"data_offsets of {name} must be two integers, the first not the larger.")
    begin, end = offsets
    return TensorSlot.checked(name, dtype, shape, start + begin, end - begin)


def _position(slot: TensorSlot) -> tuple[int, int]:
    return slot.offset, slot.nbytes


def _check_cover(slots: list[TensorSlot], start: int, size: int) -> None:
    end = start
    for slot in slots:
        if slot.offset != end:
            raise CheckpointError(
                "bad_offsets",
                f"{slot.name} starts at byte {slot.offset - start} of the data, but the tensors before it end at "
                f"{end - start}: tensors must follow each other without gap or overlap. Write the file again.",
            )
        end += slot.nbytes
    if end > size:
        raise CheckpointError("truncated_file", f"The file lacks {end - size} of {end} bytes. Upload the whole file.")
    if end < size:
        raise CheckpointError(
            "bad_offsets", f"{size - end} bytes at the end of the file belong to no tensor. Write the file again."
        )
