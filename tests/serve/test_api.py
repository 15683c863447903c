import asyncio
import signal
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from app.connections.crowd import Crowd
from app.connections.limits import Limits
from app.serve.api import Server
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
