"""Recording artifacts and what needs them, and removing those that nothing needs."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import ColumnElement, Row, and_, delete, exists, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.artifacts.damage import UNDAMAGED, note_whole
from app.artifacts.digest import file_digest
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import Blob, BlobUse
from app.database import Database, insert_into, now
from app.errors import FieldError, Invalid, Unavailable
from app.pace import GoOn, unhindered

BATCH = 100  # blobs whose rows one transaction of a collection removes, so that it holds the database briefly
DELETES = 8  # files that a collection removes at a time: an object store takes long for each, and many at once
log = structlog.get_logger()


def record(session: Session, digest: str, size: int, *, used_within_s: float = 0.0) -> None:
    """Record an artifact of `size` bytes that was put just now or is put next; if it is recorded, mark it as seen.

    What is put replaces what was there, so it is no longer on record as damaged.

    Its grace period begins in `used_within_s` seconds.
    """
    moment = now()
    seen = moment + timedelta(seconds=used_within_s)
    session.execute(
        insert_into(session, Blob)
        .values(digest=digest, size=size, created_at=moment, seen_at=seen, checked_at=moment)
        .on_conflict_do_update(index_elements=["digest"], set_={"seen_at": seen, "checked_at": moment, **UNDAMAGED})
    )


def put_file(
    database: Database, store: ArtifactStore, path: Path, *, digest: str | None = None, used_within_s: float
) -> tuple[str, int]:
    """Record a file, put it into the store, and return its digest and size in bytes; for `digest` see `ArtifactStore`.

    The file is recorded first, because only a recorded file is ever collected, and this process may be killed before
    anything uses the file. Whatever uses it must do so within `used_within_s` seconds, and record it again. A power
    cut in between may lose the row. That costs space only, so it is not worth a wait for the disk.
    """
    digest = digest or file_digest(path)
    size = path.stat().st_size
    with database.transaction(durable=False) as session:
        record(session, digest, size, used_within_s=used_within_s)
    return store.put_file(path, digest=digest)


def require(session: Session, digests: str | Sequence[str] | Mapping[str, str], pointer: str) -> dict[str, Blob]:
    """Return the blobs that a request names, by digest, and keep them for another grace period.

    `pointer` is the JSON Pointer of the field in the request. A fault in a list of digests is reported at the
    member's pointer, such as "/files/0". A fault in a single digest is reported at the field's own, such as "/onnx".
    A mapping has its digests by pointer, each below `pointer`.

    Raises:
        Invalid: with code "blob_not_found" and one error for each digest that is not there.
    """
    named = _by_pointer(digests, pointer)
    # The rows are locked in one order, so that two requests that name the same blobs cannot wait for each other.
    rows = session.scalars(
        select(Blob).where(Blob.digest.in_(set(named.values()))).order_by(Blob.digest).with_for_update()
    ).all()
    found = {blob.digest: blob for blob in rows}
    errors = [
        FieldError(place, f"There is no blob {digest}. PUT /v1/blobs/{digest} first.")
        for place, digest in named.items()
        if digest not in found
    ]
    if errors:
        raise Invalid(" ".join(error.detail for error in errors[:10]), code="blob_not_found", errors=errors)
    seen = now()
    for blob in rows:
        blob.seen_at = seen
    session.flush()
    return found


def keep(session: Session, digest: str, owner: str) -> None:
    """Keep a recorded blob until `owner` ("weights:12", "engine:7") releases it."""
    session.execute(update(Blob).where(Blob.digest == digest).values(seen_at=now()))
    session.execute(insert_into(session, BlobUse).values(digest=digest, owner=owner).on_conflict_do_nothing())


def release(session: Session, *owners: str) -> None:
    """Release all blobs that `owners` keep; those that nothing else keeps are collected after another grace period."""
    used = select(BlobUse.digest).where(BlobUse.owner.in_(owners))
    session.execute(
        update(Blob).where(Blob.digest.in_(used)).values(seen_at=now()).execution_options(synchronize_session=False)
    )
    session.execute(delete(BlobUse).where(BlobUse.owner.in_(owners)))


def touch(database: Database, digest: str, *, unless_seen_within_s: float = 0.0) -> bool:
    """Mark a recorded blob as seen now, and return whether there is one.

    A blob that was seen within the last `unless_seen_within_s` seconds is left alone, so that most calls that read it
    need no write.
    """
    with database.reading() as session:
        seen = session.scalar(select(Blob.seen_at).where(Blob.digest == digest))
    if seen is None:
        return False
    if now() - seen < timedelta(seconds=unless_seen_within_s):
        return True
    with database.transaction() as session:
        result = session.execute(update(Blob).where(Blob.digest == digest).values(seen_at=now()).returning(Blob.size))
        return result.first() is not None


def whole_size(database: Database, store: ArtifactStore, digest: str) -> int | None:
    """Read an artifact and return its size in bytes; None if it is missing, or its bytes have another digest.

    An artifact may be damaged while it lies in the store: by its disk, or by somebody who writes into it. One that was
    on record as damaged and is whole is so no longer.
    """
    size = store.recheck(digest)
    if size is not None:
        note_whole(database, digest)
    return size


def record_upload(database: Database, store: ArtifactStore, digest: str, size: int) -> None:
    """Record an upload that has reached the store.

    Raises:
        Unavailable: the artifact was collected after the upload had put it.
    """
    with database.transaction() as session:
        record(session, digest, size)
    if store.size(digest) is None:
        with database.transaction() as session:
            session.execute(delete(Blob).where(Blob.digest == digest, ~used()))
        raise Unavailable("The blob was removed while it was being uploaded. Send it again.", code="blob_collected")


def collect_orphans(database: Database, store: ArtifactStore, *, older_than_s: float, go_on: GoOn = unhindered) -> int:
    """Remove the blobs that nothing keeps and nobody asked for in `older_than_s` seconds; return how many.

    It asks `go_on` before each batch but the first. Any number of processes may collect at once.

    Why nothing is lost that somebody still needs:

    * `require`, `keep` and an upload of known bytes set `seen_at` and commit. The DELETE checks age and uses in its
      own statement, and on PostgreSQL it passes over a row that somebody has locked. So it sees their change. If the
      DELETE comes first, they find no row: `require` answers blob_not_found, and an upload sends its bytes.
    * An upload puts the file first and writes the row second, so this may find the file of an upload that has no row
      yet. Therefore this removes the file last, by `delete_stale`, which spares a file that was put within the grace.
      A put renews the file's age even if the bytes were there, and the local store lets no put and deletion of one
      artifact overlap. So the row that the upload then writes has its file.
    * `put_file` writes the row first and puts the file second. Its row is spared until the file must have been used,
      and for the grace after that.
    * An object store cannot compare and delete in one step. If a put completes in the milliseconds between the two,
      `record_upload` finds the file missing and asks the client to send it again.
    * If this is killed between rows and files, or the store does not answer, it leaves files without rows. They do no
      harm, and `sweep_store` removes them. The next upload of the same bytes takes such a file over.
    """
    orphaned = unneeded(older_than_s)
    delete_file = partial(store.delete_stale, older_than_s=older_than_s)
    collected = 0
    last: Row[str, datetime] | None = None
    with ThreadPoolExecutor(DELETES, thread_name_prefix="collect") as deleting:
        while rows := _next_orphans(database, orphaned, last):
            last = rows[-1]
            gone = _delete_rows(database, [row.digest for row in rows], orphaned)
            collected += sum(1 for _ in deleting.map(delete_file, gone))
            if not go_on():
                break
    return collected


def unneeded(older_than_s: float) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on a blob that nothing keeps and nobody asked for in `older_than_s` seconds."""
    return (Blob.seen_at < now() - timedelta(seconds=older_than_s), ~used())


def used() -> ColumnElement[bool]:
    """Return the condition on a blob that something keeps it."""
    return exists().where(BlobUse.digest == Blob.digest)


def _next_orphans(
    database: Database, orphaned: Iterable[ColumnElement[bool]], last: Row[str, datetime] | None
) -> Sequence[Row[str, datetime]]:
    """Return the longest unseen orphans after `last`, so that one which cannot be removed does not stop the others."""
    statement = select(Blob.digest, Blob.seen_at).where(*orphaned).order_by(Blob.seen_at, Blob.digest).limit(BATCH)
    if last is not None:
        later = or_(Blob.seen_at > last.seen_at, and_(Blob.seen_at == last.seen_at, Blob.digest > last.digest))
        statement = statement.where(Blob.seen_at >= last.seen_at, later)
    with database.reading() as session:
        return session.execute(statement).all()


def _delete_rows(
    database: Database, digests: Sequence[str], orphaned: tuple[ColumnElement[bool], ...]
) -> Sequence[str]:
    """Delete those rows that are orphaned still, and return their digests."""
    free = select(Blob.digest).where(Blob.digest.in_(digests), *orphaned).with_for_update(skip_locked=True)
    statement = (
        delete(Blob)
        .where(Blob.digest.in_(free), *orphaned)
        .returning(Blob.digest)
        .execution_options(synchronize_session=False)
    )
    try:
        with database.transaction() as session:
            return session.scalars(statement).all()
    except IntegrityError:
        if len(digests) > 1:
            return [gone for digest in digests for gone in _delete_rows(database, [digest], orphaned)]
        # A row of another table names the blob without keeping it, which is a fault of its slice. The bytes stay.
        log.exception("a blob without uses is still referenced", digest=digests[0])
        return []


def _by_pointer(digests: str | Sequence[str] | Mapping[str, str], pointer: str) -> dict[str, str]:
    if isinstance(digests, str):
        return {pointer: digests}
    if isinstance(digests, Mapping):
        return {f"{pointer}{below}": digest for below, digest in digests.items()}
    return _numbered(pointer, digests)


def _numbered(pointer: str, digests: Sequence[str]) -> dict[str, str]:
    return {f"{pointer}/{index}": digest for index, digest in enumerate(digests)}
