"""All connections of one API process: how many there are, and which one goes when there is no room for another."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client import Counter as Metric

from app.connections.limits import Limits

CHECK_EVERY_S = 1.0
STALL_S = 1.0  # a connection in which nothing has moved for so long is the first to give way
log = structlog.get_logger()


class Member(Protocol):
    """A connection, as the crowd sees it."""

    address: str

    def check(self, now: float, elapsed: float) -> None:
        """End the connection if its client is too slow; `elapsed` seconds have passed since the last check."""

    def stalls(self, now: float) -> bool:
        """Return whether its client has kept the service waiting in the middle of a transfer for STALL_S."""

    def crowd_out(self) -> None:
        """End the connection, so that another one has room."""


@dataclass(slots=True)
class Address:
    """The connections of one address, those that came first first.

    `waiting` are those of which the service waits for a request or the rest of its head, and since when. `stalled` are
    those that stalled at the last check.
    """

    members: dict[Member, None] = field(default_factory=dict)
    waiting: dict[Member, float] = field(default_factory=dict)
    stalled: deque[Member] = field(default_factory=deque)


class Crowd:
    """Admits connections, and lets the one go that has kept the service waiting longest when there are too many.

    A connection that is being answered, or whose body arrives, is never let go for another one.
    """

    def __init__(self, limits: Limits, registry: CollectorRegistry) -> None:
        self.limits = limits
        self._size = 0
        self._addresses: dict[str, Address] = {}
        self._checked_at = 0.0
        self._unlogged: Counter[str] = Counter()
        self._ended = Metric(
            "enginesmith_connections_ended", "Connections ended by a limit.", ["code"], registry=registry
        )
        Gauge("enginesmith_connections", "Connections open.", registry=registry).set_function(lambda: self._size)

    def admit(self, member: Member, now: float) -> bool:
        """Take a new connection in; return False if all others are at work."""
        own = self._addresses.get(member.address, Address())
        limits = self.limits
        if limits.per_address and len(own.members) >= limits.per_address and not _let_one_go([own], now):
            return False
        if self._size >= limits.connections and not _let_one_go(self._largest_first(), now):
            return False
        own = self._addresses.setdefault(member.address, own)
        own.members[member] = None
        own.waiting[member] = now
        self._size += 1
        return True

    def leave(self, member: Member) -> None:
        """Take note that a connection ends; nothing happens if it is no member."""
        own = self._addresses.get(member.address)
        if own is None or member not in own.members:
            return
        del own.members[member]
        own.waiting.pop(member, None)
        self._size -= 1
        if not own.members:
            del self._addresses[member.address]

    def waits(self, member: Member, now: float) -> None:
        """Take note that the service waits for the connection's next request, from now on."""
        if (own := self._addresses.get(member.address)) is not None and member in own.members:
            own.waiting.pop(member, None)
            own.waiting[member] = now

    def works(self, member: Member) -> None:
        """Take note that the head of a request has arrived."""
        if (own := self._addresses.get(member.address)) is not None:
            own.waiting.pop(member, None)

    def ended(self, reason: str) -> None:
        """Count a connection that was ended by a limit."""
        self._ended.labels(reason).inc()
        self._unlogged[reason] += 1

    def check(self, now: float) -> None:
        """End the connections whose clients are too slow; call this about once a second."""
        elapsed = min(now - self._checked_at, CHECK_EVERY_S)
        self._checked_at = now
        for address in list(self._addresses.values()):
            for member in list(address.members):
                member.check(now, elapsed)
            address.stalled = deque(member for member in address.members if member.stalls(now))
        if self._unlogged:
            log.warning("connections were ended", **self._unlogged)
            self._unlogged.clear()

    def _largest_first(self) -> Iterable[Address]:
        return sorted(self._addresses.values(), key=lambda address: len(address.members), reverse=True)


def _let_one_go(addresses: Iterable[Address], now: float) -> bool:
    """End the connection that has kept the service waiting longest, of the first address that has such a one."""
    for address in addresses:
        found = _hindmost(address, now)
        if found is not None:
            found.crowd_out()
            return True
    return False


def _hindmost(address: Address, now: float) -> Member | None:
    """Return the connection that gives way; one that has just come goes last, as its request may be on its way."""
    first = next(iter(address.waiting), None)
    if first is not None and now - address.waiting[first] >= STALL_S:
        return first
    while address.stalled:
        member = address.stalled.popleft()
        if member in address.members and member.stalls(now):
            return member
    return first
