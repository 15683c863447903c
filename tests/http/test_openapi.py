from typing import Any

import pytest
from fastapi import FastAPI

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def _operations(app: FastAPI) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    ]


def _has_example(app: FastAPI, media: dict[str, Any]) -> bool:
    if "example" in media or "examples" in media:
        return True
    name = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
    schema = app.openapi()["components"]["schemas"].get(name, media.get("schema", {}))
    if "examples" in schema:
        return True
    items = schema.get("properties", {}).get("data", {}).get("items", {})  # a page of rows that have an example
    return bool(items) and _has_example(app, {"schema": items})


def test_every_operation_has_a_summary_and_a_description(app: FastAPI) -> None:
    bare = [name for name, op in _operations(app) if not op.get("summary") or not op.get("description")]
    assert bare == []


def test_every_json_body_and_answer_has_an_example(app: FastAPI) -> None:
    bare = []
    for name, operation in _operations(app):
        bodies = [operation.get("requestBody", {})]
        bodies += [answer for code, answer in operation["responses"].items() if code.startswith("2")]
        for body in bodies:
            media = body.get("content", {}).get("application/json")
            if media is not None and not _has_example(app, media):
                bare.append(name)
    assert bare == []


def test_the_contract_is_all_there(app: FastAPI) -> None:
    model = "/v1/models/{model}"
    wanted = {
        "POST /v1/models", "GET /v1/models", f"GET {model}",
        "HEAD /v1/blobs/{digest}", "GET /v1/blobs/{digest}", "PUT /v1/blobs/{digest}",
        f"POST {model}/definitions", f"GET {model}/definitions/{{version}}",
        f"GET {model}/definitions/{{version}}/parameters",
        f"POST {model}/weights", f"GET {model}/weights/{{version}}", f"GET {model}/weights/{{version}}/tensors",
        f"GET {model}/weights/{{version}}/diff", f"POST {model}/bindings/check",
        f"POST {model}/builds", f"POST {model}/refits", f"POST {model}/engines", f"POST {model}/runs",
        f"POST {model}/benchmarks",
        f"GET {model}/engines", f"GET {model}/engines/{{number}}", f"GET {model}/engines/{{number}}/lineage",
        f"GET {model}/engines/{{number}}/manifest", f"GET {model}/engines/{{number}}/plan",
        f"HEAD {model}/engines/{{number}}/plan", f"POST {model}/engines/{{number}}/materialise",
        "GET /v1/jobs", "GET /v1/jobs/{job}", "GET /v1/jobs/{job}/events", "POST /v1/jobs/{job}/cancel",
        f"PUT {model}/aliases/{{alias}}", f"GET {model}/aliases/{{alias}}", f"DELETE {model}/aliases/{{alias}}",
        "GET /v1/workers", "GET /healthz", "GET /readyz", "GET /metrics",
    }  # fmt: skip
    assert wanted <= {name for name, _ in _operations(app)}


def test_every_operation_has_one_tag(app: FastAPI) -> None:
    assert [name for name, operation in _operations(app) if len(operation.get("tags", [])) != 1] == []


def test_the_calls_on_engines_are_listed_with_engines(app: FastAPI) -> None:
    tags = {name: operation["tags"] for name, operation in _operations(app)}
    calls = ("builds", "refits", "engines", "runs", "benchmarks")
    assert {tag for call in calls for tag in tags[f"POST /v1/models/{{model}}/{call}"]} == {"engines"}


def test_every_error_is_documented_as_the_problem_it_is(app: FastAPI) -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    wrong = [
        (name, code)
        for name, operation in _operations(app)
        for code, answer in operation["responses"].items()
        if code[0] in "45" and answer.get("content") != problem and not name.endswith("/readyz")
    ]
    assert wrong == []
    assert "HTTPValidationError" not in app.openapi()["components"]["schemas"]


def test_errors_that_come_of_parameters_and_bodies_are_documented(app: FastAPI) -> None:
    for name, operation in _operations(app):
        takes_json = "application/json" in operation.get("requestBody", {}).get("content", {})
        wanted = {"413", "422"} if takes_json else {"422"} if operation.get("parameters") else set()
        assert wanted <= operation["responses"].keys(), name
