import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.serve.child import Child, describe

START_ONE_AND_BE_KILLED = """
import os, signal, sys
from pathlib import Path
from app.serve.child import Child
child = Child("child", ["sleep", "1000"], environment=os.environ, logs=Path(sys.argv[1]), grace_s=1)
child.start()
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[Child, int]]:
    """A child, and the process id of a child of that child."""
    os.mkfifo(tmp_path / "grandchild")
    script = "echo said; sleep 1000 & echo $! > grandchild; wait"
    child = Child("child", ["sh", "-c", f"cd {tmp_path}; {script}"], environment=os.environ, logs=tmp_path, grace_s=1)
    child.start()
    yield child, int((tmp_path / "grandchild").read_text())
    child.kill()


def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path, ends: Callable[[int], bool]) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", START_ONE_AND_BE_KILLED, tmp_path], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert ends(int(killed.stdout))


def test_a_child_is_out_of_reach_of_the_terminals_signals(family: tuple[Child, int]) -> None:
    child, _ = family
    assert child.pid is not None
    assert os.getsid(child.pid) == child.pid != os.getsid(0)


def test_what_a_child_started_ends_with_it_however_it_died(
    family: tuple[Child, int], ends: Callable[[int], bool]
) -> None:
    child, grandchild = family
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert child.ended() == -signal.SIGKILL
    assert ends(grandchild)
    assert child.pid is None


def test_killing_takes_the_whole_family(family: tuple[Child, int], ends: Callable[[int], bool]) -> None:
    child, grandchild = family
    child.kill()
    assert ends(grandchild)


def test_what_a_child_says_is_in_its_log(family: tuple[Child, int]) -> None:
    child, _ = family
    assert child.log.tail() == "said"


def test_an_end_is_described_in_words() -> None:
    assert describe(3) == "exited with status 3"
    assert describe(-9) == "was killed by SIGKILL"
