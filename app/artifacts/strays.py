"""Strays: files in the store that no row names.

A process that is killed between the put of a file and its row leaves one, and so does one that is killed between the
removal of a row and of its file. They do no harm and cost space.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from app.artifacts.listing import Stored
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import Blob, StoreSweep
from app.database import Database, insert_into, now
from app.pace import GoOn, unhindered

ONLY = 1  # the id of the one row
LEASE_S = 120.0  # a sweep that has done nothing for so long was killed
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to sweep, for `LEASE_S`; `last` is how far the sweep is, None if it begins."""

    owner: str
    last: str | None


@dataclass(frozen=True, slots=True)
class Sweeps:
    """How many files without a row, and unfinished uploads, sweeps have removed; and when one last came to its end.

    `age_s` is in seconds, None if none has ended.
    """

    files: int
    uploads: int
    age_s: float | None


def sweep_store(
    database: Database, store: ArtifactStore, *, older_than_s: float, every_s: float, go_on: GoOn = unhindered
) -> int:
    """List the store, remove the strays that were put more than `older_than_s` seconds ago, and return how many.

    Uploads that began before that and were never ended go as well.

    A sweep begins `every_s` seconds after the end of the one before. One process sweeps at a time: for all others
    there is nothing to do. A sweep that was broken off goes on where it was. If the store belongs to another service,
    with another database, all its files look like strays: nothing is removed, and a warning names the remedy.

    A file is removed by `delete_stale`, for the reasons that `collect_orphans` has: whoever writes a row for it puts
    the file again before or after, which makes it younger than the grace.
    """
    turn = _take_turn(database)
    if turn is None:
        return 0
    removed = 0
    if not _is_ours(store, turn):
        _give_turn(database, None, every_s)
        return 0
    if turn.last is None and (uploads := store.clear_leftovers(older_than_s=older_than_s)):
        log.info("unfinished uploads removed", count=uploads)
        _give_turn(database, None, LEASE_S, uploads_ended=StoreSweep.uploads_ended + uploads)
    last = turn.last
    while page := store.page(last):
        strays = strays_of(database, page, older_than_s)
        gone = sum(store.delete_stale(stray.digest, older_than_s=older_than_s) for stray in strays)
        removed += gone
        last = page[-1].digest
        _give_turn(database, last, LEASE_S, files_removed=StoreSweep.files_removed + gone)
        if not go_on():
            _give_turn(database, last, 0.0)
            return removed
    _give_turn(database, None, every_s, ended_at=now())
    return removed


def sweeps_so_far(session: Session) -> Sweeps:
    """Return what sweeps have done."""
    row = session.get(StoreSweep, ONLY)
    if row is None:
        return Sweeps(0, 0, None)
    age_s = None if row.ended_at is None else (now() - row.ended_at).total_seconds()
    return Sweeps(row.files_removed, row.uploads_ended, age_s)


def call_for_sweep(database: Database) -> None:
    """Have the next sweep be due now."""
    with database.transaction() as session:
        session.execute(_due_in(0.0))


def find_strays(database: Database, store: ArtifactStore, *, older_than_s: float) -> Iterator[Stored]:
    """List the store and yield the strays that were put more than `older_than_s` seconds ago."""
    last = None
    while page := store.page(last):
        yield from strays_of(database, page, older_than_s)
        last = page[-1].digest


def strays_of(database: Database, page: Sequence[Stored], older_than_s: float) -> list[Stored]:
    """Return those files of a page that are strays older than the grace."""
    cutoff = now() - timedelta(seconds=older_than_s)
    old = {file.digest: file for file in page if file.put_at < cutoff}
    with database.reading() as session:
        known = set(session.scalars(select(Blob.digest).where(Blob.digest.in_(old))))
    return [file for digest, file in old.items() if digest not in known]


def _take_turn(database: Database) -> Turn | None:
    """Return the right to sweep; None if no sweep is due, or another process sweeps."""
    with database.reading() as session:
        due_at = session.scalar(select(StoreSweep.due_at).where(StoreSweep.id == ONLY))
    if due_at is not None and due_at > now():
        return None
    first = {"id": ONLY, "owner": uuid4().hex, "due_at": now()}
    with database.transaction() as session:
        session.execute(insert_into(session, StoreSweep).values(first).on_conflict_do_nothing())
        row = session.execute(_due_in(LEASE_S).where(StoreSweep.due_at <= now())).one_or_none()
    return None if row is None else Turn(row.owner, row.last)


def _give_turn(database: Database, last: str | None, due_in_s: float, **done: Any) -> None:  # noqa: ANN401 - columns
    with database.transaction(durable=False) as session:
        session.execute(_due_in(due_in_s).values(last=last, **done))


def _due_in(seconds: float) -> ReturningUpdate[str, str | None]:
    return (
        update(StoreSweep)
        .where(StoreSweep.id == ONLY)
        .values(due_at=now() + timedelta(seconds=seconds))
        .returning(StoreSweep.owner, StoreSweep.last)
        .execution_options(synchronize_session=False)
    )


def _is_ours(store: ArtifactStore, turn: Turn) -> bool:
    owner = store.owner(turn.owner)
    if owner == turn.owner:
        return True
    log.warning(
        "the store is not swept: it belongs to a service with another database",
        owner=owner,
        expected=turn.owner,
        remedy="Give each service a store of its own. If the database was made anew, remove the store's file 'owner'.",
    )
    return False
