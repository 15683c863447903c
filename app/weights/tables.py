"""Weight versions."""

from datetime import datetime
from json import JSONDecoder
from typing import Any, Final

from sqlalchemy import ForeignKey, Integer, Text, UniqueConstraint, cast, func
from sqlalchemy.orm import Mapped, column_property, mapped_column

from app.database import Base, now
from app.weights.checkpoint import MAX_NAME_LENGTH

MAX_NON_FINITE: Final = 100  # tensors that clients are told of
ROW_CHARACTERS: Final = 6 * MAX_NAME_LENGTH + 64  # a character may be written as \uXXXX; and two numbers
FIRST_CHARACTERS: Final = MAX_NON_FINITE * ROW_CHARACTERS
DECODER: Final = JSONDecoder()


class WeightVersion(Base):
    """An immutable set of named tensors; `digest` covers names, dtypes, shapes and values.

    `non_finite` is [name, NaN, infinities] of each tensor that has any. It is None if that was not counted, as in
    versions of earlier releases. It may be as long as the manifest, so reads take its length and its beginning instead.
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
    non_finite: Mapped[list[Any] | None] = mapped_column(deferred=True)
    created_at: Mapped[datetime] = mapped_column(default=now)

    non_finite_count: Mapped[int | None] = column_property(func.json_array_length(non_finite, type_=Integer))
    non_finite_beginning: Mapped[str | None] = column_property(
        func.substr(cast(non_finite, Text), 1, FIRST_CHARACTERS, type_=Text)
    )

    @property
    def first_non_finite(self) -> list[Any] | None:
        """The first MAX_NON_FINITE rows of `non_finite`."""
        text = self.non_finite_beginning
        if text is None:
            return None
        rows: list[Any] = []
        start = text.find("[", 1)
        while start > 0 and len(rows) < MAX_NON_FINITE:
            row, end = DECODER.raw_decode(text, start)
            rows.append(row)
            start = text.find("[", end)
        return rows


class CheckpointFile(Base):
    """The tensors of one uploaded file, hashed once however many versions use it."""

    __tablename__ = "checkpoint_files"

    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest", ondelete="CASCADE"), primary_key=True)
    tensors: Mapped[list[Any]]
    non_finite: Mapped[list[Any] | None]
