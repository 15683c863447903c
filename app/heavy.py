"""What is too much for a process that answers reads: it raises Heavy, and whoever called has the office do it.

A thread that parses or serializes 100,000 rows keeps the interpreter from all others for a third of a second at a time.
"""

from typing import Final

from sqlalchemy import Select
from sqlalchemy.orm import Session

MOST_ROWS: Final = 5_000  # tensors or parameters: their JSON is parsed within 15 ms
MOST_BYTES: Final = 1024 * 1024  # of JSON
LIGHT: Final = "most_rows"  # the key of `Session.info`


class Heavy(Exception):
    """This process must not read so much; nothing was read or written."""


def check_size(session: Session, size: Select[int], most: int | None = None) -> None:
    """Raise Heavy if this process must not read what the query gives the size of.

    That is a number of rows, of which the process may read as many as its `Database` was told; or it is a number of
    bytes of JSON, if `most` is given.
    """
    rows = session.info.get(LIGHT)
    if rows is not None and session.scalars(size).one() > (rows if most is None else most):
        raise Heavy
