"""The route of all calls: it limits the body, and has the call answered in the threads of a pool."""

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack
from functools import wraps
from inspect import Parameter, iscoroutinefunction, signature
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from fastapi.exceptions import ResponseValidationError
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
    """A call with JSON in and out.

    An endpoint that is no coroutine runs in a thread of the request's pool, with the session that it asks for. Answers
    are made to JSON in such a thread as well: a page of 200 rows may take a second, in which the event loop would
    answer nobody else.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401 - FastAPI's own
        self._is_async = iscoroutinefunction(endpoint)
        self._is_heavy = getattr(endpoint, "is_heavy", False)
        super().__init__(path, self._answering(endpoint), **options)
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

    def _answering(self, endpoint: Callable[..., Any]) -> Callable[..., Any]:
        """Return the endpoint as one that answers with a Response, of which no part is made on the event loop."""

        def called(arguments: dict[str, Any]) -> Any:  # noqa: ANN401 - the endpoint's own
            with ExitStack() as stack:
                opened = {
                    name: stack.enter_context(value) if isinstance(value, AbstractContextManager) else value
                    for name, value in arguments.items()
                }
                return self._json(endpoint(**opened))

        @wraps(endpoint)
        async def answer(head: Response, **arguments: Any) -> Any:  # noqa: ANN401 - the endpoint's own
            if self._is_async:
                answer = await endpoint(**arguments)
                if isinstance(answer, Response):
                    return answer
                body = await current_pool.get().run(self._json, answer)
            else:
                body = await current_pool.get().thread(called, arguments)
            if not isinstance(body, bytes):
                return body
            return self._response(body, head)

        named = signature(endpoint)
        asked = Parameter("head", Parameter.KEYWORD_ONLY, annotation=Annotated[Response, Depends(_head)])
        answer.__signature__ = named.replace(parameters=[*named.parameters.values(), asked])  # type: ignore[attr-defined]
        return answer

    def _json(self, answer: Any) -> Any:  # noqa: ANN401 - the endpoint's own
        """Return the JSON of what an endpoint has returned, or the same if that is a Response or nothing."""
        field = self.response_field
        if field is None or isinstance(answer, Response):
            return answer
        value, errors = field.validate(answer, {}, loc=("response",))
        if errors:
            raise ResponseValidationError(errors=errors, body=answer)
        return field.serialize_json(value)

    def _response(self, body: bytes, head: Response) -> Response:
        response = Response(body, head.status_code or self.status_code or 200, media_type="application/json")
        response.raw_headers.extend(head.raw_headers)
        return response


async def _head(response: Response) -> Response:
    """Return what the endpoint may set the status and headers of the answer on."""
    return response
