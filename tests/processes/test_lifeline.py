import os
import select
import signal
import subprocess
import sys

import pytest

from app.processes.lifeline import die_with_parent

PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
CHILD = """
import sys, time
from app.processes.lifeline import HOW
HOW(int(sys.argv[1]))
print("goes on", flush=True)
time.sleep(1000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["die_with_parent", "end_with_parent"])
def test_a_child_ends_with_a_parent_that_is_killed(how: str) -> None:
    command = [sys.executable, "-c", PARENT, CHILD.replace("HOW", how)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        try:
            assert select.select([child], [], [], 30)[0]
        except AssertionError:
            signal.pidfd_send_signal(child, signal.SIGKILL)
            raise
        finally:
            os.close(child)


def test_a_child_whose_parent_has_ended_before_the_call_ends_too() -> None:
    with pytest.raises(SystemExit) as ended:
        die_with_parent(os.getpid())  # another than the process that started this one
    assert ended.value.code == 1
