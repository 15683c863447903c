import json
import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.errors import Invalid
from app.http.request_body import MAX_DEPTH, check_content

JSON = {"Content-Type": "application/json"}


def _nested(depth: int) -> Any:  # noqa: ANN401 - JSON
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _pointers(body: object) -> list[str]:
    with pytest.raises(Invalid) as raised:
        check_content(body)
    return sorted(error.pointer for error in raised.value.errors)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"a": ["x", "y\0"]}, "/a/1"),
        ({"a": "\ud800"}, "/a"),
        ({"a": {"k\0": 1}}, "/a"),
        ({"a": {"\ud800": 1}}, "/a"),
        ({"a/b~c": float("nan")}, "/a~1b~0c"),
        ([1, float("-inf")], "/1"),
        (_nested(MAX_DEPTH + 1), "/0" * MAX_DEPTH),
        (_nested(100_000), "/0" * MAX_DEPTH),
    ],
)
def test_points_at_what_cannot_be_kept(body: object, pointer: str) -> None:
    assert _pointers(body) == [pointer]


def test_lists_every_fault_up_to_a_limit() -> None:
    assert _pointers({"a": "\0", "b": {"c": "\0"}}) == ["/a", "/b/c"]
    assert len(_pointers(["\0"] * 1000)) == 20


def test_takes_any_other_json() -> None:
    check_content({"é😀": ["", 10**400, 1e308, None, True, {}, _nested(MAX_DEPTH - 2)]})


@pytest.mark.parametrize(
    "body",
    [
        {"name": "a", "description": "x\0"},
        {"name": "a", "labels": {"k\0": "v"}},
        {"name": "a", "labels": {"k": "v\0"}},
        {"name": "a", "labels": {"k": "\ud800"}},
        {"name": "a", "labels": {"k": float("nan")}},
    ],
)
def test_a_body_that_cannot_be_kept_is_refused_and_makes_nothing(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/v1/models", content=json.dumps(body), headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_content")
    assert client.get("/v1/models").json()["data"] == []


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/v1/models/%00", "/path/model"),
        ("/v1/models/a%00b/engines", "/path/model"),
        ("/v1/jobs/%00", "/path/job"),
        ("/v1/jobs/%00/events", "/path/job"),
        ("/v1/jobs?model=%00", "/query/model"),
        ("/v1/models/m/engines?backend=a%00", "/query/backend"),
        ("/v1/models?after=%00", "/query/after"),
    ],
)
def test_an_address_that_no_database_takes_is_refused(client: TestClient, path: str, pointer: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_content")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_call_refuses_a_query_parameter_that_it_does_not_have_and_lists_those_it_has(app: FastAPI) -> None:
    client = TestClient(app, "http://localhost", raise_server_exceptions=False)
    paths = {path: methods for path, methods in app.openapi()["paths"].items() if path.startswith("/v1/")}
    assert len(paths) > 20
    for path, methods in paths.items():
        for method, operation in methods.items():
            known = sorted(one["name"] for one in operation.get("parameters", ()) if one["in"] == "query")
            answer = client.request(method, re.sub(r"\{\w+\}", "1", path), params={"limt~": 1})
            assert answer.status_code == 422, f"{method} {path}"
            if method != "head":
                problem = answer.json()
                assert (problem["code"], problem["errors"][0]["pointer"]) == ("invalid_request", "/query/limt~0"), path
                assert f"It takes {', '.join(known) or 'none'}." in problem["detail"], path


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_follower_of_events_hears_of_a_misspelt_parameter(client: TestClient, accept: str) -> None:
    answer = client.get("/v1/jobs/1/events?after=x&last_event_id=3", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/query/last_event_id"]


def test_a_parameter_that_the_call_has_is_taken_under_its_public_name(client: TestClient) -> None:
    client.post("/v1/models", json={"name": "m"}).raise_for_status()
    assert client.get("/v1/models/m/weights/2/diff?from=1").json()["code"] == "weights_not_found"
    assert client.get("/v1/jobs?model=m&state=queued&kind=build&limit=1").status_code == 200


@pytest.mark.parametrize("number", [True, "1", 1.5])
def test_a_number_is_neither_a_boolean_nor_in_quotes(client: TestClient, number: object) -> None:
    client.post("/v1/models", json={"name": "m"}).raise_for_status()
    answer = client.post("/v1/models/m/refits", json={"engine": number, "weights": 1})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/engine")


def test_emoji_and_other_scripts_come_back_as_sent(client: TestClient) -> None:
    sent = {"name": "m", "description": "ünï 😀 漢字", "labels": {"😀": "é", "": ""}}
    client.post("/v1/models", json=sent).raise_for_status()
    got = client.get("/v1/models/m").json()
    assert {key: got[key] for key in sent} == sent
