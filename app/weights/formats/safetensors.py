"""Reading safetensors files that nobody vouches for.

A file is an 8-byte little-endian header length, a JSON header that maps names to dtype, shape and byte
range, and the bytes of all tensors (https://github.com/huggingface/safetensors, "Format"). The reference
reader takes blank headers of any size, a million empty tensors, repeated keys and any name; this one has
limits, and takes only files whose tensors cover their data exactly once.
"""

import json
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NoReturn

from app.weights.dtypes import DTYPES, numpy_dtype

if TYPE_CHECKING:
    from mmap import mmap

    import numpy as np

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_TENSORS = 100_000
MAX_NAME_LENGTH = 512
MAX_RANK = 16
MAX_EXTENT = 2**48
MAX_JSON_PARTS = 2_000_000
PREFIX_BYTES = 8


class CheckpointError(ValueError):
    """A file that is no acceptable safetensors file; `code` is for programs, the text names the remedy.

    Codes: truncated_file, bad_header, header_too_large, too_many_tensors, bad_tensor_name, unsupported_dtype,
    bad_shape, bad_offsets.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor lies; `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_slots(read: Callable[[int, int], bytes], size: int) -> list[TensorSlot]:
    """Return the tensors of a file of `size` bytes in the order of their bytes.

    `read(offset, length)` gives bytes of the file; only its header is read. CheckpointError where anything
    about the header is not as it should be.
    """
    header_bytes = _header_length(read, size)
    header = _parse(read(PREFIX_BYTES, header_bytes))
    _check_metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise CheckpointError("too_many_tensors", f"The file has {len(header)} tensors; at most {MAX_TENSORS} fit.")
    start = PREFIX_BYTES + header_bytes
    slots = sorted((_slot(name, entry, start) for name, entry in header.items()), key=_position)
    _check_cover(slots, start, size)
    return slots


def slices_of(slots: Iterable[TensorSlot], chunks: Iterable[bytes]) -> Iterator[tuple[TensorSlot, memoryview]]:
    """Pair each tensor with the pieces of its bytes, given the chunks of the data that follows the header.

    Every tensor comes up at least once, an empty one with an empty piece. No more than one chunk is held.
    """
    source = iter(chunks)
    rest = memoryview(b"")
    for slot in slots:
        missing = slot.nbytes
        while missing:
            rest = rest or memoryview(next(source, b""))
            if not rest:
                raise CheckpointError(
                    "truncated_file", f"The file ended {missing} bytes before the end of {slot.name}."
                )
            piece, rest = rest[:missing], rest[missing:]
            missing -= len(piece)
            yield slot, piece
        if not slot.nbytes:
            yield slot, rest[:0]


def view(
    buffer: "bytes | memoryview | mmap", dtype: str, shape: tuple[int, ...], offset: int = 0
) -> "np.ndarray[Any, np.dtype[Any]]":
    """Return a tensor inside `buffer`, such as a mapped file, as an array that shares its memory."""
    import numpy as np  # noqa: PLC0415 - the API starts without numpy

    return np.ndarray(shape, numpy_dtype(dtype), buffer, offset)


def _header_length(read: Callable[[int, int], bytes], size: int) -> int:
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


def _parse(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise CheckpointError("bad_header", "The header does not start with '{'. Check that it is a safetensors file.")
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_JSON_PARTS:
        raise CheckpointError("header_too_large", f"The header has more than {MAX_JSON_PARTS} parts. Split the file.")
    try:
        header: dict[str, Any] = json.loads(raw, object_pairs_hook=_unique, parse_constant=_refuse)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError("bad_header", f"The header is not JSON: {error}. Write the file again.") from error
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
    raise CheckpointError("bad_header", f"The header has the key {repeated!r:.200} twice. Write the file again.")


def _refuse(constant: str) -> NoReturn:
    raise CheckpointError("bad_header", f"The header holds {constant}, which is not JSON. Write the file again.")


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("bad_header", "__metadata__ must map text to text. Write the file again.")


def _slot(name: str, entry: object, start: int) -> TensorSlot:
    _check_name(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError("bad_header", f"{name} must have exactly dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            "unsupported_dtype",
            f"{name} has dtype {dtype!r:.40}. Convert it to one of {', '.join(DTYPES)}.",
        )
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise CheckpointError("bad_shape", f"The shape of {name} must be at most {MAX_RANK} integers from 0 to 2**48.")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError("bad_offsets", f"data_offsets of {name} must be two integers, the first not the larger.")
    nbytes = prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise CheckpointError(
            "bad_offsets",
            f"{name} is {dtype}{shape}, so {nbytes} bytes, but its data_offsets span {offsets[1] - offsets[0]}.",
        )
    return TensorSlot(name, dtype, tuple(shape), start + offsets[0], nbytes)


def _check_name(name: str) -> None:
    safe = 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable()
    if not safe or ".." in name.replace("\\", "/").split("/"):
        raise CheckpointError(
            "bad_tensor_name",
            f"The tensor name {name!r:.200} is not acceptable: names have 1 to {MAX_NAME_LENGTH} printable characters "
            "and no '..' as a path part. Rename the tensor.",
        )


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_EXTENT for value in values
    )


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
