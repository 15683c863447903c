"""What FastAPI's own description of this API gets wrong: how errors are answered.

It documents them as plain JSON, and 422 as a body of its own making that this service never sends.
"""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from app.http.problems import MEDIA_TYPE

PROBLEM = {"$ref": "#/components/schemas/Problem"}
FASTAPI_ONLY = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Correct the description the first time it is asked for."""
    generate = app.openapi

    def corrected() -> dict[str, Any]:
        if app.openapi_schema is None:
            document_problems(generate())
        return generate()

    app.openapi = corrected  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def document_problems(schema: dict[str, Any]) -> None:
    """Describe every error as a problem, and those that any call can meet although it does not name them."""
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            answers = operation["responses"]
            for status in _implied(path, operation) - answers.keys():
                answers[status] = {"description": HTTPStatus(int(status)).phrase}
            for status, answer in answers.items():
                _describe(status, answer, _implied(path, operation))
    for name in FASTAPI_ONLY:
        schema["components"]["schemas"].pop(name, None)


def _implied(path: str, operation: dict[str, Any]) -> set[str]:
    """Return the errors that come of having parameters or a JSON body, whatever the call does with them."""
    takes_json = "application/json" in operation.get("requestBody", {}).get("content", {})
    implied = {"422"} if path.startswith("/v1/") and (takes_json or operation.get("parameters")) else set()
    return implied | ({"413"} if takes_json else set())


def _describe(status: str, answer: dict[str, Any], implied: set[str]) -> None:
    content = answer.get("content", {})
    documented = content.get("application/json", {}).get("schema")
    if status in implied or documented == PROBLEM:
        answer["content"] = {MEDIA_TYPE: {"schema": PROBLEM}}
