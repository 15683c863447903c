"""Models."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, now


class Model(Base):
    """A named model; its counters number its definitions, weight versions, engines and sweeps."""

    __tablename__ = "models"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str] = mapped_column(default="")
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    last_definition: Mapped[int] = mapped_column(default=0)
    last_weights: Mapped[int] = mapped_column(default=0)
    last_engine: Mapped[int] = mapped_column(default=0)
    last_sweep: Mapped[int] = mapped_column(default=0, server_default="0")
    created_at: Mapped[datetime] = mapped_column(default=now)
