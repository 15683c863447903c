"""Clients that mean harm, or have gone wrong: each abuse is a number of connections that are kept up.

python -m benchmarks.abusers TARGETS SECONDS ADDRESS [NAME ...]     prints what became of the connections, as JSON

All come from ADDRESS. They are kept cheap: what is sent is made once, and nothing that comes back is kept.
"""

import asyncio
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

MIB = 2**20
TICK_S = 0.1
REPLACED_IN_S = 5.0  # as many connections are opened again within this time as there may be
CONNECT_S = 5.0
HALF = 8 * MIB - 4096


@dataclass(frozen=True, slots=True)
class Targets:
    """The service, and what was put into it to be abused."""

    host: str
    port: int
    model: str
    job: str  # one that stays queued, so that its event streams last
    large: str  # the digest of a large blob
    tensors: str  # the digest of a checkpoint of 100,000 tensors
    nodes: str  # the digest of an ONNX file of 100,000 nodes


@dataclass(frozen=True, slots=True)
class Abuse:
    """`count` connections that send `data`, one part after the other, and read the answer or leave it."""

    count: int
    data: tuple[bytes, ...]
    reads: bool = True


def _post(path: str, body: bytes, length: int | None = None) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def _headers(_targets: Targets) -> Abuse:
    """143 MiB of headers on each connection."""
    line = b"name: " + b"x" * 1000 + b"\r\n"
    return Abuse(4, (b"GET /v1/jobs HTTP/1.1\r\n", *(line * 1000,) * 149))


def _half_requests(_targets: Targets) -> Abuse:
    """More half requests than a process usually may open files."""
    return Abuse(1100, (b"GET /v1/jobs HTTP/1.1\r\nhost: localhost\r\n",))


def _half_json(targets: Targets) -> Abuse:
    """JSON bodies that stop short of their end."""
    return Abuse(60, (_post(f"/v1/models/{targets.model}/bindings/check", b" " * (MIB - 1), MIB),))


def _half_uploads(_targets: Targets) -> Abuse:
    """Uploads that stop."""
    head = f"PUT /v1/blobs/sha256:{'0' * 64} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {2**30}\r\n\r\n".encode()
    return Abuse(60, (head, bytes(HALF)))


def _slow_readers(targets: Targets) -> Abuse:
    """Downloads of which nothing is taken."""
    return Abuse(60, (f"GET /v1/blobs/{targets.large} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode(),), reads=False)


def _pipelined(_targets: Targets) -> Abuse:
    """Thousands of requests at once, whose answers are not taken."""
    return Abuse(20, (b"GET /v1/jobs?limit=200 HTTP/1.1\r\nhost: localhost\r\n\r\n" * 5000,), reads=False)


def _unread(_targets: Targets) -> Abuse:
    """Bodies that go on after they were refused."""
    return Abuse(8, (_post("/v1/models", bytes(MIB), 2**40), *(bytes(MIB),) * 63))


def _json_rules(targets: Targets) -> Abuse:
    """JSON of nearly as many bytes and values as a call takes."""
    rules = b",".join(
        b'{"source": "layer.%06d.weight", "target": "block.%06d.weight", "x": 1}' % (n, n) for n in range(5000)
    )
    body = b'{"definition": 1, "weights": 1, "rules": [' + rules + b"]}"
    return Abuse(4, (_post(f"/v1/models/{targets.model}/bindings/check", body),))


def _json_values(targets: Targets) -> Abuse:
    """8 MB of JSON that is millions of values."""
    return Abuse(4, (_post(f"/v1/models/{targets.model}/bindings/check", b'{"rules":[' + b"0," * 4_100_000 + b"0]}"),))


def _json_depth(targets: Targets) -> Abuse:
    """8 MB of JSON that is millions of levels."""
    return Abuse(4, (_post(f"/v1/models/{targets.model}/bindings/check", b'{"rules":' + b"[" * 8_200_000),))


def _json_objects(targets: Targets) -> Abuse:
    """8 MB of JSON that is a million small objects, each with a fault."""
    body = b'{"rules":[' + b'{"a":1},' * 1_000_000 + b"0]}"
    return Abuse(4, (_post(f"/v1/models/{targets.model}/bindings/check", body),))


def _many_tensors(targets: Targets) -> Abuse:
    """Weight versions of 100,000 tensors."""
    return Abuse(60, (_post(f"/v1/models/{targets.model}/weights", json.dumps({"files": [targets.tensors]}).encode()),))


def _many_nodes(targets: Targets) -> Abuse:
    """Definitions of 100,000 nodes."""
    return Abuse(60, (_post(f"/v1/models/{targets.model}/definitions", json.dumps({"onnx": targets.nodes}).encode()),))


def _event_streams(targets: Targets) -> Abuse:
    """Followers of a job that does not end."""
    path = f"/v1/jobs/{targets.job}/events"
    return Abuse(400, (f"GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n".encode(),))


ABUSES: Mapping[str, Callable[[Targets], Abuse]] = {
    "headers": _headers,
    "half_requests": _half_requests,
    "half_json": _half_json,
    "half_uploads": _half_uploads,
    "slow_readers": _slow_readers,
    "pipelined": _pipelined,
    "unread_bodies": _unread,
    "json_rules": _json_rules,
    "json_values": _json_values,
    "json_depth": _json_depth,
    "json_objects": _json_objects,
    "many_tensors": _many_tensors,
    "many_nodes": _many_nodes,
    "event_streams": _event_streams,
}


class Abuser(asyncio.Protocol):
    """One connection of an abuse."""

    def __init__(self, abuse: Abuse, crew: "Crew") -> None:
        self._abuse = abuse
        self._crew = crew
        self._answered = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is TCP
        """Send everything, as fast as the service takes it."""
        self._crew.open.add(transport)
        self._transport = transport
        if not self._abuse.reads:
            asyncio.get_running_loop().call_soon(transport.pause_reading)  # uvloop begins to read after this call
        transport.writelines(self._abuse.data)

    def data_received(self, data: bytes) -> None:
        """Note the status of the answer."""
        if not self._answered:
            self._answered = True
            self._crew.outcomes[data[9:12].decode(errors="replace")] += 1

    def connection_lost(self, _error: Exception | None) -> None:
        """Make room for the next one."""
        self._crew.open.discard(self._transport)
        if not self._answered:
            self._crew.outcomes["closed without an answer"] += 1


class Crew:
    """Keeps the connections of one abuse up."""

    def __init__(self, targets: Targets, abuse: Abuse, address: str) -> None:
        self.open: set[asyncio.Transport] = set()
        self.outcomes: Counter[str] = Counter()
        self._address = address
        self._targets = targets
        self._abuse = abuse
        self._opened = 0

    async def work(self, until: float) -> dict[str, Any]:
        """Keep the connections up for a while; return what became of them."""
        longest = 0.0
        await self._open(self._abuse.count)
        replaced = 0.0
        while time.monotonic() < until:
            await asyncio.sleep(TICK_S)
            longest = max(longest, len(self.open))
            replaced += self._abuse.count * TICK_S / REPLACED_IN_S
            due = min(int(replaced), self._abuse.count - len(self.open))
            replaced -= int(replaced)
            await self._open(due)
        held = len(self.open)
        found = {"opened": self._opened, "held_at_most": longest, "held_at_the_end": held}
        result = found | {"outcomes": dict(self.outcomes)}
        for transport in list(self.open):
            transport.abort()
        return result

    async def _open(self, count: int) -> None:
        await asyncio.gather(*(self._connect() for _ in range(count)))

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._opened += 1
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(
                    lambda: Abuser(self._abuse, self),
                    self._targets.host,
                    self._targets.port,
                    local_addr=(self._address, 0),
                )
        except (OSError, TimeoutError) as error:
            self.outcomes[f"not connected: {type(error).__name__}"] += 1


async def main(targets: Targets, seconds: float, address: str, names: list[str]) -> dict[str, Any]:
    """Commit the abuses named at once."""
    crews = {name: Crew(targets, ABUSES[name](targets), address) for name in names}
    until = time.monotonic() + seconds
    results = await asyncio.gather(*(crew.work(until) for crew in crews.values()))
    return {"cpu_s": round(time.process_time(), 2), "abuses": dict(zip(crews, results, strict=True))}


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    chosen = Targets(**json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(uvloop.run(main(chosen, float(sys.argv[2]), sys.argv[3], sys.argv[4:] or list(ABUSES)))))
