from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from safetensors.numpy import save

from app.weights import recognition
from app.weights.checkpoint import MAX_TENSORS, START_BYTES, CheckpointError, CheckpointFormat, Read, TensorSlot
from app.weights.recognition import checkpoint_formats, read_slots

RAW = save({"x": np.zeros(3, np.float32)})


@dataclass
class Careless:
    """A format that recognises every file and checks nothing."""

    slots: list[TensorSlot] = field(default_factory=list)
    starts: list[bytes] = field(default_factory=list)

    def recognises(self, start: bytes) -> bool:
        self.starts.append(start)
        return True

    def read_slots(self, read: Read, size: int) -> list[TensorSlot]:  # noqa: ARG002 - the protocol's
        return self.slots


def reader(raw: bytes) -> Read:
    return lambda offset, length: raw[offset : offset + length]


def install(monkeypatch: pytest.MonkeyPatch, formats: Mapping[str, CheckpointFormat]) -> None:
    monkeypatch.setattr(recognition, "checkpoint_formats", lambda: formats)


def test_a_safetensors_file_is_recognised() -> None:
    assert [(slot.name, slot.shape) for slot in read_slots(reader(RAW), len(RAW))] == [("x", (3,))]


@pytest.mark.parametrize("raw", [b"\xff" * 40, b"\x00\x01\xfe plain no more"])
def test_an_unknown_file_is_told_its_first_bytes_and_what_is_read(raw: bytes) -> None:
    with pytest.raises(CheckpointError) as error:
        read_slots(reader(raw), len(raw))
    assert error.value.code == "unknown_format"
    assert repr(raw[:16]) in error.value.detail
    assert "safetensors" in error.value.detail


def test_the_first_format_that_recognises_a_file_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = TensorSlot("whole", "U8", (len(RAW),), 0, len(RAW))
    install(monkeypatch, {**checkpoint_formats(), "careless": Careless([slot])})
    assert [one.name for one in read_slots(reader(RAW), len(RAW))] == ["x"]
    assert read_slots(reader(b"\xff" * len(RAW)), len(RAW)) == [slot]


def test_a_format_is_shown_the_start_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    careless = Careless()
    install(monkeypatch, {"careless": careless})
    read_slots(reader(bytes(START_BYTES + 1)), START_BYTES + 1)
    assert careless.starts == [bytes(START_BYTES)]


@pytest.mark.parametrize(
    ("slots", "code"),
    [
        ([TensorSlot("x", "U8", (2,), 0, 2), TensorSlot("x", "U8", (2,), 2, 2)], "bad_tensor_name"),
        ([TensorSlot("x", "U8", (2,), 0, 2), TensorSlot("y", "U8", (2,), 1, 2)], "bad_offsets"),
        ([TensorSlot("x", "U8", (2,), 2, 2), TensorSlot("y", "U8", (2,), 0, 2)], "bad_offsets"),
        ([TensorSlot("x", "U8", (2,), -1, 2)], "bad_offsets"),
        ([TensorSlot("x", "U8", (9,), 0, 9)], "truncated_file"),
        ([TensorSlot("x", "U8", (0,), 0, 0)] * (MAX_TENSORS + 1), "too_many_tensors"),
    ],
)
def test_a_format_is_held_to_its_promise(slots: list[TensorSlot], code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"careless": Careless(slots)})
    with pytest.raises(CheckpointError) as error:
        read_slots(reader(b"12345678"), 8)
    assert error.value.code == code


def test_a_fault_tells_as_what_the_file_was_read() -> None:
    raw = b"GGUF" + bytes(60)
    with pytest.raises(CheckpointError, match=r"\(The file was read as gguf\.\)"):
        read_slots(reader(raw), len(raw))
