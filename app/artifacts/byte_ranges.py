"""The Range header of RFC 9110, section 14, for one range of bytes."""

import re
from dataclasses import dataclass

from app.errors import RangeNotSatisfiable

RANGE = re.compile(r"bytes=\s*(?:([0-9]{1,19})-([0-9]{1,19})?|-([0-9]{1,19}))\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes `start` up to, not including, `stop` of `size`."""

    start: int
    stop: int
    size: int

    @property
    def content_range(self) -> str:
        """The value of a Content-Range header."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def parse_range(header: str, size: int) -> ByteRange | None:
    """Return the part of `size` bytes that is asked for.

    None means that the header is to be ignored and everything sent, as the RFC allows for several ranges
    and demands for other units and malformed values.

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
