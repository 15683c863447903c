import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from app.children.children import MODULES
from app.children.failures import AnswerTooLong, ChildLost, Crashed, OutOfTime
from app.children.fork_server import ForkServer
from app.children.limits import ChildLimits
from app.errors import NotFound, Unavailable
from app.processes.landlock import landlock_version
from app.processes.seccomp import has_filter

GIB = 1024**3
LIMITS = ChildLimits(address_space=2 * GIB, file_size=GIB, cpu_s=60, wall_s=60.0)


@pytest.fixture
def own() -> Iterator[ForkServer]:
    """One that a test may kill."""
    server = ForkServer(())
    yield server
    server.close()


def deed(name: str) -> str:
    return f"tests.children.deeds:{name}"


def test_a_child_gets_its_task_and_gives_its_answer(fork_server: ForkServer, tmp_path: Path) -> None:
    answer = fork_server.run(deed("echo"), {"a": [1, "ü"]}, LIMITS, tmp_path)
    assert answer == {"made": {"a": [1, "ü"]}, "written": True, "where": str(tmp_path)}


@pytest.mark.skipif(not landlock_version() or not has_filter(), reason="this kernel or processor cannot")
def test_a_child_reaches_the_files_of_its_task_and_no_network(fork_server: ForkServer, tmp_path: Path) -> None:
    directory = tmp_path / "child"
    directory.mkdir()
    for name in ("file", "other"):
        (tmp_path / name).write_text("text")
    task = {name: str(tmp_path / name) for name in ("file", "other")}
    reached = fork_server.run(deed("reach"), task, LIMITS, directory)
    assert reached == {"file": True, "other": False, "written": True, "replaced": False, "network": False}


def test_a_child_asks_and_its_parent_answers(fork_server: ForkServer, tmp_path: Path) -> None:
    def answers(question: Any) -> Iterator[bytes]:  # noqa: ANN401 - any JSON
        yield b"x" * 100_000
        yield b""
        yield str(question["number"]).encode()

    made = fork_server.run(deed("ask_back"), {"count": 3}, LIMITS, tmp_path, answers)["made"]
    assert made == ["x" * 100_000 + str(number) for number in range(3)]


def test_what_the_parent_cannot_answer_ends_the_child(fork_server: ForkServer, tmp_path: Path) -> None:
    def answers(_question: Any) -> Iterator[bytes]:  # noqa: ANN401 - any JSON
        yield b"some"
        raise NotFound("gone")

    with pytest.raises(NotFound):
        fork_server.run(deed("ask_back"), {"count": 1}, LIMITS, tmp_path, answers)


def test_a_child_that_gets_no_answers_does_not_wait_for_them(fork_server: ForkServer, tmp_path: Path) -> None:
    with pytest.raises(Crashed):
        fork_server.run(deed("ask_back"), {"count": 1}, LIMITS, tmp_path)


@pytest.mark.parametrize("ending", [signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_crash_is_told_with_its_signal(fork_server: ForkServer, tmp_path: Path, ending: signal.Signals) -> None:
    with pytest.raises(Crashed) as raised:
        fork_server.run(deed("kill_itself"), {"signal": ending}, LIMITS, tmp_path)
    assert raised.value.status == -ending
    assert (tmp_path / "log").read_text() == "last words\n"


def test_processor_time_is_the_works_fault(fork_server: ForkServer, tmp_path: Path) -> None:
    with pytest.raises(OutOfTime):
        fork_server.run(deed("burn"), {}, replace(LIMITS, cpu_s=1, wall_s=10_000.0), tmp_path)
    assert fork_server.run(deed("echo"), {}, LIMITS, tmp_path)["made"] == {}


def test_the_wall_clock_is_nobodys_fault(fork_server: ForkServer, tmp_path: Path) -> None:
    with pytest.raises(ChildLost) as raised:
        fork_server.run(deed("sleep"), {}, replace(LIMITS, wall_s=0.01), tmp_path)
    assert (raised.value.status, raised.value.code) == (503, "parsing_stalled")
    assert fork_server.run(deed("echo"), {}, LIMITS, tmp_path)["made"] == {}


def test_a_question_that_comes_byte_by_byte_stretches_no_time(
    fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is over in the middle of the question."""
    late = SimpleNamespace(monotonic=lambda: 1000.0 * (tmp_path / "pid").exists())
    monkeypatch.setattr("app.children.fork_server.time", late)
    with pytest.raises(ChildLost, match="after 60 s"):
        fork_server.run(deed("drip"), {}, LIMITS, tmp_path)
    assert not (tmp_path / "heard_out").exists()


def test_what_the_parent_waits_for_is_not_counted(
    fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("app.children.fork_server.time", SimpleNamespace(monotonic=lambda: clock.seconds))

    def pieces() -> Iterator[bytes]:
        clock.seconds += 1000.0
        yield b"x"
        clock.seconds += 1000.0

    def answers(_question: Any) -> Iterator[bytes]:  # noqa: ANN401 - any JSON
        clock.seconds += 1000.0
        return pieces()

    made = fork_server.run(deed("ask_back"), {"count": 3}, LIMITS, tmp_path, answers)["made"]
    assert made == ["x"] * 3


def test_a_child_that_is_given_up_is_gone(
    fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is over with its second question."""
    late = SimpleNamespace(monotonic=lambda: 1000.0 * (tmp_path / "pid").exists())
    monkeypatch.setattr("app.children.fork_server.time", late)
    with pytest.raises(ChildLost, match="after 60 s"):
        fork_server.run(deed("ask_twice_and_stay"), {}, LIMITS, tmp_path, lambda _: [b"x"])
    pid = int((tmp_path / "pid").read_text())
    _wait_until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.slow
def test_a_child_that_was_killed_is_begun_once_more(fork_server: ForkServer, tmp_path: Path) -> None:
    killed = {"signal": signal.SIGKILL}
    assert fork_server.run(deed("kill_itself_once"), killed, LIMITS, tmp_path)["made"] == "again"
    with pytest.raises(ChildLost) as raised:
        fork_server.run(deed("kill_itself"), killed, LIMITS, tmp_path)
    assert (raised.value.status, raised.value.code) == (503, "parser_killed")


def test_a_child_finds_packages_in_a_checkout_to_which_a_file_was_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python would list the folder anew, which the child may not."""
    package = tmp_path / "folder" / "late"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "deed.py").write_text("def answer(_task, _ask):\n    return {'made': 1}\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    server = ForkServer(())
    directory = tmp_path / "child"
    directory.mkdir()
    server.run(deed("echo"), {}, LIMITS, directory)
    (package.parent / "added").touch()
    assert server.run("late.deed:answer", {}, LIMITS, directory) == {"made": 1}
    server.close()


def test_a_child_out_of_memory_says_so(fork_server: ForkServer, tmp_path: Path) -> None:
    answer = fork_server.run(deed("eat"), {}, LIMITS, tmp_path)
    assert answer["rejected"]["code"] == "too_much_memory"


def test_an_answer_that_is_too_long_is_refused(
    fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.children.fork_server.MAX_ANSWER_BYTES", 50)
    with pytest.raises(AnswerTooLong):
        fork_server.run(deed("echo"), {"text": "x" * 50}, LIMITS, tmp_path)


def test_children_have_no_secrets_no_sockets_of_others_and_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINESMITH_SIGNING_KEY", "11" * 32)
    server = ForkServer(MODULES)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)  # noqa: FBT003 - has no name
        told = server.run(deed("tell"), {}, LIMITS, tmp_path)
    server.close()
    assert not any(name.startswith("ENGINESMITH") for name in told["environment"])
    assert (told["threads"], told["tasks"], told["parent_tasks"]) == (1, 1, 1)
    sockets = [name for name in told["descriptors"] if name.startswith("socket:")]
    assert len(sockets) == 1  # the channel
    assert {"onnx", "numpy"} <= set(told["modules"])
    assert not {"fastapi", "celery", "redis", "onnxruntime"} & set(told["modules"])


def test_many_threads_may_use_it_at_once(fork_server: ForkServer, tmp_path: Path) -> None:
    found: list[Any] = []

    def use(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(fork_server.run(deed("echo"), {"number": number}, LIMITS, folder)["made"]["number"])

    threads = [Thread(target=use, args=(number,)) for number in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(found) == list(range(12))


@pytest.mark.slow
def test_it_is_started_anew_after_it_was_killed(own: ForkServer, tmp_path: Path) -> None:
    own.run(deed("echo"), {}, LIMITS, tmp_path)
    first = own.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert own.run(deed("echo"), {}, LIMITS, tmp_path)["made"] == {}
    assert own.pid != first


@pytest.mark.slow
def test_work_that_it_takes_with_it_is_begun_once_more(own: ForkServer, tmp_path: Path) -> None:
    def kill() -> None:
        _wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        os.kill(own.pid or 0, signal.SIGKILL)

    own.start()
    killer = Thread(target=kill)
    killer.start()
    assert own.run(deed("sleep_once"), {}, LIMITS, tmp_path)["made"] == "again"
    killer.join()
    pid = int((tmp_path / "pid").read_text())
    _wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_what_waits_for_a_closed_one_is_refused(own: ForkServer, tmp_path: Path) -> None:
    own.run(deed("echo"), {}, LIMITS, tmp_path)
    own.close()
    with pytest.raises(Unavailable, match="is being stopped"):
        own.run(deed("echo"), {}, LIMITS, tmp_path)
    assert own.pid is None


def test_without_a_python_it_is_unavailable(own: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable) as raised:
        own.run(deed("echo"), {}, LIMITS, tmp_path)
    assert raised.value.code == "parser_unavailable"


def test_a_module_that_cannot_be_imported_makes_it_unavailable(tmp_path: Path) -> None:
    server = ForkServer(["not_there"])
    with pytest.raises(Unavailable):
        server.run(deed("echo"), {}, LIMITS, tmp_path)
    server.close()


OWNER = """
import sys
from pathlib import Path
from threading import Thread
from app.children.fork_server import ForkServer
from tests.children.test_fork_server import LIMITS, deed
server = ForkServer(())
Thread(target=server.run, args=(deed("sleep"), {}, LIMITS, Path(sys.argv[1])), daemon=True).start()
pid = Path(sys.argv[1]) / "pid"
while not pid.exists() or not pid.read_text(): pass
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_it_and_its_children_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server = os.pidfd_open(int(owner.stdout.readline()))
        child = os.pidfd_open(int((tmp_path / "pid").read_text()))
        owner.kill()
    for process in (server, child):
        assert select.select([process], [], [], 30)[0]
        os.close(process)


def _wait_until(holds: Any) -> None:  # noqa: ANN401 - a function without arguments
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
