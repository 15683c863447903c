"""The route of all calls: it limits the body, and decides which threads the call is answered in."""

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from app.http.json_body import BYTES_PER_VALUE, JsonRequest
from app.http.pools import Pool, current_pool
from app.settings import KIB, MIB

CLIENT_CLOSED_REQUEST = 499  # nginx's status, in logs and metrics, for a request whose client has gone
MAX_BODY = "x-max-body-bytes"
MAX_VALUES = "x-max-body-values"
DEFAULT_BYTES = 256 * KIB
WITH_RULES_BYTES = MIB  # 2,000 rules with two tensors and two transforms each take 550 KiB

F = TypeVar("F", bound=Callable[..., Any])


def max_body(limit: int) -> dict[str, Any]:
    """Return the value of a route's `openapi_extra=` that lets its JSON body have up to `limit` bytes."""
    return {MAX_BODY: limit, MAX_VALUES: limit // BYTES_PER_VALUE}


def heavy(endpoint: F) -> F:
    """Mark the endpoint of a GET that walks whole manifests: it stays away from the pool of reads."""
    endpoint.is_heavy = True  # type: ignore[attr-defined]
    return endpoint


class Route(APIRoute):
    """A call with JSON in and out."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401 - FastAPI's own
        self._is_async = iscoroutinefunction(endpoint)
        self._is_heavy = getattr(endpoint, "is_heavy", False)
        super().__init__(path, endpoint if self._is_async else _in_thread(endpoint), **options)
        if self.body_field is not None:
            self.openapi_extra = max_body(DEFAULT_BYTES) | (self.openapi_extra or {})

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request; its body is read before it takes a place, so a slow client holds none."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            state = request.app.state
            declared = (self.openapi_extra or {}).get(MAX_BODY, DEFAULT_BYTES)
            limit = min(declared, state.settings.max_json_bytes)
            read = JsonRequest(request.scope, request.receive, limit=limit, parsing=state.pools.parsing)
            pool = self._pool(request)
            current_pool.set(pool)
            async with AsyncExitStack() as stack:
                try:
                    if self.body_field is not None:
                        await read.load()
                except ClientDisconnect:
                    return Response(status_code=CLIENT_CLOSED_REQUEST)
                if not self._is_async:
                    await stack.enter_async_context(pool.place())
                return await handle(read)

        return answer

    def _pool(self, request: Request) -> Pool:
        pools = request.app.state.pools
        only_reads = request.method in {"GET", "HEAD"} and not self._is_heavy
        pool: Pool = pools.reads if only_reads else pools.work
        return pool


def _in_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return the endpoint as one that runs in a thread of the request's pool."""

    @wraps(endpoint)
    async def run(**arguments: Any) -> Any:  # noqa: ANN401 - the endpoint's own
        return await current_pool.get().thread(endpoint, **arguments)

    return run
