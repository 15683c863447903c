"""Every error as application/problem+json (RFC 9457)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.database import DATABASE_DOWN
from app.disk_faults import DISK_FAULTS
from app.errors import FieldError, Invalid, ServiceError, Unavailable, json_pointer, shown
from app.http.request_body import MAX_FAULTS
from app.observability import request_id
from app.redaction import public

MEDIA_TYPE = "application/problem+json"
UNREADABLE = (
    "The body could not be read as JSON: it is not UTF-8 or is compressed, is nested too deep, or has a number of "
    "thousands of digits. Send plain JSON in UTF-8, without Content-Encoding."
)
CODES = {413: "request_entity_too_large"}  # fixed, as http.HTTPStatus has another phrase from Python 3.13 on
log = structlog.get_logger()


class Fault(BaseModel):
    """One fault in the request; `pointer` is a JSON Pointer into the body."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """What went wrong and what to do about it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not found",
                    "status": 404,
                    "detail": "There is no model 'minilm'. Register it with POST /v1/models, or list what there is "
                    "with GET /v1/models.",
                    "code": "model_not_found",
                    "request_id": "01a2b3c4d5e6",
                    "errors": [],
                }
            ]
        }
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[Fault] = []


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the value of an endpoint's `responses=` for these error statuses: `problems(404, 422)`."""
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses}


def install(app: FastAPI) -> None:
    """Answer every error of this application as a problem."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    for down in DATABASE_DOWN:
        app.add_exception_handler(down, _database_down)


def problem_response(
    status: int,
    title: str,
    detail: str,
    code: str,
    *,
    errors: Sequence[FieldError] = (),
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Build the answer for one error."""
    problem = Problem(
        title=title,
        status=status,
        detail=public(detail),
        code=code,
        request_id=request_id(),
        errors=[Fault(pointer=error.pointer, detail=public(error.detail)) for error in errors],
    )
    return JSONResponse(problem.model_dump(), status, headers, media_type=MEDIA_TYPE)


async def _service_error(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ServiceError):
        raise error
    return error_response(error)


def error_response(error: ServiceError) -> JSONResponse:
    """Build the answer for an error of this service."""
    headers = None if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return problem_response(error.status, error.title, error.detail, error.code, errors=error.errors, headers=headers)


async def _database_down(request: Request, error: Exception) -> JSONResponse:
    log.error("the database failed", error=str(error))
    detail = (
        "The database does not answer, or its disk is full or read-only; nothing of this request was kept unless a "
        "repeat says so. GET /readyz says more. Repeat the request, with the same Idempotency-Key where it had one."
    )
    return await _service_error(request, Unavailable(detail, code="database_unavailable"))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = [_field_error(fault) for fault in error.errors()[:MAX_FAULTS]]
    detail = "; ".join(f"{fault.pointer or '/'}: {fault.detail}" for fault in errors)
    remedy = "See /docs for the fields of this call."
    if "json" not in request.headers.get("content-type", "") and any(not fault.pointer for fault in errors):
        remedy = "Send a JSON body with the header Content-Type: application/json, as `curl --json` does."
    return problem_response(
        422,
        Invalid.title,
        f"The request does not fit the schema: {detail}. {remedy}",
        "invalid_request",
        errors=errors,
    )


def _field_error(fault: Mapping[str, Any]) -> FieldError:
    if fault["type"] == "json_invalid":  # the location is a position in the text, not a field
        return FieldError("", f"not JSON at character {fault['loc'][-1]}: {fault['ctx']['error']}")
    return FieldError(_pointer(fault["loc"]), str(fault["msg"]).removeprefix("Value error, "))


def _pointer(location: Sequence[str | int]) -> str:
    """Return a JSON Pointer to a field; outside the body it begins with the place: "query", "path" or "header"."""
    parts = location[1:] if location and location[0] == "body" else location
    return json_pointer(*parts)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == HTTPStatus.BAD_REQUEST:  # FastAPI answers this if its JSON parser fails
        return problem_response(422, Invalid.title, UNREADABLE, "invalid_request", errors=[FieldError("", "not JSON")])
    phrase = HTTPStatus(error.status_code).phrase
    remedies = {
        404: f"There is nothing at {shown(request.url.path)}. GET /docs lists every call.",
        405: f"{shown(request.url.path)} does not take {request.method}. GET /docs lists every call.",
    }
    detail = remedies.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = _allowed(request)
    code = CODES.get(error.status_code, phrase.lower().replace(" ", "_").replace("-", "_"))
    return problem_response(error.status_code, phrase, detail, code, headers=headers)


def _allowed(request: Request) -> str:
    """Return every method that the path takes; Starlette names those of one route only."""
    scope = {"type": "http", "path": request.url.path, "root_path": request.scope.get("root_path", ""), "headers": []}
    methods: set[str] = set()
    for method in ("DELETE", "GET", "HEAD", "POST", "PUT"):
        matches = (route.matches(scope | {"method": method})[0] for route in request.app.routes)
        if any(match is Match.FULL for match in matches):
            methods.add(method)
    return ", ".join(sorted(methods))


def stopping() -> JSONResponse:
    """Answer a request that the server has no time to end."""
    return error_response(
        Unavailable(
            "The service was stopped before it could answer. Send the request again in a moment, with the same "
            "Idempotency-Key where it had one.",
            code="stopping",
        )
    )


def unexpected(error: Exception) -> JSONResponse:
    """Answer an unexpected exception with 500, one of a disk with 503; only the log has its cause."""
    log.error("request failed", exc_info=error)
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
        return error_response(
            Unavailable(
                f"A disk that this service works on is at fault ({error.strerror}); nothing of this request was kept. "
                "GET /readyz says more. Repeat the request once that disk has room, can be written and works.",
                code="disk_unavailable",
            )
        )
    return problem_response(
        500,
        ServiceError.title,
        f"This is a fault of the service, not of your request. Its log tells more under request id {request_id()}.",
        ServiceError.code,
    )
