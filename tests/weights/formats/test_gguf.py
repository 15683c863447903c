import struct

import numpy as np
import pytest

from app.weights.checkpoint import TensorSlot
from app.weights.formats import gguf
from tests.golden.checkpoints.values import PERCEPTRON, SMALL, read
from tests.weights.formats.reading import refusal, slots, tensors

FLOATS = np.arange(4, dtype=np.float32).tobytes()


def string(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(name: bytes = b"x", extents: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def file(
    *parts: bytes, tensors: int = 1, pairs: int = 0, version: int = 3, data: bytes = FLOATS, alignment: int = 32
) -> bytes:
    start = b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + b"".join(parts)
    return start + bytes(-len(start) % alignment) + data


def test_a_network_is_read_where_it_lies() -> None:
    found = tensors(read("perceptron.gguf"))
    assert found.keys() == PERCEPTRON.keys()
    for name, value in PERCEPTRON.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


def test_pairs_are_skipped_and_a_quantised_tensor_is_kept_as_bytes() -> None:
    raw = read("small.gguf")
    found = {slot.name: slot for slot in slots(raw)}
    quantised = found.pop("quantised")
    assert (quantised.dtype, quantised.shape, quantised.nbytes) == ("Q8_0", (2, 64), 2 * 2 * 34)
    assert all(slot.offset % 64 == 0 for slot in found.values())
    for name, slot in found.items():
        np.testing.assert_array_equal(
            np.frombuffer(raw[slot.offset : slot.end], SMALL[name].dtype), SMALL[name].ravel()
        )


def test_what_is_written_here_is_read() -> None:
    aligned = pair(b"general.alignment", 4, struct.pack("<I", 8))
    assert slots(file(info())) == [TensorSlot("x", "F32", (4,), 64, 16)]
    assert slots(file(aligned, info(), pairs=1, alignment=8))[0].offset == 96
    assert slots(file(info(), version=2))[0].name == "x"
    assert slots(file(tensors=0, data=b"")) == []


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"GGUF", "truncated_file"),
        (file(info(), version=1), "bad_header"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "bad_header"),  # big endian
        (file(tensors=2**40), "too_many_tensors"),
        (file(pairs=2**40), "too_many_tensors"),
        (file(info(), data=FLOATS[:15]), "truncated_file"),
        (file(info(offset=60 * 10**9)), "truncated_file"),
        (file(info(offset=2**64 - 1)), "truncated_file"),
        (file(info(extents=(15 * 10**9,))), "truncated_file"),
        (file(info(extents=(2**60, 2**60))), "bad_shape"),
        (file(info(extents=(1,) * 17)), "bad_shape"),
        (file(info(extents=(33,), kind=8)), "bad_shape"),
        (file(info(kind=4)), "unsupported_dtype"),  # which ggml took back
        (file(info(kind=2**32 - 1)), "unsupported_dtype"),
        (file(info(), info(), tensors=2), "bad_tensor_name"),
        (file(info(), info(b"y", offset=8), tensors=2, data=FLOATS * 2), "bad_offsets"),
        (file(info(b"../x")), "bad_tensor_name"),
        (file(info(b"")), "bad_tensor_name"),
        (file(info(), tensors=9, data=b""), "truncated_file"),
        (file(struct.pack("<Q", 60 * 10**9), pairs=1), "header_too_large"),
        (file(pair(b"k", 8, struct.pack("<Q", 2**63)), pairs=1), "header_too_large"),
        (file(pair(b"k", 9, struct.pack("<IQ", 12, 2**61)), pairs=1), "header_too_large"),
        (file(pair(b"k", 9, struct.pack("<IQ", 8, 2**61)), pairs=1, data=b""), "truncated_file"),
        (file(pair(b"k", 9, struct.pack("<IQ", 9, 1)), pairs=1, data=struct.pack("<IQ", 9, 1) * 500), "bad_header"),
        (file(pair(b"k", 13, b""), pairs=1), "bad_header"),
        (file(pair(b"general.alignment", 4, struct.pack("<I", 0)), info(), pairs=1), "bad_header"),
        (file(pair(b"general.alignment", 4, struct.pack("<I", 48)), info(), pairs=1), "bad_header"),
    ],
)
def test_a_damaged_or_forged_file_has_its_code(raw: bytes, code: str) -> None:
    assert refusal(raw).code == code


def test_only_so_much_is_read_before_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_HEADER_BYTES", 100)
    assert refusal(read("small.gguf")).code == "header_too_large"
