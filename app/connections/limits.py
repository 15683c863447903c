"""The limits of connections that are in force."""

import resource
from dataclasses import dataclass
from typing import Self

import structlog

from app.settings import Settings

RESERVED_DESCRIPTORS = 200  # for the database, the broker, logs, parse children
DESCRIPTORS_PER_CONNECTION = 2.5  # its socket, the file that it sends or receives, and half of one at the door
LEAST_AT_THE_DOOR = 32
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may take, and how many there may be. Times are seconds, the rate is bytes a second."""

    header_bytes: int
    header_s: float
    keep_alive_s: float
    least_rate: int
    slow_s: float
    connections: int
    per_address: int  # 0: as many as there may be in all

    @property
    def at_the_door(self) -> int:
        """How many may wait to become connections."""
        return max(LEAST_AT_THE_DOOR, self.connections // 2)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits of the settings, with no more connections than this process has descriptors for."""
        room = (raise_descriptor_limit() - RESERVED_DESCRIPTORS) / DESCRIPTORS_PER_CONNECTION
        connections = max(1, min(settings.max_connections, int(room)))
        if connections < settings.max_connections:
            log.warning(
                "fewer connections than ENGINESMITH_MAX_CONNECTIONS are taken: raise the limit of open files",
                connections=connections,
            )
        return cls(
            header_bytes=settings.max_header_bytes,
            header_s=settings.header_timeout_s,
            keep_alive_s=settings.keep_alive_s,
            least_rate=settings.min_transfer_rate,
            slow_s=settings.slow_transfer_s,
            connections=connections,
            per_address=settings.max_connections_per_address,
        )


def raise_descriptor_limit() -> int:
    """Let this process open as many files as its user may allow it, and return how many that are."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
