import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from app.connections.crowd import Crowd
from app.connections.limits import Limits
from app.connections.protocol import LimitedProtocol
from app.serve.api import Server

GENEROUS = Limits(
    header_bytes=8192, header_s=60, keep_alive_s=60, least_rate=1024, slow_s=60, connections=100, per_address=0
)
CHECK_EVERY_S = 0.02
ANSWER_S = 20.0
CHUNK = 2**20


class Application:
    """An application of four paths, which notes what becomes of its requests."""

    def __init__(self) -> None:
        self.requests = 0
        self.left: list[str] = []  # paths whose client had gone
        self.let_go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        self.requests += 1
        await getattr(self, scope["path"].strip("/"))(scope, receive, send)

    async def count(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the length of the body."""
        nbytes, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.append(scope["path"])
                return
            nbytes, more = nbytes + len(message["body"]), message["more_body"]
        await _answer(send, 200, str(nbytes).encode())

    async def wait(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer once the test allows it."""
        await self.let_go.wait()
        await _answer(send, 200, b"done")

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send one event, and go on until the client goes."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"event", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.append(scope["path"])

    async def refuse(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer with an error without reading the body."""
        await _answer(send, 413, b"too large")

    async def large(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send without end."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.ensure_future(_gone(receive))
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(CHUNK), "more_body": True})
            await asyncio.sleep(0)
        self.left.append(scope["path"])


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Client:
    """One raw connection to the server."""

    def __init__(self, port: int, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(ANSWER_S)
        self.socket.connect(("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> bytes:
        """Return one answer that has a Content-Length."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        while len(body) < int(lengths[0]):
            body += self._more()
        return head + b"\r\n\r\n" + body

    def rest(self) -> bytes:
        """Return what the server sends until it closes the connection."""
        received = b""
        with suppress(ConnectionResetError):
            while data := self.socket.recv(65536):
                received += data
        return received

    def _more(self) -> bytes:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError
        return data


class Running:
    """A real server on a real socket, with the limits of a test, which looks at its connections 50 times a second."""

    def __init__(self, limits: Limits) -> None:
        self.application = Application()
        self.registry = CollectorRegistry()
        self.crowd = Crowd(limits, self.registry)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        ends = SimpleNamespace(close=lambda: None)
        children = SimpleNamespace(server=ends)
        state = SimpleNamespace(watching=SimpleNamespace(ending=False), office=ends, children=children)
        config = uvicorn.Config(
            self.application,
            loop="uvloop",
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        self._server = Server(config, FastAPI(), self.crowd)
        self._server._app.state = state  # type: ignore[assignment]
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))
        self._thread.start()
        self._clients: list[Client] = []

    async def _serve(self) -> None:
        checking = asyncio.create_task(self._check())
        await self._server.serve(sockets=[self._listener])
        checking.cancel()

    async def _check(self) -> None:
        self._loop = asyncio.get_running_loop()
        while True:
            self.crowd.check(self._loop.time())
            await asyncio.sleep(CHECK_EVERY_S)

    def call(self, function: Callable[[], object]) -> None:
        """Run a function on the server's loop."""
        self._loop.call_soon_threadsafe(function)

    def connect(self, data: bytes = b"", receive_buffer: int = 0) -> Client:
        """Open a connection and send the data."""
        client = Client(self.port, receive_buffer)
        self._clients.append(client)
        client.send(data)
        return client

    def ended(self, code: str) -> float:
        """Return how many connections a limit has ended."""
        return self.registry.get_sample_value("enginesmith_connections_ended_total", {"code": code}) or 0

    def close(self) -> None:
        for client in self._clients:
            client.socket.close()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """Start a server with these limits, generous where they are not named."""
    started: list[Running] = []

    def start(**limits: int) -> Running:
        started.append(Running(replace(GENEROUS, **limits)))
        return started[-1]

    yield start
    for running in started:
        running.close()
