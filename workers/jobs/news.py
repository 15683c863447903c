"""What an engine host says while it works, on its way to the job's events."""

from collections import deque
from collections.abc import Sequence

from app.jobs.events import Event
from app.jobs.lease import JobProgress
from workers.channel import messages

MAX_LINES = 2000  # of one job; a compiler that writes more repeats itself
MAX_LINE_LENGTH = 2000
TAIL_LINES = 40  # of a failed job's log, kept in its error
RECENT_LINES = 2000  # in which the layer is looked for at which a compiler crashed


class News:
    """The lines and steps of one job that are not yet written, and the tail of its log."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._progress: JobProgress | None = None
        self._phase: str | None = None
        self._lines = 0
        self._recent: deque[str] = deque(maxlen=RECENT_LINES)

    def hear(self, message: messages.Progress | messages.LogLine) -> None:
        """Keep a message. A new phase and each log line become events; a step only moves the progress."""
        if isinstance(message, messages.LogLine):
            self._hear_line(message)
            return
        self._progress = JobProgress(message.phase, message.step, message.total or None)
        if message.phase != self._phase:
            self._phase = message.phase
            self._events.append(Event("phase", {"phase": message.phase}))

    @property
    def pending(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._events) or self._progress is not None

    @property
    def events(self) -> Sequence[Event]:
        """The events not yet written."""
        return tuple(self._events)

    @property
    def progress(self) -> JobProgress | None:
        """The newest progress not yet written."""
        return self._progress

    @property
    def tail(self) -> list[str]:
        """The log's last lines, whether they are written yet or not."""
        return self.recent[-TAIL_LINES:]

    @property
    def recent(self) -> list[str]:
        """The log's last lines, more of them, verbose ones among them."""
        return list(self._recent)

    def written(self) -> None:
        """Forget what has been written."""
        self._events = []
        self._progress = None

    def _hear_line(self, line: messages.LogLine) -> None:
        text = line.text[:MAX_LINE_LENGTH]
        self._recent.append(text)
        if line.level == "verbose":
            return
        self._lines += 1
        if self._lines <= MAX_LINES:
            self._add(line.level, text)
        elif self._lines == MAX_LINES + 1:
            self._add("warning", f"the log is longer than {MAX_LINES} lines; the rest is left out")

    def _add(self, level: str, text: str) -> None:
        """Append the line to the last event if that has the same level, so that many lines make few rows."""
        last = self._events[-1] if self._events else None
        if last is not None and last.type == "log" and last.data["level"] == level:
            last.data["lines"].append(text)
        else:
            self._events.append(Event("log", {"level": level, "lines": [text]}))
