import signal
from types import SimpleNamespace

import uvicorn
from fastapi import FastAPI

from app.serve.api import Server


def test_waiters_are_let_go_with_the_signal_that_stops_the_server() -> None:
    app = FastAPI()
    app.state.watching = SimpleNamespace(ending=False)
    server = Server(uvicorn.Config(app), app)
    server.handle_exit(signal.SIGTERM, None)
    assert (app.state.watching.ending, server.should_exit) == (True, True)
