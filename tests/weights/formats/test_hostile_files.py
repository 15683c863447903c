"""Golden checkpoints that were cut off and changed, of every format: they are read or refused, and nothing else."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from app.weights.checkpoint import CheckpointError
from tests.golden.checkpoints.values import FOLDER, PERCEPTRON, SMALL
from tests.weights.formats.reading import slots


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **SMALL)  # type: ignore[arg-type]  # numpy's stubs take the names for its own argument
    return buffer.getvalue()


FILES = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in {".pt", ".gguf"}}
FILES |= {"small.npz": _npz(), "perceptron.safetensors": save(dict(PERCEPTRON))}
WHOLE = [name for name in FILES if not name.startswith("refused")]


def read_or_refused(raw: bytes) -> bool:
    """Whether the file is read; then every tensor lies in it."""
    try:
        found = slots(raw)
    except CheckpointError:
        return False
    assert all(0 <= slot.offset <= slot.end <= len(raw) for slot in found)
    return True


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_was_cut_off_is_refused(name: str) -> None:
    raw = FILES[name]
    found = slots(raw)
    needed = max(slot.end for slot in found) if name.endswith(".gguf") else len(raw)  # padding may be missing
    places = {place + near for slot in found for place in (slot.offset, slot.end) for near in (-1, 0, 1)}
    places |= {*range(0, needed, needed // 100), needed - 1}
    assert not any(read_or_refused(raw[:place]) for place in places if place < needed)


@given(st.data())
def test_a_file_with_other_bytes_in_it_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(FILES[data.draw(st.sampled_from(list(FILES)))])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        new = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff" * 4]))
        raw[at : at + data.draw(st.sampled_from([0, 1, len(new)]))] = new
    read_or_refused(bytes(raw))


@given(st.sampled_from(list(FILES)), st.binary(max_size=400), st.integers(4, 64))
def test_a_file_with_an_arbitrary_rest_is_read_or_refused(name: str, rest: bytes, kept: int) -> None:
    read_or_refused(FILES[name][:kept] + rest)


@given(st.data())
def test_a_file_with_parts_at_other_places_is_read_or_refused(data: st.DataObject) -> None:
    raw = FILES[data.draw(st.sampled_from(list(FILES)))]
    first, second, third = sorted(data.draw(st.integers(0, len(raw))) for _ in range(3))
    read_or_refused(raw[:first] + raw[second:third] + raw[first:second] + raw[second:])
