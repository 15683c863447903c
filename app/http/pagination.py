"""Keyset pagination: a page starts after a key, so rows that are added meanwhile neither repeat nor hide others."""

import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.errors import FieldError, Invalid
from app.http.request_body import text_fault

T = TypeVar("T")
K = TypeVar("K", str, int)
MAX_LIMIT = 200
LARGEST_KEY = 2**63 - 1  # the largest value of an integer column in both databases


class Listing(BaseModel, Generic[T]):
    """One page; pass `next_cursor` as `after` for the next one."""

    data: list[T]
    has_more: bool
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which page a client asks for."""

    limit: int
    after: str | None


@dataclass(frozen=True, slots=True)
class Rows(Generic[T]):
    """One page of rows; a response model is made from it with `from_attributes`."""

    data: list[T]
    has_more: bool
    next_cursor: str | None


async def _page_query(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Rows per page.")] = 50,
    after: Annotated[str | None, Query(description="The `next_cursor` of the page before.")] = None,
) -> PageQuery:
    return PageQuery(limit, after)


PageDep = Annotated[PageQuery, Depends(_page_query)]


def list_rows(
    session: Session,
    statement: Select[T],
    key: InstrumentedAttribute[Any],
    page: PageQuery,
    *,
    newest_first: bool = True,
) -> Rows[T]:
    """Run a SELECT for one page; `key` is a unique column of the selected table and should have an index.

    Raises Invalid "bad_cursor".
    """
    if page.after is not None:
        position = decode_cursor(page.after, key.type.python_type)
        statement = statement.where(key < position if newest_first else key > position)
    ordered = statement.order_by(key.desc() if newest_first else key.asc()).limit(page.limit + 1)
    rows = list(session.scalars(ordered))
    return _page(rows, page.limit, lambda row: getattr(row, key.key))


def list_items(items: Sequence[T], key: Callable[[T], str], page: PageQuery) -> Rows[T]:
    """Return one page of a list that is sorted by `key`, ascending; raises Invalid "bad_cursor"."""
    start = 0 if page.after is None else bisect_right(items, decode_cursor(page.after, str), key=key)
    return _page(list(items[start : start + page.limit + 1]), page.limit, key)


def _page(rows: list[T], limit: int, key: Callable[[T], Any]) -> Rows[T]:
    has_more = len(rows) > limit
    data = rows[:limit]
    return Rows(data, has_more, encode_cursor(key(data[-1])) if has_more else None)


def encode_cursor(key: str | int) -> str:
    """Return the cursor of the page that starts after a key."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, key_type: type[K]) -> K:
    """Return the key after which a cursor's page starts.

    Raises Invalid "bad_cursor" if no list with keys of this type can have given the cursor.
    """
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise _bad_cursor() from error
    if type(key) is not key_type or not _is_comparable(key):
        raise _bad_cursor()
    return key


def _is_comparable(key: object) -> bool:
    """Return whether both databases can compare a column with this key."""
    return text_fault(key) is None if isinstance(key, str) else isinstance(key, int) and abs(key) <= LARGEST_KEY


def _bad_cursor() -> Invalid:
    return Invalid(
        "`after` is not a cursor of this list. Pass the `next_cursor` of an earlier page unchanged, or leave it out.",
        code="bad_cursor",
        errors=[FieldError("/query/after", "not a cursor")],
    )
