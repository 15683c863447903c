"""The supervisor over real processes, signalled as a terminal would signal it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.serve import restarts
from app.serve.child import Child
from app.serve.errors import CannotStart
from app.serve.signals import Signals, StopRequested
from app.serve.supervisor import Supervisor

SIGNAL_THE_SUPERVISOR = "kill -TERM $PPID"


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 0.01)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where nohup runs these tests
    with Signals() as signals:
        supervisor = Supervisor(tmp_path, signals)
        yield supervisor
        supervisor.kill()
    signal.signal(signal.SIGHUP, hangup)


def shell(folder: Path, script: str, *, name: str = "child", grace_s: float = 20.0) -> Child:
    arguments = ["sh", "-c", f"cd {folder}; {script}"]
    return Child(name, arguments, environment=os.environ, logs=folder, grace_s=grace_s)


def until(path: Path, supervisor: Supervisor) -> None:
    supervisor.wait_until(lambda: None if path.exists() else f"{path.name} does not exist")


def test_a_child_that_is_killed_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    # The first run kills itself, the second ends the watch.
    script = f"[ -e ran ] && {{ {SIGNAL_THE_SUPERVISOR}; exec sleep 1000; }}; touch ran; kill -KILL $$"
    child = shell(tmp_path, script)
    supervisor.start(child)
    first = child.pid
    with pytest.raises(StopRequested):
        supervisor.watch()
    assert child.pid not in {first, None}


def test_a_child_that_dies_again_and_again_ends_the_watch_with_its_last_words(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start(shell(tmp_path, "echo no such device >&2; exit 3", name="worker"))
    with pytest.raises(
        CannotStart, match=r"(?s)worker exited with status 3, 5 times in a row.*no such device"
    ) as raised:
        supervisor.watch()
    assert raised.value.code == "crash_loop"


def test_a_child_that_dies_during_the_start_ends_it_with_its_last_words(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(shell(tmp_path, "echo bad key; exit 1", name="api"))
    with pytest.raises(CannotStart, match=r"(?s)api exited with status 1 while starting.*bad key") as raised:
        supervisor.wait_until(lambda: "the API does not answer")
    assert raised.value.code == "api_died"


def test_waiting_too_long_says_for_what(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.serve.supervisor.START_S", 0.0)
    with pytest.raises(CannotStart, match=rf"no worker has reported. The logs in {tmp_path}") as raised:
        supervisor.wait_until(lambda: "no worker has reported")
    assert raised.value.code == "start_timeout"


def test_a_step_that_fails_is_an_error_with_its_last_words(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.run(shell(tmp_path, "exit 0"))
    with pytest.raises(CannotStart, match=r"(?s)migrate exited with status 2.*no such column") as raised:
        supervisor.run(shell(tmp_path, "echo no such column; exit 2", name="migrate"))
    assert raised.value.code == "migrate_failed"


def test_children_are_stopped_one_after_the_other_the_last_started_first(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    for name in ("valkey", "worker", "api"):
        script = f"trap 'echo {name} >> ended; exit' TERM; touch {name}.up; while :; do sleep 0.05; done"
        supervisor.start(shell(tmp_path, script, name=name))
        until(tmp_path / f"{name}.up", supervisor)
    assert supervisor.stop() == 0
    assert (tmp_path / "ended").read_text().split() == ["api", "worker", "valkey"]


def test_a_child_that_does_not_end_in_time_is_killed_and_the_stop_is_not_clean(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    child = shell(tmp_path, "trap '' TERM; touch up; while :; do sleep 0.05; done", grace_s=0.1)
    supervisor.start(child)
    until(tmp_path / "up", supervisor)
    assert supervisor.stop() == 1
    assert child.pid is None


def test_a_second_signal_leaves_the_rest_to_be_killed_at_once(supervisor: Supervisor, tmp_path: Path) -> None:
    child = shell(tmp_path, f"trap '{SIGNAL_THE_SUPERVISOR}' TERM; touch up; while :; do sleep 0.05; done")
    supervisor.start(child)
    until(tmp_path / "up", supervisor)
    assert supervisor.stop() == 1
    assert child.pid is not None
    supervisor.kill()
    assert child.pid is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_stopping_signal_stops_the_watch(supervisor: Supervisor, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    with pytest.raises(StopRequested):
        supervisor.watch()


def test_signals_are_as_before_once_it_is_over() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Signals():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
