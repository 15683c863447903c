"""Runs a service for as long as a block lasts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

READY = "ready at "


@contextmanager
def running(
    data_dir: Path, environment: Mapping[str, str] | None = None, devices: Sequence[str] = ("cpu",)
) -> Iterator[tuple[str, int]]:
    """Start `enginesmith serve` on a free port, with a worker for each device; give its URL and process id.

    The service is stopped when the block ends.
    """
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(data_dir)]
    command += [word for device in devices for word in ("--device", device)]
    environ = os.environ | dict(environment or {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as service:  # noqa: S603 - our own
        try:
            yield _ready_url(service), service.pid
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait()


def _ready_url(service: subprocess.Popen[str]) -> str:
    for line in service.stdout or ():
        if READY in line:
            return line.split(READY)[1].split()[0]
    raise RuntimeError("the service did not start; it says why above")
