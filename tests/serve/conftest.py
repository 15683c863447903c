import http.client
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

GONE_S = 20.0
ANSWER_S = 60.0


def _ends(pid: int) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], GONE_S)[0])
    finally:
        os.close(descriptor)


def _descendants(pid: int) -> dict[int, str]:
    """Return process id and command line of all there are below a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found: dict[int, str] = {}
    for child in map(int, children):
        command = Path(f"/proc/{child}/cmdline").read_bytes().decode().replace("\0", " ")
        found |= {child: command} | _descendants(child)
    return found


@pytest.fixture
def ends() -> Callable[[int], bool]:
    """Wait for the end of a process that need not be a child of this one; False where it goes on."""
    return _ends


@dataclass
class Service:
    """One `enginesmith serve`, as its user sees it."""

    process: subprocess.Popen[str]
    runtime_root: Path
    ready: str = ""

    @property
    def port(self) -> int:
        return int(self.ready.split(" ")[4].rpartition(":")[2])

    def children(self) -> dict[int, str]:
        return _descendants(self.process.pid)

    def child(self, words: str) -> int:
        """Return the process id of the child whose command line holds some words."""
        (pid,) = [pid for pid, command in self.children().items() if words in command]
        return pid

    def open_files(self) -> set[str]:
        """Return what its processes hold open, as /proc names it; what they close meanwhile is left out."""
        found = set()
        for pid in self.children():
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    found.add(str(descriptor.readlink()))
        return found

    def get(self, path: str, **headers: str) -> Any:  # noqa: ANN401 - JSON
        """GET a path, wait for the whole answer, and return it: JSON, or the text of another kind."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        assert response.status == 200
        body = response.read().decode()
        connection.close()
        return json.loads(body) if response.headers.get_content_type() == "application/json" else body

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(GONE_S)

    def notice(self) -> str:
        """Wait for the next line it tells the person at the terminal."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()


class Launcher:
    """Starts services with an empty home, a runtime root of their own and nothing else configured."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.home.mkdir()
        self._started: list[Service] = []

    def __call__(self, data_dir: Path, *arguments: str, port: int = 0, **environment: str) -> Service:
        runtime_root = Path(tempfile.mkdtemp(prefix="es-", dir="/tmp"))
        process = subprocess.Popen(
            [
                Path(sys.executable).with_name("enginesmith"),
                *("serve", "--port", str(port), "--data-dir", str(data_dir), *(arguments or ("--device", "cpu"))),
            ],
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": os.defpath, "TMPDIR": str(runtime_root), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        service = Service(process, runtime_root)
        self._started.append(service)
        return service

    def ready(self, data_dir: Path, **environment: str) -> Service:
        """Start a service and wait until it says that it is ready."""
        service = self(data_dir, port=0, **environment)
        assert service.process.stdout is not None
        service.ready = service.process.stdout.readline()
        if not service.ready:
            pytest.fail(f"serve did not get ready: {service.process.communicate()[1]}")
        service.notice()  # that it is starting
        return service

    def close(self) -> None:
        for service in self._started:
            service.process.kill()
            service.process.communicate()
            shutil.rmtree(service.runtime_root)


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("launch"))
    yield launcher
    launcher.close()
