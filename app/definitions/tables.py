"""Definitions."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, now


class Definition(Base):
    """An immutable weightless ONNX graph; `digest` is both its identity and its blob."""

    __tablename__ = "definitions"
    __table_args__ = (UniqueConstraint("model_id", "version"), UniqueConstraint("model_id", "digest"))

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"))
    source: Mapped[dict[str, Any]]
    inputs: Mapped[list[Any]]
    outputs: Mapped[list[Any]]
    parameter_count: Mapped[int]
    parameters: Mapped[list[Any]] = mapped_column(deferred=True)
    rules: Mapped[list[Any]] = mapped_column(deferred=True)
    weights: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
