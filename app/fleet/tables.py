"""Workers."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, now


class ReportedWorker(Base):
    """A worker process that reported itself; it counts as alive as long as `seen_at` is recent."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    hostname: Mapped[str]
    pid: Mapped[int]
    device: Mapped[dict[str, Any]]
    backends: Mapped[dict[str, Any]]
    queues: Mapped[list[Any]]
    job_id: Mapped[str | None]
    trouble: Mapped[str | None]  # why it claims no jobs for now
    started_at: Mapped[datetime] = mapped_column(default=now)
    seen_at: Mapped[datetime] = mapped_column(default=now, index=True)
