import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from app.weights.dtypes import DTYPES, numpy_dtype
from app.weights.formats import safetensors as safetensors_file
from app.weights.formats.safetensors import CheckpointError, TensorSlot, read_slots, slices_of, view


def _slots(raw: bytes) -> list[TensorSlot]:
    return read_slots(lambda offset, length: raw[offset : offset + length], len(raw))


def _file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(begin: int = 0, end: int = 4, shape: Sequence[object] = (1,), dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_reads_what_the_reference_library_writes() -> None:
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([True, False, True]),
        "empty": np.zeros((0, 4), np.int64),
        "scalar": np.array(2.5),
    }
    raw = save(tensors, metadata={"format": "np"})
    slots = {slot.name: slot for slot in _slots(raw)}
    assert slots.keys() == tensors.keys()
    for name, slot in slots.items():
        np.testing.assert_array_equal(view(raw, slot.dtype, slot.shape, slot.offset), tensors[name])


def test_reads_the_header_of_the_real_minilm(minilm: Path) -> None:
    path = minilm / "model.safetensors"
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        slots = read_slots(read, path.stat().st_size)
    with safe_open(path, "numpy") as reference:
        expected = {name: tuple(reference.get_slice(name).get_shape()) for name in reference.keys()}  # noqa: SIM118 - no mapping
    assert {slot.name: slot.shape for slot in slots} == expected
    assert sum(slot.nbytes for slot in slots) > 90_000_000


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_every_dtype_without_copying(dtype: str) -> None:
    nbytes = 4 * DTYPES[dtype].itemsize
    raw = _file({"x": _entry(0, nbytes, (2, 2), dtype)}, bytes(nbytes))
    (slot,) = _slots(raw)
    array = view(raw, slot.dtype, slot.shape, slot.offset)
    assert array.dtype == numpy_dtype(dtype)
    assert np.shares_memory(array, np.frombuffer(raw, np.uint8))


def test_bfloat16_is_read_as_its_numbers() -> None:
    raw = struct.pack("<2H", 0x3F80, 0xC048)
    np.testing.assert_array_equal(view(raw, "BF16", (2,)).astype(np.float32), [1.0, -3.125])


@pytest.mark.parametrize(
    ("raw", "missing"),
    [
        (_file({"x": _entry(0, 400, (100,))}, bytes(150)), "250 of"),
        (_file({"x": _entry()}, bytes(4))[:20], "lacks"),
        (b"\x10\x00", "2 bytes"),
        (b"", "0 bytes"),
    ],
)
def test_a_truncated_file_says_what_is_missing(raw: bytes, missing: str) -> None:
    with pytest.raises(CheckpointError, match=missing) as error:
        _slots(raw)
    assert error.value.code == "truncated_file"
    assert "Upload the whole file" in error.value.detail


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (b"", "bad_header"),
        (b"   {}", "bad_header"),
        (b"[]", "bad_header"),
        (b'{"x": 1', "bad_header"),
        (b'{"x": \xff}', "bad_header"),
        (b'{"x": NaN}', "bad_header"),
        (b'{"x": ' + b"9" * 5000 + b"}", "bad_header"),
        (b'{"x":' + b"[" * 100_000, "bad_header"),
        (b'{"a": {}, "a": {}}', "bad_header"),
        (b'{"x": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "bad_header"),
        (b'{"x":[' + b"[]," * 1_000_000 + b"1]}", "header_too_large"),
        ({"x": 1}, "bad_header"),
        ({"x": {"dtype": "F32", "shape": [1]}}, "bad_header"),
        ({"x": {**_entry(), "extra": 1}}, "bad_header"),
        ({"__metadata__": {"format": 1}, "x": _entry()}, "bad_header"),
        ({"__metadata__": [], "x": _entry()}, "bad_header"),
        ({"x": _entry(dtype="F4")}, "unsupported_dtype"),
        ({"x": _entry(dtype=["F32"])}, "unsupported_dtype"),
        ({"x": _entry(shape=(True,))}, "bad_shape"),
        ({"x": _entry(shape=(1.0,))}, "bad_shape"),
        ({"x": _entry(shape=(-1, -1))}, "bad_shape"),
        ({"x": _entry(shape=(2**60, 0))}, "bad_shape"),
        ({"x": _entry(shape=(1,) * 17)}, "bad_shape"),
        ({"x": {**_entry(), "shape": "4"}}, "bad_shape"),
        ({"x": _entry(0, 8)}, "bad_offsets"),
        ({"x": _entry(4, 0)}, "bad_offsets"),
        ({"x": _entry(4, 8)}, "bad_offsets"),
        ({"x": _entry(0, 4), "y": _entry(2, 6)}, "bad_offsets"),
        ({"x": _entry(0, 4), "y": _entry(0, 4)}, "bad_offsets"),
        ({"x": {**_entry(), "data_offsets": [0]}}, "bad_offsets"),
        ({"x": {**_entry(), "data_offsets": [0, "4"]}}, "bad_offsets"),
        ({"": _entry()}, "bad_tensor_name"),
        ({"x" * 513: _entry()}, "bad_tensor_name"),
        ({"a\0b": _entry()}, "bad_tensor_name"),
        ({"a\nb": _entry()}, "bad_tensor_name"),
        ({"../../etc/passwd": _entry()}, "bad_tensor_name"),
        ({"a\\..\\b": _entry()}, "bad_tensor_name"),
        ({"\ud800": _entry()}, "bad_tensor_name"),
    ],
)
def test_refuses_a_bad_header(header: object, code: str) -> None:
    with pytest.raises(CheckpointError) as error:
        _slots(_file(header, bytes(4)))
    assert error.value.code == code


def test_refuses_bytes_that_belong_to_no_tensor() -> None:
    with pytest.raises(CheckpointError, match="3 bytes at the end"):
        _slots(_file({"x": _entry()}, bytes(7)))


def test_refuses_a_huge_header_without_reading_it() -> None:
    read: list[int] = []

    def read_prefix(_offset: int, length: int) -> bytes:
        read.append(length)
        return struct.pack("<Q", 99_000_000)

    with pytest.raises(CheckpointError) as error:
        read_slots(read_prefix, 100_000_000)
    assert error.value.code == "header_too_large"
    assert read == [8]


def test_refuses_too_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "MAX_TENSORS", 3)
    with pytest.raises(CheckpointError) as error:
        _slots(_file({f"x{i}": _entry(0, 0, (0,)) for i in range(4)}))
    assert error.value.code == "too_many_tensors"


@pytest.mark.parametrize(
    "name", ["/model/layers.0/Constant_output_0", "onnx::MatMul_123", "bert/embeddings:0", "вес..1", "p2o.Add.3"]
)
def test_takes_the_names_that_exporters_give(name: str) -> None:
    assert _slots(_file({name: _entry()}, bytes(4)))[0].name == name


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        slots = _slots(raw)
    except CheckpointError:
        return
    assert all(slot.offset + slot.nbytes <= len(raw) for slot in slots)


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 7))
def test_slices_put_together_are_the_tensors(sizes: list[int], chunk: int) -> None:
    data = bytes(range(sum(sizes)))
    slots, offset = [], 0
    for number, size in enumerate(sizes):
        slots.append(TensorSlot(str(number), "U8", (size,), offset, size))
        offset += size
    found = {slot.name: b"" for slot in slots}
    for slot, piece in slices_of(slots, (data[at : at + chunk] for at in range(0, len(data), chunk))):
        found[slot.name] += bytes(piece)
    assert found == {slot.name: data[slot.offset : slot.offset + slot.nbytes] for slot in slots}


def test_chunks_that_end_early_are_an_error() -> None:
    slot = TensorSlot("x", "U8", (5,), 0, 5)
    with pytest.raises(CheckpointError, match="2 bytes before the end of x"):
        list(slices_of([slot], [b"abc"]))
