import base64

import pytest
from fastapi.testclient import TestClient

from app.http.pagination import encode_cursor

BY_NUMBER = (
    "/v1/models/m/definitions",
    "/v1/models/m/weights",
    "/v1/models/m/engines",
    "/v1/models/m/aliases/a/history",
)
BY_NAME = ("/v1/models", "/v1/models/m/aliases", "/v1/jobs", "/v1/workers")


def _raw(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


NO_KEYS = {
    "true": _raw(b"true"),
    "null": _raw(b"null"),
    "a fraction": _raw(b"1.5"),
    "not a number": _raw(b"NaN"),
    "a list": _raw(b"[1]"),
    "nested deeply": _raw(b"[" * 20_000),
    "not UTF-8": _raw(b'"\xff"'),
    "not base64": "!!!",
    "empty": "",
}


@pytest.fixture(autouse=True)
def _model(client: TestClient) -> None:
    client.post("/v1/models", json={"name": "m"}).raise_for_status()


def _refused(client: TestClient, path: str, cursor: str) -> bool:
    answer = client.get(path, params={"after": cursor})
    return (answer.status_code, answer.json().get("code")) == (422, "bad_cursor")


@pytest.mark.parametrize("cursor", NO_KEYS.values(), ids=NO_KEYS)
@pytest.mark.parametrize("path", [*BY_NUMBER, *BY_NAME])
def test_what_is_no_key_is_no_cursor(client: TestClient, path: str, cursor: str) -> None:
    assert _refused(client, path, cursor)


@pytest.mark.parametrize("path", BY_NUMBER)
def test_a_list_by_number_refuses_names_and_numbers_no_column_holds(client: TestClient, path: str) -> None:
    for key in ("m", "5", 10**30, -(10**30), 2**63):
        assert _refused(client, path, encode_cursor(key)), key
    for number in (1, 2**63 - 1):
        assert client.get(path, params={"after": encode_cursor(number)}).status_code == 200


@pytest.mark.parametrize("path", BY_NAME)
def test_a_list_by_name_refuses_numbers_and_text_no_database_takes(client: TestClient, path: str) -> None:
    for key in (5, 10**30, "a\0", "\ud800"):
        assert _refused(client, path, encode_cursor(key)), key
    assert client.get(path, params={"after": encode_cursor("é😀")}).status_code == 200


@pytest.mark.parametrize("limit", ["0", "201", "-1", "x", ""])
def test_a_limit_out_of_range_is_refused(client: TestClient, limit: str) -> None:
    answer = client.get("/v1/models", params={"limit": limit})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/limit")
