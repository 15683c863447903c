"""Recording artifacts and what needs them, and removing those that nothing needs."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy import ColumnElement, delete, exists, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.artifacts.damage import UNDAMAGED, note_whole
from app.artifacts.digest import file_digest
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import Blob, BlobUse
from app.database import Database, insert_into, now
from app.errors import FieldError, Invalid, Unavailable

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


def release(session: Session, owner: str) -> None:
    """Release all blobs that `owner` keeps; those that nothing else keeps are collected after another grace period."""
    used = select(BlobUse.digest).where(BlobUse.owner == owner)
    session.execute(
        update(Blob).where(Blob.digest.in_(used)).values(seen_at=now()).execution_options(synchronize_session=False)
    )
    session.execute(delete(BlobUse).where(BlobUse.owner == owner))


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
            session.execute(delete(Blob).where(Blob.digest == digest, ~_used()))
        raise Unavailable("The blob was removed while it was being uploaded. Send it again.", code="blob_collected")


def collect_orphans(database: Database, store: ArtifactStore, *, older_than_s: float, limit: int = 100) -> int:
    """Remove up to `limit` blobs that nothing keeps and nobody asked for in `older_than_s` seconds; return how many.

    Why nothing is lost that somebody still needs:

    * `require`, `keep` and an upload of known bytes set `seen_at` and commit. The DELETE checks age and uses in its
      own statement. So it sees their change, or on PostgreSQL waits for their row lock and then checks again. If the
      DELETE comes first, they find no row: `require` answers blob_not_found, and an upload sends its bytes.
    * An upload puts the file first and writes the row second, so this may find the file of an upload that has no row
      yet. Therefore this removes the file last, by `delete_stale`, which spares a file that was put within the grace.
      A put renews the file's age even if the bytes were there, and the local store lets no put and deletion of one
      artifact overlap. So the row that the upload then writes has its file.
    * `put_file` writes the row first and puts the file second. Its row is spared until the file must have been used,
      and for the grace after that.
    * An object store cannot compare and delete in one step. If a put completes in the milliseconds between the two,
      `record_upload` finds the file missing and asks the client to send it again.
    * If this is killed between row and file, it leaves a file without a row. That costs space and does no harm. The
      next upload of the same bytes takes the file over.
    """
    cutoff = now() - timedelta(seconds=older_than_s)
    orphaned = (Blob.seen_at < cutoff, ~_used())
    with database.reading() as session:
        digests = session.scalars(select(Blob.digest).where(*orphaned).order_by(Blob.seen_at).limit(limit)).all()
    collected = 0
    for digest in digests:
        if _delete_row(database, digest, orphaned):
            store.delete_stale(digest, older_than_s=older_than_s)
            collected += 1
    return collected


def _delete_row(database: Database, digest: str, orphaned: tuple[ColumnElement[bool], ...]) -> bool:
    try:
        with database.transaction() as session:
            statement = delete(Blob).where(Blob.digest == digest, *orphaned).returning(Blob.digest)
            return session.scalar(statement) is not None
    except IntegrityError:
        # A row of another table names the blob without keeping it, which is a fault of its slice. The bytes stay.
        log.exception("a blob without uses is still referenced", digest=digest)
        return False


def _used() -> ColumnElement[bool]:
    return exists().where(BlobUse.digest == Blob.digest)


def _by_pointer(digests: str | Sequence[str] | Mapping[str, str], pointer: str) -> dict[str, str]:
    if isinstance(digests, str):
        return {pointer: digests}
    if isinstance(digests, Mapping):
        return {f"{pointer}{below}": digest for below, digest in digests.items()}
    return _numbered(pointer, digests)


def _numbered(pointer: str, digests: Sequence[str]) -> dict[str, str]:
    return {f"{pointer}/{index}": digest for index, digest in enumerate(digests)}
