"""Definitions."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, now


class Definition(Base):
    """An immutable weightless ONNX graph; `digest` is both its identity and its blob.

    `constants` is what `constants.to_json` returned; a definition of an earlier release has none.
    """

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
    constants: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=now)

    @property
    def constant_count(self) -> int | None:
        """How many floating-point tensors stayed in the graph."""
        return None if self.constants is None else self.constants["count"]

    @property
    def constant_bytes(self) -> int | None:
        """The bytes of these."""
        return None if self.constants is None else self.constants["bytes"]


class CompilerCrash(Base):
    """A version of a backend whose compiler crashed twice on a definition with these profiles and options.

    `recipe` digests definition, backend, profiles and those options that decide what is compiled. `layer` is what was
    being compiled, as far as the log told. `job_id` names the job, which retention may have removed.
    """

    __tablename__ = "compiler_crashes"

    definition_id: Mapped[int] = mapped_column(ForeignKey("definitions.id"), primary_key=True, autoincrement=False)
    recipe: Mapped[str] = mapped_column(primary_key=True)
    backend_version: Mapped[str] = mapped_column(primary_key=True)
    backend: Mapped[str]
    profiles: Mapped[list[Any]]
    options: Mapped[dict[str, Any]]
    layer: Mapped[str | None]
    detail: Mapped[str]
    job_id: Mapped[str]
    at: Mapped[datetime] = mapped_column(default=now)
