import io
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.lib import format as npy

from app.weights.formats.npz import recognises
from tests.golden.checkpoints.values import SMALL
from tests.weights.formats.reading import archive, refusal, slots, tensors

FOUR = np.arange(4, dtype=np.float32)


def npz(**arrays: Any) -> bytes:  # noqa: ANN401 - arrays of any dtype
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def array(header: str, data: bytes = FOUR.tobytes(), version: bytes = b"\x01\x00") -> bytes:
    """Return an archive of one array with this header."""
    layout = "<H" if version == b"\x01\x00" else "<I"
    text = header.encode()
    return archive({"x.npy": npy.MAGIC_PREFIX + version + struct.pack(layout, len(text)) + text + data})


def described(descr: str = "<f4", shape: str = "(4,)", order: str = "False") -> str:
    return (
        f"{{'descr': {descr if descr.startswith('[') else repr(descr)}, 'fortran_order': {order}, 'shape': {shape}}}\n"
    )


def test_arrays_are_read_where_they_lie() -> None:
    raw = npz(**SMALL, complex=np.ones(2, np.complex64), column=np.asfortranarray(FOUR.reshape(4, 1)))
    found = {slot.name: slot for slot in slots(raw)}
    assert (found.pop("complex").dtype, found.pop("column").shape) == ("C64", (4, 1))
    assert found.keys() == SMALL.keys()
    for name, value in tensors(npz(**SMALL)).items():
        np.testing.assert_array_equal(value, SMALL[name], strict=True)
    assert any(slot.offset % 4 for slot in found.values())  # so these tests have what is not aligned


@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00", b"\x03\x00"])
def test_every_version_of_the_header_is_read(version: bytes) -> None:
    np.testing.assert_array_equal(tensors(array(described(), version=version))["x"], FOUR)


@pytest.mark.filterwarnings("ignore:Reading")
def test_python_2s_long_integers_in_a_shape_are_read() -> None:
    assert slots(array(described(shape="(4L,)")))[0].shape == (4,)


@pytest.mark.parametrize(
    ("raw", "code", "words"),
    [
        (npz(x=np.array([{}], object)), "forbidden_pickle", "array of numbers"),
        (npz(x=np.arange(3, dtype=">f4")), "unsupported_dtype", 'astype("<f4")'),
        (npz(x=np.array(["text"])), "unsupported_dtype", "Convert it"),
        (npz(x=np.zeros(2, [("a", "<f4"), ("b", "<i4")])), "unsupported_dtype", "each field"),
        (npz(x=np.ones(2, ml_dtypes.bfloat16)), "unsupported_dtype", ".astype(numpy.float32)"),
        (npz(x=np.zeros(2, "M8[s]")), "unsupported_dtype", "Convert it"),
        (npz(x=np.zeros(2, np.longdouble)), "unsupported_dtype", "Convert it"),
        (npz(x=np.asfortranarray(FOUR.reshape(2, 2))), "not_contiguous", "ascontiguousarray"),
        (npz(x=np.zeros((1,) * 20)), "bad_shape", "16"),
        (array(described("|O")), "forbidden_pickle", "array of numbers"),
        (array(described(shape="(5,)")), "bad_offsets", "20 bytes"),
        (array(described(shape="(3,)")), "bad_offsets", "12 bytes"),
        (array(described(shape="(15000000000,)")), "bad_offsets", "60000000000 bytes"),
        (array(described(shape="(-4,)")), "bad_shape", "integers"),
        (array(described(shape="(True, 4)")), "bad_shape", "integers"),
        (array(described(shape=f"({'9' * 30},)")), "bad_shape", "integers"),
        (array(described(shape="'4'")), "bad_header", "Save it again"),
        (array("__import__('os').system('true')"), "bad_header", "Save it again"),
        (array("(" * 5000), "bad_header", "Save it again"),
        (array("{" * 60_000), "bad_header", "Save it again"),
        (array(described(), version=b"\x09\x00"), "bad_header", "Save it again"),
        (array("{}"), "bad_header", "Save it again"),
        (archive({"x.npy": npy.MAGIC_PREFIX + b"\x02\x00" + b"\xff" * 4}), "bad_header", "Save it again"),
        (archive({"x.npy": b""}), "bad_header", "Save it again"),
        (archive({"x.npy": b"no array at all"}), "bad_header", "Save it again"),
        (archive({"x.npy": b"", "readme.txt": b"hello"}), "bad_header", "Save it again"),
        (npz(x=FOUR)[:-10], "truncated_file", "whole file"),
        (npz(x=FOUR, y=FOUR).replace(b"y.npy", b"x.npy"), "bad_header", "two files of one name"),
    ],
)
def test_what_cannot_be_used_in_place_is_refused_with_the_remedy(raw: bytes, code: str, words: str) -> None:
    error = refusal(raw)
    assert error.code == code
    assert words in error.detail


def test_a_file_that_is_no_array_is_named() -> None:
    buffer = io.BytesIO(npz(x=FOUR))
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("readme.txt", "hello")
    error = refusal(buffer.getvalue())
    assert error.code == "bad_header"
    assert "readme.txt" in error.detail


def test_a_compressed_archive_is_refused_with_the_remedy() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.zeros(1000))
    error = refusal(buffer.getvalue())
    assert error.code == "compressed"
    assert "numpy.savez instead" in error.detail


def test_names_are_those_of_the_arrays() -> None:
    assert tensors(npz(**{"encoder/layer.0/w": FOUR, "arr.npy": FOUR})).keys() == {"encoder/layer.0/w", "arr.npy"}
    assert refusal(npz(**{"../x": FOUR})).code == "bad_tensor_name"


@pytest.mark.parametrize(
    ("start", "is_ours"),
    [
        (npz(x=FOUR)[:512], True),
        (npz(x=FOUR)[:36], True),
        (npz(x=FOUR)[:20], False),
        (archive({"readme.txt": b""}), False),
        (b"\x93NUMPY\x01\x00", False),
    ],
    ids=["whole", "cut off", "cut off before the name", "another archive", "an array"],
)
def test_recognises_its_own_files_also_damaged_ones(start: bytes, is_ours: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert recognises(start) is is_ours
