import errno
import os

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError


def test_an_unknown_route_is_a_problem(client: TestClient) -> None:
    answer = client.get("/v1/nothing")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "There is nothing at /v1/nothing. GET /docs lists every call."


def test_a_wrong_method_is_a_problem_that_names_the_allowed_ones(client: TestClient) -> None:
    answer = client.delete("/v1/models")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


def test_an_unexpected_fault_is_a_problem_that_hides_its_cause(app: FastAPI) -> None:
    @app.get("/fault")
    def fault() -> None:
        raise ZeroDivisionError("secret")

    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        answer = client.get("/fault", headers={"X-Request-ID": "abc-1"})
    assert answer.status_code == 500
    assert answer.json()["request_id"] == "abc-1"
    assert "secret" not in answer.text


def test_json_that_is_too_large_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/models", json={"name": "a", "description": "x" * 9_000_000})
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
    assert "PUT /v1/blobs" in answer.json()["detail"]
    assert answer.json()["code"] == "request_entity_too_large"


def test_json_that_does_not_parse_is_a_problem(client: TestClient) -> None:
    answer = client.post("/v1/models", content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("body", [b'{"name": "\xff"}', b'{"name": ' + b"9" * 6000 + b"}"])
def test_json_that_the_parser_gives_up_on_is_a_problem_with_a_remedy(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/models", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "UTF-8" in answer.json()["detail"]


def test_a_syntax_error_says_where_it_is(client: TestClient) -> None:
    answer = client.post("/v1/models", content=b'{"name": "a",}', headers={"Content-Type": "application/json"})
    (error,) = answer.json()["errors"]
    assert error["pointer"] == ""
    assert "at character 13" in error["detail"]


def test_every_answer_carries_the_request_id(client: TestClient) -> None:
    assert client.get("/healthz").headers["x-request-id"]
    assert client.get("/healthz", headers={"X-Request-ID": "mine"}).headers["x-request-id"] == "mine"
    assert client.get("/healthz", headers={"X-Request-ID": "not a header"}).headers["x-request-id"] != "not a header"


def test_a_body_sent_as_a_form_is_told_to_be_json(client: TestClient) -> None:
    answer = client.post("/v1/models", content=b'{"name": "a"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422
    assert "curl --json" in answer.json()["detail"]


def test_a_database_that_fails_is_503_with_a_remedy(app: FastAPI) -> None:
    @app.get("/v1/fails")
    def fail() -> None:
        raise OperationalError("COMMIT", None, Exception("database or disk is full"))

    answer = TestClient(app, "http://localhost", raise_server_exceptions=False).get("/v1/fails")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert "disk" in answer.json()["detail"]
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_is_503_with_a_remedy(app: FastAPI, number: int) -> None:
    @app.get("/v1/fails")
    def fail() -> None:
        raise OSError(number, os.strerror(number), "/somewhere/secret")

    answer = TestClient(app, "http://localhost", raise_server_exceptions=False).get("/v1/fails")
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_unavailable")
    assert os.strerror(number) in answer.json()["detail"]
    assert "secret" not in answer.text
    assert answer.headers["Retry-After"] == "1"


def test_a_file_that_is_missing_is_a_fault_of_the_service(app: FastAPI) -> None:
    @app.get("/v1/fails")
    def fail() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file")

    assert TestClient(app, "http://localhost", raise_server_exceptions=False).get("/v1/fails").status_code == 500


@pytest.mark.parametrize("path", ["{}", "v1/models/{}", "v1/models/{}/engines", "v1/jobs/{}"])
def test_a_long_name_is_not_repeated_whole(client: TestClient, path: str) -> None:
    answer = client.get("/" + path.format("x" * 5000))
    assert answer.status_code == 404
    assert "x" * 60 in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 400
