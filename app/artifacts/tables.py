"""Artifacts, and what still needs them."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, now


class Blob(Base):
    """Bytes in the store, named by `digest` ("sha256:<64 hex>"). `seen_at` says when a client last asked for them.

    A job that makes a blob writes the row before it puts the bytes, so the bytes may not be there yet, or never come.
    It sets `seen_at` to a time in the future, by which it must have used the blob.

    `checked_at` says when its bytes were last put or read by the scrubber, and `checking_until` that a scrubber reads
    them now. If they were found `damage` "changed" or "missing", `damaged_at` says when, and `found_by` which reader.
    """

    __tablename__ = "blobs"

    digest: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=now)
    seen_at: Mapped[datetime] = mapped_column(default=now, index=True)
    checked_at: Mapped[datetime | None] = mapped_column(default=now, index=True)
    checking_until: Mapped[datetime | None]
    damage: Mapped[str | None]
    damaged_at: Mapped[datetime | None] = mapped_column(index=True)
    found_by: Mapped[str | None]


class BlobUse(Base):
    """One reason to keep a blob: its `owner`, for example "weights:12" or "engine:7"."""

    __tablename__ = "blob_uses"
    __table_args__ = (Index(None, "owner"),)

    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), primary_key=True)
    owner: Mapped[str] = mapped_column(primary_key=True)


class StoreSweep(Base):
    """How far the sweep of the store is. There is one row, made by the first sweep.

    `owner` is the name of this service, which the store has as well. `due_at` says when the sweep goes on: it lies
    ahead while a worker sweeps, so that no other one does. `ended_at` says when one last came to its end.
    `files_removed` and `uploads_ended` are of all sweeps so far.
    """

    __tablename__ = "store_sweeps"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    due_at: Mapped[datetime]
    last: Mapped[str | None]  # the digest after which it goes on; null: it begins anew
    ended_at: Mapped[datetime | None]
    files_removed: Mapped[int] = mapped_column(default=0, server_default="0")
    uploads_ended: Mapped[int] = mapped_column(default=0, server_default="0")
