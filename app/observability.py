"""Logs, request ids and metrics."""

import asyncio
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TextIO, cast

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import shown
from app.redaction import hide_in_tracebacks, hide_secrets, learn
from app.settings import Settings

REQUEST_ID_HEADER = b"x-request-id"
CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

ROUTE = "route_template"
MOST_OF_A_PATH = 300  # characters; the paths of all calls are shorter

_request_id: ContextVar[str] = ContextVar("request_id", default="-")
log = structlog.get_logger()


def request_id() -> str:
    """Return the id of the request that is being answered, "-" if there is none."""
    return _request_id.get()


class LogStream:
    """Standard error. A line that cannot be written (a full disk) is dropped: no work may fail because of it."""

    def write(self, text: str) -> int:
        """Write a text and return the number of characters written, 0 if it is dropped."""
        with suppress(OSError):
            return sys.stderr.write(text)
        return 0

    def flush(self) -> None:
        """Write the buffered lines; OSError is ignored."""
        with suppress(OSError):
            sys.stderr.flush()


def configure_logging(settings: Settings) -> None:
    """Send structlog's and the standard library's log lines to stderr in one format, without secrets."""
    learn(settings)
    hide_in_tracebacks()
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
        hide_secrets,
    ]
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer() if settings.log_json else structlog.dev.ConsoleRenderer(colors=False)
    )
    stream = cast("TextIO", LogStream())
    level = logging.getLevelNamesMapping()[settings.log_level]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)


class Metrics:
    """The metrics of one API process's requests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self.requests = Counter(
            "enginesmith_http_requests_total",
            "Requests answered.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "enginesmith_http_request_seconds",
            "Time from the request's head to the answer's end.",
            ["method", "route"],
            registry=registry,
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
        )


class RequestObserver:
    """Gives each request an id, and counts and logs the request once it is answered."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        on_fault: Callable[[Exception], Response],
        on_stop: Callable[[], Response],
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.on_fault = on_fault
        self.on_stop = on_stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identity = _client_request_id(scope) or secrets.token_hex(8)
        token = _request_id.set(identity)
        structlog.contextvars.bind_contextvars(request_id=identity)
        started = time.perf_counter()
        status = 0  # stays 0 until the answer's head is sent
        scope.setdefault("state", {})

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID_HEADER, identity.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the server stops, and the time that it gives to requests is over
            if not status:
                await self.on_stop()(scope, receive, send_with_id)
        except Exception as fault:  # noqa: BLE001 - the last place that can still answer a fault
            answer = self.on_fault(fault)
            if not status:
                await answer(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - started)
            structlog.contextvars.unbind_contextvars("request_id")
            _request_id.reset(token)

    def _record(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        route = scope["state"].get(ROUTE, "unmatched")
        self.metrics.requests.labels(scope["method"], route, status).inc()
        self.metrics.seconds.labels(scope["method"], route).observe(seconds)
        level = "debug" if route in {"/healthz", "/readyz", "/metrics"} else "info"
        path = shown(scope["path"], MOST_OF_A_PATH)
        getattr(log, level)("request", method=scope["method"], path=path, status=status, ms=round(seconds * 1000, 1))


async def note_route(request: Request) -> None:
    """Keep the route's template without the version, such as /models/{model}; every route depends on this."""
    request.scope["state"][ROUTE] = request.scope["route"].path


def _client_request_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == REQUEST_ID_HEADER and CLIENT_REQUEST_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return None
