"""The Range header of RFC 9110, section 14, for one range of bytes."""

import re
from dataclasses import dataclass

from app.errors import RangeNotSatisfiable

RANGE = re.compile(r"bytes=\s*(?:([0-9]{1,19})-([0-9]{1,19})?|-([0-9]{1,19}))\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` up to, but not including, `stop` of `size` bytes."""

    start: int
    stop: int
    size: int

    @property
    def content_range(self) -> str:
        """The value of a Content-Range header."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def parse_range(header: str, size: int) -> ByteRange | None:
    """Return the part of `size` bytes that a Range header asks for.

    None means that the header must be ignored and all bytes sent. The RFC allows that for several ranges, and demands
    it for other units and for malformed values.

    Raises:
        RangeNotSatisfiable: no byte lies in the range.
    """
    match = RANGE.fullmatch(header)
    if match is None:
        return None
    first, last, suffix = match.groups()
    start = int(first) if first is not None else max(0, size - int(suffix))
    stop = min(size, int(last) + 1) if last is not None else size
    if last is not None and int(last) < start:
        return None
    if start >= stop:
        raise RangeNotSatisfiable(f"There are {size} bytes; ask for a range that begins below {size}.")
    return ByteRange(start, stop, size)
