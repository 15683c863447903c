"""Where the files of a zip archive lie in it (PKWARE APPNOTE, 4.3 and 4.5)."""

import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Final

from app.weights.checkpoint import MAX_TENSORS, CheckpointError, Read
from app.weights.format_parts.seekable import RangeStream

MAX_MEMBERS: Final = 2 * MAX_TENSORS
MAX_CONTENT_BYTES: Final = 64 * 1024 * 1024  # of a file that is read whole
LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
LOCAL_MAGIC: Final = b"PK\x03\x04"
ENCRYPTED: Final = 1  # the flag


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive. `offset` counts bytes from the start of the archive to the first of its data."""

    name: str
    offset: int
    nbytes: int


class ZipArchive:
    """The files of an archive whose bytes nobody vouches for. They are used in place, so none may be compressed."""

    def __init__(self, read: Read, size: int) -> None:
        """Read the directory; raises CheckpointError if it cannot be read."""
        self._read = read
        self._size = size
        try:
            with zipfile.ZipFile(RangeStream(read, size)) as archive:
                infos = archive.infolist()
        except CheckpointError:
            raise
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error) as error:
            raise CheckpointError(
                "truncated_file",
                f"The directory at the end of the zip archive cannot be read ({error!s:.200}). Upload the whole file.",
            ) from error
        if infos and min(info.header_offset for info in infos) > 0:
            raise CheckpointError(
                "bad_header",
                "The file has several archives one behind the other, as torch.distributed.checkpoint writes them "
                "(.distcp). Convert its folder with python -m torch.distributed.checkpoint.format_utils dcp_to_torch.",
            )
        if len(infos) > MAX_MEMBERS:
            raise CheckpointError("too_many_tensors", f"The archive has more than {MAX_MEMBERS} files. Split it.")
        self._members = {info.filename: info for info in infos}
        if len(self._members) < len(infos):
            raise CheckpointError("bad_header", "The archive has two files of one name. Write it again.")

    @property
    def names(self) -> list[str]:
        """The names of all files, in the order of the directory."""
        return list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def content(self, name: str) -> bytes:
        """Return a small file whole, held to its checksum; raises CheckpointError."""
        member = self.member(name)
        if member.nbytes > MAX_CONTENT_BYTES:
            raise CheckpointError(
                "header_too_large",
                f"{name} has {member.nbytes} bytes; at most {MAX_CONTENT_BYTES} are read. Split the checkpoint up.",
            )
        data = self._read(member.offset, member.nbytes)
        if zlib.crc32(data) != self._members[name].CRC:
            raise CheckpointError("bad_header", f"{name!r:.200} does not have its checksum. Upload the file again.")
        return data

    def member(self, name: str) -> Member:
        """Return where the data of a file lie; raises CheckpointError if it is compressed, encrypted or cut off."""
        info = self._members[name]
        shown = f"{name!r:.200}"
        if info.flag_bits & ENCRYPTED:
            raise CheckpointError("compressed", f"{shown} is encrypted. Write the archive without a password.")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise CheckpointError(
                "compressed",
                f"{shown} is compressed, and tensors are used where they lie in the file. Write the archive without "
                "compression: with torch.save, or with numpy.savez instead of savez_compressed.",
            )
        if not 0 <= info.header_offset <= self._size - LOCAL_HEADER.size:
            raise _misplaced(shown)
        header = self._read(info.header_offset, LOCAL_HEADER.size)
        if not header.startswith(LOCAL_MAGIC):
            raise _misplaced(shown)
        _, name_length, extra_length = LOCAL_HEADER.unpack(header)
        start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if start + info.file_size > self._size:
            raise CheckpointError("truncated_file", f"{shown} goes on behind the end. Upload the whole file.")
        return Member(name, start, info.file_size)


def first_name(start: bytes) -> str | None:
    """Return the name of the first file of an archive that starts with these bytes; None if it is no archive."""
    if not start.startswith(LOCAL_MAGIC) or len(start) < LOCAL_HEADER.size:
        return None
    _, name_length, _ = LOCAL_HEADER.unpack_from(start)
    return start[LOCAL_HEADER.size : LOCAL_HEADER.size + name_length].decode("utf-8", "replace")


def _misplaced(shown: str) -> CheckpointError:
    return CheckpointError("bad_offsets", f"{shown} is not where the directory says. Upload the whole file.")
