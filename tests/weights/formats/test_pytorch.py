import struct
import zipfile

import numpy as np
import pytest
from ml_dtypes import bfloat16, float8_e4m3fn, float8_e5m2

from app.weights.checkpoint import CheckpointError, TensorSlot
from app.weights.format_parts import torch_tensors, zip_archive
from app.weights.formats import pytorch
from tests.golden.checkpoints.values import PERCEPTRON, SMALL, read
from tests.weights.formats.reading import (
    archive,
    checkpoint,
    name,
    number,
    program,
    refusal,
    slots,
    state,
    storage,
    tensor,
    tensors,
    text,
)

FLOATS = bytes(range(16))


@pytest.mark.parametrize("file", ["perceptron.pt", "training.pt", "protocol4.pt"])
def test_a_state_dict_is_read_where_it_lies(file: str) -> None:
    found = tensors(read(file))
    assert found.keys() == PERCEPTRON.keys()
    for one, value in PERCEPTRON.items():
        np.testing.assert_array_equal(found[one], value, strict=True)


def test_every_dtype_is_read() -> None:
    found = tensors(read("small.pt"))
    for one, value in SMALL.items():
        np.testing.assert_array_equal(found[one], value, strict=True)
    for one, dtype in (("bf16", bfloat16), ("f8_e4m3", float8_e4m3fn), ("f8_e5m2", float8_e5m2)):
        np.testing.assert_array_equal(found[one], np.array([1, -2], dtype), strict=True)


def test_names_keep_what_they_do_not_share() -> None:
    found = tensors(read("ema.pt"))
    assert found.keys() == {f"{folder}.{one}" for folder in ("model", "ema") for one in PERCEPTRON}
    for one, value in PERCEPTRON.items():
        np.testing.assert_array_equal(found[f"model.{one}"], value)
        np.testing.assert_array_equal(found[f"ema.{one}"], value + 1)


def test_tied_tensors_have_the_same_bytes() -> None:
    found = {slot.name: slot for slot in slots(read("tied.pt"))}
    assert {(slot.offset, slot.nbytes) for slot in found.values()} == {(found["table"].offset, 24)}
    assert (found["head"].shape, found["flat"].shape) == ((2, 3), (6,))


def test_a_parameter_is_its_tensor_and_complex_numbers_are_kept_as_bytes() -> None:
    found = {slot.name: slot for slot in slots(read("parameter.pt"))}
    assert (found["w"].dtype, found["w"].shape) == ("F32", (2, 3))
    assert (found["alone"].dtype, found["alone"].nbytes) == ("C64", 8)


def test_a_tensor_that_is_saved_alone_is_called_so() -> None:
    assert list(tensors(read("alone.pt"))) == ["tensor"]


def test_a_part_of_a_storage_begins_where_it_does() -> None:
    raw = checkpoint(state(x=tensor(offset=1, shape=(2,))), _0=FLOATS)
    np.testing.assert_array_equal(tensors(raw)["x"], np.frombuffer(FLOATS, np.float32)[1:3])


def test_python_2s_ordered_dictionaries_are_read() -> None:
    pairs = b"](](" + text("b") + tensor() + b"e](" + text("a") + tensor(storage("1")) + b"ee"
    raw = checkpoint(program(name("collections", "OrderedDict"), b"(", pairs, b"tR"), _0=FLOATS, _1=FLOATS)
    assert tensors(raw).keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("file", "code", "words"),
    [
        ("refused_view.pt", "not_contiguous", ".contiguous()"),
        ("refused_expanded.pt", "not_contiguous", ".contiguous()"),
        ("refused_overlap.pt", "bad_offsets", "copies"),
        ("refused_conjugated.pt", "unsupported_dtype", ".resolve_conj(), .resolve_neg()"),
        ("refused_quantized.pt", "unsupported_dtype", ".dequantize()"),
        ("refused_sparse.pt", "unsupported_dtype", ".to_dense()"),
        ("refused_meta.pt", "unsupported_dtype", "without values"),
        ("refused_module.pt", "forbidden_pickle", "model.state_dict()"),
    ],
)
def test_what_is_no_set_of_plain_tensors_is_refused_with_the_remedy(file: str, code: str, words: str) -> None:
    error = refusal(read(file))
    assert error.code == code
    assert words in error.detail


def _renamed(raw: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    return raw.replace(old, new)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (checkpoint(state(x=tensor())), "truncated_file"),  # the storage is missing
        (checkpoint(state(x=tensor()), _0=FLOATS[:12]), "bad_offsets"),
        (checkpoint(state(x=tensor(offset=1)), _0=FLOATS), "bad_offsets"),
        (checkpoint(state(x=tensor(offset=2**48)), _0=FLOATS), "bad_offsets"),
        (checkpoint(state(x=tensor(shape=(2**48, 2**48), strides=(2**48, 1))), _0=FLOATS), "bad_offsets"),
        (checkpoint(state(x=tensor(shape=(2**70,))), _0=FLOATS), "bad_shape"),
        (checkpoint(state(x=tensor(shape=(-4,))), _0=FLOATS), "bad_shape"),
        (checkpoint(state(x=tensor(offset=-1)), _0=FLOATS), "bad_shape"),
        (checkpoint(state(x=tensor(shape=(2, 2))), _0=FLOATS), "bad_shape"),
        (checkpoint(state(x=tensor(shape=(1,) * 17, strides=(1,) * 17)), _0=FLOATS), "bad_shape"),
        (checkpoint(state(x=tensor(b"N")), _0=FLOATS), "bad_shape"),
        (checkpoint(state(x=tensor(storage(elements=-1))), _0=FLOATS), "bad_header"),
        (checkpoint(state(x=tensor(storage(kind="Size"))), _0=FLOATS), "bad_header"),
        (checkpoint(state(x=tensor(storage(kind="UntypedStorage"))), _0=FLOATS), "bad_shape"),
        (checkpoint(state(x=tensor(), y=tensor(storage(kind="IntStorage"))), _0=FLOATS), "bad_header"),
        (checkpoint(state(x=tensor(), y=tensor(offset=1, shape=(3,))), _0=FLOATS), "bad_offsets"),
        (checkpoint(state(x=tensor(storage("../0"))), _0=FLOATS), "truncated_file"),
        (checkpoint(program(b"}" + number(1) + b"Q"), _0=FLOATS), "bad_header"),
        (checkpoint(state(**{"a\nb": tensor()}), _0=FLOATS), "bad_tensor_name"),
        (checkpoint(state(**{"x" * 600: tensor()}), _0=FLOATS), "bad_tensor_name"),
        (archive({"net/data.pkl": state(x=tensor()), "net/byteorder": b"big", "net/data/0": FLOATS}), "bad_header"),
        (archive({"net/version": b"3\n"}), "bad_header"),
        (archive({"net/data.pkl": state(), "net/constants.pkl": program(b")")}), "forbidden_pickle"),
        (
            archive({"net/data.pkl": state(x=tensor()), "net/data/0": FLOATS}, zipfile.ZIP_DEFLATED),
            "compressed",
        ),
        (_renamed(checkpoint(state(x=tensor()), _0=FLOATS, _1=FLOATS), b"data/1", b"data/0"), "bad_header"),
        (checkpoint(state(x=tensor()), _0=FLOATS).replace(b"cpu", b"gpu", 1), "bad_header"),  # the checksum
    ],
)
def test_a_damaged_or_forged_file_has_its_code(raw: bytes, code: str) -> None:
    assert refusal(raw).code == code


def _with_flag(raw: bytes, flag: int) -> bytes:
    changed = bytearray(raw)
    at = changed.find(b"PK\x01\x02")
    while at >= 0:
        changed[at + 8] |= flag
        at = changed.find(b"PK\x01\x02", at + 1)
    return bytes(changed)


def test_several_archives_in_one_file_are_not_read_as_the_last_of_them() -> None:
    error = refusal(read("perceptron.pt") + read("alone.pt"))
    assert error.code == "bad_header"
    assert "dcp_to_torch" in error.detail


def test_an_encrypted_archive_is_called_so() -> None:
    error = refusal(_with_flag(read("perceptron.pt"), 1))
    assert error.code == "compressed"
    assert "password" in error.detail


def _directory_entry(raw: bytes, file: bytes, layout: str, offset: int, value: int) -> bytes:
    """Return the archive with a number of one file's entry in the directory changed."""
    changed = bytearray(raw)
    entry = changed.rfind(b"PK\x01\x02", 0, changed.rfind(file))
    struct.pack_into(layout, changed, entry + offset, value)
    return bytes(changed)


@pytest.mark.parametrize("nbytes", [2**32 - 2, 60_000])
def test_a_directory_that_says_more_bytes_than_there_are_is_refused(nbytes: int) -> None:
    raw = checkpoint(state(x=tensor()), _0=FLOATS)
    for offset in (20, 24):  # compressed and not
        raw = _directory_entry(raw, b"net/data/0", "<I", offset, nbytes)
    assert refusal(raw).code == "truncated_file"


@pytest.mark.parametrize("offset", [5, 2**31])
def test_a_directory_that_points_elsewhere_is_refused(offset: int) -> None:
    raw = _directory_entry(checkpoint(state(x=tensor()), _0=FLOATS), b"net/data/0", "<I", 42, offset)
    assert refusal(raw).code == "bad_offsets"


def test_a_pickle_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_archive, "MAX_CONTENT_BYTES", 10)
    assert refusal(read("perceptron.pt")).code == "header_too_large"


def test_a_directory_of_too_many_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_archive, "MAX_MEMBERS", 3)
    assert refusal(read("perceptron.pt")).code == "too_many_tensors"


def test_a_directory_of_sixty_gigabytes_is_refused_before_it_is_read() -> None:
    length = 60 * 10**9
    size = length + 200
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, length, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, size - 22 - 20 - 56, 1)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    tail = end64 + locator + end
    asked: list[int] = []

    def sparse(offset: int, count: int) -> bytes:
        asked.append(count)
        assert count < 2**20
        whole = bytes(count + len(tail))
        begin = size - len(tail) - offset  # where the tail begins in what is asked for
        return (whole[: max(0, begin)] + tail[max(0, -begin) :] if begin < count else whole)[:count]

    with pytest.raises(CheckpointError) as error:
        pytorch.read_slots(sparse, size)
    assert error.value.code == "header_too_large"
    assert "60000000000" in error.value.detail


def test_dictionaries_within_dictionaries_are_walked_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    doubled = b"}" + b"".join(
        b"q" + bytes((depth,)) + b"0}(" + text("a") + b"h" + bytes((depth,)) + text("b") + b"h" + bytes((depth,)) + b"u"
        for depth in range(60)
    )
    monkeypatch.setattr(torch_tensors, "MAX_VALUES", 1000)
    assert refusal(checkpoint(program(doubled))).code == "too_many_tensors"
    assert refusal(checkpoint(program(b"}q\x00", text("a"), b"h\x00s"))).code == "bad_header"  # in itself


def test_more_tensors_than_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_tensors, "MAX_TENSORS", 1)
    assert refusal(checkpoint(state(x=tensor(), y=tensor()), _0=FLOATS)).code == "too_many_tensors"


def test_an_optimizers_tensors_are_left_out() -> None:
    listed = b"](" + tensor() + b"e"
    numbered = b"}" + number(0) + tensor() + b"s"
    raw = checkpoint(
        state(w=tensor(), moments=listed, state=numbered, deep=b"}" + text("n") + number(1) + b"s"), _0=FLOATS
    )
    (slot,) = slots(raw)
    assert slot == TensorSlot("w", "F32", (4,), slot.offset, 16)
