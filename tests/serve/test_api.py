import asyncio
import json
import signal
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from app.cli import _settings
from app.connections.crowd import Crowd
from app.connections.limits import Limits
from app.http.beginning import Beginning
from app.http.turns import current_address
from app.main import create_app
from app.serve.api import Server, server_config
from app.serve.errors import CannotStart
from app.settings import Settings


@pytest.fixture
def server() -> Server:
    app = FastAPI()
    app.state.watching = SimpleNamespace(ending=False)
    return Server(uvicorn.Config(app), app, Crowd(Limits.of(Settings()), CollectorRegistry()))


def test_waiters_are_let_go_with_the_signal_that_stops_the_server(server: Server) -> None:
    server.handle_exit(signal.SIGTERM, None)
    assert (server._app.state.watching.ending, server.should_exit) == (True, True)


def test_the_connections_are_checked_once_a_second(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[float] = []
    monkeypatch.setattr(Crowd, "check", lambda _self, now: checks.append(now))

    async def three_seconds() -> None:
        for tick in range(30):
            await server.on_tick(tick)

    asyncio.run(three_seconds())
    assert len(checks) == 3


@pytest.mark.parametrize(
    ("trusted", "address"), [("", "10.0.0.1"), ("10.0.0.0/8", "192.0.2.7"), ("10.0.0.9", "10.0.0.1")]
)
def test_only_a_proxy_that_is_named_says_whose_request_it_is(trusted: str, address: str) -> None:
    addresses: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(_scope: Scope, _receive: Receive, _send: Send) -> None:
            addresses.append(current_address.get())

        await Beginning(noted)(scope, receive, send)

    async def nothing(_message: Message | None = None) -> Message:
        return {}

    config = server_config(app, Settings(trusted_proxies=trusted))  # type: ignore[arg-type]  # any application
    config.load()
    headers = [(b"x-forwarded-for", b"192.0.2.7")]
    scope: Scope = {"type": "http", "client": ("10.0.0.1", 5), "headers": headers}
    asyncio.run(config.loaded_app(scope, nothing, nothing))
    assert addresses == [address]


@pytest.mark.parametrize("named", ["10.0.0.0/33", "10.0.0.1/8", "proxy.internal", "10.0.0.7; 10.0.0.8", "*, 10.0.0.7"])
def test_a_proxy_that_no_address_is_equal_to_stops_the_start(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINESMITH_TRUSTED_PROXIES", named)
    with pytest.raises(
        CannotStart, match=r"TRUSTED_PROXIES: (?!Value error).*Give IP addresses such as 10\.0\.0\.7"
    ) as raised:
        _settings()
    assert raised.value.code == "bad_settings"


@pytest.mark.parametrize("named", ["", "*", "10.0.0.7, fd00::/8,", "10.0.0.0/8"])
def test_proxies_are_addresses_and_networks(named: str) -> None:
    assert Settings(trusted_proxies=named).trusted_proxies == named.replace(" ", "").strip(",")


def test_what_has_no_time_to_end_is_answered_with_when_to_come_again(settings: Settings) -> None:
    app = create_app(settings)

    async def scene() -> list[Message]:
        begun, sent = asyncio.Event(), list[Message]()

        async def receive() -> Message:
            begun.set()
            await asyncio.Event().wait()  # a body that does not come
            return {}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-length", b"9"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/models", "query_string": b"", "headers": headers}
        request = asyncio.create_task(app(scope, receive, send))
        await begun.wait()
        request.cancel()  # as the server does
        await request
        return sent

    head, body = asyncio.run(scene())
    assert (head["status"], json.loads(body["body"])["code"]) == (503, "stopping")
    assert (b"retry-after", b"1") in head["headers"]


def test_a_client_that_goes_in_the_middle_of_its_json_is_no_fault_of_the_service(settings: Settings) -> None:
    app, sent = create_app(settings), list[Message]()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", b"9"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/models", "query_string": b"", "headers": headers}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 499
