"""The few calls a client of Enginesmith needs, over plain HTTP: read it as a recipe for your own language."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2

CHUNK = 1024 * 1024
TIMEOUT_S = 600.0

Progress = Callable[[int], None]


class ServiceProblem(Exception):
    """An answer of problem+json; its text is the service's own explanation."""


class Client:
    """Talks to one service, for one model."""

    def __init__(self, url: str, model: str) -> None:
        self.http = httpx2.Client(base_url=url, timeout=TIMEOUT_S)
        self.model = model

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        """Make one JSON call and return its answer."""
        answer = self.http.request(method, path, json=body, headers=headers)
        if answer.is_error:
            problem = answer.json()
            raise ServiceProblem(f"{problem['status']} {problem['code']}: {problem['detail']}")
        content: dict[str, Any] = answer.json()
        return content

    def post(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST to a collection of the model, such as "weights"."""
        return self.call("POST", f"/v1/models/{self.model}/{what}", body)

    def upload(self, path: Path, progress: Progress = lambda _count: None) -> str:
        """Upload a file unless the service has it, and return its digest."""
        with path.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if self.http.head(f"/v1/blobs/{digest}").is_success:
            progress(path.stat().st_size)
            return digest
        headers = {"Content-Length": str(path.stat().st_size)}
        answer = self.http.put(f"/v1/blobs/{digest}", content=_chunks(path, progress), headers=headers)
        answer.raise_for_status()
        return digest

    def download(self, digest: str) -> bytes:
        """Return the bytes of a blob."""
        answer = self.http.get(f"/v1/blobs/{digest}")
        answer.raise_for_status()
        return answer.content

    def follow(self, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the job each time it changes, until it has ended."""
        path = f"/v1/jobs/{job['id']}"
        headers = {"Accept": "text/event-stream"}
        with self.http.stream("GET", f"{path}/events", headers=headers) as events:
            for line in events.iter_lines():
                if line.startswith("event:"):
                    yield self.call("GET", path)
        yield self.call("GET", path)

    def finish(self, job: Mapping[str, Any], progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Wait for a job and return its result."""
        for state in self.follow(job):
            progress(state)
        if state["state"] != "succeeded":
            raise ServiceProblem(f"{state['kind']} {state['state']}: {state['error']}")
        result: dict[str, Any] = state["result"]
        return result


def _chunks(path: Path, progress: Progress) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            progress(len(chunk))
