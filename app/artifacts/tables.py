"""Which artifacts there are and what still needs them."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, now


class Blob(Base):
    """Bytes in the store; `digest` is "sha256:<64 hex>". `seen_at` moves whenever a client asks for it.

    That of a blob which a job is to use lies ahead; the job records it first, so it may not be there yet, or ever.
    """

    __tablename__ = "blobs"

    digest: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=now)
    seen_at: Mapped[datetime] = mapped_column(default=now, index=True)


class BlobUse(Base):
    """One reason to keep a blob: `owner` is such as "weights:12" or "engine:7"."""

    __tablename__ = "blob_uses"
    __table_args__ = (Index(None, "owner"),)

    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), primary_key=True)
    owner: Mapped[str] = mapped_column(primary_key=True)
