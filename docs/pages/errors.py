"""The page docs/errors.md: every problem code, made from the code itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from docs.pages.raised import COMMAND, JOB, WAITING, raised

PAGE: Final = Path(__file__).parents[1] / "errors.md"
# Codes whose text is put together where a reader of syntax cannot follow, or that Starlette raises.
WRITTEN: Final[Mapping[tuple[str, str], str]] = {
    ("404", "not_found"): "There is nothing at «path». GET /docs lists every call.",
    ("405", "method_not_allowed"): "«path» does not take «method». GET /docs lists every call.",
    ("413", "request_entity_too_large"): "The body is larger than this call takes. Upload large content with "
    "PUT /v1/blobs/«digest» and name its digest.",
    ("503", "service_unavailable"): "The bodies of other requests take all the memory that "
    "ENGINESMITH_MAX_BUFFERED_BYTES gives to them, and this one had not arrived. Send the request again in a moment, "
    "and send it whole.",
    ("422", "blob_not_found"): "There is no blob «digest». Upload it with PUT /v1/blobs/«digest». (A body names it.)",
    ("503", "blob_damaged"): "The stored bytes of «digest» are not those that were stored. Upload the same bytes again "
    "with PUT /v1/blobs/«digest», which replaces them. A definition or an engine's plan may be made again instead. (A "
    "job fails with it as well.)",
    (JOB, "verification_failed"): "The engine's outputs are too far from those it was verified against, or not "
    "finite; `error.figures` say how far. Check the weights, or ask for another `verify`.",
    (COMMAND, "disk_unusable"): "A disk that the service writes to has too little room, or cannot be looked at; the "
    "text says which. Free space there, or lower ENGINESMITH_MIN_FREE_BYTES.",
    (COMMAND, "package_hidden"): "A package of another project is found before one of Enginesmith's; the text says "
    "which and where. Start the command in another folder, or take that one off PYTHONPATH.",
}
FILLED_IN: Final = re.compile("(«[^»]*»)*")
HEAD: Final = """# Errors

<!-- `make docs` writes this page from the code, and a test fails if the two differ. Do not edit it. -->

Every error is `application/problem+json` (RFC 9457) with `type`, `title`, `status`, `detail`, `code`, `request_id` and
`errors[{pointer, detail}]`. `code` is a stable word for programs. `detail` says when the error comes and what to do
about it. The texts below are those of the code; «…» stands for what an answer fills in. A code may
come with several texts.

"""
SECTIONS: Final = (
    ("status", "Answers", "These answer a request, with the status."),
    (
        JOB,
        "Errors of jobs",
        "A job that fails has `error: {code, detail}`. Its code may also be one of the answers above.",
    ),
    (WAITING, "What a job waits for", "A job that no worker can begin, or go on with, has `waiting: {code, detail}`."),
    (COMMAND, "Commands that cannot start", "`enginesmith …` prints the text and the code, and ends with status 1."),
)


@dataclass(frozen=True)
class Problem:
    """One code in one place: `place` is an HTTP status, "job", "command" or "waiting"."""

    place: str
    code: str
    texts: tuple[str, ...]


def page() -> str:
    """Return the text of the page."""
    found = problems()
    tables = {section: _table(rows, section) for section, *_ in SECTIONS if (rows := _rows(found, section))}
    sections = (f"## {title}\n\n{text}\n\n{tables[one]}" for one, title, text in SECTIONS if one in tables)
    return HEAD + "\n".join(sections)


def _rows(found: Sequence[Problem], section: str) -> list[Problem]:
    return [one for one in found if one.place == section or (section == "status" and one.place.isdigit())]


def problems() -> list[Problem]:
    """Return every code of app/ and workers/, sorted by code and place."""
    texts: dict[tuple[str, str], set[str]] = {}
    for code, place, text in raised():
        texts.setdefault((code, place), set()).add(text)
    for (place, code), text in WRITTEN.items():
        texts.setdefault((code, place), set()).add(text)
    return [Problem(place, code, _words(texts[code, place])) for code, place in sorted(texts)]


def _words(texts: set[str]) -> tuple[str, ...]:
    """Return the texts that say something by themselves, and not only what is filled in."""
    return tuple(sorted(text for text in texts if text and not FILLED_IN.fullmatch(text)))


def _table(rows: Sequence[Problem], section: str) -> str:
    with_status = section == "status"
    titles = ["code", *(["status"] if with_status else []), "when, and what to do"]
    cells = [[f"`{row.code}`", *([row.place] if with_status else []), "<br>".join(row.texts)] for row in rows]
    return "\n".join(map(_row, [titles, ["---"] * len(titles), *cells])) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
