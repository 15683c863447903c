import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from app.weights.checkpoint import CheckpointError, TensorSlot
from app.weights.hashing import hash_tensors

GAP_AND_SIZE = st.tuples(st.integers(0, 3), st.integers(0, 9))


@given(st.lists(GAP_AND_SIZE, max_size=8), st.integers(1, 7))
def test_every_tensor_has_the_digest_of_its_own_bytes(layout: list[tuple[int, int]], chunk: int) -> None:
    slots: list[TensorSlot] = []
    end = 0
    for gap, size in layout:
        slots.append(TensorSlot(str(len(slots)), "U8", (size,), end + gap, size))
        end += gap + size
    data = bytes(range(end))
    start = slots[0].offset if slots else 0
    found = hash_tensors(slots, (data[at : min(at + chunk, end)] for at in range(start, end, chunk)))
    assert [one.blake3 for one in found] == [blake3(data[slot.offset : slot.end]).hexdigest() for slot in slots]


def test_chunks_that_end_early_are_an_error() -> None:
    slot = TensorSlot("x", "U8", (5,), 0, 5)
    with pytest.raises(CheckpointError, match="2 bytes before the end of x") as error:
        hash_tensors([slot], [b"abc"])
    assert error.value.code == "truncated_file"
