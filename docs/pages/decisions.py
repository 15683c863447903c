"""The page docs/decisions/README.md: an index of the records beside it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[1] / "decisions"
PAGE: Final = FOLDER / "README.md"
RECORD: Final = re.compile(
    r"# (?P<number>\d{4})\. (?P<title>.+)\n\n"
    r"- Date: (?P<date>\d{4}-\d\d-\d\d)\n"
    r"- Status: (?P<status>.+)\n"
    r"- Governs: (?P<governs>(?:.+\n)+)"
)
HEAD: Final = """# Decisions

<!-- `make docs` writes this page from the records, and a test fails if the two differ. Do not edit it. -->

One record for each decision that others would weigh again: what was decided, why, what else was weighed, and the code
it governs. A record is not rewritten once it is accepted: a later one supersedes or narrows it, and its status says so.
Only the paths that it governs are kept up to date. The next free number is for the next record.

| | date | decision | status |
| --- | --- | --- | --- |
"""


class Malformed(Exception):
    """A record does not begin as all records do."""


@dataclass(frozen=True)
class Record:
    """One decision; `governs` are the paths of the code it governs."""

    file: str
    number: str
    title: str
    date: str
    status: str
    governs: tuple[str, ...]


def page() -> str:
    """Return the text of the page."""
    rows = (f"| [{one.number}]({one.file}) | {one.date} | {one.title} | {one.status} |" for one in records())
    return HEAD + "\n".join(rows) + "\n"


def records() -> Sequence[Record]:
    """Return every record, in the order of their numbers. Malformed names one that does not begin as all do."""
    return [_record(path) for path in sorted(FOLDER.glob("[0-9]*.md"))]


def _record(path: Path) -> Record:
    head = RECORD.match(path.read_text())
    if head is None:
        raise Malformed(f"{path.name} does not begin with its number, title, date, status and what it governs")
    governs = tuple(re.findall(r"`([^`]+)`", head["governs"]))
    return Record(path.name, head["number"], head["title"], head["date"], head["status"], governs)
