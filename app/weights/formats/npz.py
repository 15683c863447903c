"""Reading numpy's archives (`numpy.savez`): a zip archive of arrays in the npy format (NEP 1)."""

import io
from typing import Final

from app.weights.checkpoint import CheckpointError, Read, TensorSlot
from app.weights.dtypes import DTYPES
from app.weights.format_parts.zip_archive import Member, ZipArchive, first_name

SUFFIX: Final = ".npy"
READERS: Final = {  # of numpy.lib.format; version 3 is version 2 with names of fields in UTF-8
    (1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0", (3, 0): "read_array_header_2_0",
}  # fmt: skip
HEADER_BYTES: Final = 16 * 1024  # far more than the header of an array of 16 dimensions takes


def recognises(start: bytes) -> bool:
    """Whether the file is a zip archive whose first file is an array."""
    return (first_name(start) or "").endswith(SUFFIX)


def read_slots(read: Read, size: int) -> list[TensorSlot]:
    """Return the arrays of an archive of `size` bytes, in the order of their bytes; only their headers are read."""
    archive = ZipArchive(read, size)
    slots = [_slot(read, archive.member(name)) for name in archive.names]
    return sorted(slots, key=lambda slot: (slot.offset, slot.nbytes, slot.name))


def _slot(read: Read, member: Member) -> TensorSlot:
    if not member.name.endswith(SUFFIX):
        raise CheckpointError("bad_header", f"{member.name!r:.200} in the archive is no array. Leave it out.")
    name = member.name.removesuffix(SUFFIX)
    start, shape, is_fortran, dtype = _header(name, read(member.offset, min(member.nbytes, HEADER_BYTES)))
    if is_fortran and sum(extent > 1 for extent in shape) > 1:
        raise CheckpointError(
            "not_contiguous",
            f"{name} is stored column by column, and tensors are used where they lie in the file. Save "
            "numpy.ascontiguousarray of it.",
        )
    return TensorSlot.checked(name, dtype, list(shape), member.offset + start, member.nbytes - start)


def _header(name: str, raw: bytes) -> tuple[int, tuple[int, ...], bool, str]:
    """Return where the elements begin behind the header, the shape, whether it is column by column, and the dtype."""
    from numpy.lib import format as npy  # noqa: PLC0415 - the API starts without numpy

    file = io.BytesIO(raw)
    try:
        shape, is_fortran, dtype = getattr(npy, READERS[npy.read_magic(file)])(file)
    except Exception as error:  # numpy raises whatever the text of the header comes to
        raise CheckpointError(
            "bad_header", f"The header of {name} cannot be read: {error!s:.200}. Save it again."
        ) from error
    if dtype.hasobject:
        raise CheckpointError(
            "forbidden_pickle",
            f"{name} holds Python objects, as a pickle, which can run any code. Save it as an array of numbers.",
        )
    if dtype.str.startswith(">"):
        raise CheckpointError(
            "unsupported_dtype", f'{name} is big endian. Save it with .astype("{"<" + dtype.str[1:]}").'
        )
    if dtype.kind == "V":
        raise CheckpointError(
            "unsupported_dtype",
            f"{name} is stored as {dtype.str!r:.40}, as numpy stores records and what is no type of its own, such as "
            "bfloat16. Save it with .astype(numpy.float32) or as safetensors, and each field of a record as an array.",
        )
    return file.tell(), shape, is_fortran, _DTYPES.get(dtype.str, dtype.str)


_DTYPES: Final = {
    {"float": "<f", "int": "<i", "uint": "<u", "bool": "|b"}[dtype.kind] + str(dtype.itemsize): name
    for name, dtype in DTYPES.items()
    if dtype.numpy not in {"bfloat16", "float8_e4m3fn", "float8_e5m2"}
} | {"|i1": "I8", "|u1": "U8", "<c8": "C64", "<c16": "C128"}
