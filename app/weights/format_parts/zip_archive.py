"""Where the files of a zip archive lie in it (PKWARE APPNOTE, 4.3 and 4.5)."""

import struct
import zipfile
from dataclasses import dataclass
from typing import Final

from app.weights.checkpoint import MAX_TENSORS, CheckpointError, Read
from app.weights.format_parts.seekable import open_ranges

MAX_MEMBERS: Final = 2 * MAX_TENSORS
MAX_DIRECTORY_BYTES: Final = 64 * 1024 * 1024
MAX_MEMBER_BYTES: Final = 64 * 1024 * 1024  # of a file that is read whole
LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
LOCAL_MAGIC: Final = b"PK\x03\x04"
TAIL_BYTES: Final = 65_535 + 22 + 20 + 56  # the longest end of a directory, with its 64-bit forms
END: Final = struct.Struct("<4s8xI6x")
END64: Final = struct.Struct("<4s36xQ8x")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive. `offset` counts bytes from the start of the archive to the first of its data."""

    name: str
    offset: int
    nbytes: int


class ZipArchive:
    """The files of an archive whose bytes nobody vouches for. Files that are used in place must not be compressed."""

    def __init__(self, read: Read, size: int) -> None:
        """Read the directory; raises CheckpointError if it cannot be read."""
        self._read = read
        self._size = size
        _check_directory_size(read, size)
        try:
            self._zip = zipfile.ZipFile(open_ranges(read, size))
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error) as error:
            raise CheckpointError(
                "truncated_file",
                f"The directory at the end of the zip archive cannot be read ({error}). Upload the whole file.",
            ) from error
        if len(self._zip.infolist()) > MAX_MEMBERS:
            raise CheckpointError("too_many_tensors", f"The archive has more than {MAX_MEMBERS} files. Split it.")
        self._members = {info.filename: info for info in self._zip.infolist()}
        if len(self._members) < len(self._zip.infolist()):
            raise CheckpointError("bad_header", "The archive has two files of one name. Write it again.")

    @property
    def names(self) -> list[str]:
        """The names of all files, in the order of the directory."""
        return list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def content(self, name: str) -> bytes:
        """Return a small file whole, decompressed and held to its checksum; raises CheckpointError."""
        info = self._members[name]
        if info.file_size > MAX_MEMBER_BYTES:
            raise CheckpointError("header_too_large", f"{name} has {info.file_size} bytes. Split the checkpoint.")
        try:
            with self._zip.open(info) as file:
                return file.read(MAX_MEMBER_BYTES + 1)[: info.file_size]
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            raise CheckpointError("bad_header", f"{name} cannot be read: {error}. Upload the whole file.") from error
        except Exception as error:  # zlib, bz2 and lzma have errors of their own
            raise CheckpointError("bad_header", f"{name} cannot be unpacked: {error}. Write the file again.") from error

    def member(self, name: str) -> Member:
        """Return where the data of a file lie; raises CheckpointError if it is compressed, encrypted or cut off."""
        info = self._members[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise CheckpointError(
                "compressed",
                f"{name} is compressed, and tensors are used where they lie in the file. Write the archive without "
                "compression (numpy.savez instead of savez_compressed; zip -0).",
            )
        header = self._read(info.header_offset, LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or not header.startswith(LOCAL_MAGIC):
            raise CheckpointError("bad_offsets", f"{name} is not where the directory says. Upload the whole file.")
        _, name_length, extra_length = LOCAL_HEADER.unpack(header)
        start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if start + info.file_size > self._size:
            raise CheckpointError("truncated_file", f"{name} goes on behind the end. Upload the whole file.")
        return Member(name, start, info.file_size)


def first_name(start: bytes) -> str | None:
    """Return the name of the first file of an archive that starts with these bytes; None if it is no archive."""
    if not start.startswith(LOCAL_MAGIC) or len(start) < LOCAL_HEADER.size:
        return None
    _, name_length, _ = LOCAL_HEADER.unpack_from(start)
    return start[LOCAL_HEADER.size : LOCAL_HEADER.size + name_length].decode("utf-8", "replace")


def _check_directory_size(read: Read, size: int) -> None:
    """The library reads a directory of any length at once, so its length is looked at before."""
    tail = read(max(0, size - TAIL_BYTES), min(size, TAIL_BYTES))
    lengths = [0]
    if (at := tail.rfind(b"PK\x05\x06")) >= 0 and at + END.size <= len(tail):
        length = END.unpack_from(tail, at)[1]
        lengths.append(0 if length == 2**32 - 1 else length)
    if (at := tail.rfind(b"PK\x06\x06")) >= 0 and at + END64.size <= len(tail):
        lengths.append(END64.unpack_from(tail, at)[1])
    if max(lengths) > MAX_DIRECTORY_BYTES:
        raise CheckpointError(
            "header_too_large",
            f"The archive's directory has {max(lengths)} bytes, and {MAX_DIRECTORY_BYTES} at most are read. Split it.",
        )
