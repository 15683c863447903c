"""Reading what `torch.save` wrote before 1.6, and still writes if it is asked to: pickles, then the storages.

The order is that of `torch/serialization.py` (`_legacy_save`): a magic number, a version, what the machine was, the
checkpoint, the keys of the storages, each a pickle; then each storage as a number of elements and the elements.
"""

import struct
from typing import Final

from app.weights.checkpoint import CheckpointError, Read, TensorSlot
from app.weights.dtypes import byte_count
from app.weights.format_parts.seekable import RangeStream
from app.weights.format_parts.torch_pickle import Storage, load
from app.weights.format_parts.torch_tensors import place_tensors

MAGIC: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
VERSION: Final = 1001
COUNT: Final = struct.Struct("<q")


def recognises(start: bytes) -> bool:
    """Whether the file begins with the pickle of PyTorch's magic number."""
    return start.startswith(MAGIC)


def read_slots(read: Read, size: int) -> list[TensorSlot]:
    """Return the tensors of a checkpoint of `size` bytes, in the order of their bytes; only the pickles are read."""
    with RangeStream(read, size) as file:
        file.seek(len(MAGIC))
        version, machine = load(file).value, load(file).value
        if version != VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise CheckpointError(
                "bad_header", "The checkpoint is of another version, or big endian. Save it again with torch.save."
            )
        checkpoint = load(file)
        keys = load(file).value
        start = file.tell()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("bad_header", "The checkpoint has no list of storages. Save it again with torch.save.")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage = checkpoint.storages.get(key)
        nbytes = _nbytes(storage) if storage is not None else None
        fits = nbytes is not None and start + COUNT.size + nbytes <= size
        if storage is None or nbytes is None or not fits or read(start, COUNT.size) != COUNT.pack(storage.elements):
            raise CheckpointError(
                "truncated_file", f"Storage {key!r:.50} is not where it should be in the file. Upload the whole file."
            )
        places[key] = start + COUNT.size, nbytes
        start += COUNT.size + nbytes
    return place_tensors(checkpoint.value, lambda storage: _place(places, storage))


def _nbytes(storage: Storage) -> int | None:
    return storage.elements if storage.dtype is None else byte_count(storage.dtype, storage.elements)


def _place(places: dict[str, tuple[int, int]], storage: Storage) -> tuple[int, int]:
    if storage.key not in places:
        raise CheckpointError("truncated_file", "The file lacks a storage that its tensors use. Upload the whole file.")
    return places[storage.key]
