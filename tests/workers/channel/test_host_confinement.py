"""What an engine host has of its worker's: little of the environment, and none of the privileges."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.processes.landlock import landlock_version
from app.processes.seccomp import has_filter
from tests.workers.hosting import Hosting
from workers.channel.host import EngineHost, EngineHostDied
from workers.channel.process import host_environment

SECRETS = {
    "ENGINESMITH_SIGNING_KEY": "5ec2e7",
    "ENGINESMITH_DATABASE_URL": "postgresql://me:5ec2e7@db/x",
    "AWS_SECRET_ACCESS_KEY": "5ec2e7",
    "PGPASSWORD": "5ec2e7",
    "HTTPS_PROXY": "http://me:5ec2e7@proxy",
    "GOOGLE_APPLICATION_CREDENTIALS": "/5ec2e7",
}
NEEDED = {"LD_LIBRARY_PATH": "/cuda/lib", "CUDA_CACHE_PATH": "/cache", "LC_ALL": "C.UTF-8", "PYTHONPATH": "/plugins"}


def test_a_host_gets_what_runtimes_read_and_no_secret(tmp_path: Path) -> None:
    environment = host_environment(tmp_path, SECRETS | NEEDED | {"HOME": "/root", "TMPDIR": "/tmp"})  # noqa: S108 - not used
    assert NEEDED.items() <= environment.items()
    assert not SECRETS.keys() & environment.keys()
    assert environment["HOME"] == environment["TMPDIR"] == str(tmp_path)


def test_a_running_host_holds_none_of_its_parents_secrets(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    said = hosting.host.describe()
    process = Path(f"/proc/{hosting.host.pid}")
    assert b"5ec2e7" not in process.joinpath("environ").read_bytes() + process.joinpath("cmdline").read_bytes()
    threads = list(process.glob("task/*/status"))
    assert threads
    for thread in threads:
        status = dict(line.split(":", 1) for line in thread.read_text().splitlines())
        assert status["NoNewPrivs"].strip() == "1"
        assert (status["Seccomp"].strip() == "2") == has_filter() == said.confinement["network"]["holds"]
    assert said.confinement["files"]["holds"] == (landlock_version() > 0)
    assert said.confinement["user"]["holds"] is False
    assert said.confinement["memory"]["holds"] is True


SPEAKER = """
import pickle, sys
from multiprocessing.connection import Connection
socket = next(int(one.partition("=")[2]) for one in sys.argv if one.startswith("--socket="))
class Bomb:
    def __reduce__(self):
        return open, (sys.argv[1], "w")
Connection(socket).send_bytes(pickle.dumps(Bomb()) if len(sys.argv[2]) == 4 else sys.argv[2].encode())
sys.stdin.read()
import time; time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("says", "told"),
    [("bomb", "bytes that are no message"), ('{"Progress": {"phase": 1}}', "Progress with phase")],
)
def test_a_host_that_says_something_else_is_killed_and_nothing_it_says_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, told: str
) -> None:
    popen = subprocess.Popen
    started: list[Any] = []

    def other(command: list[str], **options: Any) -> Any:  # noqa: ANN401 - stands in for any call
        started.append(popen([sys.executable, "-c", SPEAKER, str(tmp_path / "done"), says, *command[3:]], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", other)
    with pytest.raises(EngineHostDied, match=told):
        EngineHost("cpu", 0, tmp_path / "scratch").describe()
    assert not (tmp_path / "done").exists()
    assert started[0].returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)
