import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.artifacts.byte_ranges import parse_range
from app.errors import RangeNotSatisfiable


@pytest.mark.parametrize(
    ("header", "start", "stop", "content_range"),
    [
        ("bytes=0-0", 0, 1, "bytes 0-0/10"),
        ("bytes=2-5", 2, 6, "bytes 2-5/10"),
        ("bytes=9-", 9, 10, "bytes 9-9/10"),
        ("bytes=4-400", 4, 10, "bytes 4-9/10"),
        ("bytes=-3", 7, 10, "bytes 7-9/10"),
        ("bytes=-400", 0, 10, "bytes 0-9/10"),
        ("Bytes= 1-2 ", 1, 3, "bytes 1-2/10"),
    ],
)
def test_gives_the_part_asked_for(header: str, start: int, stop: int, content_range: str) -> None:
    part = parse_range(header, 10)
    assert part is not None
    assert (part.start, part.stop, part.content_range) == (start, stop, content_range)


@pytest.mark.parametrize(
    "header", ["", "bytes", "bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "items=0-1", "bytes=0-1,4-5", "bytes=٣-"]
)
def test_ignores_what_it_does_not_understand(header: str) -> None:
    assert parse_range(header, 10) is None


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=11-12", 10), ("bytes=-0", 10), ("bytes=-5", 0)]
)
def test_refuses_a_range_without_a_byte(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, size)


@given(st.text() | st.from_regex(r"\Abytes=[0-9]*-[0-9]*\Z"), st.integers(0, 2**50))
def test_never_leaves_the_artifact(header: str, size: int) -> None:
    try:
        part = parse_range(header, size)
    except RangeNotSatisfiable:
        return
    assert part is None or 0 <= part.start < part.stop <= size
