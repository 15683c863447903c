"""Correcting the errors in FastAPI's description of this API.

FastAPI documents errors as plain JSON, and 422 with a body of its own, which this service never sends.
"""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from app.http.problems import MEDIA_TYPE
from app.http.routes import MAX_BODY, MAX_VALUES, max_body
from app.settings import KIB

PROBLEM = {"$ref": "#/components/schemas/Problem"}
FASTAPI_ONLY = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Have the description corrected when it is first asked for."""
    generate = app.openapi

    def corrected() -> dict[str, Any]:
        if app.openapi_schema is None:
            document(generate(), app.state.settings.max_json_bytes)
        return generate()

    app.openapi = corrected  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def document(schema: dict[str, Any], max_json_bytes: int) -> None:
    """Describe every error as a problem, add those that a call can answer but does not declare, and tell limits."""
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            answers = operation["responses"]
            for status in _implied(path, operation) - answers.keys():
                answers[status] = {"description": HTTPStatus(int(status)).phrase}
            for status, answer in answers.items():
                _describe(status, answer, _implied(path, operation))
            if MAX_BODY in operation:
                _describe_limits(operation, max_json_bytes)
    for name in FASTAPI_ONLY:
        schema["components"]["schemas"].pop(name, None)


def _implied(path: str, operation: dict[str, Any]) -> set[str]:
    """Return the error statuses of every call that has parameters (422) or a JSON body (422 and 413)."""
    takes_json = "application/json" in operation.get("requestBody", {}).get("content", {})
    implied = {"422"} if path.startswith("/v1/") and (takes_json or operation.get("parameters")) else set()
    return implied | ({"413"} if takes_json else set())


def _describe_limits(operation: dict[str, Any], max_json_bytes: int) -> None:
    """Say in words how large the body may be, with the setting's ceiling."""
    operation |= max_body(min(operation[MAX_BODY], max_json_bytes))
    kib, values = operation[MAX_BODY] / KIB, operation[MAX_VALUES]
    operation["requestBody"]["description"] = f"At most {kib:g} KiB of JSON with at most {values:,} values and names."


def _describe(status: str, answer: dict[str, Any], implied: set[str]) -> None:
    content = answer.get("content", {})
    documented = content.get("application/json", {}).get("schema")
    if status in implied or documented == PROBLEM:
        answer["content"] = {MEDIA_TYPE: {"schema": PROBLEM}}
