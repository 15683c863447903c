"""Reads a checkpoint file that nobody vouches for, in whichever format its first bytes say."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Final

from app.plugins import find_plugins
from app.weights.checkpoint import MAX_TENSORS, START_BYTES, CheckpointError, CheckpointFormat, Read, TensorSlot
from app.weights.foreign_files import explain

FOLDER: Final = "app.weights.formats"
GROUP: Final = "enginesmith.checkpoint_formats"
SHOWN_BYTES = 16


def read_slots(read: Read, size: int) -> list[TensorSlot]:
    """Return the tensors of a file of `size` bytes in the order of their bytes.

    Raises CheckpointError if no format recognises the file, or if the one that does finds it unusable.
    """
    start = read(0, min(size, START_BYTES))
    known = checkpoint_formats()
    name = next((name for name, candidate in known.items() if candidate.recognises(start)), None)
    if name is None:
        raise _unknown(read, size, start, known)
    try:
        slots = known[name].read_slots(read, size)
        _check(slots, size)
    except CheckpointError as error:
        raise CheckpointError(error.code, f"{error.detail} (The file was read as {name}.)") from error
    return slots


def _unknown(read: Read, size: int, start: bytes, known: Iterable[str]) -> CheckpointError:
    told = explain(read, size, start)
    if told is not None:
        what, remedy = told
        return CheckpointError("unknown_format", f"The file is {what}. {remedy}")
    return CheckpointError(
        "unknown_format",
        f"The file starts with {start[:SHOWN_BYTES]!r}, which is no format that is read here: {', '.join(known)}. "
        "Convert the checkpoint to one of these and upload that.",
    )


@cache
def checkpoint_formats() -> Mapping[str, CheckpointFormat]:
    """Return every format by name: our own first, then those of installed packages."""
    found = find_plugins(FOLDER, GROUP)
    return {name: plugin.load() for name, plugin in found.items()}


def _check(slots: Sequence[TensorSlot], size: int) -> None:
    """Hold a format to its promise: what follows reads these ranges without looking again."""
    if len(slots) > MAX_TENSORS:
        raise CheckpointError("too_many_tensors", f"The file has {len(slots)} tensors; at most {MAX_TENSORS} fit.")
    names: set[str] = set()
    end = 0
    last = None
    for slot in slots:
        if slot.name in names:
            raise CheckpointError("bad_tensor_name", f"The file has two tensors {slot.name!r}. Rename one of them.")
        if slot.offset < end and not (last is not None and slot.has_bytes_of(last)):
            raise CheckpointError(
                "bad_offsets",
                f"{slot.name} starts at byte {slot.offset}, inside another tensor. Write the file again, with copies "
                "of tensors that share a part of their elements.",
            )
        names.add(slot.name)
        last, end = slot, slot.end
    if end > size:
        raise CheckpointError("truncated_file", f"The file lacks {end - size} of {end} bytes. Upload the whole file.")
