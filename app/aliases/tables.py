"""Aliases and their history."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, now


class Alias(Base):
    """A movable name for an engine; `revision` counts its moves and is its ETag."""

    __tablename__ = "aliases"

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    engine: Mapped[int]
    revision: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(default=now)


class AliasMove(Base):
    """One step of an alias's history; `engine` is null if the step deleted the alias."""

    __tablename__ = "alias_moves"
    __table_args__ = (Index(None, "model_id", "alias", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    alias: Mapped[str]
    engine: Mapped[int | None]
    revision: Mapped[int]
    moved_at: Mapped[datetime] = mapped_column(default=now)
