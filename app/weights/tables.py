"""Weight versions."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, now


class WeightVersion(Base):
    """An immutable set of named tensors; `digest` covers names, dtypes, shapes and values.

    `non_finite` is [name, NaN, infinities] of each tensor that has any. It is None if that was not counted, as in
    versions of earlier releases.
    """

    __tablename__ = "weight_versions"
    __table_args__ = (UniqueConstraint("model_id", "version"), UniqueConstraint("model_id", "digest"))

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    version: Mapped[int]
    digest: Mapped[str]
    tensor_count: Mapped[int]
    bytes: Mapped[int]
    base: Mapped[int | None]
    label: Mapped[str | None]
    manifest: Mapped[list[Any]] = mapped_column(deferred=True)
    non_finite: Mapped[list[Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=now)

    @property
    def non_finite_count(self) -> int | None:
        """How many tensors have NaN or infinities; None if that was not counted."""
        return None if self.non_finite is None else len(self.non_finite)


class CheckpointFile(Base):
    """The tensors of one uploaded file, hashed once however many versions use it."""

    __tablename__ = "checkpoint_files"

    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest", ondelete="CASCADE"), primary_key=True)
    tensors: Mapped[list[Any]]
    non_finite: Mapped[list[Any] | None]
