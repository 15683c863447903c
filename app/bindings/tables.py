"""Bindings as jobs and engines refer to them."""

from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base


class Binding(Base):
    """A binding report that an engine is made by, stored once however many weight versions it binds.

    `digest` is of the report's text, so that two that say the same are one row.
    """

    __tablename__ = "bindings"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    report: Mapped[dict[str, Any]] = mapped_column(deferred=True)
