import pickle
import struct

import numpy as np
import pytest

from app.weights.formats.pytorch_legacy import MAGIC, recognises
from tests.golden.checkpoints.values import PERCEPTRON, SMALL, read
from tests.weights.formats.reading import number, program, refusal, slots, state, storage, tensor, tensors, text

FLOATS = bytes(range(16))
MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def legacy(
    value: bytes, *keys: str, stored: bytes = struct.pack("<q", 4) + FLOATS, version: int = 1001, **machine: object
) -> bytes:
    """Return a file as torch.save wrote it before 1.6, with this pickle as the checkpoint."""
    parts = (MAGIC, program(number(version)), pickle.dumps(MACHINE | machine, 2), value, pickle.dumps(list(keys), 2))
    return b"".join(parts) + stored


@pytest.mark.parametrize("file", ["perceptron_legacy.pt", "training_legacy.pt"])
def test_a_state_dict_is_read_where_it_lies(file: str) -> None:
    found = tensors(read(file))
    assert found.keys() == PERCEPTRON.keys()
    for one, value in PERCEPTRON.items():
        np.testing.assert_array_equal(found[one], value, strict=True)
    assert any(slot.offset % 4 for slot in slots(read(file)))  # so this file has what is not aligned


def test_every_dtype_is_read() -> None:
    found = tensors(read("small_legacy.pt"))
    for one, value in SMALL.items():
        np.testing.assert_array_equal(found[one], value, strict=True)
    assert (str(found["bf16"].dtype), found["bf16"].tolist()) == ("bfloat16", [1, -2])


def test_tied_tensors_have_the_same_bytes() -> None:
    assert len({(slot.offset, slot.nbytes) for slot in slots(read("tied_legacy.pt"))}) == 1


def test_what_is_written_here_is_read() -> None:
    raw = legacy(state(x=tensor()), "0")
    np.testing.assert_array_equal(tensors(raw)["x"], np.frombuffer(FLOATS, np.float32))


PART = b"(" + text("0") + number(0) + number(4) + b"t"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (legacy(state(x=tensor()), "0", version=1000), "bad_header"),
        (legacy(state(x=tensor()), "0", little_endian=False), "bad_header"),
        (MAGIC + program(number(1001)) + program(b"]") + state(x=tensor()), "bad_header"),
        (MAGIC + program(number(1001)) + pickle.dumps(MACHINE, 2) + state(x=tensor()) + program(b"}"), "bad_header"),
        (legacy(state(x=tensor())), "truncated_file"),  # no storages
        (legacy(state(x=tensor()), "1"), "truncated_file"),  # another storage
        (legacy(state(x=tensor()), "0", stored=b""), "truncated_file"),
        (legacy(state(x=tensor()), "0", stored=struct.pack("<q", 4) + FLOATS[:15]), "truncated_file"),
        (legacy(state(x=tensor()), "0", stored=struct.pack("<q", 5) + FLOATS), "truncated_file"),
        (legacy(state(x=tensor()), "0", stored=struct.pack("<q", -4) + FLOATS), "truncated_file"),
        (legacy(state(x=tensor(storage(elements=2**48))), "0"), "truncated_file"),
        (legacy(state(x=tensor(storage(kind="QInt8Storage"))), "0"), "truncated_file"),
        (legacy(state(x=tensor(storage().removesuffix(b"tQ") + PART + b"tQ")), "0"), "bad_header"),  # of PyTorch 0.3
        (legacy(state(x=tensor(offset=1)), "0"), "bad_offsets"),
        (MAGIC, "truncated_file"),
        (MAGIC + b"\x80\x02\x8d" + struct.pack("<Q", 60 * 10**9) + b"x", "header_too_large"),
    ],
)
def test_a_damaged_or_forged_file_has_its_code(raw: bytes, code: str) -> None:
    assert refusal(raw).code == code


@pytest.mark.parametrize(
    ("start", "is_ours"),
    [(read("small_legacy.pt"), True), (MAGIC, True), (MAGIC[:9], False), (pickle.dumps({}, 2), False)],
    ids=["whole", "magic", "cut off", "another pickle"],
)
def test_recognises_its_own_files_also_damaged_ones(start: bytes, is_ours: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert recognises(start) is is_ours
