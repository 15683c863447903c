"""What the tests have children do."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.children.channel import LENGTH, MAX_QUESTION_BYTES, Ask


def echo(task: Any, _ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    return {"made": task, "written": Path("log").exists(), "where": str(Path.cwd())}


def kill_itself(task: Any, _ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    os.write(2, b"last words\n")
    os.kill(os.getpid(), task["signal"])
    signal.pause()
    return {}


def kill_itself_once(task: Any, ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    if Path("killed").exists():
        return {"made": "again"}
    Path("killed").touch()
    return kill_itself(task, ask)


def burn(_task: Any, _ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    while True:
        pass


def sleep(_task: Any, _ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    Path("pid").write_text(str(os.getpid()))
    time.sleep(1000)
    return {}


def sleep_once(task: Any, ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    return {"made": "again"} if Path("pid").exists() else sleep(task, ask)


def eat(_task: Any, _ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    return {"made": len(b"x" * 2**40)}


def reach(task: Any, _ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    def can(what: Callable[[], object]) -> bool:
        try:
            what()
        except PermissionError:
            return False
        return True

    return {
        "file": can(lambda: Path(task["file"]).read_bytes()),
        "other": can(lambda: Path(task["other"]).read_bytes()),
        "written": can(lambda: Path("written").write_text("")),
        "replaced": can(lambda: Path(task["file"]).write_text("")),
        "network": can(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()),
    }


def ask_back(task: Any, ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    return {"made": [b"".join(ask({"number": number})).decode() for number in range(task["count"])]}


def ask_twice_and_stay(_task: Any, ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    b"".join(ask({}))
    Path("pid").write_text(str(os.getpid()))
    with suppress(Exception):
        b"".join(ask({}))
    time.sleep(1000)
    return {}


def drip(_task: Any, _ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Send a question byte by byte, as a child that was taken over may."""
    (channel,) = (int(one.name) for one in Path("/proc/self/fd").iterdir() if one.is_socket())
    with socket.socket(fileno=channel) as to_parent:
        to_parent.send(LENGTH.pack(MAX_QUESTION_BYTES))
        time.sleep(0.5)  # the parent is in the middle of the question now
        Path("pid").write_text(str(os.getpid()))
        for _ in range(100):
            time.sleep(0.05)
            to_parent.send(b" ")
    Path("heard_out").touch()
    return {}


def tell(_task: Any, _ask: Ask) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    return {
        "environment": dict(os.environ),
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),  # noqa: PTH208 - names only
        "descriptors": [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()],
        "parent_tasks": len(os.listdir(f"/proc/{os.getppid()}/task")),  # noqa: PTH208
        "modules": sorted(sys.modules),
    }
