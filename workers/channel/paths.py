"""Which paths the engine host may name: the worker opens what it is told, and it may read what the host may not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.channel.hearing import BadReply
from workers.channel.messages import (
    Benchmarked,
    Built,
    Compared,
    Materialised,
    PlanWritten,
    Ran,
    Refitted,
    Request,
    TimingsMerged,
)
from workers.channel.replies import Reply

NAMED = ("plan", "outputs", "report", "merged")  # what a request has written, each the path of a file


def check_paths(said: object, request: Request) -> None:
    """Raise BadReply if a message names a file that the request does not name, or one that is a link."""
    written = {path for name in NAMED if (path := getattr(request, name, None)) is not None}
    parent = getattr(request, "parent", None)
    kept = set() if parent is None else {parent.plan}
    for path in _paths(said.result if isinstance(said, Reply) else said):
        beside = any(path.startswith(f"{one}.") and "/" not in path[len(one) :] for one in written)
        if path not in written | kept and not beside:
            raise BadReply(f"the path {path[:200]!r}, which the worker did not name")
        if path not in kept and Path(path).is_symlink():
            raise BadReply(f"the path {path[:200]!r}, which is a link")


def _paths(said: Any) -> Iterator[str]:  # noqa: ANN401 - any message or result
    found: tuple[str | None, ...] = ()
    match said:
        case Built():
            found = said.plan, said.timing_cache
        case Refitted() | Materialised() | PlanWritten():
            found = (said.plan,)
        case Ran():
            found = (said.outputs,)
        case Benchmarked() | Compared():
            found = (said.report,)
        case TimingsMerged():
            found = (said.merged,)
    yield from (path for path in found if path is not None)
