"""What a child does with the files of a definition. The process that forks children imports this, and so onnx, once."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from app.children.channel import Ask
from app.definitions.construction import construct
from app.definitions.reexport import match_export
from app.definitions.rejection import Rejected

Task = Mapping[str, Any]

APART: Final = ("parameters", "external")  # may have 100,000 rows


def make(task: Task, _ask: Ask) -> dict[str, Any]:
    """Make the files of a definition; see `sandbox`."""
    return _answer(construct, task)


def match(task: Task, _ask: Ask) -> dict[str, Any]:
    """Match the weights of a file to the parameters of a definition; see `sandbox`."""
    return _answer(match_export, task)


def _answer(work: Callable[[Task], dict[str, Any]], task: Task) -> dict[str, Any]:
    """Return what was made. What may be long becomes a file of its own, so that the parent need not parse it."""
    try:
        made = work(task)
    except Rejected as rejected:
        errors = [{"pointer": error.pointer, "detail": error.detail} for error in rejected.errors]
        return {"rejected": {"code": rejected.code, "detail": rejected.detail, "errors": errors}}
    for name in APART:
        rows = made.pop(name, [])
        Path(f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        made[f"{name}_count"] = len(rows)
    return {"made": made}
