"""Digests of the tensors of one file, and their NaN and infinities, from one pass over its bytes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from blake3 import blake3

from app.weights.checkpoint import CheckpointError, TensorSlot
from app.weights.non_finite import NonFinite, NonFiniteCounter


@dataclass(frozen=True, slots=True)
class TensorContent:
    """What was found out about a tensor's bytes: their BLAKE3, and how many elements are not finite."""

    blake3: str
    non_finite: NonFinite


def hash_tensors(slots: Sequence[TensorSlot], chunks: Iterable[bytes]) -> list[TensorContent]:
    """Return what each tensor's bytes are.

    `slots` are in the order of their bytes. Those that follow each other may have the same bytes, and none may overlap
    another otherwise. `chunks` are the file's bytes from the first slot's offset on, in pieces of any size; no more
    than one is held. Raises CheckpointError if they end too early.
    """
    data = _Bytes(chunks)
    contents: list[TensorContent] = []
    end = slots[0].offset if slots else 0
    last = None
    for slot in slots:
        if last is not None and slot.has_bytes_of(last):
            contents.append(contents[-1])
            continue
        last = slot
        for _ in data.take(slot.offset - end, slot.name):  # what lies between two tensors belongs to none
            pass
        hasher, counter = blake3(max_threads=blake3.AUTO), NonFiniteCounter(slot.dtype)
        for piece in data.take(slot.nbytes, slot.name):
            hasher.update(piece)
            counter.update(piece)
        contents.append(TensorContent(hasher.hexdigest(), counter.found))
        end = slot.end
    return contents


class _Bytes:
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def take(self, count: int, name: str) -> Iterator[memoryview]:
        """Yield the next `count` bytes in pieces; `name` is the tensor they are read for."""
        while count:
            self._rest = self._rest or memoryview(next(self._chunks, b""))
            if not self._rest:
                raise CheckpointError("truncated_file", f"The file ended {count} bytes before the end of {name}.")
            piece, self._rest = self._rest[:count], self._rest[count:]
            count -= len(piece)
            yield piece
