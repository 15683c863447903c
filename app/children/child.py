"""What a forked child does: it gives up what it does not need, does one piece of work, and ends."""

import json
import os
import resource
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from app.children.channel import Ask, asking_over, receive_json
from app.children.limits import ChildLimits
from app.processes.confinement import confine as confine_to
from app.processes.landlock import View
from app.processes.lifeline import die_with_parent
from app.processes.python_files import device_nodes, python_files

CODE = python_files()  # once, for all children that are forked


@dataclass(frozen=True, slots=True)
class Order:
    """How a child is to be made: by which process, under which limits, and in which directory it may write."""

    parent: int
    limits: ChildLimits
    directory: Path


def run(order: Order, *, channel: int, answer: int, log: int) -> NoReturn:
    """Do the work that comes over `channel`, write its answer as JSON, and end this process.

    `channel`, `answer` and `log` are descriptors. The exit status is 0 if there is an answer.
    """
    status = 1
    try:
        _keep_open([channel, answer, log])
        os.dup2(log, 1)  # whatever a library prints is no answer
        os.dup2(log, 2)
        confine(order)
        text = json.dumps(_answer(order, socket.socket(fileno=channel)))
        with os.fdopen(answer, "w") as file:
            file.write(text)
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may go on in this copy of the parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def confine(order: Order) -> None:
    """Take from this process whatever its work does not need; it has read nothing of an upload yet."""
    os.chdir(order.directory)
    die_with_parent(order.parent)
    order.limits.apply()


def see_only(directory: Path, task: Mapping[str, Any]) -> None:
    """Leave this process no network, and only the files of its task and the directory that it writes to."""
    named = [task.get(name) for name in ("file", "definition", "ranges")]
    named += [path for name in ("files", "external_data") for path in task.get(name, {}).values()]
    readable = (*CODE, *(Path(path) for path in named if path is not None))
    confine_to(View(readable, (directory,), device_nodes(gpu=False)))


def _answer(order: Order, channel: socket.socket) -> dict[str, Any]:
    work = receive_json(channel)
    module, _, name = work["function"].partition(":")
    import_module(module.partition(".")[0])  # the folder that this package lies in cannot be listed afterwards
    see_only(order.directory, work["task"])
    try:
        function = getattr(import_module(module), name)
        return _called(function, work["task"], asking_over(channel))
    except MemoryError:
        detail = (
            "Parsing the file takes more memory than a file of its size may. Export the model again, or simplify it."
        )
        return {"rejected": {"code": "too_much_memory", "detail": detail, "errors": []}}


def _called(function: Any, task: Any, ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - of any module
    answer: dict[str, Any] = function(task, ask)
    return answer


def _keep_open(descriptors: Sequence[int]) -> None:
    """Close all other descriptors but the three standard ones."""
    low = 3
    for one in sorted(descriptors):
        os.closerange(low, one)
        low = one + 1
    os.closerange(low, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
