"""Reads checkpoints for the tests of formats, and makes PyTorch's archives without PyTorch."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from app.weights.checkpoint import CheckpointError, TensorSlot
from app.weights.dtypes import view
from app.weights.recognition import read_slots

Array = np.ndarray[Any, np.dtype[Any]]


def slots(raw: bytes) -> list[TensorSlot]:
    return read_slots(lambda offset, length: raw[offset : offset + length], len(raw))


def tensors(raw: bytes) -> dict[str, Array]:
    """Return the tensors of a file, each where it lies."""
    return {slot.name: view(raw, slot.dtype, slot.shape, slot.offset) for slot in slots(raw)}


def refusal(raw: bytes) -> CheckpointError:
    with pytest.raises(CheckpointError) as error:
        slots(raw)
    return error.value


def archive(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return buffer.getvalue()


def checkpoint(program: bytes, **storages: bytes) -> bytes:
    """Return an archive as torch.save writes it, with this pickle."""
    content = {"net/data.pkl": program, "net/byteorder": b"little"}
    return archive(content | {f"net/data/{key.strip('_')}": data for key, data in storages.items()})


def name(module: str, attribute: str) -> bytes:
    """Return the instruction that looks a name up."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    """Return the instruction that pushes an integer, as pickle writes it."""
    return pickle.dumps(value, 2)[2:-1]


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(number(one) for one in values) + b"t"


def storage(key: str = "0", kind: str = "FloatStorage", elements: int = 4) -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(elements) + b"tQ"


def tensor(
    stored: bytes | None = None,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    more: bytes = b"\x89N",
) -> bytes:
    """Return what pushes a tensor."""
    what = storage() if stored is None else stored
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + what
        + number(offset)
        + sizes(*shape)
        + sizes(*strides)
        + more
    ) + b"tR"


def program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def state(**values: bytes) -> bytes:
    """Return the pickle of a dictionary of what is pushed."""
    return program(b"}(", *(text(key) + value for key, value in values.items()), b"u")
