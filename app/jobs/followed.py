"""What a process knows of a job that streams follow, and the look at the database that keeps it up to date."""

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import and_, or_, select

from app.database import Database
from app.jobs import events
from app.jobs.state import FINAL
from app.jobs.tables import Job, JobEvent

HISTORY = 50  # events that a stream reads at once; with more news than that a look leaves the reading to the streams
KEPT_BYTES = 64 * 1024  # of a job's last events; a stream that is further behind reads the database
KEPT_EVENTS = 64
AT_ONCE = 200  # jobs in one query


@dataclass(frozen=True, slots=True)
class Frame:
    """An event with its number, as a server-sent event."""

    seq: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look found of a job: the number of its last event, those that are new, and whether it has ended."""

    last: int
    ended: bool
    frames: Sequence[Frame] = ()


GONE = Seen(0, ended=True)


class Followed:
    """What all streams of one job share: its last events.

    `last` is the number of the newest event known, None before the first look. `ended` says that there is no later one.
    """

    def __init__(self) -> None:
        self.last: int | None = None
        self.ended = False
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._watchers: set[asyncio.Event] = set()

    @property
    def followers(self) -> int:
        """The number of streams."""
        return len(self._watchers)

    @contextmanager
    def watched(self) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever there is news."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            yield changed
        finally:
            self._watchers.discard(changed)

    def since(self, after: int) -> Sequence[Frame] | None:
        """Return the events with a number above `after`, None if the database has to be asked."""
        if self.last is None:
            return None
        if after >= self.last:
            return ()
        if not self._frames or self._frames[0].seq > after + 1:
            return None
        return [frame for frame in self._frames if frame.seq > after]

    def learn(self, seen: Seen) -> None:
        """Take over what a look found, and wake the streams if that is news."""
        if (self.last, self.ended) == (seen.last, seen.ended):
            return
        if seen.last != self.last and (not seen.frames or seen.frames[0].seq != (self.last or 0) + 1):
            self._frames.clear()
            self._bytes = 0
        self.last, self.ended = seen.last, seen.ended
        for frame in seen.frames:
            self._frames.append(frame)
            self._bytes += len(frame.text)
        while self._bytes > KEPT_BYTES or len(self._frames) > KEPT_EVENTS:
            self._bytes -= len(self._frames.popleft().text)
        self.wake()

    def wake(self) -> None:
        """Wake all streams."""
        for changed in self._watchers:
            changed.set()


def read_history(database: Database, job_id: str, after: int) -> Sequence[Frame]:
    """Return the next HISTORY events of a job with a number above `after`."""
    with database.reading() as session:
        return [_frame(row) for row in events.list(session, job_id, after, HISTORY)]


def look(database: Database, job_ids: Collection[str], known: Mapping[str, int | None]) -> dict[str, Seen]:
    """Look at jobs, and at the events above the `known` number of each; without a number no event is read.

    States are read before events, so a job that has ended adds no event afterwards.
    """
    seen: dict[str, Seen] = {}
    ids = sorted(job_ids)
    for start in range(0, len(ids), AT_ONCE):
        seen |= _look(database, ids[start : start + AT_ONCE], known)
    return seen


def _look(database: Database, job_ids: Sequence[str], known: Mapping[str, int | None]) -> dict[str, Seen]:
    with database.reading() as session:
        rows = session.execute(select(Job.id, Job.state, Job.last_event).where(Job.id.in_(job_ids))).all()
        new = {row.id: known[row.id] for row in rows if _is_little(known.get(row.id), row.last_event)}
        frames: dict[str, list[Frame]] = defaultdict(list)
        if new:
            later = [and_(JobEvent.job_id == job_id, JobEvent.seq > number) for job_id, number in new.items()]
            found = select(JobEvent).where(or_(*later)).order_by(JobEvent.job_id, JobEvent.seq)
            for event in session.scalars(found):
                frames[event.job_id].append(_frame(event))
    found_rows = {
        row.id: Seen(_last(row.last_event, frames[row.id]), row.state in FINAL, frames[row.id]) for row in rows
    }
    return {job_id: found_rows.get(job_id, GONE) for job_id in job_ids}


def _is_little(known: int | None, last: int) -> bool:
    return known is not None and known < last <= known + HISTORY


def _last(counted: int, frames: Sequence[Frame]) -> int:
    return max(counted, frames[-1].seq) if frames else counted


def _frame(event: JobEvent) -> Frame:
    data = json.dumps({"data": event.data, "at": event.at.isoformat()})
    return Frame(event.seq, f"id: {event.seq}\nevent: {event.type}\ndata: {data}\n\n".encode())
