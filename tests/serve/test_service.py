import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from app.serve.child import Child
from app.serve.errors import CannotStart
from app.serve.service import unready

START = datetime(2026, 5, 1, 10, tzinfo=UTC)


@pytest.fixture
def answers() -> dict[str, Any]:
    """What the API says, by path."""
    return {"/readyz": {"ready": True, "checks": {}}, "/v1/workers?limit=200": {"data": []}}


@pytest.fixture
def api(answers: dict[str, Any]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers[self.path]).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:  # noqa: ANN401 - as in the base class
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Child]]:
    names = ("worker-cuda-0", "worker-cpu")
    children = [Child(name, ["sleep", "60"], environment={}, logs=tmp_path, grace_s=1.0) for name in names]
    for child in children:
        child.start()
    yield children
    for child in children:
        child.kill()


def reported(child: Child, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {"pid": child.pid, "hostname": socket.gethostname(), "started_at": "2026-05-01T10:00:01.5Z"} | changes


def test_it_is_ready_once_every_worker_has_reported(api: str, answers: dict[str, Any], workers: list[Child]) -> None:
    assert unready(api, workers, since=START) == "there is no sign of worker-cuda-0 and worker-cpu yet"
    answers["/v1/workers?limit=200"] = {"data": [reported(workers[1])]}
    assert unready(api, workers, since=START) == "there is no sign of worker-cuda-0 yet"
    answers["/v1/workers?limit=200"] = {"data": [reported(child) for child in workers]}
    assert unready(api, workers, since=START) is None


def test_workers_of_other_machines_and_of_earlier_runs_do_not_count(
    api: str, answers: dict[str, Any], workers: list[Child]
) -> None:
    other, earlier = reported(workers[0], hostname="elsewhere"), reported(workers[0], started_at="2026-05-01T09:59:59Z")
    answers["/v1/workers?limit=200"] = {"data": [other, earlier, reported(workers[0], pid=1), reported(workers[1])]}
    assert unready(api, workers, since=START) == "there is no sign of worker-cuda-0 yet"


def test_what_the_api_lacks_comes_first(api: str, answers: dict[str, Any], workers: list[Child]) -> None:
    answers["/readyz"] = {"ready": False, "checks": {"broker": "does not answer"}}
    answers["/v1/workers?limit=200"] = {"status": 503, "code": "unavailable"}
    assert unready(api, workers, since=START) == "the API is not ready: {'broker': 'does not answer'}"
    assert "the API does not answer" in str(unready("http://127.0.0.1:1", workers, since=START))


def test_a_full_disk_ends_the_start_at_once_with_the_remedy(
    api: str, answers: dict[str, Any], workers: list[Child]
) -> None:
    answers["/readyz"] = {"ready": False, "checks": {"disk": "0 MiB are free. Free space there."}}
    with pytest.raises(CannotStart, match=r"0 MiB are free\. Free space there\.") as caught:
        unready(api, workers, since=START)
    assert caught.value.code == "disk_unusable"
