import os
import socket
import subprocess
import sys

import pytest

from workers.identity import is_gone, new_identity

HERE = socket.gethostname()


def test_a_process_has_a_new_name_each_time_and_is_not_gone_itself() -> None:
    own = new_identity()
    assert own != new_identity()
    assert not is_gone(own, own)


@pytest.mark.slow
def test_only_a_worker_of_this_host_whose_process_ended_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = f"{HERE}:{process.pid}:abcdef"
        assert not is_gone(identity, new_identity())
        process.kill()
    assert is_gone(identity, new_identity())
    assert not is_gone(f"elsewhere:{process.pid}:abcdef", new_identity())
    assert not is_gone("no worker", new_identity())


def test_an_earlier_worker_with_our_process_id_is_gone() -> None:
    assert is_gone(f"{HERE}:{os.getpid()}:earlier", new_identity())
