"""What an honest client does while others abuse the service: the same few calls at a steady pace, each one timed.

python -m benchmarks.normal_use PLAN     reads a plan (JSON), writes a call a line until its standard input is closed

A line is [kind, end, seconds, outcome]: `end` is on the machine's monotonic clock, `outcome` is "ok" or what went
wrong. The last line is ["cpu", end, seconds, "ok"]: the processor time that this process has taken.
"""

import asyncio
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

PATIENCE_S = 30.0
BLOB_BYTES = 64 * 1024
# Seconds between two calls of a kind, from start to start.
PACES = {"read_job": 0.05, "read_job_anew": 0.1, "lists": 0.25, "blob": 0.5, "run": 1.0, "refit": 2.0}


@dataclass(frozen=True, slots=True)
class Plan:
    """The service, and what to ask it for."""

    host: str
    port: int
    model: str
    engine: int
    weights: tuple[int, int]
    inputs: str  # the digest of a run's inputs
    job: str

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """Read a plan that `write` has written."""
        content = json.loads(path.read_text())
        return cls(**content | {"weights": tuple(content["weights"])})


class Failed(Exception):
    """A call was answered with an error, or not at all."""


class Client:
    """Speaks HTTP over one connection at a time, as cheaply as can be."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
        """Send a request and return the body of its answer; an idle connection that has been closed is replaced."""
        request = _request(method, path, body, headers)
        if self._streams is not None:
            try:
                return await self._exchange(*self._streams, request)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.close()
        self._streams = await asyncio.open_connection(self.plan.host, self.plan.port)
        return await self._exchange(*self._streams, request)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        body = await reader.readexactly(length)
        status = int(lines[0].split(b" ")[1])
        if b"connection: close" in lines:
            self.close()
        if status >= 400:
            raise Failed(f"{status} {json.loads(body).get('code')}")
        return body

    def close(self) -> None:
        """Close the connection if there is one."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


def _request(method: str, path: str, body: bytes, headers: str) -> bytes:
    kind = "content-type: application/json\r\n" if method == "POST" else ""
    return (
        f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n{kind}{headers}\r\n".encode()
        + body
    )


async def read_job(client: Client, _number: int) -> None:
    """Read a job over a connection that is kept."""
    await client.call("GET", f"/v1/jobs/{client.plan.job}")


async def read_job_anew(client: Client, number: int) -> None:
    """Read a job over a new connection."""
    client.close()
    await read_job(client, number)


async def lists(client: Client, number: int) -> None:
    """Read a page of one of the lists."""
    paths = ("/v1/models", "/v1/jobs", f"/v1/models/{client.plan.model}/engines")
    await client.call("GET", paths[number % len(paths)])


async def blob(client: Client, number: int) -> None:
    """Upload a new blob and read it back."""
    content = number.to_bytes(8, "big") + os.urandom(BLOB_BYTES)
    path = f"/v1/blobs/sha256:{hashlib.sha256(content).hexdigest()}"
    await client.call("PUT", path, content)
    if await client.call("GET", path) != content:
        raise Failed("other bytes came back")


async def run(client: Client, _number: int) -> None:
    """Run an engine, and wait for the outputs."""
    await _job(client, "runs", {"engine": client.plan.engine, "inputs": client.plan.inputs})


async def refit(client: Client, number: int) -> None:
    """Refit an engine back and forth, and wait for the result."""
    plan = client.plan
    await _job(client, "refits", {"engine": plan.engine, "weights": plan.weights[number % 2], "reuse": False})


async def _job(client: Client, what: str, body: dict[str, Any]) -> None:
    path = f"/v1/models/{client.plan.model}/{what}"
    answer = json.loads(await client.call("POST", path, json.dumps(body).encode(), "prefer: wait=25\r\n"))
    if answer["state"] != "succeeded":
        raise Failed(f"the job is {answer['state']}")


CALLS: dict[str, Callable[[Client, int], Awaitable[None]]] = {
    "read_job": read_job,
    "read_job_anew": read_job_anew,
    "lists": lists,
    "blob": blob,
    "run": run,
    "refit": refit,
}


async def _repeat(plan: Plan, kind: str, ended: asyncio.Event) -> None:
    """Make calls of one kind; the next one begins at its time, or once the one before has ended."""
    client = Client(plan)
    for number in _numbers():
        if ended.is_set():
            return
        began = time.monotonic()
        outcome = "ok"
        try:
            async with asyncio.timeout(PATIENCE_S):
                await CALLS[kind](client, number)
        except (OSError, EOFError, TimeoutError, Failed) as error:
            outcome = f"{type(error).__name__} {error}".strip()
            client.close()
        now = time.monotonic()
        print(json.dumps([kind, now, now - began, outcome]), flush=True)
        await asyncio.sleep(max(0.0, began + PACES[kind] - now))


def _numbers() -> Iterator[int]:
    return itertools.count()


async def main(plan: Plan) -> None:
    """Make all calls at once until standard input is closed."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    calls = [asyncio.create_task(_repeat(plan, kind, ended)) for kind in CALLS]
    await loop.run_in_executor(None, sys.stdin.read)
    ended.set()
    await asyncio.gather(*calls)
    print(json.dumps(["cpu", time.monotonic(), time.process_time(), "ok"]), flush=True)


if __name__ == "__main__":
    uvloop.run(main(Plan.read(Path(sys.argv[1]))))
