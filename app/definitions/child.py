"""The child process in which uploaded files are parsed: `python -m app.definitions.child`.

One request as JSON on stdin, one answer as JSON on stdout. Limits are in force before anything is parsed, and
before the libraries that parse are even loaded.
"""

import json
import os
import resource
import sys
from typing import Any

from app.processes.lifeline import die_with_parent


def main() -> None:
    """Answer the one request."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, not into the answer
    request = json.load(sys.stdin)
    die_with_parent(request["parent"])
    _limit(**request["limits"])
    json.dump(_answer(request), answers)
    answers.close()


def _limit(*, address_space: int, file_size: int, cpu_s: int, open_files: int, **_parent_side: float) -> None:
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, address_space),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NOFILE, open_files),
    ):
        resource.setrlimit(what, (most, most))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from app.definitions.construction import construct  # noqa: PLC0415 - loads onnx, which the limits shall cover
    from app.definitions.reexport import match_export  # noqa: PLC0415
    from app.definitions.rejection import Rejected  # noqa: PLC0415

    task = request["task"]
    try:
        return {"made": match_export(task) if "definition" in task else construct(task)}
    except Rejected as rejected:
        errors = [{"pointer": error.pointer, "detail": error.detail} for error in rejected.errors]
        return {"rejected": {"code": rejected.code, "detail": rejected.detail, "errors": errors}}
    except MemoryError:
        detail = (
            "Parsing the file takes more memory than a file of its size may. Export the model again, or simplify it."
        )
        return {"rejected": {"code": "too_much_memory", "detail": detail, "errors": []}}


if __name__ == "__main__":
    main()
