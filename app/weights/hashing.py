"""Digests of the tensors of one file, from one pass over its bytes."""

from collections.abc import Iterable, Iterator, Sequence

from blake3 import blake3

from app.weights.checkpoint import CheckpointError, TensorSlot


def hash_tensors(slots: Sequence[TensorSlot], chunks: Iterable[bytes]) -> list[str]:
    """Return the BLAKE3 of each tensor's bytes.

    `slots` are in the order of their bytes. `chunks` are the file's bytes from the first slot's offset on, in pieces
    of any size; no more than one is held. Raises CheckpointError if they end too early.
    """
    data = _Bytes(chunks)
    digests: list[str] = []
    end = slots[0].offset if slots else 0
    for slot in slots:
        for _ in data.take(slot.offset - end, slot.name):  # what lies between two tensors belongs to none
            pass
        hasher = blake3(max_threads=blake3.AUTO)
        for piece in data.take(slot.nbytes, slot.name):
            hasher.update(piece)
        digests.append(hasher.hexdigest())
        end = slot.end
    return digests


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
