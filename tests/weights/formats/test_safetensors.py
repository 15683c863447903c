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
from safetensors.numpy import load, save

from app.weights.checkpoint import CheckpointError, TensorSlot
from app.weights.dtypes import DTYPES, numpy_dtype, view
from app.weights.formats import safetensors as safetensors_file
from app.weights.formats.safetensors import arrange, read_slots, recognises


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
        ({"x": _entry(dtype="F4")}, "bad_offsets"),
        ({"x": _entry(dtype="float32")}, "unsupported_dtype"),
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


@pytest.mark.parametrize(
    ("start", "is_ours"),
    [
        (save({"x": np.zeros(3)}), True),
        (save({"x": np.zeros(3)})[:5], True),  # cut off
        (b"", True),  # cut off at once
        (_file(b"   {}"), True),  # damaged
        (struct.pack("<Q", 99_000_000) + b'{"x":', True),  # too large
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00", False),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9", False),
        (b"GGUF\x03\x00\x00\x00\x01", False),
        (b"no checkpoint", False),
    ],
)
def test_recognises_its_own_files_also_damaged_ones(start: bytes, is_ours: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert recognises(start) is is_ours


def test_what_is_arranged_is_read_by_the_reference_library_and_aligned() -> None:
    arrays = {"b": np.array([1, 2, 3], np.int8), "a": np.array([4], np.int8), "c": np.array([[0.5, -2]])}
    start, order = arrange({name: ("F64" if name == "c" else "I8", one.shape) for name, one in arrays.items()})
    raw = start + b"".join(arrays[name].tobytes() for name in order)
    assert order == ["c", "a", "b"]
    assert (start, order) == arrange({"a": ("I8", (1,)), "b": ("I8", (3,)), "c": ("F64", (1, 2))})
    for name, array in load(raw).items():
        np.testing.assert_array_equal(array, arrays[name])
    assert all(slot.offset % DTYPES[slot.dtype].itemsize == 0 for slot in _slots(raw))


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [("C64", (3,), 24), ("F8_E8M0", (3,), 3), ("F4", (3, 3), 5), ("F6_E2M3", (4,), 3), ("NEW_TYPE", (3,), 7)],
)
def test_a_tensor_of_a_foreign_dtype_is_a_range_of_bytes(dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
    header = {"x": _entry(0, nbytes, dtype=dtype, shape=shape), "y": _entry(nbytes, nbytes + 4)}
    slots = _slots(_file(header, bytes(nbytes + 4)))
    assert [(slot.name, slot.dtype, slot.nbytes) for slot in slots] == [("x", dtype, nbytes), ("y", "F32", 4)]
