"""What a child does that looks at a definition before a build. It has neither a device nor a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.children.channel import Ask
from app.definitions.profiles import Profile, Range
from workers.channel.messages import BackendError
from workers.engine_host import onnx_graph
from workers.engine_host.backends.catalog import open_preflight
from workers.engine_host.cost import check_loops, largest_value
from workers.engine_host.preflight.verdict import Question


def check(task: Mapping[str, Any], _ask: Ask) -> dict[str, Any]:
    """Return the verdicts of a backend on a definition, and the largest value that the definition computes.

    `task` has the path `definition`, the name `backend`, `versions`, `profiles` (all inputs, see `to_json` of
    `app.definitions.profiles`), `options` and `details` (see `Question`). `verdicts` is None if the backend tells
    nothing before a build.
    """
    definition = onnx_graph.parse(Path(task["definition"]).read_bytes())
    profiles = tuple(_profile(row) for row in task["profiles"])
    values = [
        largest_value(definition, {name: one.max for name, one in profile.items()}) for profile in profiles or ({},)
    ]
    largest = max((one for one in values if one is not None), key=lambda one: one.nbytes, default=None)
    return {
        "verdicts": _verdicts(
            task["backend"], Question(tuple(task["versions"]), profiles, task["options"], task["details"]), definition
        ),
        "largest_value": largest and {"name": largest.name, "shape": list(largest.shape), "bytes": largest.nbytes},
        "endless": _endless(definition),
    }


def _verdicts(backend: str, question: Question, definition: Any) -> list[dict[str, Any]] | None:  # noqa: ANN401 - ModelProto
    try:
        preflight = open_preflight(backend)
    except (KeyError, ImportError):  # it is installed where its workers are, not here
        return None
    return None if preflight is None else [one.to_json() for one in preflight(definition, question)]


def _endless(definition: Any) -> str | None:  # noqa: ANN401 - ModelProto
    try:
        check_loops(definition)
    except BackendError as error:
        return error.detail
    return None


def _profile(row: Mapping[str, Any]) -> Profile:
    return {name: Range(tuple(sizes["min"]), tuple(sizes["opt"]), tuple(sizes["max"])) for name, sizes in row.items()}
